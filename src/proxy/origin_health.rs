//! The health of origins, told from the traffic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use log::{info, warn};
use parking_lot::Mutex;
use pingora_core::{Error, ErrorSource, ErrorType};

use crate::config;
use crate::s3::Site;

/// The health of the origin of one bucket. Only answers to requests for clients count; no request is
/// made to find out.
pub(crate) struct OriginHealth {
    /// The bucket and the host of the origin.
    labels: [String; 2],
    limits: Limits,
    /// True if there is a `run`, so that a sound origin costs an answer no lock.
    is_failing: AtomicBool,
    run: Mutex<Run>,
}

/// The failures after which an origin counts as down.
#[derive(Clone, Copy)]
struct Limits {
    failures: u32,
    after: Duration,
    /// The time after the last failure after which it no longer counts as down.
    retry: Duration,
}

/// The failures since the last answer.
#[derive(Clone, Copy, Default)]
struct Run {
    failures: u32,
    /// The times of the first and of the last failure.
    span: Option<(Instant, Instant)>,
    /// The log says that the origin is down.
    is_stated: bool,
}

/// An origin that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Down {
    /// The number of failures in a row.
    pub(crate) failures: u32,
    /// The time of the first of them.
    pub(crate) since: Instant,
}

// === impl OriginHealth ===

impl OriginHealth {
    pub(super) fn new(site: &Site, health: &config::Health) -> OriginHealth {
        OriginHealth {
            labels: [site.bucket().to_owned(), site.host_header().to_owned()],
            limits: Limits {
                failures: *health.origin_failures,
                after: *health.origin_down_after,
                retry: *health.origin_retry,
            },
            is_failing: AtomicBool::new(false),
            run: Mutex::default(),
        }
    }

    /// The name of the bucket and the host of the origin.
    pub(crate) fn labels(&self) -> &[String; 2] {
        &self.labels
    }

    /// The name of the bucket; empty if it is all buckets.
    pub(crate) fn bucket(&self) -> &str {
        &self.labels[0]
    }

    /// The host of the origin, with its port.
    pub(crate) fn origin(&self) -> &str {
        &self.labels[1]
    }

    /// Note an answer.
    pub(super) fn note_answer(&self, status: StatusCode) {
        match status.as_u16() {
            500 | 502..=599 => self.note_failure(Instant::now()),
            100..=199 => {}
            // 501 says that a request is not supported.
            _ => self.note_success(),
        }
    }

    /// Note that a request could not be sent, or got no answer. `is_reused`: on a connection that other
    /// requests have used.
    pub(super) fn note_error(&self, error: &Error, is_reused: bool) {
        let is_timeout = matches!(
            error.etype(),
            ErrorType::ReadTimedout | ErrorType::WriteTimedout
        );
        // The origin may close idle connections.
        let is_failure = *error.esource() == ErrorSource::Upstream && (is_timeout || !is_reused);
        if is_failure {
            self.note_failure(Instant::now());
        }
    }

    /// The failures, if the origin counts as down.
    pub(crate) fn down(&self, now: Instant) -> Option<Down> {
        if !self.is_failing.load(Ordering::Relaxed) {
            return None;
        }
        self.run.lock().down(&self.limits, now)
    }

    /// Note that no connection could be made.
    pub(super) fn note_unreachable(&self) {
        self.note_failure(Instant::now());
    }

    fn note_success(&self) {
        if !self.is_failing.load(Ordering::Relaxed) {
            return;
        }
        let run = {
            let mut run = self.run.lock();
            self.is_failing.store(false, Ordering::Relaxed);
            std::mem::take(&mut *run)
        };
        if run.is_stated {
            let [bucket, origin] = &self.labels;
            info!("bucket {bucket}: the origin {origin} answers again");
        }
    }

    fn note_failure(&self, now: Instant) {
        let down = {
            let mut run = self.run.lock();
            self.is_failing.store(true, Ordering::Relaxed);
            run.add(&self.limits, now);
            let down = run.down(&self.limits, now);
            down.filter(|_| !std::mem::replace(&mut run.is_stated, down.is_some()))
        };
        if let Some(down) = down {
            warn!("{}", self.describe(&down, now));
        }
    }

