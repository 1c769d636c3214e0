//! Objects that are stored before a client requests them, and lists of their paths.
//!
//! Both are subrequests of the proxy to itself, on the thread of the admin listener. They take at most
//! one processor, and use the locks, limits and credentials of clients' requests.

use std::fmt::Write as _;
use std::sync::Arc;

use http::{Method, StatusCode};
use pingora_core::protocols::http::HttpTask;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::subrequest::Ctx as SubrequestCtx;
use pingora_proxy::SubrequestSpawner;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ask::request_to;
use super::cache_key::path_at;
use super::settings::Settings;
use crate::cache::DiskCache;
use crate::http::warming::{warm, Warmed};
use crate::http::Fetch;
use crate::metrics::METRICS;
use crate::s3::key::{encode, encode_value};
use crate::s3::{ListPage, ListReader, RouteError, Site};

/// The most objects that are stored at a time.
const MAX_WARMING: usize = 64;

/// The most lists that are fetched at a time. Each takes some megabytes of memory.
const MAX_LISTS: usize = 4;

/// Divisor of the connections that gives those that stay free for purges and further answers.
const FREE_SHARE: usize = 8;

/// The objects of a page of a list, as S3 limits them.
const PAGE: usize = 1000;

/// `Retry-After` of a request beyond a limit, in seconds.
const RETRY_AFTER: u32 = 1;

/// Stores objects, and lists their paths.
pub(super) struct Warmer {
    spawner: SubrequestSpawner,
    warming: Arc<Semaphore>,
    lists: Arc<Semaphore>,
}

/// An answer to an operator.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub text: String,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    /// The marker of the next page of a list.
    pub next: Option<String>,
}

// === impl Warmer ===

impl Warmer {
    /// Makes subrequests of a proxy. The listener accepts `connections` at a time.
    pub(super) fn new(spawner: SubrequestSpawner, connections: usize) -> Warmer {
        let (warming, lists) = turns(connections);
        Warmer {
            spawner,
            warming: Arc::new(Semaphore::new(warming)),
            lists: Arc::new(Semaphore::new(lists)),
        }
    }

    /// Store the object at a path, as [`CacheKeys::object`] reads it.
    pub(super) async fn warm(
        &self,
        settings: &Settings,
        cache: &'static DiskCache,
        path: &str,
    ) -> Answer {
        let (result, answer) = match self.try_warm(settings, cache, path).await {
            Ok(warmed) => answer_of(warmed),
            Err(answer) => ("refused", answer),
        };
        METRICS.warmed.with_label_values(&[result]).inc();
        answer
    }

    /// # Errors
    /// The answer to a request that is refused.
    async fn try_warm(
        &self,
        settings: &Settings,
        cache: &'static DiskCache,
        path: &str,
    ) -> std::result::Result<Warmed, Answer> {
        let (site, request) = settings.keys.request_for(path)?;
        if site.is_passthrough() {
            return Err(passthrough(site));
        }
        let key = request.target.key().ok_or(RouteError::NotFound)?;
        if !settings.rules.of(site.bucket(), key.as_str()).storing.store {
            let why = "a rule of cache.rules has store: false";
            return Ok(Warmed::NotStored(why.to_owned()));
        }
        let Ok(turn) = self.warming.clone().try_acquire_owned() else {
            return Ok(Warmed::Busy("other objects are being stored"));
        };
        let version = request.version_id().map(encode_value);
        let query = version.map(|version| format!("?versionId={version}"));
        let target = format!("{}{}", key.encoded(), query.unwrap_or_default());
        match request_to(site, &Method::GET, &target).await {
            Ok(session) => Ok(warm(&self.spawner, &session, cache, Arc::new(turn)).await),
            Err(e) => Ok(Warmed::Failed(e.to_string())),
        }
    }

    /// List the objects whose path begins with `path`, as [`CacheKeys::beginning_with`] reads it: a
    /// line for each, with its length and its path. `after`: the marker of the page.
    pub(super) async fn list(
        &self,
        settings: &Settings,
        path: &str,
        after: Option<&str>,
    ) -> Answer {
        let listed = self.try_list(settings, path, after).await;
        listed.unwrap_or_else(|refused| refused)
    }

