//! The origin's objects, their changes, and the versions that may be served.

use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicBool, Ordering},
        Mutex,
    },
    thread,
    time::{Duration, Instant},
};

use test_support::{Gate, Pattern, Random, Reply, Request};

/// Around the limits of the engine: what is kept in memory and what goes by
/// sendfile (64 KiB), a block (1 MiB), a part (2 MiB).
const LENGTHS: [u64; 12] = [
    0, 1, 200, 5_000, 40_000, 65_535, 70_000, 200_000, 1_048_575, 2_097_151, 5_000_000, IN_BLOCKS,
];

/// The objects of this length are fetched in blocks, where their framing tells the length.
pub const IN_BLOCKS: u64 = 20_971_520;

/// The longest way of a response between origin, proxy and client. Much
/// is going on, and the machine may be small.
const SLACK: Duration = Duration::from_secs(10);

/// The greatest age of a reply that breaks off.
const REPLY: Duration = Duration::from_secs(10);

/// The age at which a reply is forgotten: nobody waits for so long.
const PAST: Duration = Duration::from_secs(180);

/// All objects, by number.
pub struct Objects {
    list: Vec<Object>,
    random: Mutex<Random>,
    /// Nothing changes and nothing goes wrong any more.
    calm: AtomicBool,
}

struct Object {
    len: u64,
    framing: Framing,
    max_age: Duration,
    /// True if replies about it fail at times.
    unreliable: bool,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
enum Framing {
    Length,
    Chunked,
    UntilClose,
}

struct State {
    version: u64,
    changed_at: Option<Instant>,
    changes_at: Instant,
    /// The last time that the origin called a version the current one.
    said: BTreeMap<u64, Instant>,
    /// The start of a reply that went wrong.
    failed: Vec<Instant>,
}

/// One version of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub object: usize,
    pub version: u64,
    pub len: u64,
}

// === impl Objects ===

