//! The bucket and the object that a request is for.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::s3::key::{encode, KeyError, ObjectKey, MAX_KEY_BYTES};
use crate::s3::origin::Origin;

/// The longest name of a host, in bytes (RFC 1035 §2.3.4), with a final dot.
const MAX_HOST: usize = 254;

/// The mark of entries for which S3 decides on each client.
const PASSTHROUGH: &str = "passthrough";

/// The buckets of a proxy, by path prefix and by host name.
#[derive(Debug)]
pub struct Router {
    sites: Vec<Arc<Site>>,
    hosts: HashMap<Vec<u8>, usize>,
}

/// A bucket, as configured.
#[derive(Debug)]
pub struct Site {
    origin: Origin,
    index: usize,
    cache_prefix: String,
}

/// The reason that a path leads to no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// No bucket has a prefix of this path.
    NotFound,
    /// The path after the bucket's prefix is not an object key.
    BadKey(KeyError),
    /// The query names no version.
    BadQuery,
}

// === impl Router ===

impl Router {
    /// A router over origins. The configuration guarantees that prefixes do not overlap and hosts
    /// differ; if two match nevertheless, the first one is chosen.
    pub fn new(origins: Vec<Origin>) -> Router {
        let prefixes: Vec<_> = origins
            .iter()
            .map(|origin| cache_prefix(origin, &origins))
            .collect();
        let sites: Vec<_> = origins
            .into_iter()
            .zip(prefixes)
            .enumerate()
            .map(|(index, (origin, cache_prefix))| {
                Arc::new(Site {
                    origin,
                    index,
                    cache_prefix,
                })
            })
            .collect();
        let hosts = sites
            .iter()
            .flat_map(|site| site.hosts().iter().map(|host| (host, site.index)))
            .map(|(host, index)| (host.clone().into_bytes(), index))
            .collect();
        Router { sites, hosts }
    }

    /// The bucket that a request is for, and the rest of the path: nothing, or an encoded key.
    /// `None`: there is no such bucket.
    ///
    /// `host` and `raw_path` are as the client sent them, the path encoded and without its query. A
    /// name in `hosts` of a bucket takes precedence over any path. Prefixes are compared by
    /// segments, with unreserved characters in either spelling: `/assets` matches `/%61ssets/x`, but
    /// not `/assets2/x`.
    pub fn route<'p>(
        &self,
        host: Option<&[u8]>,
        raw_path: &'p str,
    ) -> Option<(&Arc<Site>, &'p str)> {
        if self.has_hosts() {
            if let Some(site) = host.and_then(|host| self.site_of_host(host)) {
                return Some((site, raw_path.strip_prefix('/')?));
            }
        }
        self.sites
            .iter()
            .find_map(|site| Some((site, strip_prefix(site.prefix()?, raw_path)?)))
    }

    /// The bucket and the key of the object at a path; `//HOST/KEY` is the object at a host.
    ///
    /// # Errors
    /// [`RouteError`]
    pub fn object(&self, raw_path: &str) -> Result<(&Arc<Site>, ObjectKey), RouteError> {
        let (host, raw_path) = self.split_host(raw_path);
        let (site, rest) = self.route(host, raw_path).ok_or(RouteError::NotFound)?;
        let key = ObjectKey::from_request_path(rest).map_err(RouteError::BadKey)?;
        site.check(&key).map_err(RouteError::BadKey)?;
        Ok((site, key))
    }

    /// The host at the beginning of an operator's path, if a bucket has it, and the path at that
    /// host.
    fn split_host<'p>(&self, raw_path: &'p str) -> (Option<&'p [u8]>, &'p str) {
        let host = raw_path.strip_prefix("//").map(|rest| {
            let end = rest.find('/').unwrap_or(rest.len());
            rest.split_at(end)
        });
        match host {
            Some((host, path)) if self.site_of_host(host.as_bytes()).is_some() => {
                (Some(host.as_bytes()), path)
            }
            _ => (None, raw_path),
        }
    }

    /// True if the host of a request affects its bucket.
    pub fn has_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// All buckets, in the order of the configuration.
    pub fn sites(&self) -> &[Arc<Site>] {
        &self.sites
    }

    /// All routes to a bucket of a service.
    pub fn same_bucket<'r>(
        &'r self,
        service: &'r str,
        bucket: &'r str,
    ) -> impl Iterator<Item = &'r Site> {
        let is_same = move |site: &&Site| {
            site.service() == service && (site.bucket() == bucket || site.is_service())
        };
        self.sites.iter().map(|site| &**site).filter(is_same)
    }

    /// The bucket of a host. Names are compared without port, final dot and case.
    fn site_of_host(&self, host: &[u8]) -> Option<&Arc<Site>> {
        let name = match host.iter().position(|byte| *byte == b':') {
            Some(colon) => &host[..colon],
            None => host,
        };
        let mut lower = [0; MAX_HOST];
        let lower = lower.get_mut(..name.len())?;
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        let name = lower.strip_suffix(b".").unwrap_or(lower);
        self.sites.get(*self.hosts.get(name)?)
    }
}

