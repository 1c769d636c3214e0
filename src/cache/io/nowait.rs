//! Opening an entry without waiting: when names and contents are cached anyway,
//! a way through other threads would take longer than the work.

use crate::cache::store::layout::Layout;
use crate::cache::{EntryId, OpenEntry};

/// Open an entry as [`DiskBackend::open`](crate::cache::DiskBackend::open) does, if
/// nothing of it has to be read from the disk. `None`: it has to be, or
/// something is wrong, which the backend will tell.
#[cfg(target_os = "linux")]
pub fn open_now(layout: &Layout, id: &EntryId, prefetch: u64) -> Option<OpenEntry> {
    use crate::cache::state::body_file::read_now;
    use crate::cache::store::format::{EntryMeta, MAX_META_LEN};

    let (meta, meta_len) = open_cached(&layout.meta(id))?;
    if meta_len > MAX_META_LEN {
        return None;
    }
    let meta = EntryMeta::decode(&read_now(&meta, 0, meta_len as usize)?).ok()?;
    let (body, body_len) = open_cached(&layout.body(id))?;
    let prefetched = if meta.body_len <= prefetch && body_len == meta.body_len {
        Some(read_now(&body, 0, body_len as usize)?.into())
    } else {
        None
    };
    crate::cache::io::tokio_fs::no_read_ahead(&body);
    OpenEntry::checked(id, meta, body, body_len, prefetched).ok()
}

/// Elsewhere opening always takes the way through other threads.
#[cfg(not(target_os = "linux"))]
pub fn open_now(_layout: &Layout, _id: &EntryId, _prefetch: u64) -> Option<OpenEntry> {
    None
}

/// A regular file and its length, if its path is in the kernel's cache
/// (openat2(2), RESOLVE_CACHED; Linux 5.12).
#[cfg(target_os = "linux")]
fn open_cached(path: &std::path::Path) -> Option<(std::fs::File, u64)> {
    use rustix::fs::{openat2, Mode, OFlags, ResolveFlags, CWD};

    // See regular.rs.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let file = std::fs::File::from(file);
    let stat = file.metadata().ok()?;
    stat.is_file().then_some((file, stat.len()))
}
