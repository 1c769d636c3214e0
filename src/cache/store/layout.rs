//! Where the files of an entry are.
//!
//! `<path>/v2/<first byte of the hash>/<hash>.<generation>.body` and `….meta`;
//! see docs/on-disk-format.md for the whole folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::cache::EntryId;

/// The folder of this version of the format. Entries of another version are in
/// a folder of another name, and never read.
pub const VERSION_FOLDER: &str = "v2";

/// How many folders the entries are spread over.
pub const SHARDS: usize = 256;

/// What a file name in a shard folder says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// The body of an entry that has, or had, a metadata file.
    Body,
    /// What makes a body an entry.
    Meta,
    /// Something that was being written.
    Temporary,
}

/// The names of the files under one cache folder.
#[derive(Debug, Clone)]
pub struct Layout {
    entries: Arc<Path>,
    /// Tells temporary metadata files of one entry apart.
    sequence: Arc<AtomicU64>,
}

impl Layout {
    /// The names under the cache folder `path`; creates nothing.
    pub fn new(path: &Path) -> Self {
        Layout {
            entries: path.join(VERSION_FOLDER).into(),
            sequence: Arc::default(),
        }
    }

    /// Create the folders that are missing. Blocks.
    pub fn create_folders(&self) -> io::Result<()> {
        for shard in 0..=u8::MAX {
            fs::create_dir_all(self.shard(shard))?;
        }
        Ok(())
    }

    /// The folder that holds the shards.
    pub fn entries(&self) -> &Path {
        &self.entries
    }

    /// The folder of all hashes that begin with this byte.
    pub fn shard(&self, first_byte: u8) -> PathBuf {
        self.entries.join(format!("{first_byte:02x}"))
    }

    fn file(&self, id: &EntryId, extension: &str) -> PathBuf {
        self.shard(id.hash[0]).join(format!("{id}.{extension}"))
    }

    /// The body of an entry.
    pub fn body(&self, id: &EntryId) -> PathBuf {
        self.file(id, "body")
    }

    /// The metadata of an entry.
    pub fn meta(&self, id: &EntryId) -> PathBuf {
        self.file(id, "meta")
    }

    /// A body that is being written.
    pub fn body_tmp(&self, id: &EntryId) -> PathBuf {
        self.file(id, "body.tmp")
    }

    /// Metadata that is being written; another name with each call.
    pub fn meta_tmp(&self, id: &EntryId) -> PathBuf {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        self.file(id, &format!("{sequence:x}.meta.tmp"))
    }

    /// The body of the newest generation of a key that is on disk. Lists a
    /// folder: blocks.
    pub fn newest_body(&self, hash: &[u8; 16]) -> Option<PathBuf> {
        let newest = fs::read_dir(self.shard(hash[0]))
            .ok()?
            .flatten()
            .filter_map(|entry| parse_name(entry.file_name().to_str()?))
            .filter(|(id, kind)| id.hash == *hash && *kind == FileKind::Meta)
            .map(|(id, _)| id)
            .max_by_key(|id| id.generation)?;
        Some(self.body(&newest))
    }
}

/// Which entry a file belongs to; `None`: it is not one of ours.
pub fn parse_name(name: &str) -> Option<(EntryId, FileKind)> {
    let (hash, rest) = name.split_once('.')?;
    let (generation, extension) = rest.split_once('.')?;
    if generation.len() != 16 {
        return None;
    }
    let id = EntryId {
        hash: pingora_cache::key::str2hex(hash)?,
        generation: u64::from_str_radix(generation, 16).ok()?,
    };
    let kind = match extension {
        "body" => FileKind::Body,
        "meta" => FileKind::Meta,
        "body.tmp" => FileKind::Temporary,
        _ => {
            let sequence = extension.strip_suffix(".meta.tmp")?;
            u64::from_str_radix(sequence, 16).ok()?;
            FileKind::Temporary
        }
    };
    Some((id, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_back() {
        let layout = Layout::new(Path::new("/c"));
        let id = EntryId {
            hash: [0xab; 16],
            generation: 7 << 32,
        };
        for (path, kind) in [
            (layout.body(&id), FileKind::Body),
            (layout.meta(&id), FileKind::Meta),
            (layout.body_tmp(&id), FileKind::Temporary),
            (layout.meta_tmp(&id), FileKind::Temporary),
            (layout.meta_tmp(&id), FileKind::Temporary),
        ] {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse_name(name), Some((id, kind)), "{name}");
            assert!(path.starts_with("/c/v2/ab"));
        }
        assert_ne!(layout.meta_tmp(&id), layout.meta_tmp(&id));
    }

    #[test]
    fn foreign_names_are_nobodys() {
        let id = format!("{}.{:016x}", "ab".repeat(16), 1);
        for name in [
            "",
            "lost+found",
            "body",
            &format!("{id}."),
            &format!("{id}.txt"),
            &format!("{id}.meta.old"),
            &format!("{id}.x.meta.tmp"),
            &format!("{}.1.body", "ab".repeat(16)),
            &format!("{}.{:016x}.body", "ab".repeat(15), 1),
        ] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
