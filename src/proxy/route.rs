//! Routes of requests.

use std::net::Ipv4Addr;
use std::sync::Arc;

use http::header::HOST;
use http::Version;
use pingora_cache::CacheKey;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;

use super::cache_key::{cache_key, key_of, requested_path, requested_query};
use super::host::without_port;
use super::settings::{Served, Settings};
use crate::s3::key::encode_value;
use crate::s3::{decode_unreserved, Code, ObjectKey, Router, S3Error, S3Request, Site, Target};

/// The longest name of a bucket ("General purpose bucket naming rules", Amazon S3 User Guide).
const MAX_BUCKET_BYTES: usize = 63;

/// A request, and its bucket.
pub(super) struct Route {
    pub(super) site: Served,
    /// The bucket, if the site is a whole service.
    bucket: Option<Box<str>>,
    /// The [doubtful name](Route::doubtful_name), and the whole path without its first slash.
    doubtful: Option<Box<(Vec<u8>, String)>>,
    pub(super) request: S3Request,
}

/// The destination of a request.
pub(super) enum Found {
    /// A bucket or an object.
    Site(Route),
    /// All buckets.
    Service(Arc<Settings>, S3Request),
}

// === impl Route ===

impl Found {
    /// Read a request, and find its bucket.
    ///
    /// # Errors
    /// There is no such bucket, or the request is not one of S3.
    pub(super) fn of(settings: &Arc<Settings>, request: &RequestHeader) -> Result<Found, S3Error> {
        let router = settings.router();
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
            Some((site, rest)) if site.is_passthrough() => {
                let host = self::host(request)?;
                let (bucket, target) = match site.is_service() {
                    true => in_service(site, host, rest)?,
                    false => (None, Target::in_bucket(rest)?),
                };
                if let Target::Object(key) = &target {
                    site.check(key)?;
                }
                Ok(Found::Site(Route {
                    request: read(target)?,
                    bucket,
                    doubtful: host
                        .filter(|host| is_doubtful(site, host))
                        .map(|host| Box::new((host.to_vec(), path[1..].to_owned()))),
                    site: Served::new(settings, site),
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
                    doubtful: None,
                    site: Served::new(settings, site),
                }))
            }
            None if *path == *"/" => {
                let request = read(Target::Service)?;
                Ok(Found::Service(settings.clone(), request))
            }
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

    /// The name of the bucket. Empty for a request without one.
    pub(super) fn bucket(&self) -> &str {
        self.bucket.as_deref().unwrap_or(self.site.bucket())
    }

    /// The `Host` of a request that S3 decides on, if S3 may interpret it differently from the
    /// proxy: for example, as the name of another bucket, in which the whole path is the key.
    /// An answer of S3 under such a name says nothing about the object under another one.
    pub(super) fn doubtful_name(&self) -> Option<&[u8]> {
        self.doubtful.as_ref().map(|doubtful| &*doubtful.0)
    }

    /// The other interpretations that S3 may have of a request with a [doubtful
    /// name](Self::doubtful_name): buckets, each with a key unless the request names no object
    /// of it. Buckets with which the name begins are found only if they are served.
    pub(super) fn other_readings(&self, router: &Router) -> Vec<(String, Option<ObjectKey>)> {
        let Some((name, path)) = self.doubtful.as_deref() else {
            return Vec::new();
        };
        let name = name.to_ascii_lowercase();
        let ends = name.iter().enumerate().take(MAX_BUCKET_BYTES + 1);
        let by_name = ends
            .filter(|(_, byte)| **byte == b'.')
            .filter_map(|(end, _)| std::str::from_utf8(&name[..end]).ok())
            .filter(|bucket| !bucket.is_empty())
            .filter(|bucket| {
                let mut sites = router.same_bucket(self.site.service(), bucket);
                sites.next().is_some()
            })
            .map(|bucket| (bucket, &**path));
        let by_path = path.split_once('/').unwrap_or((path, ""));
        let bucket = decode_unreserved(by_path.0);
        by_name
            .chain([(&*bucket, by_path.1)])
            .filter(|(bucket, _)| *bucket != self.bucket())
            .map(|(bucket, key)| (bucket.to_owned(), ObjectKey::from_request_path(key).ok()))
            .collect()
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

/// The bucket of a request to a whole service, and the target in it. The bucket is the first
/// segment of the path, or the name in front of that of the service.
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
    let bucket = before(&service).or_else(|| {
        let labels = aws_labels(&host)?;
        let is_service = |label: &str| label == "s3" || label.starts_with("s3-");
        // The last match counts, because a bucket may be called s3 as well.
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

/// True if S3 may interpret a host differently from the proxy, see [`Route::doubtful_name`].
///
/// Only S3 knows the domains under which names are buckets. The proxy knows the names in `hosts`,
/// and that addresses and names without a dot belong to no such domain. AWS's own names show
/// whether they name a bucket, and AWS takes any other name for that of a bucket.
fn is_doubtful(site: &Site, host: &[u8]) -> bool {
    let host = std::str::from_utf8(host).ok();
    let Some((host, name)) = host.and_then(|host| Some((host, without_port(host)?))) else {
        return true;
    };
    if site.hosts().iter().any(|known| known == name) {
        return false;
    }
    let service = without_port(site.service()).unwrap_or_default();
    let names_bucket = virtual_bucket(host, site.service()).is_some();
    if aws_labels(service).is_some() {
        return aws_labels(name).is_none() || (names_bucket && !site.is_service());
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let has_no_domain =
        name.bytes().all(is_plain) || name.parse::<Ipv4Addr>().is_ok() || name.starts_with('[');
    names_bucket || !(has_no_domain || name == service)
}

/// The labels of a name in front of AWS's domain. `None` for names of other domains.
fn aws_labels(name: &str) -> Option<&str> {
    [".amazonaws.com", ".amazonaws.com.cn"]
        .into_iter()
        .find_map(|domain| name.strip_suffix(domain))
}

/// The host of a request, as the client sent it.
///
/// # Errors
/// The request has several.
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
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::proxy::settings::Surroundings;
    use crate::s3::{Bucket, ConnectionOptions, Origin, S3Endpoint};

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

    #[test]
    fn a_name_may_begin_with_each_bucket_that_is_served() {
        let settings = |buckets: &[(&str, &str)]| {
            let buckets = buckets.iter().map(|(name, path)| {
                format!(
                    "{{path_prefix: {path}, {name}region: us-east-1, auth: passthrough, \
                     endpoint: 'http://minio.example:9000'}}"
                )
            });
            let buckets: Vec<_> = buckets.collect();
            let text = format!(
                "server: {{address: '127.0.0.1:0'}}\nbuckets: [{}]",
                buckets.join(", ")
            );
            let config = Config::parse(&text, Path::new("c"), &|_| None).expect(&text);
            Arc::new(Settings::new(&config, Surroundings::default(), None))
        };
        let service = settings(&[("", "/")]);
        let buckets = settings(&[("bucket: dir, ", "/dir"), ("bucket: other, ", "/other")]);
        let long = format!("{}.test", "a".repeat(MAX_BUCKET_BYTES));
        let too_long = format!("a{long}");
        for (settings, host, target, expected) in [
            (&service, "minio.example", "/dir/key", vec![]),
            (
                &service,
                "Other.minio.test",
                "/dir/key",
                vec!["other dir/key", "other.minio dir/key"],
            ),
            (
                &service,
                "other.minio.example",
                "/dir/key",
                vec!["other.minio dir/key", "dir key"],
            ),
            (&service, ".test", "/dir/key", vec![]),
            (
                &service,
                &*long,
                "/dir",
                vec![&*format!("{} dir", &long[..63])],
            ),
            (&service, &*too_long, "/dir", vec![]),
            (
                &buckets,
                "other.minio.test",
                "/dir/key",
                vec!["other dir/key"],
            ),
            (&buckets, "another.minio.test", "/dir/key", vec![]),
        ] {
            let mut request = RequestHeader::build("PUT", target.as_bytes(), None).unwrap();
            request.insert_header(HOST, host).unwrap();
            let Ok(Found::Site(route)) = Found::of(settings, &request) else {
                panic!("{host} {target}");
            };
            let mut readings = route.other_readings(settings.router());
            readings.sort();
            let key = |key: Option<ObjectKey>| key.map(|key| key.as_str().to_owned());
            let readings: Vec<_> = readings
                .into_iter()
                .map(|(bucket, of)| format!("{bucket} {}", key(of).unwrap_or_default()))
                .collect();
            let mut expected = expected;
            expected.sort_unstable();
            assert_eq!(readings, expected, "{host} {target}");
        }
    }

    #[test]
    fn names_that_s3_may_take_in_another_way_are_doubtful() {
        let site = |name: &str, hosts: &[&str], endpoint: Option<&str>| {
            let bucket = Bucket {
                path_prefix: Some("/bucket".to_owned()),
                hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
                name: name.to_owned(),
                region: "eu-west-1".to_owned(),
                endpoint: endpoint.map(|url| S3Endpoint::parse(url).unwrap()),
                key_prefix: String::new(),
                principal: None,
                credentials: None,
                passthrough: true,
                connection: ConnectionOptions::default(),
            };
            Router::new(vec![Origin::new(bucket)]).sites()[0].clone()
        };
        let minio = Some("http://minio.example:9000");
        let at_minio = site("bucket", &["bucket.minio.test"], minio);
        for (host, doubtful) in [
            ("127.0.0.1:8080", false),
            ("[::1]:8080", false),
            ("[::ffff:127.0.0.1]", false),
            ("cache", false),
            ("localhost:8080", false),
            ("minio.example", false),
            ("minio.example:8080", false),
            ("bucket.minio.test:8080", false),
            ("bucket.minio.test.", true),
            ("Bucket.minio.test", true),
            ("cache.example", true),
            ("other.minio.example:9000", true),
            ("other.minio.test", true),
            ("other.localhost", true),
            ("1.2.3", true),
            ("", false),
            // Servers may disagree on the name in these.
            ("cache:other.minio.test", true),
            ("127.0.0.1:1:2", true),
            ("[::1].other.minio.test", true),
            ("[cache]", true),
            ("cache,other", true),
            ("a@cache", true),
            ("c\u{e4}che", true),
            ("s3.eu-west-1.amazonaws.com", true),
        ] {
            assert_eq!(is_doubtful(&at_minio, host.as_bytes()), doubtful, "{host}");
        }
        assert!(is_doubtful(&at_minio, b"\xff"));
        let at_aws = site("bucket", &["bucket.example"], None);
        let all_at_aws = site("", &[], None);
        for (host, doubtful, in_service) in [
            ("s3.eu-west-1.amazonaws.com", false, false),
            ("s3.amazonaws.com:443", false, false),
            ("other.s3.eu-west-1.amazonaws.com", true, false),
            ("bucket.example", false, true),
            // AWS takes these for names of buckets.
            ("cache.example", true, true),
            ("cache", true, true),
            ("127.0.0.1", true, true),
        ] {
            assert_eq!(is_doubtful(&at_aws, host.as_bytes()), doubtful, "{host}");
            assert_eq!(
                is_doubtful(&all_at_aws, host.as_bytes()),
                in_service,
                "{host}"
            );
        }
    }
}
