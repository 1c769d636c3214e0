//! The choice of the folder of a key.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pingora_cache::key::HashBinary;

use crate::cache::config::FolderConfig;

/// The folders that keys are spread over.
///
/// Each folder draws a lot for each key, and the best lot wins: rendezvous hashing. So the order of
/// the folders is irrelevant, and a folder that is added takes keys from the others and moves none
/// between them. The lot depends on the path of the folder and on the primary hash of the key, so that
/// all variants of a key are in one folder. A folder of twice the size wins twice as often.
#[derive(Debug)]
pub(crate) struct Routing(Vec<Ticket>);

#[derive(Debug)]
struct Ticket {
    /// The hash of the path.
    folder: u64,
    /// The size in bytes.
    weight: f64,
}

// === impl Routing ===

impl Routing {
    pub(crate) fn new(folders: &[FolderConfig]) -> Self {
        let tickets = folders.iter().map(|folder| Ticket {
            folder: path_hash(&folder.path),
            weight: folder.max_size_bytes.max(1) as f64,
        });
        Routing(tickets.collect())
    }

    /// The position of the folder of a key.
    pub(crate) fn folder_of(&self, primary: &HashBinary) -> usize {
        let [a, b, c, d, e, f, g, h, ..] = *primary;
        let key = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let mut best = (0, f64::INFINITY);
        for (position, ticket) in self.0.iter().enumerate() {
            let lot = ticket.lot(key);
            if lot < best.1 {
                best = (position, lot);
            }
        }
        best.0
    }
}

impl Ticket {
    /// An exponentially distributed number; the lowest one wins.
    fn lot(&self, key: u64) -> f64 {
        // In (0, 1], with the 53 bits that a f64 has.
        let uniform = ((mix(self.folder ^ key) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        -uniform.ln() / self.weight
    }
}

/// A number for the path of a folder. `/a`, `/a/` and `/./a` are the same.
pub(crate) fn path_hash(path: &Path) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for part in path.components() {
        // No name contains a slash.
        for byte in part.as_os_str().as_bytes().iter().chain(b"/") {
            // FNV-1a
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    mix(hash)
}

/// The finalizer of SplitMix64, which spreads each bit over all others.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::PathBuf;

    use pingora_cache::key::CacheHashKey;
    use pingora_cache::CacheKey;

    use super::*;

    const KEYS: usize = 20_000;

    fn folders(of: &[(&str, u64)]) -> Vec<FolderConfig> {
        let folder = |(path, size): &(&str, u64)| FolderConfig {
            path: path.into(),
            max_size_bytes: *size,
        };
        of.iter().map(folder).collect()
    }

    /// The path of the folder of each key.
    fn spread(of: &[(&str, u64)]) -> Vec<PathBuf> {
        let folders = folders(of);
        let routing = Routing::new(&folders);
        let keys = (0..KEYS).map(|n| CacheKey::new(format!("/key/{n}"), "").primary_bin());
        keys.map(|key| folders[routing.folder_of(&key)].path.clone())
            .collect()
    }

    /// The share of the keys of each folder.
    fn shares(spread: &[PathBuf]) -> HashMap<&str, f64> {
        let mut shares = HashMap::new();
        for path in spread {
            *shares.entry(path.to_str().unwrap()).or_default() += 1.0 / KEYS as f64;
        }
        shares
    }

    #[test]
    fn keys_are_spread_by_size() {
        let spread = spread(&[("/a", 100), ("/b", 200), ("/c", 100)]);
        let shares = shares(&spread);
        for (path, share) in [("/a", 0.25), ("/b", 0.5), ("/c", 0.25)] {
            assert!((shares[path] - share).abs() < 0.02, "{path}: {shares:?}");
        }
    }

    #[test]
    fn neither_order_nor_spelling_moves_a_key() {
        let before = spread(&[("/mnt/a", 1), ("/mnt/b", 2), ("/mnt/c", 1)]);
        assert_eq!(
            spread(&[("/mnt/c", 1), ("/mnt/a", 1), ("/mnt/b", 2)]),
            before
        );
        assert_eq!(
            spread(&[("/mnt/a/", 1), ("/mnt//b", 2), ("/mnt/./c", 1)]),
            before
        );
        assert_ne!(
            path_hash(Path::new("/mnt/ab")),
            path_hash(Path::new("/mnt/a/b"))
        );
        assert_ne!(
            path_hash(Path::new("mnt/a")),
            path_hash(Path::new("/mnt/a"))
        );
    }

    #[test]
    fn a_new_folder_takes_its_share_and_moves_nothing_else() {
        let before = spread(&[("/a", 1), ("/b", 1), ("/c", 1)]);
        let after = spread(&[("/a", 1), ("/b", 1), ("/c", 1), ("/d", 1)]);
        let moved: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
        assert!(moved.iter().all(|(_, to)| *to == Path::new("/d")));
        let share = moved.len() as f64 / KEYS as f64;
        assert!((share - 0.25).abs() < 0.02, "{share}");
    }

    #[test]
    fn a_larger_folder_takes_only_what_it_gained() {
        let before = spread(&[("/a", 100), ("/b", 100)]);
        let after = spread(&[("/a", 100), ("/b", 300)]);
        let moved: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
        assert!(moved.iter().all(|(_, to)| *to == Path::new("/b")));
        let share = moved.len() as f64 / KEYS as f64;
        assert!((share - 0.25).abs() < 0.02, "{share}");
    }
}
