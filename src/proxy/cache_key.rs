//! The cache keys of paths, and the paths of cache keys.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, Method};
use pingora_cache::CacheKey;
use pingora_http::RequestHeader;

use crate::config::{self, Config};
use crate::s3::key::{encode, encode_value};
use crate::s3::{
    decode_unreserved, Bucket, ConnectionOptions, Credentials, Lookup, ObjectKey, Origin,
    OriginCredentials, Refreshed, Role, RouteError, Router, S3Request, Site, Target, Verify,
};

/// Completes a key of which only the beginning is given. The character stands for itself in a path,
/// and does not complete a broken `%` escape.
const ANY_END: char = 'x';

/// The cache keys of the configured buckets.
///
/// Lookups, purges and the names of files in the cache folder all take their keys from here.
#[derive(Debug)]
pub struct CacheKeys {
    router: Router,
}

/// The beginning of the keys of some objects of one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPrefix {
    /// The user tag of the keys, see [`Site::user_tag`].
    pub user_tag: String,
    /// The beginning of the keys in clear text, see
    /// [`CacheKey::primary_key`].
    pub primary: Vec<u8>,
}

// === impl CacheKeys ===

impl CacheKeys {
    /// The keys of the buckets of `config`.
    pub fn new(config: &Config) -> CacheKeys {
        CacheKeys::after(config, None)
    }

    /// The keys of the buckets of `config`. Credentials that `former` looks up already, and the clocks of
    /// its services, are kept.
    pub(super) fn after(config: &Config, former: Option<&CacheKeys>) -> CacheKeys {
        let former = former.map_or(&[][..], |former| former.router.sites());
        let signers = former.iter().filter_map(|site| site.signer());
        let mut shared: Vec<_> = signers
            .filter_map(|signer| signer.refreshed().cloned())
            .collect();
        let origin = |bucket| {
            let origin = origin(bucket, &mut shared);
            let same = former
                .iter()
                .find(|site| site.service() == origin.service());
            let signers = origin.signer().zip(same.and_then(|site| site.signer()));
            if let Some((signer, former)) = signers {
                signer.adopt_clock(former);
            }
            origin
        };
        let origins = config.buckets.iter().map(origin).collect();
        CacheKeys {
            router: Router::new(origins),
        }
    }

    /// The router, which knows the buckets.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The key of the object at a path, raw and still encoded. `//HOST/KEY` is the object at a
    /// host, and `?versionId=VERSION` one version of the object.
    ///
    /// # Errors
    /// As [`Router::object`].
    pub fn object(&self, path: &str) -> Result<CacheKey, RouteError> {
        let (site, request) = self.request_for(path)?;
        let key = request.target.key().ok_or(RouteError::NotFound)?;
        Ok(cache_key(site, key, request.version_id()))
    }

    /// The bucket of the object at a path, as [`object`](Self::object) reads it, and a request for the
    /// object.
    ///
    /// # Errors
    /// As [`Router::object`].
    pub(super) fn request_for(&self, path: &str) -> Result<(&Arc<Site>, S3Request), RouteError> {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query.as_bytes())),
            None => (path, None),
        };
        let (site, key) = self.router.object(path)?;
        let request = S3Request::read(&Method::GET, Target::Object(key), query, &HeaderMap::new());
        let request = request.map_err(|_| RouteError::BadQuery)?;
        Ok((site, request))
    }

    /// The beginnings of the keys of all objects whose path begins with `path`. There are several
    /// if `path` ends within the `path_prefix` of several buckets; `/` is all buckets.
    ///
    /// The last segment of `path` may be incomplete: `/assets/.` finds `/assets/.hidden`. An escape
    /// such as `%C3%A9` must be complete.
    ///
    /// # Errors
    /// As [`Router::object`].
    pub fn beginning_with(&self, path: &str) -> Result<Vec<KeyPrefix>, RouteError> {
        let buckets = self.buckets_beginning_with(path)?;
        let prefixes = buckets.iter();
        Ok(prefixes
            .map(|(site, prefix)| KeyPrefix::of(site, &encode(prefix)))
            .collect())
    }

    /// The buckets of all objects whose path begins with `path`, as
    /// [`beginning_with`](Self::beginning_with) reads it, each with the beginning of the keys.
    ///
    /// # Errors
    /// As [`Router::object`].
    pub(super) fn buckets_beginning_with(
        &self,
        path: &str,
    ) -> Result<Vec<(&Arc<Site>, String)>, RouteError> {
        if !path.starts_with('/') {
            return Err(RouteError::NotFound);
        }
        let spelled = decode_unreserved(path);
        let begins = |site: &Site| {
            let at_path = site
                .prefix()
                .is_some_and(|path| path.starts_with(&*spelled));
            let mut hosts = site.hosts().iter();
            at_path
                || spelled == "/"
                || hosts.any(|host| format!("//{host}/").starts_with(&*spelled))
        };
        let buckets: Vec<_> = self
            .router
            .sites()
            .iter()
            .filter(|site| begins(site))
            .map(|site| (site, String::new()))
            .collect();
        if !buckets.is_empty() {
            return Ok(buckets);
        }
        let (site, key) = self.router.object(&format!("{path}{ANY_END}"))?;
        let key = key.as_str();
        let beginning = key.strip_suffix(ANY_END).unwrap_or(key);
        Ok(vec![(site, beginning.to_owned())])
    }

    /// The path of the object with this key, or `//HOST/KEY` in a bucket that only hosts lead to.
    /// `None` if no configured bucket holds it.
    pub fn path_of(&self, user_tag: &str, primary: &[u8]) -> Option<String> {
        let holders = self.router.sites().iter().filter_map(|site| {
            let rest = primary.strip_prefix(site.cache_prefix().as_bytes())?;
            let is_same = site.user_tag() == user_tag;
            is_same.then_some((site, std::str::from_utf8(rest).ok()?))
        });
        // The most specific bucket counts.
        let (site, encoded) = holders.min_by_key(|(_, rest)| rest.len())?;
        Some(path_at(site, encoded))
    }
}

