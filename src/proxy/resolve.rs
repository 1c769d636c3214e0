//! Addresses of origins, looked up now and then and tried one after the other.

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

/// The most addresses that one request tries.
const MAX_ATTEMPTS: usize = 4;

/// The addresses of the hosts of a configuration.
#[derive(Default)]
pub struct Resolver {
    /// No more hosts than the configuration names.
    hosts: Mutex<HashMap<(String, u16), Arc<Host>>>,
}

/// The known addresses of a host.
#[derive(Default)]
struct Host {
    known: Mutex<Known>,
    /// Held by the one task that looks the name up.
    lookup: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// The time from which the addresses, or `error`, are too old.
    stale_at: Option<Instant>,
    error: Option<(io::ErrorKind, String)>,
    failed: Vec<(SocketAddr, Instant)>,
}

/// The addresses that a request could not connect to.
#[derive(Default)]
pub struct Attempts(Vec<SocketAddr>);

/// An address to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The address.
    pub address: SocketAddr,
    /// True if this request can try no other address after it.
    pub is_last: bool,
}

// === impl Resolver ===

impl Resolver {
    /// The address that a request should try next. Names are looked up off the worker
    /// threads, one at a time for each host.
    ///
    /// # Errors
    /// The name cannot be looked up, or has no address.
    pub async fn next(&self, host: &str, port: u16, attempts: &Attempts) -> io::Result<Candidate> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Candidate {
                address: (ip, port).into(),
                is_last: true,
            });
        }
        let known = self.host(host, port);
        let name = (host.to_owned(), port);
        known
            .refresh(|| async { Ok(tokio::net::lookup_host(name).await?.collect()) })
            .await?;
        let candidate = known.known.lock().next(attempts, Instant::now());
        candidate.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    }

    /// Note that a request could not connect to `address`. True: it can try another one.
    pub fn failed(
        &self,
        host: &str,
        port: u16,
        address: SocketAddr,
        attempts: &mut Attempts,
    ) -> bool {
        attempts.0.push(address);
        if host.parse::<IpAddr>().is_ok() {
            return false;
        }
        let now = Instant::now();
        let host = self.host(host, port);
        let mut known = host.known.lock();
        known.note_failed(address, now);
        attempts.0.len() < MAX_ATTEMPTS && known.untried(attempts).next().is_some()
    }

    fn host(&self, host: &str, port: u16) -> Arc<Host> {
        let mut hosts = self.hosts.lock();
        if let Some(known) = hosts.get(&(host.to_owned(), port)) {
            return known.clone();
        }
        hosts.entry((host.to_owned(), port)).or_default().clone()
    }
}

// === impl Host ===

impl Host {
    /// Look the name up if it is time. Meanwhile, requests use the known addresses; if
    /// there are none, they wait for the lookup.
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
            host.known.lock().take(answer, Instant::now())
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
    /// The outcome of the last lookup; `None`: it is too old.
    fn outcome(&self, now: Instant) -> Option<io::Result<()>> {
        if self.stale_at.is_none_or(|at| at <= now) {
            return None;
        }
        Some(match &self.error {
            Some((kind, why)) if self.addresses.is_empty() => Err(io::Error::new(*kind, &**why)),
            _ => Ok(()),
        })
    }

