//! Purges and stores objects of the cache, on a separate listener.

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{HeaderName, HeaderValue, ALLOW, HOST, ORIGIN, RETRY_AFTER};
use http::{Response, StatusCode};
use log::{debug, error, info};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use pingora_http::RequestHeader;
use pingora_proxy::SubrequestSpawner;

use super::cache_key::{requested_path, requested_query};
use super::errors::text;
use super::settings::SharedSettings;
use super::warm::{Answer, Warmer};
use crate::cache::DiskCache;
use crate::logging;
use crate::s3::RouteError;

/// The longest wait for a client that does not read its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// The methods that are served. None is CORS-safelisted, so a page in a browser needs a permission to
/// send them, which this listener never gives.
const METHODS: &str = "PURGE, WARM, LIST";

/// The answer if there is no cache.
const NO_CACHE: &str = "there is no cache: cache.disk is not enabled";

/// The response field with the marker of the next page of a list.
const NEXT_PAGE: HeaderName = HeaderName::from_static("next-page");

/// Serves `PURGE`, `WARM` and `LIST`.
///
/// `PURGE /path` removes the object at that path, as clients name it. `PURGE /path*` removes all
/// objects whose path begins with `/path`. An object whose name ends in an asterisk is `PURGE
/// /path%2A`. `PURGE /path?versionId=VERSION` removes a version, and `//HOST/key` is the path of an
/// object at a host.
///
/// `WARM /path` stores the object at that path, and answers once it is stored. `LIST /path` lists the
/// objects whose path begins with `/path`: a page of lines with the length and the path of each. The
/// field `Next-Page` is the `?after=` of the next page.
///
/// There is no authentication: anyone who reaches the listener may empty the cache, fill it, and list
/// all buckets. Pages in an
/// operator's browser may not: a request is refused if it has an `Origin`, or if its host is
/// neither an IP address nor `localhost`.
pub struct AdminApp {
    settings: Arc<SharedSettings>,
    cache: Option<&'static DiskCache>,
    warmer: Warmer,
}

impl AdminApp {
    /// An application that purges objects of the buckets of `settings` from this cache, if there is
    /// one, and has them stored by the proxy of `spawner`, an
    /// [`S3ProxyHttp`](super::S3ProxyHttp) with the same settings and cache. The listener accepts
    /// `connections` at a time.
    pub fn new(
        settings: Arc<SharedSettings>,
        cache: Option<&'static DiskCache>,
        spawner: SubrequestSpawner,
        connections: usize,
    ) -> Self {
        AdminApp {
            settings,
            cache,
            warmer: Warmer::new(spawner, connections),
        }
    }

    async fn answer_purge(&self, path: &str) -> Response<Vec<u8>> {
        let (status, answer) = self.purge(path).await;
        info!(
            target: logging::OPERATOR,
            "PURGE {path:?}: {} {}",
            status.as_u16(),
            answer.trim_end()
        );
        text(status, answer)
    }

    async fn purge(&self, path: &str) -> (StatusCode, String) {
        let Some(cache) = self.cache else {
            return (StatusCode::NOT_FOUND, format!("{NO_CACHE}\n"));
        };
        let purged = match path.strip_suffix('*') {
            Some(beginning) => self.ban(cache, beginning).await,
            None => self.purge_object(cache, path).await,
        };
        purged.unwrap_or_else(|e| {
            let status = match e {
                RouteError::NotFound => StatusCode::NOT_FOUND,
                RouteError::BadKey(_) | RouteError::BadQuery => StatusCode::BAD_REQUEST,
            };
            (status, format!("{e}\n"))
        })
    }

    async fn purge_object(
        &self,
        cache: &'static DiskCache,
        path: &str,
    ) -> Result<(StatusCode, String), RouteError> {
        let key = self.settings.load().keys.object(path)?;
        Ok(match cache.purge_key(&key).await {
            Ok(true) => (StatusCode::OK, "purged\n".into()),
            Ok(false) => (StatusCode::NOT_FOUND, "not in the cache\n".into()),
            Err(e) => failed(&format!("{path} cannot be purged: {e}")),
        })
    }

    async fn ban(
        &self,
        cache: &'static DiskCache,
        beginning: &str,
    ) -> Result<(StatusCode, String), RouteError> {
        let prefixes = self.settings.load().keys.beginning_with(beginning)?;
        for prefix in prefixes {
            let banned = cache.ban_prefix(&prefix.user_tag, &prefix.primary).await;
            if let Err(e) = banned {
                return Ok(failed(&format!("{beginning}* cannot be banned: {e}")));
            }
        }
        Ok((StatusCode::OK, "banned\n".into()))
    }

