//! What was purged before it could be found: the ban list.
//!
//! A ban voids the entries of a key, or of all keys with a prefix, that are
//! older than the ban. Older is a matter of generations, not of clocks, so it
//! holds for entries that are not indexed yet, for fills in flight, and after a
//! restart. The format of the file is in FORMAT.md.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

const MAGIC: &[u8; 8] = b"PSFBANS2";
const KIND_PREFIX: u8 = 1;
const KIND_EXACT: u8 = 2;

/// How many prefixes may be banned at once. Each lookup of an entry older than
/// the newest ban compares with all of them.
const MAX_PREFIXES: usize = 10_000;

/// Longest list that is read, in bytes.
const MAX_FILE: u64 = 256 << 20;

/// The file is rewritten when it holds so many more records than bans.
const SLACK: usize = 1_000;

/// What a ban is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Banned {
    /// All keys of this user tag that begin with this prefix.
    Prefix(String, Vec<u8>),
    /// The key with this primary hash, in all variants.
    Exact([u8; 16]),
}

/// Bans, in memory only.
#[derive(Debug, Default)]
pub struct List {
    prefixes: Vec<(u64, String, Vec<u8>)>,
    exact: HashMap<[u8; 16], u64>,
}

/// The records of a list's file: each a generation and what is banned below it.
/// Ends where the file ends, or where it is damaged.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    /// Whether the file is a ban list at all.
    ours: bool,
}

/// The bans in force.
#[derive(Debug)]
pub struct Bans {
    path: PathBuf,
    list: RwLock<List>,
    /// Entries of this generation or a later one are not banned.
    newest: AtomicU64,
    /// Held over I/O, never on an async worker.
    file: Mutex<OnDisk>,
}

/// What is known of the file.
#[derive(Debug)]
struct OnDisk {
    records: usize,
    /// An append has failed: what it left would hide what is appended next.
    damaged: bool,
}

impl Bans {
    /// Read the list of a cache folder, and if `repair` is set, cut a damaged
    /// end off: only who holds the lock may do that. Blocks.
    pub fn load(folder: &Path, repair: bool) -> io::Result<Bans> {
        Bans::read(folder.join("bans"), repair)
    }

