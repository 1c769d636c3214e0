//! Opening an entry or its body, and checking the length of a file, without waiting.
//!
//! When names and contents are cached anyway, a detour through other threads takes longer
//! than the work itself.

#[cfg(target_os = "linux")]
use std::path::Path;

use bytes::Bytes;

use crate::cache::io::backend::OpenFiles;
use crate::cache::io::files::EntryFiles;
use crate::cache::io::folder_fd::FolderFd;

/// Open an entry, whose files are [relative](Layout::files_below) to this folder, as
/// [`DiskBackend::open`](crate::cache::DiskBackend::open) does, if nothing has to be read from the disk.
/// `None`: the backend has to open it, or to report what is wrong.
///
/// [`Layout::files_below`]: crate::cache::store::layout::Layout::files_below
#[cfg(target_os = "linux")]
pub(crate) fn open_nowait(
    folder: &FolderFd,
    files: &EntryFiles,
    prefetch: u64,
) -> Option<OpenFiles> {
    use crate::cache::io::files::MAX_META_LEN;
    use crate::cache::io::page_cache::{no_read_ahead, read_nowait};

    let (meta, meta_len) = open_cached(folder, &files.meta())?;
    if meta_len > MAX_META_LEN {
        return None;
    }
    let meta = read_nowait(&meta, 0, meta_len as usize)?;
    let (body, body_len) = open_cached(folder, &files.body())?;
    let prefetched = if body_len <= prefetch {
        Some(read_nowait(&body, 0, body_len as usize)?.into())
    } else {
        None
    };
    no_read_ahead(&body);
    Some(OpenFiles {
        meta,
        body: body.into(),
        body_len,
        prefetched,
    })
}

/// Other systems cannot tell whether a file is cached.
#[cfg(not(target_os = "linux"))]
pub(crate) fn open_nowait(
    _folder: &FolderFd,
    _files: &EntryFiles,
    _prefetch: u64,
) -> Option<OpenFiles> {
    None
}

