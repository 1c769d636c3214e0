//! Configuration of the disk cache, and its only defaults.

use std::path::PathBuf;
use std::time::Duration;

/// The way files are accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// The faster one according to `benches/disk_cache.rs`: tokio.
    #[default]
    Auto,
    /// [`TokioFsBackend`](crate::cache::TokioFsBackend).
    Tokio,
    /// `UringBackend`; tokio where the kernel forbids io_uring.
    Uring,
}

/// The bodies that are sent by `sendfile(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendfileConfig {
    /// If false, every body is copied through user space.
    pub enabled: bool,
    /// Bodies larger than this are sent by sendfile, in bytes. Smaller ones are kept in
    /// memory and sent with their header by one write. A copy from the page cache is slower
    /// than sendfile at any size; see `benches/sendfile_proxy`.
    pub threshold_bytes: u64,
}

impl Default for SendfileConfig {
    fn default() -> Self {
        SendfileConfig {
            enabled: cfg!(target_os = "linux"),
            threshold_bytes: 16 * 1024,
        }
    }
}

impl SendfileConfig {
    /// True if a stored body of `body_len` bytes is sent by sendfile, whole or in ranges.
    pub fn applies_to(&self, body_len: u64) -> bool {
        self.enabled && body_len > self.threshold_bytes
    }
}

/// Large bodies that are stored in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlocksConfig {
    /// Length of a block, in bytes: a power of two from 64 KiB to 64 MiB. Bodies of more than 2^18 such
    /// blocks have longer ones. Bodies that are stored already keep theirs.
    pub block_bytes: u32,
    /// Most bytes of neighbouring blocks that one request to the origin fetches, unless a block is
    /// longer; at most a quarter of the folder. As many are fetched ahead of a client that reads on.
    pub read_ahead_bytes: u64,
}

impl Default for BlocksConfig {
    fn default() -> Self {
        BlocksConfig {
            block_bytes: 1 << 20,
            read_ahead_bytes: 16 << 20,
        }
    }
}

/// Divisor of the process's limit on open files that gives the most files a cache keeps open.
pub const OPEN_FILES_SHARE: usize = 4;

/// Most body files that are kept open unless configured. With its entry, one takes about 6 KB of the
/// process's memory, at most 16 KiB on average and 256 MiB in all, and about 2 KB of the kernel's.
pub const MAX_OPEN_FILES: usize = 16_384;

/// A folder of a disk cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderConfig {
    /// The folder, which belongs to the cache alone. It is created if it is missing. The spread of
    /// the entries depends on this path as it is written here.
    pub path: PathBuf,
    /// Limit for bodies and metadata, in bytes, in whole blocks of 4 KiB a file. A full folder evicts
    /// entries that are rarely requested.
    pub max_size_bytes: u64,
}

/// Location, limits and maintenance of a disk cache.
///
/// ```
/// use std::time::Duration;
///
/// use pingora_sendfile::cache::{DiskCacheConfig, SendfileConfig};
///
/// let config = DiskCacheConfig {
///     inactive: Some(Duration::from_secs(7 * 86_400)),
///     sendfile: SendfileConfig {
///         threshold_bytes: 64 * 1024,
///         ..SendfileConfig::default()
///     },
///     ..DiskCacheConfig::new("/var/cache/my-proxy", 100 << 30)
/// };
/// assert!(!config.sendfile.applies_to(64 * 1024));
/// ```
#[derive(Debug, Clone)]
pub struct DiskCacheConfig {
    /// The folders of the cache, one a device. Each key belongs to one of them. A folder gets keys in
    /// proportion to its size.
    pub folders: Vec<FolderConfig>,
    /// Longest body that is stored, in bytes; `None`: any. One that is longer than the cache can only
    /// be stored in blocks.
    pub max_object_bytes: Option<u64>,
    /// Bytes that the cache leaves free on each file system, even if other programs fill it. If less is
    /// free, the cache evicts entries there and does not grow. 0: none.
    pub min_free_bytes: u64,
    /// The bodies that are sent by sendfile.
    pub sendfile: SendfileConfig,
    /// The bodies that are stored in blocks.
    pub blocks: BlocksConfig,
    /// The way files are accessed.
    pub backend: BackendChoice,
    /// Memory for bodies that are not sent by sendfile, in bytes; 0: none.
    pub memory_bytes: u64,
    /// Memory for the metadata and headers of entries in use, in bytes, about 1.6 KB an entry. A hit
    /// whose body is neither in memory nor open then needs only the open(2) of the body.
    /// Entries in blocks are not kept. 0: none.
    pub metadata_bytes: u64,
    /// Most body files that are kept open; `None`: as many as [`open_files`](Self::open_files)
    /// allows.
    pub max_open_files: Option<usize>,
    /// Time without requests after which an entry is evicted.
    pub inactive: Option<Duration>,
    /// Number of the request from which on an object is stored; 1: the first one.
    pub min_uses: u8,
    /// Share of a body, from 0 to 1, that must have been fetched for its fill to continue
    /// without readers. 0: always; 1: never. A fill of unknown length continues only with 0.
    pub fill_without_readers: f64,
    /// Most fills in flight.
    pub max_fills: usize,
    /// Rate at which the scrubber reads each folder; 0: it does not run.
    pub scrub_bytes_per_second: u64,
    /// True to share a folder that another process uses: read its entries, and take over when it
    /// releases the lock. If false, such a folder is an error.
    pub successor: bool,
}