    fn read(path: PathBuf, repair: bool) -> io::Result<Bans> {
        let mut data = Vec::new();
        match File::open(&path) {
            Ok(file) => drop(file.take(MAX_FILE).read_to_end(&mut data)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let mut list = List::default();
        let mut count = 0;
        let mut records = Records::of(&data);
        for (generation, banned) in &mut records {
            list.add(generation, banned);
            count += 1;
        }
        let bans = Bans {
            path,
            newest: AtomicU64::new(list.newest()),
            list: RwLock::new(list),
            file: Mutex::new(OnDisk {
                records: count,
                damaged: false,
            }),
        };
        if !records.rest().is_empty() && repair {
            log::warn!(
                "{}: the end of the ban list is damaged and ignored; purge again what was purged last",
                bans.path.display()
            );
            // What is appended behind the damage would not be found.
            bans.rewrite(&mut bans.file.lock())?;
        }
        Ok(bans)
    }

    /// Read the list again, to which another process writes, or has till it let
    /// the folder go (`repair`). Blocks.
    pub fn reload(&self, repair: bool) -> io::Result<()> {
        let fresh = Bans::read(self.path.clone(), repair)?;
        *self.file.lock() = fresh.file.into_inner();
        let fresh = fresh.list.into_inner();
        // Nothing that was heard of is forgotten: the other process may have
        // removed what its bans void, but it may still be in memory here.
        let mut list = self.list.write();
        for (generation, tag, prefix) in fresh.prefixes {
            list.add(generation, Banned::Prefix(tag, prefix));
        }
        for (hash, generation) in fresh.exact {
            list.add(generation, Banned::Exact(hash));
        }
        self.newest.store(list.newest(), Ordering::Release);
        Ok(())
    }

    /// The highest generation that a ban speaks of.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// How many bans there are.
    pub fn len(&self) -> usize {
        let list = self.list.read();
        list.prefixes.len() + list.exact.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Void all matching entries below `generation`, at once, and durably when
    /// this returns. Blocks.
    pub fn ban(&self, generation: u64, banned: Banned) -> io::Result<()> {
        let record = encode(generation, &banned)?;
        let mut file = self.file.lock();
        if matches!(banned, Banned::Prefix(..)) && self.list.read().prefixes.len() >= MAX_PREFIXES {
            return Err(io::Error::other(format!(
                "{MAX_PREFIXES} prefixes are banned already; purge a shorter prefix that covers several, or try again in some minutes"
            )));
        }
        // In force before it is durable: whoever asked sees it at once.
        self.list.write().add(generation, banned);
        self.newest.fetch_max(generation, Ordering::AcqRel);
        if file.damaged || file.records == 0 || file.records > self.len() + SLACK {
            return self.rewrite(&mut file);
        }
        let appended = File::options()
            .append(true)
            .open(&self.path)
            .and_then(|mut list| {
                list.write_all(&record)?;
                list.sync_all()
            });
        match appended {
            Ok(()) => {
                file.records += 1;
                Ok(())
            }
            // The file is gone, or ends in a piece of a record.
            Err(_) => self.rewrite(&mut file),
        }
    }

    /// Forget the bans below `generation`: no entry that old is left. Blocks.
    pub fn forget_below(&self, generation: u64) -> io::Result<()> {
        let mut file = self.file.lock();
        {
            let mut list = self.list.write();
            list.prefixes.retain(|(of, ..)| *of >= generation);
            list.exact.retain(|_, of| *of >= generation);
            self.newest.store(list.newest(), Ordering::Release);
        }
        self.rewrite(&mut file)
    }

    fn rewrite(&self, on_disk: &mut OnDisk) -> io::Result<()> {
        on_disk.damaged = true;
        let mut data = MAGIC.to_vec();
        let count = {
            let list = self.list.read();
            for (generation, tag, prefix) in &list.prefixes {
                let banned = Banned::Prefix(tag.clone(), prefix.clone());
                data.extend(encode(*generation, &banned)?);
            }
            for (hash, generation) in &list.exact {
                data.extend(encode(*generation, &Banned::Exact(*hash))?);
            }
            list.prefixes.len() + list.exact.len()
        };
        let temporary = self.path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&data)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        *on_disk = OnDisk {
            records: count,
            damaged: false,
        };
        Ok(())
    }

    /// Whether an entry is void. `key` gives the user tag and the key in clear
    /// text, and is only asked if prefixes have to be compared.
    pub fn void<'a>(
        &self,
        generation: u64,
        primary: &[u8; 16],
        key: impl FnOnce() -> (&'a str, &'a [u8]),
    ) -> bool {
        if generation >= self.newest() {
            return false;
        }
        self.list.read().void(generation, primary, key)
    }
}

impl List {
    /// As [`Bans::void`].
    pub fn void<'a>(
        &self,
        generation: u64,
        primary: &[u8; 16],
        key: impl FnOnce() -> (&'a str, &'a [u8]),
    ) -> bool {
        if self.exact.get(primary).is_some_and(|of| generation < *of) {
            return true;
        }
        if self.prefixes.is_empty() {
            return false;
        }
        let (tag, key) = key();
        self.prefixes.iter().any(|(of, of_tag, prefix)| {
            generation < *of && of_tag == tag && key.starts_with(prefix)
        })
    }

    /// The highest generation that a ban speaks of, 0 where there is none.
    pub fn newest(&self) -> u64 {
        let prefixes = self.prefixes.iter().map(|(generation, ..)| *generation);
        let exact = self.exact.values().copied();
        prefixes.chain(exact).max().unwrap_or(0)
    }

