//! The state that all requests to a cache share: its options, the store and the limits.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::state::CachingCtx;
use crate::cache::DiskCache;
use crate::http::fill_lock::FillLock;
use crate::http::head_cache::HeadCache;
use crate::http::origin_turns::OriginTurns;
use crate::http::range_fill::{RangeFillLimits, RangeFills};
use crate::http::rules::conditional::has_failing_preconditions;
use crate::http::rules::fields::RequestFields;
use crate::http::rules::storing::StoringRules;
use crate::http::rules::vary::{variance, Variance};
use crate::http::too_large::TooLarge;
use crate::http::variants::Variants;

/// The cache's name unless its owner sets another.
pub const CACHE_NAME: &str = "pingora-sendfile";

/// Decisions of the owner of a caching proxy.
#[derive(Debug, Clone)]
pub struct CachingOptions {
    /// The responses that are stored, and their freshness.
    pub storing: StoringRules,
    /// The cache's name in `Cache-Status` and `Via`: a token.
    pub name: &'static str,
    /// The fields of a client's request that reach the origin. No other field selects
    /// a variant or decides on storing.
    pub request_fields: RequestFields,
    /// The most stored variants of a response with `Vary`. A new variant replaces the oldest.
    pub max_variants: usize,
    /// Heed the `Cache-Control` of requests. Those directives are advisory (RFC 9111 §5.2.1),
    /// and let any client force requests to the origin.
    pub request_directives: bool,
    /// Limits for fetching a whole object after a request for a part of it.
    pub range_fill: RangeFillLimits,
    /// The time a request waits for another one that fetches the same response, before one of
    /// the waiting requests asks the origin too.
    pub lock_age: Duration,
    /// The longest time a request waits for others before it asks the origin itself.
    pub lock_timeout: Duration,
    /// `If-Match` and `If-Unmodified-Since` do not keep a response from being stored. The cache
    /// evaluates them by the validators of the response, as S3 does. Otherwise the origin
    /// evaluates them, unless a fresh response is stored.
    pub judges_preconditions: bool,
    /// The most requests that, at a time, wait for the origin, or pass on a response that is not
    /// stored or has no length.
    pub max_misses: usize,
    /// The longest time a further request waits for its turn. After that it gets 503.
    pub miss_timeout: Duration,
    /// The longest time for which the origin's fresh answer to a HEAD answers other HEADs. Zero
    /// turns this off. See [`HttpCaching::stored_head`].
    pub head_ttl: Duration,
    /// Makes the body of an error that the cache itself answers, and the fields that describe
    /// it. `None`: errors have no body.
    pub error_body: Option<ErrorBody>,
    /// Tells the client of a request, which has a budget for range fills. `None`: the client is the
    /// peer of its connection.
    pub client_address: Option<Arc<dyn ClientAddress>>,
    /// The value of `Strict-Transport-Security` in responses over TLS (RFC 6797), in place of the
    /// origin's. `None`: responses have the origin's.
    pub hsts: Option<HeaderValue>,
}

/// See [`CachingOptions::client_address`].
pub trait ClientAddress: fmt::Debug + Send + Sync {
    /// The address of the client that has made the request of a session, if it is known.
    fn of(&self, session: &Session) -> Option<IpAddr>;
}

/// See [`CachingOptions::error_body`]. The response has its status, and fields that stay.
pub type ErrorBody = fn(&RequestHeader, &mut ResponseHeader) -> Result<Bytes>;

impl Default for CachingOptions {
    fn default() -> Self {
        CachingOptions {
            storing: StoringRules::default(),
            name: CACHE_NAME,
            request_fields: RequestFields::All,
            max_variants: 32,
            request_directives: true,
            range_fill: RangeFillLimits::default(),
            lock_age: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(60),
            judges_preconditions: false,
            max_misses: 1024,
            miss_timeout: Duration::from_secs(60),
            head_ttl: Duration::ZERO,
            error_body: None,
            client_address: None,
            hsts: None,
        }
    }
}

/// HTTP caching for a [`ProxyHttp`](pingora_proxy::ProxyHttp), with a
/// [`DiskCache`].
///
/// Each method belongs to the callback of the same name, as `examples/http_cache.rs` shows.
///
/// ```no_run
/// use std::time::Duration;
///
/// use pingora_sendfile::cache::{DiskCache, DiskCacheConfig};
/// use pingora_sendfile::http::{CachingOptions, HttpCaching, StoringRules};
///
/// # fn main() -> std::io::Result<()> {
/// let cache = DiskCache::open(DiskCacheConfig::new("/var/cache/my-proxy", 100 << 30))?;
/// let storing = StoringRules {
///     default_ttl: Some(Duration::from_secs(60)),
///     ..StoringRules::default()
/// };
/// let options = CachingOptions {
///     storing,
///     ..CachingOptions::default()
/// };
/// let caching = HttpCaching::new(Some(cache), options);
/// # let _ = caching;
/// # Ok(())
/// # }
/// ```
pub struct HttpCaching {
    pub(super) store: Option<Store>,
    pub(super) options: CachingOptions,
    pub(super) variants: Variants,
    pub(super) fills: RangeFills,
    pub(super) turns: Arc<OriginTurns>,
    pub(super) heads: HeadCache,
}

/// The parts that Pingora requires to live as long as the process.
#[derive(Clone, Copy)]
pub(super) struct Store {
    pub cache: &'static DiskCache,
    pub lock: &'static FillLock,
    pub too_large: &'static TooLarge,
}

// === impl HttpCaching ===

impl HttpCaching {
    /// Cache in `cache`. Without one, every request passes.
    pub fn new(cache: Option<&'static DiskCache>, options: CachingOptions) -> HttpCaching {
        HttpCaching {
            store: cache.map(|cache| Store {
                cache,
                lock: Box::leak(Box::new(FillLock::new(cache, options.lock_age))),
                too_large: Box::leak(Box::new(TooLarge::new(cache))),
            }),
            variants: Variants::new(options.max_variants),
            turns: Arc::new(OriginTurns::new(options.max_misses, options.miss_timeout)),
            heads: HeadCache::new(options.head_ttl),
            options,
            fills: RangeFills::default(),
        }
    }

    /// The turns of requests to the origin.
    pub fn origin_turns(&self) -> &Arc<OriginTurns> {
        &self.turns
    }

    pub(super) fn storing<'a>(&'a self, ctx: &'a CachingCtx) -> &'a StoringRules {
        let storing = ctx.request.storing.as_deref();
        storing.unwrap_or(&self.options.storing)
    }

    /// True if a request has a precondition that the origin evaluates.
    pub(super) fn origin_decides(&self, request: &RequestHeader) -> bool {
        !self.options.judges_preconditions && has_failing_preconditions(&request.headers)
    }

    /// The variant of a response that a request selects (RFC 9111 §4.1).
    pub(super) fn variance(&self, response: &HeaderMap, request: &RequestHeader) -> Variance {
        variance(response, &request.headers, self.options.request_fields)
    }
}
