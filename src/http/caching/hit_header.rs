//! The header of a hit, made in one place for the fast path and for Pingora's.
//!
//! It consists of the lasting part, which is the same for every hit of an entry, and of
//! [`HitFields`], which depend on the time.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::AGE;
use http::HeaderValue;
use pingora_core::{ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;

use crate::cache::FastHeader;
use crate::http::rules::cache_status::CacheStatus;
use crate::http::rules::freshness::{is_from_the_future, ttl};

pub(super) const X_CACHE: &str = "X-Cache";
pub(super) const CACHE_STATUS: &str = "Cache-Status";

/// Longer than `Age` and `Cache-Status` of most hits, in bytes.
const FIELDS_LEN: usize = 64;

/// The fields of a hit that depend on the time.
pub(super) struct HitFields {
    /// The value of `Age`, and that of `Cache-Status` behind it.
    text: String,
    age_len: usize,
}

impl HitFields {
    /// The fields of a hit that is `age` seconds old (RFC 9111 §5.1).
    pub fn new(age: u64, status: &CacheStatus) -> HitFields {
        let mut text = String::with_capacity(FIELDS_LEN);
        text.push_str(itoa::Buffer::new().format(age));
        let age_len = text.len();
        status.push_to(&mut text);
        HitFields { text, age_len }
    }

    /// Names and values, in the order in which they are sent.
    pub fn as_array(&self) -> [(&'static str, &[u8]); 2] {
        let (age, status) = self.text.as_bytes().split_at(self.age_len);
        [("Age", age), (CACHE_STATUS, status)]
    }

    /// Append the fields to a lasting header.
    ///
    /// # Errors
    /// The cache's name is no token.
    pub fn append_to(self, response: &mut ResponseHeader) -> Result<()> {
        let text = Bytes::from(self.text);
        let value = |text| {
            HeaderValue::from_maybe_shared(text)
                .or_err(ErrorType::InternalError, "the name of the cache")
        };
        response.append_header("Age", value(text.slice(..self.age_len))?)?;
        response.append_header(CACHE_STATUS, value(text.slice(self.age_len..))?)?;
        Ok(())
    }
}

/// Reduce the header of a hit to its lasting part. `x_cache`: the value of `X-Cache`.
pub(super) fn make_lasting(response: &mut ResponseHeader, x_cache: &'static str) -> Result<()> {
    response.remove_header(&AGE);
    response.insert_header(X_CACHE, x_cache)
}

/// The age of a stored response in seconds (RFC 9111 §4.2.3). `epoch`: the time at which its age
/// was zero.
pub(super) fn age(epoch: SystemTime, now: SystemTime) -> u64 {
    now.duration_since(epoch).unwrap_or_default().as_secs()
}

/// True if a prepared header may be sent now (RFC 9111 §4.2).
pub(super) fn is_usable(prepared: &FastHeader, now: SystemTime) -> bool {
    prepared.fresh_until >= now && !is_from_the_future(prepared.updated, now)
}

/// The fields that complete a prepared header.
pub(super) fn prepared_fields(prepared: &FastHeader, cache: &str, now: SystemTime) -> HitFields {
    let status = CacheStatus {
        ttl: Some(ttl(prepared.fresh_until, now)),
        ..CacheStatus::hit(cache)
    };
    HitFields::new(age(prepared.epoch, now), &status)
}
