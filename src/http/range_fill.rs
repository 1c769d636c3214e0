//! Range fills: whole objects that are fetched because clients ask for parts.
//!
//! A long part from the first byte on is usually the beginning of a download in parts. The whole is
//! requested in its place; this part and those of other requests follow the fill, for as long as
//! there are such requests: a `Download`. All other parts come from the origin, and may start a
//! fill afterwards.
//!
//! A part may be one byte of ten gigabytes, so a fill is paid for. Each byte of an object that is
//! delivered in parts pays for one byte of its fill. The remainder is charged to the budget of the
//! client whose request starts the fill. A fill that costs more than is left of the budget does not
//! start. Per minute, the origin thus sends at most twice as much as the clients receive, plus the
//! budget of each client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_cache::key::HashBinary;
use pingora_cache::{CacheKey, CacheMeta};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cache::ForParts;

/// The largest object, in bytes, that is fetched after any part of it.
pub(super) const SMALL: u64 = 16 << 20;

/// The share of a larger object that has to be delivered before the object is fetched: one in this
/// many bytes.
const SHARE: u64 = 16;

/// The delivered bytes that suffice for an object of any size.
const ENOUGH: u64 = 64 << 20;

/// The most objects whose delivered parts are counted.
const MAX_OBJECTS: usize = 4096;

/// The most clients whose spending is counted. Further clients have no budget.
const MAX_CLIENTS: usize = 4096;

/// The time after which a spent budget is fully restored.
const PERIOD: Duration = Duration::from_secs(60);

/// The shortest part that may belong to a download. S3 transfer managers ask for at least 5 MiB,
/// and usually for 8.
pub(super) const DOWNLOAD_PART: u64 = 1 << 20;

/// Limits of range fills.
#[derive(Debug, Clone, Copy)]
pub struct RangeFillLimits {
    /// The most objects in flight; 0 turns range fills off.
    pub in_flight: usize,
    /// The largest object that is fetched, in bytes.
    pub max_bytes: u64,
    /// The total size of the objects in flight, in bytes. A larger object is fetched alone, once
    /// clients have received as many bytes of it as it has.
    pub bytes_in_flight: u64,
    /// The bytes that may be fetched in a minute for one client address, beyond those that clients
    /// have received; `None` for no limit.
    pub client_bytes_per_minute: Option<u64>,
    /// The longest time a part waits for a fill that has not reached it, before the part is fetched
    /// by itself; zero to wait only for the beginning of a fill.
    pub max_wait: Duration,
}

impl Default for RangeFillLimits {
    fn default() -> Self {
        RangeFillLimits {
            in_flight: 32,
            max_bytes: u64::MAX,
            bytes_in_flight: 2_000_000_000,
            client_bytes_per_minute: Some(1_000_000_000),
            max_wait: Duration::from_secs(5),
        }
    }
}

/// The range fills of a cache, in flight and pending.
#[derive(Debug, Default, Clone)]
pub struct RangeFills(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// The size of each object that is being fetched.
    in_flight: HashMap<HashBinary, u64>,
    /// The delivered bytes of each object that is not being fetched.
    delivered: HashMap<HashBinary, u64>,
    clients: HashMap<Option<IpAddr>, Spent>,
    downloads: HashMap<HashBinary, Weak<Download>>,
}

/// The spent share of a budget.
#[derive(Debug, Clone, Copy)]
struct Spent {
    bytes: u64,
    at: Instant,
}

/// A part that a client has received.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The object.
    pub key: HashBinary,
    /// The bytes of the part that the client has received.
    pub delivered: u64,
    /// The length of the whole object.
    pub whole_len: u64,
    /// The address of the client.
    pub client: Option<IpAddr>,
    /// The part begins a download.
    pub begins: bool,
}

/// An object that would be stored as a whole, while the origin sends a part of it.
pub(super) struct FillCandidate {
    pub key: CacheKey,
    pub whole_len: u64,
    /// The metadata of an entry in blocks, if the origin's parts can be combined.
    pub in_blocks: Option<CacheMeta>,
}

