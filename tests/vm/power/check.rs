//! The cache after a power cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use pingora_sendfile::cache::inspect::{CacheFolder, Found};
use test_support::{eventually_ok, get, Connection, Proxy};

use super::{
    objects::{Object, Versions},
    origin::World,
};

/// The limit of the cache in bytes: less than what the objects take, so that fills evict.
pub const MAX_SIZE: u64 = 34_000_000;

/// Holes that are shorter belong to no body in blocks.
const MIN_BLOCK: u64 = 64 << 10;

/// The findings, for the host.
#[derive(Default)]
pub struct Report {
    pub entries: u64,
    pub blocks: u64,
    /// Entries whose purge was noted, but not their removal.
    pub banned: u64,
    /// Responses that were served without the origin, and their bytes.
    pub served: u64,
    pub bytes: u64,
}

/// The files of a cache folder, from outside.
#[derive(Default)]
struct Content {
    /// Paths without their extension.
    bodies: BTreeSet<PathBuf>,
    metas: BTreeSet<PathBuf>,
    others: Vec<PathBuf>,
    bytes: u64,
}

/// An entry.
struct Stored {
    /// The ranges of the body that are stored.
    ranges: Vec<(u64, u64)>,
}

/// A response without the origin.
enum Answer {
    /// So many bytes, all of them right.
    Served(u64),
    /// An error with these fields.
    Refused(String),
}

/// Requests for an object.
struct Question<'p> {
    proxy: &'p Proxy,
    world: &'p World,
    number: usize,
    object: Object,
    /// The newest version whose purge was acknowledged.
    purged: u64,
}

/// Checks a proxy that has just started, whose origin is away. The error: something is wrong.
pub fn check(
    proxy: &Proxy,
    folder: &Path,
    world: &World,
    purged: &Versions,
) -> Result<Report, String> {
    eventually_ok(|| match progress(proxy) == "1" {
        true => Ok(()),
        false => Err("the entries are recovered".to_owned()),
    });
    eventually_ok(|| agrees(proxy, folder));
    let mut report = Report::default();
    let stored = inspect(folder, &mut report)?;
    // Nothing else can be served, unless there are entries whose objects are not known: purged ones.
    let ask_for_all = report.banned > 0;
    for (number, object) in Object::all() {
        let stored = stored.get(&number);
        if ask_for_all || stored.is_some() {
            let question = Question {
                proxy,
                world,
                number,
                object,
                purged: purged.of(number),
            };
            question.ask(stored, &mut report)?;
        }
    }
    // Purged entries that were asked for are gone.
    eventually_ok(|| agrees(proxy, folder));
    Ok(report)
}

/// The sample of the metric, which is not a whole number until the recovery has ended.
fn progress(proxy: &Proxy) -> String {
    const METRIC: &str = "cache_load_progress_ratio";
    let metrics = get(proxy.metrics_addr(), "/metrics").text();
    let mut samples = metrics.lines().filter(|line| line.starts_with(METRIC));
    let sample = samples.next().expect("the metric is exposed");
    sample.rsplit(' ').next().unwrap_or_default().to_owned()
}

/// The folder has nothing but entries, and the metrics count what it has.
fn agrees(proxy: &Proxy, folder: &Path) -> Result<(), String> {
    let content = Content::of(folder);
    let halves: Vec<_> = content
        .bodies
        .symmetric_difference(&content.metas)
        .collect();
    if !halves.is_empty() || !content.others.is_empty() {
        return Err(format!(
            "only entries are left; halves: {halves:?}, others: {:?}",
            content.others
        ));
    }
    let metrics = proxy.metrics();
    let counted = (
        metrics.sum("cache_entries"),
        metrics.sum("cache_size_bytes"),
    );
    let found = (content.metas.len() as u64, content.bytes);
    if counted != found || content.bytes > MAX_SIZE {
        return Err(format!(
            "the metrics say {counted:?}, the folder has {found:?}, the limit is {MAX_SIZE}"
        ));
    }
    Ok(())
}

