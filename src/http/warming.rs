//! Storing a response that no client has requested yet.
//!
//! The response is fetched by a subrequest. It takes the lock, the limits and the retries of any other
//! request, but nobody reads its body, and it notes what became of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use http::StatusCode;
use log::debug;
use pingora_cache::{CacheKey, CachePhase, NoCacheReason};
use pingora_core::protocols::http::ServerSession;
use pingora_core::Error;
use pingora_proxy::subrequest::Ctx as SubrequestCtx;
use pingora_proxy::{ProxyWarnLogContext, Session, SubrequestSpawner};
use tokio::sync::{watch, OwnedSemaphorePermit};

use crate::cache::{
    Cause, DiskCache, FollowedFill, ForParts, StoredBody, NO_ROOM, NO_ROOM_FOR_IT, TOO_LARGE,
    TOO_MANY_FILLS,
};

/// The most attempts after a fill of another request was given up because its clients left.
const MAX_DESERTED: usize = 3;

/// The outcome of [`warm`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warmed {
    /// The response was fetched, at least a part of it. The length of its body.
    Stored(u64),
    /// All of the response was stored already. The length of its body.
    AlreadyStored(u64),
    /// The origin has no such object.
    Absent,
    /// The response is not stored, for this reason.
    NotStored(String),
    /// It may be stored later: a limit is reached, or something else has to end first.
    Busy(&'static str),
    /// The origin failed, or refused the request.
    Failed(String),
}

/// The context of a subrequest that stores a response.
pub(super) struct Warming(pub(super) Arc<WarmRequest>);

/// A request that stores a response, and what became of it.
#[derive(Debug, Default)]
pub(super) struct WarmRequest {
    /// The fill goes on until this ends.
    pub for_parts: ForParts,
    /// True once nobody wants the response any more.
    left: watch::Sender<bool>,
    /// The fill that the request has begun, or waits for.
    fill: OnceLock<FollowedFill>,
    /// The reason that blocks of the response were not fetched.
    blocks: OnceLock<BlocksMissing>,
    has_fetched_blocks: AtomicBool,
    /// The error that kept the response from being stored.
    refused: OnceLock<Refusal>,
    end: OnceLock<End>,
}

/// The reason that blocks of a response are missing.
#[derive(Debug)]
pub(super) enum BlocksMissing {
    /// There is no room for them.
    NoRoom,
    /// The origin does not send them.
    Failed(String),
}

#[derive(Debug)]
enum Refusal {
    TooManyFills,
    NoRoom,
    Other(String),
}

/// The end of a request.
#[derive(Debug)]
struct End {
    key: Option<CacheKey>,
    phase: CachePhase,
    /// The status of the response.
    status: Option<StatusCode>,
    /// The status of the origin's response.
    origin_status: Option<StatusCode>,
    error: Option<String>,
}

/// Ends the request when it is dropped, and with it the fill.
struct Wanted(Arc<WarmRequest>);

/// The decision after an attempt.
enum Next {
    Done(Warmed),
    /// The missing part may be fetched by another attempt.
    Resume,
    /// The fill of another request was given up.
    Deserted,
}

