//! The names of objects, in URLs and in folders.

use std::path::{Path, PathBuf};

/// The length and index in a path that ends with both.
pub fn parse(path: &str) -> Option<(u64, u64)> {
    let mut parts = path.rsplit('/');
    let index = parts.next()?.parse().ok()?;
    let len = parts.next()?.parse().ok()?;
    Some((len, index))
}

/// The file of an object under `dir`.
pub fn file(dir: &Path, len: u64, index: u64) -> PathBuf {
    dir.join(format!("{len}/{index}"))
}
