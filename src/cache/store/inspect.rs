//! Access to a cache folder for tools that list, check or empty it, whether or not a process
//! serves from it at the same time.
//!
//! Nothing here needs [`DiskCache`](crate::cache::DiskCache). The folder is read shard by shard,
//! so that memory stays small however many entries there are. Entries that are evicted
//! meanwhile are skipped.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pingora_cache::CacheMeta;

use crate::cache::io::checksum;
use crate::cache::io::files::MAX_META_LEN;
use crate::cache::io::folder::{FolderAccess, LocalFolder};
use crate::cache::io::folder_lock;
use crate::cache::store::bans::Bans;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::EntryMeta;
use crate::cache::store::layout::{parse_name, FileKind, Layout, SHARDS, VERSION_FOLDER};

/// Access to the folder. Tools read a folder while another process serves from it.
const FOLDER: &LocalFolder = &LocalFolder;

/// A cache folder.
#[derive(Debug)]
pub struct CacheFolder {
    path: PathBuf,
    layout: Layout,
    bans: Bans,
}

/// An item in a cache folder.
#[derive(Debug)]
pub enum Found {
    /// An entry whose metadata is sound and whose body has the right length.
    Entry(Entry),
    /// An entry that cannot be served.
    Damaged(Damaged),
    /// Files that are no entry: one that is being written or was left by an interrupted process,
    /// or an entry that was replaced or purged.
    Leftover {
        /// Path of the file; of an entry, the metadata.
        file: PathBuf,
        /// The length in bytes.
        len: u64,
    },
}

/// The current entry for a key.
#[derive(Debug)]
pub struct Entry {
    /// The entry.
    pub id: EntryId,
    /// Content of the metadata file.
    pub meta: EntryMeta,
    /// Time at which it becomes stale.
    pub fresh_until: SystemTime,
    generations: Vec<u64>,
}

/// An entry that cannot be served.
#[derive(Debug)]
pub struct Damaged {
    /// The entry.
    pub id: EntryId,
    /// The damaged file.
    pub file: PathBuf,
    /// Description of the damage.
    pub reason: String,
    /// Content of the metadata file, if that can be read.
    pub meta: Option<EntryMeta>,
    generations: Vec<u64>,
}

/// The items in a cache folder, see [`CacheFolder::walk`].
pub struct Walk<'a> {
    folder: &'a CacheFolder,
    shards: std::ops::RangeInclusive<u8>,
    files: std::vec::IntoIter<(EntryId, FileKind, PathBuf)>,
    entries: std::vec::IntoIter<(EntryId, Vec<u64>)>,
    shards_begun: usize,
    /// Only entries whose hash is greater are examined.
    after: Option<[u8; 16]>,
    entries_only: bool,
    examined: Option<[u8; 16]>,
}

// === impl CacheFolder ===

