//! Requests and bytes a second of each client.
//!
//! A client is charged for a request when it comes, and for the bytes of the response when it has
//! ended, counted from the beginning of the request: one that reads no faster than it may is never
//! in debt. While more than a second's worth is owed, further requests are refused (GCRA, ITU-T
//! I.371, with debts).

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::Limit;
use crate::config;
use crate::http::range_fill::network;

/// The most clients that are remembered, about 10 MB. Of more, those with the fewest requests are
/// forgotten, and begin anew.
const MAX_CLIENTS: usize = 65_536;

/// The time in advance of which a client may be: as much as it may have in a second comes at once.
const BURST: u64 = NANOS;

const NANOS: u64 = 1_000_000_000;

/// The rates of all clients.
pub(in crate::proxy) struct Rates {
    /// The time between two requests, in nanoseconds.
    request_cost: Option<u64>,
    /// Bytes per second.
    bytes_per_second: Option<u64>,
    start: Instant,
    clients: Cache<Client, Arc<Meter>>,
}

/// A client of which no other can make requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::proxy) enum Client {
    Network(IpAddr),
    /// The holder of an access key, which has been verified.
    Key(Arc<str>),
}

/// The consumption of a client.
#[derive(Debug, Default)]
struct Meter {
    requests: Paid,
    bytes: Paid,
}

/// The time until which a client has had its share, in nanoseconds from the start.
#[derive(Debug, Default)]
struct Paid(AtomicU64);

/// A request that was admitted, whose bytes are to be charged.
pub(in crate::proxy) struct Charged {
    meter: Arc<Meter>,
    bytes_per_second: Option<u64>,
    /// In nanoseconds from the start.
    began: u64,
}

/// The refusal of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct TooMany {
    limit: Limit,
    /// Time until the next request is admitted.
    pub(in crate::proxy) wait: Duration,
}

// === impl Rates ===

impl Rates {
    /// The rates that `limits` allows, those of `former` if they are the same: clients stay in debt.
    /// `None`: there is no limit.
    pub(in crate::proxy) fn after(
        limits: &config::Limits,
        former: Option<&Arc<Rates>>,
    ) -> Option<Arc<Rates>> {
        let new = Rates::new(limits)?;
        let same = former.filter(|former| {
            (former.request_cost, former.bytes_per_second)
                == (new.request_cost, new.bytes_per_second)
        });
        Some(same.cloned().unwrap_or_else(|| Arc::new(new)))
    }

    fn new(limits: &config::Limits) -> Option<Rates> {
        let requests = u64::from(*limits.requests_per_second);
        let bytes = *limits.bytes_per_second;
        if requests == 0 && bytes == 0 {
            return None;
        }
        Some(Rates {
            request_cost: NANOS.checked_div(requests),
            bytes_per_second: (bytes > 0).then_some(bytes),
            start: Instant::now(),
            clients: Cache::new(MAX_CLIENTS),
        })
    }

    /// Charge a client for a request that comes now.
    ///
    /// # Errors
    /// The client has had too much. The refusal is counted.
    pub(in crate::proxy) fn admit(&self, client: &Client) -> Result<Charged, TooMany> {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let admitted = self.admit_at(client, now);
        if let Err(TooMany { limit, .. }) = admitted {
            limit.count();
        }
        admitted
    }

    fn admit_at(&self, client: &Client, now: u64) -> Result<Charged, TooMany> {
        let meter = match self.clients.get(client) {
            Some(meter) => meter,
            None => {
                let new = self
                    .clients
                    .get_or_insert_with(client, || Ok(Arc::default()));
                new.unwrap_or_else(|e: std::convert::Infallible| match e {})
            }
        };
        if self.bytes_per_second.is_some() {
            meter.bytes.check(now).map_err(|wait| TooMany {
                limit: Limit::Bytes,
                wait,
            })?;
        }
        if let Some(cost) = self.request_cost {
            meter.requests.pay(now, cost).map_err(|wait| TooMany {
                limit: Limit::Requests,
                wait,
            })?;
        }
        Ok(Charged {
            meter,
            bytes_per_second: self.bytes_per_second,
            began: now,
        })
    }
}

