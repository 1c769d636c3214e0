//! The ban list, which invalidates entries that need not be found first.
//!
//! A ban invalidates the entries of a key, or of all keys with a prefix, that are older than the
//! ban. Age is compared by generations, not by clocks, so a ban also applies to entries that are
//! not indexed yet, to fills in flight, and after a restart. The format of the file is in docs/on-disk-format.md.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::cache::io::folder::{is_full, FolderAccess};
use crate::cache::io::folder_lock::Mount;

const MAGIC: &[u8; 8] = b"PSFBANS2";
const KIND_PREFIX: u8 = 1;
const KIND_EXACT: u8 = 2;
const KIND_VARIANTS: u8 = 3;

/// Most prefixes that are remembered. Beyond that, a ban is widened until it replaces another:
/// a purge then invalidates more than requested, but never fails.
const MAX_PREFIXES: usize = 100_000;

/// Most bytes of all prefixes together.
const MAX_PREFIX_BYTES: usize = 16 << 20;

/// Most banned prefixes that may be nested.
const MAX_NESTED: usize = 64;

/// Most bans of keys without a stored entry that are remembered. They matter only to variants.
/// Beyond that, one ban of all variants replaces them.
const MAX_ABSENT: usize = 1024;

/// Longest list that is read, in bytes.
const MAX_FILE: u64 = 256 << 20;

/// Records beyond the number of bans at which the file is rewritten.
const SLACK: usize = 1_000;

/// The keys that a ban applies to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Banned {
    /// All keys of this user tag that begin with this prefix.
    Prefix(String, Vec<u8>),
    /// The key with this primary hash, in all variants.
    Exact([u8; 16]),
    /// Variants of all keys.
    Variants,
}

/// Bans in memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct List {
    /// By user tag.
    prefixes: HashMap<String, Prefixes>,
    exact: HashMap<[u8; 16], u64>,
    /// Bans of keys without a stored entry.
    absent: HashMap<[u8; 16], u64>,
    variants: u64,
}

/// The banned prefixes of a tag.
///
/// The longer of two nested prefixes has the higher generation; otherwise it would be redundant.
/// The longest prefix of a key therefore decides. A lookup finds it next to the place of the key
/// in the order, however many prefixes there are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Prefixes {
    bans: BTreeMap<Box<[u8]>, Ban>,
    /// Bytes of all prefixes.
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ban {
    generation: u64,
    /// Length of the longest other banned prefix with which this one begins.
    within: Option<u32>,
}

/// The records of a ban list's file: each has a generation and the keys that are banned below
/// it. Ends where the file ends or is damaged.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    /// True if the file is a ban list at all.
    ours: bool,
}

/// The bans in force.
pub struct Bans {
    access: &'static dyn FolderAccess,
    path: PathBuf,
    /// The folder of the file; `None`: it is not written while it may be absent.
    mount: Option<Mount>,
    list: RwLock<List>,
    /// Entries of this generation or a later one are not banned.
    newest: AtomicU64,
    /// True if the file may lack bans of the list.
    has_unsaved: AtomicBool,
    /// Held over I/O, never on an async worker.
    file: Mutex<OnDisk>,
}

/// State of the file.
#[derive(Debug)]
struct OnDisk {
    records: usize,
    /// True after a failed append, whose remains would hide the next record.
    damaged: bool,
}

impl Bans {
    /// Read the list of a cache folder. `repair` cuts off a damaged end, which only the holder of
    /// the lock may do. Blocks.
    pub fn load(
        access: &'static dyn FolderAccess,
        folder: &Path,
        repair: bool,
    ) -> io::Result<Bans> {
        Bans::read(access, folder.join("bans"), repair)
    }

