//! The objects that clients request most, counted for some of the requests.
//!
//! A request is counted with a chance of one in [`SAMPLE`], chosen at random so that no pattern of
//! requests hides from it. The other requests cost a counter of their thread. The counts are those of
//! the Space-Saving algorithm (Metwally, Agrawal, El Abbadi, 2005): a fixed number of objects has one,
//! and a new object takes over the smallest. Each minute halves them, so that they are those of the
//! last minutes.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The number of requests of which one is counted, on average.
const SAMPLE: u32 = 32;

/// The most objects with a count.
const CAPACITY: usize = 256;

/// The time after which counts are halved.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// The longest path of an object in bytes: a key of 1,024 bytes, percent-encoded, and a prefix. A longer
/// one is not counted.
const MAX_PATH: usize = 4096;

/// The objects that are requested most.
#[derive(Default)]
pub(super) struct TopKeys(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    by_path: HashMap<String, u64>,
    /// All that were counted, also of objects that have no count any more.
    total: u64,
    halved: Option<Instant>,
}

/// An object and its share of the requests.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TopKey {
    pub(super) path: String,
    /// From 0 to 1.
    pub(super) share: f64,
}

// === impl TopKeys ===

impl TopKeys {
    /// Count a request for the object with the path that `path` makes, or do not.
    pub(super) fn note(&self, path: impl FnOnce() -> Option<String>) {
        thread_local! {
            /// The number of further requests that are not counted.
            static SKIPPED: Cell<u32> = const { Cell::new(0) };
        }
        let left = SKIPPED.get();
        if left > 0 {
            SKIPPED.set(left - 1);
            return;
        }
        SKIPPED.set(fastrand::u32(0..2 * SAMPLE - 1));
        // A count that is in use is not worth waiting for.
        let Some(mut counts) = self.0.try_lock() else {
            return;
        };
        if let Some(path) = path().filter(|path| path.len() <= MAX_PATH) {
            counts.add(path, Instant::now());
        }
    }

    /// The objects with the most requests, at most `max`, the first of them first.
    pub(super) fn top(&self, max: usize) -> Vec<TopKey> {
        let (mut all, total) = {
            let mut counts = self.0.lock();
            counts.halve(Instant::now());
            let all = counts.by_path.iter();
            let all: Vec<_> = all.map(|(path, count)| (path.clone(), *count)).collect();
            (all, counts.total)
        };
        all.sort_unstable_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| a.cmp(b)));
        all.truncate(max);
        let top = all.into_iter().map(|(path, count)| TopKey {
            path,
            share: count as f64 / total.max(1) as f64,
        });
        top.collect()
    }
}

// === impl Counts ===

impl Counts {
    fn add(&mut self, path: String, now: Instant) {
        self.halve(now);
        self.total += 1;
        if let Some(count) = self.by_path.get_mut(&path) {
            *count += 1;
            return;
        }
        let mut count = 0;
        if self.by_path.len() >= CAPACITY {
            let least = self.by_path.iter().min_by_key(|(_, count)| **count);
            if let Some(least) = least.map(|(path, _)| path.clone()) {
                count = self.by_path.remove(&least).unwrap_or(0);
            }
        }
        self.by_path.insert(path, count + 1);
    }

    fn halve(&mut self, now: Instant) {
        let halved = *self.halved.get_or_insert(now);
        let times = now.saturating_duration_since(halved).as_secs() / HALF_LIFE.as_secs();
        if times == 0 {
            return;
        }
        self.halved = Some(now);
        let halve = |count: u64| count.checked_shr(times.min(63) as u32).unwrap_or(0);
        self.total = halve(self.total);
        self.by_path.retain(|_, count| {
            *count = halve(*count);
            *count > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_requested_most_is_found_among_many_more_objects_than_there_are_counts() {
        let mut counts = Counts::default();
        let now = Instant::now();
        for n in 0..100_000_u32 {
            let path = match n % 10 {
                0..4 => "/hot/1".to_owned(),
                4..6 => "/hot/2".to_owned(),
                _ => format!("/cold/{n}"),
            };
            counts.add(path, now);
            assert!(counts.by_path.len() <= CAPACITY);
        }
        let top = TopKeys(Mutex::new(counts)).top(2);
        let paths: Vec<_> = top.iter().map(|top| &*top.path).collect();
        assert_eq!(paths, ["/hot/1", "/hot/2"]);
        assert!((top[0].share - 0.4).abs() < 0.01, "{top:?}");
        assert!((top[1].share - 0.2).abs() < 0.01, "{top:?}");
    }

    #[test]
    fn what_is_no_longer_requested_is_forgotten() {
        let mut counts = Counts::default();
        let begin = Instant::now();
        (0..1000).for_each(|_| counts.add("/former".into(), begin));
        let later = begin + HALF_LIFE * 3;
        (0..200).for_each(|_| counts.add("/present".into(), later));
        assert_eq!(
            (counts.by_path["/former"], counts.by_path["/present"]),
            (125, 200)
        );
        counts.halve(later + HALF_LIFE * 100);
        assert!(counts.by_path.is_empty());
        assert_eq!(counts.total, 0);
    }

    #[test]
    fn about_one_of_many_requests_is_counted() {
        const REQUESTS: u64 = 100_000;
        let top = TopKeys::default();
        (0..REQUESTS).for_each(|_| top.note(|| Some("/a".into())));
        let expected = REQUESTS / u64::from(SAMPLE);
        let total = top.0.lock().total;
        assert!(
            (expected * 9 / 10..expected * 11 / 10).contains(&total),
            "{total}"
        );
        // A path that nobody could use is not kept.
        (0..REQUESTS).for_each(|_| top.note(|| Some("x".repeat(MAX_PATH + 1))));
        assert_eq!(top.0.lock().total, total);
    }
}