/// Store the response to `request`, unless it is stored and fresh. Blocks that are missing are fetched,
/// those that are stored are not. A stale response is validated.
///
/// `spawner` belongs to a proxy with [`HttpCaching`](super::HttpCaching) and `cache`. It gets `request`,
/// a GET whose header has been read, as a subrequest. The response is stored whatever `min_uses` says,
/// and evicts no entry that is requested more often.
///
/// If the future is dropped, the fill stops. What has arrived of a response larger than 16 MiB stays
/// stored, if the origin serves ranges of it. `turn` is dropped when the last subrequest has ended,
/// which may be a little after the future is dropped.
pub async fn warm(
    spawner: &SubrequestSpawner,
    request: &ServerSession,
    cache: &'static DiskCache,
    turn: Arc<OwnedSemaphorePermit>,
) -> Warmed {
    let mut has_fetched = false;
    let mut missing = u64::MAX;
    let mut deserted = 0;
    if !cache.is_recovered() {
        // Entries may not have been found yet.
        return Warmed::Busy("the cache is being loaded");
    }
    loop {
        let wanted = Wanted(Arc::default());
        let warming = Warming(wanted.0.clone());
        let ctx = SubrequestCtx::builder().user_ctx(Box::new(warming)).build();
        let (subrequest, handle) = spawner.create_subrequest(request, ctx);
        handle.drain_tasks();
        let turn = turn.clone();
        let run = async move {
            subrequest.run().await;
            drop(turn);
        };
        // A task of its own, because a request that is dropped would leave its lock behind.
        if let Err(e) = tokio::spawn(run).await {
            return Warmed::Failed(format!("the request has ended early: {e}"));
        }
        let (next, stored) = wanted.0.judge(cache, &mut has_fetched).await;
        match next {
            Next::Done(warmed) => return warmed,
            Next::Resume => {
                let left = stored.map_or(u64::MAX, |stored| stored.missing);
                if left >= missing {
                    return wanted.0.without_progress();
                }
                missing = left;
            }
            Next::Deserted if deserted == MAX_DESERTED => return wanted.0.without_progress(),
            Next::Deserted => deserted += 1,
        }
    }
}

// === impl WarmRequest ===

impl WarmRequest {
    /// Wait until nobody wants the response any more.
    pub(super) async fn left(&self) {
        // The sender lives as long as this.
        let _ = self.left.subscribe().wait_for(|left| *left).await;
    }

    /// Note the fill that the request has begun, or waits for.
    pub(super) fn set_fill(&self, fill: FollowedFill) {
        let _ = self.fill.set(fill);
    }

    /// Note that blocks are being fetched.
    pub(super) fn set_fetches_blocks(&self) {
        self.has_fetched_blocks.store(true, Ordering::Release);
    }

    /// Note the reason that blocks are missing.
    pub(super) fn set_blocks_missing(&self, why: BlocksMissing) {
        let _ = self.blocks.set(why);
    }

    /// Note a warning of Pingora.
    pub(super) fn note_warning(&self, error: &Error, context: ProxyWarnLogContext) {
        if matches!(context, ProxyWarnLogContext::CacheAdmission) {
            let _ = self.refused.set(match error.etype() {
                kind if *kind == TOO_MANY_FILLS => Refusal::TooManyFills,
                kind if *kind == NO_ROOM => Refusal::NoRoom,
                _ => Refusal::Other(one_line(error)),
            });
        }
    }

    /// Note the end of the request.
    pub(super) fn set_end(
        &self,
        session: &Session,
        origin_status: Option<StatusCode>,
        error: Option<&Error>,
    ) {
        let _ = self.end.set(End {
            key: session.cache.maybe_cache_key().cloned(),
            phase: session.cache.phase(),
            status: session.response_written().map(|response| response.status),
            origin_status,
            error: error.map(one_line),
        });
    }

