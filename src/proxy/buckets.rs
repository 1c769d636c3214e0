//! Answers about buckets, and lists of objects.
//!
//! Clients send HeadBucket and GetBucketLocation before they ask for objects, to check that a
//! bucket exists and in which region to sign. The configuration answers both, and a client that may
//! read objects knows the answers anyway, so these operations do not need `list: true`.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderName, StatusCode};
use pingora_cache::CacheKey;
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::bucket_rules::ListRules;
use super::errors::{self, Recipient};
use super::route::Route;
use crate::http::HttpCaching;
use crate::s3::error::escape;
use crate::s3::{list, Code, ListRewriter, Operation, S3Error, S3Request, Site};

const BUCKET_REGION: HeaderName = HeaderName::from_static("x-amz-bucket-region");

/// The text that follows the prefix of a bucket in the cache keys of its lists. No object has
/// such a cache key, because an encoded object key does not begin with a question mark.
pub(super) const LIST: &str = "?list&";

/// The region whose buckets have no location.
const NO_LOCATION: &str = "us-east-1";

/// The creation date of every bucket. Clients require one, and the configuration has none.
const CREATED: &str = "1970-01-01T00:00:00.000Z";

/// A list on its way from the origin to a client.
pub(super) struct Listing {
    /// The request target for the origin.
    pub(super) target: String,
    pub(super) rewriter: ListRewriter,
    /// See [`ListRules::ttl`].
    pub(super) ttl: Duration,
}

// === impl Listing ===

impl Listing {
    /// The list that a request asks for. `None` if it asks for something else.
    ///
    /// # Errors
    /// The bucket may not be listed, or a parameter is invalid.
    pub(super) fn of(route: &Route, rules: &ListRules) -> Result<Option<Listing>, S3Error> {
        let request = &route.request;
        let lists = [Operation::ListObjects, Operation::ListObjectsV2];
        if !lists.contains(&request.operation) {
            return Ok(None);
        }
        if !rules.is_open {
            return Err(Code::AccessDenied.into());
        }
        Ok(Some(Listing {
            target: list::target(&route.site, request)?,
            rewriter: ListRewriter::new(&route.site, request),
            ttl: match request.passed_fields() {
                [] => rules.ttl,
                // The origin's answer is for this client only.
                _ => Duration::ZERO,
            },
        }))
    }

    /// The key in the cache. It includes the bucket's public name, because the document does.
    pub(super) fn cache_key(&self, site: &Site) -> CacheKey {
        let name = site.public_name().unwrap_or_default();
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let primary = [site.cache_prefix(), LIST, "name=", name, "&", query].concat();
        CacheKey::new(primary, site.user_tag())
    }
}

/// Answer a request that is neither for an object nor for a list.
pub(super) async fn answer(
    caching: &HttpCaching,
    session: &mut Session,
    route: &Route,
    to: Recipient<'_>,
) -> Result<()> {
    let region = route.site.region();
    match route.request.operation {
        Operation::HeadBucket => {
            let mut header = ResponseHeader::build(StatusCode::OK, Some(3))?;
            to.admitted.describe(&mut header)?;
            header.insert_header(BUCKET_REGION, region)?;
            header.insert_header(CONTENT_LENGTH, 0)?;
            caching.add_own_fields(session, &mut header, to.ctx)?;
            errors::send(session, header, Bytes::new()).await
        }
        Operation::GetBucketLocation => {
            let location = if region == NO_LOCATION { "" } else { region };
            let document = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                 <LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{location}\
                 </LocationConstraint>"
            );
            errors::respond_document(caching, session, document, to).await
        }
        _ => errors::respond(caching, session, &not_implemented(&route.request), to).await,
    }
}

/// The document of ListBuckets.
pub(super) fn list_of<'s>(sites: impl Iterator<Item = &'s Site>) -> String {
    let mut buckets = String::new();
    for site in sites {
        if let Some(name) = name_at_root(site) {
            buckets += &format!(
                "<Bucket><Name>{}</Name><CreationDate>{CREATED}</CreationDate></Bucket>",
                escape(name)
            );
        }
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <ListAllMyBucketsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Owner><ID>s3-proxy</ID></Owner><Buckets>{buckets}</Buckets></ListAllMyBucketsResult>"
    )
}

/// The name of a bucket for a client whose endpoint is this proxy.
fn name_at_root(site: &Site) -> Option<&str> {
    match site.prefix() {
        Some(prefix) => prefix
            .strip_prefix('/')
            .filter(|name| !name.is_empty() && !name.contains('/')),
        None => site.public_name(),
    }
}

pub(super) fn not_implemented(request: &S3Request) -> S3Error {
    let why = match request.operation {
        Operation::Other => "This proxy does not implement the requested operation.".to_owned(),
        operation => format!("This proxy does not implement {operation:?}."),
    };
    S3Error::new(Code::NotImplemented, why)
}
