//! Limits of HTTP/1.1 connections, the same on every listener.

use std::time::Duration;

use pingora_core::apps::HttpServerOptions;
use pingora_core::protocols::http::v1::server::LingeringClose;
use pingora_core::protocols::http::ServerSession;

/// Limits of a request header.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// The time limit for the whole header; zero for no limit. Default: 30 s.
    pub timeout: Duration,
    /// The largest header, in bytes. Default: 64 KiB.
    pub max_bytes: usize,
    /// The longest request target, in bytes. Default: 8 KiB, which is nginx's limit, and longer than
    /// a fully percent-encoded S3 key of 1,024 bytes.
    pub max_target_bytes: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits {
            timeout: Duration::from_secs(30),
            max_bytes: 64 * 1024,
            max_target_bytes: 8 * 1024,
        }
    }
}

/// Options for an HTTP/1.1 server that strangers can reach.
///
/// Request headers are subject to `limits`, and request targets may have neither spaces nor control
/// characters. The only transfer coding is `chunked`. The authority of an absolute target takes
/// precedence over `Host` (RFC 9112 §3.2.2). Clients that are refused during an upload can read the
/// answer.
pub fn server_options(limits: HeadLimits) -> HttpServerOptions {
    let mut options = HttpServerOptions::default();
    let head = &mut options.request_head_limits;
    head.timeout = (!limits.timeout.is_zero()).then_some(limits.timeout);
    head.max_size = Some(limits.max_bytes);
    head.max_target_size = Some(limits.max_target_bytes);
    head.reject_illegal_target = true;
    head.reject_transfer_codings = true;
    head.replace_host = true;
    options.lingering_close = Some(LingeringClose::default());
    options
}

/// Serve clients that pipeline their requests, and those that then close their sending half (RFC
/// 9112 §9.3.2 and §9.6). For `request_filter`.
pub fn answer_what_was_asked(session: &mut ServerSession) {
    session.set_abort_on_close(false);
    session.set_pipelining_enabled(true);
}
