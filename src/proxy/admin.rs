//! The listener for operators.
//!
//! - this module: the requests that are served
//! - `access`: who may send them
//! - `body`: their bodies
//! - `page`: the status page; `browse`: the entries on it

mod access;
mod body;
mod browse;
mod page;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{
    HeaderName, HeaderValue, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    REFERRER_POLICY, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{Method, Response, StatusCode};
use log::{debug, error, info};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::SubrequestSpawner;

use self::access::{Access, Refused};
use self::browse::Browser;
use self::page::Browsed;
use super::cache_key::{requested_path, requested_query};
use super::errors::text;
use super::health::Health;
use super::settings::SharedSettings;
use super::status;
use super::warm::{Answer, Warmer};
use crate::cache::DiskCache;
use crate::config::Config;
use crate::logging;
use crate::metrics::readiness;
use crate::s3::RouteError;

/// The longest wait for a client that does not read its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// The methods that are served at the path of an object. None is CORS-safelisted, so a page of another
/// site needs a permission to send them, which this listener never gives.
const METHODS: &str = "PURGE, WARM, LIST";

/// The paths that need no token: they tell nothing but the health, or are the same everywhere.
const OPEN: [&str; 4] = ["/health", "/page.js", "/ready", "/style.css"];

/// The longest path of an object in a body, in bytes: that of a request target.
const MAX_PATH: usize = 8 * 1024;

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// The answer if there is no cache.
const NO_CACHE: &str = "there is no cache: cache.disk is not enabled";

/// The response field with the marker of the next page of a list.
const NEXT_PAGE: HeaderName = HeaderName::from_static("next-page");

/// Serves `PURGE`, `WARM` and `LIST` of objects, and resources of the proxy's own.
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
/// Without `admin.token`, anyone who reaches the address may empty the cache, fill it, and list all
/// buckets. Pages of other sites in an operator's browser may not in any case, see `access`.
pub struct AdminApp {
    access: Access,
    settings: Arc<SharedSettings>,
    cache: Option<&'static DiskCache>,
    health: Arc<Health>,
    status: status::Source,
    browser: Browser,
    warmer: Warmer,
}

impl AdminApp {
    /// An application that purges objects of the buckets of `settings` from this cache, if there is
    /// one, and has them stored by the proxy of `spawner`, an
    /// [`S3ProxyHttp`](super::S3ProxyHttp) with the same settings and cache, and with this `health` and
    /// `status`. The section `admin` of `config` says who may ask. The listener accepts `connections` at
    /// a time.
    pub(super) fn new(
        config: &Config,
        settings: Arc<SharedSettings>,
        cache: Option<&'static DiskCache>,
        health: Arc<Health>,
        status: status::Source,
        spawner: SubrequestSpawner,
        connections: usize,
    ) -> Self {
        AdminApp {
            access: Access::new(config.admin.as_ref()),
            settings,
            cache,
            health,
            status,
            browser: Browser::new(config),
            warmer: Warmer::new(spawner, connections),
        }
    }

    async fn status_as_json(&self) -> Response<Vec<u8>> {
        let status = self.status.read().await;
        match serde_json::to_vec_pretty(&status) {
            Ok(mut json) => {
                json.push(b'\n');
                let mut response = text(StatusCode::OK, json);
                let media_type = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, media_type);
                response
            }
            Err(e) => {
                let (status, why) = failed(&format!("the status cannot be written: {e}"));
                text(status, why)
            }
        }
    }

