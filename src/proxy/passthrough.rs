//! Buckets with `auth: passthrough`. S3 decides on each request, which reaches it as the client
//! signed it.
//!
//! - A client gets a stored response when S3 confirms it in the answer to this client's own
//!   request, or has done so within `auth_ttl`.
//! - Entries that a request changes are invalidated before the client is answered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    HeaderName, ETAG, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, Method, StatusCode};
use log::warn;
use pingora_cache::key::CacheHashKey;
use pingora_cache::CacheKey;
use pingora_http::RequestHeader;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use super::buckets::LIST;
use super::cache_key::{key_of, requested_query};
use super::route::Route;
use super::settings::Settings;
use crate::cache::DiskCache;
use crate::http::RelayedRequest;
use crate::s3::{Change, DeletedKeys, Operation, Proof, Router, S3Request, Signed};

/// Asks S3 for the checksum fields of an object ("Checking object integrity", Amazon S3 User
/// Guide).
pub(super) const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");

/// The most permissions that are remembered, 100 bytes each. The least used ones are evicted first.
const PERMISSIONS: usize = 16 * 1024;

/// The fields `X-…` that do not change the answer to a GET or HEAD.
const KNOWN_FIELDS: [&str; 13] = [
    "x-amz-api-version",
    "x-amz-checksum-mode",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
    "x-amz-user-agent",
    "x-amzn-trace-id",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
];

/// The known parameters of GetObject and HeadObject.
const KNOWN_PARAMETERS: [&str; 21] = [
    "AWSAccessKeyId",
    "Expires",
    "Signature",
    "X-Amz-Algorithm",
    "X-Amz-Content-Sha256",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Amz-SignedHeaders",
    "X-Amz-User-Agent",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "versionId",
    "x-amz-security-token",
    "x-id",
];

/// The state that all buckets with `auth: passthrough` share.
pub(super) struct Passthrough {
    cache: Option<&'static DiskCache>,
    permissions: Cache<[u8; 32], Permission>,
    /// Changes when permissions may have changed.
    generation: AtomicU64,
}

/// A permission: S3 has given this version of an object to a client.
#[derive(Clone, Copy)]
struct Permission {
    since: SystemTime,
    /// The end of the client's signature.
    until: Option<SystemTime>,
    version: Version,
    generation: u64,
}

/// A version of an object, by its validators.
type Version = [u8; 32];

/// A request that S3 decides on.
pub(super) struct Relayed {
    change: Change,
    changes_permissions: bool,
    deleted: DeletedKeys,
    /// The whole request has been sent to S3.
    is_sent: bool,
    /// The status of S3's answer.
    status: Option<StatusCode>,
    proof: Option<Proof>,
    /// The value of [`Passthrough::generation`] when S3 was asked.
    generation: u64,
}

// === impl Passthrough ===

impl Passthrough {
    pub(super) fn new(cache: Option<&'static DiskCache>) -> Passthrough {
        Passthrough {
            cache,
            permissions: Cache::new(PERMISSIONS),
            generation: AtomicU64::new(0),
        }
    }

    /// Read the meaning of a request for the cache.
    pub(super) fn read(&self, request: &RequestHeader, route: &Route) -> (RelayedRequest, Relayed) {
        let mut relay = relayed_request(request, &route.request);
        relay.fills = relay.is_cached && route.site.signer().is_some() && is_canonical(request);
        relay.host = route.doubtful_name().map(Box::from);
        let ttl = Passthrough::ttl(route);
        let proof = (relay.is_cached && !ttl.is_zero()).then(|| {
            // Routing uses both names, and a permission is for one object.
            let host = request.headers.get(HOST).map(|host| host.as_bytes());
            let authority = request.uri.authority();
            let authority = authority.map(|authority| authority.as_str().as_bytes());
            let key = route.cache_key().ok()?;
            Proof::of(
                request.method.as_str(),
                request.raw_path(),
                [host, authority, Some(key.primary_key())],
                &request.headers,
            )
        });
        let relayed = Relayed {
            change: Change::of(&route.request, &request.method, &request.headers),
            changes_permissions: Change::changes_permissions(&route.request, &request.method),
            deleted: DeletedKeys::default(),
            is_sent: false,
            status: None,
            proof: proof.flatten(),
            generation: self.generation.load(Ordering::Acquire),
        };
        (relay, relayed)
    }

