//! Objects that hold another object in a compressed form: `a.js.br` beside `a.js`.

use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use quick_cache::Equivalent;

use crate::cache::DiskCache;
use crate::http::rules::accept_encoding::Coding;
use crate::s3::ObjectKey;

/// The most objects whose siblings are remembered. The least requested ones are evicted first.
const CAPACITY: usize = 64 * 1024;

/// The time for which the siblings of an object are remembered. A purge ends it.
const TTL: Duration = Duration::from_secs(60);

/// Remembers which siblings objects have.
pub(in crate::proxy) struct Siblings {
    known: Cache<Object, Known>,
    cache: Option<&'static DiskCache>,
}

/// An object: the number of the way to its bucket, and the key.
#[derive(Clone, PartialEq, Eq)]
struct Object(u64, Box<str>);

/// An [`Object`] to look up.
struct Asked<'k>(u64, &'k str);

#[derive(Clone, Copy)]
struct Known {
    /// A bit for each coding.
    present: u8,
    absent: u8,
    until: Instant,
    purges: u64,
}

// === impl Siblings ===

impl Siblings {
    pub(in crate::proxy) fn new(cache: Option<&'static DiskCache>) -> Siblings {
        Siblings {
            known: Cache::new(CAPACITY),
            cache,
        }
    }

    /// True if an object has a sibling with this coding; `None`: it is not known. `is_stale`: what was
    /// known before counts too.
    pub(in crate::proxy) fn has(
        &self,
        bucket: u64,
        key: &str,
        coding: Coding,
        is_stale: bool,
    ) -> Option<bool> {
        let known = self.known.get(&Asked(bucket, key))?;
        let is_usable = is_stale || self.is_fresh(&known);
        let bit = bit(coding);
        match is_usable && (known.present | known.absent) & bit != 0 {
            true => Some(known.present & bit != 0),
            false => None,
        }
    }

    /// Note if an object has a sibling with this coding.
    pub(in crate::proxy) fn note(&self, bucket: u64, key: &str, coding: Coding, is_there: bool) {
        let before = self.known.get(&Asked(bucket, key));
        let mut known = before
            .filter(|known| self.is_fresh(known))
            .unwrap_or(Known {
                present: 0,
                absent: 0,
                until: Instant::now() + TTL,
                purges: self.purges(),
            });
        let bit = bit(coding);
        known.present &= !bit;
        known.absent &= !bit;
        match is_there {
            true => known.present |= bit,
            false => known.absent |= bit,
        }
        self.known.insert(Object(bucket, key.into()), known);
    }

    fn is_fresh(&self, known: &Known) -> bool {
        known.purges == self.purges() && Instant::now() < known.until
    }

    fn purges(&self) -> u64 {
        self.cache.map_or(0, DiskCache::purges)
    }
}

// === impl Object ===

impl Hash for Object {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Asked(self.0, &self.1).hash(state);
    }
}

impl Hash for Asked<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
        self.1.hash(state);
    }
}

impl Equivalent<Object> for Asked<'_> {
    fn equivalent(&self, object: &Object) -> bool {
        self.0 == object.0 && *self.1 == *object.1
    }
}

fn bit(coding: Coding) -> u8 {
    match coding {
        Coding::Brotli => 1,
        Coding::Zstd => 2,
        Coding::Gzip => 4,
    }
}

/// The key of the sibling of an object. `None`: it would be too long.
pub(in crate::proxy) fn sibling_of(key: &str, coding: Coding) -> Option<ObjectKey> {
    let ending = match coding {
        Coding::Brotli => ".br",
        Coding::Zstd => ".zst",
        Coding::Gzip => ".gz",
    };
    ObjectKey::new([key, ending].concat()).ok()
}

/// True if the ending of a key is that of texts and other formats that compression makes smaller.
pub(in crate::proxy) fn is_compressible(key: &str) -> bool {
    let guessed = mime_guess::from_path(key).first_raw();
    // To a path, a slash at the end is nothing.
    let guessed = guessed.filter(|_| !key.ends_with('/'));
    guessed.is_some_and(|guessed| {
        guessed.starts_with("text/")
            || guessed.ends_with("+json")
            || guessed.ends_with("+xml")
            || [
                "application/javascript",
                "application/json",
                "application/vnd.ms-fontobject",
                "application/wasm",
                "application/xml",
                "font/otf",
                "font/ttf",
                "image/bmp",
                "image/x-icon",
            ]
            .contains(&guessed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_are_remembered_by_coding() {
        let siblings = Siblings::new(None);
        assert_eq!(siblings.has(1, "a.js", Coding::Brotli, false), None);
        siblings.note(1, "a.js", Coding::Brotli, false);
        siblings.note(1, "a.js", Coding::Gzip, true);
        assert_eq!(siblings.has(1, "a.js", Coding::Brotli, false), Some(false));
        assert_eq!(siblings.has(1, "a.js", Coding::Gzip, false), Some(true));
        assert_eq!(siblings.has(1, "a.js", Coding::Zstd, false), None);
        assert_eq!(siblings.has(2, "a.js", Coding::Gzip, false), None);
        siblings.note(1, "a.js", Coding::Gzip, false);
        assert_eq!(siblings.has(1, "a.js", Coding::Gzip, false), Some(false));
    }

    #[test]
    fn only_what_gets_smaller_is_looked_for() {
        for (key, expected) in [
            ("a.js", true),
            ("a/b.HTML", true),
            ("a.svg", true),
            ("a.webmanifest", true),
            ("a.wasm", true),
            ("a.png", false),
            ("a.woff2", false),
            ("a.mp4", false),
            ("a.js.br", false),
            ("a.gz", false),
            ("a.js/", false),
            ("a", false),
        ] {
            assert_eq!(is_compressible(key), expected, "{key}");
        }
    }
}
