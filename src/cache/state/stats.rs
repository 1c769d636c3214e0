//! Counters of the cache.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Cause for which an entry could not be written, read or kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The disk, a quota or the cache itself is full (ENOSPC, EDQUOT, EFBIG).
    NoSpace,
    /// The device reported an error (EIO).
    Io,
    /// The file system is read-only, or permissions are missing.
    ReadOnly,
    /// The process or the system has no file descriptors left.
    Descriptors,
    /// A file or a folder is missing.
    Missing,
    /// A file is truncated, foreign, or has flipped bits.
    Damaged,
    /// The origin's response broke off, or has another length than announced.
    Origin,
    /// All readers left.
    Deserted,
    /// The most fills allowed were in flight already.
    TooMany,
    /// Any other cause.
    Other,
}

impl Cause {
    /// All values, in the order of their numbers.
    pub const ALL: [Cause; 10] = [
        Cause::NoSpace,
        Cause::Io,
        Cause::ReadOnly,
        Cause::Descriptors,
        Cause::Missing,
        Cause::Damaged,
        Cause::Origin,
        Cause::Deserted,
        Cause::TooMany,
        Cause::Other,
    ];

    /// Value of the label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Cause::NoSpace => "no_space",
            Cause::Io => "io",
            Cause::ReadOnly => "read_only",
            Cause::Descriptors => "descriptors",
            Cause::Missing => "missing",
            Cause::Damaged => "damaged",
            Cause::Origin => "origin",
            Cause::Deserted => "deserted",
            Cause::TooMany => "too_many",
            Cause::Other => "other",
        }
    }

    /// The cause of an error of the file system.
    pub fn of(e: &io::Error) -> Cause {
        match e.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Cause::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Cause::ReadOnly,
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Cause::Missing,
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Cause::Damaged,
            _ => match e.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE) => Cause::Descriptors,
                Some(libc::EIO) => Cause::Io,
                _ => Cause::Other,
            },
        }
    }
}

/// Reason of an eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// Space was needed.
    Size,
    /// No request came for a long time.
    Inactive,
    /// It was purged, or banned.
    Purged,
    /// A newer entry replaced it.
    Replaced,
    /// The files are unusable.
    Damaged,
}

impl Eviction {
    /// All values, in the order of their numbers.
    pub const ALL: [Eviction; 5] = [
        Eviction::Size,
        Eviction::Inactive,
        Eviction::Purged,
        Eviction::Replaced,
        Eviction::Damaged,
    ];

    /// Value of the label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Eviction::Size => "size",
            Eviction::Inactive => "inactive",
            Eviction::Purged => "purged",
            Eviction::Replaced => "replaced",
            Eviction::Damaged => "damaged",
        }
    }
}

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Add one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Add `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one cache, since it was opened.
#[derive(Debug, Default)]
pub struct Stats {
    evictions: [Counter; Eviction::ALL.len()],
    fill_errors: [Counter; Cause::ALL.len()],
    read_errors: [Counter; Cause::ALL.len()],
    /// Fills that were completed.
    pub fills: Counter,
    /// Lookups that joined a fill.
    pub fill_followers: Counter,
    /// Parts of bodies that had to be read from the disk before they were sent.
    pub cold_sends: Counter,
    /// Hits whose body was in memory.
    pub memory_hits: Counter,
    /// Hits whose body file was open.
    pub descriptor_hits: Counter,
    /// Hits that opened their files.
    pub opens: Counter,
    /// Those of them whose metadata was in memory, so that only the body was opened.
    pub body_opens: Counter,
    /// Entries that the scrubber found sound.
    pub scrubbed_ok: Counter,
    /// Entries that the scrubber found damaged.
    pub scrubbed_damaged: Counter,
    /// Bytes that the scrubber read.
    pub scrubbed_bytes: Counter,
    /// Misses that were not stored because there were too few requests for the object.
    pub not_admitted: Counter,
}

impl Stats {
    /// Entries evicted for this reason.
    pub fn evictions(&self, reason: Eviction) -> &Counter {
        &self.evictions[reason as usize]
    }

    /// Fills that failed for this cause.
    pub fn fill_errors(&self, cause: Cause) -> &Counter {
        &self.fill_errors[cause as usize]
    }

    /// Entries that could not be read, or whose metadata could not be updated, for this
    /// cause.
    pub fn read_errors(&self, cause: Cause) -> &Counter {
        &self.read_errors[cause as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions() {
        for (position, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, position);
        }
        for (position, reason) in Eviction::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position);
        }
    }

    #[test]
    fn errors_have_their_cause() {
        for (errno, cause) in [
            (libc::ENOSPC, Cause::NoSpace),
            (libc::EDQUOT, Cause::NoSpace),
            (libc::EIO, Cause::Io),
            (libc::EROFS, Cause::ReadOnly),
            (libc::EACCES, Cause::ReadOnly),
            (libc::EMFILE, Cause::Descriptors),
            (libc::ENFILE, Cause::Descriptors),
            (libc::ENOENT, Cause::Missing),
            (libc::ENOTDIR, Cause::Missing),
            (libc::EBUSY, Cause::Other),
        ] {
            assert_eq!(Cause::of(&io::Error::from_raw_os_error(errno)), cause);
        }
        let short = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(Cause::of(&short), Cause::Damaged);
    }
}