impl CacheFolder {
    /// The cache in the folder `path`. Nothing is created or changed.
    ///
    /// # Errors
    /// `NotFound`: no cache of this version has ever been there.
    pub fn open(path: &Path) -> io::Result<CacheFolder> {
        let layout = Layout::new(path);
        // The dot follows a symbolic link, as the server does.
        match FOLDER.stat(&layout.entries().join(".")) {
            Ok(found) if found.is_folder => {}
            Err(e)
                if !matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(about(layout.entries(), "cannot be read", &e))
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!(
                        "{}: there is no cache here, that is, no folder {VERSION_FOLDER}",
                        path.display()
                    ),
                ))
            }
        }
        let bans = Bans::load(FOLDER, path, false)
            .map_err(|e| about(&path.join("bans"), "cannot be read", &e))?;
        Ok(CacheFolder {
            path: path.to_owned(),
            layout,
            bans,
        })
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if a process serves from the folder.
    pub fn is_in_use(&self) -> io::Result<bool> {
        folder_lock::is_locked(&self.path)
            .map_err(|e| about(&self.path.join("lock"), "cannot be locked", &e))
    }

    /// Keep processes from serving from the folder as long as the lock lives.
    /// `None`: one does already.
    pub fn lock(&self) -> io::Result<Option<File>> {
        folder_lock::lock(&self.path)
            .map_err(|e| about(&self.path.join("lock"), "cannot be locked", &e))
    }

    /// The items in the folder. Blocks, once a shard and once an entry.
    ///
    /// An error concerns one shard or one entry, and names it; the walk continues.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            folder: self,
            shards: 0..=u8::MAX,
            files: Vec::new().into_iter(),
            entries: Vec::new().into_iter(),
            shards_begun: 0,
            after: None,
            entries_only: false,
            examined: None,
        }
    }

    /// [`walk`](Self::walk) in the order of the hashes of keys, from the first hash after `after`, and
    /// without files that are no entry.
    pub fn entries_after(&self, after: Option<[u8; 16]>) -> Walk<'_> {
        let first = after.map_or(0, |hash| hash[0]);
        Walk {
            shards: first..=u8::MAX,
            shards_begun: usize::from(first),
            after,
            entries_only: true,
            examined: after,
            ..self.walk()
        }
    }

    /// Read the body of an entry and compare it with its checksum. Returns the entry, sound or
    /// damaged, or `None` if it is gone. Blocks. `progress` gets the bytes that were read since
    /// it was last called.
    pub fn verify(&self, entry: Entry, mut progress: impl FnMut(u64)) -> io::Result<Option<Found>> {
        let file = self.layout.body(&entry.id);
        let reason = match check_body(&file, &entry.meta, &mut progress) {
            Ok(None) => return Ok(Some(Found::Entry(entry))),
            Ok(Some(reason)) => reason,
            Err(e) => match self.fault(&entry.id, &file, e)? {
                Some(reason) => reason,
                None => return Ok(None),
            },
        };
        Ok(Some(Found::Damaged(Damaged {
            id: entry.id,
            file,
            reason,
            meta: Some(entry.meta),
            generations: entry.generations,
        })))
    }

    /// Remove an entry, and what is left of those that it replaced. Blocks.
    ///
    /// Intended for a folder that no process uses, see [`lock`](Self::lock). A process that uses
    /// it counts the entry until it is requested.
    pub fn remove(&self, found: &Found) -> io::Result<()> {
        match found {
            Found::Entry(entry) => self.remove_all(&entry.id.hash, &entry.generations),
            Found::Damaged(damaged) => self.remove_all(&damaged.id.hash, &damaged.generations),
            Found::Leftover { file, .. } => {
                let removed = FOLDER.remove_file(file);
                removed.map_err(|e| about(file, "cannot be removed", &e))
            }
        }
    }

    /// Remove the entry of the key with this hash. `false`: there is none.
    /// Blocks; see [`remove`](Self::remove).
    pub fn remove_key(&self, hash: &[u8; 16]) -> io::Result<bool> {
        let mut generations: Vec<_> = self
            .list(hash[0])?
            .into_iter()
            .filter(|(id, kind, _)| id.hash == *hash && *kind == FileKind::Meta)
            .map(|(id, ..)| id.generation)
            .collect();
        generations.sort_unstable();
        self.remove_all(hash, &generations)?;
        Ok(!generations.is_empty())
    }

    /// Make removals durable, so that they survive a power failure.
    /// `shards` are the first bytes of the hashes. Blocks.
    pub fn sync(&self, shards: &BTreeSet<u8>) -> io::Result<()> {
        for shard in shards {
            let path = self.layout.shard(*shard);
            let synced = FOLDER.sync_folder(&path);
            synced.map_err(|e| about(&path, "cannot be synced", &e))?;
        }
        Ok(())
    }

    /// Remove generations of a key, the oldest first: left alone, it would be served again.
    fn remove_all(&self, hash: &[u8; 16], generations: &[u64]) -> io::Result<()> {
        for generation in generations {
            let id = EntryId {
                hash: *hash,
                generation: *generation,
            };
            // Without metadata, what is left is no entry.
            let meta = FOLDER.remove_file(&self.layout.meta(&id));
            let body = FOLDER.remove_file(&self.layout.body(&id));
            body.and(meta)
                .map_err(|e| about(&self.layout.meta(&id), "cannot be removed", &e))?;
        }
        Ok(())
    }

    /// The files of the cache in a shard, according to their names.
    fn list(&self, shard: u8) -> io::Result<Vec<(EntryId, FileKind, PathBuf)>> {
        let path = self.layout.shard(shard);
        let mut files = Vec::new();
        let listed = FOLDER.list(&path, &mut |name| {
            let parsed = name.to_str().and_then(parse_name);
            files.extend(parsed.map(|(id, kind)| (id, kind, path.join(name))));
        });
        match listed {
            // The folder was emptied.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(about(&path, "cannot be listed", &e)),
            Ok(()) => Ok(files),
        }
    }

    /// Examine the newest of some generations of a key. `None`: it is gone.
    fn examine(&self, id: EntryId, generations: Vec<u64>) -> io::Result<Option<Found>> {
        let damaged = |file, reason, meta| {
            let generations = generations.clone();
            Ok(Some(Found::Damaged(Damaged {
                id,
                file,
                reason,
                meta,
                generations,
            })))
        };
        let meta_file = self.layout.meta(&id);
        let read = FOLDER.read_file(&meta_file, MAX_META_LEN);
        let meta = match read.and_then(|data| EntryMeta::decode(&data)) {
            Ok(meta) if meta.generation != id.generation || meta.hash() != id.hash => {
                return damaged(meta_file, "is the metadata of another entry".into(), None)
            }
            Ok(meta) => meta,
            Err(e) => {
                return match self.fault(&id, &meta_file, e)? {
                    Some(reason) => damaged(meta_file, reason, None),
                    None => Ok(None),
                }
            }
        };
        let is_banned = self.bans.is_banned(id.generation, &meta.key.primary, || {
            (&*meta.key.user_tag, &meta.primary_key)
        }) || (meta.key.variance.is_some()
            && self.bans.is_banned_variant(id.generation));
        if is_banned {
            return Ok(Some(Found::Leftover {
                file: meta_file,
                len: meta.weight(),
            }));
        }
        let header = CacheMeta::deserialize(&meta.internal, &meta.header);
        let fresh_until = match header {
            Ok(header) => header.fresh_until(),
            Err(e) => {
                let reason = format!("has a response header that cannot be read: {e}");
                return damaged(meta_file, reason, Some(meta));
            }
        };
        let body_file = self.layout.body(&id);
        let reason = match FOLDER.stat(&body_file) {
            Ok(body) if !body.is_file => "is not a regular file".to_owned(),
            Ok(body) if body.len != meta.body_len => {
                format!("has {} bytes instead of {}", body.len, meta.body_len)
            }
            Ok(_) => {
                return Ok(Some(Found::Entry(Entry {
                    id,
                    meta,
                    fresh_until,
                    generations,
                })))
            }
            Err(e) => match self.fault(&id, &body_file, e)? {
                Some(reason) => reason,
                None => return Ok(None),
            },
        };
        damaged(body_file, reason, Some(meta))
    }

    /// The damage of an entry that an error shows. `None`: the entry is gone.
    ///
    /// # Errors
    /// An error that shows no damage, such as a lack of permission.
    fn fault(&self, id: &EntryId, file: &Path, e: io::Error) -> io::Result<Option<String>> {
        match (e.kind(), e.raw_os_error()) {
            (io::ErrorKind::InvalidData, None) => Ok(Some(format!("is not valid: {e}"))),
            (_, Some(libc::EIO)) => Ok(Some(format!("cannot be read: {e}"))),
            // The metadata is removed first: while it exists, the body should.
            (io::ErrorKind::NotFound, _) => match FOLDER.stat(&self.layout.meta(id)) {
                Ok(_) => Ok(Some("is missing".to_owned())),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(about(file, "cannot be read", &e)),
            },
            _ => Err(about(file, "cannot be read", &e)),
        }
    }
}