/// The shared state of a download in parts. The download ends when the last of its requests drops
/// it. Its fill ends then too, unless it has been paid for.
#[derive(Debug)]
pub(super) struct Download {
    fills: RangeFills,
    key: HashBinary,
    /// The marker in the entry that is being filled.
    pub for_parts: ForParts,
    /// True once the fill has begun, or cannot begin.
    has_begun: watch::Sender<bool>,
    whole_len: OnceLock<u64>,
}

/// The role of a request in a download.
pub(super) enum Share {
    /// The request has to start the fill.
    Begins(Arc<Download>),
    /// Another request has started the fill, or is about to.
    Follows(Arc<Download>),
}

/// A fill in flight. It ends when this is dropped.
#[derive(Debug)]
pub struct FillGuard {
    fills: RangeFills,
    key: HashBinary,
}

// === impl RangeFills ===

impl RangeFills {
    /// Start a fill after a part was delivered, unless there is one already, it is not worth it
    /// yet, or it is beyond the limits.
    pub fn begin(&self, part: &Part, limits: &RangeFillLimits, now: Instant) -> Option<FillGuard> {
        if part.delivered == 0 {
            return None;
        }
        let mut table = self.0.lock();
        if table.in_flight.contains_key(&part.key) {
            return None;
        }
        let delivered = table.count(part);
        let is_worth_it = part.whole_len <= SMALL
            || part.begins
            || delivered >= ENOUGH.min(part.whole_len / SHARE);
        if !is_worth_it || !table.has_room(part.whole_len, delivered, limits) {
            return None;
        }
        let cost = part.whole_len.saturating_sub(delivered);
        if !table.spend(part.client, cost, limits, now) {
            return None;
        }
        table.delivered.remove(&part.key);
        table.in_flight.insert(part.key, part.whole_len);
        Some(FillGuard {
            fills: self.clone(),
            key: part.key,
        })
    }

    /// Charge a client for bytes that are fetched for it and that it does not get. `false` if its
    /// budget is too small.
    pub(super) fn charge(
        &self,
        client: Option<IpAddr>,
        bytes: u64,
        limits: &RangeFillLimits,
        now: Instant,
    ) -> bool {
        bytes == 0 || self.0.lock().spend(client, bytes, limits, now)
    }

    /// True if this object is being downloaded in parts.
    pub(super) fn has_download(&self, key: &HashBinary) -> bool {
        self.0.lock().downloads.contains_key(key)
    }

    /// Join the download of this object. If there is none, begin one if `begins`.
    pub(super) fn download(&self, key: HashBinary, begins: bool) -> Option<Share> {
        let mut table = self.0.lock();
        let in_flight = table.downloads.get(&key).and_then(Weak::upgrade);
        if let Some(download) = in_flight {
            return Some(Share::Follows(download));
        }
        if !begins {
            return None;
        }
        let download = Arc::new(Download {
            fills: self.clone(),
            key,
            for_parts: ForParts::default(),
            has_begun: watch::Sender::new(false),
            whole_len: OnceLock::new(),
        });
        table.downloads.insert(key, Arc::downgrade(&download));
        Some(Share::Begins(download))
    }
}

// === impl Download ===

impl Download {
    /// Note that the fill has begun, or cannot begin.
    pub(super) fn set_begun(&self) {
        self.has_begun.send_replace(true);
    }

    /// Wait until the fill has begun or cannot begin, but no longer than `patience`.
    pub(super) async fn begun(&self, patience: Duration) {
        let mut has_begun = self.has_begun.subscribe();
        // The sender lives as long as this.
        let _ = timeout(patience, has_begun.wait_for(|begun| *begun)).await;
    }

    /// Note the length of the whole.
    pub(super) fn set_whole_len(&self, whole_len: u64) {
        let _ = self.whole_len.set(whole_len);
    }