impl Objects {
    pub fn new(random: Random) -> Self {
        let framings = [Framing::Length, Framing::Chunked, Framing::UntilClose];
        let now = Instant::now();
        let list = (0..LENGTHS.len() * framings.len()).map(|number| Object {
            len: LENGTHS[number / framings.len()],
            framing: framings[number % framings.len()],
            max_age: Duration::from_secs(number as u64 % 4),
            unreliable: number % 5 == 0,
            state: Mutex::new(State {
                version: 0,
                changed_at: None,
                changes_at: now,
                said: BTreeMap::new(),
                failed: Vec::new(),
            }),
        });
        Self {
            list: list.collect(),
            random: Mutex::new(random),
            calm: AtomicBool::new(false),
        }
    }

    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// From now on nothing changes and nothing goes wrong; what went wrong
    /// before is no excuse any more.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::SeqCst);
        for object in &self.list {
            object.state.lock().unwrap().failed.clear();
        }
    }

    /// The object that is fetched in blocks.
    pub fn in_blocks(&self) -> usize {
        let in_blocks = |object: &Object| object.len == IN_BLOCKS;
        let first = self.list.iter().position(in_blocks);
        first.expect("an object of that length")
    }

    pub fn path(object: usize) -> String {
        format!("/soak/{object}")
    }

    /// The version that the origin has now.
    pub fn current(&self, object: usize) -> Version {
        let version = self.list[object].state.lock().unwrap().version;
        self.version(object, version)
    }

    fn version(&self, object: usize, version: u64) -> Version {
        Version {
            object,
            version,
            len: self.list[object].len + version % 3,
        }
    }

    /// The origin's reply.
    pub fn answer(&self, request: &Request) -> Reply {
        let name = request.path().rsplit('/').next().unwrap_or_default();
        let number: usize = name.parse().expect("an object's number");
        let object = &self.list[number];
        let calm = self.calm.load(Ordering::SeqCst);
        let mut random = self.random.lock().unwrap();
        let mut state = object.state.lock().unwrap();
        let now = Instant::now();
        if !calm && now >= state.changes_at {
            state.version += 1;
            state.changed_at = Some(now);
            // Blocks of a version are of use only as long as it stays.
            let stays = match object.len {
                IN_BLOCKS => 20_000..60_000,
                _ => 2_000..10_000,
            };
            state.changes_at = now + Duration::from_millis(random.of(stays));
        }
        let version = self.version(number, state.version);
        state.said.insert(version.version, now);
        state.said.retain(|_, said| now - *said < PAST);

        let fails = !calm && object.unreliable && random.percent(10);
        if fails {
            state.failed.retain(|failed| now - *failed < PAST);
            state.failed.push(now);
            if random.percent(30) {
                return Reply::status(503);
            }
        }
        let mut reply = Reply::pattern(version.seed(), version.len)
            .header("ETag", version.etag())
            .header("Accept-Ranges", "bytes")
            .header(
                "Cache-Control",
                format!("max-age={}", object.max_age.as_secs()),
            );
        reply = match object.framing {
            Framing::Length => reply,
            Framing::Chunked => reply.chunked(),
            Framing::UntilClose => reply.until_close(),
        };
        let offset = random.of(0..version.len + 1);
        if fails {
            // The end of the connection would be the end of the body.
            let must_reset = matches!(object.framing, Framing::UntilClose);
            reply = if must_reset || random.percent(50) {
                reply.reset_at(offset)
            } else {
                reply.close_at(offset)
            };
        }
        if !calm && random.percent(5) {
            let pause = Duration::from_millis(random.of(10..1_000));
            let gate = Gate::new();
            reply = reply.hold_at(random.of(0..offset + 1), &gate);
            thread::spawn(move || {
                thread::sleep(pause);
                gate.open();
            });
        }
        reply.answering(request)
    }

    /// The version that a response is about which was asked for at `asked_at`.
    /// The error: it cannot be that one.
    pub fn judge(&self, object: usize, etag: &str, asked_at: Instant) -> Result<Version, String> {
        let version = etag
            .strip_prefix(&format!("\"{object}-"))
            .and_then(|rest| rest.strip_suffix('"')?.parse().ok())
            .ok_or_else(|| format!("the ETag of another object: {etag}"))?;
        let state = self.list[object].state.lock().unwrap();
        let Some(said) = state.said.get(&version) else {
            return Err(format!("a version that the origin never had: {etag}"));
        };
        let age = asked_at.saturating_duration_since(*said);
        if age > self.list[object].max_age + SLACK {
            return Err(format!(
                "stale: version {version} was last said to be current {age:?} before the request, and the origin has {}",
                state.version
            ));
        }
        Ok(self.version(object, version))
    }

    /// The lengths that an object may have for a request sent at `asked_at`.
    pub fn possible_lengths(&self, object: usize, asked_at: Instant) -> Vec<u64> {
        let state = self.list[object].state.lock().unwrap();
        let oldest = self.list[object].max_age + SLACK;
        state
            .said
            .iter()
            .filter(|(_, said)| asked_at.saturating_duration_since(**said) <= oldest)
            .map(|(version, _)| self.version(object, *version).len)
            .collect()
    }

    /// True if a response asked for at `asked_at` may have begun with blocks of a version of which the
    /// origin had no more then.
    pub fn lost_blocks_since(&self, object: usize, asked_at: Instant) -> bool {
        let object = &self.list[object];
        let fresh = object.max_age + SLACK;
        let changed_at = object.state.lock().unwrap().changed_at;
        object.len == IN_BLOCKS && changed_at.is_some_and(|changed| changed + fresh > asked_at)
    }

    /// True if the origin broke off a reply about this object that a response
    /// asked for at `asked_at` may have been made of.
    pub fn failed_since(&self, object: usize, asked_at: Instant) -> bool {
        let state = self.list[object].state.lock().unwrap();
        state.failed.iter().any(|failed| *failed + REPLY > asked_at)
    }
}

// === impl Version ===

impl Version {
    pub fn pattern(&self) -> Pattern {
        Pattern::new(self.seed())
    }

    pub fn etag(&self) -> String {
        format!("\"{}-{}\"", self.object, self.version)
    }

    fn seed(&self) -> u64 {
        (self.object as u64 + 1) << 32 | self.version
    }
}