// === impl Entry ===

impl Entry {
    /// Time for which the entry is still fresh; `None`: it is stale.
    pub fn fresh_for(&self, now: SystemTime) -> Option<std::time::Duration> {
        self.fresh_until
            .duration_since(now)
            .ok()
            .filter(|left| !left.is_zero())
    }
}

// === impl Walk ===

impl Walk<'_> {
    /// Progress from 0 to 1. Keys are hashed, so all shards have about the same size.
    pub fn progress(&self) -> f64 {
        self.shards_begun as f64 / SHARDS as f64
    }

    /// The hash of the last entry that was examined, after which
    /// [`entries_after`](CacheFolder::entries_after) continues.
    pub fn examined(&self) -> Option<[u8; 16]> {
        self.examined
    }

    fn begin(&mut self, shard: u8) -> io::Result<()> {
        self.shards_begun += 1;
        let mut files = self.folder.list(shard)?;
        files.sort_unstable_by_key(|(id, ..)| (id.hash, id.generation));
        let mut entries: Vec<(EntryId, Vec<u64>)> = Vec::new();
        for (id, kind, _) in &files {
            if *kind != FileKind::Meta {
                continue;
            }
            match entries.last_mut() {
                Some((newest, generations)) if newest.hash == id.hash => {
                    *newest = *id;
                    generations.push(id.generation);
                }
                _ => entries.push((*id, vec![id.generation])),
            }
        }
        // `entries` is in the order of the hashes, as `files` is.
        files.retain(|(id, kind, _)| {
            let entry = entries
                .binary_search_by_key(&id.hash, |(newest, _)| newest.hash)
                .map(|at| entries[at].0);
            *kind == FileKind::Temporary || entry != Ok(*id)
        });
        if self.entries_only {
            files.clear();
        }
        entries.retain(|(id, _)| self.after.is_none_or(|after| id.hash > after));
        self.files = files.into_iter();
        self.entries = entries.into_iter();
        Ok(())
    }
}

