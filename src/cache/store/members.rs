//! The file `members` of a folder of a cache that has several: which folders they are.
//!
//! A purge reaches a folder that is absent at that time when it is back: then the bans of all folders
//! are joined. That works as long as the others have forgotten no ban since. So each folder lists the
//! others with the last epoch in which they were used, and those that miss something are struck off.
//! The format is in docs/on-disk-format.md.

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::Path;

use crate::cache::io::folder::{replace_small, FolderAccess};

/// Longest file that is read, in bytes.
const MAX_LEN: u64 = 64 * 1024;

/// Most folders of a cache.
pub(crate) const MAX_FOLDERS: usize = 256;

/// Most lines of folders. One whose last epoch is uncertain has two.
const MAX_LINES: usize = 2 * MAX_FOLDERS;

/// A folder of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// A random number, which the folder keeps wherever it is mounted.
    pub id: u128,
    /// The last epoch in which it was used.
    pub epoch: u32,
    /// The hash of its path in the configuration.
    pub path: u64,
}

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Members {
    /// The folder of the file.
    pub own: Member,
    /// Entries of a lower generation are not part of the cache.
    pub floor: u64,
    /// The other folders. One whose last epoch is uncertain is there with each.
    pub others: Vec<Member>,
}

/// A new identity.
pub(crate) fn new_id() -> u128 {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    half() << 64 | half()
}

// === impl Members ===

impl Members {
    /// Read the file of the folder `path`. `None`: there is none, or it is damaged.
    pub(crate) fn load(access: &dyn FolderAccess, path: &Path) -> io::Result<Option<Members>> {
        match access.read_file(&path.join("members"), MAX_LEN) {
            Ok(text) => Ok(Members::parse(&text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Write the file, durably unless the disk is full.
    pub(crate) fn store(&self, access: &dyn FolderAccess, path: &Path) -> io::Result<()> {
        replace_small(access, &path.join("members"), self.to_text().as_bytes())
    }

    /// True if a folder is listed with this epoch.
    pub(crate) fn lists(&self, id: u128, epoch: u32) -> bool {
        let is_it = |member: &Member| (member.id, member.epoch) == (id, epoch);
        self.others.iter().any(is_it)
    }

    /// The lowest epoch that a folder is listed with.
    pub(crate) fn first_epoch_of(&self, id: u128) -> Option<u32> {
        let of = self.others.iter().filter(|member| member.id == id);
        of.map(|member| member.epoch).min()
    }

    fn to_text(&self) -> String {
        let mut text = format!("floor {:016x}\n", self.floor);
        for member in std::iter::once(&self.own).chain(self.others.iter().take(MAX_LINES)) {
            let Member { id, epoch, path } = member;
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{id:032x} {epoch} {path:016x}");
        }
        let crc32 = crc32fast::hash(text.as_bytes());
        let _ = writeln!(text, "crc32 {crc32:08x}");
        text
    }

    fn parse(text: &[u8]) -> Option<Members> {
        let text = std::str::from_utf8(text).ok()?;
        let (lines, last) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let expected = last.strip_prefix("crc32 ")?;
        let covered = &text[..lines.len() + 1];
        if u32::from_str_radix(expected, 16).ok()? != crc32fast::hash(covered.as_bytes()) {
            return None;
        }
        let mut lines = lines.lines();
        let floor = lines.next()?.strip_prefix("floor ")?;
        let mut members = lines.map(Member::parse).collect::<Option<Vec<_>>>()?;
        if members.is_empty() {
            return None;
        }
        Some(Members {
            floor: u64::from_str_radix(floor, 16).ok()?,
            own: members.remove(0),
            others: members,
        })
    }
}

impl Member {
    fn parse(line: &str) -> Option<Member> {
        let words: Vec<_> = line.split(' ').collect();
        let [id, epoch, path] = words[..] else {
            return None;
        };
        Some(Member {
            id: u128::from_str_radix(id, 16).ok()?,
            epoch: epoch.parse().ok()?,
            path: u64::from_str_radix(path, 16).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(epoch: u32) -> Member {
        Member {
            id: new_id(),
            epoch,
            path: 7,
        }
    }

    #[test]
    fn a_list_is_read_as_written_or_not_at_all() {
        for others in 0..3 {
            let members = Members {
                own: member(9),
                floor: 3 << 32,
                others: (0..others).map(member).collect(),
            };
            let text = members.to_text().into_bytes();
            assert_eq!(Members::parse(&text), Some(members));
            for len in 0..text.len() {
                assert_eq!(Members::parse(&text[..len]), None);
            }
            for at in 0..text.len() {
                let mut damaged = text.clone();
                damaged[at] ^= 1;
                assert_eq!(Members::parse(&damaged), None, "at {at}");
            }
        }
    }

    #[test]
    fn identities_differ() {
        assert_ne!(new_id(), new_id());
        assert_ne!(new_id() as u64, (new_id() >> 64) as u64);
    }
}
