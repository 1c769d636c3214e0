//! Spans on their way from the workers to the exporter.
//!
//! A worker holds the lock while it moves the spans of a request, the exporter while it takes a batch.

use std::time::{Duration, Instant};

use opentelemetry_sdk::trace::SpanData;
use parking_lot::{Condvar, Mutex};

/// The most spans that wait.
pub(super) const MAX_SPANS: usize = 2048;

/// The most spans of a request to the collector.
const BATCH: usize = 512;

/// The time for which spans are gathered before they are sent.
const GATHER: Duration = Duration::from_secs(1);

/// Spans that wait for the exporter.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// The exporter waits for spans, and for the end.
    for_exporter: Condvar,
    /// The end waits for the exporter.
    for_end: Condvar,
}

#[derive(Default)]
struct State {
    spans: Vec<SpanData>,
    closes: bool,
    has_ended: bool,
}

// === impl Queue ===

impl Queue {
    /// Append the spans of a request. `false`: there is no room, and they are dropped.
    pub fn push(&self, spans: Vec<SpanData>) -> bool {
        let mut state = self.state.lock();
        if state.has_ended || state.spans.len() + spans.len() > MAX_SPANS {
            drop(state);
            // Freed without the lock.
            drop(spans);
            return false;
        }
        let before = state.spans.len();
        state.spans.extend(spans);
        let now = state.spans.len();
        drop(state);
        if before == 0 || (before < BATCH && now >= BATCH) {
            self.for_exporter.notify_one();
        }
        true
    }

    /// For the exporter: wait for a batch. `None`: there are no spans any more, and it is to end.
    pub fn take(&self) -> Option<Vec<SpanData>> {
        let mut state = self.state.lock();
        while state.spans.is_empty() && !state.closes {
            self.for_exporter.wait(&mut state);
        }
        let deadline = Instant::now() + GATHER;
        while state.spans.len() < BATCH && !state.closes {
            let waited = self.for_exporter.wait_until(&mut state, deadline);
            if waited.timed_out() {
                break;
            }
        }
        let count = state.spans.len().min(BATCH);
        (count > 0).then(|| state.spans.drain(..count).collect())
    }

    /// For the exporter: take no more spans.
    pub fn end(&self) {
        self.state.lock().has_ended = true;
        self.for_end.notify_all();
    }

    /// Have the exporter send what waits, and end. `false`: it has not ended within `timeout`.
    pub fn close(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        state.closes = true;
        self.for_exporter.notify_one();
        let is_open = |state: &mut State| !state.has_ended;
        let waited = self.for_end.wait_while_for(&mut state, is_open, timeout);
        !waited.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status};
    use opentelemetry::InstrumentationScope;
    use std::time::SystemTime;

    use super::*;

    fn spans(count: usize) -> Vec<SpanData> {
        let span = SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "a".into(),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        };
        vec![span; count]
    }

    #[test]
    fn what_has_no_room_is_dropped_as_a_whole() {
        let queue = Queue::default();
        assert!(queue.push(spans(MAX_SPANS - 1)));
        assert!(!queue.push(spans(2)));
        assert!(queue.push(spans(1)));
        let mut taken = 0;
        while taken < MAX_SPANS {
            let batch = queue.take().unwrap().len();
            assert!(batch <= BATCH);
            taken += batch;
        }
        assert!(queue.push(spans(1)));
    }

    #[test]
    fn the_last_spans_are_taken_before_the_end() {
        let queue = Queue::default();
        assert!(queue.push(spans(3)));
        assert!(!queue.close(Duration::ZERO));
        assert_eq!(queue.take().unwrap().len(), 3);
        assert!(queue.take().is_none());
        queue.end();
        assert!(queue.close(Duration::ZERO));
        assert!(!queue.push(spans(1)));
    }

    #[test]
    fn the_exporter_is_woken_by_spans_and_by_the_end() {
        let queue = Queue::default();
        thread::scope(|scope| {
            let exporter = scope.spawn(|| {
                let batch = queue.take().map(|batch| batch.len());
                let rest = queue.take().map(|batch| batch.len());
                queue.end();
                (batch, rest)
            });
            assert!(queue.push(spans(BATCH)));
            assert!(queue.close(Duration::from_secs(60)));
            assert_eq!(exporter.join().unwrap(), (Some(BATCH), None));
        });
    }
}
