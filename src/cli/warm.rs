//! `s3-proxy warm`: asks a running proxy to store objects.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use pingora_sendfile::config::Config;

use super::admin::{AdminClient, AdminConnection, Answer};
use super::{url_path, Failure, Outcome, Output};

/// The longest wait for a proxy that is busy, or loads its cache.
const BUSY_PATIENCE: Duration = Duration::from_secs(600);

/// The longest pause before a busy proxy is asked again.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The time limit for a page of a list, which the proxy fetches from the origin.
const LIST_TIMEOUT: Duration = Duration::from_secs(300);

/// The time between two lines on the progress, where there is no terminal.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The time after which somebody who waits for a path looks if the command has ended.
const QUEUE_INTERVAL: Duration = Duration::from_millis(200);

/// The longest line of a list, in bytes.
const MAX_LINE: u64 = 64 * 1024;

/// The exit code after Ctrl-C: 128 and the number of SIGINT.
const INTERRUPTED: i32 = 130;

/// The objects to store.
pub struct Wanted {
    /// Paths, encoded.
    pub paths: Vec<String>,
    /// A file with a path a line; `-`: standard input.
    pub list: Option<PathBuf>,
    /// The number of objects at a time.
    pub concurrency: usize,
}

/// The results so far.
struct Progress {
    /// Draws nothing unless standard error is a terminal.
    bar: ProgressBar,
    /// Objects to store.
    found: AtomicU64,
    /// True once all objects have been found.
    has_found_all: AtomicBool,
    stored: AtomicU64,
    stored_bytes: AtomicU64,
    already_stored: AtomicU64,
    failed: AtomicU64,
    /// The reason to end early.
    fatal: Mutex<Option<Failure>>,
}

/// Finds the paths of the objects to store.
struct Finder {
    connection: AdminConnection,
    queue: SyncSender<String>,
    progress: Arc<Progress>,
}

/// Nobody takes further paths: the command ends.
struct Ends;

