//! The log of requests: a line each, written by a thread of its own.
//!
//! - this module: the notes on a request, and its line
//! - `line`: the formats
//! - `escape`: text of strangers, which must not end a line
//! - `redact`: secrets in URLs, which must not be written
//! - `queue`: lines on their way to the writer
//! - `writer`, `file`: the thread, and the file that it appends to
//!
//! A worker formats the line into a buffer of its thread, and copies it into the queue. It never
//! waits for the disk.

mod escape;
mod file;
mod line;
mod queue;
mod redact;
mod writer;

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use http::header::{HeaderMap, AUTHORIZATION, HOST, REFERER, USER_AGENT};
use http::StatusCode;
use log::warn;
use pingora_core::{Error, ErrorSource};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

#[cfg(feature = "otlp")]
use self::escape::{Place, Text};
use self::file::LogFile;
use self::line::{Clock, Entry, CLIENT_LEFT};
use self::queue::Queue;
#[cfg(feature = "otlp")]
pub(super) use self::redact::without_user;
pub(super) use self::redact::Redactor;
use self::writer::Writer;
use super::cache_key::{raw_path, requested_query};
use super::front::Sender;
use super::signals;
use super::way::Way;
use crate::config::{self, Config, LogFormat, Rotate};
use crate::http::rules::cache_status::CacheResult;
use crate::http::trace::{RequestId, Trace};
use crate::http::CachingCtx;

/// The name of the field with the id of a request.
const REQUEST_ID_NAME: &str = "x-amz-request-id";

/// The least status of an error.
const FIRST_ERROR: u16 = 400;

/// The log of requests.
pub struct AccessLog {
    format: LogFormat,
    redactor: Redactor,
    to: Arc<Destination>,
    section: config::AccessLog,
}

/// The queue to a writer, which ends once nobody logs to it any more.
struct Destination(Arc<Queue>);

/// The access key of a request.
#[derive(Clone, Copy)]
pub(super) enum Key<'a> {
    /// This key has been verified.
    Verified(&'a str),
    /// The origin has verified the key that the request names, or has refused the request.
    VerifiedByOrigin,
    /// Anyone could have named the key, if there is one.
    Unverified,
}

/// The means of a thread to make lines.
struct Scratch {
    line: Vec<u8>,
    clock: Clock,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { line: Vec::new(), clock: Clock::new() })
    };
}

// === impl AccessLog ===

impl AccessLog {
    /// The log that `config` asks for, with its thread. It opens its file again on SIGUSR1, if the
    /// process [outlives](signals::outlive) the signal.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not started. The error names it, and the remedy.
    pub fn open(config: &Config) -> io::Result<Option<Arc<AccessLog>>> {
        let Some(section) = &config.access_log else {
            return Ok(None);
        };
        let queue = Arc::new(Queue::new(*section.buffer_kib as usize * 1024));
        let reopened = Arc::downgrade(&queue);
        // Before the file is opened, which may be renamed right after.
        signals::on_user_1(move || {
            let queue = reopened.upgrade();
            queue.is_some_and(|queue| {
                queue.reopen();
                true
            })
        });
        let to = match section.path.file() {
            Some(path) => LogFile::open(path, section.rotate == Rotate::Daily)?,
            None => LogFile::stdout()?,
        };
        let writer = Writer::new(name(section), queue.clone(), to);
        thread::Builder::new()
            .name("access log".into())
            .spawn(move || writer.run())
            .map_err(|e| {
                let what = format!("the writer cannot be started: {e}; allow more threads");
                io::Error::new(e.kind(), what)
            })?;
        Ok(Some(Arc::new(AccessLog {
            format: section.format,
            redactor: Redactor::new(config),
            to: Arc::new(Destination(queue)),
            section: section.clone(),
        })))
    }

