//! The origin in the machine, and the versions that it has had.

use std::{
    array,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        Arc,
    },
};

use test_support::{Origin, Reply, Request};

use super::objects::{Object, Versions, COUNT};

/// Versions that the origin may have had in an earlier cycle although the host does not know them: their
/// announcements were lost with the power.
const UNKNOWN: u64 = 64;

/// The port of the origin in each cycle.
const PORT: u16 = 9000;

/// The state that the origin and its clients share.
pub struct World {
    /// The version that the origin has.
    current: [AtomicU64; COUNT],
    /// The newest version that may not be served any more.
    purged: [AtomicU64; COUNT],
    /// True while the origin fails every request.
    away: AtomicBool,
}

// === impl World ===

impl World {
    /// The origin of an earlier cycle. `versions` are the newest ones that it is known to have had, `purged`
    /// the newest ones whose purge was acknowledged.
    pub fn new(versions: &Versions, purged: &Versions) -> Arc<Self> {
        Arc::new(Self {
            current: array::from_fn(|object| versions.of(object).into()),
            purged: array::from_fn(|object| purged.of(object).into()),
            away: AtomicBool::new(true),
        })
    }

    /// Starts the origin, which is away at first.
    pub fn start(self: &Arc<Self>) -> Origin {
        let world = self.clone();
        Origin::start_at(PORT, move |request| world.answer(request))
    }

    fn answer(&self, request: &Request) -> Reply {
        let Some(number) = Object::at(request.path()) else {
            return Reply::status(404);
        };
        if self.away.load(SeqCst) {
            return Reply::status(503);
        }
        let object = Object::new(number);
        let version = self.current(number);
        let etag = object.etag(version);
        if request
            .header("if-match")
            .is_some_and(|asked| asked != etag)
        {
            return Reply::status(412);
        }
        Reply::pattern(object.seed(version), object.len)
            .header("ETag", etag)
            .header("Accept-Ranges", "bytes")
            .header("Cache-Control", format!("max-age={}", object.max_age))
            .answering(request)
    }

    pub fn come_back(&self) {
        self.away.store(false, SeqCst);
    }

    pub fn current(&self, object: usize) -> u64 {
        self.current[object].load(SeqCst)
    }

    pub fn purged(&self, object: usize) -> u64 {
        self.purged[object].load(SeqCst)
    }

    /// Gives an object its next version. The host knows it first.
    pub fn replace(&self, object: usize) {
        let next = self.current(object) + 1;
        println!("power: version {object} {next}");
        self.current[object].fetch_max(next, SeqCst);
    }

    /// Notes that a purge of the versions up to this one was acknowledged. The host knows it after that.
    pub fn note_purge(&self, object: usize, version: u64) {
        self.purged[object].fetch_max(version, SeqCst);
        println!("power: purged {object} {version}");
    }

    /// The version of a response. `purged` is the newest one that was purged before the request. The error:
    /// it must not be served.
    pub fn judge(&self, object: usize, etag: &str, purged: u64) -> Result<u64, String> {
        let Some(version) = Object::new(object).version(etag) else {
            return Err(format!("object {object} has the ETag of another: {etag}"));
        };
        if version <= purged {
            return Err(format!(
                "object {object}: version {version} is served, and {purged} was purged"
            ));
        }
        let current = self.current(object);
        if version > current + UNKNOWN {
            return Err(format!(
                "object {object}: version {version} is served, and the origin has {current}"
            ));
        }
        // Its announcement may be lost. Later versions are newer.
        self.current[object].fetch_max(version, SeqCst);
        Ok(version)
    }
}
