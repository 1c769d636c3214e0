//! A disk that a test can slow down, break and fill.

use std::{
    collections::{hash_map, HashMap},
    env,
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{chown, DirEntryExt, FileExt, MetadataExt, PermissionsExt},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, Once},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::{
    fs::{AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, StatVfs, Timespec, Timestamps},
    mount::UnmountFlags,
    process::Resource,
};
use tempfile::TempDir;

/// The time for which the kernel may trust a name or the attributes of a file.
const TTL: Duration = Duration::from_secs(3600);

/// The unit of `statfs`.
const BLOCK: u32 = 4096;

/// Contents stay cached from one open to the next, as on any disk, and a close
/// asks nothing.
const OPENED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

/// Unmounts `$0` when the process that started it is gone, however it went.
///
/// The end of the input says so, unless a thread of that process is stuck in a
/// request to its own file system, for then no descriptor of it is ever closed.
/// Such a thread has a SIGKILL pending (bit 8) and cannot die of it.
const JANITOR: &str = r#"
while timeout 1 cat >/dev/null; [ $? -eq 124 ]; do
    grep -qs '^SigPnd:.*[13579bdf]..$' /proc/$PPID/task/*/status && break
done
umount -fl "$0"
"#;

/// The proxy believes for 100 ms that a page which it has seen in the page cache is still there (`MOMENT` in
/// src/cache/state/found_resident.rs). Real pages leave because no one has used them for long.
const LOOK_COUNTS: Duration = Duration::from_millis(150);

/// A file system that passes all it is asked on to a folder, with the delays,
/// failures and limits that the test sets. It is mounted on a temporary folder,
/// keeps its files in another, and is unmounted when dropped, or when the
/// process dies.
///
/// The kernel caches what it serves as it does for any disk: contents, names
/// and attributes come here once, until [`forget_pages`](Self::forget_pages).
/// It reads ahead, so that a read(2) is no [`Op::Read`], or one, or several.
/// Names that do not exist are looked up each time.
///
/// Each request has a thread of its own, so that one that is delayed holds up
/// no other, but where the kernel itself lets them wait for one another: for a
/// page that is being read, or a folder that is being changed.
///
/// FUSE is no ext4 (Linux 6.18): preadv2(2) with RWF_NOWAIT is EOPNOTSUPP, page
/// cached or not; openat2(2) with RESOLVE_CACHED is EAGAIN for a name that the
/// kernel does not know, as it should be, but for one that it knows waits for
/// [`Op::Open`].
pub struct FaultyDisk {
    disk: Arc<Disk>,
    session: Option<BackgroundSession>,
    janitor: Child,
    point: TempDir,
    backing: TempDir,
}

/// The kernel's requests to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Of a name that the kernel does not know (yet).
    Lookup,
    /// Of a file that exists.
    Open,
    Read,
    Write,
    /// Of a file or a folder.
    Fsync,
    /// A file is made, and opened with it.
    Create,
    Rename,
    /// Of a file or a folder.
    Unlink,
    Fallocate,
    Mkdir,
    Readdir,
}

/// The files as they are, and what is wrong with the disk.
struct Disk {
    faults: Arc<Faults>,
    tables: Mutex<Tables>,
}

/// A file opened with O_PATH: stays the same file whatever becomes of its name, and
/// keeps its inode number, by which the kernel knows it, from being reused.
type Pin = Arc<File>;

/// Looked up and changed under one lock, which is never held over I/O.
#[derive(Default)]
struct Tables {
    nodes: HashMap<u64, Node>,
    files: HashMap<u64, Arc<File>>,
    listings: HashMap<u64, Arc<Vec<Listed>>>,
    last_handle: u64,
    space: Space,
}

/// A file or folder that the kernel knows.
struct Node {
    pin: Pin,
    /// The number of times that the kernel was told of it and has not forgotten.
    lookups: u64,
}

struct Listed {
    ino: u64,
    kind: FileType,
    name: OsString,
}

/// The space in use, and its limit.
#[derive(Default)]
struct Space {
    limit: Option<u64>,
    stored: u64,
    files: HashMap<u64, Extent>,
}

/// The space of a file: all up to the last byte that was written or allocated.
#[derive(Default)]
struct Extent {
    bytes: u64,
    opens: u64,
    unlinked: bool,
}

#[derive(Default)]
struct Faults {
    plan: Mutex<Plan>,
    healed: Condvar,
}

#[derive(Default)]
struct Plan {
    ops: HashMap<Op, OpPlan>,
    /// Reads that failed once, and that the kernel is going to try again.
    torn: Vec<(Bytes, Errno)>,
    /// Files that cannot be read, by inode number.
    unreadable: HashMap<u64, (Pin, Errno)>,
    heals: u64,
}

#[derive(Default)]
struct OpPlan {
    seen: u64,
    delay: Duration,
    failure: Option<Errno>,
    /// Failures of one op each, by its number in `seen`.
    single: HashMap<u64, Errno>,
}

/// Some bytes of a file.
struct Bytes {
    ino: u64,
    range: Range<u64>,
    /// No other file has the inode number as long as these bytes are spoken of.
    _pin: Option<Pin>,
}

/// The faults that one op has before it.
struct Turn {
    faults: Arc<Faults>,
    heals: u64,
    until: Option<Instant>,
    failure: Option<Errno>,
}

/// Hands requests to threads.
struct Server(Arc<Disk>);

/// A reply that can be an error.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

// === impl FaultyDisk ===

impl FaultyDisk {
    /// None, after saying why on one line, where FUSE is not available; panics
    /// if the environment has `REQUIRE_FUSE`.
    ///
    /// Raises the limit on open files as far as it goes: each file that the
    /// kernel knows takes one.
    pub fn mount() -> Option<Self> {
        match Self::try_mount() {
            Ok(disk) => Some(disk),
            Err(why) => {
                assert!(
                    env::var_os("REQUIRE_FUSE").is_none(),
                    "FUSE is not available, and REQUIRE_FUSE is set: {why}"
                );
                static SAY: Once = Once::new();
                // Past libtest, which would keep what println says to itself.
                SAY.call_once(|| {
                    let line = format!("skipped: FUSE is not available: {why}\n");
                    let _ = io::stderr().write_all(line.as_bytes());
                });
                None
            }
        }
    }

    fn try_mount() -> io::Result<Self> {
        // Others can mount by way of fusermount3, but not unmount by force: what
        // is stuck in the mount when the process dies would stay for ever.
        if !rustix::process::geteuid().is_root() {
            return Err(io::Error::other("it takes root"));
        }
        let mut files = rustix::process::getrlimit(Resource::Nofile);
        files.current = files.maximum;
        rustix::process::setrlimit(Resource::Nofile, files)?;

        let point = tempfile::tempdir()?;
        let backing = tempfile::tempdir()?;
        let disk = Arc::new(Disk::new(backing.path())?);
        let mut janitor = janitor(point.path())?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("faulty-disk".to_owned())];
        match fuser::spawn_mount(Server(disk.clone()), point.path(), &config) {
            Ok(session) => Ok(Self {
                disk,
                session: Some(session),
                janitor,
                point,
                backing,
            }),
            Err(why) => {
                dismiss(&mut janitor);
                Err(why)
            }
        }
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        self.point.path()
    }

    /// The folder that holds the files. A change made there may stay unseen for
    /// as long as the kernel has the old state cached.
    pub fn backing(&self) -> &Path {
        self.backing.path()
    }

    /// Each later `op` takes so much longer, until [`heal`](Self::heal). Who waits
    /// for one dies of a SIGKILL only when it is done, but for reads of contents
    /// that the kernel may cache.
    pub fn delay(&self, op: Op, delay: Duration) {
        self.disk.faults.plan().op(op).delay = delay;
    }

    /// Each later `op` fails with the error number, until [`heal`](Self::heal).
    pub fn fail(&self, op: Op, errno: i32) {
        self.disk.faults.plan().op(op).failure = Some(Errno::from_i32(errno));
    }

    /// The `n`-th `op` from now (1 is the next) fails with the error number.
    ///
    /// The kernel tries a failed read-ahead once more when somebody comes for its
    /// bytes: that fails too, so that the reader sees the error, once.
    pub fn fail_nth(&self, op: Op, n: u64, errno: i32) {
        assert!(n > 0, "the first is number 1");
        let mut plan = self.disk.faults.plan();
        let plan = plan.op(op);
        plan.single.insert(plan.seen + n, Errno::from_i32(errno));
    }

    /// Each later read of this file, which is on the disk, fails with the error number,
    /// until [`heal`](Self::heal).
    pub fn fail_reads_of(&self, file: &Path, errno: i32) {
        // The kernel knows the file as long as this is open.
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open(file, path, Mode::empty()).expect("a file on this disk");
        let ino = rustix::fs::fstat(&file).expect("its attributes").st_ino;
        let pin = self.disk.tables().pin(ino).expect("a file on this disk");
        let failure = (pin, Errno::from_i32(errno));
        self.disk.faults.plan().unreadable.insert(ino, failure);
    }

    /// No op is delayed or fails any more; what is being delayed goes on at
    /// once.
    pub fn heal(&self) {
        self.disk.faults.heal();
    }

    /// The number of ops of the kind so far, those that are delayed or failed
    /// included.
    pub fn count(&self, op: Op) -> u64 {
        self.disk.faults.plan().op(op).seen
    }

    /// Everything that the kernel cached of file contents is dropped, so that
    /// the next read comes here. Waits for reads under way.
    pub fn forget_pages(&self) {
        let session = self.session.as_ref().expect("mounted until dropped");
        let notifier = session.notifier();
        for ino in self.disk.known() {
            // All pages from the first to the last.
            notifier
                .inval_inode(INodeNo(ino), 0, 0)
                .expect("drop a file's pages");
        }
        thread::sleep(LOOK_COUNTS);
    }

    /// Sets the bytes that may be stored in all before ENOSPC; None: no limit. A file
    /// counts up to the last byte that was written or allocated, until it is
    /// removed and closed, which the kernel tells a moment after close(2).
    pub fn limit_bytes(&self, limit: Option<u64>) {
        self.disk.tables().space.limit = limit;
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.heal();
        let session = self.session.take().expect("mounted until dropped");
        // Forced, so that what is still open does not keep the session going.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        match rustix::mount::unmount(self.point.path(), flags) {
            // To be cut off is how the session ends: the result says no more.
            Ok(()) => drop(session.join()),
            // Unmounted by somebody else.
            Err(_) => drop(session),
        }
        dismiss(&mut self.janitor);
    }
}

/// In a process group of its own: a Ctrl-C is not for it.
fn janitor(point: &Path) -> io::Result<Child> {
    Command::new("sh")
        .args(["-c", JANITOR])
        .arg(point)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

fn dismiss(janitor: &mut Child) {
    let _ = janitor.kill();
    let _ = janitor.wait();
}

// === impl Faults ===

impl Faults {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap()
    }

    /// In the order of arrival. `bytes` are those of a read.
    fn arrive(self: &Arc<Self>, op: Op, bytes: Option<Bytes>) -> Turn {
        let mut plan = self.plan();
        let plan = &mut *plan;
        let op = plan.ops.entry(op).or_default();
        op.seen += 1;
        let single = op.single.remove(&op.seen);
        let again = bytes
            .as_ref()
            .and_then(|bytes| plan.torn.iter().position(|(torn, _)| torn.begins(bytes)))
            .map(|at| plan.torn.swap_remove(at).1);
        let unreadable = bytes
            .as_ref()
            .and_then(|bytes| plan.unreadable.get(&bytes.ino))
            .map(|(_, errno)| *errno);
        if let (Some(errno), None, Some(bytes)) = (single, again, bytes) {
            plan.torn.push((bytes, errno));
        }
        Turn {
            faults: self.clone(),
            heals: plan.heals,
            until: (!op.delay.is_zero()).then(|| Instant::now() + op.delay),
            failure: again.or(single).or(unreadable).or(op.failure),
        }
    }

    fn heal(&self) {
        let mut plan = self.plan();
        plan.heals += 1;
        plan.torn.clear();
        plan.unreadable.clear();
        for op in plan.ops.values_mut() {
            op.delay = Duration::ZERO;
            op.failure = None;
            op.single.clear();
        }
        self.healed.notify_all();
    }
}

// === impl Plan ===

impl Plan {
    fn op(&mut self, op: Op) -> &mut OpPlan {
        self.ops.entry(op).or_default()
    }
}

// === impl Bytes ===

impl Bytes {
    /// True if the other bytes start among these.
    fn begins(&self, other: &Bytes) -> bool {
        self.ino == other.ino && self.range.contains(&other.range.start)
    }
}

// === impl Turn ===

impl Turn {
    /// Waits for as long as the op is delayed.
    fn pass(self) -> io::Result<()> {
        if let Some(until) = self.until {
            let left = until.saturating_duration_since(Instant::now());
            let plan = self.faults.plan();
            let unhealed = |plan: &mut Plan| plan.heals == self.heals;
            drop(
                self.faults
                    .healed
                    .wait_timeout_while(plan, left, unhealed)
                    .unwrap(),
            );
        }
        match self.failure {
            Some(errno) => Err(io::Error::from_raw_os_error(errno.code())),
            None => Ok(()),
        }
    }
}

// === impl Space ===

impl Space {
    /// The end that the file may reach, at most `end`.
    fn fitting(&self, ino: u64, end: u64) -> u64 {
        let taken = self.files.get(&ino).map_or(0, |file| file.bytes);
        let free = self
            .limit
            .map_or(u64::MAX, |limit| limit.saturating_sub(self.stored));
        end.min(taken.saturating_add(free))
    }

    fn grow(&mut self, ino: u64, end: u64) {
        let file = self.files.entry(ino).or_default();
        let more = end.saturating_sub(file.bytes);
        file.bytes += more;
        self.stored += more;
    }

    fn shrink(&mut self, ino: u64, end: u64) {
        if let Some(file) = self.files.get_mut(&ino) {
            let less = file.bytes.saturating_sub(end);
            file.bytes -= less;
            self.stored -= less;
        }
    }

    fn open(&mut self, ino: u64) {
        self.files.entry(ino).or_default().opens += 1;
    }

    fn close(&mut self, ino: u64) {
        if let Some(file) = self.files.get_mut(&ino) {
            file.opens -= 1;
            self.free(ino);
        }
    }

    fn unlink(&mut self, ino: u64) {
        if let Some(file) = self.files.get_mut(&ino) {
            file.unlinked = true;
            self.free(ino);
        }
    }

    fn free(&mut self, ino: u64) {
        if let hash_map::Entry::Occupied(file) = self.files.entry(ino) {
            if file.get().unlinked && file.get().opens == 0 {
                self.stored -= file.remove().bytes;
            }
        }
    }
}

// === impl Tables ===

impl Tables {
    fn handle(&mut self) -> u64 {
        self.last_handle += 1;
        self.last_handle
    }

    fn pin(&self, ino: u64) -> io::Result<Pin> {
        match self.nodes.get(&ino) {
            Some(node) => Ok(node.pin.clone()),
            None => Err(rustix::io::Errno::STALE.into()),
        }
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        match self.files.get(&handle.0) {
            Some(file) => Ok(file.clone()),
            None => Err(rustix::io::Errno::BADF.into()),
        }
    }
}

// === impl Disk ===

impl Disk {
    fn new(root: &Path) -> io::Result<Self> {
        let pin = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let root = Node {
            pin: Arc::new(pin.into()),
            lookups: 1,
        };
        Ok(Self {
            faults: Arc::default(),
            tables: Mutex::new(Tables {
                nodes: HashMap::from([(INodeNo::ROOT.0, root)]),
                ..Tables::default()
            }),
        })
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    fn known(&self) -> Vec<u64> {
        self.tables().nodes.keys().copied().collect()
    }

    fn pin(&self, ino: INodeNo) -> io::Result<Pin> {
        self.tables().pin(ino.0)
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let pin = rustix::fs::openat(&*self.pin(parent)?, name, flags, Mode::empty())?;
        let pin = File::from(pin);
        let attr = attr(&pin, None)?;
        let mut tables = self.tables();
        let node = tables.nodes.entry(attr.ino.0).or_insert_with(|| Node {
            pin: Arc::new(pin),
            lookups: 0,
        });
        node.lookups += 1;
        if attr.kind == FileType::RegularFile && !tables.space.files.contains_key(&attr.ino.0) {
            tables.space.grow(attr.ino.0, attr.size);
        }
        Ok(attr)
    }

    fn forget(&self, ino: INodeNo, lookups: u64) {
        let mut tables = self.tables();
        let mut forgotten = None;
        if let hash_map::Entry::Occupied(mut node) = tables.nodes.entry(ino.0) {
            node.get_mut().lookups -= lookups;
            if node.get().lookups == 0 && ino != INodeNo::ROOT {
                forgotten = Some(node.remove());
            }
        }
        drop(tables);
        drop(forgotten);
    }

    fn getattr(&self, ino: INodeNo) -> io::Result<FileAttr> {
        attr(&*self.pin(ino)?, Some(ino))
    }

    fn truncate(&self, ino: INodeNo, handle: Option<FileHandle>, size: u64) -> io::Result<()> {
        match handle {
            Some(handle) => {
                let file = self.tables().file(handle)?;
                file.set_len(size)?;
            }
            None => {
                let pin = self.pin(ino)?;
                let file = OpenOptions::new().write(true).open(reopened(&pin))?;
                file.set_len(size)?;
            }
        }
        self.tables().space.shrink(ino.0, size);
        Ok(())
    }

    fn set_times(
        &self,
        ino: INodeNo,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
    ) -> io::Result<()> {
        let times = Timestamps {
            last_access: timespec(accessed),
            last_modification: timespec(modified),
        };
        let pin = self.pin(ino)?;
        let path = reopened(&pin);
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::empty())?;
        Ok(())
    }

    fn open(&self, ino: INodeNo, flags: OpenFlags) -> io::Result<FileHandle> {
        let pin = self.pin(ino)?;
        let file = rustix::fs::open(reopened(&pin), access_mode(flags), Mode::empty())?;
        Ok(self.opened(ino, file.into()))
    }

    fn opened(&self, ino: INodeNo, file: File) -> FileHandle {
        let mut tables = self.tables();
        let handle = tables.handle();
        tables.files.insert(handle, Arc::new(file));
        tables.space.open(ino.0);
        FileHandle(handle)
    }

    fn create(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
    ) -> io::Result<(FileAttr, FileHandle)> {
        let exclusive = OFlags::from_bits_retain(flags.0 as u32) & OFlags::EXCL;
        let all = access_mode(flags) | exclusive | OFlags::CREATE;
        let dir = self.pin(parent)?;
        let file = rustix::fs::openat(&*dir, name, all, Mode::from_bits_retain(mode))?;
        let attr = self.lookup(parent, name)?;
        Ok((attr, self.opened(attr.ino, file.into())))
    }

    fn release(&self, ino: INodeNo, handle: FileHandle) {
        let mut tables = self.tables();
        let file = tables.files.remove(&handle.0);
        tables.space.close(ino.0);
        drop(tables);
        drop(file);
    }

    fn read(&self, handle: FileHandle, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        let file = self.tables().file(handle)?;
        let mut data = vec![0; size as usize];
        let mut len = 0;
        while len < data.len() {
            match file.read_at(&mut data[len..], offset + len as u64)? {
                0 => break,
                more => len += more,
            }
        }
        data.truncate(len);
        Ok(data)
    }

    /// As much as fits.
    fn write(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
    ) -> io::Result<usize> {
        let (file, len) = {
            let mut tables = self.tables();
            let end = tables.space.fitting(ino.0, offset + data.len() as u64);
            let len = end.saturating_sub(offset) as usize;
            if len == 0 && !data.is_empty() {
                return Err(rustix::io::Errno::NOSPC.into());
            }
            tables.space.grow(ino.0, end);
            (tables.file(handle)?, len)
        };
        file.write_all_at(&data[..len], offset)?;
        Ok(len)
    }

    fn fallocate(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        range: Range<u64>,
        mode: i32,
    ) -> io::Result<()> {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        if !FallocateFlags::KEEP_SIZE.contains(mode) {
            return Err(rustix::io::Errno::OPNOTSUPP.into());
        }
        let file = {
            let mut tables = self.tables();
            if tables.space.fitting(ino.0, range.end) < range.end {
                return Err(rustix::io::Errno::NOSPC.into());
            }
            tables.space.grow(ino.0, range.end);
            tables.file(handle)?
        };
        rustix::fs::fallocate(&*file, mode, range.start, range.end - range.start)?;
        Ok(())
    }

    fn fsync(&self, handle: FileHandle, data_only: bool) -> io::Result<()> {
        let file = self.tables().file(handle)?;
        if data_only {
            file.sync_data()
        } else {
            file.sync_all()
        }
    }

    fn fsync_folder(&self, ino: INodeNo) -> io::Result<()> {
        let pin = self.pin(ino)?;
        File::open(reopened(&pin))?.sync_all()
    }

    fn mkdir(&self, parent: INodeNo, name: &OsStr, mode: u32) -> io::Result<FileAttr> {
        rustix::fs::mkdirat(&*self.pin(parent)?, name, Mode::from_bits_retain(mode))?;
        self.lookup(parent, name)
    }

    fn unlink(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> io::Result<()> {
        let dir = self.pin(parent)?;
        let stat = rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::unlinkat(&*dir, name, flags)?;
        self.tables().space.unlink(stat.st_ino);
        Ok(())
    }

    fn rename(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> io::Result<()> {
        if !RenameFlags::NOREPLACE.contains(flags) {
            return Err(rustix::io::Errno::INVAL.into());
        }
        let (from_dir, to_dir) = (self.pin(from.0)?, self.pin(to.0)?);
        let replaced = rustix::fs::statat(&*to_dir, to.1, AtFlags::SYMLINK_NOFOLLOW);
        rustix::fs::renameat_with(&*from_dir, from.1, &*to_dir, to.1, flags)?;
        if let Ok(replaced) = replaced {
            self.tables().space.unlink(replaced.st_ino);
        }
        Ok(())
    }

    /// The entries of a folder, read anew from the start.
    fn listing(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
    ) -> io::Result<Arc<Vec<Listed>>> {
        let known = self.tables().listings.get(&handle.0).cloned();
        if let (Some(known), 1..) = (known, offset) {
            return Ok(known);
        }
        let pin = self.pin(ino)?;
        let mut entries = Vec::new();
        for entry in fs::read_dir(reopened(&pin))? {
            let entry = entry?;
            if let Some(kind) = FileType::from_std(entry.file_type()?) {
                entries.push(Listed {
                    ino: entry.ino(),
                    kind,
                    name: entry.file_name(),
                });
            }
        }
        let entries = Arc::new(entries);
        self.tables().listings.insert(handle.0, entries.clone());
        Ok(entries)
    }

    fn statfs(&self) -> io::Result<StatVfs> {
        let root = self.pin(INodeNo::ROOT)?;
        let mut stat = rustix::fs::fstatvfs(&*root)?;
        let space = &self.tables().space;
        if let Some(limit) = space.limit {
            stat.f_frsize = BLOCK.into();
            stat.f_bsize = BLOCK.into();
            stat.f_blocks = limit / u64::from(BLOCK);
            stat.f_bfree = limit.saturating_sub(space.stored) / u64::from(BLOCK);
            stat.f_bavail = stat.f_bfree;
        }
        Ok(stat)
    }
}

/// The pinned file by a path that leads to it whatever its name, if any.
fn reopened(pin: &File) -> PathBuf {
    format!("/proc/self/fd/{}", pin.as_raw_fd()).into()
}

/// Read, write or both. All else that an open may ask for is the kernel's
/// business above: where to append, what not to cache, when to sync.
fn access_mode(flags: OpenFlags) -> OFlags {
    OFlags::from_bits_retain(flags.0 as u32) & OFlags::ACCMODE | OFlags::CLOEXEC
}

/// Under the inode number that the kernel has for the file, if not its own.
fn attr(file: &File, ino: Option<INodeNo>) -> io::Result<FileAttr> {
    let meta = file.metadata()?;
    let changed = Duration::new(
        meta.ctime().try_into().unwrap_or(0),
        meta.ctime_nsec().try_into().unwrap_or(0),
    );
    Ok(FileAttr {
        ino: ino.unwrap_or(INodeNo(meta.ino())),
        size: meta.len(),
        blocks: meta.blocks(),
        atime: meta.accessed()?,
        mtime: meta.modified()?,
        ctime: UNIX_EPOCH + changed,
        crtime: UNIX_EPOCH,
        kind: FileType::from_std(meta.file_type()).ok_or(io::ErrorKind::Unsupported)?,
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: meta.rdev() as u32,
        blksize: BLOCK,
        flags: 0,
    })
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match time {
        None => special(rustix::fs::UTIME_OMIT),
        Some(TimeOrNow::Now) => special(rustix::fs::UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec {
                tv_sec: since.as_secs() as i64,
                tv_nsec: since.subsec_nanos().into(),
            }
        }
    }
}

// === impl Server ===

impl Server {
    /// Does the work when its turn has come, and answers.
    fn serve<R: Refuse, T>(
        &self,
        turn: Option<Turn>,
        reply: R,
        work: impl FnOnce(&Disk) -> io::Result<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let disk = self.0.clone();
        let request = move || {
            let free = turn.map_or(Ok(()), Turn::pass);
            match free.and_then(|()| work(&disk)) {
                Ok(done) => answer(reply, done),
                Err(error) => reply.refuse(error.into()),
            }
        };
        // Without a thread, the reply is dropped with the request, which
        // answers EIO.
        let _ = thread::Builder::new()
            .name("faulty-disk".to_owned())
            .spawn(request);
    }

    fn turn(&self, op: Op) -> Option<Turn> {
        Some(self.0.faults.arrive(op, None))
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Or lookups in a folder wait for one another.
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        // Reads are read-ahead, and that is background, to the kernel. More than
        // these wait for one another.
        let _ = config.set_max_background(u16::MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.serve(
            self.turn(Op::Lookup),
            reply,
            move |disk| disk.lookup(parent, &name),
            |reply, attr| reply.entry(&TTL, &attr, Generation(0)),
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.0.forget(ino, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(
            None,
            reply,
            move |disk| disk.getattr(ino),
            |reply, attr| reply.attr(&TTL, &attr),
        );
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _attributes_changed: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.serve(
            None,
            reply,
            move |disk| {
                if let Some(size) = size {
                    disk.truncate(ino, handle, size)?;
                }
                let pin = disk.pin(ino)?;
                if uid.is_some() || gid.is_some() {
                    chown(reopened(&pin), uid, gid)?;
                }
                if let Some(mode) = mode {
                    fs::set_permissions(reopened(&pin), Permissions::from_mode(mode & 0o7777))?;
                }
                if accessed.is_some() || modified.is_some() {
                    disk.set_times(ino, accessed, modified)?;
                }
                disk.getattr(ino)
            },
            |reply, attr| reply.attr(&TTL, &attr),
        );
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let name = name.to_owned();
        self.serve(
            self.turn(Op::Mkdir),
            reply,
            move |disk| disk.mkdir(parent, &name, mode),
            |reply, attr| reply.entry(&TTL, &attr, Generation(0)),
        );
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.serve(
            self.turn(Op::Unlink),
            reply,
            move |disk| disk.unlink(parent, &name, AtFlags::empty()),
            |reply, ()| reply.ok(),
        );
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.serve(
            self.turn(Op::Unlink),
            reply,
            move |disk| disk.unlink(parent, &name, AtFlags::REMOVEDIR),
            |reply, ()| reply.ok(),
        );
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let flags = RenameFlags::from_bits_retain(flags.bits());
        self.serve(
            self.turn(Op::Rename),
            reply,
            move |disk| disk.rename((parent, &name), (new_parent, &new_name), flags),
            |reply, ()| reply.ok(),
        );
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.serve(
            self.turn(Op::Open),
            reply,
            move |disk| disk.open(ino, flags),
            |reply, handle| reply.opened(handle, OPENED),
        );
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.to_owned();
        self.serve(
            self.turn(Op::Create),
            reply,
            move |disk| disk.create(parent, &name, mode, OpenFlags(flags)),
            |reply, (attr, handle)| reply.created(&TTL, &attr, Generation(0), handle, OPENED),
        );
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = Bytes {
            ino: ino.0,
            range: offset..offset + u64::from(size),
            _pin: self.0.pin(ino).ok(),
        };
        self.serve(
            Some(self.0.faults.arrive(Op::Read, Some(bytes))),
            reply,
            move |disk| disk.read(handle, offset, size),
            |reply, data| reply.data(&data),
        );
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.serve(
            self.turn(Op::Write),
            reply,
            move |disk| disk.write(ino, handle, offset, &data),
            |reply, len| reply.written(len as u32),
        );
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.release(ino, handle);
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(
            self.turn(Op::Fsync),
            reply,
            move |disk| disk.fsync(handle, data_only),
            |reply, ()| reply.ok(),
        );
    }

    fn opendir(&self, _: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.0.tables().handle();
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.serve(
            self.turn(Op::Readdir),
            reply,
            move |disk| disk.listing(ino, handle, offset),
            move |mut reply, entries| {
                for (next, entry) in (1..).zip(&*entries).skip(offset as usize) {
                    if reply.add(INodeNo(entry.ino), next, entry.kind, &entry.name) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn releasedir(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.tables().listings.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(
            self.turn(Op::Fsync),
            reply,
            move |disk| disk.fsync_folder(ino),
            |reply, ()| reply.ok(),
        );
    }

    fn statfs(&self, _: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.serve(
            None,
            reply,
            |disk| disk.statfs(),
            |reply, stat| {
                reply.statfs(
                    stat.f_blocks,
                    stat.f_bfree,
                    stat.f_bavail,
                    stat.f_files,
                    stat.f_ffree,
                    stat.f_bsize as u32,
                    stat.f_namemax as u32,
                    stat.f_frsize as u32,
                )
            },
        );
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve(
            self.turn(Op::Fallocate),
            reply,
            move |disk| disk.fallocate(ino, handle, offset..offset + len, mode),
            |reply, ()| reply.ok(),
        );
    }
}

// === impl Refuse ===

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite
);

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Seek},
        panic::{catch_unwind, AssertUnwindSafe},
    };

    use rustix::io::Errno;

    use super::*;
    use crate::{eventually, pattern};

    const EIO: i32 = Errno::IO.raw_os_error();
    const ENOSPC: i32 = Errno::NOSPC.raw_os_error();
    const AN_HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn bytes_come_back_through_the_mount() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let folder = disk.path().join("folder");
        let path = folder.join("file");
        let body = pattern(1, 300_000);
        fs::create_dir(&folder).unwrap();
        fs::write(&path, &body).unwrap();

        disk.forget_pages();
        assert_eq!(fs::read(&path).unwrap(), body);
        assert_eq!(fs::read(disk.backing().join("folder/file")).unwrap(), body);

        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(&path)
            .unwrap();
        file.set_len(100).unwrap();
        file.write_all(b"appended").unwrap();
        file.set_permissions(Permissions::from_mode(0o600)).unwrap();
        file.set_modified(UNIX_EPOCH + AN_HOUR).unwrap();
        file.sync_all().unwrap();
        disk.forget_pages();
        let mut read = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, [&body[..100], b"appended"].concat());
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.mode() & 0o777, 0o600);
        assert_eq!(meta.modified().unwrap(), UNIX_EPOCH + AN_HOUR);

        fs::remove_file(&path).unwrap();
        fs::remove_dir(&folder).unwrap();
        assert_eq!(fs::read_dir(disk.backing()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_read_or_found_once_comes_from_the_kernel() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let path = disk.path().join("file");
        fs::write(disk.backing().join("file"), "bytes").unwrap();
        for opens in 1..=3 {
            assert_eq!(fs::read(&path).unwrap(), b"bytes");
            assert_eq!(disk.count(Op::Open), opens);
            assert_eq!(disk.count(Op::Lookup), 1);
            assert_eq!(disk.count(Op::Read), 1);
        }
    }

    #[test]
    fn forgotten_pages_are_read_again() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let path = disk.path().join("file");
        fs::write(&path, "bytes").unwrap();
        let mut file = File::open(&path).unwrap();
        for reads in 1..=3 {
            disk.forget_pages();
            file.rewind().unwrap();
            file.read_exact(&mut [0; 5]).unwrap();
            assert_eq!(disk.count(Op::Read), reads);
        }
    }

    #[test]
    fn a_delayed_read_holds_up_no_other() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let path = disk.path().join("file");
        let body = pattern(1, 1 << 20);
        fs::write(&path, &body).unwrap();
        fs::write(disk.path().join("other"), "bytes").unwrap();
        disk.forget_pages();

        disk.delay(Op::Read, AN_HOUR);
        thread::scope(|scope| {
            let file = File::open(&path).unwrap();
            let delayed = scope.spawn(move || {
                let mut start = [0; 100];
                file.read_exact_at(&mut start, 0).unwrap();
                start
            });
            eventually("the read is on its way", || disk.count(Op::Read) > 0);

            disk.delay(Op::Read, Duration::ZERO);
            let mut end = [0; 100];
            let file = File::open(&path).unwrap();
            file.read_exact_at(&mut end, body.len() as u64 - 100)
                .unwrap();
            assert_eq!(end, body[body.len() - 100..]);
            assert_eq!(fs::read(disk.path().join("other")).unwrap(), b"bytes");

            assert!(!delayed.is_finished());
            disk.heal();
            assert_eq!(delayed.join().unwrap(), body[..100]);
        });
    }

    #[test]
    fn delayed_reads_overlap() {
        const READERS: u64 = 32;
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        for reader in 0..READERS {
            fs::write(disk.path().join(reader.to_string()), "bytes").unwrap();
        }
        disk.forget_pages();
        disk.delay(Op::Read, AN_HOUR);
        thread::scope(|scope| {
            for reader in 0..READERS {
                let path = disk.path().join(reader.to_string());
                scope.spawn(move || assert_eq!(fs::read(path).unwrap(), b"bytes"));
            }
            eventually("all reads are on their way", || {
                disk.count(Op::Read) == READERS
            });
            disk.heal();
        });
    }

    #[test]
    fn a_delay_is_that_long() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let delay = Duration::from_millis(50);
        fs::write(disk.path().join("file"), "bytes").unwrap();
        disk.delay(Op::Open, delay);
        let start = Instant::now();
        File::open(disk.path().join("file")).unwrap();
        assert!(start.elapsed() >= delay);
    }

    #[test]
    fn each_op_fails_as_told_until_healed() {
        type Attempt = fn(&Path) -> io::Result<()>;
        const ATTEMPTS: [(Op, Attempt); 11] = [
            (Op::Lookup, |dir| fs::metadata(dir.join("unseen")).map(drop)),
            (Op::Open, |dir| File::open(dir.join("file")).map(drop)),
            (Op::Read, |dir| fs::read(dir.join("file")).map(drop)),
            (Op::Write, |dir| fs::write(dir.join("file"), "bytes")),
            (Op::Fsync, |dir| File::open(dir.join("file"))?.sync_all()),
            (Op::Create, |dir| File::create(dir.join("new")).map(drop)),
            (Op::Rename, |dir| {
                fs::rename(dir.join("file"), dir.join("file2"))
            }),
            (Op::Unlink, |dir| fs::remove_file(dir.join("file2"))),
            (Op::Fallocate, |dir| {
                let file = File::create(dir.join("file"))?;
                Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), 0, 9)?)
            }),
            (Op::Mkdir, |dir| fs::create_dir(dir.join("folder"))),
            (Op::Readdir, |dir| {
                fs::read_dir(dir)?.try_for_each(|entry| entry.map(drop))
            }),
        ];
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        fs::write(disk.path().join("file"), "bytes").unwrap();
        fs::write(disk.backing().join("unseen"), "bytes").unwrap();
        disk.forget_pages();
        for (op, attempt) in ATTEMPTS {
            let seen = disk.count(op);
            disk.fail(op, EIO);
            for _ in 0..2 {
                let error = attempt(disk.path()).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(EIO), "{op:?}: {error}");
            }
            assert!(disk.count(op) >= seen + 2, "{op:?}");
            disk.heal();
            attempt(disk.path()).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        }
    }

    #[test]
    fn the_second_reader_sees_an_error_and_no_other() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let path = disk.path().join("file");
        fs::write(&path, pattern(1, 100_000)).unwrap();
        disk.fail_nth(Op::Read, 2, EIO);
        let mut failed = Vec::new();
        for _ in 1..=4 {
            disk.forget_pages();
            failed.push(fs::read(&path).map_err(|error| error.raw_os_error()).err());
        }
        assert_eq!(failed, [None, Some(Some(EIO)), None, None]);
    }

    #[test]
    fn the_third_write_fails_and_no_other() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let mut file = File::create(disk.path().join("file")).unwrap();
        disk.fail_nth(Op::Write, 3, EIO);
        let worked = [(); 4].map(|()| file.write_all(b"bytes").is_ok());
        assert_eq!(worked, [true, true, false, true]);
    }

    #[test]
    fn a_full_disk_takes_no_more() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        disk.limit_bytes(Some(100_000));
        let full = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(ENOSPC));
        };
        let path = disk.path().join("file");
        full(fs::write(&path, pattern(1, 100_001)));
        fs::write(&path, pattern(1, 100_000)).unwrap();
        full(fs::write(disk.path().join("other"), "b"));

        fs::remove_file(&path).unwrap();
        let file = File::create(&path).unwrap();
        let allocate = |len| {
            Ok(rustix::fs::fallocate(
                &file,
                FallocateFlags::KEEP_SIZE,
                0,
                len,
            )?)
        };
        // The kernel tells of a close when it is done.
        eventually("what was removed is free", || allocate(100_000).is_ok());
        full(allocate(100_001));
        full(fs::write(disk.path().join("other"), "b"));
        let stat = rustix::fs::statvfs(disk.path()).unwrap();
        assert_eq!(stat.f_bavail, 0);

        // Allocated bytes can be written.
        file.write_all_at(&pattern(2, 100_000), 0).unwrap();
        disk.limit_bytes(None);
        fs::write(disk.path().join("other"), "b").unwrap();
    }

    #[test]
    fn an_unlinked_file_stays_readable_while_open() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let path = disk.path().join("file");
        fs::write(&path, "bytes").unwrap();
        let mut file = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "other").unwrap();
        disk.forget_pages();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "bytes");
        assert_eq!(file.metadata().unwrap().len(), 5);
        assert_eq!(fs::read(&path).unwrap(), b"other");
    }

    #[test]
    fn a_rename_replaces_unless_told_not_to() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let (from, to) = (disk.path().join("from"), disk.path().join("to"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        let mut old = File::open(&to).unwrap();

        use rustix::fs::{renameat_with, CWD};
        let refused = renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE);
        assert_eq!(refused, Err(Errno::EXIST));
        fs::rename(&from, &to).unwrap();

        disk.forget_pages();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        assert!(!from.exists());
        let mut read = String::new();
        old.read_to_string(&mut read).unwrap();
        assert_eq!(read, "old");
    }

    #[test]
    fn a_name_that_is_being_replaced_can_always_be_opened() {
        const REPLACEMENTS: u64 = 100;
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let (new, path) = (disk.path().join("new"), disk.path().join("file"));
        fs::write(&path, 0u64.to_ne_bytes().repeat(10_000)).unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for version in 1..=REPLACEMENTS {
                    fs::write(&new, version.to_ne_bytes().repeat(10_000)).unwrap();
                    fs::rename(&new, &path).unwrap();
                }
            });
            while !writer.is_finished() {
                let read = fs::read(&path).unwrap();
                assert_eq!(read.len(), 80_000);
                assert_eq!(read, read[..8].repeat(10_000));
            }
        });
        let last = REPLACEMENTS.to_ne_bytes().repeat(10_000);
        assert_eq!(fs::read(&path).unwrap(), last);
    }

    #[test]
    fn a_thousand_files_are_listed() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let names: Vec<_> = (0..1000)
            .map(|n| OsString::from(format!("file-{n:03}")))
            .collect();
        for name in &names {
            File::create(disk.backing().join(name)).unwrap();
        }
        let mut listed: Vec<_> = fs::read_dir(disk.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        listed.sort();
        assert_eq!(listed, names);
        assert!(disk.count(Op::Readdir) > 1);
    }

    #[test]
    fn a_disk_that_is_dropped_is_unmounted() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let path = disk.path().to_owned();
        assert!(is_mounted(&path));
        let file = File::create(path.join("file")).unwrap();
        drop(disk);
        assert!(!is_mounted(&path));
        assert!(!path.exists());
        file.set_len(1).unwrap_err();
    }

    #[test]
    fn a_panic_unmounts() {
        let Some(disk) = FaultyDisk::mount() else {
            return;
        };
        let path = disk.path().to_owned();
        let disk = AssertUnwindSafe(disk);
        catch_unwind(move || {
            let _disk = disk;
            panic!("as a test does that fails");
        })
        .unwrap_err();
        assert!(!is_mounted(&path));
    }

    #[test]
    fn a_process_that_is_killed_leaves_no_mount() {
        if FaultyDisk::mount().is_none() {
            return;
        }
        let mut victim = Command::new(env::current_exe().unwrap())
            .args(["--exact", "fuse::tests::hangs_in_its_own_mount"])
            .arg("--nocapture")
            .env(VICTIM, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(victim.stdout.take().unwrap());
        let mut folders = output
            .lines()
            .map(Result::unwrap)
            .skip_while(|line| line != "folders:")
            .skip(1)
            .map(PathBuf::from);
        let (path, backing) = (folders.next().unwrap(), folders.next().unwrap());
        assert!(is_mounted(&path));

        victim.kill().unwrap();
        victim.wait().unwrap();
        eventually("it is unmounted", || !is_mounted(&path));
        fs::remove_dir(path).unwrap();
        fs::remove_dir_all(backing).unwrap();
    }

    /// Set in the process that another test kills; elsewhere there is nothing
    /// to do.
    const VICTIM: &str = "FAULTY_DISK_VICTIM";

    #[test]
    fn hangs_in_its_own_mount() {
        if env::var_os(VICTIM).is_none() {
            return;
        }
        let disk = FaultyDisk::mount().unwrap();
        let file = disk.path().join("file");
        fs::write(&file, "bytes").unwrap();
        disk.delay(Op::Open, AN_HOUR);
        thread::scope(|scope| {
            scope.spawn(|| File::open(&file));
            eventually("the open is on its way", || disk.count(Op::Open) == 1);
            let [path, backing] = [disk.path(), disk.backing()].map(Path::display);
            println!("\nfolders:\n{path}\n{backing}");
        });
    }

    fn is_mounted(path: &Path) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.contains(&format!(" {} ", path.display()))
    }
}
