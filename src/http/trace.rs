//! Notes on a request, for a proxy that logs its requests.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::HeaderValue;
use pingora_core::Result;
use pingora_http::ResponseHeader;

/// The longest request id that is taken over.
const MAX_ID: usize = 64;

/// The length of a request id that the proxy makes.
const OWN_ID: usize = 16;

/// The id of a request, by which clients and operators refer to it.
#[derive(Clone, Copy)]
pub struct RequestId {
    len: u8,
    bytes: [u8; MAX_ID],
}

/// Notes on a request, and the field that names it in its responses.
///
/// A proxy hands it to [`CachingCtx::set_trace`](super::CachingCtx::set_trace), and reads it in
/// `logging`.
pub struct Trace {
    field: &'static str,
    id: RequestId,
    client: Option<IpAddr>,
    /// A prepared header was sent. Its status is 200.
    pub(super) is_prepared: bool,
    /// Boxed, because few requests have any.
    origin: Option<Box<OriginTrace>>,
}

/// Notes on the exchange with the origin.
struct OriginTrace {
    asked: Instant,
    answered: Option<Instant>,
    id: Option<HeaderValue>,
}

// === impl RequestId ===

impl RequestId {
    /// An id that is unlikely to be repeated in any process, and that tells nothing about others: 16
    /// upper-case hexadecimal digits, as in S3.
    pub fn random() -> RequestId {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let number = random();
        let mut bytes = [0; MAX_ID];
        for (at, byte) in bytes[..OWN_ID].iter_mut().enumerate() {
            *byte = DIGITS[(number >> (60 - 4 * at)) as usize & 15];
        }
        RequestId {
            len: OWN_ID as u8,
            bytes,
        }
    }

    /// The id that somebody else has made. `None` if it is longer than 64 bytes, or has other
    /// characters than letters, digits and `-_.:/+=@`.
    pub fn parse(id: &[u8]) -> Option<RequestId> {
        let is_allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(b);
        if id.is_empty() || !id.iter().all(is_allowed) {
            return None;
        }
        let mut bytes = [0; MAX_ID];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(RequestId {
            len: id.len() as u8,
            bytes,
        })
    }

    /// The id, in ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// The next number of a thread's own sequence. The numbers are counted, and hashed with a secret key
/// (SipHash): whoever knows some ids can compute neither the others nor the number of requests.
fn random() -> u64 {
    thread_local! {
        static KEY: RandomState = RandomState::new();
        static COUNT: Cell<u64> = const { Cell::new(0) };
    }
    let count = COUNT.get().wrapping_add(1);
    COUNT.set(count);
    KEY.with(|key| key.hash_one(count))
}

// === impl Trace ===

impl Trace {
    /// Notes on a request of `client`. `field` names it in its responses, in place of
    /// the origin's field.
    pub fn new(field: &'static str, id: RequestId, client: Option<IpAddr>) -> Trace {
        Trace {
            field,
            id,
            client,
            is_prepared: false,
            origin: None,
        }
    }

    /// The id of the request.
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// The address of the client, if it is known.
    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// True if a prepared header was sent, and so the status 200.
    pub fn is_prepared(&self) -> bool {
        self.is_prepared
    }

    /// Note that the origin is about to be asked. The first time counts, and the answer to the last
    /// one.
    pub fn ask_origin(&mut self) {
        let origin = self.origin.get_or_insert_with(|| {
            Box::new(OriginTrace {
                asked: Instant::now(),
                answered: None,
                id: None,
            })
        });
        origin.answered = None;
        origin.id = None;
    }

    /// Note an answer of the origin. The last one counts.
    pub fn answered_by_origin(&mut self, response: &ResponseHeader) {
        if let Some(origin) = self.origin.as_mut() {
            origin.answered = Some(Instant::now());
            origin.id = response.headers.get(self.field).cloned();
        }
    }

    /// The time from the first request to the origin to the header of its answer, or to `end` if it
    /// has not answered.
    pub fn origin_time(&self, end: Instant) -> Option<Duration> {
        let origin = self.origin.as_ref()?;
        let answered = origin.answered.unwrap_or(end);
        Some(answered.duration_since(origin.asked))
    }

    /// The id that the origin has given its answer.
    pub fn origin_id(&self) -> Option<&HeaderValue> {
        self.origin.as_ref()?.id.as_ref()
    }

    /// The field that names the request.
    pub(super) fn named_field(&self) -> (&'static str, &[u8]) {
        (self.field, self.id.as_bytes())
    }

    /// Name the request in a response.
    pub(super) fn identify(&self, response: &mut ResponseHeader) -> Result<()> {
        response.insert_header(self.field, self.id.as_bytes())
    }

    /// Take the name that the origin has given the request out of a response.
    pub(super) fn remove_from(&self, response: &mut ResponseHeader) {
        response.remove_header(self.field);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use super::*;

    #[test]
    fn ids_differ_within_and_between_threads() {
        let ids = || (0..10_000).map(|_| RequestId::random().as_str().to_owned());
        let other = thread::spawn(move || ids().collect::<Vec<_>>());
        let mut all: HashSet<_> = ids().collect();
        all.extend(other.join().unwrap());
        assert_eq!(all.len(), 20_000);
        let is_upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        let is_id = |id: &String| id.len() == OWN_ID && id.bytes().all(is_upper);
        assert!(all.iter().all(is_id));
    }

    #[test]
    fn an_answer_before_a_retry_does_not_count() {
        let mut trace = Trace::new("x-id", RequestId::random(), None);
        trace.ask_origin();
        let mut answer = ResponseHeader::build(503, None).unwrap();
        answer.insert_header("x-id", "first").unwrap();
        trace.answered_by_origin(&answer);
        assert_eq!(trace.origin_id().unwrap(), "first");
        trace.ask_origin();
        assert!(trace.origin_id().is_none());
        let later = Instant::now() + Duration::from_secs(3600);
        let until_later = trace.origin_time(later).unwrap();
        assert!(until_later >= Duration::from_secs(3600));
    }

    #[test]
    fn an_id_of_somebody_else_is_short_and_plain() {
        let longest = "a".repeat(MAX_ID);
        for id in ["a", "Root=1-67891233-abcdef012345678912345678", &longest] {
            assert_eq!(RequestId::parse(id.as_bytes()).unwrap().as_str(), id);
        }
        let too_long = "a".repeat(MAX_ID + 1);
        for id in ["", " ", "a b", "a\"b", "a\\", "a\nb", "\u{fc}", &too_long] {
            assert!(RequestId::parse(id.as_bytes()).is_none(), "{id:?}");
        }
    }
}
