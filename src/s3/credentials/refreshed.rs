//! Credentials that are replaced before they expire.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::identity::Identity;
use tokio::sync::watch;

use super::Lookup;

/// The longest time that a request waits for credentials.
const WAIT: Duration = Duration::from_secs(5);

/// The longest time for a lookup, retries of the SDK included.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// The lead of a lookup over the expiry of credentials, or a quarter of their remaining time if
/// that is shorter. EC2 has new credentials five minutes ahead.
const LONGEST_LEAD: Duration = Duration::from_secs(5 * 60);

/// The time after which credentials without an expiry are looked up again, because their file may
/// have changed.
const RECHECK: Duration = Duration::from_secs(15 * 60);

/// The delay after a failed lookup, doubled after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The longest delay between failed lookups while there are valid credentials.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The longest delay between failed lookups while requests are refused for lack of credentials.
const LONGEST_RETRY_WITHOUT: Duration = Duration::from_secs(10);

/// The interval between looks at the clock, which may be set while the process runs.
const STEP: Duration = Duration::from_secs(60);

/// Credentials that are looked up in the background, ahead of their expiry.
///
/// While a lookup fails, the credentials of an earlier one are used until they expire.
pub struct Refreshed {
    lookup: Lookup,
    /// The owner of the credentials, for the log.
    owner: String,
    state: watch::Sender<State>,
    is_running: AtomicBool,
    /// Unix time of the last lookup that has found some; 0: there was none.
    found: AtomicU64,
    failures: AtomicU64,
    refused: AtomicU64,
}

#[derive(Clone, Default)]
struct State {
    held: Option<Held>,
    is_looking: bool,
    /// The reason that the last lookup failed.
    error: Option<Arc<str>>,
}

#[derive(Clone)]
struct Held {
    identity: Identity,
    expiry: Option<SystemTime>,
}

/// The reason that there are no valid credentials.
#[derive(Debug)]
pub struct NoCredentials(String);

// === impl Refreshed ===