    fn read(access: &'static dyn FolderAccess, path: PathBuf, repair: bool) -> io::Result<Bans> {
        let data = match access.read_file(&path, MAX_FILE) {
            Ok(data) => data,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let mut list = List::default();
        let mut count = 0;
        let mut records = Records::of(&data);
        for (generation, banned) in &mut records {
            list.add(generation, banned);
            count += 1;
        }
        let bans = Bans {
            access,
            path,
            mount: None,
            newest: AtomicU64::new(list.newest()),
            list: RwLock::new(list),
            has_unsaved: AtomicBool::new(false),
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
            // Records after the damage would not be found. On a full disk, the next ban tries again.
            match bans.rewrite(&mut bans.file.lock()) {
                Err(e) if is_full(&e) => {}
                rewritten => rewritten?,
            }
        }
        Ok(bans)
    }

    /// Write the file only while the folder is there.
    pub(crate) fn keep_on(&mut self, mount: Mount) {
        self.mount = Some(mount);
    }

    /// Have all bans written by the next [`save`](Self::save): the file may be an older one.
    pub(crate) fn set_unsaved(&self) {
        self.has_unsaved.store(true, Ordering::Release);
    }

    /// Read the list again, to which another process writes, or has written before it released
    /// the folder (`repair`). Blocks.
    pub fn reload(&self, repair: bool) -> io::Result<()> {
        let fresh = Bans::read(self.access, self.path.clone(), repair)?;
        *self.file.lock() = fresh.file.into_inner();
        let fresh = fresh.list.into_inner();
        // No ban is forgotten: the other process may have removed the entries, but they may
        // still be in memory here.
        let mut list = self.list.write();
        for (generation, banned) in fresh.all() {
            list.add(generation, banned);
        }
        self.newest.store(list.newest(), Ordering::Release);
        Ok(())
    }

    /// Write a list again that was removed, with the bans that another process has written in
    /// its place. Only for the holder of the lock. Blocks.
    pub fn restore(&self) -> io::Result<()> {
        self.reload(true)?;
        if self.is_empty() {
            return Ok(());
        }
        self.rewrite(&mut self.file.lock())
    }

    /// All bans.
    pub fn all(&self) -> Vec<(u64, Banned)> {
        self.list.read().all().collect()
    }

    /// Have bans of another folder in force here. They are not written.
    pub fn add_all(&self, bans: &[(u64, Banned)]) {
        let mut list = self.list.write();
        for (generation, banned) in bans {
            list.add(*generation, banned.clone());
        }
        self.newest.store(list.newest(), Ordering::Release);
    }

    /// Have only the bans of other folders in force, and write them unless the file has them already: a
    /// full disk takes no other file. Blocks.
    pub fn replace_all(&self, bans: &[(u64, Banned)]) -> io::Result<()> {
        let mut file = self.file.lock();
        {
            let mut list = self.list.write();
            *list = List::default();
            for (generation, banned) in bans {
                list.add(*generation, banned.clone());
            }
            self.newest.store(list.newest(), Ordering::Release);
        }
        match self.is_saved() {
            true => Ok(()),
            false => self.rewrite(&mut file),
        }
    }

    /// True if the file has exactly the bans in force. Blocks.
    fn is_saved(&self) -> bool {
        let data = match self.access.read_file(&self.path, MAX_FILE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(_) => return false,
            Ok(data) => data,
        };
        let mut saved = List::default();
        let mut records = Records::of(&data);
        for (generation, banned) in &mut records {
            saved.add(generation, banned);
        }
        records.rest().is_empty() && saved == *self.list.read()
    }

    /// [`ban`](Self::ban) in memory alone, where nothing can be written. [`save`](Self::save) writes
    /// it. Does not wait for the disk.
    pub fn ban_unsaved(&self, generation: u64, banned: Banned) {
        self.list.write().add_bounded(generation, banned);
        self.newest.fetch_max(generation, Ordering::AcqRel);
        self.has_unsaved.store(true, Ordering::Release);
    }

    /// Write all bans, if some could not be written. Blocks.
    pub fn save(&self) -> io::Result<()> {
        let mut file = self.file.lock();
        match file.damaged || self.has_unsaved.load(Ordering::Acquire) {
            true => self.rewrite(&mut file),
            false => Ok(()),
        }
    }

    /// The highest generation of a ban.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// Number of bans.
    pub fn len(&self) -> usize {
        self.list.read().len()
    }

    /// True if there are no bans.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Invalidate all matching entries below `generation`: at once, and durably when this
    /// returns. Blocks.
    pub fn ban(&self, generation: u64, banned: Banned) -> io::Result<()> {
        let appended = {
            let mut file = self.file.lock();
            // In force before it is durable: the requester sees it at once.
            let added = self.list.write().add_bounded(generation, banned.clone());
            self.newest.fetch_max(generation, Ordering::AcqRel);
            let appended = self.append(&mut file, generation, &added);
            appended.map(|()| added)
        };
        // Logged without the lock, so that no lookup waits.
        if let (Banned::Prefix(_, wider), Banned::Prefix(_, asked)) = (&appended?, &banned) {
            if wider != asked {
                log::warn!(
                    "too many prefixes are purged: everything that begins with {:?} is invalidated instead of {:?}",
                    String::from_utf8_lossy(wider),
                    String::from_utf8_lossy(asked)
                );
            }
        }
        Ok(())
    }

    /// [`ban`](Self::ban) for a key without a stored entry, except perhaps variants that
    /// no lookup finds. Blocks.
    pub fn ban_absent(&self, generation: u64, hash: [u8; 16]) -> io::Result<()> {
        let mut file = self.file.lock();
        let banned = self.list.write().add_absent(generation, hash);
        self.newest.fetch_max(generation, Ordering::AcqRel);
        self.append(&mut file, generation, &banned)
    }

    fn append(&self, file: &mut OnDisk, generation: u64, banned: &Banned) -> io::Result<()> {
        let record = encode(generation, banned)?;
        self.check_mount()?;
        let is_behind = file.damaged || self.has_unsaved.load(Ordering::Acquire);
        if is_behind || file.records == 0 || file.records > self.len() + SLACK {
            return self.rewrite(file);
        }
        match self.access.append(&self.path, &record) {
            Ok(()) => {
                file.records += 1;
                Ok(())
            }
            // The file is gone, or ends with a part of a record.
            Err(_) => self.rewrite(file),
        }
    }

    /// Forget the bans below `generation`: no entry that old is left. Blocks.
    pub fn forget_below(&self, generation: u64) -> io::Result<()> {
        let mut file = self.file.lock();
        {
            let mut list = self.list.write();
            list.forget_below(generation);
            self.newest.store(list.newest(), Ordering::Release);
        }
        self.rewrite(&mut file)
    }

    /// A list in a mount point without its file system would be hidden when that is back.
    fn check_mount(&self) -> io::Result<()> {
        self.mount.as_ref().map_or(Ok(()), Mount::check)
    }

    fn rewrite(&self, on_disk: &mut OnDisk) -> io::Result<()> {
        self.check_mount()?;
        on_disk.damaged = true;
        // Before the list is read: a ban that is added later is still unsaved.
        self.has_unsaved.store(false, Ordering::SeqCst);
        let mut data = MAGIC.to_vec();
        let count = {
            let list = self.list.read();
            for (generation, banned) in list.all() {
                data.extend(encode(generation, &banned)?);
            }
            list.len()
        };
        self.access.replace(&self.path, &data)?;
        *on_disk = OnDisk {
            records: count,
            damaged: false,
        };
        Ok(())
    }

    /// True if an entry is banned. `key` returns the user tag and the key in clear text; it is
    /// only called if prefixes have to be compared.
    pub fn is_banned<'a>(
        &self,
        generation: u64,
        primary: &[u8; 16],
        key: impl FnOnce() -> (&'a str, &'a [u8]),
    ) -> bool {
        if generation >= self.newest() {
            return false;
        }
        self.list.read().is_banned(generation, primary, key)
    }

