//! Operations of the kernel, in one request or in several.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicU8;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};

/// Bytes that are read at once to bring a file into the page cache.
const LOAD_PIECE: u64 = 64 * 1024;

/// Bytes that the disk is told to read ahead of that.
const LOAD_WINDOW: u64 = 1024 * 1024;

/// Destination of reads that bring a file into the page cache. It is never read, so all loads
/// share it.
static LOAD_SCRATCH: [AtomicU8; LOAD_PIECE as usize] =
    [const { AtomicU8::new(0) }; LOAD_PIECE as usize];

/// Longest read of one request, in bytes. The kernel reads less than 2 GiB at once, see
/// read(2).
const MAX_READ: usize = 1 << 30;

/// Most pieces of one write: `UIO_MAXIOV` of `<linux/uio.h>`.
const MAX_PIECES: usize = 1024;

/// Work for the kernel, in one request or in several, one after the other.
///
/// # Safety
///
/// A request names only memory and files that the operation owns, and that stay in place and
/// unchanged when the operation is moved.
pub(super) unsafe trait Operation: Send + 'static {
    type Output: Send;

    /// The next request to the kernel.
    fn request(&mut self) -> squeue::Entry;

    /// Take the answer of the kernel. `None`: another request follows.
    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<Self::Output>>;
}

/// An operation of one request, with the values that the request names.
pub(super) struct Single<K, T> {
    request: squeue::Entry,
    kept: Option<K>,
    output: fn(K, u32) -> T,
}

// SAFETY: the functions below that create one keep the values that its request names, on the
// heap.
unsafe impl<K: Send + 'static, T: Send + 'static> Operation for Single<K, T> {
    type Output = T;

    fn request(&mut self) -> squeue::Entry {
        self.request.clone()
    }

    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<T>> {
        let kept = self.kept.take()?;
        Some(answer.map(|value| (self.output)(kept, value)))
    }
}

const HERE: Fd = Fd(libc::AT_FDCWD);