impl DiskCacheConfig {
    /// The defaults, for one folder.
    pub fn new(path: impl Into<PathBuf>, max_size_bytes: u64) -> Self {
        DiskCacheConfig::spread(vec![FolderConfig {
            path: path.into(),
            max_size_bytes,
        }])
    }

    /// The defaults, for several folders.
    ///
    /// ```
    /// use pingora_sendfile::cache::{DiskCacheConfig, FolderConfig};
    ///
    /// let folders = ["/mnt/a", "/mnt/b"].map(|path| FolderConfig {
    ///     path: path.into(),
    ///     max_size_bytes: 100 << 30,
    /// });
    /// let config = DiskCacheConfig::spread(folders.into());
    /// assert_eq!(config.folders.len(), 2);
    /// ```
    pub fn spread(folders: Vec<FolderConfig>) -> Self {
        DiskCacheConfig {
            folders,
            max_object_bytes: None,
            min_free_bytes: 0,
            sendfile: SendfileConfig::default(),
            blocks: BlocksConfig::default(),
            backend: BackendChoice::default(),
            memory_bytes: 256_000_000,
            metadata_bytes: 256_000_000,
            max_open_files: None,
            inactive: None,
            min_uses: 1,
            fill_without_readers: 0.5,
            max_fills: 128,
            scrub_bytes_per_second: 8_000_000,
            successor: false,
        }
    }

    /// Most body files that are kept open in a process that may open `limit` files: at most a quarter of
    /// them, and at most [`max_open_files`](Self::max_open_files) or [`MAX_OPEN_FILES`]. Each client
    /// may need three more files: its connection, one to the origin, and one of the cache.
    pub fn open_files(&self, limit: usize) -> usize {
        let most = self.max_open_files.unwrap_or(MAX_OPEN_FILES);
        most.min(limit / OPEN_FILES_SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threshold_is_exclusive_and_the_switch_wins() {
        let config = SendfileConfig {
            enabled: true,
            threshold_bytes: 100,
        };
        assert!(!config.applies_to(100));
        assert!(config.applies_to(101));
        let off = SendfileConfig {
            enabled: false,
            ..config
        };
        assert!(!off.applies_to(u64::MAX));
    }

    #[test]
    fn open_files_are_a_bounded_share_of_the_limit() {
        let open_files = |max_open_files, limit| {
            let config = DiskCacheConfig {
                max_open_files,
                ..DiskCacheConfig::new("", 0)
            };
            config.open_files(limit)
        };
        for (limit, expected) in [
            (0, 0),
            (256, 64),
            (20_000, 5_000),
            (1 << 20, MAX_OPEN_FILES),
            (usize::MAX, MAX_OPEN_FILES),
        ] {
            assert_eq!(open_files(None, limit), expected, "of {limit}");
        }
        assert_eq!(open_files(Some(0), 1024), 0);
        assert_eq!(open_files(Some(7), 1024), 7);
        assert_eq!(open_files(Some(300), 1024), 256);
        assert_eq!(open_files(Some(100_000), 1 << 20), 100_000);
    }
}