impl Refreshed {
    /// Credentials from `lookup`, named `owner` in the log. The first lookup begins with
    /// [`start`](Self::start) or with the first request.
    pub fn new(lookup: Lookup, owner: &str) -> Arc<Refreshed> {
        Arc::new(Refreshed {
            lookup,
            owner: owner.to_owned(),
            state: watch::Sender::new(State::default()),
            is_running: AtomicBool::new(false),
            found: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// The source of the credentials.
    pub fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// Starts a task on the current runtime that looks the credentials up, unless there is one. It ends
    /// with the last owner of the credentials.
    pub fn start(self: &Arc<Self>) {
        if self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        self.state.send_modify(|state| state.is_looking = true);
        let running = Running(Arc::downgrade(self));
        let lookup = self.lookup.clone();
        tokio::spawn(async move {
            Refreshed::keep(running.0.clone(), || lookup.credentials()).await;
            drop(running);
        });
    }

    /// Waits for valid credentials, if there are none.
    ///
    /// # Errors
    /// The lookup has failed, or takes too long.
    pub async fn wait(self: &Arc<Self>) -> Result<(), NoCredentials> {
        if self.identity(SystemTime::now()).is_some() {
            return Ok(());
        }
        self.start();
        let found = self.wait_for(WAIT).await;
        if found.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    async fn wait_for(&self, limit: Duration) -> Result<(), NoCredentials> {
        let mut changes = self.state.subscribe();
        let is_known = |state: &State| !state.is_looking || state.is_valid(SystemTime::now());
        let known = tokio::time::timeout(limit, changes.wait_for(is_known)).await;
        let why = match known {
            Ok(Ok(state)) if state.is_valid(SystemTime::now()) => return Ok(()),
            Ok(Ok(state)) => match &state.error {
                Some(why) => why.to_string(),
                None => "they have expired".to_owned(),
            },
            // The sender is part of `self`, so only the time can have run out.
            Ok(Err(_)) | Err(_) => format!("the lookup takes longer than {limit:?}"),
        };
        Err(NoCredentials(why))
    }

    /// The credentials, if they are valid.
    pub(in crate::s3) fn identity(&self, now: SystemTime) -> Option<Identity> {
        let state = self.state.borrow();
        let held = state.held.as_ref().filter(|held| held.is_valid(now))?;
        Some(held.identity.clone())
    }

    /// The expiry of the credentials; `None`: there are none, or they do not expire.
    pub fn expiry(&self) -> Option<SystemTime> {
        self.state.borrow().held.as_ref()?.expiry
    }

    /// The time of the last lookup that has found credentials, in seconds since the epoch; 0: there
    /// was none.
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// The number of failed lookups.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The number of requests refused for lack of credentials.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Looks credentials up again and again, until nobody owns them any more.
    async fn keep<F>(credentials: Weak<Refreshed>, lookup: impl FnMut() -> F)
    where
        F: Future<Output = Result<Credentials, String>>,
    {
        let Some(mut changes) = credentials.upgrade().map(|of| of.state.subscribe()) else {
            return;
        };
        tokio::select! {
            () = Refreshed::keep_owned(credentials, lookup) => {}
            // The state ends with its owner.
            () = async { while changes.changed().await.is_ok() {} } => {}
        }
    }

    async fn keep_owned<F>(credentials: Weak<Refreshed>, mut lookup: impl FnMut() -> F)
    where
        F: Future<Output = Result<Credentials, String>>,
    {
        let mut failures = 0;
        loop {
            let Some(of) = credentials.upgrade() else {
                return;
            };
            of.state.send_modify(|state| state.is_looking = true);
            // Neither a lookup nor a pause keeps the credentials alive.
            drop(of);
            let found = tokio::time::timeout(LOOKUP_TIMEOUT, lookup()).await;
            let found = found.unwrap_or_else(|_| {
                Err(format!("the lookup takes longer than {LOOKUP_TIMEOUT:?}"))
            });
            let Some(of) = credentials.upgrade() else {
                return;
            };
            let now = SystemTime::now();
            let pause = match found.and_then(|found| Held::new(found, now)) {
                Ok(held) => {
                    failures = 0;
                    of.take(held, now)
                }
                Err(why) => {
                    failures += 1;
                    of.note_failure(&why, failures, now)
                }
            };
            drop(of);
            sleep_until(now + pause).await;
        }
    }

    /// Takes credentials over. Returns the time until the next lookup.
    fn take(&self, held: Held, now: SystemTime) -> Duration {
        let pause = refresh_after(held.expiry, now, fastrand::f64());
        let since = now.duration_since(UNIX_EPOCH);
        let found = since.map_or(0, |since| since.as_secs());
        self.found.store(found, Ordering::Relaxed);
        self.state.send_modify(|state| {
            let is_first = state.held.is_none();
            if is_first || state.error.is_some() {
                match held.expiry {
                    Some(expiry) => log::info!(
                        "{}: credentials found, valid until {}",
                        self.owner,
                        httpdate::fmt_http_date(expiry)
                    ),
                    None => log::info!("{}: credentials found", self.owner),
                }
            }
            *state = State {
                held: Some(held),
                is_looking: false,
                error: None,
            };
        });
        pause
    }

    /// Notes a failed lookup. Returns the time until the next attempt.
    fn note_failure(&self, why: &str, failures: u32, now: SystemTime) -> Duration {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let is_valid = self.state.borrow().is_valid(now);
        let kept = match is_valid {
            true => "the earlier ones are used until they expire",
            false => "requests to the origin are refused",
        };
        log::warn!("{}: no credentials: {why}; {kept}", self.owner);
        self.state.send_modify(|state| {
            state.is_looking = false;
            state.error = Some(why.into());
        });
        retry_after(failures, is_valid, fastrand::f64())
    }
}

impl fmt::Debug for Refreshed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refreshed")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

/// The end of the task, with its runtime, after which another one may be started.
struct Running(Weak<Refreshed>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(of) = self.0.upgrade() {
            of.state.send_modify(|state| state.is_looking = false);
            of.is_running.store(false, Ordering::Release);
        }
    }
}

// === impl State ===

impl State {
    fn is_valid(&self, now: SystemTime) -> bool {
        self.held.as_ref().is_some_and(|held| held.is_valid(now))
    }
}

// === impl Held ===

impl Held {
    fn new(credentials: Credentials, now: SystemTime) -> Result<Held, String> {
        let is_header = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        let keys = [credentials.access_key_id(), credentials.secret_access_key()];
        let token = credentials.session_token();
        // They go into a header field, which a line end would end.
        if !keys.into_iter().chain(token).all(is_header) {
            return Err("those that were found are empty or no text".to_owned());
        }
        let held = Held {
            expiry: credentials.expiry(),
            identity: credentials.into(),
        };
        match held.is_valid(now) {
            true => Ok(held),
            false => Err("those that were found have expired".to_owned()),
        }
    }

    fn is_valid(&self, now: SystemTime) -> bool {
        self.expiry.is_none_or(|expiry| now < expiry)
    }
}

// === impl NoCredentials ===

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no valid credentials: {}", self.0)
    }
}

impl std::error::Error for NoCredentials {}

/// The time until the next lookup. `random`, from 0 to 1, spreads the lookups of several processes.
fn refresh_after(expiry: Option<SystemTime>, now: SystemTime, random: f64) -> Duration {
    let Some(expiry) = expiry else {
        return RECHECK.mul_f64(1.0 + random / 10.0);
    };
    let left = expiry.duration_since(now).unwrap_or_default();
    let lead = (left / 4).min(LONGEST_LEAD);
    left.saturating_sub(lead.mul_f64(1.0 + random / 2.0))
        .max(FIRST_RETRY)
}

/// The delay after a number of failed lookups.
fn retry_after(failures: u32, is_valid: bool, random: f64) -> Duration {
    let longest = match is_valid {
        true => LONGEST_RETRY,
        false => LONGEST_RETRY_WITHOUT,
    };
    let doubled = FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(0.5 + random / 2.0)
}

async fn sleep_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(STEP)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn refreshed() -> Arc<Refreshed> {
        let lookup = Lookup {
            region: "us-east-1".to_owned(),
            keys: None,
            role: None,
        };
        Refreshed::new(lookup, "test")
    }

