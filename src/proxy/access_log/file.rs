//! The file of a log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::io::Errno;
use time::{Date, OffsetDateTime};

/// The permissions of a new file. Addresses of clients are not for everyone.
const MODE: u32 = 0o640;

/// The longest wait for a destination that has no room and does not block.
const WAIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// A destination of lines.
pub(super) trait Destination: Send {
    /// Write some bytes, as `write(2)` does.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Open the file again. `false`: there is none to open. After an error, the former one is written
    /// to.
    fn reopen(&mut self) -> io::Result<bool>;

    /// Open another file if the date asks for one. After an error, the former one is written to.
    fn turn(&mut self) -> io::Result<()>;
}

/// Standard output, or a file that is appended to.
pub(super) struct LogFile {
    file: File,
    /// `None`: standard output.
    path: Option<PathBuf>,
    /// The date in the name of the file, if it has one.
    date: Option<Date>,
    /// The file ends within a line, as after a crash or on a disk that was full.
    is_torn: bool,
}

// === impl LogFile ===

impl LogFile {
    /// Append to standard output.
    pub fn stdout() -> io::Result<LogFile> {
        Ok(LogFile {
            file: File::from(io::stdout().as_fd().try_clone_to_owned()?),
            path: None,
            date: None,
            is_torn: false,
        })
    }

    /// Append to the file at `path`, or with `is_daily` to that of today.
    pub fn open(path: &Path, is_daily: bool) -> io::Result<LogFile> {
        let date = is_daily.then(today);
        let name = name(path, date);
        let file = open(&name).map_err(|e| {
            // open(2): a pipe that nobody reads.
            let remedy = match e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) {
                true => "start the program that reads it first",
                false => "let the proxy's user write there",
            };
            let what = format!("{} cannot be opened: {e}; {remedy}", name.display());
            io::Error::new(e.kind(), what)
        })?;
        Ok(LogFile {
            is_torn: is_torn(&file),
            file,
            path: Some(path.to_owned()),
            date,
        })
    }

    fn open_for(&mut self, date: Option<Date>) -> io::Result<bool> {
        let Some(path) = &self.path else {
            return Ok(false);
        };
        self.file = open(&name(path, date))?;
        self.is_torn = is_torn(&self.file);
        self.date = date;
        Ok(true)
    }

    /// Write to a file that may be one that does not block, which other programs make of standard
    /// output.
    fn write_waiting(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let mut files = [PollFd::new(&self.file, PollFlags::OUT)];
                match poll(&mut files, Some(&WAIT))? {
                    0 => Err(e),
                    _ => self.file.write(bytes),
                }
            }
            written => written,
        }
    }
}

impl Destination for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_torn && self.write_waiting(b"\n")? == 0 {
            return Ok(0);
        }
        self.is_torn = false;
        self.write_waiting(bytes)
    }

    fn reopen(&mut self) -> io::Result<bool> {
        self.open_for(self.date.map(|_| today()))
    }

    fn turn(&mut self) -> io::Result<()> {
        match self.date {
            Some(date) if date != today() => self.open_for(Some(today())).map(drop),
            _ => Ok(()),
        }
    }
}

/// The date in UTC.
fn today() -> Date {
    OffsetDateTime::now_utc().date()
}

/// The name of the file of a date: `access.log.2026-11-30`.
fn name(path: &Path, date: Option<Date>) -> PathBuf {
    match date {
        Some(date) => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{date}"));
            name.into()
        }
        None => path.to_owned(),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Opening a pipe without a reader fails at once. Later, only the writer thread waits.
    let open = |reads: bool| {
        OpenOptions::new()
            .read(reads)
            .append(true)
            .create(true)
            .mode(MODE)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path)
    };
    // A pipe that is opened for reading has a reader.
    let is_special = fs::metadata(path).is_ok_and(|found| !found.is_file());
    let file = match open(!is_special) {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => open(false)?,
        opened => opened?,
    };
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

/// True if a file ends within a line. One that may not be read is not known to.
fn is_torn(file: &File) -> bool {
    let mut last = [b'\n'];
    let Ok(found) = file.metadata() else {
        return false;
    };
    let is_read = found.is_file()
        && found.len() > 0
        && file.read_exact_at(&mut last, found.len() - 1).is_ok();
    is_read && last != [b'\n']
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_daily_file_has_its_date_in_its_name_and_changes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let mut file = LogFile::open(&path, true).unwrap();
        let yesterday = today().previous_day().unwrap();
        file.open_for(Some(yesterday)).unwrap();
        file.write(b"1\n").unwrap();
        file.turn().unwrap();
        file.write(b"2\n").unwrap();
        file.turn().unwrap();
        file.write(b"3\n").unwrap();
        let read = |date: Date| fs::read_to_string(name(&path, Some(date))).unwrap();
        assert_eq!(read(yesterday), "1\n");
        // The date may have changed meanwhile.
        let day_after = yesterday.next_day().unwrap();
        assert!(read(day_after).starts_with("2\n"));
        assert!(!path.exists());
        let date = Date::from_calendar_date(2026, time::Month::March, 1).unwrap();
        let name = name(Path::new("/log/access.log"), Some(date));
        assert_eq!(name, Path::new("/log/access.log.2026-03-01"));
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_stays_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/access.log");
        fs::create_dir(path.parent().unwrap()).unwrap();
        let mut file = LogFile::open(&path, false).unwrap();
        let moved = folder.path().join("moved");
        fs::rename(path.parent().unwrap(), &moved).unwrap();
        file.reopen().unwrap_err();
        file.write(b"1\n").unwrap();
        assert_eq!(fs::read(moved.join("access.log")).unwrap(), b"1\n");
    }

    #[test]
    fn lines_do_not_continue_one_that_broke_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        for (before, after) in [("", "2\n"), ("1\n", "1\n2\n"), ("1", "1\n2\n")] {
            fs::write(&path, before).unwrap();
            let mut opened = LogFile::open(&path, false).unwrap();
            opened.write(b"2\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
            fs::write(&path, before).unwrap();
            opened.reopen().unwrap();
            opened.write(b"2\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
            opened.write(b"3\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{after}3\n"));
        }
    }

    #[test]
    fn a_file_that_does_not_block_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        let mut to = LogFile {
            file: OwnedFd::from(writer).into(),
            path: None,
            date: None,
            is_torn: false,
        };
        let piece = [b'a'; 4096];
        let mut room = 0;
        while let Ok(len) = to.file.write(&piece) {
            room += len;
        }
        let reader = std::thread::spawn(move || {
            reader.read_exact(&mut vec![0; room]).unwrap();
            // It stays open until the line is written.
            reader
        });
        assert_eq!(to.write(b"1\n").unwrap(), 2);
        reader.join().unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/access.log");
        let e = LogFile::open(&path, false).err().unwrap().to_string();
        assert!(
            e.starts_with(&format!("{} cannot be opened: ", path.display())),
            "{e}"
        );
    }

    #[test]
    fn a_pipe_without_a_reader_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        let e = LogFile::open(&path, false).err().unwrap().to_string();
        assert!(e.ends_with("start the program that reads it first"), "{e}");
    }
}
