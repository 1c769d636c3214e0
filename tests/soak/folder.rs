//! The cache folder as somebody outside the proxy sees it, and treats it.

use std::{
    fs::{self, File},
    io::Write,
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use rustix::fs::{fadvise, statvfs, Advice};
use tempfile::TempDir;
use test_support::Random;

/// Bodies up to this length are read whole, and their checksum is verified,
/// before they are served: `cache.disk.sendfile.threshold_bytes`.
pub const VERIFIED_LEN: u64 = 16 * 1024;

/// Length of the smallest block of a body, in bytes.
const SMALLEST_BLOCK: u64 = 64 * 1024;

/// A body is not touched before nobody follows its fill any more.
const SETTLED: Duration = Duration::from_secs(5);

/// The size of a tmpfs, in bytes: more than the cache may take.
const TMPFS: u64 = 256 << 20;

/// A cache folder.
pub struct Folder {
    dir: TempDir,
    mounted: bool,
}

/// A file of an entry.
struct EntryFile {
    path: PathBuf,
    len: u64,
    is_body: bool,
    settled: bool,
}

/// The contents of a cache folder.
#[derive(Debug, Default)]
pub struct Content {
    pub entries: u64,
    pub bytes: u64,
    pub temporary: Vec<PathBuf>,
}

// === impl Folder ===

impl Folder {
    /// On the disk that cargo builds on.
    pub fn on_disk() -> Self {
        let dir = TempDir::with_prefix_in("soak-", env!("CARGO_TARGET_TMPDIR"));
        Self {
            dir: dir.expect("make the cache folder"),
            mounted: false,
        }
    }

    /// On a file system of its own in memory, which can be filled. The error:
    /// why there is none.
    pub fn on_tmpfs() -> Result<Self, String> {
        let mut folder = Self::on_disk();
        let options = format!("size={TMPFS},mode=755");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "soak"])
            .arg(folder.path())
            .output()
            .map_err(|e| format!("mount: {e}"))?;
        if !mount.status.success() {
            return Err(String::from_utf8_lossy(&mount.stderr).trim().to_owned());
        }
        folder.mounted = true;
        Ok(folder)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// True if it can be filled without harm to others.
    pub fn can_be_filled(&self) -> bool {
        self.mounted
    }

    /// True if its files leave the page cache when told to.
    pub fn can_be_chilled(&self) -> bool {
        !self.mounted
    }

    fn files(&self) -> Vec<PathBuf> {
        // Files and folders may go while they are listed.
        let list = |folder: &Path| -> Vec<PathBuf> {
            let names = fs::read_dir(folder).into_iter().flatten();
            names.flatten().map(|name| name.path()).collect()
        };
        let shards = list(&self.path().join("v2"));
        shards.iter().flat_map(|shard| list(shard)).collect()
    }

    /// Bodies and metadata that are complete.
    fn entry_files(&self) -> Vec<EntryFile> {
        let file = |path: PathBuf| {
            let extension = path.extension()?.to_str()?;
            let is_body = extension == "body";
            if !is_body && extension != "meta" {
                return None;
            }
            let stat = fs::metadata(&path).ok()?;
            let age = SystemTime::now().duration_since(stat.modified().ok()?);
            Some(EntryFile {
                path,
                len: stat.len(),
                is_body,
                settled: age.is_ok_and(|age| age > SETTLED),
            })
        };
        self.files().into_iter().filter_map(file).collect()
    }

    /// Its contents.
    pub fn content(&self) -> Content {
        let mut content = Content::default();
        for path in self.files() {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("tmp") => content.temporary.push(path),
                Some(extension @ ("body" | "meta")) => {
                    let taken = fs::metadata(&path).map_or(0, |stat| {
                        let allocated = stat.st_blocks() * 512;
                        // A body in blocks has holes of whole blocks.
                        match stat.len().saturating_sub(allocated) >= SMALLEST_BLOCK {
                            true => allocated,
                            false => stat.len().next_multiple_of(4096),
                        }
                    });
                    content.bytes += taken;
                    content.entries += u64::from(extension == "meta");
                }
                _ => {}
            }
        }
        content
    }

    /// Damages a file while the proxy runs; says how.
    ///
    /// Only what can be noticed: a kernel that was told to send a page by
    /// sendfile(2) sends what the page holds when the packet leaves. So bits are
    /// not flipped in bodies that go by sendfile, and those are only truncated
    /// to nothing: any other new end zeroes the rest of its page, or of the
    /// larger folio that it is in.
    pub fn damage(&self, random: &mut Random) -> Option<&'static str> {
        let files = self.entry_files();
        let file = random.pick(&files)?;
        let verified = !file.is_body || file.len <= VERIFIED_LEN;
        Some(match random.of(0..4) {
            0 => {
                let _ = fs::remove_file(&file.path);
                "remove"
            }
            1 if verified && file.settled => {
                file.overwrite(|bytes| flip(bytes, random));
                "flip"
            }
            2 if verified => {
                file.truncate(random.of(0..file.len.max(1)));
                "truncate"
            }
            3 if random.percent(10) => {
                let shard = file.path.parent().expect("a shard");
                let _ = fs::remove_dir_all(shard);
                "remove a shard"
            }
            _ => {
                file.truncate(0);
                "empty"
            }
        })
    }

    /// Damages a file while the proxy does not run; says how. Bits are flipped
    /// only where they are looked for before a response: those of larger bodies
    /// the scrubber finds, some time.
    ///
    /// Never in place: what a killed proxy had handed to the kernel is on its
    /// way to clients still.
    pub fn damage_stopped(&self, random: &mut Random) -> Option<&'static str> {
        let files = self.entry_files();
        let file = random.pick(&files)?;
        let verified = !file.is_body || file.len <= VERIFIED_LEN;
        Some(match random.of(0..4) {
            0 => {
                let _ = fs::remove_file(&file.path);
                "remove"
            }
            1 if verified => {
                file.replace(|bytes| flip(bytes, random));
                "flip"
            }
            2 => {
                let name = file.path.with_extension("body.tmp");
                fs::write(name, b"left over").expect("leave something over");
                "leave over"
            }
            _ => {
                let len = random.of(0..file.len.max(1)) as usize;
                file.replace(|bytes| bytes.truncate(len));
                "truncate"
            }
        })
    }

    /// Drops the bodies from the page cache.
    pub fn chill(&self) {
        for file in self.entry_files().iter().filter(|file| file.is_body) {
            if let Ok(file) = File::open(&file.path) {
                let _ = fadvise(&file, 0, None, Advice::DontNeed);
            }
        }
    }

    /// Fills the file system but for some pages, as long as the guard lives.
    pub fn fill(&self) -> Filler {
        let path = self.path().join("filler");
        let file = File::create(&path).expect("create the filler");
        Filler { file, path }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a proxy that was left running by a panic still uses it.
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
    }
}