    /// Keep the fill until its end, if the delivered part pays for it.
    pub(super) fn delivered(
        &self,
        bytes: u64,
        begins: bool,
        client: Option<IpAddr>,
        limits: &RangeFillLimits,
    ) {
        let Some(&whole_len) = self.whole_len.get() else {
            return;
        };
        let part = Part {
            key: self.key,
            delivered: bytes,
            whole_len,
            client,
            begins,
        };
        if let Some(guard) = self.fills.begin(&part, limits, Instant::now()) {
            self.for_parts.keep(Box::new(guard));
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.for_parts.end();
        let mut table = self.fills.0.lock();
        // Another download of the object may have begun.
        let is_over = |download: &Weak<Download>| download.strong_count() == 0;
        if table.downloads.get(&self.key).is_some_and(is_over) {
            table.downloads.remove(&self.key);
        }
    }
}

impl Table {
    /// Count the bytes of a part. Returns the delivered bytes of the object.
    fn count(&mut self, part: &Part) -> u64 {
        if self.delivered.len() >= MAX_OBJECTS && !self.delivered.contains_key(&part.key) {
            self.forget_half();
        }
        let delivered = self.delivered.entry(part.key).or_default();
        *delivered = delivered.saturating_add(part.delivered);
        *delivered
    }

    /// Forget the objects with the fewest delivered bytes, so that a client cannot displace the
    /// others by asking for a byte of each of many objects.
    fn forget_half(&mut self) {
        let mut bytes: Vec<_> = self.delivered.values().copied().collect();
        let middle = bytes.len() / 2;
        let (_, median, _) = bytes.select_nth_unstable(middle);
        let median = *median;
        self.delivered.retain(|_, delivered| *delivered > median);
    }

    /// True if another object of this size may be in flight. An object beyond the limit has to be
    /// paid for in full, and is fetched alone.
    fn has_room(&self, whole_len: u64, delivered: u64, limits: &RangeFillLimits) -> bool {
        if self.in_flight.is_empty() && delivered >= whole_len {
            return limits.in_flight > 0;
        }
        let bytes = self.in_flight.values().sum::<u64>();
        self.in_flight.len() < limits.in_flight
            && whole_len <= limits.bytes_in_flight.saturating_sub(bytes)
    }

    /// Charge a client. `false` if its budget is too small.
    fn spend(
        &mut self,
        client: Option<IpAddr>,
        cost: u64,
        limits: &RangeFillLimits,
        now: Instant,
    ) -> bool {
        let Some(budget) = limits.client_bytes_per_minute.filter(|_| cost > 0) else {
            return true;
        };
        let client = client.map(network);
        let spent = match self.clients.get(&client) {
            Some(spent) => spent.still_spent(budget, now),
            None => 0,
        };
        if cost > budget.saturating_sub(spent) {
            return false;
        }
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&client) {
            self.clients
                .retain(|_, spent| spent.still_spent(budget, now) > 0);
            if self.clients.len() >= MAX_CLIENTS {
                return false;
            }
        }
        let bytes = spent + cost;
        self.clients.insert(client, Spent { bytes, at: now });
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
}

/// The network of an address. A client may have all addresses of an IPv6 /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
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

    const LIMITS: RangeFillLimits = RangeFillLimits {
        in_flight: 2,
        max_bytes: u64::MAX,
        bytes_in_flight: 100 << 20,
        client_bytes_per_minute: None,
        max_wait: Duration::ZERO,
    };

