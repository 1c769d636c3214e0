//! The files `epoch` and `size` of a cache folder.

use std::io;
use std::path::Path;

use crate::cache::io::folder::{replace_small, FolderAccess};
use crate::cache::store::layout::Layout;

/// Longest of these files that is read, in bytes.
const MAX_LEN: u64 = 1024;

/// The last epoch of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Last {
    /// According to the file.
    noted: Option<u32>,
    /// According to the file, or without it to the entries; `None`: there are none.
    epoch: Option<u32>,
}

/// The last epoch of the folder `path`. Blocks.
pub(crate) fn last(access: &dyn FolderAccess, path: &Path, layout: &Layout) -> io::Result<Last> {
    let noted = match access.read_file(&path.join("epoch"), MAX_LEN) {
        Ok(text) => parse_epoch(&text),
        // It is replaced.
        Err(e) if e.kind() == io::ErrorKind::InvalidData => None,
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let epoch = noted.or_else(|| layout.highest_generation(access).map(epoch_of));
    Ok(Last { noted, epoch })
}

impl Last {
    /// The number; `None`: there was none, and there are no entries.
    pub(crate) fn epoch(&self) -> Option<u32> {
        self.epoch
    }

    /// Bytes of the entries when the last run was closed; `None`: it was not closed, or the file
    /// cannot be read. Blocks.
    pub(crate) fn closed_size(&self, access: &dyn FolderAccess, path: &Path) -> Option<u64> {
        let text = access.read_file(&path.join("size"), MAX_LEN).ok()?;
        let (epoch, size) = parse_size(&text)?;
        (self.noted == Some(epoch)).then_some(size)
    }
}

/// The epoch after all of these.
pub(crate) fn after(earlier: impl IntoIterator<Item = u32>) -> io::Result<u32> {
    let newest = earlier.into_iter().max().unwrap_or(0);
    newest.checked_add(1).ok_or_else(|| {
        io::Error::other("no epoch follows the one in its files; delete the cache folder")
    })
}

/// Note the epoch that begins. Blocks.
pub(crate) fn begin(access: &dyn FolderAccess, path: &Path, epoch: u32) -> io::Result<()> {
    access.replace_or_overwrite(&path.join("epoch"), text_of(epoch).as_bytes())
}

/// Note the present epoch again, durably unless the disk is full. Blocks.
pub(crate) fn renew(access: &dyn FolderAccess, path: &Path, epoch: u32) -> io::Result<()> {
    replace_small(access, &path.join("epoch"), text_of(epoch).as_bytes())
}

fn text_of(epoch: u32) -> String {
    format!("{epoch} {epoch}\n")
}

/// The first generation of an epoch: greater than any of an earlier one, however the clock jumps.
pub(crate) fn first_generation(epoch: u32) -> u64 {
    u64::from(epoch) << 32
}

/// Note the bytes of the entries for the next run. `last` is the last generation of this one.
pub(crate) fn note_size(
    access: &dyn FolderAccess,
    path: &Path,
    last: u64,
    size: u64,
) -> io::Result<()> {
    let epoch = epoch_of(last);
    let text = format!("{epoch} {size} {epoch} {size}\n");
    access.replace_or_overwrite(&path.join("size"), text.as_bytes())
}

/// Epoch and bytes, which the file contains twice; `None`: it is damaged.
fn parse_size(text: &[u8]) -> Option<(u32, u64)> {
    let text = std::str::from_utf8(text).ok()?;
    let words: Vec<_> = text.strip_suffix('\n')?.split(' ').collect();
    match words[..] {
        [epoch, size, epoch_again, size_again] if (epoch, size) == (epoch_again, size_again) => {
            Some((epoch.parse().ok()?, size.parse().ok()?))
        }
        _ => None,
    }
}

/// The number that the file contains twice; `None`: it is damaged. A lower number would give
/// new entries generations of older ones.
fn parse_epoch(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    let (number, again) = text.strip_suffix('\n')?.split_once(' ')?;
    (number == again).then(|| number.parse().ok())?
}

/// The epoch of a generation.
pub(crate) fn epoch_of(generation: u64) -> u32 {
    (generation >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_size_is_none() {
        assert_eq!(parse_size(b"3 500 3 500\n"), Some((3, 500)));
        for text in [
            "",
            "3 500\n",
            "3 500 3 500",
            "3 500 3 50\n",
            "3 500 2 500\n",
            "a b a b\n",
        ] {
            assert_eq!(parse_size(text.as_bytes()), None, "{text}");
        }
    }
}