    /// Take an answer over. A failed lookup keeps the addresses of an earlier one.
    fn take(&mut self, answer: io::Result<Vec<SocketAddr>>, now: Instant) -> io::Result<()> {
        match answer {
            Ok(mut addresses) => {
                addresses.truncate(MAX_ADDRESSES);
                self.addresses = addresses;
                self.error = None;
                self.stale_at = Some(now + LOOKUP_TTL);
                let addresses = &self.addresses;
                self.failed
                    .retain(|(address, _)| addresses.contains(address));
                Ok(())
            }
            Err(e) => {
                self.stale_at = Some(now + FAILED_LOOKUP_TTL);
                self.error = Some((e.kind(), e.to_string()));
                if self.addresses.is_empty() {
                    return Err(e);
                }
                log::warn!("{e}; the addresses of an earlier lookup are used");
                Ok(())
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
            .filter(|address| !attempts.0.contains(address))
    }

    /// The next address, in the order of the answer. Those that failed come last, with the
    /// latest failure at the end.
    fn next(&mut self, attempts: &Attempts, now: Instant) -> Option<Candidate> {
        self.failed
            .retain(|(_, at)| now.duration_since(*at) < FAILED_ADDRESS_TTL);
        let failed_at = |address: &SocketAddr| {
            let place = self.failed.iter().position(|(failed, _)| failed == address);
            place.map(|place| self.failed[place].1)
        };
        let address = self.untried(attempts).min_by_key(failed_at)?;
        let is_last =
            attempts.0.len() + 1 >= MAX_ATTEMPTS || self.untried(attempts).nth(1).is_none();
        Some(Candidate { address, is_last })
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

    fn candidate(last: u8, is_last: bool) -> Option<Candidate> {
        Some(Candidate {
            address: address(last),
            is_last,
        })
    }

    #[test]
    fn every_address_is_tried_once_and_the_one_that_failed_last() {
        let mut known = known(&[1, 2, 3]);
        let now = Instant::now();
        let mut attempts = Attempts::default();
        for (last, is_last) in [(1, false), (2, false), (3, true)] {
            assert_eq!(known.next(&attempts, now), candidate(last, is_last));
            known.note_failed(address(last), now + Duration::from_millis(u64::from(last)));
            attempts.0.push(address(last));
        }
        assert_eq!(known.next(&attempts, now), None);

        // All have failed, so the next request begins with the one that failed first.
        assert_eq!(known.next(&Attempts::default(), now), candidate(1, false));
        // One that works is used again and again.
        known.failed.retain(|(failed, _)| *failed != address(2));
        for _ in 0..3 {
            assert_eq!(known.next(&Attempts::default(), now), candidate(2, false));
        }
        let later = now + FAILED_ADDRESS_TTL + Duration::from_secs(1);
        assert_eq!(known.next(&Attempts::default(), later), candidate(1, false));
    }

    #[test]
    fn a_long_answer_is_not_tried_to_its_end() {
        let mut known = known(&(1..=200).collect::<Vec<u8>>());
        assert_eq!(known.addresses.len(), MAX_ADDRESSES);
        let now = Instant::now();
        let mut attempts = Attempts::default();
        for last in 1..=MAX_ATTEMPTS as u8 {
            let is_last = usize::from(last) == MAX_ATTEMPTS;
            assert_eq!(known.next(&attempts, now), candidate(last, is_last));
            attempts.0.push(address(last));
        }
    }

    #[test]
    fn a_failed_address_stays_last_after_another_lookup() {
        let mut known = known(&[1, 2]);
        let now = Instant::now();
        known.note_failed(address(1), now);
        known.take(Ok(vec![address(1), address(2)]), now).unwrap();
        assert_eq!(known.next(&Attempts::default(), now), candidate(2, false));
        known.take(Ok(vec![address(2)]), now).unwrap();
        assert!(known.failed.is_empty());
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_who_wait() {
        let host = Arc::<Host>::default();
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
        let host = Arc::<Host>::default();
        let answer = vec![address(1)];
        host.known.lock().take(Ok(answer), Instant::now()).unwrap();
        host.known.lock().stale_at = Some(Instant::now());
        for _ in 0..3 {
            host.refresh(std::future::pending).await.unwrap();
            tokio::task::yield_now().await;
        }
        let next = host.known.lock().next(&Attempts::default(), Instant::now());
        assert_eq!(next, candidate(1, true));
    }

    #[tokio::test]
    async fn a_lookup_that_fails_leaves_what_is_known() {
        let host = Arc::<Host>::default();
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
        let next = host.known.lock().next(&Attempts::default(), Instant::now());
        assert_eq!(next, candidate(1, true));
    }

    #[tokio::test]
    async fn an_address_needs_no_lookup() {
        let resolver = Resolver::default();
        let mut attempts = Attempts::default();
        let address = SocketAddr::from(([127, 0, 0, 1], 9000));
        let next = resolver.next("127.0.0.1", 9000, &attempts).await.unwrap();
        assert_eq!((next.address, next.is_last), (address, true));
        assert!(!resolver.failed("127.0.0.1", 9000, address, &mut attempts));
        assert!(resolver.hosts.lock().is_empty());
    }
}