/// Open the body of an entry as [`DiskBackend::open_body`](crate::cache::DiskBackend::open_body)
/// does, if nothing has to be read from the disk and it has this length. `None`: the backend has
/// to open it, or to report what is wrong.
///
/// The type of the file is not checked: a file that is not regular has another length, or cannot be
/// read at an offset.
#[cfg(target_os = "linux")]
pub(crate) fn open_body_nowait(
    folder: &FolderFd,
    files: EntryFiles,
    len: u64,
) -> Option<std::fs::File> {
    let body = open_if_cached(folder, &files.into_body())?;
    if !has_len(&body, len) {
        return None;
    }
    crate::cache::io::page_cache::no_read_ahead(&body);
    Some(body)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn open_body_nowait(
    _folder: &FolderFd,
    _files: EntryFiles,
    _len: u64,
) -> Option<std::fs::File> {
    None
}

/// Read the whole body of an entry, if nothing has to come from the disk and it has this length. `None`:
/// as for [`open_body_nowait`]. `once`: it is sent once, and not kept.
#[cfg(target_os = "linux")]
pub(crate) fn read_body_nowait(
    folder: &FolderFd,
    files: EntryFiles,
    len: u64,
    once: bool,
) -> Option<Bytes> {
    use crate::cache::io::page_cache::read_whole_nowait;
    use crate::cache::io::read_buffers::ReadBuffer;

    let len = usize::try_from(len).ok()?;
    let file = open_if_cached(folder, &files.into_body())?;
    if once {
        let mut body = ReadBuffer::with_room(len);
        return read_whole_nowait(&file, len, body.bytes()).then(|| body.into());
    }
    let mut body = Vec::with_capacity(len);
    read_whole_nowait(&file, len, &mut body).then(|| body.into())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read_body_nowait(
    _folder: &FolderFd,
    _files: EntryFiles,
    _len: u64,
    _once: bool,
) -> Option<Bytes> {
    None
}

/// A regular file and its length, if the kernel has cached its path
/// (openat2(2), RESOLVE_CACHED; Linux 5.12).
#[cfg(target_os = "linux")]
fn open_cached(folder: &FolderFd, path: &Path) -> Option<(std::fs::File, u64)> {
    let file = open_if_cached(folder, path)?;
    let stat = file.metadata().ok()?;
    stat.is_file().then_some((file, stat.len()))
}

#[cfg(target_os = "linux")]
fn open_if_cached(folder: &FolderFd, path: &Path) -> Option<std::fs::File> {
    use rustix::fs::{openat2, Mode, OFlags, ResolveFlags};
    use rustix::io::Errno;

    let folder = folder.get();
    let folder = folder.as_deref()?;
    // The flags of `regular`.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    // Without links and "..", the path cannot leave the folder. RESOLVE_BENEATH ensures the same, but makes each
    // such open take a lock that the whole machine shares (`mount_lock`, in `path_is_under()` of
    // `fs/namespace.c`).
    let resolve = ResolveFlags::CACHED | ResolveFlags::NO_SYMLINKS;
    let open = |more| openat2(folder, path, flags | more, Mode::empty(), resolve);
    let opened = match open(OFlags::NOATIME) {
        // It belongs to another user.
        Err(Errno::PERM) => open(OFlags::empty()),
        opened => opened,
    };
    opened.ok().map(Into::into)
}

/// True if a file has this length, as far as the kernel knows without asking a server.
#[cfg(target_os = "linux")]
pub(crate) fn has_len(file: &std::fs::File, len: u64) -> bool {
    use rustix::fs::{statx, AtFlags, StatxFlags};
    use rustix::io::ioctl_fionread;
    // The bytes after the position of the descriptor, in 32 bits. For a regular file,
    // the kernel knows them without its file system (`do_vfs_ioctl()` of
    // `fs/ioctl.c`), in half of the time. The position may have been moved, so this
    // can only confirm the length. It also confirms a file that has grown by a
    // multiple of 4 GiB, which does no harm.
    let left = ioctl_fionread(file).map(|left| left as u32);
    if left.is_ok_and(|left| u64::from(left) == len) {
        return true;
    }
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(file, "", flags, StatxFlags::SIZE).is_ok_and(|stat| stat.stx_size == len)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn has_len(file: &std::fs::File, len: u64) -> bool {
    file.metadata().is_ok_and(|stat| stat.len() == len)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_told_wherever_the_descriptor_stands() {
        use std::io::{Seek, SeekFrom};
        let body = tempfile::tempfile().unwrap();
        for len in [0, 1, 4096, u64::from(u32::MAX), 1 << 32, 5 << 30] {
            body.set_len(len).unwrap();
            for position in [0, 1, len] {
                let mut file = &body;
                file.seek(SeekFrom::Start(position)).unwrap();
                assert!(has_len(&body, len), "{len} at {position}");
                assert!(!has_len(&body, len + 1), "{len} at {position}");
                if position == 0 {
                    assert!(!has_len(&body, len.wrapping_sub(1)), "{len} at 0");
                }
            }
        }
    }

    #[test]
    fn no_file_outside_the_folder_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["cache/v2/ab", "outside"] {
            std::fs::create_dir_all(at(name)).unwrap();
            std::fs::write(at(name).join("ab.01.body"), "0123456789").unwrap();
        }
        let folder = FolderFd::open(&at("cache"));
        let opens = |shard: &str| {
            let files = EntryFiles::new(&Path::new("v2").join(shard), "ab.01");
            open_body_nowait(&folder, files, 10).is_some()
        };
        assert!(opens("ab"));
        std::os::unix::fs::symlink(at("outside"), at("cache/v2/absolute")).unwrap();
        std::os::unix::fs::symlink("../../outside", at("cache/v2/relative")).unwrap();
        assert!(!opens("absolute") && !opens("relative"));

        std::fs::rename(at("cache"), at("away")).unwrap();
        std::fs::create_dir_all(at("cache/v2/new")).unwrap();
        std::fs::write(at("cache/v2/new/ab.01.body"), "0123456789").unwrap();
        assert!(opens("ab"), "it has moved");
        assert!(!opens("new"), "it is in another folder");
        folder.renew(&at("cache"));
        assert!(opens("new") && !opens("ab"));
        std::fs::remove_dir_all(at("cache")).unwrap();
        folder.renew(&at("cache"));
        assert!(!opens("new"));
    }

    /// Pages that the kernel reads ahead count as cached before they are read.
    #[test]
    fn a_body_is_not_read_ahead() {
        use std::fs::File;
        use std::os::unix::fs::FileExt;

        const LEN: u64 = 1 << 20;
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let files = EntryFiles::new(Path::new(""), "ab.01");
        let path = folder.path().join(files.body());
        // The kernel knows the name of a new file.
        let cold = File::create(&path).unwrap();
        cold.write_all_at(&vec![7; LEN as usize], 0).unwrap();
        cold.sync_all().unwrap();
        let rest_is_read = |file: &File| {
            rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            file.read_exact_at(&mut [0], 0).unwrap();
            crate::cache::io::page_cache::is_resident(file, &(LEN / 16..LEN / 16 + 1))
        };
        if !rest_is_read(&File::open(&path).unwrap()) {
            println!("this file system does not read ahead: nothing to tell apart");
            return;
        }
        let body = open_body_nowait(&FolderFd::open(folder.path()), files, LEN)
            .expect("its name is cached");
        assert!(!rest_is_read(&body));
    }

    #[test]
    fn a_read_leaves_the_access_time_alone() {
        use rustix::fs::{utimensat, AtFlags, Timespec, Timestamps, CWD};
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("body");
        std::fs::write(&path, [1; 5000]).unwrap();
        // So old that the next read is noted, even by a file system with `relatime`.
        let old = Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: old,
            last_modification: old,
        };
        let by_backend = std::fs::File::open(&path).unwrap();
        crate::cache::io::page_cache::prepare(&by_backend);
        for body in [
            by_backend,
            open_if_cached(&FolderFd::open(folder.path()), Path::new("body")).unwrap(),
        ] {
            utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
            let mut byte = [0];
            crate::cache::io::page_cache::read_exact_at(&body, 0, &mut byte).unwrap();
            let accessed = body.metadata().unwrap().accessed().unwrap();
            let since_1970 = accessed.duration_since(std::time::UNIX_EPOCH).unwrap();
            assert_eq!(since_1970.as_secs(), old.tv_sec as u64);
        }
    }
}
