//! Limits of HTTP/1.1 connections, the same on every listener.

use std::time::Duration;

use pingora_core::apps::HttpServerOptions;
use pingora_core::protocols::http::v1::server::LingeringClose;
use pingora_core::protocols::http::ServerSession;

/// The longest request target, in bytes: nginx's limit, and more than an S3 key of 1,024
/// bytes takes when all are percent-encoded.
const MAX_TARGET_BYTES: usize = 8 * 1024;

/// Limits of a request head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// The longest time for the whole head; zero: no limit. Default: 30 s.
    pub timeout: Duration,
    /// The largest head, in bytes. Default: 64 KiB.
    pub max_bytes: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits {
            timeout: Duration::from_secs(30),
            max_bytes: 64 * 1024,
        }
    }
}

/// Options for an HTTP/1.1 server that strangers can reach.
///
/// Request heads are held to `limits`, and their targets may have neither spaces nor control
/// characters. Their only transfer coding is `chunked`. The authority of an absolute target
/// counts, whatever `Host` says (RFC 9112 §3.2.2). Clients that are refused while they
/// upload get to read the answer.
pub fn server_options(limits: HeadLimits) -> HttpServerOptions {
    let mut options = HttpServerOptions::default();
    let head = &mut options.request_head_limits;
    head.timeout = (!limits.timeout.is_zero()).then_some(limits.timeout);
    head.max_size = Some(limits.max_bytes);
    head.max_target_size = Some(MAX_TARGET_BYTES);
    head.reject_illegal_target = true;
    head.reject_transfer_codings = true;
    head.replace_host = true;
    options.lingering_close = Some(LingeringClose::default());
    options
}

/// Serve clients that pipeline their requests, and those that then shut down their
/// sending half (RFC 9112 §9.3.2 and §9.6). For `request_filter`.
pub fn answer_what_was_asked(session: &mut ServerSession) {
    session.set_abort_on_close(false);
    session.set_pipelining_enabled(true);
}