    pub(super) fn describe(&self, down: &Down, now: Instant) -> String {
        let [bucket, origin] = &self.labels;
        let Down { failures, since } = down;
        let secs = now.saturating_duration_since(*since).as_secs();
        format!(
            "origin down: {origin} of bucket {bucket}, {failures} failures in a row in {secs} s"
        )
    }
}

// === impl Run ===

impl Run {
    fn add(&mut self, limits: &Limits, now: Instant) {
        let span = self
            .span
            .filter(|(_, last)| now.saturating_duration_since(*last) < limits.retry);
        let Some((first, _)) = span else {
            *self = Run {
                failures: 1,
                span: Some((now, now)),
                is_stated: false,
            };
            return;
        };
        self.failures = self.failures.saturating_add(1);
        self.span = Some((first, now));
    }

    fn down(&self, limits: &Limits, now: Instant) -> Option<Down> {
        let (first, last) = self.span?;
        let is_down = self.failures >= limits.failures
            && last.saturating_duration_since(first) >= limits.after
            && now.saturating_duration_since(last) < limits.retry;
        is_down.then_some(Down {
            failures: self.failures,
            since: first,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> OriginHealth {
        OriginHealth {
            labels: ["bucket".into(), "s3:9000".into()],
            limits: Limits {
                failures: 3,
                after: Duration::from_secs(5),
                retry: Duration::from_secs(30),
            },
            is_failing: AtomicBool::new(false),
            run: Mutex::default(),
        }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn an_origin_is_down_after_failures_over_some_time_and_until_it_answers() {
        let origin = origin();
        let begin = Instant::now();
        for (at, failures) in [
            (0, None),
            (1, None),
            (2, None),
            (3, None),
            (5, Some(5)),
            (9, Some(6)),
        ] {
            origin.note_failure(begin + secs(at));
            let down = origin.down(begin + secs(at));
            assert_eq!(down.map(|down| down.failures), failures, "after {at} s");
        }
        origin.note_answer(StatusCode::NOT_FOUND);
        assert_eq!(origin.down(begin + secs(9)), None);
        origin.note_failure(begin + secs(10));
        assert_eq!(origin.down(begin + secs(10)), None);
    }

    #[test]
    fn few_failures_over_a_long_time_are_no_outage() {
        let origin = origin();
        let begin = Instant::now();
        origin.note_failure(begin);
        origin.note_failure(begin + secs(20));
        assert_eq!(origin.down(begin + secs(20)), None);
        // The former ones are too old to be of the same outage.
        origin.note_failure(begin + secs(50));
        assert_eq!(origin.down(begin + secs(50)), None);
    }

    #[test]
    fn an_origin_that_nobody_asks_is_given_another_chance() {
        let origin = origin();
        let begin = Instant::now();
        for at in [0, 3, 6] {
            origin.note_failure(begin + secs(at));
        }
        assert!(origin.down(begin + secs(35)).is_some());
        assert_eq!(origin.down(begin + secs(36)), None);
        // It takes as long again to be down.
        origin.note_failure(begin + secs(37));
        assert_eq!(origin.down(begin + secs(37)), None);
    }

    #[test]
    fn only_statuses_of_failing_servers_and_broken_exchanges_are_failures() {
        let fails = |note: &dyn Fn(&OriginHealth)| {
            let origin = origin();
            note(&origin);
            origin.is_failing.load(Ordering::Relaxed)
        };
        for (status, is_failure) in [
            (200, false),
            (206, false),
            (304, false),
            (403, false),
            (404, false),
            (429, false),
            (500, true),
            (501, false),
            (503, true),
            (504, true),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                fails(&|origin| origin.note_answer(status)),
                is_failure,
                "{status}"
            );
        }
        for (kind, is_reused, is_failure) in [
            (ErrorType::ConnectionClosed, false, true),
            (ErrorType::ConnectionClosed, true, false),
            (ErrorType::ReadTimedout, true, true),
            (ErrorType::ReadTimedout, false, true),
        ] {
            let error = Error::new(kind).into_up();
            let failed = fails(&|origin| origin.note_error(&error, is_reused));
            assert_eq!(failed, is_failure, "{error}");
        }
        let client_left = Error::new(ErrorType::WriteError).into_down();
        assert!(!fails(&|origin| origin.note_error(&client_left, false)));
    }
}