    /// Like [`open`](Self::open), but with the file of `former` if the section is the same.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub(super) fn open_again(
        config: &Config,
        former: Option<&AccessLog>,
    ) -> io::Result<Option<Arc<AccessLog>>> {
        let same = former.filter(|former| config.access_log.as_ref() == Some(&former.section));
        let Some(former) = same else {
            return AccessLog::open(config);
        };
        Ok(Some(Arc::new(AccessLog {
            format: former.format,
            redactor: Redactor::new(config),
            to: former.to.clone(),
            section: former.section.clone(),
        })))
    }

    /// Write what waits, and end. Lines that cannot be written within `timeout` are lost.
    pub fn close(&self, timeout: Duration) {
        if !self.to.0.close(timeout) {
            warn!("access_log.path: the last lines could not be written in time");
        }
    }

    /// Log a request, which took from `began` to `ended`. `way`: that of its body.
    pub(super) fn write(
        &self,
        session: &Session,
        error: Option<&Error>,
        ctx: &CachingCtx,
        (began, ended): (Instant, Instant),
        key: Key,
        way: Way,
    ) {
        let Some(trace) = ctx.trace() else { return };
        let request = session.req_header();
        let fields = Fields::of(&request.headers);
        let query = requested_query(request);
        let bytes = session.as_downstream().body_bytes_sent() as u64;
        let total = ended.duration_since(began);
        let status = status(session, trace);
        SCRATCH.with_borrow_mut(|Scratch { line, clock }| {
            let entry = Entry {
                began: clock.time_of(began, ended),
                client: trace.client(),
                method: request.method.as_str().as_bytes(),
                path: raw_path(request),
                query,
                version: request.version,
                status,
                bytes,
                x_cache: ctx.result().map(CacheResult::x_cache),
                sent: (bytes > 0).then(|| way.label()),
                first_byte: ctx.first_byte(began),
                total,
                origin: trace.origin_time(ended),
                key_id: match key {
                    Key::Verified(key) => Some(key.as_bytes()),
                    Key::Unverified if status < FIRST_ERROR => None,
                    _ => key_id(fields.authorization, query),
                },
                request_id: trace.id().as_bytes(),
                origin_request_id: trace.origin_id().map(|id| id.as_bytes()),
                host: fields
                    .host
                    .or_else(|| Some(request.uri.authority()?.as_str().as_bytes())),
                referer: fields.referer,
                user_agent: fields.user_agent,
                error: error.map(|error| match error.esource() {
                    ErrorSource::Downstream => "downstream",
                    ErrorSource::Upstream => "upstream",
                    ErrorSource::Internal | ErrorSource::Unset => "internal",
                }),
            };
            line.clear();
            entry.write(self.format, &self.redactor, clock, line);
            self.to.0.push(line);
        });
    }
}

// === impl Destination ===

impl Drop for Destination {
    fn drop(&mut self) {
        // The writer takes what waits, and ends by itself.
        self.0.close(Duration::ZERO);
    }
}

/// The destination, for messages.
fn name(section: &config::AccessLog) -> String {
    match section.path.file() {
        Some(path) => format!("access_log.path: {}", path.display()),
        None => "access_log.path: standard output".to_owned(),
    }
}

/// The fields of a request that a line has.
#[derive(Default)]
struct Fields<'a> {
    authorization: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    referer: Option<&'a [u8]>,
    user_agent: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn of(headers: &'a HeaderMap) -> Fields<'a> {
        let mut fields = Fields::default();
        // One pass over the few fields of most requests hashes none of their names.
        for (name, value) in headers {
            let field = match *name {
                AUTHORIZATION => &mut fields.authorization,
                HOST => &mut fields.host,
                REFERER => &mut fields.referer,
                USER_AGENT => &mut fields.user_agent,
                _ => continue,
            };
            field.get_or_insert(value.as_bytes());
        }
        fields
    }
}

/// Notes on a request that has just come.
pub(super) fn trace(sender: Sender) -> Trace {
    let id = sender.id.unwrap_or_else(RequestId::random);
    Trace::new(REQUEST_ID_NAME, id, sender.client)
}

fn status(session: &Session, trace: &Trace) -> u16 {
    if trace.is_prepared() {
        // The header itself would be made, and kept, if it were asked for.
        return 200;
    }
    status_of(session.as_downstream().response_written())
}