fn fd(file: &File) -> Fd {
    Fd(file.as_raw_fd())
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn single<K>(request: squeue::Entry, kept: K) -> Single<K, ()> {
    Single {
        request,
        kept: Some(kept),
        output: |_, _| (),
    }
}

pub(super) fn open(path: &Path, flags: i32) -> io::Result<Single<CString, File>> {
    let path = c_path(path)?;
    Ok(Single {
        request: opcode::OpenAt::new(HERE, path.as_ptr())
            .flags(flags | libc::O_CLOEXEC | libc::O_LARGEFILE)
            .mode(0o666)
            .build(),
        kept: Some(path),
        output: |_, descriptor| {
            // SAFETY: the kernel has just opened it, and nothing else knows it.
            unsafe { File::from_raw_fd(descriptor as i32) }
        },
    })
}

pub(super) fn create_new(path: &Path) -> io::Result<Single<CString, File>> {
    open(path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL)
}

/// Memory that statx(2) fills.
pub(super) type StatBuffer = Box<MaybeUninit<libc::statx>>;

/// The length of a file. `None`: it is not a regular file.
pub(super) fn length(file: &Arc<File>) -> Single<(Arc<File>, StatBuffer), Option<u64>> {
    let mut stat = Box::new(MaybeUninit::<libc::statx>::uninit());
    Single {
        request: opcode::Statx::new(fd(file), c"".as_ptr(), stat.as_mut_ptr().cast())
            .flags(libc::AT_EMPTY_PATH)
            .mask(libc::STATX_TYPE | libc::STATX_SIZE)
            .build(),
        kept: Some((file.clone(), stat)),
        output: |(_, stat), _| {
            // SAFETY: statx(2) has succeeded, and then fills all of it.
            let stat = unsafe { stat.assume_init() };
            (u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFREG).then_some(stat.stx_size)
        },
    }
}

/// Reserve disk space. The length of the file does not change.
pub(super) fn reserve_space(file: &Arc<File>, len: u64) -> Single<Arc<File>, ()> {
    let request = opcode::Fallocate::new(fd(file), len)
        .mode(libc::FALLOC_FL_KEEP_SIZE)
        .build();
    single(request, file.clone())
}

pub(super) fn sync_data(file: &Arc<File>) -> Single<Arc<File>, ()> {
    let request = opcode::Fsync::new(fd(file))
        .flags(FsyncFlags::DATASYNC)
        .build();
    single(request, file.clone())
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<Single<(CString, CString), ()>> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    let request = opcode::RenameAt::new(HERE, from.as_ptr(), HERE, to.as_ptr()).build();
    Ok(single(request, (from, to)))
}

pub(super) fn unlink(path: &Path) -> io::Result<Single<CString, ()>> {
    let path = c_path(path)?;
    let request = opcode::UnlinkAt::new(HERE, path.as_ptr()).build();
    Ok(single(request, path))
}

pub(super) fn make_folder(path: &Path) -> io::Result<Single<CString, ()>> {
    let path = c_path(path)?;
    let request = opcode::MkDirAt::new(HERE, path.as_ptr())
        .mode(0o777)
        .build();
    Ok(single(request, path))
}

/// Read into memory.
pub(super) struct Read {
    file: Arc<File>,
    offset: u64,
    len: usize,
    /// True if fewer bytes than `len` are an error.
    exact: bool,
    data: Vec<u8>,
}

impl Read {
    pub(super) fn exact(file: &Arc<File>, offset: u64, len: usize) -> Self {
        Read {
            file: file.clone(),
            offset,
            len,
            exact: true,
            data: Vec::new(),
        }
    }

    /// Read to the end of the file, at most `len` bytes.
    pub(super) fn up_to(file: &Arc<File>, offset: u64, len: usize) -> Self {
        Read {
            exact: false,
            ..Read::exact(file, offset, len)
        }
    }
}

// SAFETY: `data` is on the heap, and not touched between request and answer;
// `file` is open as long as it is owned.
unsafe impl Operation for Read {
    type Output = Vec<u8>;

    fn request(&mut self) -> squeue::Entry {
        let rest = self.len - self.data.len();
        self.data.reserve_exact(rest);
        let free = self.data.spare_capacity_mut().as_mut_ptr().cast();
        let offset = self.offset + self.data.len() as u64;
        opcode::Read::new(fd(&self.file), free, rest.min(MAX_READ) as u32)
            .offset(offset)
            .build()
    }

    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<Vec<u8>>> {
        match answer {
            Err(e) => return Some(Err(e)),
            Ok(0) if self.exact => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(0) => return Some(Ok(mem::take(&mut self.data))),
            Ok(read) => {
                let len = self.data.len() + read as usize;
                // SAFETY: the kernel has written this many bytes after the old end, and was asked
                // for at most the spare capacity.
                unsafe { self.data.set_len(len) };
            }
        }
        (self.data.len() == self.len).then(|| Ok(mem::take(&mut self.data)))
    }
}

/// Write all pieces, one after the other.
pub(super) struct Write {
    file: Arc<File>,
    offset: u64,
    pub(super) data: VecDeque<Bytes>,
    pieces: Pieces,
}

/// Addresses of the pieces, for a request.
struct Pieces(Vec<libc::iovec>);

// SAFETY: what the pointers point to is owned by the same `Write`.
unsafe impl Send for Pieces {}

impl Write {
    pub(super) fn new(file: &Arc<File>, offset: u64, mut data: Vec<Bytes>) -> Self {
        data.retain(|piece| !piece.is_empty());
        Write {
            file: file.clone(),
            offset,
            data: data.into(),
            pieces: Pieces(Vec::new()),
        }
    }
}

// SAFETY: `pieces` and the bytes of `data` are on the heap, and not touched
// between request and answer; `file` is open as long as it is owned.
unsafe impl Operation for Write {
    type Output = ();

    fn request(&mut self) -> squeue::Entry {
        let pieces = &mut self.pieces.0;
        pieces.clear();
        pieces.extend(self.data.iter().take(MAX_PIECES).map(|piece| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        }));
        opcode::Writev::new(fd(&self.file), pieces.as_ptr(), pieces.len() as u32)
            .offset(self.offset)
            .build()
    }

    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<()>> {
        let mut written = match answer {
            Err(e) => return Some(Err(e)),
            Ok(0) => return Some(Err(io::ErrorKind::WriteZero.into())),
            Ok(written) => written as usize,
        };
        self.offset += written as u64;
        while let Some(piece) = self.data.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return None;
            }
            written -= piece.len();
            self.data.pop_front();
        }
        Some(Ok(()))
    }
}

/// Make the page cache read a range, and read it to know when that is done.
pub(super) struct Load {
    file: Arc<File>,
    offset: u64,
    end: u64,
    /// End of the range that the disk has been told to read.
    told: u64,
    telling: bool,
}

impl Load {
    pub(super) fn new(file: &Arc<File>, offset: u64, len: u64) -> Self {
        Load {
            file: file.clone(),
            offset,
            end: offset + len,
            told: offset,
            telling: false,
        }
    }
}

// SAFETY: `LOAD_SCRATCH` may be written by anybody at any time; `file` is open
// as long as it is owned.
unsafe impl Operation for Load {
    type Output = ();

    fn request(&mut self) -> squeue::Entry {
        let file = fd(&self.file);
        self.telling = self.offset == self.told;
        if self.telling {
            let window = LOAD_WINDOW.min(self.end - self.offset);
            return opcode::Fadvise::new(file, window as libc::off_t, libc::POSIX_FADV_WILLNEED)
                .offset(self.offset)
                .build();
        }
        let piece = LOAD_PIECE.min(self.told - self.offset);
        opcode::Read::new(file, LOAD_SCRATCH.as_ptr().cast_mut().cast(), piece as u32)
            .offset(self.offset)
            .build()
    }

    fn answer(&mut self, answer: io::Result<u32>) -> Option<io::Result<()>> {
        if self.telling {
            // The answer to advice does not matter.
            self.told = self.end.min(self.offset + LOAD_WINDOW);
            return None;
        }
        match answer {
            Err(e) => return Some(Err(e)),
            Ok(0) => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => self.offset += u64::from(read),
        }
        (self.offset == self.end).then_some(Ok(()))
    }
}
