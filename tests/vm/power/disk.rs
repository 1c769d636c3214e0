//! A disk whose power can be cut, for a virtual machine.
//!
//! It is a server of the NBD protocol
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>) on a Unix socket. Like a
//! real disk, it has a write cache: a write is answered at once, and is durable after the next flush.
//! When the power is cut, it answers nothing any more, and loses any part of what was not flushed.

use std::{
    fmt,
    fs::File,
    io::{self, BufReader, Read, Write},
    os::unix::{
        fs::FileExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        Arc,
    },
    thread::{self, JoinHandle},
};

use test_support::Random;

/// Bytes that a disk writes whole or not at all: a physical sector.
const SECTOR: usize = 4096;

/// A disk without power. Its content is a file.
pub struct Disk {
    image: File,
    len: u64,
}

/// A disk in use by a machine, until the power is cut or the machine has disconnected.
pub struct Running {
    server: JoinHandle<io::Result<Stopped>>,
    switch: Arc<Switch>,
}

/// The commands of a machine to its disk, and the number of them at which the power is cut.
#[derive(Default)]
struct Switch {
    commands: AtomicU64,
    /// 0: the power stays.
    cut_at: AtomicU64,
    /// True if the power then stays until a flush, when most can be lost.
    awaits_flush: AtomicBool,
}

/// A disk that answers nothing any more.
pub struct Stopped {
    disk: Disk,
    unflushed: Vec<Unflushed>,
    /// Open, so that the machine does not see an error before it loses its own power.
    _machine: BufReader<UnixStream>,
}

/// A write since the last flush.
struct Unflushed {
    at: u64,
    before: Vec<u8>,
    after: Vec<u8>,
    /// True if it was durable before its answer (FUA).
    is_durable: bool,
}

/// The part of the unflushed writes that is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    All,
    Nothing,
    /// All writes from a random one on.
    Last,
    /// Each write at random.
    Writes,
    /// Each sector at random.
    Sectors,
}

/// The loss of a power cut, for messages.
pub struct Lost {
    loss: Loss,
    writes: usize,
    sectors: usize,
    lost: usize,
}

// === impl Disk ===

impl Disk {
    /// The disk whose content is the file `image`.
    pub fn open(image: &Path) -> io::Result<Self> {
        let image = File::options().read(true).write(true).open(image)?;
        let len = image.metadata()?.len();
        Ok(Self { image, len })
    }

    /// Connects it to the machine that connects to a socket. `ended` is called when it answers
    /// nothing any more.
    pub fn attach(self, socket: &Path, ended: impl FnOnce() + Send + 'static) -> Running {
        let listener = UnixListener::bind(socket).expect("listen on a Unix socket");
        let switch = Arc::<Switch>::default();
        let server = thread::spawn({
            let switch = switch.clone();
            move || {
                let stopped = self.serve(&listener, &switch);
                ended();
                stopped
            }
        });
        Running { server, switch }
    }

    fn serve(self, listener: &UnixListener, switch: &Switch) -> io::Result<Stopped> {
        let (machine, _) = listener.accept()?;
        let mut answers = machine.try_clone()?;
        let mut commands = BufReader::with_capacity(1 << 20, machine);
        negotiate(&mut commands, &mut answers, self.len)?;
        let mut unflushed = Vec::new();
        // An error: the machine has gone.
        while let Ok(command) = Command::read(&mut commands) {
            if command.kind == DISCONNECT || !switch.count(command.kind == FLUSH) {
                break;
            }
            let answer = self.execute(command, &mut unflushed)?;
            if answers.write_all(&answer).is_err() {
                break;
            }
        }
        Ok(Stopped {
            disk: self,
            unflushed,
            _machine: commands,
        })
    }

    /// Executes a command. Returns the answer.
    fn execute(&self, command: Command, unflushed: &mut Vec<Unflushed>) -> io::Result<Vec<u8>> {
        let mut answer = SIMPLE_REPLY.to_be_bytes().to_vec();
        answer.extend(0u32.to_be_bytes());
        answer.extend(command.cookie);
        match command.kind {
            READ => {
                let head = answer.len();
                answer.resize(head + command.len, 0);
                self.image.read_exact_at(&mut answer[head..], command.at)?;
            }
            WRITE => {
                let mut before = vec![0; command.len];
                self.image.read_exact_at(&mut before, command.at)?;
                self.image.write_all_at(&command.data, command.at)?;
                unflushed.push(Unflushed {
                    at: command.at,
                    before,
                    after: command.data,
                    is_durable: command.flags & FUA != 0,
                });
            }
            FLUSH => unflushed.clear(),
            kind => {
                let what = format!("a command that was not offered: {kind}");
                return Err(io::Error::other(what));
            }
        }
        Ok(answer)
    }
}

// === impl Running ===

impl Running {
    /// Cuts the power after so many more commands of the machine, or before the flush that follows.
    pub fn cut_after(&self, commands: u64, awaits_flush: bool) {
        self.switch.awaits_flush.store(awaits_flush, SeqCst);
        let so_far = self.switch.commands.load(SeqCst);
        self.switch.cut_at.store(so_far + commands.max(1), SeqCst);
    }