// === impl Site ===

impl std::ops::Deref for Site {
    type Target = Origin;

    fn deref(&self) -> &Origin {
        &self.origin
    }
}

impl Site {
    /// The index among the configured buckets.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The prefix of the cache keys of its objects.
    ///
    /// Routes share entries if they read a bucket at the same address, as the same identity, and
    /// verify its service in the same way. Another identity shares nothing, because it may read
    /// other objects.
    pub fn cache_prefix(&self) -> &str {
        &self.cache_prefix
    }

    /// The user tag of its entries in the cache: the name of the bucket.
    pub fn user_tag(&self) -> &str {
        match self.is_passthrough() {
            // Independent of whether the bucket or the service is configured.
            true => PASSTHROUGH,
            false => self.bucket(),
        }
    }

    /// The prefix of the cache keys of all objects of a bucket.
    pub fn cache_prefix_of(&self, bucket: &str) -> String {
        match self.is_service() {
            true => format!("{}{bucket}/", self.cache_prefix),
            false => self.cache_prefix.clone(),
        }
    }

    /// The cache key of an object of a bucket, if the object is served here.
    pub fn cache_key_of(&self, bucket: &str, key: &str) -> Option<String> {
        let rest = key.strip_prefix(self.key_prefix())?;
        Some([&*self.cache_prefix_of(bucket), &*encode(rest)].concat())
    }

    /// Checks that a client's key with the prefix of the bucket is a valid key.
    ///
    /// # Errors
    /// It is too long.
    pub fn check(&self, key: &ObjectKey) -> Result<(), KeyError> {
        match self.key_prefix().len() + key.as_str().len() > MAX_KEY_BYTES {
            true => Err(KeyError::TooLong),
            false => Ok(()),
        }
    }
}

/// See [`Site::cache_prefix`]. The host distinguishes buckets of the same name at different
/// endpoints.
fn cache_prefix(origin: &Origin, all: &[Origin]) -> String {
    if origin.is_passthrough() {
        let checked_alike = all
            .iter()
            .filter(|other| other.service() == origin.service())
            .all(|other| other.trust() == origin.trust());
        let trust = match checked_alike {
            true => String::new(),
            false => format!("{}@", origin.trust()),
        };
        let service = origin.service();
        // No other prefix begins with a line end, so these entries are shared with no other mode.
        return match origin.bucket() {
            "" => format!("\n{PASSTHROUGH}@{trust}{service}\n/"),
            bucket => format!("\n{PASSTHROUGH}@{trust}{service}\n/{bucket}/"),
        };
    }
    let same_bucket = |other: &&Origin| {
        other.host_header() == origin.host_header()
            && other.bucket() == origin.bucket()
            && other.principal().is_some()
    };
    let is_alone = all
        .iter()
        .filter(same_bucket)
        .all(|other| other.principal() == origin.principal());
    let principal = match origin.principal() {
        // Access keys and roles do not contain it.
        None => "anonymous@".to_owned(),
        // A bucket whose access key is replaced keeps its objects.
        Some(_) if is_alone => String::new(),
        Some(principal) => format!("{principal}@"),
    };
    let checked_alike = all
        .iter()
        .filter(|other| other.host_header() == origin.host_header())
        .all(|other| other.trust() == origin.trust());
    // An object that may be forged is not for routes that verify the service.
    let trust = match checked_alike {
        true => String::new(),
        false => format!("{}@", origin.trust()),
    };
    format!(
        "{trust}{principal}{}\n{}",
        origin.host_header(),
        origin.object_base()
    )
}

