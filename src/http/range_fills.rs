//! Objects that are fetched as a whole because clients ask for parts.
//!
//! A part may be a byte of ten gigabytes, so fetching is limited by the bytes that were
//! asked for, by the bytes in flight, and by a budget for each client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_cache::key::HashBinary;

use super::background::BackgroundFills;

/// The largest object, in bytes, that is fetched for any part of it.
const SMALL: u64 = 16 << 20;

/// One in this many bytes of a larger object has to be asked for before it is fetched.
const SHARE: u64 = 16;

/// Bytes asked for that suffice for an object of any size.
const ENOUGH: u64 = 64 << 20;

/// The most objects that are remembered because parts of them were asked for.
const MAX_OBJECTS: usize = 4096;

/// The most clients that are remembered because they have spent some of their budget.
/// Beyond that, other clients have no budget.
const MAX_CLIENTS: usize = 4096;

/// The time in which a spent budget is restored.
const PERIOD: Duration = Duration::from_secs(60);

/// Fills for parts, in flight and to come.
#[derive(Debug, Default, Clone)]
pub struct RangeFills(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// The size of each object that is being fetched.
    in_flight: HashMap<HashBinary, u64>,
    /// Bytes that were asked for of each object that is not fetched yet.
    asked: HashMap<HashBinary, u64>,
    clients: HashMap<Option<IpAddr>, Spent>,
}

/// The spent share of a budget.
#[derive(Debug, Clone, Copy)]
struct Spent {
    bytes: u64,
    at: Instant,
}

/// A part that was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The object.
    pub key: HashBinary,
    /// Bytes of the part.
    pub len: u64,
    /// Bytes of the whole object.
    pub whole_len: u64,
    /// The client that asked.
    pub client: Option<IpAddr>,
}

/// A fill in flight; it is over when this is dropped.
#[derive(Debug)]
pub struct FillGuard {
    fills: RangeFills,
    key: HashBinary,
}

// === impl RangeFills ===

impl RangeFills {
    /// Begin to fetch the whole after a part came from the origin, unless it is being
    /// fetched, is not worth it yet, or is beyond the limits.
    pub fn begin(&self, part: &Part, limits: &BackgroundFills, now: Instant) -> Option<FillGuard> {
        let mut table = self.0.lock();
        if table.in_flight.contains_key(&part.key) || !table.is_worth_it(part) {
            return None;
        }
        let bytes = table.in_flight.values().sum::<u64>();
        let bytes = bytes.saturating_add(part.whole_len);
        // A larger object is fetched alone.
        let fits = table.in_flight.is_empty() || bytes <= limits.bytes_in_flight;
        if !fits || table.in_flight.len() >= limits.in_flight || !table.spend(part, limits, now) {
            return None;
        }
        table.asked.remove(&part.key);
        table.in_flight.insert(part.key, part.whole_len);
        Some(FillGuard {
            fills: self.clone(),
            key: part.key,
        })
    }
}

impl Table {
    fn is_worth_it(&mut self, part: &Part) -> bool {
        if part.whole_len <= SMALL {
            return true;
        }
        if self.asked.len() >= MAX_OBJECTS && !self.asked.contains_key(&part.key) {
            self.asked.clear();
        }
        let asked = self.asked.entry(part.key).or_default();
        *asked = asked.saturating_add(part.len);
        *asked >= ENOUGH.min(part.whole_len / SHARE)
    }

    /// A client that has some budget left may overdraw it.
    fn spend(&mut self, part: &Part, limits: &BackgroundFills, now: Instant) -> bool {
        let Some(budget) = limits.client_bytes_per_minute else {
            return true;
        };
        let client = part.client.map(network);
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&client) {
            self.clients
                .retain(|_, spent| spent.left(budget, now) < budget);
            if self.clients.len() >= MAX_CLIENTS {
                return false;
            }
        }
        let nothing = Spent { bytes: 0, at: now };
        let spent = self.clients.entry(client).or_insert(nothing);
        let left = spent.left(budget, now);
        if left == 0 {
            return false;
        }
        *spent = Spent {
            bytes: (spent.still_spent(budget, now)).saturating_add(part.whole_len),
            at: now,
        };
        true
    }
}

impl Spent {
    fn still_spent(&self, budget: u64, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.at);
        let again = u128::from(budget) * since.as_millis() / PERIOD.as_millis();
        self.bytes
            .saturating_sub(u64::try_from(again).unwrap_or(u64::MAX))
    }

    fn left(&self, budget: u64, now: Instant) -> u64 {
        budget.saturating_sub(self.still_spent(budget, now))
    }
}

/// The network of an address: a client may have all addresses of an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

