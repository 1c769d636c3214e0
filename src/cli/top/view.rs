//! All that is known of the proxy.

use std::time::{Duration, Instant};

use pingora_sendfile::proxy::status::{period, Status};

use super::rates::{is_same_process, Rates};

/// The time beyond the interval after which an answer is late.
const LATE: Duration = Duration::from_secs(3);

/// The time for which a restart is told.
const NOTICE: Duration = Duration::from_secs(30);

/// The proxy as it was last seen.
pub struct View {
    /// The address or the socket of its admin listener.
    pub place: String,
    /// The time between two questions.
    pub interval: Duration,
    /// The last answer.
    pub seen: Option<Seen>,
    /// The reason that there is no newer one.
    failure: Option<String>,
    /// The last restart.
    restart: Option<(Instant, String)>,
}

/// An answer of the proxy.
pub struct Seen {
    pub status: Status,
    pub rates: Rates,
    pub at: Instant,
}

// === impl View ===

impl View {
    pub fn new(place: String, interval: Duration) -> View {
        View {
            place,
            interval,
            seen: None,
            failure: None,
            restart: None,
        }
    }

    /// Takes an answer, or the reason that there is none. Then the figures stay.
    pub fn take(&mut self, answer: Result<Status, String>, at: Instant) {
        let status = match answer {
            Ok(status) => status,
            Err(why) => {
                self.failure = Some(why);
                return;
            }
        };
        self.failure = None;
        let rates = self.seen.as_ref().map(|last| {
            if !is_same_process(&last.status, &status) {
                let what = "The proxy was restarted";
                let (old, new) = (last.status.pid, status.pid);
                let notice = match old == new {
                    true => format!("{what}: counts begin again."),
                    false => format!("{what}: process {new} follows {old}, counts begin again."),
                };
                self.restart = Some((at, notice));
            }
            Rates::between(&last.status, &status, at.duration_since(last.at))
        });
        self.seen = Some(Seen {
            status,
            rates: rates.unwrap_or_default(),
            at,
        });
    }

    /// A sentence on figures that are old or absent; `None`: they are of now.
    pub fn trouble(&self, now: Instant) -> Option<String> {
        let Some(seen) = &self.seen else {
            return self
                .failure
                .as_ref()
                .map(|why| format!("No answer yet: {why}"));
        };
        let age = now.duration_since(seen.at);
        let why = match &self.failure {
            Some(why) => why.clone(),
            None if age > self.interval + LATE => {
                format!("the proxy at {} has not answered since", self.place)
            }
            None => return None,
        };
        let age = period(age.as_secs());
        Some(format!("These figures are {age} old: {why}"))
    }

    /// A sentence on a restart, for some time.
    pub fn notice(&self, now: Instant) -> Option<&str> {
        let (at, notice) = self.restart.as_ref()?;
        (now.duration_since(*at) < NOTICE).then_some(notice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    fn status(pid: u32, hits: u64) -> Status {
        let mut status = Status {
            pid,
            ..Status::default()
        };
        status.requests.hits = hits;
        status
    }

    #[test]
    fn figures_are_old_until_the_next_answer() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut view = View::new("127.0.0.1:9091".into(), INTERVAL);
        assert_eq!(view.trouble(after(0)), None);
        view.take(Err("refused".into()), after(0));
        assert_eq!(
            view.trouble(after(0)).as_deref(),
            Some("No answer yet: refused")
        );

        view.take(Ok(status(1, 5)), after(2));
        assert_eq!(view.trouble(after(4)), None);
        view.take(Err("refused".into()), after(4));
        let old = view.trouble(after(75));
        let expected = "These figures are 1 min 13 s old: refused";
        assert_eq!(old.as_deref(), Some(expected));
        assert_eq!(
            view.seen.as_ref().map(|seen| seen.status.requests.hits),
            Some(5)
        );

        view.take(Ok(status(1, 78)), after(75));
        assert_eq!(view.trouble(after(75)), None);
        assert_eq!(view.notice(after(75)), None);
        let rates = view.seen.as_ref().map(|seen| &seen.rates);
        assert_eq!(rates.and_then(|rates| rates.hits), Some(1.0));
        let late = view.trouble(after(81));
        let expected =
            "These figures are 6 s old: the proxy at 127.0.0.1:9091 has not answered since";
        assert_eq!(late.as_deref(), Some(expected));
    }

    #[test]
    fn a_restart_is_told_for_some_time() {
        let begun = Instant::now();
        let mut view = View::new("127.0.0.1:9091".into(), INTERVAL);
        view.take(Ok(status(1, 5)), begun);
        view.take(Ok(status(2, 1)), begun + INTERVAL);
        let told = "The proxy was restarted: process 2 follows 1, counts begin again.";
        assert_eq!(view.notice(begun + INTERVAL), Some(told));
        assert_eq!(view.notice(begun + INTERVAL + NOTICE), None);
        let rates = view.seen.as_ref().map(|seen| &seen.rates);
        assert_eq!(rates, Some(&Rates::default()));
    }
}