    fn ttl(route: &Route) -> Duration {
        let ttls = &route.site.settings().relays.ttls;
        let ttl = ttls.get(route.site.index());
        ttl.copied().unwrap_or_default()
    }

    /// True if the client may have the stored version, by a remembered permission.
    pub(super) fn permits(&self, route: &Route, relayed: &Relayed, stored: &HeaderMap) -> bool {
        let Some(proof) = &relayed.proof else {
            return false;
        };
        let Some(known) = self.permissions.get(&proof.digest) else {
            return false;
        };
        let now = SystemTime::now();
        // A reload may have shortened the time since then.
        let end = known.since.checked_add(Passthrough::ttl(route));
        end.is_some_and(|end| end > now)
            && known.until.is_none_or(|end| end > now)
            && known.version == version(stored)
            && known.generation == self.generation.load(Ordering::Acquire)
    }

    /// Remember that S3 has given a version of an object to a client or confirmed it, or that it
    /// has refused.
    pub(super) fn remember(&self, relayed: &Relayed, given: Option<&HeaderMap>) {
        let Some(proof) = &relayed.proof else { return };
        let Some(given) = given.filter(|given| given.contains_key(ETAG)) else {
            self.permissions.remove(&proof.digest);
            return;
        };
        let permission = Permission {
            since: SystemTime::now(),
            until: proof.until,
            version: version(given),
            generation: relayed.generation,
        };
        self.permissions.insert(proof.digest, permission);
    }

    /// Invalidate what a request may have changed. Call it between the answer of S3 and that to the
    /// client, and when the answer is lost. `current`: the settings of new requests.
    pub(super) async fn invalidate(
        &self,
        current: &Arc<Settings>,
        route: &Route,
        relayed: &Relayed,
    ) {
        if !relayed.may_have_changed() {
            return;
        }
        self.invalidate_permissions(relayed);
        let Some(cache) = self.cache else { return };
        cache.forget_answers();
        let changed = changed(current, route, relayed);
        for key in changed.keys {
            if let Err(e) = cache.invalidate(&key).await {
                warn!("{key:?} has changed, but its stored response was not invalidated: {e}");
            }
        }
        ban(cache, changed.prefixes).await;
    }

    /// Like [`invalidate`](Self::invalidate), at the end of an answer: S3 may begin to answer
    /// before it makes the change.
    pub(super) fn invalidate_at_end(
        &self,
        current: &Arc<Settings>,
        route: &Route,
        relayed: &Relayed,
    ) {
        if !relayed.may_have_changed() {
            return;
        }
        self.invalidate_permissions(relayed);
        let Some(cache) = self.cache else { return };
        cache.forget_answers();
        let changed = changed(current, route, relayed);
        changed
            .keys
            .iter()
            .for_each(|key| cache.invalidate_nowait(key));
        if !changed.prefixes.is_empty() {
            tokio::spawn(ban(cache, changed.prefixes));
        }
    }