// === impl Charged ===

impl Charged {
    /// Charge the client for the bytes that it has received.
    pub(in crate::proxy) fn charge(&self, bytes: u64) {
        if let Some(rate) = self.bytes_per_second {
            let cost = u128::from(bytes) * u128::from(NANOS) / u128::from(rate);
            let cost = u64::try_from(cost).unwrap_or(u64::MAX);
            self.meter.bytes.owe(self.began, cost);
        }
    }
}

// === impl Client ===

impl Client {
    pub(in crate::proxy) fn at(address: IpAddr) -> Client {
        Client::Network(network(address))
    }
}

// === impl TooMany ===

impl TooMany {
    /// The value of `Retry-After`, at least one second.
    pub(in crate::proxy) fn retry_after(&self) -> u64 {
        let rest = u64::from(self.wait.subsec_nanos() > 0);
        (self.wait.as_secs() + rest).max(1)
    }
}

// === impl Paid ===

impl Paid {
    /// The time to wait until the client owes no more than it may.
    fn check(&self, now: u64) -> Result<(), Duration> {
        let paid = self.0.load(Ordering::Relaxed);
        match paid.saturating_sub(now.saturating_add(BURST)) {
            0 => Ok(()),
            wait => Err(Duration::from_nanos(wait)),
        }
    }