/// Has the inspector verify all bodies. Returns what is stored of each object.
fn inspect(folder: &Path, report: &mut Report) -> Result<BTreeMap<usize, Stored>, String> {
    let mut stored = BTreeMap::new();
    let cache = CacheFolder::open(folder).map_err(|e| e.to_string())?;
    for found in cache.walk() {
        let entry = match found.map_err(|e| e.to_string())? {
            Found::Entry(entry) => entry,
            Found::Damaged(damaged) => {
                return Err(format!("{}: {}", damaged.file.display(), damaged.reason))
            }
            // An entry that is banned.
            Found::Leftover { file, .. } if file.extension().is_some_and(|e| e == "meta") => {
                report.banned += 1;
                continue;
            }
            Found::Leftover { file, .. } => return Err(format!("{}: left over", file.display())),
        };
        let key = String::from_utf8_lossy(&entry.meta.primary_key).into_owned();
        let number = Object::at(&key).ok_or_else(|| format!("an entry of {key:?}"))?;
        report.entries += 1;
        report.blocks += entry
            .meta
            .blocks
            .as_ref()
            .map_or(0, |map| map.checksums.len() as u64);
        let ranges = entry.meta.checksums();
        let of_object = Stored {
            ranges: ranges
                .iter()
                .map(|(range, _)| (range.start, range.end))
                .collect(),
        };
        match cache.verify(entry, |_| {}).map_err(|e| e.to_string())? {
            Some(Found::Entry(_)) => stored.insert(number, of_object),
            Some(Found::Damaged(damaged)) => {
                return Err(format!("{}: {}", damaged.file.display(), damaged.reason))
            }
            found => return Err(format!("an entry has gone: {found:?}")),
        };
    }
    Ok(stored)
}

// === impl Question ===

impl Question<'_> {
    /// Asks for a small object, or for each stored block of a large one. Nothing may be served that was
    /// purged; what is stored and fresh has to be served.
    fn ask(&self, stored: Option<&Stored>, report: &mut Report) -> Result<(), String> {
        if !self.object.is_large() {
            return self.expect(None, stored.is_some(), report);
        }
        // The whole would break off at the first block that is missing.
        let Some(stored) = stored else {
            return self.expect(Some((0, 1)), false, report);
        };
        for (start, end) in &stored.ranges {
            self.expect(Some((*start, *end)), true, report)?;
        }
        Ok(())
    }

    fn expect(
        &self,
        range: Option<(u64, u64)>,
        is_stored: bool,
        report: &mut Report,
    ) -> Result<(), String> {
        match self.get(range)? {
            Answer::Served(bytes) => {
                report.served += 1;
                report.bytes += bytes;
                Ok(())
            }
            Answer::Refused(fields) if is_stored && self.object.stays_fresh() => Err(format!(
                "object {} is stored, and {range:?} is not served:\n{fields}",
                self.number
            )),
            Answer::Refused(_) => Ok(()),
        }
    }

    /// Asks for the object, or for a range of it.
    fn get(&self, range: Option<(u64, u64)>) -> Result<Answer, String> {
        let number = self.number;
        let mut client = Connection::open(self.proxy.addr());
        let field = range.map(|(start, end)| format!("bytes={start}-{}", end - 1));
        let fields: Vec<_> = field.iter().map(|field| ("Range", &**field)).collect();
        let response = client.begin("GET", &self.object.path(), &fields);
        if response.status >= 500 {
            return Ok(Answer::Refused(response.headers.to_string()));
        }
        let (start, end) = range.unwrap_or((0, self.object.len));
        let status = if range.is_some() { 206 } else { 200 };
        if response.status != status {
            return Err(format!(
                "object {number}, {range:?}: status {}",
                response.status
            ));
        }
        let etag = response.headers.get("etag").unwrap_or_default().to_owned();
        let version = self.world.judge(number, &etag, self.purged)?;
        let pattern = self.object.pattern(version);
        let mut difference = None;
        let transfer = response.stream(|at, bytes| {
            if difference.is_none() {
                difference = pattern.difference(start + at, bytes);
            }
        });
        if let Some(difference) = difference {
            return Err(format!("object {number}, version {version}: {difference}"));
        }
        match transfer.complete && transfer.len == end - start {
            true => Ok(Answer::Served(transfer.len)),
            false => Err(format!("object {number}, {range:?}: {transfer:?}")),
        }
    }
}

// === impl Content ===

impl Content {
    fn of(folder: &Path) -> Self {
        let mut content = Self::default();
        let list = |folder: &Path| -> Vec<fs::DirEntry> {
            let names = fs::read_dir(folder).into_iter().flatten();
            names.flatten().collect()
        };
        for file in list(folder) {
            if file.path().extension().is_some_and(|e| e == "tmp") {
                content.others.push(file.path());
            }
        }
        for shard in list(&folder.join("v2")) {
            for file in list(&shard.path()) {
                content.add(file.path());
            }
        }
        content
    }

    fn add(&mut self, path: PathBuf) {
        // Removed since it was listed.
        let Ok(stat) = fs::metadata(&path) else {
            return;
        };
        let stem = path.with_extension("");
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("body") => {
                let allocated = stat.blocks() * 512;
                let has_holes = stat.len().saturating_sub(allocated) >= MIN_BLOCK;
                self.bytes += if has_holes {
                    allocated
                } else {
                    stat.len().next_multiple_of(4096)
                };
                self.bodies.insert(stem);
            }
            Some("meta") => {
                self.bytes += stat.len().next_multiple_of(4096);
                self.metas.insert(stem);
            }
            _ => self.others.push(path),
        }
    }
}