    /// Void all matching entries below `generation`.
    pub fn add(&mut self, generation: u64, banned: Banned) {
        match banned {
            Banned::Exact(hash) => {
                let of = self.exact.entry(hash).or_default();
                *of = generation.max(*of);
            }
            Banned::Prefix(tag, prefix) => {
                // Narrower bans that are not newer say nothing more.
                self.prefixes.retain(|(of, of_tag, narrower)| {
                    !(*of <= generation && *of_tag == tag && narrower.starts_with(&prefix))
                });
                self.prefixes.push((generation, tag, prefix));
            }
        }
    }
}

impl<'a> Records<'a> {
    /// Those of a file with this content. An empty file has none.
    pub fn of(file: &'a [u8]) -> Self {
        let records = file.strip_prefix(MAGIC);
        Records {
            rest: records.unwrap_or(file),
            ours: records.is_some(),
        }
    }

    /// What has not been read; once there are no more records, what is damaged.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl Iterator for Records<'_> {
    type Item = (u64, Banned);

    fn next(&mut self) -> Option<Self::Item> {
        if !self.ours {
            return None;
        }
        let (generation, banned, rest) = decode(self.rest)?;
        self.rest = rest;
        Some((generation, banned))
    }
}

/// A record of the list's file. `InvalidInput` where the user tag is longer than
/// 2^16 - 1 bytes, or the prefix longer than 2^32 - 1.
pub fn encode(generation: u64, banned: &Banned) -> io::Result<Vec<u8>> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "the prefix is too long");
    let mut record = generation.to_le_bytes().to_vec();
    let (kind, tag, text) = match banned {
        Banned::Prefix(tag, prefix) => (KIND_PREFIX, tag.as_bytes(), &prefix[..]),
        Banned::Exact(hash) => (KIND_EXACT, &[][..], &hash[..]),
    };
    record.push(kind);
    record.extend(u16::try_from(tag.len()).map_err(too_long)?.to_le_bytes());
    record.extend(tag);
    record.extend(u32::try_from(text.len()).map_err(too_long)?.to_le_bytes());
    record.extend(text);
    let crc = crc32fast::hash(&record);
    record.extend(crc.to_le_bytes());
    Ok(record)
}