    /// Commands of the machine so far.
    pub fn commands(&self) -> u64 {
        self.switch.commands.load(SeqCst)
    }

    /// The disk after the machine has ended.
    pub fn stopped(self) -> Stopped {
        let stopped = self.server.join().expect("the disk does not panic");
        stopped.expect("the disk serves the machine")
    }
}

// === impl Switch ===

impl Switch {
    /// Counts a command. False: the power is cut before it.
    fn count(&self, is_flush: bool) -> bool {
        let count = self.commands.fetch_add(1, SeqCst) + 1;
        let cut_at = self.cut_at.load(SeqCst);
        cut_at == 0 || count < cut_at || (self.awaits_flush.load(SeqCst) && !is_flush)
    }
}

// === impl Stopped ===

impl Stopped {
    /// The disk after it has lost a part of what was not flushed.
    pub fn lose(self, random: &mut Random) -> io::Result<(Disk, Lost)> {
        let losses = [
            Loss::All,
            Loss::Nothing,
            Loss::Last,
            Loss::Writes,
            Loss::Sectors,
        ];
        let loss = *random.pick(&losses).expect("there are some");
        let image = &self.disk.image;
        for write in self.unflushed.iter().rev() {
            image.write_all_at(&write.before, write.at)?;
        }
        let mut lost = Lost {
            loss,
            writes: self.unflushed.len(),
            sectors: 0,
            lost: 0,
        };
        let last = random.of(0..self.unflushed.len() as u64 + 1) as usize;
        for (number, write) in self.unflushed.iter().enumerate() {
            let keeps_write = match loss {
                Loss::All => false,
                Loss::Nothing | Loss::Sectors => true,
                Loss::Last => number < last,
                Loss::Writes => random.percent(50),
            };
            let mut at = 0;
            while at < write.after.len() {
                // The machine may begin in the middle of a sector.
                let place = write.at + at as u64;
                let rest = SECTOR - (place % SECTOR as u64) as usize;
                let end = write.after.len().min(at + rest);
                lost.sectors += 1;
                let keeps = keeps_write && !(matches!(loss, Loss::Sectors) && random.percent(50));
                if keeps || write.is_durable {
                    image.write_all_at(&write.after[at..end], place)?;
                } else {
                    lost.lost += 1;
                }
                at = end;
            }
        }
        Ok((self.disk, lost))
    }
}

// === impl Lost ===

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            loss,
            writes,
            sectors,
            lost,
        } = self;
        write!(
            f,
            "{writes} writes of {sectors} sectors were not flushed, {lost} sectors lost ({loss:?})"
        )
    }
}

// --- the protocol ---

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 1 << 1;

const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = (1 << 31) + 1;
const INFO_EXPORT: u16 = 0;

/// The properties of the disk: they are listed, and it knows flushes and FUA.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3;

const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const FUA: u16 = 1;

/// A command of the machine.
struct Command {
    flags: u16,
    kind: u16,
    cookie: [u8; 8],
    at: u64,
    len: usize,
    /// The data of a write.
    data: Vec<u8>,
}

// === impl Command ===

impl Command {
    fn read(from: &mut impl Read) -> io::Result<Self> {
        if u32::from_be_bytes(array(from)?) != REQUEST {
            return Err(io::Error::other("not a command of NBD"));
        }
        let mut command = Self {
            flags: u16::from_be_bytes(array(from)?),
            kind: u16::from_be_bytes(array(from)?),
            cookie: array(from)?,
            at: u64::from_be_bytes(array(from)?),
            len: u32::from_be_bytes(array(from)?) as usize,
            data: Vec::new(),
        };
        if command.kind == WRITE {
            command.data.resize(command.len, 0);
            from.read_exact(&mut command.data)?;
        }
        Ok(command)
    }
}

/// The fixed newstyle negotiation, with any name of the export.
fn negotiate(from: &mut impl Read, to: &mut impl Write, len: u64) -> io::Result<()> {
    let mut greeting = b"NBDMAGICIHAVEOPT".to_vec();
    greeting.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    to.write_all(&greeting)?;
    let _flags: [u8; 4] = array(from)?;
    loop {
        if &array::<8>(from)? != b"IHAVEOPT" {
            return Err(io::Error::other("not an option of NBD"));
        }
        let option = u32::from_be_bytes(array(from)?);
        let mut data = vec![0; u32::from_be_bytes(array(from)?) as usize];
        from.read_exact(&mut data)?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut reply = OPTION_REPLY.to_be_bytes().to_vec();
            reply.extend(option.to_be_bytes());
            reply.extend(kind.to_be_bytes());
            reply.extend((data.len() as u32).to_be_bytes());
            reply.extend(data);
            to.write_all(&reply)
        };
        match option {
            OPTION_GO => {
                let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                info.extend(len.to_be_bytes());
                info.extend(EXPORT_FLAGS.to_be_bytes());
                reply(REPLY_INFO, &info)?;
                return reply(REPLY_ACK, &[]);
            }
            OPTION_ABORT => {
                reply(REPLY_ACK, &[])?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            _ => reply(REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