    /// Decide after the end of the request, and of its fill. `has_fetched`: see [`Warmed::Stored`].
    async fn judge(
        &self,
        cache: &'static DiskCache,
        has_fetched: &mut bool,
    ) -> (Next, Option<StoredBody>) {
        let done = |warmed| (Next::Done(warmed), None);
        let broken = match self.fill.get() {
            Some(fill) => {
                *has_fetched = true;
                cache.fill_end(fill).await
            }
            None => None,
        };
        *has_fetched |= self.has_fetched_blocks.load(Ordering::Acquire);
        let Some(end) = self.end.get() else {
            let why = "the proxy has not answered the request; see its log";
            return done(Warmed::Failed(why.to_owned()));
        };
        debug!("a request that stores a response has ended: {end:?}, fill: {broken:?}");
        if let Some(refusal) = end.refusal(self.refused.get()) {
            return done(refusal);
        }
        let stored = match &end.key {
            Some(key) => cache.stored(key).await,
            None => None,
        };
        let next = match (stored, broken, &end.error) {
            (Some(body), None, None) if body.missing == 0 => {
                Next::Done(match *has_fetched || end.phase == CachePhase::Expired {
                    true => Warmed::Stored(body.len),
                    false => Warmed::AlreadyStored(body.len),
                })
            }
            (Some(body), _, _) if body.missing > 0 => Next::Resume,
            (_, Some((Cause::Deserted, _)), _) => Next::Deserted,
            (_, Some((Cause::Origin, why)), None) => Next::Done(Warmed::Failed(failed(&why))),
            (_, Some((Cause::TooMany, _)), _) => {
                Next::Done(Warmed::Busy("cache.max_fills is reached"))
            }
            (_, Some((cause, why)), _) if cause != Cause::Origin => {
                Next::Done(Warmed::NotStored(why))
            }
            (_, _, Some(error)) => Next::Done(Warmed::Failed(failed(error))),
            _ => {
                let why = "it was stored, and is gone already; see the proxy's log";
                Next::Done(Warmed::NotStored(why.to_owned()))
            }
        };
        (next, stored)
    }

    /// The outcome if another attempt would be of no use.
    fn without_progress(&self) -> Warmed {
        let error = self.end.get().and_then(|end| end.error.as_deref());
        match self.blocks.get() {
            Some(BlocksMissing::NoRoom) => Warmed::NotStored(NO_ROOM_FOR_IT.to_owned()),
            Some(BlocksMissing::Failed(why)) => Warmed::Failed(failed(why)),
            None => Warmed::Failed(error.map_or("its transfers break off".to_owned(), failed)),
        }
    }
}

// === impl End ===

impl End {
    /// The outcome, if the response is not stored and will not be.
    fn refusal(&self, refused: Option<&Refusal>) -> Option<Warmed> {
        let not_stored = |why: &str| Some(Warmed::NotStored(why.to_owned()));
        match self.origin_status.or(self.status) {
            Some(StatusCode::NOT_FOUND | StatusCode::GONE) => return Some(Warmed::Absent),
            Some(status) if self.origin_status.is_some() && is_failure(status) => {
                return Some(Warmed::Failed(format!("the origin answers {status}")));
            }
            Some(status) if self.error.is_none() && is_failure(status) => {
                return Some(Warmed::Failed(format!("the proxy answers {status}")));
            }
            _ => {}
        }
        let CachePhase::Disabled(reason) = self.phase else {
            return None;
        };
        match (refused, reason) {
            (Some(Refusal::TooManyFills), _) => Some(Warmed::Busy("cache.max_fills is reached")),
            (Some(Refusal::NoRoom), _) => not_stored(NO_ROOM_FOR_IT),
            (Some(Refusal::Other(why)), _) => not_stored(why),
            (_, NoCacheReason::OriginNotCache) => {
                not_stored("its header or a rule of cache.rules forbids storing it")
            }
            (_, NoCacheReason::ResponseTooLarge | NoCacheReason::PredictedResponseTooLarge) => {
                not_stored(TOO_LARGE)
            }
            (_, NoCacheReason::Deferred) if self.origin_status.is_some() => {
                not_stored("the cache cannot be written to; see the proxy's log")
            }
            (_, NoCacheReason::DeclinedToUpstream) => {
                Some(Warmed::Busy("cache.max_misses is reached"))
            }
            (
                _,
                NoCacheReason::CacheLockGiveUp
                | NoCacheReason::CacheLockTimeout
                | NoCacheReason::CacheLockRetryLimit,
            ) => Some(Warmed::Busy("another request fetches it")),
            _ => None,
        }
    }
}

// === impl Wanted ===

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.left.send_replace(true);
        self.0.for_parts.end();
    }
}

fn is_failure(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

fn failed(why: &str) -> String {
    format!("it could not be fetched: {why}")
}

/// An error on one line, for an operator.
pub(super) fn one_line(error: &Error) -> String {
    let text = error.to_string().replace(['\r', '\n'], " ");
    text.trim().to_owned()
}