/// The path of the object of a bucket with this encoded key, or `//HOST/KEY` if only hosts lead to
/// the bucket.
pub(super) fn path_at(site: &Site, encoded: &str) -> String {
    match (site.prefix(), site.hosts()) {
        (None, [host, ..]) => format!("//{host}/{encoded}"),
        (prefix, _) => {
            let prefix = prefix.unwrap_or_default().trim_end_matches('/');
            format!("{prefix}/{encoded}")
        }
    }
}

/// The origin that an entry of `buckets` names. Credentials that are the same as those of
/// another bucket are shared.
fn origin(bucket: &config::Bucket, shared: &mut Vec<Arc<Refreshed>>) -> Origin {
    Origin::new(Bucket {
        path_prefix: bucket.path_prefix.as_ref().map(ToString::to_string),
        hosts: bucket.hosts.iter().map(|host| host.to_string()).collect(),
        name: bucket.bucket.as_deref().unwrap_or_default().to_owned(),
        key_prefix: bucket.key_prefix.as_deref().unwrap_or_default().to_owned(),
        principal: principal(bucket),
        region: bucket.region.to_string(),
        endpoint: bucket.endpoint.as_deref().cloned(),
        credentials: credentials(bucket, shared),
        passthrough: bucket.auth == config::Auth::Passthrough,
        connection: ConnectionOptions {
            connect_timeout: bucket.connect_limit(),
            first_byte_timeout: bucket.first_byte_timeout.non_zero(),
            read_timeout: bucket.read_timeout.non_zero(),
            retries: *bucket.retries,
            ca_file: bucket.ca_file.as_deref().map(Path::to_owned),
            verify: match bucket.tls_verify {
                config::TlsVerify::Full => Verify::Full,
                config::TlsVerify::Ca => Verify::Authority,
                config::TlsVerify::None => Verify::Nothing,
            },
            tls_name: bucket.tls_name.as_deref().map(str::to_owned),
        },
    })
}

/// See [`Bucket::principal`].
fn principal(bucket: &config::Bucket) -> Option<String> {
    let by_chain = bucket.credentials == Some(config::CredentialsFrom::Chain);
    if let Some(role) = &bucket.assume_role {
        return Some(role.role_arn.to_string());
    }
    match &bucket.access_key {
        Some(access_key) => Some(access_key.expose().to_owned()),
        None => by_chain.then(|| "chain".to_owned()),
    }
}

