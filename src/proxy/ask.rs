//! Requests of the proxy to itself.

use std::io::Cursor;

use bytes::Bytes;
use http::Method;
use log::debug;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::{ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::subrequest::Ctx as SubrequestCtx;
use pingora_proxy::SubrequestSpawner;

use super::cache_key::path_at;
use crate::http::Ask;
use crate::s3::Site;

/// The host of requests for paths. No bucket has it: `.invalid` is reserved (RFC 2606 §2).
const NO_HOST: &str = "admin.invalid";

/// An answer that is read as a whole.
pub(super) struct Answered {
    pub(super) header: Box<ResponseHeader>,
    pub(super) body: Bytes,
}

/// A request of the proxy to itself. `target` is what follows the bucket and its slash.
pub(super) async fn request_to(
    site: &Site,
    method: &Method,
    target: &str,
) -> Result<ServerSession> {
    let (host, path) = match (site.prefix(), site.hosts()) {
        (None, [host, ..]) => (host.as_str(), format!("/{target}")),
        _ => (NO_HOST, path_at(site, target)),
    };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut session = ServerSession::new_http1(Box::new(Cursor::new(head.into_bytes())));
    let read = session.read_request().await;
    let has_read = read.or_err_with(ErrorType::InternalError, || {
        format!("making a request for {path}")
    })?;
    debug!("a request for {path}: {has_read}");
    Ok(session)
}

/// Get an object through the cache, as a client that may read everything. `None`: there is no answer,
/// or its body is larger than `limit`.
pub(super) async fn ask(
    spawner: &SubrequestSpawner,
    site: &Site,
    method: &Method,
    target: &str,
    limit: usize,
) -> Result<Option<Answered>> {
    let session = request_to(site, method, target).await?;
    let ctx = SubrequestCtx::builder().user_ctx(Box::new(Ask)).build();
    let (subrequest, mut handle) = spawner.create_subrequest(&session, ctx);
    tokio::spawn(subrequest.run());
    let mut header = None;
    let mut body = Vec::new();
    let mut is_whole = false;
    while let Some(task) = handle.rx.recv().await {
        let (piece, is_end) = match task {
            HttpTask::Header(next, _) if next.status.is_informational() => continue,
            HttpTask::Header(next, is_end) => {
                header = Some(next);
                (None, is_end)
            }
            HttpTask::Body(piece, is_end) => (piece, is_end),
            HttpTask::Failed(e) => return Err(e),
            HttpTask::Done => (None, true),
            _ => continue,
        };
        if let Some(piece) = piece {
            if body.len() + piece.len() > limit {
                return Ok(None);
            }
            body.extend_from_slice(&piece);
        }
        if is_end {
            is_whole = true;
            break;
        }
    }
    let is_whole = is_whole || *method == Method::HEAD;
    let answered = header.filter(|_| is_whole).map(|header| Answered {
        header,
        body: body.into(),
    });
    Ok(answered)
}