    /// Begin or end to send clients away.
    fn drain(&self, begin: bool) -> Response<Vec<u8>> {
        self.health.drain(begin);
        let answer = match begin {
            true => "draining\n",
            false => "serving\n",
        };
        info!(target: logging::OPERATOR, "drain: {}", answer.trim_end());
        text(StatusCode::OK, answer)
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

/// The response to a request that is refused.
fn refuse(refused: &Refused) -> Response<Vec<u8>> {
    match refused {
        Refused::Foreign(why) => text(StatusCode::FORBIDDEN, *why),
        Refused::Token(why) => {
            let mut response = text(StatusCode::UNAUTHORIZED, *why);
            let headers = response.headers_mut();
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

/// Replace the filter of the log. `None`: by that of the start.
fn set_log_level(filter: Option<&str>) -> Response<Vec<u8>> {
    match logging::set_filter(filter) {
        Ok(filter) => {
            info!(target: logging::OPERATOR, "log level: {filter}");
            text(StatusCode::OK, filter + "\n")
        }
        Err(why) => text(StatusCode::BAD_REQUEST, why + "\n"),
    }
}

/// The response to a request whose method is not one of `allowed`.
fn not_allowed(allowed: &'static str) -> Response<Vec<u8>> {
    let why = format!("only {allowed} is served here\n");
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, why);
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allowed));
    response
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
        let mut response = self.answer(session).await;
        let headers = response.headers_mut();
        for (name, value) in [
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (RESOURCE_POLICY, "same-origin"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

impl AdminApp {
    async fn answer(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        // Only the server's own address says which listener has accepted the connection.
        let by_socket = session
            .server_addr()
            .is_some_and(|address| address.as_unix().is_some());
        let request = session.req_header();
        let method = request.method.clone();
        let path = requested_path(request).into_owned();
        let is_read = matches!(method, Method::GET | Method::HEAD);
        let is_open = is_read && OPEN.contains(&&*path);
        if let Err(refused) = self.access.check(request, by_socket, is_open) {
            let is_page = is_read && path == "/" && refused.lacks_token();
            return match is_page {
                // A browser cannot send the token by itself; the script of this page does.
                true => html(StatusCode::UNAUTHORIZED, page::login()),
                false => refuse(&refused),
            };
        }
        match method.as_str() {
            // These methods are for objects, whatever their paths.
            "PURGE" | "WARM" | "LIST" => self.answer_for_object(session, path).await,
            "GET" | "HEAD" => self.answer_read(session, &path).await,
            "POST" if allowed(&path).contains("POST") => {
                match self.access.check_post(session.req_header()) {
                    Ok(()) => self.answer_change(session, &method, &path).await,
                    Err(refused) => refuse(&refused),
                }
            }
            _ => self.answer_change(session, &method, &path).await,
        }
    }

    /// Answer `PURGE`, `WARM` and `LIST`.
    async fn answer_for_object(
        &self,
        session: &mut ServerSession,
        mut path: String,
    ) -> Response<Vec<u8>> {
        let request = session.req_header();
        if let Some(query) = requested_query(request) {
            path.push('?');
            path.push_str(&String::from_utf8_lossy(query));
        }
        match request.method.as_str() {
            "PURGE" => self.answer_purge(&path).await,
            "WARM" => unless_left(session, self.warm(&path)).await,
            _ => unless_left(session, self.list(&path)).await,
        }
    }

    /// Answer a request that changes nothing.
    async fn answer_read(&self, session: &ServerSession, path: &str) -> Response<Vec<u8>> {
        match path {
            "/" => self.page(requested_query(session.req_header())).await,
            "/page.js" => typed("text/javascript; charset=utf-8", page::SCRIPT),
            "/style.css" => typed("text/css; charset=utf-8", page::STYLE),
            "/health" => text(StatusCode::OK, "ok\n"),
            "/ready" => {
                let (status, reasons) = readiness(&self.health.unready());
                text(status, reasons)
            }
            "/status" => self.status_as_json().await,
            "/log-level" => {
                let filter = logging::filter().unwrap_or_default();
                text(StatusCode::OK, filter + "\n")
            }
            path => not_allowed(allowed(path)),
        }
    }

    /// Answer a request that may change something.
    async fn answer_change(
        &self,
        session: &mut ServerSession,
        method: &Method,
        path: &str,
    ) -> Response<Vec<u8>> {
        match (path, method) {
            ("/drain", &Method::POST) => self.drain(true),
            ("/drain", &Method::DELETE) => self.drain(false),
            ("/log-level", &Method::PUT) => match body::read(session, logging::MAX_FILTER).await {
                Ok(filter) => set_log_level(Some(&filter)),
                Err(response) => response,
            },
            ("/log-level", &Method::DELETE) => set_log_level(None),
            ("/purge", &Method::POST) => match body::read(session, MAX_PATH).await {
                Ok(path) => self.answer_purge(&path).await,
                Err(response) => response,
            },
            (path, _) => not_allowed(allowed(path)),
        }
    }

    /// The status page. `query` may ask for entries.
    async fn page(&self, query: Option<&[u8]>) -> Response<Vec<u8>> {
        let (mut prefix, mut after) = (None, None);
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default()) {
            match &*name {
                "prefix" => prefix = Some(value),
                "after" => after = Some(value),
                _ => {}
            }
        }
        let status = self.status.read().await;
        let browsed = match prefix.as_deref() {
            Some(prefix) => {
                let settings = self.settings.get();
                let after = after.as_deref();
                let page = self.browser.page(&settings.keys, prefix, after).await;
                Some(Browsed { prefix, page })
            }
            None => None,
        };
        html(StatusCode::OK, page::page(&status, browsed.as_ref()))
    }
}

/// The methods that are served at a path.
fn allowed(path: &str) -> &'static str {
    match path {
        "/" | "/health" | "/page.js" | "/ready" | "/status" | "/style.css" => "GET, HEAD",
        "/drain" => "DELETE, POST",
        "/log-level" => "DELETE, GET, HEAD, PUT",
        "/purge" => "POST",
        _ => METHODS,
    }
}

/// A resource of the page.
fn typed(media_type: &'static str, body: &'static str) -> Response<Vec<u8>> {
    let mut response = text(StatusCode::OK, body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn html(status: StatusCode, html: String) -> Response<Vec<u8>> {
    let mut response = text(status, html);
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, page::CONTENT_SECURITY_POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
        (OPENER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