    async fn warm(&self, path: &str) -> Answer {
        let Some(cache) = self.cache else {
            return Answer::new(StatusCode::NOT_FOUND, NO_CACHE);
        };
        let answer = self.warmer.warm(&self.settings.get(), cache, path).await;
        let (status, text) = (answer.status.as_u16(), answer.text.trim_end());
        // At debug level, because there is a line for each object.
        debug!(target: logging::OPERATOR, "WARM {path:?}: {status} {text}");
        answer
    }

    async fn list(&self, path: &str) -> Answer {
        let (path, after) = match path.split_once("?after=") {
            Some((path, after)) => (path, Some(after)),
            None => (path, None),
        };
        let answer = self.warmer.list(&self.settings.get(), path, after).await;
        let status = answer.status.as_u16();
        match answer.status {
            StatusCode::OK => debug!(
                target: logging::OPERATOR,
                "LIST {path:?}: {} objects",
                answer.text.lines().count()
            ),
            _ => info!(
                target: logging::OPERATOR,
                "LIST {path:?}: {status} {}",
                answer.text.trim_end()
            ),
        }
        answer
    }
}

/// The reason for refusing a request that a browser may have sent for a foreign page.
fn foreign(request: &RequestHeader) -> Option<&'static str> {
    if request.headers.contains_key(ORIGIN) {
        return Some("a request with an Origin field comes from a page in a browser\n");
    }
    // DNS rebinding: an attacker's name resolves to this address.
    let fields = request.headers.get_all(HOST).into_iter();
    let authority = request.uri.authority().map(|a| a.as_str().as_bytes());
    let mut hosts = fields.map(|field| field.as_bytes()).chain(authority);
    let is_own = |host: &[u8]| std::str::from_utf8(host).is_ok_and(is_address);
    (!hosts.all(is_own))
        .then_some("write the IP address of this listener, or localhost, as its host\n")
}

/// True if a host, with or without a port, is an IP address or `localhost`.
fn is_address(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Some(ip) = bracketed {
        return ip.parse::<Ipv6Addr>().is_ok();
    }
    let name = match host.split_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) => return false,
        None => host,
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok()
}

fn failed(why: &str) -> (StatusCode, String) {
    error!("{why}");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n"))
}

/// Answer a request, unless the client leaves before: then the work is given up.
async fn unless_left(
    session: &mut ServerSession,
    work: impl Future<Output = Answer>,
) -> Response<Vec<u8>> {
    tokio::select! {
        answer = work => respond(answer),
        left = session.read_body_or_idle(true) => {
            debug!("the client of the admin listener has left: {left:?}");
            session.set_keepalive(None);
            // Nobody reads it.
            text(StatusCode::REQUEST_TIMEOUT, "")
        }
    }
}

fn respond(answer: Answer) -> Response<Vec<u8>> {
    let mut response = text(answer.status, answer.text);
    let headers = response.headers_mut();
    if let Some(seconds) = answer.retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    let next = answer.next.map(HeaderValue::try_from);
    if let Some(Ok(next)) = next {
        headers.insert(NEXT_PAGE, next);
    }
    response
}

#[async_trait]
impl ServeHttp for AdminApp {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        session.set_write_timeout(Some(WRITE_TIMEOUT));
        let request = session.req_header();
        if let Some(why) = foreign(request) {
            return text(StatusCode::FORBIDDEN, why);
        }
        let method = request.method.clone();
        let mut path = requested_path(request).into_owned();
        if let Some(query) = requested_query(request) {
            path.push('?');
            path.push_str(&String::from_utf8_lossy(query));
        }
        match method.as_str() {
            "PURGE" => self.answer_purge(&path).await,
            "WARM" => unless_left(session, self.warm(&path)).await,
            "LIST" => unless_left(session, self.list(&path)).await,
            _ => {
                let why = format!("this listener serves only {METHODS}\n");
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, why);
                let headers = response.headers_mut();
                headers.insert(ALLOW, HeaderValue::from_static(METHODS));
                response
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_address;

    #[test]
    fn only_addresses_and_localhost_are_no_names() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9091",
            "[::1]",
            "[::1]:9091",
            "10.1.2.3:80",
            "localhost",
            "LocalHost:9091",
        ] {
            assert!(is_address(host), "{host}");
        }
        for host in [
            "",
            ":9091",
            "evil.test",
            "evil.test:9091",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "127.0.0.1:9091.evil.test",
            "localhost@evil.test",
            "evil.test@127.0.0.1",
            "[evil.test]",
            "::1",
            "127.1",
        ] {
            assert!(!is_address(host), "{host}");
        }
    }
}