/// The status of the response to a client.
pub(super) fn status_of(written: Option<&ResponseHeader>) -> u16 {
    let status = written.map(|response| response.status);
    let is_final = |status: &StatusCode| {
        !status.is_informational() || *status == StatusCode::SWITCHING_PROTOCOLS
    };
    status
        .filter(is_final)
        .map_or(CLIENT_LEFT, |status| status.as_u16())
}

/// Bytes of a client in printable ASCII, of at most `max` bytes and the mark of a cut.
#[cfg(feature = "otlp")]
pub(super) fn plain(bytes: &[u8], max: usize) -> String {
    written(max, |text| text.push(bytes))
}

/// A text outside of a line, in printable ASCII.
#[cfg(feature = "otlp")]
fn written(max: usize, write: impl FnOnce(&mut Text)) -> String {
    let mut text = Vec::new();
    write(&mut Text::new(&mut text, Place::Quoted, max));
    String::from_utf8(text).unwrap_or_default()
}

/// The access key that a request names, in the field or the query of a signature of version 4 or 2.
fn key_id<'a>(authorization: Option<&'a [u8]>, query: Option<&'a [u8]>) -> Option<&'a [u8]> {
    let named = authorization.and_then(|value| {
        if let Some(value) = value.strip_prefix(b"AWS ") {
            return value.split(|b| *b == b':').next();
        }
        let value = value.strip_prefix(b"AWS4-")?;
        let name = b"Credential=";
        let at = value.windows(name.len()).position(|part| part == name)?;
        value[at + name.len()..]
            .split(|b| b"/, ".contains(b))
            .next()
    });
    named.or_else(|| {
        let mut parameters = query?.split(|b| *b == b'&');
        parameters.find_map(|parameter| {
            let credential = parameter
                .strip_prefix(b"X-Amz-Credential=")
                .or_else(|| parameter.strip_prefix(b"AWSAccessKeyId="))?;
            // The scope follows a slash, which is mostly encoded.
            credential.split(|b| b"/%".contains(b)).next()
        })
    })
}

/// Internals for the fuzz targets. Not part of the API.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    use crate::proxy::access_log::escape::{Place, Text};
    use crate::proxy::access_log::redact::Redactor;

    pub use crate::config::LogFormat as Format;

    /// A URL as it is written in a line, of at most `max` bytes.
    pub fn redacted(url: &[u8], format: Format, max: usize) -> Vec<u8> {
        let place = match format {
            Format::Json => Place::Json,
            Format::Combined => Place::Quoted,
        };
        let mut line = Vec::new();
        let mut text = Text::new(&mut line, place, max);
        Redactor::default().write_url(url, &mut text);
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_that_has_not_begun_is_that_of_a_client_who_left() {
        for (written, status) in [
            (None, 499),
            (Some(100), 499),
            (Some(103), 499),
            (Some(101), 101),
            (Some(304), 304),
        ] {
            let written = written.map(|status: u16| ResponseHeader::build(status, None).unwrap());
            assert_eq!(status_of(written.as_ref()), status);
        }
    }

    #[test]
    fn the_key_of_a_signature_is_found_in_all_its_places() {
        let v4 = &b"AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/s3/aws4_request, \
                    SignedHeaders=host, Signature=0"[..];
        for (authorization, query, key) in [
            (Some(v4), None, Some(&b"AKIA"[..])),
            (Some(b"AWS AKIA:signature="), None, Some(b"AKIA")),
            (Some(b"Bearer Credential=AKIA/"), None, None),
            (
                None,
                Some(&b"a=1&X-Amz-Credential=AKIA%2F20260101"[..]),
                Some(b"AKIA"),
            ),
            (None, Some(b"X-Amz-Credential=AKIA/20260101"), Some(b"AKIA")),
            (
                None,
                Some(b"AWSAccessKeyId=AKIA&Signature=s"),
                Some(b"AKIA"),
            ),
            (None, Some(b"a=1"), None),
            (None, None, None),
        ] {
            assert_eq!(
                key_id(authorization, query),
                key,
                "{authorization:?} {query:?}"
            );
        }
    }
}
