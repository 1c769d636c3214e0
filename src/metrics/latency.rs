//! Histograms of times.
//!
//! A hit observes two of them. Each thread counts in cache lines of its own: with one set for all,
//! the lines would move between the processors with each request. So a histogram of the prometheus
//! crate does not fit; it also takes twice as many atomic operations.

use std::array;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::VALID;
use crate::http::rules::cache_status::CacheResult;

/// The label of requests for no bucket. It is not a name that a bucket can have.
pub(crate) const NO_BUCKET: &str = "-";

/// The upper bounds of the histograms, from 100 µs to 60 s.
const BOUNDS: [Duration; 18] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// The most threads that count apart from others.
const MAX_SHARDS: usize = 16;

/// Values of the label `cache`: the results in their order, and responses that no cache has a part in.
const RESULTS: [&str; CacheResult::ALL.len() + 1] = [
    "hit",
    "miss",
    "stale",
    "revalidated",
    "partial",
    "bypass",
    "none",
];

/// The times of requests, by bucket.
pub(crate) struct TimesMetrics {
    buckets: Mutex<Vec<Weak<BucketTimes>>>,
    duration: Desc,
    first_byte: Desc,
    origin: Desc,
}

/// The times of the requests for a bucket. A histogram takes memory once it has observed a time.
pub(crate) struct BucketTimes {
    name: String,
    /// By the result.
    requests: [OnceLock<RequestTimes>; RESULTS.len()],
    origin: OnceLock<Histogram>,
}

/// The times of requests with one result.
#[derive(Default)]
struct RequestTimes {
    duration: Histogram,
    first_byte: Histogram,
}

/// Numbers of times, by their length.
struct Histogram(Box<[Shard]>);

/// The counts of some threads.
#[derive(Default)]
#[repr(align(64))]
struct Shard {
    /// Times up to each of the bounds and above the one before; at last, those above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// The sum of all times, in nanoseconds. Prometheus takes an overflow for a restart.
    sum: AtomicU64,
}

// === impl TimesMetrics ===

impl TimesMetrics {
    pub(super) fn new() -> TimesMetrics {
        let desc = |name: &str, help: &str, labels: &[&str]| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, Default::default()).expect(VALID)
        };
        TimesMetrics {
            buckets: Mutex::default(),
            duration: desc(
                "request_duration_seconds",
                "Time from the head of a request to the end of its response, by bucket and by the \
                 part of the cache",
                &["bucket", "cache"],
            ),
            first_byte: desc(
                "request_first_byte_seconds",
                "Time from the head of a request to that of its response, by bucket and by the part \
                 of the cache",
                &["bucket", "cache"],
            ),
            origin: desc(
                "origin_first_byte_seconds",
                "Time from the begin of a request to the origin, with the connection, to the head of \
                 its response, by bucket",
                &["bucket"],
            ),
        }
    }

    /// The times of a bucket: those that are kept already, if there are any.
    pub(crate) fn of_bucket(&self, name: &str) -> Arc<BucketTimes> {
        let mut buckets = self.buckets.lock();
        buckets.retain(|kept| kept.strong_count() > 0);
        let mut kept = buckets.iter().filter_map(Weak::upgrade);
        kept.find(|kept| kept.name == name).unwrap_or_else(|| {
            let times = Arc::new(BucketTimes::new(name));
            buckets.push(Arc::downgrade(&times));
            times
        })
    }
}

impl Collector for TimesMetrics {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.duration, &self.first_byte, &self.origin]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let kept = self.buckets.lock();
        let mut buckets: Vec<_> = kept.iter().filter_map(Weak::upgrade).collect();
        drop(kept);
        buckets.sort_by(|a, b| a.name.cmp(&b.name));
        let (mut duration, mut first_byte, mut origin) = (Vec::new(), Vec::new(), Vec::new());
        for bucket in &buckets {
            let labels = || vec![label("bucket", &bucket.name)];
            for (times, result) in bucket.requests.iter().zip(RESULTS) {
                if let Some(times) = times.get() {
                    let labels = || [labels(), vec![label("cache", result)]].concat();
                    duration.push(times.duration.metric(labels()));
                    first_byte.push(times.first_byte.metric(labels()));
                }
            }
            origin.extend(bucket.origin.get().map(|times| times.metric(labels())));
        }
        [
            (&self.duration, duration),
            (&self.first_byte, first_byte),
            (&self.origin, origin),
        ]
        .into_iter()
        // One without metrics is not valid.
        .filter(|(_, metrics)| !metrics.is_empty())
        .map(|(desc, metrics)| {
            let mut family = MetricFamily::default();
            family.set_name(desc.fq_name.clone());
            family.set_help(desc.help.clone());
            family.set_field_type(MetricType::HISTOGRAM);
            family.set_metric(metrics);
            family
        })
        .collect()
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}

// === impl BucketTimes ===

impl BucketTimes {
    fn new(name: &str) -> BucketTimes {
        BucketTimes {
            name: name.to_owned(),
            requests: array::from_fn(|_| OnceLock::new()),
            origin: OnceLock::new(),
        }
    }

