//! The origin's objects, and what the host and the machine know about them.

use std::{env, str::FromStr};

use test_support::Pattern;

/// Lengths of objects that are stored whole.
const SMALL: [u64; 8] = [1, 700, 4_096, 20_000, 70_000, 300_000, 1_048_576, 1_500_000];

/// Lengths of objects that are stored in blocks: more than 16 MiB.
const LARGE: [u64; 3] = [(16 << 20) + 1, (17 << 20) + 12_345, 20 << 20];

/// Freshness of an object that does not become stale within the test, in seconds.
const FRESH: u64 = 86_400;

/// Freshness of an object that is validated over and over, in seconds.
const STALE_SOON: u64 = 1;

/// The first segments of the paths, each the prefix of a purge.
pub const FOLDERS: [&str; 2] = ["/power/a/", "/power/b/"];

/// Number of objects.
pub const COUNT: usize = 2 * SMALL.len() + LARGE.len();

/// An object.
#[derive(Clone, Copy)]
pub struct Object {
    number: usize,
    pub len: u64,
    pub max_age: u64,
}

/// A number for each object: the newest version that the origin has had, or the newest that was purged. The
/// first version is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions([u64; COUNT]);

// === impl Object ===

impl Object {
    pub fn new(number: usize) -> Self {
        let (kind, copy) = (number % SMALL.len(), number / SMALL.len());
        let (len, max_age) = match copy {
            0 => (SMALL[kind], FRESH),
            1 => (SMALL[kind], STALE_SOON),
            _ => (LARGE[kind], [FRESH, FRESH, STALE_SOON][kind]),
        };
        Self {
            number,
            len,
            max_age,
        }
    }

    pub fn all() -> impl Iterator<Item = (usize, Self)> {
        (0..COUNT).map(|number| (number, Self::new(number)))
    }

    /// The object at a path of the origin or the proxy, which both name the folder and the number.
    pub fn at(path: &str) -> Option<usize> {
        let number = path.rsplit('/').next()?.parse().ok()?;
        (number < COUNT).then_some(number)
    }

    /// True if it is stored in blocks.
    pub fn is_large(&self) -> bool {
        self.len > LARGE[0] - 1
    }

    /// True if it is served from the cache without the origin whenever it is stored.
    pub fn stays_fresh(&self) -> bool {
        self.max_age == FRESH
    }

    pub fn path(&self) -> String {
        format!("{}{}", self.folder(), self.number)
    }

    pub fn folder(&self) -> &'static str {
        FOLDERS[self.number % FOLDERS.len()]
    }

    /// The content of a version.
    pub fn pattern(&self, version: u64) -> Pattern {
        Pattern::new(self.seed(version))
    }

    pub fn seed(&self, version: u64) -> u64 {
        (self.number as u64 + 1) << 32 | version
    }

    pub fn etag(&self, version: u64) -> String {
        format!("\"{}-{version}\"", self.number)
    }

    /// The version with an ETag; None: it is that of another object.
    pub fn version(&self, etag: &str) -> Option<u64> {
        let version = etag.strip_prefix(&format!("\"{}-", self.number))?;
        version.strip_suffix('"')?.parse().ok()
    }
}

// === impl Versions ===

impl Versions {
    pub fn all(version: u64) -> Self {
        Self([version; COUNT])
    }

    pub fn of(&self, object: usize) -> u64 {
        self.0[object]
    }

    /// Raises the version of an object, if it is lower.
    pub fn raise(&mut self, object: usize, version: u64) {
        self.0[object] = self.0[object].max(version);
    }

    /// Those that a variable of the environment has.
    pub fn from_variable(name: &str) -> Self {
        let text = env::var(name).unwrap_or_else(|_| panic!("{name} is missing"));
        let numbers = text.split(',').map(u64::from_str);
        let numbers: Result<Vec<_>, _> = numbers.collect();
        let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
        Self(numbers.unwrap_or_else(|| panic!("{name}={text}")))
    }

    /// As [`Self::from_variable`] reads them.
    pub fn to_text(&self) -> String {
        self.0.map(|version| version.to_string()).join(",")
    }
}
