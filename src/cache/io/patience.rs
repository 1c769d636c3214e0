//! Time limits for blocking work, so that a disk that hangs does not hold up work on others.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// See [`Patience::short`].
const SHORT: Duration = Duration::from_secs(10);

/// See [`Patience::long`].
const LONG: Duration = Duration::from_secs(20);

/// The longest times that operations take on the disk of a folder while it works.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patience {
    /// The limit that a test has set.
    #[cfg(test)]
    limit: Arc<parking_lot::Mutex<Option<Duration>>>,
}

impl Patience {
    /// That of an operation on small files.
    pub(crate) fn short(&self) -> Duration {
        self.or(SHORT)
    }

    /// That of a step of a start, and of a write of a body.
    pub(crate) fn long(&self) -> Duration {
        self.or(LONG)
    }

    #[cfg(not(test))]
    fn or(&self, limit: Duration) -> Duration {
        limit
    }

    #[cfg(test)]
    fn or(&self, limit: Duration) -> Duration {
        self.limit.lock().unwrap_or(limit)
    }

    /// Set both limits, for operations that begin later.
    #[cfg(test)]
    pub(crate) fn set(&self, limit: Duration) {
        *self.limit.lock() = Some(limit);
    }
}

/// A folder that something is done in.
pub(crate) struct Folder<A> {
    pub path: PathBuf,
    /// The longest time that the work takes there.
    pub limit: Duration,
    /// The argument of the work.
    pub of: A,
}

/// Call `work` for each folder at the same time, on threads of their own, and wait for the results, in
/// this order, at most until the limit of each. After that, the error is `TimedOut`, the work goes on
/// alone, and its result is dropped. Blocks.
///
/// A single folder has no limit: nothing else could be done meanwhile.
pub(crate) fn each<A, T>(
    folders: Vec<Folder<A>>,
    work: impl Fn(&Path, A) -> io::Result<T> + Send + Sync + 'static,
) -> Vec<io::Result<T>>
where
    A: Send + 'static,
    T: Send + 'static,
{
    if folders.len() <= 1 {
        let only = folders.into_iter();
        return only
            .map(|Folder { path, of, .. }| work(&path, of))
            .collect();
    }
    let work = Arc::new(work);
    let start = |Folder { path, limit, of }: Folder<A>| {
        let (work, folder) = (work.clone(), path.clone());
        let until = Instant::now() + limit;
        (path, start(move || work(&folder, of)), until)
    };
    let started: Vec<_> = folders.into_iter().map(start).collect();
    let results = started.into_iter();
    results
        .map(|(path, started, until)| wait(&path, started?, until))
        .collect()
}

/// [`each`] for one of several folders.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    folder: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    wait(folder, start(work)?, Instant::now() + limit)
}

fn start<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<Receiver<io::Result<T>>> {
    let (done, result) = sync_channel(1);
    let thread = thread::Builder::new().name("cache-folder".into());
    thread.spawn(move || {
        // Nobody may wait for it any more.
        let _ = done.send(work());
    })?;
    Ok(result)
}

fn wait<T>(folder: &Path, result: Receiver<io::Result<T>>, until: Instant) -> io::Result<T> {
    let left = until.saturating_duration_since(Instant::now());
    result.recv_timeout(left).unwrap_or_else(|e| match e {
        RecvTimeoutError::Timeout => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{}: the disk does not answer", folder.display()),
        )),
        RecvTimeoutError::Disconnected => Err(io::Error::other("a thread has panicked")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTES: Duration = Duration::from_secs(600);

    #[test]
    fn a_folder_that_hangs_is_an_error_and_the_others_are_done() {
        let (end, hangs) = sync_channel::<()>(0);
        let hangs = std::sync::Mutex::new(hangs);
        let folders = [
            ("/a", MINUTES),
            ("/b", Duration::from_millis(5)),
            ("/c", MINUTES),
        ];
        let folders = folders.map(|(path, limit)| Folder {
            path: path.into(),
            limit,
            of: path.len(),
        });
        let results = each(folders.into(), move |path, n| {
            if path == Path::new("/b") {
                let _ = hangs.lock().unwrap().recv();
            }
            Ok(n)
        });
        assert!(matches!(results[..], [Ok(2), Err(_), Ok(2)]), "{results:?}");
        let e = results[1].as_ref().unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        assert!(e.to_string().starts_with("/b: "), "{e}");
        drop(end);
    }

    #[test]
    fn the_only_folder_has_no_limit() {
        let only = Folder {
            path: "/a".into(),
            limit: Duration::ZERO,
            of: (),
        };
        let results = each(vec![only], |_, ()| {
            thread::sleep(Duration::from_millis(5));
            Ok(())
        });
        assert!(matches!(results[..], [Ok(())]));
    }
}
