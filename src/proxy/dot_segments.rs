//! Keys with dot segments that the origin does not have.
//!
//! To S3, `.` and `..` are ordinary parts of a key. But apt writes `./` into the paths of a flat
//! repository, and other servers resolve dot segments (RFC 3986 §5.2.4). The proxy therefore asks
//! the origin if it has the key as it stands. If not, the request is for the resolved key, and
//! shares the cache entry of that key.

use std::time::{Duration, Instant};

use http::StatusCode;
use pingora_cache::key::{CacheHashKey, HashBinary};
use pingora_cache::CacheKey;
use pingora_core::protocols::http::HttpTask;
use pingora_proxy::subrequest::Ctx as SubrequestCtx;
use pingora_proxy::Session;
use quick_cache::sync::Cache;

use crate::http::Probe;

/// The most keys that are remembered. The least requested ones are evicted first.
const CAPACITY: usize = 16 * 1024;

/// The time for which the origin's answer is remembered.
const TTL: Duration = Duration::from_secs(60);

/// Remembers if the origin has a key with dot segments.
pub(super) struct DotSegments(Cache<HashBinary, Known>);

#[derive(Clone, Copy)]
struct Known {
    is_absent: bool,
    until: Instant,
}

// === impl DotSegments ===

impl DotSegments {
    pub(super) fn new() -> DotSegments {
        DotSegments(Cache::new(CAPACITY))
    }

    /// True if the origin has no object with the key of this request, which has dot segments.
    /// Subrequests use the remembered answer to the client's request.
    pub(super) async fn is_absent(
        &self,
        session: &Session,
        key: &CacheKey,
        is_warming: bool,
    ) -> bool {
        // A request that stores an object stands for a client's.
        let subrequest = session.subrequest_ctx.as_ref().filter(|_| !is_warming);
        if subrequest.is_some_and(|of| of.user_ctx().is_some_and(|of| of.is::<Probe>())) {
            return false;
        }
        let key = key.combined_bin();
        let known = self.0.get(&key);
        if subrequest.is_some() {
            return known.is_some_and(|known| known.is_absent);
        }
        if let Some(known) = known.filter(|known| known.until > Instant::now()) {
            return known.is_absent;
        }
        // Boxed, because few requests come here.
        let Some(status) = Box::pin(ask(session)).await else {
            return false;
        };
        let is_absent = means_absent(status);
        if is_absent || status.is_success() {
            let until = Instant::now() + TTL;
            self.0.insert(key, Known { is_absent, until });
        }
        is_absent
    }
}

/// Ask the origin by HEAD for the requested key, and return the status. `None` if there is no
/// answer.
async fn ask(session: &Session) -> Option<StatusCode> {
    let spawner = session.subrequest_spawner.as_ref()?;
    let ctx = SubrequestCtx::builder().user_ctx(Box::new(Probe)).build();
    let (prepared, mut handle) = spawner.create_subrequest(session.as_ref(), ctx);
    tokio::spawn(prepared.run());
    while let Some(task) = handle.rx.recv().await {
        match task {
            HttpTask::Header(header, _) if header.status.is_informational() => {}
            HttpTask::Header(header, _) => return Some(header.status),
            _ => return None,
        }
    }
    None
}

/// True if a status means that there is no object. MinIO refuses keys with dot segments with 400.
/// S3 answers 403 for a missing object if the client may not list the bucket.
fn means_absent(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_about_the_object_counts() {
        for (status, absent) in [
            (400, true),
            (403, true),
            (404, true),
            (410, true),
            (200, false),
            (412, false),
            (500, false),
            (503, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(means_absent(status), absent, "{status}");
        }
    }
}