    /// True if an entry that is a variant is banned by a ban of all variants, which
    /// [`is_banned`](Self::is_banned) does not check.
    pub fn is_banned_variant(&self, generation: u64) -> bool {
        generation < self.newest() && generation < self.list.read().variants
    }
}

impl fmt::Debug for Bans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bans")
            .field("path", &self.path)
            .field("list", &self.list)
            .finish_non_exhaustive()
    }
}

impl List {
    /// See [`Bans::is_banned`].
    pub fn is_banned<'a>(
        &self,
        generation: u64,
        primary: &[u8; 16],
        key: impl FnOnce() -> (&'a str, &'a [u8]),
    ) -> bool {
        let newer = |of: &u64| generation < *of;
        if self.exact.get(primary).is_some_and(newer) || self.absent.get(primary).is_some_and(newer)
        {
            return true;
        }
        if self.prefixes.is_empty() {
            return false;
        }
        let (tag, key) = key();
        let longest = self
            .prefixes
            .get(tag)
            .and_then(|of_tag| of_tag.longest(key));
        longest.is_some_and(|(_, ban)| generation < ban.generation)
    }

    /// The highest generation of a ban; 0: there is none.
    pub fn newest(&self) -> u64 {
        let prefixes = self
            .prefixes
            .values()
            .flat_map(|of_tag| of_tag.bans.values());
        let prefixes = prefixes.map(|ban| ban.generation);
        let exact = self.exact.values().chain(self.absent.values()).copied();
        prefixes.chain(exact).max().unwrap_or(0).max(self.variants)
    }

    /// Number of bans.
    fn len(&self) -> usize {
        let exact = self.exact.len() + self.absent.len();
        self.prefix_count() + exact + usize::from(self.variants > 0)
    }

    fn prefix_count(&self) -> usize {
        self.prefixes.values().map(|of_tag| of_tag.bans.len()).sum()
    }

    /// All bans, wider prefixes before narrower ones.
    fn all(&self) -> impl Iterator<Item = (u64, Banned)> + '_ {
        let prefixes = self.prefixes.iter().flat_map(|(tag, of_tag)| {
            let bans = of_tag.bans.iter();
            bans.map(|(prefix, ban)| {
                let banned = Banned::Prefix(tag.clone(), prefix.to_vec());
                (ban.generation, banned)
            })
        });
        let exact = self.exact.iter().chain(&self.absent);
        let exact = exact.map(|(hash, generation)| (*generation, Banned::Exact(*hash)));
        let variants = (self.variants > 0).then_some((self.variants, Banned::Variants));
        prefixes.chain(exact).chain(variants)
    }

    /// Invalidate all matching entries below `generation`.
    pub fn add(&mut self, generation: u64, banned: Banned) {
        match banned {
            Banned::Exact(hash) => {
                let of = self.exact.entry(hash).or_default();
                *of = generation.max(*of);
            }
            Banned::Prefix(tag, prefix) => {
                self.prefixes
                    .entry(tag)
                    .or_default()
                    .add(generation, &prefix);
            }
            Banned::Variants => self.variants = generation.max(self.variants),
        }
    }

    /// [`add`](Self::add), but widen the ban if there would be too many prefixes. Returns
    /// the ban that was added.
    fn add_bounded(&mut self, generation: u64, banned: Banned) -> Banned {
        let banned = match banned {
            Banned::Prefix(tag, prefix) if self.is_full() => {
                let of_tag = self.prefixes.entry(tag.clone()).or_default();
                let len = of_tag.widened(&prefix);
                Banned::Prefix(tag, prefix[..len].to_vec())
            }
            banned => banned,
        };
        self.add(generation, banned.clone());
        banned
    }

    /// Ban a key without a stored entry. Returns the ban that was added.
    fn add_absent(&mut self, generation: u64, hash: [u8; 16]) -> Banned {
        if self.absent.len() >= MAX_ABSENT && !self.absent.contains_key(&hash) {
            self.absent.clear();
            self.add(generation, Banned::Variants);
            return Banned::Variants;
        }
        self.absent.insert(hash, generation);
        Banned::Exact(hash)
    }

    fn is_full(&self) -> bool {
        let bytes: usize = self.prefixes.values().map(|of_tag| of_tag.bytes).sum();
        self.prefix_count() >= MAX_PREFIXES || bytes >= MAX_PREFIX_BYTES
    }

    fn forget_below(&mut self, generation: u64) {
        let kept: Vec<_> = self.all().filter(|(of, _)| *of >= generation).collect();
        let absent: HashMap<_, _> = std::mem::take(&mut self.absent);
        *self = List::default();
        for (of, banned) in kept {
            match banned {
                Banned::Exact(hash) if absent.contains_key(&hash) => {
                    self.absent.insert(hash, of);
                }
                banned => self.add(of, banned),
            }
        }
    }
}