    async fn try_list(
        &self,
        settings: &Settings,
        path: &str,
        after: Option<&str>,
    ) -> std::result::Result<Answer, Answer> {
        let buckets = settings.keys.buckets_beginning_with(path)?;
        if let Some((site, _)) = buckets.iter().find(|(site, _)| site.is_passthrough()) {
            return Err(passthrough(site));
        }
        let marker = after.map_or(Some((0, "")), |after| {
            let (number, token) = after.split_once('.')?;
            Some((number.parse::<usize>().ok()?, token))
        });
        let bucket = marker.and_then(|(number, token)| Some((number, buckets.get(number)?, token)));
        let Some((number, (site, prefix), token)) = bucket else {
            let why = "after is not the Next-Page of a page of this list";
            return Err(Answer::new(StatusCode::BAD_REQUEST, why));
        };
        let Ok(turn) = self.lists.clone().try_acquire_owned() else {
            return Err(Answer::busy("other lists are being fetched"));
        };
        let mut query = format!(
            "?list-type=2&encoding-type=url&max-keys={PAGE}&prefix={}",
            encode_value(prefix)
        );
        if !token.is_empty() {
            query += "&continuation-token=";
            query += token;
        }
        let page = self.fetch_page(site, &query, Arc::new(turn)).await;
        let page = page.map_err(|e| {
            let why = format!("bucket {} cannot be listed: {e}", site.bucket());
            Answer::new(StatusCode::BAD_GATEWAY, why)
        })?;
        let page = page.map_err(|status| refused_list(site, status))?;
        let mut text = String::new();
        // Some origins ignore the prefix. The empty key is the object named like the bucket's key_prefix.
        let is_wanted = |key: &str| !key.is_empty() && key.starts_with(&**prefix);
        for object in page.objects.iter().filter(|object| is_wanted(&object.key)) {
            let path = path_at(site, &encode(&object.key));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {path}", object.size);
        }
        let next = match page.next {
            Some(token) => Some(format!("{number}.{}", encode_value(&token))),
            None => Some(number + 1)
                .filter(|next| *next < buckets.len())
                .map(|next| format!("{next}.")),
        };
        Ok(Answer {
            status: StatusCode::OK,
            text,
            retry_after: None,
            next,
        })
    }

    /// A page of a list, or the status of an answer that is none. `turn` is dropped when the
    /// subrequest has ended: if the operator leaves, that is after the future is dropped.
    async fn fetch_page(
        &self,
        site: &Site,
        query: &str,
        turn: Arc<OwnedSemaphorePermit>,
    ) -> Result<std::result::Result<ListPage, StatusCode>> {
        let session = request_to(site, &Method::GET, query).await?;
        let ctx = SubrequestCtx::builder().user_ctx(Box::new(Fetch)).build();
        let (subrequest, mut handle) = self.spawner.create_subrequest(&session, ctx);
        let of_subrequest = turn.clone();
        tokio::spawn(async move {
            subrequest.run().await;
            drop(of_subrequest);
        });
        let mut reader = ListReader::default();
        let invalid = |e| Error::because(ErrorType::InternalError, "reading a list", e);
        while let Some(task) = handle.rx.recv().await {
            match task {
                HttpTask::Header(header, _) if header.status.is_informational() => {}
                HttpTask::Header(header, _) if header.status != StatusCode::OK => {
                    return Ok(Err(header.status));
                }
                HttpTask::Body(Some(piece), _) => reader.write(&piece).map_err(invalid)?,
                HttpTask::Failed(e) => return Err(e),
                _ => {}
            }
        }
        reader.finish().map_err(invalid).map(Ok)
    }
}

/// The numbers of objects and of lists that are fetched at a time, where the listener accepts
/// `connections`.
fn turns(connections: usize) -> (usize, usize) {
    let lists = (connections / FREE_SHARE).clamp(1, MAX_LISTS);
    let free = connections.div_ceil(FREE_SHARE);
    let warming = connections.saturating_sub(lists + free);
    (warming.clamp(1, MAX_WARMING), lists)
}

// === impl Answer ===