fn credentials(
    bucket: &config::Bucket,
    shared: &mut Vec<Arc<Refreshed>>,
) -> Option<OriginCredentials> {
    let keys = bucket.access_key.as_ref().zip(bucket.secret_key.as_ref());
    let keys = keys.map(|(access_key, secret_key)| {
        Credentials::new(
            access_key.expose(),
            secret_key.expose(),
            bucket
                .session_token
                .as_ref()
                .map(|token| token.expose().to_owned()),
            None,
            "configuration file",
        )
    });
    let role = bucket.assume_role.as_ref().map(|role| Role {
        arn: role.role_arn.to_string(),
        external_id: role.external_id.as_deref().map(str::to_owned),
        session_name: role.session_name.to_string(),
    });
    let by_chain = bucket.credentials == Some(config::CredentialsFrom::Chain);
    if role.is_none() && !by_chain {
        return keys.map(OriginCredentials::from);
    }
    let lookup = Lookup {
        region: bucket.region.to_string(),
        keys,
        role,
    };
    let known = shared.iter().find(|known| *known.lookup() == lookup);
    let refreshed = match known {
        Some(known) => known.clone(),
        None => {
            let owner = format!("bucket {}", bucket.bucket.as_deref().unwrap_or_default());
            let new = Refreshed::new(lookup, &owner);
            shared.push(new.clone());
            new
        }
    };
    Some(OriginCredentials::Refreshed(refreshed))
}

// === impl KeyPrefix ===

impl KeyPrefix {
    fn of(site: &Site, encoded: &str) -> KeyPrefix {
        KeyPrefix {
            user_tag: site.user_tag().to_owned(),
            primary: [site.cache_prefix(), encoded].concat().into(),
        }
    }

    /// True for a key with this beginning.
    pub fn matches(&self, user_tag: &str, primary: &[u8]) -> bool {
        self.user_tag == user_tag && primary.starts_with(&self.primary)
    }
}

/// The path of a request, still encoded, without its query. In the absolute form, which every
/// server has to accept (RFC 9112 §3.2.2), the path follows the authority.
pub(super) fn requested_path(request: &RequestHeader) -> Cow<'_, str> {
    fn path(target: &str) -> &str {
        let target = &target[authority_len(target.as_bytes())..];
        let ends = |byte: &u8| matches!(byte, b'?' | b'#');
        match target.as_bytes().iter().position(ends) {
            Some(0) => "/",
            Some(end) => &target[..end],
            None if target.is_empty() => "/",
            None => target,
        }
    }
    match String::from_utf8_lossy(request.raw_path()) {
        Cow::Borrowed(target) => path(target).into(),
        Cow::Owned(target) => path(&target).to_owned().into(),
    }
}

/// [`requested_path`] as bytes, which may not be UTF-8.
pub(super) fn raw_path(request: &RequestHeader) -> &[u8] {
    let target = request.raw_path();
    let target = &target[authority_len(target)..];
    match target.iter().position(|b| matches!(b, b'?' | b'#')) {
        Some(0) => b"/",
        Some(end) => &target[..end],
        None if target.is_empty() => b"/",
        None => target,
    }
}

/// The query of a request, not decoded. `None` if it has none.
pub(super) fn requested_query(request: &RequestHeader) -> Option<&[u8]> {
    let target = request.raw_path();
    let query = target.iter().position(|byte| *byte == b'?')?;
    let fragment = target.iter().position(|byte| *byte == b'#');
    target.get(query + 1..fragment.unwrap_or(target.len()))
}

/// The length of the scheme and authority of a target, which only the absolute form has.
fn authority_len(target: &[u8]) -> usize {
    if target.first() == Some(&b'/') {
        return 0;
    }
    let scheme = ["http://", "https://"].into_iter().find(|scheme| {
        let start = target.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
    });
    let Some(scheme) = scheme else {
        return 0;
    };
    let rest = &target[scheme.len()..];
    let ends = |byte: &u8| b"/?#".contains(byte);
    scheme.len() + rest.iter().position(ends).unwrap_or(rest.len())
}

/// The key of an object in the cache.
pub(super) fn cache_key(site: &Site, key: &ObjectKey, version_id: Option<&str>) -> CacheKey {
    let encoded = key.encoded();
    let primary = [site.cache_prefix(), &encoded].concat();
    key_of(site, primary, version_id)
}