impl Drop for FillGuard {
    fn drop(&mut self) {
        self.fills.0.lock().in_flight.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BackgroundFills = BackgroundFills {
        in_flight: 2,
        max_bytes: u64::MAX,
        bytes_in_flight: 100 << 20,
        client_bytes_per_minute: None,
    };

    fn part(key: u8, len: u64, whole_len: u64) -> Part {
        Part {
            key: [key; 16],
            len,
            whole_len,
            client: None,
        }
    }

    #[test]
    fn a_key_is_filled_once_and_only_so_many_at_a_time() {
        let fills = RangeFills::default();
        let begin = |key| fills.begin(&part(key, 1, 1000), &LIMITS, Instant::now());
        let first = begin(1);
        assert!(first.is_some());
        assert!(begin(1).is_none(), "the same key");
        let second = begin(2);
        assert!(second.is_some());
        assert!(begin(3).is_none(), "the third");
        drop(first);
        assert!(begin(1).is_some());
        drop(second);
        assert!(fills.0.lock().in_flight.is_empty());
    }

    #[test]
    fn bytes_in_flight_are_bounded_but_for_one() {
        let fills = RangeFills::default();
        let begin = |key, whole: u64| {
            let part = part(key, ENOUGH, whole << 20);
            fills.begin(&part, &LIMITS, Instant::now())
        };
        let huge = begin(1, 5000);
        assert!(huge.is_some());
        assert!(begin(2, 1).is_none());
        drop(huge);
        let first = begin(1, 60);
        assert!(first.is_some() && begin(2, 41).is_none());
        assert!(begin(2, 40).is_some());
    }

    #[test]
    fn a_large_object_is_fetched_when_enough_of_it_was_asked_for() {
        let fills = RangeFills::default();
        let begin = |key, len, whole| fills.begin(&part(key, len, whole), &LIMITS, Instant::now());
        for _ in 0..1000 {
            assert!(begin(1, 1, SMALL + 1).is_none());
        }
        assert!(begin(1, SMALL / SHARE, SMALL + 1).is_some());
        assert!(begin(2, 1, SMALL).is_some(), "a small one");
        for _ in 0..7 {
            assert!(begin(3, 8 << 20, 10 << 30).is_none());
        }
        assert!(begin(3, 8 << 20, 10 << 30).is_some());
        for key in 0..u16::MAX {
            let mut part = part(0, 1, SMALL + 1);
            part.key[..2].copy_from_slice(&key.to_le_bytes());
            fills.begin(&part, &LIMITS, Instant::now());
        }
        assert!(fills.0.lock().asked.len() <= MAX_OBJECTS);
    }

    #[test]
    fn a_client_has_a_budget() {
        let fills = RangeFills::default();
        let limits = BackgroundFills {
            client_bytes_per_minute: Some(6000),
            ..LIMITS
        };
        let start = Instant::now();
        let begin = |client: &str, len, seconds| {
            let part = Part {
                client: Some(client.parse().unwrap()),
                ..part(1, 1, len)
            };
            let now = start + Duration::from_secs(seconds);
            fills.begin(&part, &limits, now).is_some()
        };
        assert!(begin("192.0.2.1", 5999, 0));
        assert!(begin("192.0.2.1", 7001, 0), "a byte was left");
        assert!(!begin("192.0.2.1", 1, 0));
        assert!(!begin("::ffff:192.0.2.1", 1, 0), "the same client");
        assert!(begin("192.0.2.2", 6000, 0), "another one");
        assert!(
            !begin("192.0.2.1", 1, 70),
            "7000 bytes of 13,000 are spent still"
        );
        assert!(begin("192.0.2.1", 1, 71));
        assert!(begin("2001:db8::1", 6000, 0));
        assert!(!begin("2001:db8::ffff", 1, 0), "of the same network");
        assert!(begin("2001:db8:0:1::1", 1, 0));
    }

    #[test]
    fn clients_are_remembered_up_to_a_bound() {
        let fills = RangeFills::default();
        let limits = BackgroundFills {
            client_bytes_per_minute: Some(6000),
            ..LIMITS
        };
        let start = Instant::now();
        let begin = |client: u32, now| {
            let part = Part {
                client: Some(std::net::Ipv4Addr::from(client).into()),
                ..part(1, 1, 1)
            };
            fills.begin(&part, &limits, now).is_some()
        };
        for client in 0..MAX_CLIENTS as u32 {
            assert!(begin(client, start));
        }
        assert!(!begin(u32::MAX, start));
        assert!(begin(u32::MAX, start + PERIOD));
        assert_eq!(fills.0.lock().clients.len(), 1);
    }
}
