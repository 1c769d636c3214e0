//! Where a request goes.

use std::sync::Arc;

use http::header::HOST;
use http::Version;
use pingora_cache::CacheKey;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;

use super::cache_key::{cache_key, requested_path, requested_query};
use crate::s3::key::encode_value;
use crate::s3::{Code, ObjectKey, Router, S3Error, S3Request, Site, Target};

/// A request, and the bucket that it is for.
pub(super) struct Route {
    pub(super) site: Arc<Site>,
    pub(super) request: S3Request,
}

/// What a request is for.
pub(super) enum Found {
    /// A bucket or an object.
    Site(Route),
    /// All buckets.
    Service(S3Request),
}

// === impl Route ===

impl Found {
    /// Read a request, and find the bucket that it is for.
    ///
    /// # Errors
    /// There is none, or the request is not one of S3.
    pub(super) fn of(router: &Router, request: &RequestHeader) -> Result<Found, S3Error> {
        let path = requested_path(request);
        let read = |target| {
            let query = requested_query(request);
            S3Request::read(&request.method, target, query, &request.headers)
        };
        let host = match router.has_hosts() {
            true => host(request)?,
            false => None,
        };
        match router.route(host, &path) {
            Some((site, rest)) => {
                let target = Target::in_bucket(rest)?;
                if let Target::Object(key) = &target {
                    site.check(key)?;
                }
                Ok(Found::Site(Route {
                    request: read(target)?,
                    site: site.clone(),
                }))
            }
            None if *path == *"/" => read(Target::Service).map(Found::Service),
            None => Err(Code::NoSuchBucket.into()),
        }
    }
}

impl Route {
    /// The key of the object.
    ///
    /// # Errors
    /// The request is for a bucket.
    pub(super) fn key(&self) -> Result<&ObjectKey> {
        self.request
            .target
            .key()
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "the request is for no object"))
    }

    /// The key in the cache.
    ///
    /// # Errors
    /// As [`key`](Self::key).
    pub(super) fn cache_key(&self) -> Result<CacheKey> {
        let key = self.key()?;
        Ok(cache_key(&self.site, key, self.request.version_id()))
    }

    /// The request target for the origin: path and query, encoded.
    ///
    /// # Errors
    /// As [`key`](Self::key).
    pub(super) fn target(&self) -> Result<String> {
        let mut target = self.site.target(self.key()?);
        let part = self.request.part_number().map(|part| part.to_string());
        let parameters = [
            ("partNumber", part.as_deref()),
            ("versionId", self.request.version_id()),
        ];
        let mut separator = '?';
        for (name, value) in parameters {
            if let Some(value) = value {
                target.push(separator);
                target.push_str(name);
                target.push('=');
                target.push_str(&encode_value(value));
                separator = '&';
            }
        }
        Ok(target)
    }
}

/// The host of a request, as the client wrote it.
///
/// # Errors
/// There are several.
fn host(request: &RequestHeader) -> Result<Option<&[u8]>, S3Error> {
    if request.version == Version::HTTP_2 {
        if let Some(authority) = request.uri.authority() {
            return Ok(Some(authority.as_str().as_bytes()));
        }
    }
    let mut hosts = request.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (host, None) => Ok(host.map(|host| host.as_bytes())),
        _ => {
            let why = "the request names more than one host";
            Err(S3Error::new(Code::InvalidRequest, why))
        }
    }
}