    fn invalidate_permissions(&self, relayed: &Relayed) {
        if relayed.changes_permissions {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// The entries that a request may have changed, by the settings with which it began and by the current
/// ones.
fn changed(current: &Arc<Settings>, route: &Route, relayed: &Relayed) -> Changed {
    let mut changed = Changed::default();
    let own = route.site.settings();
    add_changed(own, route, relayed, &mut changed);
    if !Arc::ptr_eq(own, current) {
        add_changed(current, route, relayed, &mut changed);
    }
    changed.keys.sort_unstable_by_key(CacheKey::combined_bin);
    changed.keys.dedup_by_key(|key| key.combined_bin());
    changed.prefixes.sort_unstable();
    changed.prefixes.dedup();
    changed
}

/// Add the entries that a request may have changed, in each way that S3 may interpret it.
fn add_changed(settings: &Settings, route: &Route, relayed: &Relayed, changed: &mut Changed) {
    let router = settings.router();
    match objects(route, relayed) {
        Some(objects) => add_objects(settings, route, route.bucket(), &objects, changed),
        None => add_bucket(router, route, route.bucket(), changed),
    }
    let operation = route.request.operation;
    let makes_object = relayed.change == Change::Object && operation != Operation::Other;
    if relayed.change == Change::Nothing {
        return;
    }
    for (bucket, key) in route.other_readings(router) {
        match key {
            Some(key) => {
                let objects = [(key.as_str(), route.request.version_id())];
                add_objects(settings, route, &bucket, &objects, changed);
            }
            // In this interpretation, the request creates or deletes a bucket, which has no objects.
            None if makes_object => {}
            None => add_bucket(router, route, &bucket, changed),
        }
    }
}

/// Add objects of a bucket, and its stored lists, on every route to the bucket.
fn add_objects(
    settings: &Settings,
    route: &Route,
    bucket: &str,
    objects: &[(&str, Option<&str>)],
    changed: &mut Changed,
) {
    if objects.is_empty() {
        return;
    }
    let sites = settings.router();
    for site in sites.same_bucket(route.site.service(), bucket) {
        let primaries = objects
            .iter()
            .filter_map(|(key, version)| Some((site.cache_key_of(bucket, key)?, version)));
        for (primary, version) in primaries {
            let version = version.filter(|id| *id != "null");
            if version.is_some() {
                changed.keys.push(key_of(site, primary.clone(), version));
            }
            // The current version may be this one.
            changed
                .keys
                .push(key_of(site, primary.clone(), Some("null")));
            changed.keys.push(key_of(site, primary, None));
        }
        if settings.relays.store_lists.get(site.index()) == Some(&true) {
            let prefix = [site.cache_prefix(), LIST].concat();
            changed.prefixes.push((site.user_tag().to_owned(), prefix));
        }
    }
}

// === impl Relayed ===

impl Relayed {
    /// Note the next piece of the request's body, or its end.
    pub(super) fn note_body(&mut self, body: Option<&Bytes>, is_end: bool) {
        if let (Change::Listed, Some(body)) = (self.change, body) {
            self.deleted.read(body);
        }
        self.is_sent |= is_end;
    }

    /// Note that the request has no body.
    pub(super) fn note_sent(&mut self) {
        self.is_sent = true;
    }

    /// Note the status of S3's answer.
    pub(super) fn note_status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// True if S3 may have changed something: it confirmed the change, it failed, or its answer is
    /// lost.
    fn may_have_changed(&self) -> bool {
        if self.change == Change::Nothing && !self.changes_permissions {
            return false;
        }
        match self.status {
            Some(status) => {
                // S3 changes nothing after 501, which it answers even without a signature.
                status.is_success()
                    || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
            }
            // S3 does nothing before the end of the request.
            None => self.is_sent,
        }
    }
}

/// The role of the cache in a request for an object.
fn relayed_request(request: &RequestHeader, s3: &S3Request) -> RelayedRequest {
    let uncached = RelayedRequest::default();
    if !s3.reads_object() || s3.passes_the_cache() || !is_known(request) {
        return uncached;
    }
    let signed = Signed::of(requested_query(request), &request.headers);
    let has = |name: &HeaderName| request.headers.contains_key(name);
    let is_signed = |name: &HeaderName| has(name) && signed.contains(name);
    // The cache has to replace the first two fields, and to cut the range that the others concern.
    if is_signed(&IF_NONE_MATCH)
        || is_signed(&IF_MODIFIED_SINCE)
        || has(&IF_RANGE)
        || (has(&RANGE) && request.method == Method::HEAD)
    {
        return uncached;
    }
    let kept = [IF_MATCH, IF_UNMODIFIED_SINCE, RANGE];
    RelayedRequest {
        is_cached: true,
        stores: s3.overrides().is_empty(),
        signed: kept.into_iter().filter(|name| is_signed(name)).collect(),
        mark: s3.wants_checksums().then_some(CHECKSUM_MODE),
        is_permitted: false,
        ..RelayedRequest::default()
    }
}

/// True if a path is encoded as by `UriEncode()`, so that S3 and the proxy sign the same.
fn is_canonical(request: &RequestHeader) -> bool {
    let target = request.raw_path();
    let path = target.split(|byte| *byte == b'?').next();
    path.unwrap_or(target)
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.~/%".contains(byte))
}

/// True if the proxy knows all fields and parameters of a request: none of them makes S3 answer
/// with something other than the object.
fn is_known(request: &RequestHeader) -> bool {
    let mut fields = request.headers.keys();
    let is_known_field = |name: &HeaderName| {
        !name.as_str().starts_with("x-") || KNOWN_FIELDS.contains(&name.as_str())
    };
    let query = requested_query(request).unwrap_or_default();
    let mut parameters = query
        .split(|byte| *byte == b'&')
        .filter(|parameter| !parameter.is_empty());
    let is_known_parameter = |parameter: &[u8]| {
        let name = parameter.split(|byte| *byte == b'=').next();
        name.is_some_and(|name| {
            KNOWN_PARAMETERS
                .iter()
                .any(|known| known.as_bytes() == name)
        })
    };
    fields.all(is_known_field) && parameters.all(is_known_parameter)
}

fn version(headers: &HeaderMap) -> Version {
    let mut digest = Sha256::new();
    for name in [ETAG, LAST_MODIFIED] {
        if let Some(value) = headers.get(name) {
            digest.update(value.as_bytes());
        }
        digest.update(b"\n");
    }
    digest.finalize().into()
}

/// The entries of the cache that a request may have changed.
#[derive(Default)]
struct Changed {
    keys: Vec<CacheKey>,
    prefixes: Vec<TaggedPrefix>,
}

/// The keys and versions of the objects that a request may have changed. `None` for all objects of
/// the bucket.
fn objects<'p>(route: &'p Route, relayed: &'p Relayed) -> Option<Vec<(&'p str, Option<&'p str>)>> {
    match relayed.change {
        Change::Nothing => Some(Vec::new()),
        Change::Object => {
            let key = route.request.target.key()?.as_str();
            Some(vec![(key, route.request.version_id())])
        }
        Change::Listed => {
            let objects = relayed.deleted.complete()?.iter();
            let objects = objects.map(|object| (&*object.key, object.version_id.as_deref()));
            Some(objects.collect())
        }
        Change::Bucket => None,
    }
}

/// The user tag of cache entries, and the beginning of their keys.
type TaggedPrefix = (String, String);

/// Ban the entries whose keys have one of these prefixes.
async fn ban(cache: &'static DiskCache, prefixes: Vec<TaggedPrefix>) {
    for (tag, prefix) in prefixes {
        if let Err(e) = cache.ban_prefix(&tag, prefix.as_bytes()).await {
            warn!("{prefix:?} has changed, but its stored responses were not invalidated: {e}");
        }
    }
}

/// Add all objects and lists of a bucket, on every route to it.
fn add_bucket(router: &Router, route: &Route, bucket: &str, changed: &mut Changed) {
    if bucket.is_empty() {
        return;
    }
    let sites = router.same_bucket(route.site.service(), bucket);
    let prefixes = sites.map(|site| (site.user_tag().to_owned(), site.cache_prefix_of(bucket)));
    changed.prefixes.extend(prefixes);
}