    /// Count a request. `first_byte`: the time until its response header, if there was one.
    pub(crate) fn observe(
        &self,
        result: Option<CacheResult>,
        duration: Duration,
        first_byte: Option<Duration>,
    ) {
        let at = result.map_or(CacheResult::ALL.len(), |result| result as usize);
        let times = self.requests[at].get_or_init(RequestTimes::default);
        times.duration.observe(duration);
        if let Some(first_byte) = first_byte {
            times.first_byte.observe(first_byte);
        }
    }

    /// Count an answer of the origin.
    pub(crate) fn observe_origin(&self, first_byte: Duration) {
        let times = self.origin.get_or_init(Histogram::default);
        times.observe(first_byte);
    }
}

// === impl Histogram ===

impl Default for Histogram {
    fn default() -> Histogram {
        let shards = thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..shards.min(MAX_SHARDS)).map(|_| Shard::default());
        Histogram(shards.collect())
    }
}

impl Histogram {
    fn observe(&self, time: Duration) {
        let shard = &self.0[thread_number() % self.0.len()];
        let at = BOUNDS.partition_point(|bound| *bound < time);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        shard.counts[at].fetch_add(1, Ordering::Relaxed);
        shard.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    fn metric(&self, labels: Vec<LabelPair>) -> Metric {
        let sum_of = |counter: &dyn Fn(&Shard) -> &AtomicU64| {
            let counts = self.0.iter().map(|s| counter(s).load(Ordering::Relaxed));
            counts.fold(0, u64::wrapping_add)
        };
        let mut count = 0;
        let buckets = BOUNDS.iter().enumerate().map(|(at, bound)| {
            count += sum_of(&|shard| &shard.counts[at]);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound.as_secs_f64());
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        count += sum_of(&|shard| &shard.counts[BOUNDS.len()]);
        histogram.set_sample_count(count);
        let sum = sum_of(&|shard| &shard.sum);
        histogram.set_sample_sum(Duration::from_nanos(sum).as_secs_f64());
        let mut metric = Metric::default();
        metric.set_label(labels);
        metric.set_histogram(histogram);
        metric
    }
}

/// The number of this thread.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(families: &[MetricFamily]) -> Vec<&str> {
        families.iter().map(MetricFamily::name).collect()
    }

    #[test]
    fn times_of_all_threads_are_in_the_buckets_up_to_their_bounds() {
        let histogram = Histogram::default();
        let times = [0, 100, 101, 60_000_000, 60_000_001];
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    for micros in times {
                        histogram.observe(Duration::from_micros(micros));
                    }
                });
            }
        });
        let metric = histogram.metric(Vec::new());
        let histogram = metric.get_histogram();
        assert_eq!(histogram.get_sample_count(), 100);
        let sum = 20.0 * times.iter().sum::<u64>() as f64 / 1e6;
        assert!((histogram.get_sample_sum() - sum).abs() < 1e-6);
        let buckets = histogram.get_bucket();
        let counts = buckets.iter().map(proto::Bucket::cumulative_count);
        let expected = [[40].as_slice(), &[60; 16], &[80]].concat();
        assert_eq!(counts.collect::<Vec<_>>(), expected);
        assert_eq!(buckets[0].upper_bound(), 0.0001);
        assert_eq!(buckets[17].upper_bound(), 60.0);
    }

    #[test]
    fn times_of_a_bucket_survive_while_somebody_counts_them() {
        let metrics = TimesMetrics::new();
        let first = metrics.of_bucket("a");
        first.observe(Some(CacheResult::Hit), Duration::ZERO, Some(Duration::ZERO));
        first.observe(None, Duration::ZERO, None);
        let again = metrics.of_bucket("a");
        drop(first);
        again.observe(Some(CacheResult::Hit), Duration::ZERO, None);
        let families = metrics.collect();
        assert_eq!(
            names(&families),
            ["request_duration_seconds", "request_first_byte_seconds"]
        );
        for (family, expected) in families.iter().zip([[2, 1], [1, 0]]) {
            let metrics = family.get_metric().iter();
            let counts = metrics.map(|metric| metric.get_histogram().get_sample_count());
            assert_eq!(counts.collect::<Vec<_>>(), expected);
            let labels = family.get_metric().iter().map(|metric| {
                let labels = metric.get_label().iter();
                labels.map(|label| label.value().to_owned()).collect()
            });
            let labels: Vec<Vec<_>> = labels.collect();
            assert_eq!(labels, [["a", "hit"], ["a", "none"]]);
        }
        drop(again);
        assert!(metrics.collect().is_empty());
        metrics.of_bucket("b").observe_origin(Duration::ZERO);
        assert!(metrics.collect().is_empty());
    }

    #[test]
    fn each_result_has_its_own_label() {
        for (at, result) in CacheResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, at);
            assert_eq!(result.x_cache().to_ascii_lowercase(), RESULTS[at]);
        }
    }
}
