//! Names of the files in a cache folder.
//!
//! `<path>/v2/<first byte of the hash>/<hash>.<generation>.body` and `….meta`;
//! docs/on-disk-format.md describes the whole folder.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::io::files::{EntryFiles, BODY, BODY_TMP, META, META_TMP};
use crate::cache::io::folder::FolderAccess;
use crate::cache::store::entry_id::EntryId;

/// The folder of this version of the format. Entries of another version are in a folder of
/// another name and are never read.
pub const VERSION_FOLDER: &str = "v2";

/// Number of folders that the entries are spread over.
pub const SHARDS: usize = 256;

/// Kind of a file in a shard folder, according to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// The body of an entry that has, or had, a metadata file.
    Body,
    /// The metadata that makes a body an entry.
    Meta,
    /// A file that was being written.
    Temporary,
}

/// Names of the files in one cache folder.
#[derive(Debug, Clone)]
pub struct Layout {
    entries: Arc<Path>,
}

impl Layout {
    /// The names under the cache folder `path`. Nothing is created.
    pub fn new(path: &Path) -> Self {
        Layout {
            entries: path.join(VERSION_FOLDER).into(),
        }
    }

    /// Create the folders that are missing. Blocks.
    pub fn create_folders(&self, access: &dyn FolderAccess) -> io::Result<()> {
        for shard in 0..=u8::MAX {
            access.create_folder(&self.shard(shard))?;
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

    /// The files of an entry.
    pub fn files(&self, id: &EntryId) -> EntryFiles {
        files_in(&self.entries, id)
    }

    /// The files of an entry, relative to any cache folder.
    pub(crate) fn files_below(id: &EntryId) -> EntryFiles {
        files_in(Path::new(VERSION_FOLDER), id)
    }

    /// Path of the body of an entry.
    pub fn body(&self, id: &EntryId) -> PathBuf {
        self.files(id).body()
    }

    /// Path of the metadata of an entry.
    pub fn meta(&self, id: &EntryId) -> PathBuf {
        self.files(id).meta()
    }

    /// The newest generation of a key on the disk. Lists a folder: blocks.
    pub(crate) fn newest(&self, access: &dyn FolderAccess, hash: &[u8; 16]) -> Option<EntryId> {
        let mut newest: Option<EntryId> = None;
        let listed = access.list(&self.shard(hash[0]), &mut |name| {
            let parsed = name.to_str().and_then(parse_name);
            let Some((id, FileKind::Meta)) = parsed.filter(|(id, _)| id.hash == *hash) else {
                return;
            };
            if newest.is_none_or(|newest| newest.generation < id.generation) {
                newest = Some(id);
            }
        });
        // Files that were listed before an error exist.
        let _ = listed;
        newest
    }

    /// The highest generation on the disk. Blocks.
    pub(crate) fn highest_generation(&self, access: &dyn FolderAccess) -> Option<u64> {
        let mut highest = None;
        for shard in 0..=u8::MAX {
            // Folders that cannot be listed count as empty, as the recovery passes them over.
            let _ = access.list(&self.shard(shard), &mut |name| {
                let parsed = name.to_str().and_then(parse_name);
                highest = highest.max(parsed.map(|(id, _)| id.generation));
            });
        }
        highest
    }
}

fn files_in(entries: &Path, id: &EntryId) -> EntryFiles {
    // One allocation, because each open of a file needs a path.
    let entries = entries.as_os_str();
    let names = "/ab/".len() + EntryId::TEXT_LEN + ".body".len();
    let mut stem = PathBuf::with_capacity(entries.len() + names);
    stem.push(entries);
    let mut name = [0; EntryId::TEXT_LEN];
    let name = id.write_to(&mut name);
    stem.push(&name[..2]);
    stem.push(name);
    EntryFiles::with_stem(stem)
}

/// The entry that a file belongs to, from its name; `None`: the cache has no such files.
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
        BODY => FileKind::Body,
        META => FileKind::Meta,
        BODY_TMP => FileKind::Temporary,
        _ => {
            let sequence = extension.strip_suffix(META_TMP)?;
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
        let files = layout.files(&id);
        for (path, kind) in [
            (files.body(), FileKind::Body),
            (files.meta(), FileKind::Meta),
            (files.body_tmp(), FileKind::Temporary),
            (files.meta_tmp(), FileKind::Temporary),
            (files.meta_tmp(), FileKind::Temporary),
        ] {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse_name(name), Some((id, kind)), "{name}");
            assert!(path.starts_with("/c/v2/ab"));
        }
        let below = Layout::files_below(&id);
        assert_eq!(Path::new("/c").join(below.body()), files.body());
    }

    #[test]
    fn the_newest_generation_is_where_tools_look() {
        use crate::cache::io::folder::LocalFolder;

        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let id = |generation| EntryId {
            hash: [0xab; 16],
            generation,
        };
        assert_eq!(layout.newest(&LocalFolder, &[0xab; 16]), None);
        layout.create_folders(&LocalFolder).unwrap();
        for generation in [1, 1 << 32, 2] {
            std::fs::write(layout.body(&id(generation)), "body").unwrap();
            std::fs::write(layout.meta(&id(generation)), "meta").unwrap();
        }
        std::fs::write(layout.files(&id(7 << 32)).body_tmp(), "bo").unwrap();
        let newest = layout.newest(&LocalFolder, &[0xab; 16]);
        assert_eq!(newest, Some(id(1 << 32)));
        assert_eq!(layout.newest(&LocalFolder, &[0xac; 16]), None);
        assert_eq!(layout.highest_generation(&LocalFolder), Some(7 << 32));
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
