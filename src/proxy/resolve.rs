//! Addresses of origins. Names are looked up repeatedly, and addresses are tried one after the
//! other.
//!
//! The system looks names up, so `/etc/hosts`, nsswitch.conf(5), search domains and the caches of
//! the machine apply as they do to every other program. The system does not report how long an
//! answer is valid; S3 states about ten seconds.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The time for which addresses are used before the name is looked up again.
const LOOKUP_TTL: Duration = Duration::from_secs(10);

/// The longest time for a lookup.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for which other requests share the error of a failed lookup.
const FAILED_LOOKUP_TTL: Duration = Duration::from_secs(1);

/// The time for which an address that failed to connect is tried last.
const FAILED_ADDRESS_TTL: Duration = Duration::from_secs(60);

/// The most addresses of a name that are used; the rest are ignored.
const MAX_ADDRESSES: usize = 16;

/// The time limit for an address while there is another one to try.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// The addresses of the hosts of a configuration.
#[derive(Default)]
pub struct Resolver {
    /// No more hosts than the configuration names.
    hosts: Mutex<HashMap<(String, u16), Arc<Host>>>,
}

/// The known addresses of a host.
struct Host {
    name: String,
    known: Mutex<Known>,
    /// Held by the one task that looks the name up.
    lookup: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// The time after which the addresses, or `error`, are too old.
    stale_at: Option<Instant>,
    error: Option<(io::ErrorKind, String)>,
    failed: Vec<(SocketAddr, Instant)>,
}

/// The addresses that a request could not connect to.
#[derive(Default)]
pub struct Attempts {
    failed: Vec<SocketAddr>,
    begun: Option<Instant>,
}

/// An address to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The address.
    pub address: SocketAddr,
    /// The time limit for connecting.
    pub timeout: Duration,
}

// === impl Resolver ===

impl Resolver {
    /// A resolver that knows what `former` knows about these hosts.
    pub fn after<'h>(former: &Resolver, hosts: impl Iterator<Item = (&'h str, u16)>) -> Resolver {
        let known = former.hosts.lock();
        let kept = hosts.filter_map(|(host, port)| {
            let name = (host.to_owned(), port);
            let host = known.get(&name)?.clone();
            Some((name, host))
        });
        Resolver {
            hosts: Mutex::new(kept.collect()),
        }
    }

    /// The address that a request should try next. The limit for all addresses together is `limit`.
    /// Names are looked up off the worker threads, one at a time for each host.
    ///
    /// # Errors
    /// The name cannot be looked up, or has no address.
    pub async fn next(
        &self,
        host: &str,
        port: u16,
        limit: Duration,
        attempts: &mut Attempts,
    ) -> io::Result<Candidate> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Candidate {
                address: (ip, port).into(),
                timeout: limit,
            });
        }
        let known = self.host(host, port);
        let name = (host.to_owned(), port);
        known
            .refresh(|| async { Ok(tokio::net::lookup_host(name).await?.collect()) })
            .await?;
        let now = Instant::now();
        attempts.begun.get_or_insert(now);
        let candidate = known.known.lock().next(limit, attempts, now);
        candidate.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    }

    /// Note that a request could not connect to `address`. True if there is another one to try.
    pub fn failed(
        &self,
        host: &str,
        port: u16,
        limit: Duration,
        address: SocketAddr,
        attempts: &mut Attempts,
    ) -> bool {
        attempts.failed.push(address);
        if host.parse::<IpAddr>().is_ok() {
            return false;
        }
        let now = Instant::now();
        let host = self.host(host, port);
        let mut known = host.known.lock();
        known.note_failed(address, now);
        !attempts.left(limit, now).is_zero() && known.untried(attempts).next().is_some()
    }

    fn host(&self, host: &str, port: u16) -> Arc<Host> {
        let mut hosts = self.hosts.lock();
        if let Some(known) = hosts.get(&(host.to_owned(), port)) {
            return known.clone();
        }
        let new = Arc::new(Host::new(host));
        hosts.insert((host.to_owned(), port), new.clone());
        new
    }
}

// === impl Attempts ===

impl Attempts {
    /// Note that a request has connected. For another connection, it tries all addresses again.
    pub fn succeeded(&mut self) {
        *self = Attempts::default();
    }

    /// The remainder of `limit`.
    fn left(&self, limit: Duration, now: Instant) -> Duration {
        let begun = self.begun.unwrap_or(now);
        limit.saturating_sub(now.duration_since(begun))
    }
}

// === impl Host ===

impl Host {
    fn new(name: &str) -> Self {
        Host {
            name: name.to_owned(),
            known: Mutex::default(),
            lookup: Arc::default(),
        }
    }