/// `s3-proxy warm --config FILE [--list FILE] [PATH...]`.
pub fn run(config: &Config, wanted: Wanted) -> Outcome {
    let admin = AdminClient::new(config)?;
    let list = wanted.list.as_deref().map(open).transpose()?;
    let progress = Arc::new(Progress::new()?);
    report_interrupt(progress.clone())?;
    report_regularly(progress.clone());

    let (queue, paths) = mpsc::sync_channel(2 * wanted.concurrency);
    let paths = Arc::new(Mutex::new(paths));
    let workers: Vec<_> = (0..wanted.concurrency)
        .map(|_| {
            let (paths, connection) = (paths.clone(), admin.connection());
            let progress = progress.clone();
            thread::spawn(move || store_all(&paths, connection, &progress))
        })
        .collect();
    // The workers alone own it, so that the queue breaks when they end.
    drop(paths);
    let finder = Finder {
        connection: admin.connection(),
        queue,
        progress: progress.clone(),
    };
    // Not waited for after a failure: it may wait for standard input.
    let finder = thread::spawn(move || finder.find_all(&wanted.paths, list));
    for worker in workers {
        // One that panics has written why.
        let _ = worker.join();
    }
    let fatal = lock(&progress.fatal).take();
    let found = match fatal {
        Some(_) => Ok(()),
        None => finder.join().unwrap_or(Ok(())),
    };

    progress.bar.finish_and_clear();
    let mut output = Output::new();
    output.line(progress.summary())?;
    output.flush()?;
    match fatal {
        Some(fatal) => return Err(fatal),
        None => found?,
    }
    Ok(match progress.failed.load(Ordering::Relaxed) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn open(list: &Path) -> Result<Box<dyn BufRead + Send>, Failure> {
    if list == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(list)
        .map_err(|e| Failure::Other(format!("{}: cannot open it: {e}", list.display())))?;
    Ok(Box::new(BufReader::new(file)))
}

/// Have objects stored, one after another, until there are no more.
fn store_all(
    paths: &Mutex<Receiver<String>>,
    mut connection: AdminConnection,
    progress: &Progress,
) {
    loop {
        // The others wait for the lock instead of the queue.
        let next = lock(paths).recv_timeout(QUEUE_INTERVAL);
        let path = match next {
            _ if progress.has_ended() => return,
            Ok(path) => path,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // An object may take hours; the proxy ends it if the origin stalls.
        match ask_until_free(&mut connection, "WARM", &path, None) {
            Ok(answer) => progress.note(&path, &answer),
            Err(fatal) => return progress.end(fatal),
        }
    }
}

/// Sends a request, and again while the proxy is busy.
///
/// # Errors
/// The proxy does not answer, or stays busy.
fn ask_until_free(
    connection: &mut AdminConnection,
    method: &str,
    path: &str,
    patience: Option<Duration>,
) -> Result<Answer, Failure> {
    let begun = Instant::now();
    loop {
        let answer = connection.ask(method, path, patience)?;
        let Some(pause) = answer.retry_after else {
            return Ok(answer);
        };
        if begun.elapsed() > BUSY_PATIENCE {
            let minutes = BUSY_PATIENCE.as_secs() / 60;
            return Err(Failure::Other(format!(
                "{path}: {}; the proxy has been busy for {minutes} minutes",
                answer.text
            )));
        }
        thread::sleep(pause.min(MAX_PAUSE));
    }
}

/// Write how far it came, and end the process, on Ctrl-C.
fn report_interrupt(progress: Arc<Progress>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    thread::Builder::new()
        .name("interrupt".into())
        .spawn(move || {
            if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
                progress.bar.finish_and_clear();
                eprintln!(
                    "s3-proxy: interrupted: {}; run it again to go on",
                    progress.summary()
                );
                std::process::exit(INTERRUPTED);
            }
        })?;
    Ok(())
}

/// Write how far it came every few seconds, unless a terminal shows the progress bar.
fn report_regularly(progress: Arc<Progress>) {
    if !progress.bar.is_hidden() {
        return;
    }
    thread::spawn(move || loop {
        thread::sleep(REPORT_INTERVAL);
        eprintln!("s3-proxy: {}", progress.summary());
    });
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Progress ===

impl Progress {
    fn new() -> Result<Progress, Failure> {
        let template = "{spinner} {msg}, {decimal_bytes} fetched, {decimal_bytes_per_sec}";
        let style = ProgressStyle::with_template(template)
            .map_err(|e| Failure::Other(format!("progress bar: {e}")))?;
        let bar = ProgressBar::no_length().with_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Progress {
            bar,
            found: AtomicU64::new(0),
            has_found_all: AtomicBool::new(false),
            stored: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            already_stored: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            fatal: Mutex::new(None),
        })
    }

    /// Count the answer for an object.
    fn note(&self, path: &str, answer: &Answer) {
        if answer.status != 200 {
            return self.fail(path, &answer.text);
        }
        let Some(stored) = answer.text.strip_prefix("stored, ") else {
            self.already_stored.fetch_add(1, Ordering::Relaxed);
            return self.draw();
        };
        let len = stored.split(' ').next().and_then(|len| len.parse().ok());
        let len = len.unwrap_or(0);
        self.stored.fetch_add(1, Ordering::Relaxed);
        self.stored_bytes.fetch_add(len, Ordering::Relaxed);
        self.bar.inc(len);
        self.draw();
    }

    /// Report and count a failure. The others go on.
    fn fail(&self, path: &str, why: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.bar.suspend(|| eprintln!("s3-proxy: {path}: {why}"));
        self.draw();
    }

    /// End early. The first reason counts.
    fn end(&self, fatal: Failure) {
        lock(&self.fatal).get_or_insert(fatal);
    }

    fn has_ended(&self) -> bool {
        lock(&self.fatal).is_some()
    }

    fn draw(&self) {
        if self.bar.is_hidden() {
            return;
        }
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let failed = count(&self.failed);
        let done = count(&self.stored) + count(&self.already_stored) + failed;
        let more = match self.has_found_all.load(Ordering::Relaxed) {
            true => "",
            false => "+",
        };
        self.bar.set_message(format!(
            "{done} of {}{more} objects, {failed} failed",
            count(&self.found)
        ));
    }

    fn summary(&self) -> String {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        format!(
            "{} stored ({}), {} already stored, {} failed",
            count(&self.stored),
            DecimalBytes(count(&self.stored_bytes)),
            count(&self.already_stored),
            count(&self.failed)
        )
    }
}

// === impl Finder ===

impl Finder {
    /// Find all objects.
    ///
    /// # Errors
    /// The list cannot be read.
    fn find_all(
        mut self,
        paths: &[String],
        list: Option<Box<dyn BufRead + Send>>,
    ) -> Result<(), Failure> {
        for path in paths {
            if self.find(path).is_err() {
                return Ok(());
            }
        }
        if let Some(list) = list {
            self.read(list)?;
        }
        self.progress.has_found_all.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Find the objects of a list with a path a line. Empty lines and comments are skipped.
    fn read(&mut self, mut list: Box<dyn BufRead + Send>) -> Result<(), Failure> {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = list.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
            let read = match read {
                Ok(_) if line.len() as u64 == MAX_LINE => Err(ErrorKind::InvalidData.into()),
                read => read,
            };
            let read = read.map_err(|e| {
                Failure::Other(format!("line {number} of the list cannot be read: {e}"))
            })?;
            if read == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let found = match (std::str::from_utf8(&line), url_path(text)) {
                (Ok(_), Ok(path)) => self.find(&path),
                (Err(_), _) => {
                    self.progress.fail(text, "it is not in UTF-8");
                    Ok(())
                }
                (_, Err(why)) => {
                    self.progress.fail(text, &why);
                    Ok(())
                }
            };
            if found.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Find the objects of a path: one, or with a final `*` all whose path begins so.
    fn find(&mut self, path: &str) -> Result<(), Ends> {
        match path.strip_suffix('*') {
            None => self.queue(path.to_owned()),
            Some(prefix) => self.list(path, prefix),
        }
    }

    fn list(&mut self, path: &str, prefix: &str) -> Result<(), Ends> {
        let mut page = prefix.to_owned();
        loop {
            let listed = ask_until_free(&mut self.connection, "LIST", &page, Some(LIST_TIMEOUT));
            let listed = listed.map_err(|fatal| {
                self.progress.end(fatal);
                Ends
            })?;
            if listed.status != 200 {
                self.progress.fail(path, &listed.text);
                return Ok(());
            }
            for line in listed.text.lines() {
                if let Some((_, found)) = line.split_once(' ') {
                    self.queue(found.to_owned())?;
                }
            }
            let Some(next) = listed.next_page else {
                return Ok(());
            };
            let next = format!("{prefix}?after={next}");
            if next == page {
                let why = "the origin sends the same page of the list again";
                self.progress.fail(path, why);
                return Ok(());
            }
            page = next;
        }
    }

    fn queue(&self, path: String) -> Result<(), Ends> {
        self.progress.found.fetch_add(1, Ordering::Relaxed);
        self.progress.draw();
        match self.progress.has_ended() {
            true => Err(Ends),
            false => self.queue.send(path).map_err(|_| Ends),
        }
    }
}