impl Prefixes {
    /// The longest banned prefix of a key.
    fn longest(&self, key: &[u8]) -> Option<(&[u8], &Ban)> {
        self.longest_after(key, || ())
    }

    /// [`longest`](Self::longest), which calls `step` for each search in the map.
    fn longest_after(&self, key: &[u8], mut step: impl FnMut()) -> Option<(&[u8], &Ban)> {
        // The last prefix in order that is not after the key. All other banned prefixes of the
        // key are prefixes of what the two have in common: a longer one would be between them.
        let mut at = key;
        loop {
            step();
            let upto = (Bound::Unbounded, Bound::Included(at));
            let (prefix, ban) = self.bans.range::<[u8], _>(upto).next_back()?;
            if key.starts_with(prefix) {
                return Some((prefix, ban));
            }
            // If this one is missing, the search continues from its place: a purge must not be
            // lost with it.
            at = &prefix[..ban.within? as usize];
        }
    }

    fn add(&mut self, generation: u64, prefix: &[u8]) {
        let mut prefix = prefix;
        let mut depth = 0;
        let mut wider = self.longest(prefix);
        if wider.is_some_and(|(_, ban)| ban.generation >= generation) {
            return;
        }
        let mut chain = Vec::new();
        while let Some((banned, ban)) = wider {
            depth += 1;
            chain.push(banned.len());
            wider = ban
                .within
                .and_then(|len| self.bans.get_key_value(&banned[..len as usize]))
                .map(|(banned, ban)| (&**banned, ban));
        }
        if depth >= MAX_NESTED {
            prefix = &prefix[..chain[depth - MAX_NESTED]];
        }
        // Narrower bans that are not newer are redundant.
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let narrower = self
            .bans
            .range::<[u8], _>(from)
            .map(|(narrower, ban)| (narrower, ban.generation));
        let narrower: Vec<_> = narrower
            .take_while(|(narrower, _)| narrower.starts_with(prefix))
            .map(|(narrower, of)| (narrower.clone(), of))
            .collect();
        let len = prefix.len() as u32;
        for (narrower, of) in narrower {
            if of <= generation {
                self.bans.remove(&narrower);
                self.bytes -= narrower.len();
                continue;
            }
            // The ban that it was within may have just been removed, because wider ones come
            // first.
            let within = self.bans.get(&narrower).and_then(|ban| ban.within);
            let within = within.filter(|within| {
                *within > len && self.bans.contains_key(&narrower[..*within as usize])
            });
            if let Some(ban) = self.bans.get_mut(&narrower) {
                ban.within = within.or(Some(len));
            }
        }
        let within = self.longest(prefix).map(|(wider, _)| wider.len() as u32);
        self.bans.insert(prefix.into(), Ban { generation, within });
        self.bytes += prefix.len();
    }

