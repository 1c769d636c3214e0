//! Names of the files of an entry.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Extension of a body.
pub(crate) const BODY: &str = "body";

/// Extension of metadata.
pub(crate) const META: &str = "meta";

/// Extension of a body that is being written.
pub(crate) const BODY_TMP: &str = "body.tmp";

/// End of the extension of metadata that is being written, after a number.
pub(crate) const META_TMP: &str = ".meta.tmp";

/// Longest metadata file that is read, in bytes. The HTTP parser limits response headers
/// far below this.
pub const MAX_META_LEN: u64 = 4 << 20;

/// Distinguishes temporary metadata files of one entry.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// The files of one entry, which share a folder and the first part of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFiles {
    /// The path without its extension.
    stem: PathBuf,
}

impl EntryFiles {
    /// The files in `folder` whose names begin with `name`.
    pub fn new(folder: &Path, name: &str) -> Self {
        EntryFiles {
            stem: folder.join(name),
        }
    }

    /// The files whose paths begin so, up to their extension.
    pub(crate) fn with_stem(stem: PathBuf) -> Self {
        EntryFiles { stem }
    }

    /// The path of the body, in the same memory.
    #[cfg(any(target_os = "linux", test))]
    pub(crate) fn into_body(self) -> PathBuf {
        let mut path = self.stem.into_os_string();
        path.push(".");
        path.push(BODY);
        path.into()
    }

    fn file(&self, extension: &str) -> PathBuf {
        // The stem ends with a generation, which with_extension() would replace.
        let stem = self.stem.as_os_str();
        let mut path = std::ffi::OsString::with_capacity(stem.len() + 1 + extension.len());
        path.push(stem);
        path.push(".");
        path.push(extension);
        path.into()
    }

    /// Folder of the files.
    pub fn folder(&self) -> &Path {
        self.stem.parent().unwrap_or(&self.stem)
    }

    /// Path of the body.
    pub fn body(&self) -> PathBuf {
        self.file(BODY)
    }

    /// Path of the metadata.
    pub fn meta(&self) -> PathBuf {
        self.file(META)
    }

    /// Path of the body while it is being written.
    pub fn body_tmp(&self) -> PathBuf {
        self.file(BODY_TMP)
    }

    /// Path of metadata that is being written; a different one with each call.
    pub fn meta_tmp(&self) -> PathBuf {
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        self.file(&format!("{sequence:x}{META_TMP}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_what_looks_like_an_extension() {
        let files = EntryFiles::new(Path::new("/c/ab"), "ab.01");
        assert_eq!(files.body(), Path::new("/c/ab/ab.01.body"));
        assert_eq!(files.clone().into_body(), files.body());
        assert_eq!(files.meta(), Path::new("/c/ab/ab.01.meta"));
        assert_eq!(files.body_tmp(), Path::new("/c/ab/ab.01.body.tmp"));
        assert_eq!(files.folder(), Path::new("/c/ab"));
        assert_ne!(files.meta_tmp(), files.meta_tmp());
    }
}