impl Iterator for Walk<'_> {
    type Item = io::Result<Found>;

    fn next(&mut self) -> Option<io::Result<Found>> {
        loop {
            if let Some((id, generations)) = self.entries.next() {
                self.examined = Some(id.hash);
                match self.folder.examine(id, generations).transpose() {
                    Some(found) => return Some(found),
                    None => continue,
                }
            }
            if let Some((_, _, file)) = self.files.next() {
                match FOLDER.stat(&file) {
                    Ok(stat) => {
                        let len = stat.len;
                        return Some(Ok(Found::Leftover { file, len }));
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Some(Err(about(&file, "cannot be read", &e))),
                }
            }
            let shard = self.shards.next()?;
            if let Err(e) = self.begin(shard) {
                return Some(Err(e));
            }
        }
    }
}

/// An error with the file that it is about and, where it is known, the remedy.
fn about(path: &Path, what: &str, e: &io::Error) -> io::Error {
    let remedy = match e.kind() {
        io::ErrorKind::PermissionDenied => "; run this as the user that runs the proxy",
        _ => "",
    };
    io::Error::new(e.kind(), format!("{}: {what}: {e}{remedy}", path.display()))
}

/// The damage of a body; `None`: it is sound.
fn check_body(
    file: &Path,
    meta: &EntryMeta,
    progress: &mut impl FnMut(u64),
) -> io::Result<Option<String>> {
    let wrong_len = |len| format!("has {len} bytes instead of {}", meta.body_len);
    let wrong = |found, expected| format!("has the checksum {found:08x} instead of {expected:08x}");
    if meta.blocks.is_none() {
        let (len, found) = checksum::buffered(file, progress)?;
        return Ok(match len == meta.body_len {
            false => Some(wrong_len(len)),
            true => (found != meta.body_crc32).then(|| wrong(found, meta.body_crc32)),
        });
    }
    let len = FOLDER.stat(file)?.len;
    if len != meta.body_len {
        return Ok(Some(wrong_len(len)));
    }
    for (range, expected) in meta.checksums() {
        let start = range.start;
        let found = checksum::from_disk(file, len, range, progress)?;
        if found != expected {
            return Ok(Some(format!("{} at byte {start}", wrong(found, expected))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, UNIX_EPOCH};

    use pingora_cache::key::CacheHashKey;
    use pingora_cache::CacheKey;
    use pingora_http::ResponseHeader;
    use tempfile::TempDir;

    use super::*;
    use crate::cache::store::bans::Banned;

    /// A cache folder, made by hand.
    struct Sample {
        dir: TempDir,
        folder: CacheFolder,
    }

    impl Sample {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Layout::new(dir.path()).create_folders(FOLDER).unwrap();
            let folder = CacheFolder::open(dir.path()).unwrap();
            Sample { dir, folder }
        }

        fn layout(&self) -> &Layout {
            &self.folder.layout
        }

        /// Stores an entry, fresh until 1000 seconds after 1970.
        fn store(&self, key: &str, generation: u64, body: &[u8]) -> EntryId {
            let key = CacheKey::new(key, "bucket");
            let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
            let header = ResponseHeader::build(200, None).unwrap();
            let (internal, header) = CacheMeta::new(at(1000), at(500), 0, 0, header)
                .serialize()
                .unwrap();
            let id = EntryId {
                hash: key.combined_bin(),
                generation,
            };
            let meta = EntryMeta {
                key: key.to_compact(),
                primary_key: key.primary_key().to_vec(),
                generation,
                stored_at: 500,
                body_len: body.len() as u64,
                body_crc32: crc32fast::hash(body),
                blocks: None,
                internal,
                header,
            };
            fs::write(self.layout().body(&id), body).unwrap();
            fs::write(self.layout().meta(&id), meta.encode()).unwrap();
            id
        }

        /// Removes the files of an entry, as a process that serves does.
        fn evict(&self, id: &EntryId) {
            fs::remove_file(self.layout().meta(id)).unwrap();
            fs::remove_file(self.layout().body(id)).unwrap();
        }

        fn walk(&self) -> Vec<Found> {
            self.folder.walk().map(Result::unwrap).collect()
        }

        fn verify(&self) -> Vec<Found> {
            self.folder
                .walk()
                .filter_map(|found| match found.unwrap() {
                    Found::Entry(entry) => self.folder.verify(entry, |_| ()).unwrap(),
                    other => Some(other),
                })
                .collect()
        }

        fn only_damage(&self) -> Damaged {
            let mut found = self.verify();
            assert_eq!(found.len(), 1, "{found:?}");
            match found.pop() {
                Some(Found::Damaged(damaged)) => damaged,
                found => panic!("{found:?}"),
            }
        }
    }

    fn ids(found: &[Found]) -> Vec<EntryId> {
        found
            .iter()
            .map(|found| match found {
                Found::Entry(entry) => entry.id,
                found => panic!("{found:?}"),
            })
            .collect()
    }

    #[test]
    fn all_entries_are_found_with_what_their_metadata_says() {
        let sample = Sample::new();
        let mut stored: Vec<_> = (0..1000)
            .map(|n| sample.store(&format!("host\n/key{n}"), n, b"body"))
            .collect();
        let found = sample.walk();
        stored.sort_by_key(|id| id.hash);
        assert_eq!(ids(&found), stored);
        let Found::Entry(entry) = &found[0] else {
            unreachable!()
        };
        assert_eq!(entry.meta.body_len, 4);
        assert_eq!(entry.meta.stored_at, 500);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(entry.fresh_for(at(900)), Some(Duration::from_secs(100)));
        assert_eq!(entry.fresh_for(at(1000)), None);
        assert_eq!(entry.fresh_for(at(1001)), None);
        assert_eq!(ids(&sample.verify()), stored);
    }

    #[test]
    fn a_walk_continues_where_another_one_ended() {
        let sample = Sample::new();
        let mut stored: Vec<_> = (0..1000)
            .map(|n| sample.store(&format!("host\n/key{n}"), n, b"body"))
            .collect();
        stored.sort_by_key(|id| id.hash);
        let left = sample.layout().files(&stored[0]).body_tmp();
        fs::write(left, b"x").unwrap();
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let mut walk = sample.folder.entries_after(after);
            let page: Vec<_> = walk.by_ref().take(7).map(Result::unwrap).collect();
            if page.is_empty() {
                break;
            }
            found.extend(page);
            after = walk.examined();
            assert!(walk.progress() > 0.0);
        }
        assert_eq!(ids(&found), stored);
    }

    #[test]
    fn the_newest_generation_is_the_entry() {
        let sample = Sample::new();
        sample.store("key", 1, b"old");
        let newest = sample.store("key", 3, b"newest");
        sample.store("key", 2, b"older");
        let found = sample.walk();
        assert_eq!(ids(&found[..1]), [newest]);
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[1..]
            .iter()
            .all(|found| matches!(found, Found::Leftover { .. })));

        sample.folder.remove(&found[0]).unwrap();
        assert!(sample.walk().is_empty(), "older ones come back");
    }

    #[test]
    fn files_without_metadata_and_temporary_ones_are_leftovers() {
        let sample = Sample::new();
        let id = sample.store("key", 1, b"body");
        fs::write(sample.layout().files(&id).meta_tmp(), b"x").unwrap();
        let other = EntryId {
            generation: 2,
            ..id
        };
        fs::write(sample.layout().body(&other), b"body").unwrap();
        fs::write(sample.layout().files(&other).body_tmp(), b"bo").unwrap();
        fs::write(sample.layout().shard(id.hash[0]).join("foreign"), b"x").unwrap();
        let mut lens = Vec::new();
        for found in &sample.walk()[1..] {
            let Found::Leftover { len, .. } = found else {
                panic!("{found:?}");
            };
            lens.push(*len);
            sample.folder.remove(found).unwrap();
        }
        lens.sort();
        assert_eq!(lens, [1, 2, 4]);
        assert_eq!(ids(&sample.walk()), [id]);
    }

    #[test]
    fn what_was_purged_is_no_entry_though_its_files_are_there() {
        let mut sample = Sample::new();
        sample.store("host\n/a/1", 1, b"body");
        sample.store("host\n/a/2", 2, b"body");
        let kept = sample.store("host\n/b/1", 3, b"body");
        let newer = sample.store("host\n/a/3", 5, b"body");
        Bans::load(FOLDER, sample.dir.path(), true)
            .and_then(|bans| bans.ban(4, Banned::Prefix("bucket".into(), b"host\n/a/".into())))
            .unwrap();
        sample.folder = CacheFolder::open(sample.dir.path()).unwrap();
        let (entries, others): (Vec<_>, Vec<_>) = sample
            .walk()
            .into_iter()
            .partition(|found| matches!(found, Found::Entry(_)));
        let mut found = ids(&entries);
        found.sort_by_key(|id| id.generation);
        assert_eq!(found, [kept, newer]);
        assert_eq!(others.len(), 2, "{others:?}");
    }

    #[test]
    fn a_flipped_bit_in_a_body_is_found_by_reading_it() {
        let sample = Sample::new();
        let id = sample.store("key", 1, b"body");
        fs::write(sample.layout().body(&id), b"bodx").unwrap();
        assert_eq!(ids(&sample.walk()), [id], "its length is right");
        let damaged = sample.only_damage();
        assert_eq!(damaged.file, sample.layout().body(&id));
        assert!(damaged.reason.contains("checksum"), "{}", damaged.reason);
        assert_eq!(damaged.meta.unwrap().primary_key, b"key");
    }

    #[test]
    fn what_is_not_as_recorded_is_damaged_and_says_why() {
        /// New content for a file; `None`: the file is removed.
        type Spoil = fn(Vec<u8>) -> Option<Vec<u8>>;
        let flip: Spoil = |mut data| {
            data[30] ^= 1;
            Some(data)
        };
        let rename: Spoil = |data| {
            let mut meta = EntryMeta::decode(&data).unwrap();
            meta.generation = 7;
            Some(meta.encode())
        };
        let cases: [(&str, Spoil, &str); 5] = [
            ("body", |_| Some(b"bod".into()), "3 bytes instead of 4"),
            ("body", |_| None, "is missing"),
            ("meta", |_| Some(Vec::new()), "too short"),
            ("meta", flip, "wrong checksum"),
            ("meta", rename, "of another entry"),
        ];
        for (extension, spoil, reason) in cases {
            let sample = Sample::new();
            let id = sample.store("key", 1, b"body");
            let file = sample.layout().meta(&id).with_extension(extension);
            match spoil(fs::read(&file).unwrap()) {
                Some(data) => fs::write(&file, data).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            let damaged = sample.only_damage();
            assert_eq!(damaged.id, id);
            assert_eq!(damaged.file, file, "{reason}");
            assert!(damaged.reason.contains(reason), "{}", damaged.reason);

            sample.folder.remove(&Found::Damaged(damaged)).unwrap();
            assert!(sample.walk().is_empty());
        }
    }

    #[test]
    fn what_is_evicted_meanwhile_is_passed_over() {
        let sample = Sample::new();
        let id = sample.store("key", 1, b"body");
        let mut walk = sample.folder.walk();
        let Some(Ok(Found::Entry(entry))) = walk.next() else {
            panic!("no entry");
        };
        sample.evict(&id);
        assert!(sample.folder.verify(entry, |_| ()).unwrap().is_none());

        // Both in one shard: listed together, looked at one after the other.
        let first = sample.store("key", 1, b"body");
        let in_shard = (0..)
            .map(|n| CacheKey::new(format!("key{n}"), "bucket"))
            .find(|key| key.combined_bin()[0] == first.hash[0])
            .unwrap();
        let second = sample.store(in_shard.primary_key_str().unwrap(), 2, b"body");
        let mut walk = sample.folder.walk();
        let seen = ids(&[walk.next().unwrap().unwrap()])[0];
        let other = if seen == first { second } else { first };
        sample.evict(&other);
        assert!(walk.next().is_none());
    }

    #[test]
    fn a_key_is_removed_with_all_its_generations() {
        let sample = Sample::new();
        let id = sample.store("key", 1, b"old");
        sample.store("key", 2, b"new");
        let kept = sample.store("other", 3, b"body");
        assert!(sample.folder.remove_key(&id.hash).unwrap());
        sample.folder.sync(&[id.hash[0]].into()).unwrap();
        assert!(!sample.folder.remove_key(&id.hash).unwrap());
        assert_eq!(ids(&sample.walk()), [kept]);
    }

    #[test]
    fn a_folder_is_in_use_while_its_lock_is_held() {
        let sample = Sample::new();
        assert!(!sample.folder.is_in_use().unwrap());
        assert!(
            !sample.dir.path().join("lock").exists(),
            "looking creates nothing"
        );
        let lock = sample.folder.lock().unwrap();
        assert!(lock.is_some());
        assert!(sample.folder.is_in_use().unwrap());
        assert!(sample.folder.lock().unwrap().is_none());
        drop(lock);
        assert!(!sample.folder.is_in_use().unwrap());
    }

    #[test]
    fn a_folder_without_a_cache_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let e = CacheFolder::open(dir.path()).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
        let named = dir.path().display().to_string();
        assert!(e.to_string().starts_with(&named), "{e}");
    }
}