    fn part(key: u8, delivered: u64, whole_len: u64) -> Part {
        Part {
            key: [key; 16],
            delivered,
            whole_len,
            client: None,
            begins: false,
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
    fn bytes_in_flight_are_bounded_but_for_one_that_is_paid_for() {
        let fills = RangeFills::default();
        let begin = |key, delivered: u64, whole: u64| {
            let part = part(key, delivered << 20, whole << 20);
            fills.begin(&part, &LIMITS, Instant::now())
        };
        assert!(begin(1, 150, 300).is_none(), "larger than the limit");
        let paid = begin(1, 150, 300);
        assert!(paid.is_some(), "as much was delivered");
        assert!(begin(2, 1, 1).is_none(), "it is fetched alone");
        drop(paid);
        let first = begin(3, 64, 60);
        assert!(first.is_some());
        assert!(begin(4, 300, 300).is_none(), "not beside another one");
        assert!(begin(2, 64, 41).is_none());
        assert!(begin(2, 64, 40).is_some());
    }

    #[test]
    fn a_large_object_is_fetched_when_enough_of_it_was_delivered() {
        let fills = RangeFills::default();
        let limits = RangeFillLimits {
            bytes_in_flight: u64::MAX,
            ..LIMITS
        };
        let begin = |key, len, whole| fills.begin(&part(key, len, whole), &limits, Instant::now());
        assert!(begin(1, 0, SMALL).is_none(), "nothing was delivered");
        for _ in 0..1000 {
            assert!(begin(1, 1, SMALL + 1).is_none());
        }
        assert!(begin(1, SMALL / SHARE, SMALL + 1).is_some());
        assert!(begin(2, 1, SMALL).is_some(), "a small one");
        for _ in 0..7 {
            assert!(begin(3, 8 << 20, 10 << 30).is_none());
        }
        assert!(begin(3, 8 << 20, 10 << 30).is_some());
    }

    #[test]
    fn objects_are_remembered_up_to_a_bound_and_the_least_delivered_leave() {
        let fills = RangeFills::default();
        let whole_len = 10 << 30;
        assert!(fills
            .begin(
                &part(u8::MAX, ENOUGH - 1, whole_len),
                &LIMITS,
                Instant::now()
            )
            .is_none());
        for key in 0..u16::MAX {
            let mut part = part(0, 1, SMALL + 1);
            part.key[..2].copy_from_slice(&key.to_le_bytes());
            fills.begin(&part, &LIMITS, Instant::now());
            assert!(fills.0.lock().delivered.len() <= MAX_OBJECTS);
        }
        assert_eq!(fills.0.lock().delivered[&[u8::MAX; 16]], ENOUGH - 1);
    }

    /// A client with a budget of 6000 bytes a minute.
    fn limits() -> RangeFillLimits {
        RangeFillLimits {
            in_flight: 1 << 20,
            client_bytes_per_minute: Some(6000),
            ..LIMITS
        }
    }

    #[test]
    fn a_client_has_a_budget_that_is_not_overdrawn() {
        let fills = RangeFills::default();
        let limits = limits();
        let start = Instant::now();
        let begin = |client: &str, cost: u64, seconds| {
            let part = Part {
                client: Some(client.parse().unwrap()),
                ..part(1, 1, cost + 1)
            };
            let now = start + Duration::from_secs(seconds);
            // Whatever is not fetched does not count for the next one.
            fills.0.lock().delivered.clear();
            fills.begin(&part, &limits, now).is_some()
        };
        assert!(!begin("192.0.2.1", 6001, 0), "more than the budget");
        assert!(begin("192.0.2.1", 5900, 0));
        assert!(!begin("192.0.2.1", 101, 0), "more than is left");
        assert!(begin("192.0.2.1", 100, 0));
        assert!(!begin("192.0.2.1", 1, 0));
        assert!(!begin("::ffff:192.0.2.1", 1, 0), "the same client");
        assert!(begin("192.0.2.2", 6000, 0), "another one");
        assert!(!begin("192.0.2.1", 1001, 10), "1000 bytes are restored");
        assert!(begin("192.0.2.1", 1000, 10));
        assert!(begin("2001:db8::1", 6000, 0));
        assert!(!begin("2001:db8::ffff", 1, 0), "of the same network");
        assert!(begin("2001:db8:0:1::1", 1, 0));
    }

    #[test]
    fn what_was_delivered_pays_for_the_fill() {
        let fills = RangeFills::default();
        let client = Some("192.0.2.1".parse().unwrap());
        let begin = |key, delivered, whole_len| {
            let part = Part {
                client,
                ..part(key, delivered, whole_len)
            };
            fills.begin(&part, &limits(), Instant::now()).is_some()
        };
        // An object larger than the budget.
        assert!(!begin(1, 3999, 10_000));
        assert!(begin(1, 1, 10_000), "6000 are charged");
        assert!(!begin(2, 9999, 10_000), "nothing is left");
        assert!(begin(2, 1, 10_000), "and nothing is charged");
        assert!(!begin(2, 1, 10_000), "the bytes are spent");
    }

    #[test]
    fn clients_are_remembered_up_to_a_bound() {
        let fills = RangeFills::default();
        let limits = limits();
        let start = Instant::now();
        let begin = |client: u32, now| {
            let part = Part {
                client: Some(std::net::Ipv4Addr::from(client).into()),
                ..part(1, 1, 2)
            };
            fills.0.lock().delivered.clear();
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