/// The rest of a raw path after a prefix and its slash, if the path is under the prefix.
fn strip_prefix<'p>(prefix: &str, raw_path: &'p str) -> Option<&'p str> {
    let prefix = prefix.trim_end_matches('/');
    let rest = raw_path
        .strip_prefix(prefix)
        .or_else(|| strip_encoded_prefix(raw_path, prefix))?;
    match rest.strip_prefix('/') {
        Some(key) => Some(key),
        // The prefix alone is the bucket.
        None if rest.is_empty() && !raw_path.is_empty() => Some(rest),
        None => None,
    }
}

/// A raw path with unreserved characters decoded (RFC 3986 §2.3).
pub fn decode_unreserved(raw_path: &str) -> Cow<'_, str> {
    if !raw_path.contains('%') {
        return Cow::Borrowed(raw_path);
    }
    let mut decoded = String::with_capacity(raw_path.len());
    let mut rest = raw_path;
    while let Some(character) = rest.chars().next() {
        match unreserved_escape(rest) {
            Some((unescaped, after)) => {
                decoded.push(unescaped);
                rest = after;
            }
            None => {
                decoded.push(character);
                rest = &rest[character.len_utf8()..];
            }
        }
    }
    Cow::Owned(decoded)
}

/// The percent-encoded unreserved character at the start, and the rest.
fn unreserved_escape(raw_path: &str) -> Option<(char, &str)> {
    let (escape, rest) = raw_path.strip_prefix('%')?.split_at_checked(2)?;
    let octet = u8::from_str_radix(escape, 16).ok()?;
    let is_unreserved = octet.is_ascii_alphanumeric() || b"-._~".contains(&octet);
    is_unreserved.then_some((char::from(octet), rest))
}

/// [`str::strip_prefix`] for a raw path, which may percent-encode unreserved characters of the
/// prefix (RFC 3986 §2.3).
fn strip_encoded_prefix<'a>(raw_path: &'a str, prefix: &str) -> Option<&'a str> {
    let mut rest = raw_path;
    for character in prefix.chars() {
        rest = match rest.strip_prefix(character) {
            Some(rest) => rest,
            None => {
                let (unescaped, rest) = unreserved_escape(rest)?;
                if unescaped != character {
                    return None;
                }
                rest
            }
        };
    }
    Some(rest)
}

// === impl RouteError ===

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteError::NotFound => f.write_str("no bucket is served under this path"),
            RouteError::BadKey(error) => error.fmt(f),
            RouteError::BadQuery => f.write_str("the query names no version of an object"),
        }
    }
}