/// The first record, and what follows it.
fn decode(data: &[u8]) -> Option<(u64, Banned, &[u8])> {
    let (generation, rest) = data.split_first_chunk::<8>()?;
    let (kind, rest) = rest.split_first()?;
    let (tag_len, rest) = rest.split_first_chunk::<2>()?;
    let (tag, rest) = rest.split_at_checked(u16::from_le_bytes(*tag_len) as usize)?;
    let (text_len, rest) = rest.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*text_len) as usize)?;
    let record = &data[..data.len() - rest.len()];
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    if crc32fast::hash(record) != u32::from_le_bytes(*crc) {
        return None;
    }
    let banned = match *kind {
        KIND_PREFIX => Banned::Prefix(std::str::from_utf8(tag).ok()?.to_owned(), text.to_vec()),
        KIND_EXACT if tag.is_empty() => Banned::Exact(text.try_into().ok()?),
        _ => return None,
    };
    Some((u64::from_le_bytes(*generation), banned, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Banned {
        Banned::Prefix("b".into(), text.into())
    }

    fn void(bans: &Bans, generation: u64, key: &str) -> bool {
        bans.void(generation, &[1; 16], || ("b", key.as_bytes()))
    }

    #[test]
    fn a_ban_voids_what_is_older_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(dir.path(), true).unwrap();
        assert!(!void(&bans, 0, "/a/x"));
        bans.ban(5, prefix("/a/")).unwrap();
        bans.ban(7, Banned::Exact([1; 16])).unwrap();
        for bans in [bans, Bans::load(dir.path(), true).unwrap()] {
            assert!(void(&bans, 4, "/a/x"));
            assert!(void(&bans, 6, "/elsewhere"), "by its hash");
            assert!(!void(&bans, 7, "/a/x"));
            assert!(!bans.void(6, &[2; 16], || ("b", b"/a/x")));
            assert!(bans.void(4, &[2; 16], || ("b", b"/a/x")));
            assert!(!bans.void(4, &[2; 16], || ("b", b"/b/x")));
            assert!(!bans.void(4, &[2; 16], || ("other", b"/a/x")));
            assert_eq!(bans.len(), 2);
        }
    }

    #[test]
    fn a_wider_ban_replaces_narrower_ones() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(dir.path(), true).unwrap();
        for (generation, text) in [(1, "/a/1"), (2, "/a/2"), (3, "/b"), (4, "/a/")] {
            bans.ban(generation, prefix(text)).unwrap();
        }
        assert_eq!(bans.len(), 2);
        assert_eq!(Bans::load(dir.path(), true).unwrap().len(), 2);
    }

    #[test]
    fn bans_are_forgotten_when_no_entry_is_that_old() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(dir.path(), true).unwrap();
        bans.ban(5, prefix("/a")).unwrap();
        bans.ban(6, Banned::Exact([1; 16])).unwrap();
        bans.ban(9, prefix("/b")).unwrap();
        bans.forget_below(7).unwrap();
        for bans in [bans, Bans::load(dir.path(), true).unwrap()] {
            assert_eq!(bans.len(), 1);
            assert!(void(&bans, 8, "/b/x"));
            assert!(!void(&bans, 4, "/a/x"));
        }
    }

    #[test]
    fn a_list_cut_off_anywhere_keeps_what_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(dir.path(), true).unwrap();
        bans.ban(5, prefix("/first")).unwrap();
        let first = fs::metadata(dir.path().join("bans")).unwrap().len() as usize;
        bans.ban(6, prefix("/second")).unwrap();
        let data = fs::read(dir.path().join("bans")).unwrap();
        for len in 0..=data.len() {
            fs::write(dir.path().join("bans"), &data[..len]).unwrap();
            let bans = Bans::load(dir.path(), true).unwrap();
            assert_eq!(void(&bans, 1, "/first"), len >= first, "at {len}");
            assert_eq!(void(&bans, 1, "/second"), len == data.len(), "at {len}");
            // And it can be added to.
            bans.ban(8, prefix("/third")).unwrap();
            let bans = Bans::load(dir.path(), true).unwrap();
            assert!(void(&bans, 1, "/third"), "at {len}");
            assert_eq!(void(&bans, 1, "/first"), len >= first, "at {len}");
        }
    }

    #[test]
    fn a_foreign_list_is_replaced() {
        let headless = encode(8, &prefix("/first")).unwrap();
        for foreign in [b"#!/bin/sh\n".to_vec(), headless] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("bans"), foreign).unwrap();
            let bans = Bans::load(dir.path(), true).unwrap();
            assert!(bans.is_empty());
            bans.ban(8, prefix("/third")).unwrap();
            assert_eq!(Bans::load(dir.path(), true).unwrap().len(), 1);
        }
    }

    #[test]
    fn a_key_banned_with_a_tag_is_damage() {
        let mut record = encode(8, &Banned::Exact([1; 16])).unwrap();
        assert!(decode(&record).is_some());
        // The length of the tag, and the tag.
        record.splice(9..11, [1, 0, b'b']);
        record.truncate(record.len() - 4);
        record.extend(crc32fast::hash(&record).to_le_bytes());
        assert!(decode(&record).is_none());
    }

    #[test]
    fn the_file_does_not_grow_with_repetition() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(dir.path(), true).unwrap();
        for generation in 0..2_500 {
            bans.ban(generation, prefix("/same")).unwrap();
        }
        assert!(bans.file.lock().records <= SLACK + 2);
        assert_eq!(Bans::load(dir.path(), true).unwrap().newest(), 2_499);
    }
}