    /// Length of the longest beginning that `prefix` shares with a banned prefix, or its whole
    /// length if nothing is banned.
    fn widened(&self, prefix: &[u8]) -> usize {
        let upto = (Bound::Unbounded, Bound::Included(prefix));
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let before = self.bans.range::<[u8], _>(upto).next_back();
        let after = self.bans.range::<[u8], _>(from).next();
        let neighbours = before.into_iter().chain(after);
        let common = neighbours.map(|(neighbour, _)| common_len(neighbour, prefix));
        common.max().unwrap_or(prefix.len())
    }
}

fn common_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<'a> Records<'a> {
    /// The records of a file with this content. An empty file has none.
    pub fn of(file: &'a [u8]) -> Self {
        let records = file.strip_prefix(MAGIC);
        Records {
            rest: records.unwrap_or(file),
            ours: records.is_some(),
        }
    }

    /// The bytes not read yet; once there are no more records, the damaged ones.
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

/// A record of the file. `InvalidInput`: the user tag is longer than 2^16 - 1 bytes, or the
/// prefix longer than 2^32 - 1.
pub fn encode(generation: u64, banned: &Banned) -> io::Result<Vec<u8>> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "the prefix is too long");
    let mut record = generation.to_le_bytes().to_vec();
    let (kind, tag, text) = match banned {
        Banned::Prefix(tag, prefix) => (KIND_PREFIX, tag.as_bytes(), &prefix[..]),
        Banned::Exact(hash) => (KIND_EXACT, &[][..], &hash[..]),
        Banned::Variants => (KIND_VARIANTS, &[][..], &[][..]),
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

/// The first record, and the bytes after it.
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
        KIND_VARIANTS if tag.is_empty() && text.is_empty() => Banned::Variants,
        _ => return None,
    };
    Some((u64::from_le_bytes(*generation), banned, rest))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cache::io::folder::LocalFolder;

    fn prefix(text: &str) -> Banned {
        Banned::Prefix("b".into(), text.into())
    }

    fn is_banned(bans: &Bans, generation: u64, key: &str) -> bool {
        bans.is_banned(generation, &[1; 16], || ("b", key.as_bytes()))
    }

    #[test]
    fn a_ban_invalidates_what_is_older_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        assert!(!is_banned(&bans, 0, "/a/x"));
        bans.ban(5, prefix("/a/")).unwrap();
        bans.ban(7, Banned::Exact([1; 16])).unwrap();
        for bans in [bans, Bans::load(&LocalFolder, dir.path(), true).unwrap()] {
            assert!(is_banned(&bans, 4, "/a/x"));
            assert!(is_banned(&bans, 6, "/elsewhere"), "by its hash");
            assert!(!is_banned(&bans, 7, "/a/x"));
            assert!(!bans.is_banned(6, &[2; 16], || ("b", b"/a/x")));
            assert!(bans.is_banned(4, &[2; 16], || ("b", b"/a/x")));
            assert!(!bans.is_banned(4, &[2; 16], || ("b", b"/b/x")));
            assert!(!bans.is_banned(4, &[2; 16], || ("other", b"/a/x")));
            assert_eq!(bans.len(), 2);
        }
    }

    #[test]
    fn a_wider_ban_replaces_narrower_ones() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        for (generation, text) in [(1, "/a/1"), (2, "/a/2"), (3, "/b"), (4, "/a/")] {
            bans.ban(generation, prefix(text)).unwrap();
        }
        assert_eq!(bans.len(), 2);
        assert_eq!(Bans::load(&LocalFolder, dir.path(), true).unwrap().len(), 2);
    }

    #[test]
    fn bans_are_forgotten_when_no_entry_is_that_old() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        bans.ban(5, prefix("/a")).unwrap();
        bans.ban(6, Banned::Exact([1; 16])).unwrap();
        bans.ban(9, prefix("/b")).unwrap();
        bans.forget_below(7).unwrap();
        for bans in [bans, Bans::load(&LocalFolder, dir.path(), true).unwrap()] {
            assert_eq!(bans.len(), 1);
            assert!(is_banned(&bans, 8, "/b/x"));
            assert!(!is_banned(&bans, 4, "/a/x"));
        }
    }

    #[test]
    fn a_list_cut_off_anywhere_keeps_what_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        bans.ban(5, prefix("/first")).unwrap();
        let first = fs::metadata(dir.path().join("bans")).unwrap().len() as usize;
        bans.ban(6, prefix("/second")).unwrap();
        let data = fs::read(dir.path().join("bans")).unwrap();
        for len in 0..=data.len() {
            fs::write(dir.path().join("bans"), &data[..len]).unwrap();
            let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
            assert_eq!(is_banned(&bans, 1, "/first"), len >= first, "at {len}");
            assert_eq!(
                is_banned(&bans, 1, "/second"),
                len == data.len(),
                "at {len}"
            );
            // And it can be added to.
            bans.ban(8, prefix("/third")).unwrap();
            let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
            assert!(is_banned(&bans, 1, "/third"), "at {len}");
            assert_eq!(is_banned(&bans, 1, "/first"), len >= first, "at {len}");
        }
    }

    #[test]
    fn a_removed_list_is_brought_back_beside_that_of_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bans");
        let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        bans.restore().unwrap();
        assert!(!path.exists(), "there is nothing to bring back");
        bans.ban(5, prefix("/own")).unwrap();
        fs::remove_file(&path).unwrap();
        bans.restore().unwrap();
        assert_eq!(Bans::load(&LocalFolder, dir.path(), true).unwrap().len(), 1);

        fs::remove_file(&path).unwrap();
        let other = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        other.ban(6, prefix("/other")).unwrap();
        other.ban(6, prefix("/third")).unwrap();
        bans.restore().unwrap();
        for bans in [bans, Bans::load(&LocalFolder, dir.path(), true).unwrap()] {
            for key in ["/own", "/other", "/third"] {
                assert!(is_banned(&bans, 4, key), "{key}");
            }
        }
    }

    #[test]
    fn nothing_is_written_while_the_folder_is_not_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let mut bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        bans.keep_on(Mount::of(dir.path()).unwrap());
        bans.ban(5, prefix("/a/")).unwrap();
        let path = dir.path().join("bans");
        let before = fs::read(&path).unwrap();
        bans.keep_on(Mount::unmounted(dir.path()));
        for is_gone in [false, true] {
            let e = bans.ban(6, prefix("/b/")).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::NotFound);
            bans.set_unsaved();
            bans.save().unwrap_err();
            match is_gone {
                false => assert_eq!(fs::read(&path).unwrap(), before),
                true => assert!(!path.exists()),
            }
            let _ = fs::remove_file(&path);
        }
        assert!(is_banned(&bans, 4, "/b/x"));
        bans.keep_on(Mount::of(dir.path()).unwrap());
        bans.save().unwrap();
        assert_eq!(Bans::load(&LocalFolder, dir.path(), true).unwrap().len(), 2);
    }

    #[test]
    fn a_foreign_list_is_replaced() {
        let headless = encode(8, &prefix("/first")).unwrap();
        for foreign in [b"#!/bin/sh\n".to_vec(), headless] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("bans"), foreign).unwrap();
            let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
            assert!(bans.is_empty());
            bans.ban(8, prefix("/third")).unwrap();
            assert_eq!(Bans::load(&LocalFolder, dir.path(), true).unwrap().len(), 1);
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
    fn a_narrower_ban_that_is_newer_counts_within_a_wider_one() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        for (generation, text) in [
            (3, "/a/"),
            (5, "/a/b/c"),
            (4, "/a/b"),
            (7, "/a/b0"),
            (2, ""),
        ] {
            bans.ban(generation, prefix(text)).unwrap();
        }
        for bans in [bans, Bans::load(&LocalFolder, dir.path(), true).unwrap()] {
            for (key, of) in [
                ("", 2),
                ("/z", 2),
                ("/a", 2),
                ("/a/", 3),
                ("/a/b", 4),
                ("/a/b/", 4),
                ("/a/b/c", 5),
                ("/a/b/d", 4),
                ("/a/b0/x", 7),
                ("/a/b1", 4),
                ("/a/c", 3),
            ] {
                assert!(is_banned(&bans, of - 1, key), "{key}");
                assert!(!is_banned(&bans, of, key), "{key}");
            }
        }
    }

    #[test]
    fn random_bans_agree_with_a_list() {
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            (random >> 33) % n
        };
        for _ in 0..300 {
            let mut list = List::default();
            let mut model: Vec<(u64, Vec<u8>)> = Vec::new();
            for _ in 0..below(40) {
                let text: Vec<u8> = (0..below(6)).map(|_| b'a' + below(2) as u8).collect();
                let generation = below(20);
                list.add(generation, Banned::Prefix("b".into(), text.clone()));
                model.push((generation, text));
            }
            // As they were added, in no order, and as they are kept afterwards.
            for kept in [0, below(10)] {
                if kept > 0 {
                    list.forget_below(kept);
                }
                model.retain(|(generation, _)| *generation >= kept);
                for of_tag in list.prefixes.values() {
                    for (prefix, ban) in &of_tag.bans {
                        let within = ban.within.map(|len| &prefix[..len as usize]);
                        assert!(within.is_none_or(|within| of_tag.bans.contains_key(within)));
                    }
                }
                for _ in 0..50 {
                    let key: Vec<u8> = (0..below(8)).map(|_| b'a' + below(2) as u8).collect();
                    let of = |ban: &&(u64, Vec<u8>)| key.starts_with(&ban.1);
                    let newest = model.iter().filter(of).map(|(generation, _)| *generation);
                    let newest = newest.max().unwrap_or(0);
                    for generation in newest.saturating_sub(1)..=newest {
                        let void = list.is_banned(generation, &[1; 16], || ("b", &key));
                        assert_eq!(void, generation < newest, "{key:?} in {model:?}");
                    }
                }
            }
        }
    }

    /// Concurrent purges may reach the list in another order than that of their
    /// generations.
    #[test]
    fn bans_that_overtake_each_other_all_count() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        for (generation, text) in [(4, "/a/b"), (9, "/a/b/c"), (5, "/a/")] {
            bans.ban(generation, prefix(text)).unwrap();
        }
        for bans in [bans, Bans::load(&LocalFolder, dir.path(), true).unwrap()] {
            for (key, of) in [("/a/b/d", 5), ("/a/b", 5), ("/a/b/c/d", 9), ("/a/c", 5)] {
                assert!(is_banned(&bans, of - 1, key), "{key}");
                assert!(!is_banned(&bans, of, key), "{key}");
            }
        }
    }

    #[test]
    fn a_full_list_takes_every_ban() {
        let mut list = List::default();
        for number in 0..MAX_PREFIXES as u64 {
            list.add_bounded(number, prefix(&format!("/dir/{number:06}")));
        }
        assert_eq!(list.len(), MAX_PREFIXES);
        let now = MAX_PREFIXES as u64;
        // Another one is widened as far as needed.
        let added = list.add_bounded(now, prefix("/dir/099999x"));
        assert_eq!(added, prefix("/dir/099999"));
        let added = list.add_bounded(now + 1, prefix("/dir/0x"));
        assert_eq!(added, prefix("/dir/0"));
        assert!(list.len() <= MAX_PREFIXES);
        let bans = |list: &List, key: &str| list.is_banned(now, &[1; 16], || ("b", key.as_bytes()));
        assert!(bans(&list, "/dir/0x/y") && !bans(&list, "/dir/1") && !bans(&list, "/z"));
        // The widest takes the place of all.
        assert_eq!(list.add_bounded(now + 2, prefix("/")), prefix("/"));
        assert!(bans(&list, "/z"));
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn bans_nest_only_so_deep() {
        let mut list = List::default();
        for len in 0..1000 {
            list.add(len as u64 + 1, prefix(&"a".repeat(len)));
        }
        assert!(list.len() <= MAX_NESTED + 1, "{}", list.len());
        for len in 0..1000 {
            let key = "a".repeat(len);
            assert!(list.is_banned(len as u64, &[1; 16], || ("b", key.as_bytes())));
        }
    }

    /// Cost of a hit on an entry older than the newest ban.
    #[test]
    fn a_lookup_does_not_search_longer_the_more_bans_there_are() {
        let steps = |bans: usize| {
            let mut list = List::default();
            for number in 0..bans as u64 {
                let banned = format!("host\n/bucket/folder/{number:06}/");
                list.add(number + 1, prefix(&banned));
            }
            let mut steps = 0;
            let key = b"host\n/bucket/folder/another/object-of-some-length.bin";
            let found = list.prefixes["b"].longest_after(key, || steps += 1);
            assert!(found.is_none());
            steps
        };
        assert_eq!(steps(10), steps(10_000));
        assert!(steps(10_000) <= MAX_NESTED);
    }

    #[test]
    fn keys_that_are_not_there_leave_no_more_than_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        let hash = |number: u64| {
            let mut hash = [0; 16];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            hash
        };
        for number in 0..3 * MAX_ABSENT as u64 {
            bans.ban_absent(number + 1, hash(number)).unwrap();
        }
        assert!(bans.len() <= MAX_ABSENT + 1, "{}", bans.len());
        let file = fs::metadata(dir.path().join("bans")).unwrap();
        assert!(
            file.len() < 40 * (MAX_ABSENT + SLACK + 2) as u64 * 2,
            "{}",
            file.len()
        );
        // Only variants of the forgotten keys are banned.
        let first = |bans: &Bans| bans.is_banned(0, &hash(0), || ("b", b"/a"));
        assert!(!first(&bans) && bans.is_banned_variant(0));
        let last = 3 * MAX_ABSENT as u64;
        for bans in [bans, Bans::load(&LocalFolder, dir.path(), true).unwrap()] {
            assert!(bans.is_banned(last - 1, &hash(last - 1), || ("b", b"/a")));
            assert!(bans.is_banned_variant(MAX_ABSENT as u64));
            assert!(!bans.is_banned_variant(last));
        }
    }

    #[test]
    fn the_file_does_not_grow_with_repetition() {
        let dir = tempfile::tempdir().unwrap();
        let bans = Bans::load(&LocalFolder, dir.path(), true).unwrap();
        for generation in 0..2_500 {
            bans.ban(generation, prefix("/same")).unwrap();
        }
        assert!(bans.file.lock().records <= SLACK + 2);
        assert_eq!(
            Bans::load(&LocalFolder, dir.path(), true).unwrap().newest(),
            2_499
        );
    }
}