    /// Look the name up if it is time. Requests use the known addresses meanwhile. Without any,
    /// they wait for the lookup.
    async fn refresh<F>(self: &Arc<Self>, lookup: impl FnOnce() -> F) -> io::Result<()>
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        if let Some(outcome) = self.known.lock().outcome(Instant::now()) {
            return outcome;
        }
        let has_addresses = !self.known.lock().addresses.is_empty();
        let looking = match self.lookup.clone().try_lock_owned() {
            Ok(looking) => looking,
            Err(_) if has_addresses => return Ok(()),
            Err(_) => self.lookup.clone().lock_owned().await,
        };
        // Another request may have looked the name up meanwhile.
        if let Some(outcome) = self.known.lock().outcome(Instant::now()) {
            return outcome;
        }
        let (host, lookup) = (self.clone(), lookup());
        let look = async move {
            let _looking = looking;
            let answer = tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await;
            let answer = answer.unwrap_or_else(|_| {
                let why = format!("no name server has answered for {LOOKUP_TIMEOUT:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            });
            let taken = host.known.lock().take(answer, Instant::now());
            if let Ok(Some(why)) = &taken {
                log::warn!(
                    "{}: {why}; the addresses of an earlier lookup are used",
                    host.name
                );
            }
            taken.map(|_| ())
        };
        if has_addresses {
            tokio::spawn(look);
            return Ok(());
        }
        look.await
    }
}

// === impl Known ===

impl Known {
    /// The outcome of the last lookup. `None` if it is too old.
    fn outcome(&self, now: Instant) -> Option<io::Result<()>> {
        if self.stale_at.is_none_or(|at| at <= now) {
            return None;
        }
        Some(match &self.error {
            Some((kind, why)) if self.addresses.is_empty() => Err(io::Error::new(*kind, &**why)),
            _ => Ok(()),
        })
    }

    /// Adopt the answer of a lookup. A failed lookup keeps the earlier addresses; its error is
    /// returned as `Some`.
    fn take(
        &mut self,
        answer: io::Result<Vec<SocketAddr>>,
        now: Instant,
    ) -> io::Result<Option<io::Error>> {
        match answer {
            Ok(mut addresses) => {
                addresses.truncate(MAX_ADDRESSES);
                self.addresses = addresses;
                self.error = None;
                self.stale_at = Some(now + LOOKUP_TTL);
                let addresses = &self.addresses;
                self.failed
                    .retain(|(address, _)| addresses.contains(address));
                Ok(None)
            }
            Err(e) => {
                self.stale_at = Some(now + FAILED_LOOKUP_TTL);
                self.error = Some((e.kind(), e.to_string()));
                if self.addresses.is_empty() {
                    return Err(e);
                }
                Ok(Some(e))
            }
        }
    }

    fn note_failed(&mut self, address: SocketAddr, now: Instant) {
        self.failed.retain(|(failed, _)| *failed != address);
        if self.addresses.contains(&address) {
            self.failed.push((address, now));
        }
    }

    fn untried<'a>(&'a self, attempts: &'a Attempts) -> impl Iterator<Item = SocketAddr> + 'a {
        self.addresses
            .iter()
            .copied()
            .filter(|address| !attempts.failed.contains(address))
    }

    /// The next address, in the order of the answer. Addresses that have failed come last, the
    /// latest failure at the end.
    fn next(&mut self, limit: Duration, attempts: &Attempts, now: Instant) -> Option<Candidate> {
        self.failed
            .retain(|(_, at)| now.duration_since(*at) < FAILED_ADDRESS_TTL);
        let failed_at = |address: &SocketAddr| {
            let place = self.failed.iter().position(|(failed, _)| failed == address);
            place.map(|place| self.failed[place].1)
        };
        let address = self.untried(attempts).min_by_key(failed_at)?;
        let left = attempts.left(limit, now);
        let timeout = match self.untried(attempts).nth(1) {
            Some(_) => left.min(ATTEMPT_TIMEOUT),
            None => left,
        };
        // Time may run out between two addresses.
        let timeout = timeout.max(Duration::from_millis(1));
        Some(Candidate { address, timeout })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 80).into()
    }

    fn known(addresses: &[u8]) -> Known {
        let mut known = Known::default();
        let answer = addresses.iter().map(|last| address(*last)).collect();
        known.take(Ok(answer), Instant::now()).unwrap();
        known
    }

    const LIMIT: Duration = Duration::from_secs(10);

    /// `timeout` in seconds.
    fn candidate(last: u8, timeout: u64) -> Option<Candidate> {
        Some(Candidate {
            address: address(last),
            timeout: Duration::from_secs(timeout),
        })
    }

    fn host() -> Arc<Host> {
        Arc::new(Host::new("s3.test"))
    }

    #[test]
    fn every_address_is_tried_once_and_the_one_that_failed_last() {
        let mut known = known(&[1, 2, 3]);
        let now = Instant::now();
        let mut attempts = Attempts::default();
        for (last, timeout) in [(1, 2), (2, 2), (3, 10)] {
            let next = known.next(LIMIT, &attempts, now);
            assert_eq!(next, candidate(last, timeout));
            known.note_failed(address(last), now + Duration::from_millis(u64::from(last)));
            attempts.failed.push(address(last));
        }
        assert_eq!(known.next(LIMIT, &attempts, now), None);

        // All have failed, so the next request begins with the one that failed first.
        let fresh = Attempts::default();
        assert_eq!(known.next(LIMIT, &fresh, now), candidate(1, 2));
        // One that works is used again and again.
        known.failed.retain(|(failed, _)| *failed != address(2));
        for _ in 0..3 {
            assert_eq!(known.next(LIMIT, &fresh, now), candidate(2, 2));
        }
        let later = now + FAILED_ADDRESS_TTL + Duration::from_secs(1);
        assert_eq!(known.next(LIMIT, &fresh, later), candidate(1, 2));
    }

    #[test]
    fn a_long_answer_is_cut() {
        let known = known(&(1..=200).collect::<Vec<u8>>());
        assert_eq!(known.addresses.len(), MAX_ADDRESSES);
    }

    #[test]
    fn all_addresses_together_have_a_time() {
        let resolver = Resolver::default();
        let host = resolver.host("s3.test", 80);
        let answer = (1..=9).map(address).collect();
        host.known.lock().take(Ok(answer), Instant::now()).unwrap();
        let begun = Instant::now().checked_sub(Duration::from_secs(9)).unwrap();
        let mut attempts = Attempts {
            begun: Some(begun),
            ..Attempts::default()
        };
        let next = host.known.lock().next(LIMIT, &attempts, Instant::now());
        assert!(next.unwrap().timeout <= Duration::from_secs(1));
        assert!(resolver.failed("s3.test", 80, LIMIT, address(1), &mut attempts));
        attempts.begun = begun.checked_sub(Duration::from_secs(1));
        assert!(!resolver.failed("s3.test", 80, LIMIT, address(2), &mut attempts));
    }

    #[test]
    fn a_failed_address_stays_last_after_another_lookup() {
        let mut known = known(&[1, 2]);
        let now = Instant::now();
        known.note_failed(address(1), now);
        known.take(Ok(vec![address(1), address(2)]), now).unwrap();
        assert_eq!(
            known.next(LIMIT, &Attempts::default(), now),
            candidate(2, 2)
        );
        known.take(Ok(vec![address(2)]), now).unwrap();
        assert!(known.failed.is_empty());
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_who_wait() {
        let host = host();
        let lookups = Arc::new(AtomicUsize::new(0));
        let look = || {
            let lookups = lookups.clone();
            host.refresh(|| async move {
                lookups.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok(vec![address(1)])
            })
        };
        let all = futures::future::join_all((0..100).map(|_| look())).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(lookups.load(Ordering::SeqCst), 1);
        host.known.lock().stale_at = Some(Instant::now());
        let all = futures::future::join_all((0..100).map(|_| look())).await;
        assert!(all.iter().all(Result::is_ok));
        looked_up(&host).await;
        assert_eq!(lookups.load(Ordering::SeqCst), 2);
    }

    /// Wait for a background lookup to end.
    async fn looked_up(host: &Host) {
        drop(host.lookup.lock().await);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_name_server_where_addresses_are_known() {
        let host = host();
        let answer = vec![address(1)];
        host.known.lock().take(Ok(answer), Instant::now()).unwrap();
        host.known.lock().stale_at = Some(Instant::now());
        for _ in 0..3 {
            host.refresh(std::future::pending).await.unwrap();
            tokio::task::yield_now().await;
        }
        let next = host
            .known
            .lock()
            .next(LIMIT, &Attempts::default(), Instant::now());
        assert_eq!(next, candidate(1, 10));
    }

    #[tokio::test]
    async fn a_lookup_that_fails_leaves_what_is_known() {
        let host = host();
        let lookups = Arc::new(AtomicUsize::new(0));
        let fail = || {
            let lookups = lookups.clone();
            host.refresh(|| async move {
                lookups.fetch_add(1, Ordering::SeqCst);
                Err(io::Error::other("no server answers"))
            })
        };
        let all = futures::future::join_all((0..100).map(|_| fail())).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(lookups.load(Ordering::SeqCst), 1);

        let answer = vec![address(1)];
        host.known.lock().take(Ok(answer), Instant::now()).unwrap();
        host.known.lock().stale_at = Some(Instant::now());
        fail().await.unwrap();
        // The lookup takes its turn first, and begins after that.
        tokio::task::yield_now().await;
        looked_up(&host).await;
        assert_eq!(lookups.load(Ordering::SeqCst), 2);
        let next = host
            .known
            .lock()
            .next(LIMIT, &Attempts::default(), Instant::now());
        assert_eq!(next, candidate(1, 10));
    }

    #[tokio::test]
    async fn an_address_needs_no_lookup() {
        let resolver = Resolver::default();
        let mut attempts = Attempts::default();
        let address = SocketAddr::from(([127, 0, 0, 1], 9000));
        let next = resolver.next("127.0.0.1", 9000, LIMIT, &mut attempts).await;
        let next = next.unwrap();
        assert_eq!((next.address, next.timeout), (address, LIMIT));
        assert!(!resolver.failed("127.0.0.1", 9000, LIMIT, address, &mut attempts));
        assert!(resolver.hosts.lock().is_empty());
    }
}
