//! Verification of the signatures of clients, AWS Signature Version 4: in the
//! `Authorization` header, or in the query of a presigned URL.
//!
//! - this module: the clients, and the comparison
//! - `signature`: the signature of a request, its scope and its time
//! - `canonical`: the text that is signed
//! - `timestamp`: the times in it
//! - [`refusal`]: responses to invalid signatures
//!
//! aws-sigv4 signs requests that it writes itself: it adds headers, leaves others out, and needs a
//! URI. Here the client chose headers and spelling, so the text is built from the request as it
//! arrived. The tests compare the result with aws-sigv4's.
//!
//! Source: "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API Reference.

mod canonical;
mod fields;
pub mod refusal;
mod signature;
#[cfg(test)]
mod tests;
mod timestamp;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::sign::v4::generate_signing_key;
use hmac::{Hmac, KeyInit, Mac};
use http::header::HOST;
use http::HeaderMap;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::prefixes::KeyPrefixes;
use canonical::{is_encoded, Form, Part, Spelling};
use fields::Fields;
pub use refusal::{Reason, Refusal};
use signature::Signature;
use timestamp::Timestamp;

/// The time in a signed request, from `x-amz-date` or `Date`.
pub fn time_of(text: &[u8]) -> Option<SystemTime> {
    Timestamp::parse_header(text).map(|timestamp| timestamp.time())
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "s3";
const TERMINATOR: &str = "aws4_request";

/// The number of days whose derived keys are kept for a client: a presigned URL may be of one of the
/// last eight days, or of tomorrow.
const DAYS: usize = 9;

/// The initial capacity for a canonical request, enough for most.
const USUAL_LEN: usize = 1024;

/// A request as it arrived. A GET or HEAD has no body.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    pub method: &'a str,
    /// The raw path.
    pub path: &'a [u8],
    /// The raw query without `?`, if there is one.
    pub query: Option<&'a [u8]>,
    /// The host of a request without `Host`: the `:authority` of HTTP/2.
    pub host: Option<&'a [u8]>,
    pub headers: &'a HeaderMap,
}

/// An [`Incoming`] request, with its only host and a list of its header fields.
struct Request<'a> {
    method: &'a str,
    path: &'a [u8],
    query: Option<&'a [u8]>,
    host: &'a [u8],
    fields: Fields<'a>,
}

/// A client that may read a bucket.
pub struct Client {
    key_id: Arc<str>,
    credentials: Credentials,
    prefixes: KeyPrefixes,
    /// The derived keys, by day.
    keys: RwLock<Vec<([u8; 8], Hmac<Sha256>)>>,
}

/// The clients of a bucket.
#[derive(Debug)]
pub struct Verifier {
    region: String,
    clients: HashMap<String, Client>,
    /// The stand-in for an unknown client, so that a refusal takes the same time.
    nobody: Client,
}

// === impl Client ===

impl Client {
    /// A client with these keys and rights.
    pub fn new(credentials: Credentials, prefixes: KeyPrefixes) -> Client {
        Client {
            key_id: credentials.access_key_id().into(),
            credentials,
            prefixes,
            keys: RwLock::default(),
        }
    }

    /// The access key, which names the client.
    pub fn access_key(&self) -> &str {
        self.credentials.access_key_id()
    }

    /// The [access key](Self::access_key), for notes on a request.
    pub fn key_id(&self) -> Arc<str> {
        self.key_id.clone()
    }

    /// The objects that the client may read.
    pub fn prefixes(&self) -> &KeyPrefixes {
        &self.prefixes
    }

    /// The derived key of a day. It is kept, because deriving it takes as long as everything else.
    fn key(&self, time: &Timestamp, region: &str) -> Hmac<Sha256> {
        let day = time.day();
        let kept = |keys: &[([u8; 8], Hmac<Sha256>)]| {
            let (_, key) = keys.iter().find(|(of, _)| *of == day)?;
            Some(key.clone())
        };
        if let Some(key) = kept(&self.keys.read()) {
            return key;
        }
        let secret = self.credentials.secret_access_key();
        let derived = generate_signing_key(secret, time.time(), region, SERVICE);
        let key = Hmac::new_from_slice(derived.as_ref()).unwrap_or_else(|_| {
            // HMAC accepts keys of any length.
            unreachable!("a derived key has a length that HMAC refuses")
        });
        let mut keys = self.keys.write();
        if kept(&keys).is_none() {
            if keys.len() >= DAYS {
                let oldest = (0..keys.len()).min_by_key(|at| keys[*at].0);
                oldest.map(|at| keys.swap_remove(at));
            }
            keys.push((day, key.clone()));
        }
        key
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("access_key", &self.access_key())
            .field("prefixes", &self.prefixes)
            .finish_non_exhaustive()
    }
}

