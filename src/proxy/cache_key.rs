//! Which entries of the cache a path stands for, and the way back.

use std::borrow::Cow;
use std::sync::Arc;

use pingora_cache::CacheKey;
use pingora_http::RequestHeader;

use crate::config::{self, Config};
use crate::s3::{
    decode_unreserved, Bucket, Credentials, Lookup, ObjectKey, Origin, OriginCredentials,
    Refreshed, Role, RouteError, Router,
};

/// Ends a key of which only the beginning is given: a character that stands for
/// itself in a path and that a broken `%` escape does not turn into a whole one.
const ANY_END: char = 'x';

/// The cache keys of the buckets that a configuration names.
///
/// A key is made in one way only, whether a request is looked up, an object is
/// purged or a file in the cache folder is to be named.
#[derive(Debug)]
pub struct CacheKeys {
    router: Router,
}

/// How the keys of some objects of one bucket begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPrefix {
    /// The user tag of the keys: the name of the bucket.
    pub user_tag: String,
    /// The beginning of the keys in clear text, see
    /// [`CacheKey::primary_key`].
    pub primary: Vec<u8>,
}

// === impl CacheKeys ===

impl CacheKeys {
    /// The keys of the buckets of `config`.
    pub fn new(config: &Config) -> CacheKeys {
        let mut shared = Vec::new();
        let origin = |bucket| origin(bucket, &mut shared);
        let origins = config.buckets.iter().map(origin).collect();
        CacheKeys {
            router: Router::new(origins),
        }
    }

    /// The buckets, and what is asked of them.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The key of the object at a path: raw, still encoded, without a query.
    ///
    /// # Errors
    /// As [`Router::route`].
    pub fn object(&self, path: &str) -> Result<CacheKey, RouteError> {
        let (origin, key) = self.router.route(path)?;
        Ok(cache_key(origin, &key))
    }

    /// How the keys of all objects begin whose path begins with `path`. That is
    /// more than one bucket's where `path` ends within their `path_prefix`.
    ///
    /// The last segment of `path` need not be a whole one, so that `/assets/.`
    /// finds `/assets/.hidden`; but an escape such as `%C3%A9` must be whole.
    ///
    /// # Errors
    /// As [`Router::route`].
    pub fn beginning_with(&self, path: &str) -> Result<Vec<KeyPrefix>, RouteError> {
        if !path.starts_with('/') {
            return Err(RouteError::NotFound);
        }
        let spelled = decode_unreserved(path);
        let buckets: Vec<_> = self
            .router
            .origins()
            .iter()
            .filter(|origin| origin.prefix().starts_with(&*spelled))
            .map(|origin| KeyPrefix {
                user_tag: origin.bucket().to_owned(),
                primary: primary_key(origin, "").into(),
            })
            .collect();
        if !buckets.is_empty() {
            return Ok(buckets);
        }
        let (origin, key) = self.router.route(&format!("{path}{ANY_END}"))?;
        let encoded = key.encoded();
        let beginning = encoded.strip_suffix(ANY_END).unwrap_or(&encoded);
        Ok(vec![KeyPrefix {
            user_tag: origin.bucket().to_owned(),
            primary: primary_key(origin, beginning).into(),
        }])
    }

    /// The path of the object that has this key; `None` where no configured
    /// bucket holds it.
    pub fn path_of(&self, user_tag: &str, primary: &[u8]) -> Option<String> {
        self.router.origins().iter().find_map(|origin| {
            let encoded = primary.strip_prefix(primary_key(origin, "").as_bytes())?;
            let encoded = std::str::from_utf8(encoded).ok()?;
            let prefix = origin.prefix().trim_end_matches('/');
            (origin.bucket() == user_tag).then(|| format!("{prefix}/{encoded}"))
        })
    }
}

/// The origin that an entry of `buckets` names. Credentials that are the same as those of
/// another bucket are shared.
fn origin(bucket: &config::Bucket, shared: &mut Vec<Arc<Refreshed>>) -> Origin {
    Origin::new(Bucket {
        path_prefix: bucket.path_prefix.to_string(),
        name: bucket.bucket.to_string(),
        region: bucket.region.to_string(),
        endpoint: bucket.endpoint.as_deref().cloned(),
        credentials: credentials(bucket, shared),
    })
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
            let owner = format!("bucket {}", &*bucket.bucket);
            let new = Refreshed::new(lookup, &owner);
            shared.push(new.clone());
            new
        }
    };
    Some(OriginCredentials::Refreshed(refreshed))
}

// === impl KeyPrefix ===

impl KeyPrefix {
    /// Whether a key is one of those meant.
    pub fn matches(&self, user_tag: &str, primary: &[u8]) -> bool {
        self.user_tag == user_tag && primary.starts_with(&self.primary)
    }
}

/// The path that a request asks for, still encoded, without its query. In the absolute
/// form, which every server has to accept (RFC 9112 §3.2.2), the path follows the
/// authority.
pub(super) fn requested_path(request: &RequestHeader) -> Cow<'_, str> {
    fn path(target: &str) -> &str {
        let target = after_authority(target);
        match target.split(['?', '#']).next().unwrap_or_default() {
            "" => "/",
            path => path,
        }
    }
    match String::from_utf8_lossy(request.raw_path()) {
        Cow::Borrowed(target) => path(target).into(),
        Cow::Owned(target) => path(&target).to_owned().into(),
    }
}

/// The query of a request, raw; `None`: it has none.
pub(super) fn requested_query(request: &RequestHeader) -> Option<&[u8]> {
    let target = request.raw_path();
    let query = target.iter().position(|byte| *byte == b'?')?;
    let fragment = target.iter().position(|byte| *byte == b'#');
    target.get(query + 1..fragment.unwrap_or(target.len()))
}

/// A target without scheme and authority, which only the absolute form has.
fn after_authority(target: &str) -> &str {
    if target.starts_with('/') {
        return target;
    }
    let scheme = ["http://", "https://"].into_iter().find(|scheme| {
        let start = target.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    let Some(scheme) = scheme else {
        return target;
    };
    let rest = &target[scheme.len()..];
    &rest[rest.find(['/', '?', '#']).unwrap_or(rest.len())..]
}

/// The key of an object in the cache.
pub(super) fn cache_key(origin: &Origin, key: &ObjectKey) -> CacheKey {
    CacheKey::new(primary_key(origin, &key.encoded()), origin.bucket())
}

/// The host tells buckets of the same name at different endpoints apart.
fn primary_key(origin: &Origin, encoded_key: &str) -> String {
    let parts = [
        origin.host_header(),
        "\n",
        origin.base_path(),
        "/",
        encoded_key,
    ];
    parts.concat()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn keys(prefixes: &[&str]) -> CacheKeys {
        let mut text = "server: {address: '127.0.0.1:0'}\nbuckets:\n".to_owned();
        for (index, prefix) in prefixes.iter().enumerate() {
            text += &format!(
                "  - {{path_prefix: {prefix}, bucket: bucket{index}, region: r, endpoint: 'http://s3:9000'}}\n"
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