impl Answer {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Answer {
        let mut text = text.into();
        text.push('\n');
        Answer {
            status,
            text,
            retry_after: None,
            next: None,
        }
    }

    fn busy(why: &str) -> Answer {
        let why = format!("busy: {why}; try again");
        Answer {
            retry_after: Some(RETRY_AFTER),
            ..Answer::new(StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }
}

impl From<RouteError> for Answer {
    fn from(e: RouteError) -> Self {
        let status = match e {
            RouteError::NotFound => StatusCode::NOT_FOUND,
            RouteError::BadKey(_) | RouteError::BadQuery => StatusCode::BAD_REQUEST,
        };
        Answer::new(status, e.to_string())
    }
}

/// The label of an outcome in metrics, and the answer.
fn answer_of(warmed: Warmed) -> (&'static str, Answer) {
    match warmed {
        Warmed::Stored(len) => {
            let text = format!("stored, {len} bytes");
            ("stored", Answer::new(StatusCode::OK, text))
        }
        Warmed::AlreadyStored(len) => {
            let text = format!("already stored, {len} bytes");
            ("already_stored", Answer::new(StatusCode::OK, text))
        }
        Warmed::Absent => {
            let text = "not at the origin";
            ("absent", Answer::new(StatusCode::NOT_FOUND, text))
        }
        Warmed::NotStored(why) => {
            let text = format!("not stored: {why}");
            ("not_stored", Answer::new(StatusCode::CONFLICT, text))
        }
        Warmed::Busy(why) => ("busy", Answer::busy(why)),
        Warmed::Failed(why) => ("failed", Answer::new(StatusCode::BAD_GATEWAY, why)),
    }
}

fn passthrough(site: &Site) -> Answer {
    let bucket = match site.bucket() {
        "" => "the service",
        bucket => bucket,
    };
    let why = format!(
        "{bucket} has auth: passthrough, so S3 decides on each client's own request; the proxy requests nothing by itself"
    );
    Answer::new(StatusCode::FORBIDDEN, why)
}

fn refused_list(site: &Arc<Site>, status: StatusCode) -> Answer {
    let bucket = site.bucket();
    match status {
        StatusCode::SERVICE_UNAVAILABLE => {
            Answer::busy("cache.max_misses is reached, or the origin is busy")
        }
        StatusCode::BAD_REQUEST => {
            let why = format!("bucket {bucket} has no list of this prefix: 400");
            Answer::new(StatusCode::BAD_REQUEST, why)
        }
        StatusCode::FORBIDDEN => {
            let why = format!(
                "bucket {bucket} cannot be listed: 403; permit s3:ListBucket to the bucket's access_key"
            );
            Answer::new(StatusCode::BAD_GATEWAY, why)
        }
        status => {
            let why = format!("bucket {bucket} cannot be listed: the origin answers {status}");
            Answer::new(StatusCode::BAD_GATEWAY, why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_connections_stay_free() {
        for (connections, expected) in [
            (4, (2, 1)),
            (16, (12, 2)),
            (64, (52, 4)),
            (96, (64, 4)),
            (usize::MAX, (64, 4)),
        ] {
            assert_eq!(turns(connections), expected, "of {connections}");
            let (warming, lists) = turns(connections);
            assert!(warming + lists < connections);
        }
    }

    #[test]
    fn each_outcome_has_its_status() {
        let why = || "why".to_owned();
        for (warmed, status, text) in [
            (Warmed::Stored(3), 200, "stored, 3 bytes\n"),
            (Warmed::AlreadyStored(3), 200, "already stored, 3 bytes\n"),
            (Warmed::Absent, 404, "not at the origin\n"),
            (Warmed::NotStored(why()), 409, "not stored: why\n"),
            (Warmed::Failed(why()), 502, "why\n"),
        ] {
            let (_, answer) = answer_of(warmed);
            assert_eq!((answer.status.as_u16(), &*answer.text), (status, text));
            assert_eq!(answer.retry_after, None);
        }
        let (_, busy) = answer_of(Warmed::Busy("cache.max_fills is reached"));
        assert_eq!(busy.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(busy.retry_after, Some(RETRY_AFTER));
    }
}
