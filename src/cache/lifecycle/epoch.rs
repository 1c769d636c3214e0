//! The files `epoch` and `size` of a cache folder.

use std::io;
use std::path::Path;

use crate::cache::io::folder::FolderAccess;
use crate::cache::store::layout::Layout;

/// Longest of these files that is read, in bytes.
const MAX_LEN: u64 = 1024;

/// The first generation of a run: greater than any of an earlier run, however the clock jumps.
/// `newest_ban` is the highest generation of a ban.
pub(crate) fn next(
    access: &dyn FolderAccess,
    path: &Path,
    layout: &Layout,
    newest_ban: u64,
) -> io::Result<u64> {
    let file = path.join("epoch");
    let last = match access.read_file(&file, MAX_LEN) {
        Ok(text) => parse_epoch(&text),
        // It is replaced.
        Err(e) if e.kind() == io::ErrorKind::InvalidData => None,
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    // Without the file, the generations on the disk and those of the bans determine it.
    let last = last
        .unwrap_or_else(|| layout.highest_generation(access).map_or(0, epoch_of))
        .max(epoch_of(newest_ban));
    let epoch = last.checked_add(1).ok_or_else(|| {
        io::Error::other("the cache has been opened 2^32 times; delete the folder")
    })?;
    access.replace_or_overwrite(&file, format!("{epoch} {epoch}\n").as_bytes())?;
    Ok(u64::from(epoch) << 32)
}

/// Bytes of the entries when the run before `first_generation` was closed; `None`: it was not
/// closed, or the file cannot be read.
pub(crate) fn closed_size(
    access: &dyn FolderAccess,
    path: &Path,
    first_generation: u64,
) -> Option<u64> {
    let text = access.read_file(&path.join("size"), MAX_LEN).ok()?;
    let (epoch, size) = parse_size(&text)?;
    (epoch.checked_add(1)? == epoch_of(first_generation)).then_some(size)
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

fn epoch_of(generation: u64) -> u32 {
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
