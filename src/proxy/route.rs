//! Routes of requests.

use std::sync::Arc;

use http::header::HOST;
use http::Version;
use pingora_cache::CacheKey;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;

use super::cache_key::{cache_key, key_of, requested_path, requested_query};
use crate::s3::key::encode_value;
use crate::s3::{Code, ObjectKey, Router, S3Error, S3Request, Site, Target};

/// A request, and the bucket that it is for.
pub(super) struct Route {
    pub(super) site: Arc<Site>,
    /// The bucket, if the site is all of them.
    bucket: Option<Box<str>>,
    pub(super) request: S3Request,
}

/// The destination of a request.
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
            Some((site, rest)) if site.is_service() => {
                let (bucket, target) = in_service(site, self::host(request)?, rest)?;
                Ok(Found::Site(Route {
                    request: read(target)?,
                    bucket,
                    site: site.clone(),
                }))
            }
            Some((site, rest)) => {
                let target = Target::in_bucket(rest)?;
                if let Target::Object(key) = &target {
                    site.check(key)?;
                }
                Ok(Found::Site(Route {
                    request: read(target)?,
                    bucket: None,
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
        let version_id = self.request.version_id();
        let Some(bucket) = &self.bucket else {
            return Ok(cache_key(&self.site, key, version_id));
        };
        let primary = self.site.cache_key_of(bucket, key.as_str());
        let primary = primary.unwrap_or_default();
        Ok(key_of(&self.site, primary, version_id))
    }

    /// The name of the bucket; empty for a request that is for none.
    pub(super) fn bucket(&self) -> &str {
        self.bucket.as_deref().unwrap_or(self.site.bucket())
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

/// The bucket of a request to a whole service, and what it is about there: the first segment of
/// the path, or the name in front of that of the service, is the bucket.
fn in_service(
    site: &Site,
    host: Option<&[u8]>,
    rest: &str,
) -> Result<(Option<Box<str>>, Target), S3Error> {
    let host = host.and_then(|host| std::str::from_utf8(host).ok());
    if let Some(bucket) = host.and_then(|host| virtual_bucket(host, site.service())) {
        return Ok((Some(bucket.into()), Target::in_bucket(rest)?));
    }
    if rest.is_empty() {
        return Ok((None, Target::Service));
    }
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    let bucket = ObjectKey::from_request_path(bucket)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !bucket.as_str().bytes().all(is_plain) {
        return Err(Code::NoSuchBucket.into());
    }
    Ok((Some(bucket.as_str().into()), Target::in_bucket(key)?))
}

/// The bucket that a host names in virtual-hosted style.
///
/// Source: "Virtual hosting of general purpose buckets", Amazon S3 User Guide. AWS has several
/// names for its service: `s3.REGION.amazonaws.com`, `s3.dualstack.REGION.amazonaws.com`,
/// `s3-REGION.amazonaws.com`, `s3.amazonaws.com`.
fn virtual_bucket(host: &str, service: &str) -> Option<String> {
    let name = |host: &str| {
        let name = host.split(':').next().unwrap_or_default();
        name.trim_end_matches('.').to_ascii_lowercase()
    };
    let (host, service) = (name(host), name(service));
    let before = |service: &str| host.strip_suffix(service)?.strip_suffix('.');
    let is_aws = [".amazonaws.com", ".amazonaws.com.cn"]
        .into_iter()
        .find_map(|domain| host.strip_suffix(domain));
    let bucket = before(&service).or_else(|| {
        let labels = is_aws?;
        let is_service = |label: &str| label == "s3" || label.starts_with("s3-");
        // The last one: a bucket may be called s3 as well.
        let (at, _) = labels.match_indices('.').rfind(|(at, _)| {
            let label = labels[at + 1..].split('.').next();
            label.is_some_and(is_service)
        })?;
        Some(&labels[..at])
    });
    bucket
        .filter(|bucket| !bucket.is_empty())
        .map(str::to_owned)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_a_bucket_in_front_of_the_service() {
        for (host, service, bucket) in [
            ("one.minio.example:9000", "minio.example:9000", Some("one")),
            ("a.b.Minio.Example.", "minio.example", Some("a.b")),
            ("minio.example", "minio.example:9000", None),
            (".minio.example", "minio.example", None),
            ("xminio.example", "minio.example", None),
            ("one.localhost", "minio.example", None),
            ("127.0.0.1:8080", "127.0.0.1:9000", None),
            (
                "one.s3.amazonaws.com",
                "s3.eu-west-1.amazonaws.com",
                Some("one"),
            ),
            (
                "a.b.s3.eu-west-1.amazonaws.com",
                "s3.eu-west-1.amazonaws.com",
                Some("a.b"),
            ),
            (
                "s3.s3.dualstack.eu-west-1.amazonaws.com",
                "s3.eu-west-1.amazonaws.com",
                Some("s3"),
            ),
            (
                "one.s3-eu-west-1.amazonaws.com",
                "s3.eu-west-1.amazonaws.com",
                Some("one"),
            ),
            (
                "one.s3.cn-north-1.amazonaws.com.cn",
                "s3.cn-north-1.amazonaws.com.cn",
                Some("one"),
            ),
            ("s3.amazonaws.com", "s3.eu-west-1.amazonaws.com", None),
            (
                "s3.eu-west-1.amazonaws.com",
                "s3.eu-west-1.amazonaws.com",
                None,
            ),
        ] {
            let found = virtual_bucket(host, service);
            assert_eq!(found.as_deref(), bucket, "{host}");
        }
    }
}
