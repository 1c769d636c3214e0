//! Plain hits of an entry that was served before, without the phases of Pingora's cache.

use std::time::SystemTime;

use pingora_cache::{BodyPart, CacheKey};
use pingora_core::protocols::http::v2::server::HttpSession as Http2Session;
use pingora_core::protocols::http::ServerSession;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use crate::cache::{DiskHit, FastHeader};
use crate::http::caching::hit_header::{is_usable, prepared_fields};
use crate::http::caching::shared::HttpCaching;
use crate::http::caching::state::{CachingCtx, State};
use crate::http::rules::cache_status::CacheResult;
use crate::http::rules::fields::content_length;
use crate::http::rules::request::RequestKind;
use crate::http::send_error::classify_send_error;
use crate::http::trace::Trace;

/// Stands for a field that is not sent.
const NO_FIELD: (&str, &[u8]) = ("", b"");

impl HttpCaching {
    pub(in crate::http::caching) async fn fast_hit(
        &self,
        session: &mut Session,
        ctx: &mut CachingCtx,
        key: impl FnOnce(&Session) -> CacheKey,
    ) -> Result<bool> {
        if ctx.request.kind == RequestKind::Part {
            Box::pin(self.join_download(session, ctx, key)).await;
            return Ok(false);
        }
        let Some(mut hit) = self.prepared_hit(session, ctx, key) else {
            return Ok(false);
        };
        // Read before the header is sent: what cannot be read is fetched from the origin.
        let first = match hit.next_in_memory() {
            Some(bytes) => bytes.map(BodyPart::Bytes),
            None => match hit.next_part().await {
                Ok(first) => first,
                Err(_) => return Ok(false),
            },
        };
        let Some(prepared) = hit.fast_header() else {
            return Ok(false);
        };
        let now = match ctx.request.arrived {
            Some(arrived) if !hit.has_waited() => arrived,
            _ => SystemTime::now(),
        };
        ctx.state = State::FastHit;
        ctx.in_memory = hit.is_in_memory();
        ctx.result = Some(CacheResult::Hit);
        ctx.note_first_byte();
        // A separate function: its fields are freed before the body is sent.
        self.send_header(session, prepared, now, ctx.trace())
            .await?;
        if let Some(trace) = &mut ctx.trace {
            trace.is_prepared = true;
        }
        let sent = send_body(session, &mut hit, first).await;
        if let Err(e) = &sent {
            // A short body must not look complete.
            session.as_downstream_mut().abort_response();
            if *e.etype() == ErrorType::FileReadError {
                hit.drop_entry(&e.to_string());
            }
        }
        sent.map(|()| true)
    }

    async fn send_header(
        &self,
        session: &mut Session,
        prepared: &FastHeader,
        now: SystemTime,
        trace: Option<&Trace>,
    ) -> Result<()> {
        let fields = prepared_fields(prepared, self.options.name, now);
        let [age, status] = fields.as_array();
        let mut fields = [age, status, NO_FIELD, NO_FIELD];
        let mut len = 2;
        let hsts = self.hsts(session);
        let hsts = hsts.map(|value| ("Strict-Transport-Security", value.as_bytes()));
        for field in [hsts, trace.map(Trace::named_field)].into_iter().flatten() {
            fields[len] = field;
            len += 1;
        }
        session
            .write_prepared_header(&prepared.header, &fields[..len], false)
            .await
            .map_err(classify_send_error)
    }

    /// The hit that [`fast_hit`](Self::fast_hit) sends, if there is one.
    fn prepared_hit(
        &self,
        session: &Session,
        ctx: &CachingCtx,
        key: impl FnOnce(&Session) -> CacheKey,
    ) -> Option<DiskHit> {
        let store = self.store.filter(|_| ctx.request.allows_fast_hit())?;
        let now = ctx.request.arrived?;
        let tag = ctx.header_tag();
        let is_usable = |prepared: &FastHeader| prepared.rules == tag && is_usable(prepared, now);
        let mut hit = store.cache.lookup_fast(&key(session), is_usable)?;
        if !session.as_downstream().prefers_file_body() {
            hit.copy_body();
        }
        Some(hit)
    }

    /// Keep the lasting header of a hit for [`fast_hit`](Self::fast_hit).
    pub(in crate::http::caching) fn prepare(
        &self,
        session: &mut Session,
        lasting: ResponseHeader,
        ctx: &CachingCtx,
    ) {
        let body_len = content_length(&lasting.headers);
        if body_len.is_none() || body_len != ctx.complete_len() {
            return;
        }
        let hit = session.cache.hit_handler().as_any();
        if let Some(hit) = hit.downcast_ref::<DiskHit>() {
            let prepared = hit.meta().and_then(|meta| FastHeader::new(lasting, meta));
            if let Some(mut prepared) = prepared {
                prepared.rules = ctx.header_tag();
                hit.set_fast_header(prepared);
            }
        }
    }
}

/// Send the body of a hit to a client that has received the header.
async fn send_body(
    session: &mut Session,
    hit: &mut DiskHit,
    first: Option<BodyPart>,
) -> Result<()> {
    let mut next = first;
    while let Some(part) = next {
        let more = hit.has_more();
        let sent = match part {
            BodyPart::Bytes(bytes) => {
                // The modules have to see the end too.
                let written = session.write_response_body(Some(bytes), !more).await;
                if !more {
                    return written.map_err(classify_send_error);
                }
                // The next part is read only when downstream has room for it.
                match written {
                    Ok(()) => wait_to_read(session.as_downstream_mut()).await,
                    Err(e) => Err(e),
                }
            }
            BodyPart::File {
                file,
                offset,
                len,
                resident,
            } => {
                // Boxed, because small bodies come from memory and do not need room for this.
                let written = if let Some(http2) = unfiltered_http2(session) {
                    Box::pin(http2.write_file_body(&file, offset, len)).await
                } else if resident {
                    Box::pin(session.write_resident_file_body(&file, offset, len)).await
                } else {
                    Box::pin(session.write_file_body(&file, offset, len)).await
                };
                written.map(drop)
            }
            part => {
                let why = format!("a hit has {part:?}, which cannot be sent");
                Err(Error::explain(ErrorType::InternalError, why).into_in())
            }
        };
        sent.map_err(classify_send_error)?;
        next = hit.next_part().await?;
    }
    let finished = session.write_response_body(None, true).await;
    finished.map_err(classify_send_error)
}

/// Wait until downstream has room for the next part.
async fn wait_to_read(downstream: &mut ServerSession) -> Result<()> {
    downstream.flush_body().await?;
    downstream.wait_for_body_room().await
}

/// The HTTP/2 session, if no module has to see the body. Many streams of a connection may wait in
/// its `write_file_body`, whose future is smaller than that of `Session::write_file_body`.
fn unfiltered_http2(session: &mut Session) -> Option<&mut Http2Session> {
    let is_http2 = session.as_downstream().is_http2();
    if !is_http2 || session.downstream_modules_ctx.needs_response_body() {
        return None;
    }
    session.as_downstream_mut().as_http2_mut()
}

/// True if the header of the hit has been prepared.
pub(in crate::http::caching) fn is_prepared(session: &mut Session) -> bool {
    let hit = session.cache.hit_handler().as_any().downcast_ref();
    hit.is_some_and(|hit: &DiskHit| hit.fast_header().is_some())
}