/// The key of an object in the cache, from the part that all its versions share.
pub(super) fn key_of(site: &Site, mut primary: String, version_id: Option<&str>) -> CacheKey {
    if let Some(version_id) = version_id {
        // No encoded key has a question mark.
        primary += "?versionId=";
        primary += &encode_value(version_id);
    }
    CacheKey::new(primary, site.user_tag())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pingora_cache::key::CacheHashKey;

    use super::*;

    fn keys(prefixes: &[&str]) -> CacheKeys {
        let mut text = "server: {address: '127.0.0.1:0'}\nbuckets:\n".to_owned();
        for (index, prefix) in prefixes.iter().enumerate() {
            text += &format!(
                "  - {{path_prefix: {prefix}, bucket: bucket{index}, region: r, endpoint: 'http://s3:9000', access_key: a, secret_key: b}}\n"
            );
        }
        let config = Config::parse(&text, Path::new("test"), &|_| None).unwrap();
        CacheKeys::new(&config)
    }

    fn primaries(keys: &CacheKeys, path: &str) -> Vec<String> {
        let prefixes = keys.beginning_with(path).unwrap();
        prefixes
            .into_iter()
            .map(|prefix| String::from_utf8(prefix.primary).unwrap())
            .collect()
    }

    #[test]
    fn the_beginning_of_a_path_is_the_beginning_of_its_key() {
        let keys = keys(&["/assets"]);
        for (beginning, path) in [
            ("/assets/a", "/assets/abc"),
            ("/assets/a b", "/assets/a%20bc"),
            ("/assets/a%20b", "/assets/a%20bc"),
            ("/assets/gr%C3%BC", "/assets/grüße"),
            ("/assets/grü", "/assets/gr%C3%BC%C3%9Fe"),
            ("/assets/a+b", "/assets/a%2Bb"),
            ("/assets/100%25", "/assets/100%25%20"),
            ("/assets/a*", "/assets/a%2A"),
            ("/assets/", "/assets/a"),
            ("/assets/", "/assets//"),
            ("/assets/.", "/assets/.hidden"),
            ("/assets/a/..", "/assets/a/..b"),
            ("/assets", "/assets/a"),
            ("/as", "/assets/a"),
            ("/", "/assets/a"),
            ("/assets/x", "/assets/xx"),
        ] {
            let key = keys.object(path).unwrap();
            let prefixes = keys.beginning_with(beginning).unwrap();
            assert!(
                prefixes[0].matches(&key.user_tag, key.primary_key()),
                "{beginning} {path}"
            );
        }
    }

    #[test]
    fn other_keys_do_not_begin_like_that() {
        let keys = keys(&["/assets", "/assets2"]);
        for (beginning, path) in [
            ("/assets/a", "/assets/b"),
            ("/assets/a", "/assets2/a"),
            ("/assets/", "/assets2/a"),
            ("/assets2", "/assets/2"),
            ("/assets/%2F", "/assets/a"),
            ("/assets/%2520", "/assets/%20"),
        ] {
            let key = keys.object(path).unwrap();
            for prefix in keys.beginning_with(beginning).unwrap() {
                assert!(
                    !prefix.matches(&key.user_tag, key.primary_key()),
                    "{beginning} {path}"
                );
            }
        }
    }

    #[test]
    fn a_path_that_ends_within_prefixes_means_all_their_buckets() {
        let keys = keys(&["/assets", "/assets2", "/b/c"]);
        let [first, second, third] = [
            "s3:9000\n/bucket0/",
            "s3:9000\n/bucket1/",
            "s3:9000\n/bucket2/",
        ];
        for path in ["/assets", "/asset", "/a"] {
            assert_eq!(primaries(&keys, path), [first, second]);
        }
        assert_eq!(primaries(&keys, "/assets/"), [first]);
        assert_eq!(primaries(&keys, "/b"), [third]);
        assert_eq!(primaries(&keys, "/b/"), [third]);
        assert_eq!(primaries(&keys, "/"), [first, second, third]);
    }

    #[test]
    fn a_bucket_at_the_root_has_all_paths() {
        let keys = keys(&["/"]);
        assert_eq!(primaries(&keys, "/"), ["s3:9000\n/bucket0/"]);
        assert_eq!(primaries(&keys, "/a b"), ["s3:9000\n/bucket0/a%20b"]);
    }

    #[test]
    fn what_can_not_begin_a_path_is_refused() {
        let keys = keys(&["/assets"]);
        for path in ["/other", "/assets2", "", "*", "assets", "/assets%2F"] {
            assert_eq!(keys.beginning_with(path), Err(RouteError::NotFound));
        }
        for path in ["/assets/%", "/assets/%4", "/assets/%C3", "/assets/../a"] {
            let refused = keys.beginning_with(path);
            assert!(matches!(refused, Err(RouteError::BadKey(_))), "{path}");
        }
    }

    /// RFC 9112 §3.2.2
    #[test]
    fn the_absolute_form_asks_for_what_follows_the_authority() {
        for (target, path, query) in [
            ("/a/b?c", "/a/b", Some("c")),
            ("/a/b?c?d#e?f", "/a/b", Some("c?d")),
            ("/a#b?c", "/a", None),
            ("http://host/a/b?c", "/a/b", Some("c")),
            ("HTTPS://host:443/a", "/a", None),
            ("http://host", "/", None),
            ("http://host?acl", "/", Some("acl")),
            ("/http://host/a", "/http://host/a", None),
            ("ftp://host/a", "ftp://host/a", None),
            ("*", "*", None),
        ] {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            request.set_raw_path(target.as_bytes()).unwrap();
            assert_eq!(requested_path(&request), path, "{target}");
            assert_eq!(
                requested_query(&request),
                query.map(str::as_bytes),
                "{target}"
            );
        }
    }

    fn keys_of(buckets: &[&str]) -> CacheKeys {
        let mut text = "server: {address: '127.0.0.1:0'}\nbuckets:\n".to_owned();
        for bucket in buckets {
            text += &format!(
                "  - {{{bucket}, bucket: one, region: r, endpoint: 'http://s3:9000', access_key: a, secret_key: b}}\n"
            );
        }
        let config = Config::parse(&text, Path::new("test"), &|_| None).unwrap();
        CacheKeys::new(&config)
    }

    #[test]
    fn an_object_has_one_key_whatever_leads_to_it() {
        let keys = keys_of(&[
            "path_prefix: /all",
            "hosts: [cdn.example.com], key_prefix: 'team a/'",
        ]);
        let whole = keys.object("/all/team%20a/x%2By").unwrap();
        let at_host = keys.object("//CDN.example.com/x+y").unwrap();
        assert_eq!(whole.primary_key(), b"s3:9000\n/one/team%20a/x%2By");
        assert_eq!(whole.combined_bin(), at_host.combined_bin());
        // The most specific way.
        let path = keys.path_of("one", whole.primary_key());
        assert_eq!(path.as_deref(), Some("//cdn.example.com/x%2By"));
        let other = keys.object("/all/x").unwrap();
        let path = keys.path_of("one", other.primary_key());
        assert_eq!(path.as_deref(), Some("/all/x"));

        assert_eq!(
            primaries(&keys, "//cdn.example.com/x"),
            ["s3:9000\n/one/team%20a/x"]
        );
        for path in ["//cdn.example.com/", "//cdn.ex", "//"] {
            assert_eq!(
                primaries(&keys, path),
                ["s3:9000\n/one/team%20a/"],
                "{path}"
            );
        }
        assert_eq!(primaries(&keys, "/").len(), 2);
        assert_eq!(primaries(&keys, "/all/t"), ["s3:9000\n/one/t"]);
    }

    #[test]
    fn each_version_has_a_key_of_its_own() {
        let keys = keys(&["/assets"]);
        let version = keys.object("/assets/a?versionId=1%2F%3F+2").unwrap();
        assert_eq!(
            version.primary_key(),
            b"s3:9000\n/bucket0/a?versionId=1%2F%3F%202"
        );
        let path = keys.path_of("bucket0", version.primary_key());
        assert_eq!(path.as_deref(), Some("/assets/a?versionId=1%2F%3F%202"));
        let again = keys.object(&path.unwrap()).unwrap();
        assert_eq!(again.primary_key(), version.primary_key());
        // The prefix of an object is that of its versions.
        let prefixes = keys.beginning_with("/assets/a").unwrap();
        assert!(prefixes[0].matches(&version.user_tag, version.primary_key()));

        let named = keys.object("/assets/a%3FversionId=1").unwrap();
        let version = keys.object("/assets/a?versionId=1").unwrap();
        assert_ne!(named.primary_key(), version.primary_key());
        for path in ["/assets/a?versionId=", "/assets/a?versionId=1&versionId=2"] {
            assert!(
                matches!(keys.object(path), Err(RouteError::BadQuery)),
                "{path}"
            );
        }
    }

    #[test]
    fn a_key_leads_back_to_its_path() {
        let keys = keys(&["/assets", "/b/c"]);
        for path in ["/assets/a%20b/", "/b/c//%C3%A9"] {
            let key = keys.object(path).unwrap();
            let found = keys.path_of(&key.user_tag, key.primary_key());
            assert_eq!(found.as_deref(), Some(path));
        }
        assert_eq!(keys.path_of("bucket0", b"s3:9001\n/bucket0/a"), None);
        assert_eq!(keys.path_of("bucket1", b"s3:9000\n/bucket0/a"), None);

        let root = super::tests::keys(&["/"]);
        let key = root.object("/a").unwrap();
        let found = root.path_of(&key.user_tag, key.primary_key());
        assert_eq!(found.as_deref(), Some("/a"));
    }
}