    /// Charge the client, unless it would owe more than it may.
    fn pay(&self, now: u64, cost: u64) -> Result<(), Duration> {
        let mut wait = 0;
        let paid = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
                let paid = paid.max(now).saturating_add(cost);
                wait = paid.saturating_sub(now.saturating_add(BURST));
                (wait == 0).then_some(paid)
            });
        match paid {
            Ok(_) => Ok(()),
            Err(_) => Err(Duration::from_nanos(wait)),
        }
    }

    /// Charge the client for what it has had since then.
    fn owe(&self, since: u64, cost: u64) {
        // The closure always has a value.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
                Some(paid.max(since).saturating_add(cost))
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NANOS;

    fn rates(requests: Option<u64>, bytes: Option<u64>) -> Rates {
        Rates {
            request_cost: requests.map(|requests| NANOS / requests),
            bytes_per_second: bytes,
            start: Instant::now(),
            clients: Cache::new(MAX_CLIENTS),
        }
    }

    fn client(address: &str) -> Client {
        Client::at(address.parse().unwrap())
    }

    fn wait(refused: Result<Charged, TooMany>) -> (Limit, Duration) {
        let refused = refused.err().expect("refused");
        (refused.limit, refused.wait)
    }

    #[test]
    fn a_second_of_requests_may_come_at_once_and_no_more() {
        for rate in [1, 3, 1_000_000] {
            let rates = rates(Some(rate), None);
            let one = client("192.0.2.1");
            for _ in 0..rate {
                assert!(rates.admit_at(&one, 7).is_ok());
            }
            let (limit, time) = wait(rates.admit_at(&one, 7));
            assert_eq!(limit, Limit::Requests);
            assert!(time <= Duration::from_nanos(SECOND / rate), "{time:?}");
            assert!(rates.admit_at(&client("192.0.2.2"), 7).is_ok());
            // Refused requests are not charged.
            let later = 7 + time.as_nanos() as u64;
            assert!(rates.admit_at(&one, later).is_ok());
            assert!(rates.admit_at(&one, later).is_err());
        }
    }

    #[test]
    fn an_idle_client_saves_no_more_than_a_second() {
        let rates = rates(Some(2), None);
        let one = client("192.0.2.1");
        let later = 3600 * SECOND;
        let admitted = (0..10).filter(|_| rates.admit_at(&one, later).is_ok());
        assert_eq!(admitted.count(), 2);
    }

    #[test]
    fn bytes_are_charged_from_the_beginning_of_their_request() {
        let rates = rates(None, Some(1000));
        let one = client("192.0.2.1");
        let request = rates.admit_at(&one, 0).ok().unwrap();
        request.charge(10_000);
        // It took the ten seconds that it may take, but for the burst.
        assert!(rates.admit_at(&one, 9 * SECOND).is_ok());
        let (limit, time) = wait(rates.admit_at(&one, 8 * SECOND));
        assert_eq!((limit, time), (Limit::Bytes, Duration::from_secs(1)));

        // Two at a time add up.
        let two = client("192.0.2.2");
        let requests = [(); 2].map(|()| rates.admit_at(&two, 0).ok().unwrap());
        requests.iter().for_each(|request| request.charge(5000));
        assert!(rates.admit_at(&two, 9 * SECOND - 1).is_err());
        assert!(rates.admit_at(&two, 9 * SECOND).is_ok());

        // A slow reader is not in debt, and saves nothing either.
        let three = client("192.0.2.3");
        let request = rates.admit_at(&three, 0).ok().unwrap();
        request.charge(1000);
        let request = rates.admit_at(&three, 100 * SECOND).ok().unwrap();
        request.charge(2001);
        assert!(rates.admit_at(&three, 101 * SECOND).is_err());
    }

    #[test]
    fn no_number_is_too_large() {
        let rates = rates(Some(1), Some(1));
        let one = client("192.0.2.1");
        let request = rates.admit_at(&one, u64::MAX - 1).ok().unwrap();
        request.charge(u64::MAX);
        let _ = rates.admit_at(&one, u64::MAX);
        let (_, time) = wait(rates.admit_at(&one, 0));
        assert!(time > Duration::from_secs(1_000_000));
    }

    #[test]
    fn a_client_is_a_network_or_a_key() {
        let rates = rates(Some(1), None);
        assert!(rates.admit_at(&client("2001:db8::1"), 0).is_ok());
        assert!(rates.admit_at(&client("2001:db8::2"), 0).is_err());
        assert!(rates.admit_at(&Client::Key("one".into()), 0).is_ok());
        assert!(rates.admit_at(&Client::Key("one".into()), 0).is_err());
        assert!(rates.admit_at(&Client::Key("two".into()), 0).is_ok());
    }

    #[test]
    fn many_clients_take_a_bounded_place_and_push_no_busy_one_out() {
        let rates = rates(Some(2), None);
        let busy = Client::Key("busy".into());
        for _ in 0..2 {
            assert!(rates.admit_at(&busy, 0).is_ok());
        }
        for number in 0..4 * MAX_CLIENTS as u32 {
            let stranger = Client::Network(IpAddr::from(number.to_be_bytes()));
            assert!(rates.admit_at(&stranger, 0).is_ok());
            assert!(rates.admit_at(&busy, 0).is_err(), "{number}");
        }
        assert!(rates.clients.len() <= MAX_CLIENTS);
    }

    #[test]
    fn a_reload_that_changes_no_rate_forgives_no_debt() {
        let limits = |requests: u32| config::Limits {
            requests_per_second: serde_yaml::from_str(&requests.to_string()).unwrap(),
            ..config::Limits::default()
        };
        assert!(Rates::after(&limits(0), None).is_none());
        let rates = Rates::after(&limits(1), None).unwrap();
        let same = Rates::after(&limits(1), Some(&rates)).unwrap();
        assert!(Arc::ptr_eq(&rates, &same));
        let other = Rates::after(&limits(2), Some(&rates)).unwrap();
        assert!(!Arc::ptr_eq(&rates, &other));
    }

    #[test]
    fn retry_after_is_in_whole_seconds() {
        for (wait, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (9999, 10)] {
            let refused = TooMany {
                limit: Limit::Bytes,
                wait: Duration::from_millis(wait),
            };
            assert_eq!(refused.retry_after(), seconds, "{wait}");
        }
    }
}