impl std::error::Error for RouteError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::{Bucket, ConnectionOptions, S3Endpoint, Verify};

    fn bucket(name: &str) -> Bucket {
        Bucket {
            path_prefix: None,
            hosts: Vec::new(),
            name: name.to_owned(),
            key_prefix: String::new(),
            principal: None,
            connection: ConnectionOptions::default(),
            region: "eu-west-1".to_owned(),
            endpoint: Some(S3Endpoint::parse("http://s3:9000").unwrap()),
            credentials: None,
            passthrough: false,
        }
    }

    fn at_path(prefix: &str, name: &str) -> Bucket {
        Bucket {
            path_prefix: Some(prefix.to_owned()),
            ..bucket(name)
        }
    }

    fn at_hosts(hosts: &[&str], name: &str) -> Bucket {
        Bucket {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            ..bucket(name)
        }
    }

    fn router(buckets: impl IntoIterator<Item = Bucket>) -> Router {
        Router::new(buckets.into_iter().map(Origin::new).collect())
    }

    #[test]
    fn a_path_goes_to_the_bucket_whose_whole_segments_it_starts_with() {
        let router = router([at_path("/assets", "one"), at_path("/assets2/img", "two")]);
        let not_found = Err(RouteError::NotFound);
        let outside = Err(RouteError::BadKey(KeyError::OutsideBucket));
        for (path, expected) in [
            ("/assets/x", Ok(("one", "x"))),
            ("/assets//x", Ok(("one", "/x"))),
            ("/assets/a/b/", Ok(("one", "a/b/"))),
            ("/assets2/img/x%20y", Ok(("two", "x y"))),
            ("/assets2/x", not_found),
            ("/assets2", not_found),
            ("/assetsx", not_found),
            ("/Assets/x", not_found),
            // RFC 3986 §2.3
            ("/%61ssets/x", Ok(("one", "x"))),
            ("/assets%32/%69mg/%79", Ok(("two", "y"))),
            ("/assets%2Fx", not_found),
            ("/%41ssets/x", not_found),
            ("/%6/ssets/x", not_found),
            ("/%", not_found),
            ("//assets/x", not_found),
            ("/", not_found),
            ("", not_found),
            ("*", not_found),
            ("assets/x", not_found),
            ("/assets", Err(RouteError::BadKey(KeyError::Empty))),
            ("/assets/", Err(RouteError::BadKey(KeyError::Empty))),
            ("/assets/../assets2/img/x", outside),
            ("/assets/%2e%2e%2fx", outside),
        ] {
            let found = router.object(path);
            let found = found
                .as_ref()
                .map(|(site, key)| (site.bucket(), key.as_str()))
                .map_err(|error| *error);
            assert_eq!(found, expected, "{path}");
        }
        for path in ["/assets", "/assets/", "/%61ssets"] {
            let (site, rest) = router.route(None, path).unwrap();
            assert_eq!((site.bucket(), rest), ("one", ""), "{path}");
        }
    }

    #[test]
    fn the_root_prefix_takes_every_path() {
        let router = router([at_path("/", "all")]);
        for (path, expected) in [
            ("/a/b", Some("a/b")),
            ("//a", Some("/a")),
            ("/", Some("")),
            ("", None),
            ("*", None),
        ] {
            let rest = router.route(None, path).map(|(_, rest)| rest);
            assert_eq!(rest, expected, "{path}");
        }
    }

    #[test]
    fn a_host_goes_to_its_bucket_however_it_is_written() {
        let both = Bucket {
            path_prefix: Some("/files".to_owned()),
            ..at_hosts(&["files.example.com"], "two")
        };
        let router = router([
            at_hosts(&["cdn.example.com", "one.s3.example.com"], "one"),
            both,
        ]);
        for (host, path, expected) in [
            ("cdn.example.com", "/a//b", Some(("one", "a//b"))),
            ("CDN.Example.COM", "/a", Some(("one", "a"))),
            ("cdn.example.com:8080", "/a", Some(("one", "a"))),
            ("cdn.example.com.", "/a", Some(("one", "a"))),
            ("cdn.example.com.:80", "/a", Some(("one", "a"))),
            ("one.s3.example.com", "/", Some(("one", ""))),
            // The host comes first.
            ("cdn.example.com", "/files/a", Some(("one", "files/a"))),
            ("files.example.com", "/files/a", Some(("two", "files/a"))),
            ("localhost", "/files/a", Some(("two", "a"))),
            ("cdn.example.com..", "/a", None),
            ("xcdn.example.com", "/a", None),
            ("example.com", "/a", None),
            ("", "/a", None),
            ("cdn.example.com", "*", None),
        ] {
            let found = router.route(Some(host.as_bytes()), path);
            let found = found.map(|(site, rest)| (site.bucket(), rest));
            assert_eq!(found, expected, "{host} {path}");
        }
        let long = [b'a'; 300];
        assert!(router.route(Some(&long), "/a").is_none());
        assert!(router.route(None, "/a").is_none());

        let (site, key) = router.object("//CDN.example.com/a//b").unwrap();
        assert_eq!((site.bucket(), key.as_str()), ("one", "a//b"));
        for path in ["//other.example.com/a", "//cdn.example.com"] {
            assert_eq!(router.object(path).unwrap_err(), RouteError::NotFound);
        }
    }

    #[test]
    fn a_key_with_the_prefix_of_its_bucket_is_no_longer_than_a_key() {
        let router = router([Bucket {
            key_prefix: "team/".to_owned(),
            ..at_path("/", "one")
        }]);
        let path = format!("/{}", "a".repeat(MAX_KEY_BYTES - 5));
        assert!(router.object(&path).is_ok());
        let refused = router.object(&format!("{path}a")).unwrap_err();
        assert_eq!(refused, RouteError::BadKey(KeyError::TooLong));
    }

    #[test]
    fn routes_share_objects_only_if_their_service_is_checked_alike() {
        let checked = |verify| Bucket {
            endpoint: S3Endpoint::parse("https://s3:9000").ok(),
            principal: Some("A".to_owned()),
            connection: ConnectionOptions {
                verify,
                ..ConnectionOptions::default()
            },
            ..bucket("one")
        };
        let prefixes = |verify: [Verify; 2]| {
            let router = router(verify.map(checked));
            let sites = router.sites().iter();
            let prefixes: Vec<_> = sites.map(|site| site.cache_prefix().to_owned()).collect();
            prefixes
        };
        let alike = prefixes([Verify::Full, Verify::Full]);
        assert_eq!(alike, ["s3:9000\n/one/", "s3:9000\n/one/"]);
        let other = prefixes([Verify::Full, Verify::Nothing]);
        assert_ne!(other[0], other[1]);
    }

    #[test]
    fn what_s3_decides_on_is_shared_with_nobody() {
        let passthrough = |name: &str| Bucket {
            passthrough: true,
            ..bucket(name)
        };
        let router = router([
            passthrough("one"),
            passthrough(""),
            bucket("one"),
            Bucket {
                principal: Some("passthrough".to_owned()),
                ..bucket("one")
            },
            passthrough("two"),
        ]);
        let sites = router.sites();
        let prefixes: Vec<_> = sites.iter().map(|site| site.cache_prefix()).collect();
        assert!(!prefixes[2].starts_with(prefixes[1]) && !prefixes[3].starts_with(prefixes[1]));
        // The bucket and the service lead to the same objects.
        let keys: Vec<_> = router
            .same_bucket("s3:9000", "one")
            .filter_map(|site| Some((site.index(), site.cache_key_of("one", "a b")?)))
            .collect();
        let indices: Vec<_> = keys.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, [0, 1, 2, 3]);
        assert_eq!(keys[0].1, keys[1].1);
        assert_eq!(keys[0].1, "\npassthrough@s3:9000\n/one/a%20b");
        assert_ne!(keys[0].1, keys[3].1);
    }

    #[test]
    fn routes_share_objects_only_if_they_are_read_by_the_same_identity() {
        let read_by = |principal: Option<&str>, key_prefix: &str| Bucket {
            principal: principal.map(str::to_owned),
            key_prefix: key_prefix.to_owned(),
            ..bucket("one")
        };
        let prefixes = |buckets: Vec<Bucket>| -> Vec<String> {
            let router = router(buckets);
            let sites = router.sites().iter();
            sites.map(|site| site.cache_prefix().to_owned()).collect()
        };
        assert_eq!(
            prefixes(vec![read_by(Some("A"), ""), read_by(Some("A"), "x y/")]),
            ["s3:9000\n/one/", "s3:9000\n/one/x%20y/"]
        );
        assert_eq!(
            prefixes(vec![
                read_by(Some("A"), ""),
                read_by(Some("B"), ""),
                read_by(None, ""),
            ]),
            [
                "A@s3:9000\n/one/",
                "B@s3:9000\n/one/",
                "anonymous@s3:9000\n/one/"
            ]
        );
        // Neither a later start without credentials nor another access key changes that.
        assert_eq!(
            prefixes(vec![read_by(None, "")]),
            ["anonymous@s3:9000\n/one/"]
        );
        assert_eq!(
            prefixes(vec![read_by(Some("C"), ""), read_by(None, "")]),
            ["s3:9000\n/one/", "anonymous@s3:9000\n/one/"]
        );
    }
}