    fn credentials(access_key: &str, lifetime: Option<Duration>) -> Credentials {
        let expiry = lifetime.map(|lifetime| SystemTime::now() + lifetime);
        Credentials::new(access_key, "hunter2", None, expiry, "test")
    }

    fn access_key(refreshed: &Refreshed) -> Option<String> {
        let identity = refreshed.identity(SystemTime::now())?;
        let credentials = identity.data::<Credentials>()?;
        Some(credentials.access_key_id().to_owned())
    }

    /// Run `keep` until `done`.
    async fn keep_until<F>(
        refreshed: &Arc<Refreshed>,
        lookup: impl FnMut() -> F,
        done: impl FnMut(&State) -> bool,
    ) where
        F: Future<Output = Result<Credentials, String>>,
    {
        let mut changes = refreshed.state.subscribe();
        let limit = Duration::from_secs(30);
        let done = tokio::time::timeout(limit, changes.wait_for(done));
        tokio::select! {
            () = Refreshed::keep(Arc::downgrade(refreshed), lookup) => {}
            done = done => {
                done.expect("in time").expect("a sender");
            }
        }
    }

    #[test]
    fn credentials_are_replaced_before_they_expire() {
        let now = SystemTime::now();
        let after =
            |secs, random| refresh_after(Some(now + Duration::from_secs(secs)), now, random);
        // An hour: five minutes ahead, or up to seven and a half.
        assert_eq!(after(3600, 0.0), Duration::from_secs(3300));
        assert_eq!(after(3600, 1.0), Duration::from_secs(3150));
        assert_eq!(after(8, 0.0), Duration::from_secs(6));
        assert_eq!(after(8, 1.0), Duration::from_secs(5));
        // A server that gives expired ones is not asked all the time.
        assert_eq!(after(0, 0.5), Duration::from_secs(1));
        assert_eq!(refresh_after(None, now, 0.0), RECHECK);
    }