// === impl Verifier ===

impl Verifier {
    /// A verifier of requests that are signed for `region`. Of clients with the same access key, the
    /// last one is used.
    pub fn new(region: &str, clients: impl IntoIterator<Item = Client>) -> Verifier {
        let clients = clients
            .into_iter()
            .map(|client| (client.access_key().to_owned(), client));
        let nobody = Credentials::new("", "0".repeat(40), None, None, "nobody");
        Verifier {
            region: region.to_owned(),
            clients: clients.collect(),
            nobody: Client::new(nobody, KeyPrefixes::only([])),
        }
    }

    /// The client that signed a request.
    ///
    /// # Errors
    /// [`Refusal`], with S3's code and message.
    pub fn verify(&self, request: &Incoming<'_>, now: SystemTime) -> Result<&Client, Refusal> {
        let request = Request::of(request)?;
        let signature = Signature::read(&request, &self.region, now)?;
        let known = self.clients.get(&*signature.access_key);
        let client = known.unwrap_or(&self.nobody);
        let matches = self.matches(client, &request, &signature);
        let client = known.ok_or(Refusal::UNKNOWN_KEY)?;
        if !matches {
            return Err(Refusal::MISMATCH);
        }
        // Only clients that know the secret key get this reason.
        match (client.credentials.session_token(), &signature.token) {
            (None, _) => Ok(client),
            (Some(token), Some(sent)) if bool::from(token.as_bytes().ct_eq(sent)) => Ok(client),
            (Some(_), Some(_)) => Err(Refusal::BAD_TOKEN),
            // As at S3, the key is unknown without its token.
            (Some(_), None) => Err(Refusal::UNKNOWN_KEY),
        }
    }

    /// Compares the signature with the possible ones of this client, in constant time each.
    fn matches(&self, client: &Client, request: &Request<'_>, signature: &Signature) -> bool {
        let key = client.key(&signature.time, &self.region);
        let mut text = Vec::with_capacity(USUAL_LEN);
        Spelling::of(request).any(|spelling| {
            text.clear();
            canonical::write(
                &mut text,
                request,
                spelling,
                &signature.signed_headers,
                &signature.payload,
            );
            let mut mac = key.clone();
            let day = signature.time.day();
            for part in [
                ALGORITHM.as_bytes(),
                b"\n",
                signature.time.text(),
                b"\n",
                &day,
                b"/",
                self.region.as_bytes(),
                b"/s3/aws4_request\n",
                &hex_digits(&Sha256::digest(&text)),
            ] {
                mac.update(part);
            }
            mac.verify_slice(&signature.bytes).is_ok()
        })
    }
}

// === impl Request ===

impl<'a> Request<'a> {
    fn of(incoming: &Incoming<'a>) -> Result<Request<'a>, Refusal> {
        let fields = Fields::of(incoming.headers);
        let mut hosts = fields.all(HOST.as_str().as_bytes());
        let host = hosts.next().or(incoming.host);
        let is_only = hosts.next().is_none();
        drop(hosts);
        Ok(Request {
            method: incoming.method,
            path: incoming.path,
            query: incoming.query,
            host: host.filter(|_| is_only).ok_or(Refusal::TWO_HOSTS)?,
            fields,
        })
    }
}

fn hex_digits(hash: &[u8]) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 64];
    for (digits, byte) in text.chunks_exact_mut(2).zip(hash) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

// === impl Spelling ===

impl Spelling {
    /// The spellings to try: only one, if the target is written as by `UriEncode()`.
    fn of(request: &Request<'_>) -> impl Iterator<Item = Spelling> {
        let query_is_encoded = request.query.is_none_or(|query| {
            canonical::parameters(query).all(|(name, value)| {
                is_encoded(name, Part::Query) && is_encoded(value, Part::Query)
            })
        });
        let forms = |is_encoded: bool| match is_encoded {
            // Both spellings are equal.
            true => &[Form::Sent][..],
            false => &[Form::Encoded, Form::Sent],
        };
        let queries = forms(query_is_encoded);
        let paths = forms(is_encoded(request.path, Part::Path));
        paths.iter().flat_map(|path| {
            queries.iter().map(|query| Spelling {
                path: *path,
                query: *query,
            })
        })
    }
}