fn flip(bytes: &mut [u8], random: &mut Random) {
    if !bytes.is_empty() {
        let at = random.of(0..bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.of(0..8);
    }
}

// === impl EntryFile ===

impl EntryFile {
    /// Changes bytes in place, unless the file is gone.
    fn overwrite(&self, change: impl FnOnce(&mut [u8])) {
        let Ok(mut bytes) = fs::read(&self.path) else {
            return;
        };
        change(&mut bytes);
        if let Ok(mut file) = File::options().write(true).open(&self.path) {
            file.write_all(&bytes).expect("change a file of the cache");
        }
    }

    /// Shortens it in place, unless it is gone.
    fn truncate(&self, len: u64) {
        if let Ok(file) = File::options().write(true).open(&self.path) {
            file.set_len(len).expect("truncate a file of the cache");
        }
    }

    /// Puts a changed copy in its place.
    fn replace(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(&self.path).expect("read a file of the cache");
        change(&mut bytes);
        let copy = self.path.with_extension("copy");
        fs::write(&copy, bytes)
            .and_then(|()| fs::rename(&copy, &self.path))
            .expect("replace a file of the cache");
    }
}

/// Takes the space that is left.
pub struct Filler {
    file: File,
    path: PathBuf,
}

// === impl Filler ===

impl Filler {
    /// Takes what has become free, but for `spare` bytes.
    pub fn refill(&mut self, spare: u64) {
        let stat = statvfs(&self.path).expect("ask for the free space");
        let free = stat.f_bavail * stat.f_frsize;
        let zeros = vec![0; 64 * 1024];
        let mut left = free.saturating_sub(spare);
        while left > 0 {
            let piece = left.min(zeros.len() as u64) as usize;
            // The proxy writes too: it may be full earlier than expected.
            if self.file.write_all(&zeros[..piece]).is_err() {
                return;
            }
            left -= piece as u64;
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