    #[test]
    fn failures_are_repeated_more_and_more_seldom() {
        let after = |failures, is_valid| retry_after(failures, is_valid, 1.0).as_secs();
        let pauses =
            |is_valid| [1, 2, 3, 4, 5, 7, u32::MAX].map(|failures| after(failures, is_valid));
        assert_eq!(pauses(true), [1, 2, 4, 8, 16, 60, 60]);
        assert_eq!(pauses(false), [1, 2, 4, 8, 10, 10, 10]);
        assert_eq!(retry_after(1, true, 0.0), Duration::from_millis(500));
    }

    #[tokio::test]
    async fn new_credentials_take_the_place_of_those_that_expire() {
        let refreshed = refreshed();
        let lookups = AtomicUsize::new(0);
        let lookup = || {
            let number = lookups.fetch_add(1, Ordering::SeqCst);
            let found = credentials(&format!("key-{number}"), Some(Duration::from_secs(2)));
            async { Ok(found) }
        };
        let second = |_: &State| access_key_is(&refreshed, "key-1");
        keep_until(&refreshed, lookup, second).await;
        assert_eq!(refreshed.failures(), 0);
        assert!(refreshed.expiry().is_some());
    }

    fn access_key_is(refreshed: &Refreshed, expected: &str) -> bool {
        // The state is borrowed by the one who waits for a change of it.
        let state = refreshed.state.borrow();
        let held = state.held.as_ref();
        let credentials = held.and_then(|held| held.identity.data::<Credentials>());
        credentials.is_some_and(|credentials| credentials.access_key_id() == expected)
    }

    #[tokio::test]
    async fn a_failing_lookup_keeps_credentials_until_they_expire() {
        let refreshed = refreshed();
        let mut answers = vec![Ok(credentials("first", Some(Duration::from_secs(3))))];
        let lookup = || {
            let answer = answers.pop().unwrap_or(Err("STS is away".to_owned()));
            async { answer }
        };
        keep_until(&refreshed, lookup, |state| state.error.is_some()).await;
        assert_eq!(access_key(&refreshed).as_deref(), Some("first"));
        let later = SystemTime::now() + Duration::from_secs(4);
        assert!(refreshed.identity(later).is_none());
        assert!(refreshed.failures() > 0);
    }

    #[tokio::test]
    async fn a_request_without_credentials_gets_the_reason_at_once() {
        let refreshed = refreshed();
        let fail = || async { Err("STS is away".to_owned()) };
        keep_until(&refreshed, fail, |state| state.error.is_some()).await;
        let error = refreshed.wait_for(Duration::from_secs(3600)).await;
        let error = error.expect_err("there are none").to_string();
        assert_eq!(error, "no valid credentials: STS is away");
    }

    #[tokio::test]
    async fn credentials_that_nobody_owns_are_not_looked_up_any_more() {
        let refreshed = refreshed();
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let hangs = move || {
            let begun = begun.clone();
            async move {
                begun.send(()).expect("somebody waits for it");
                std::future::pending().await
            }
        };
        let task = tokio::spawn(Refreshed::keep(Arc::downgrade(&refreshed), hangs));
        begins.recv().await.expect("a lookup");
        drop(refreshed);
        task.await.expect("it ends");
    }

    #[tokio::test]
    async fn a_request_does_not_wait_for_a_lookup_that_hangs() {
        let refreshed = refreshed();
        refreshed.state.send_modify(|state| state.is_looking = true);
        let error = refreshed.wait_for(Duration::from_millis(10)).await;
        let error = error.expect_err("there are none").to_string();
        assert!(error.contains("takes longer than 10ms"), "{error}");
    }

    #[tokio::test]
    async fn credentials_that_cannot_be_used_are_a_failure() {
        let past = Some(SystemTime::now() - Duration::from_secs(1));
        for (key, token, expiry, why) in [
            ("key", None, past, "have expired"),
            ("", None, None, "are empty"),
            ("a\r\nb", None, None, "no text"),
            ("key", Some("a b"), None, "no text"),
        ] {
            let token = token.map(str::to_owned);
            let found = Credentials::new(key, "hunter2", token, expiry, "test");
            let Err(said) = Held::new(found, SystemTime::now()) else {
                panic!("accepted {key:?}");
            };
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let keys = super::super::OriginCredentials::from(credentials("key", None));
        let debug = format!("{:?} {keys:?}", refreshed());
        assert!(!debug.contains("hunter2"), "{debug}");
    }
}
