//! The faults, and their times.

use std::{
    fmt,
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        Mutex,
    },
    thread,
    time::{Duration, Instant},
};

use test_support::{Proxy, Random};

use crate::{folder::Folder, Shared};

/// The age at which a fault is forgotten: no response takes so long.
const PAST: Duration = Duration::from_secs(180);

/// The effects of a fault are over so long after it.
const AFTERMATH: Duration = Duration::from_secs(1);

/// The interval at which space that has become free is taken again.
const REFILL: Duration = Duration::from_millis(50);

/// The times of faults that may cost a response.
#[derive(Default)]
pub struct Faults {
    /// Start and end.
    times: Mutex<Vec<(Instant, Option<Instant>)>>,
    done: Done,
}

/// The number of faults of each kind.
#[derive(Debug, Default)]
struct Done {
    kills: AtomicU64,
    restarts: AtomicU64,
    damaged: AtomicU64,
    filled: AtomicU64,
    chilled: AtomicU64,
}

/// Makes faults on a thread of its own.
pub struct Saboteur<'s> {
    pub shared: &'s Shared,
    pub proxy: &'s Mutex<Proxy>,
    pub folder: &'s Folder,
    pub random: Random,
    /// True if files are damaged.
    pub damages: bool,
}

// === impl Faults ===

impl Faults {
    /// True if a response that was asked for then may have been hit.
    pub fn since(&self, asked_at: Instant) -> bool {
        self.times
            .lock()
            .unwrap()
            .iter()
            .any(|(_, end)| end.is_none_or(|end| end + AFTERMATH > asked_at))
    }

    /// Past faults are no excuse any more.
    pub fn forget(&self) {
        self.times.lock().unwrap().clear();
    }

    /// Something is wrong as long as the closure runs.
    fn during<T>(&self, fault: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        {
            let mut times = self.times.lock().unwrap();
            times.retain(|(start, _)| start.elapsed() < PAST);
            times.push((start, None));
        }
        let result = fault();
        let mut times = self.times.lock().unwrap();
        for time in times.iter_mut().filter(|(of, _)| *of == start) {
            time.1 = Some(Instant::now());
        }
        result
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = &self.done;
        write!(
            f,
            "{} kills, {} restarts, {} files damaged, {} times full, {} times cold",
            done.kills.load(Relaxed),
            done.restarts.load(Relaxed),
            done.damaged.load(Relaxed),
            done.filled.load(Relaxed),
            done.chilled.load(Relaxed)
        )
    }
}

// === impl Saboteur ===

impl Saboteur<'_> {
    /// Makes faults until it is told to stop.
    pub fn run(mut self) {
        while self.wait() {
            match self.random.of(0..10) {
                0 => self.kill(),
                1 => self.restart(),
                2..4 if self.folder.can_be_filled() => self.fill(),
                2..5 if self.folder.can_be_chilled() => {
                    self.folder.chill();
                    self.shared.faults.done.chilled.fetch_add(1, Relaxed);
                }
                _ if self.damages => self.damage(),
                _ => {}
            }
        }
    }

    /// Waits a while; true: go on.
    fn wait(&mut self) -> bool {
        let until = Instant::now() + Duration::from_millis(self.random.of(200..3_000));
        while Instant::now() < until && !self.shared.stops() {
            thread::sleep(Duration::from_millis(20));
        }
        !self.shared.stops()
    }

    fn kill(&mut self) {
        let faults = &self.shared.faults;
        faults.during(|| {
            let mut proxy = self.proxy.lock().unwrap();
            *self.shared.address.write().unwrap() = None;
            proxy.kill();
            if self.damages {
                for _ in 0..self.random.of(0..4) {
                    if self.folder.damage_stopped(&mut self.random).is_some() {
                        faults.done.damaged.fetch_add(1, Relaxed);
                    }
                }
            }
            // Sometimes to a disk that is full.
            let mut filler = None;
            if self.folder.can_be_filled() && self.random.percent(50) {
                filler.insert(self.folder.fill()).refill(0);
            }
            proxy.restart();
            *self.shared.address.write().unwrap() = Some(proxy.addr());
        });
        faults.done.kills.fetch_add(1, Relaxed);
    }

    fn restart(&mut self) {
        let faults = &self.shared.faults;
        faults.during(|| {
            let mut proxy = self.proxy.lock().unwrap();
            *self.shared.address.write().unwrap() = None;
            proxy.restart();
            *self.shared.address.write().unwrap() = Some(proxy.addr());
        });
        faults.done.restarts.fetch_add(1, Relaxed);
    }

    fn damage(&mut self) {
        let faults = &self.shared.faults;
        if faults
            .during(|| self.folder.damage(&mut self.random))
            .is_some()
        {
            faults.done.damaged.fetch_add(1, Relaxed);
        }
    }

    fn fill(&mut self) {
        let faults = &self.shared.faults;
        faults.during(|| {
            let until = Instant::now() + Duration::from_millis(self.random.of(500..3_000));
            let mut filler = self.folder.fill();
            while Instant::now() < until && !self.shared.stops() {
                filler.refill(self.random.of(0..300_000));
                thread::sleep(REFILL);
            }
        });
        faults.done.filled.fetch_add(1, Relaxed);
    }
}
