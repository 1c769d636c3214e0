//! In place of traces, in a build without the feature `otlp`: there is no tracer, and nothing is traced.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use pingora_core::{Error, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::access_log::Redactor;
use super::settings::Served;
use crate::config::Config;
use crate::http::CachingCtx;
use crate::s3::Site;

/// There is none.
pub enum Tracer {}

/// There are none.
pub(super) enum Spans {}

// === impl Tracer ===

impl Tracer {
    /// # Errors
    /// The configuration asks for traces.
    pub fn open(config: &Config) -> io::Result<Option<Arc<Tracer>>> {
        match config.traces {
            None => Ok(None),
            Some(_) => Err(io::Error::other(
                "this program is built without them; leave the section out, or build it with the feature otlp",
            )),
        }
    }

    pub fn close(&self, _timeout: Duration) {
        match *self {}
    }

    pub(super) fn begin(&self, _session: &Session, _is_trusted: bool) -> Option<Box<Spans>> {
        match *self {}
    }

    pub(super) fn name_in_origin_request(
        &self,
        _session: &Session,
        _request: &mut RequestHeader,
        _served: &Served,
        _spans: Option<&mut Spans>,
    ) -> Result<()> {
        match *self {}
    }

    pub(super) fn finish(
        &self,
        _session: &Session,
        _spans: &Spans,
        _error: Option<&Error>,
        _ctx: &CachingCtx,
        _bucket: Option<&str>,
        _redactor: &Redactor,
    ) {
        match *self {}
    }
}

// === impl Spans ===

impl Spans {
    pub(super) fn begin_lookup(&mut self) {
        match *self {}
    }

    pub(super) fn end_lookup(&mut self) {
        match *self {}
    }

    pub(super) fn ask_origin(&mut self, _site: &Site) {
        match *self {}
    }

    pub(super) fn connect(&mut self, _peer: Option<SocketAddr>) {
        match *self {}
    }

    pub(super) fn answered(&mut self, _status: StatusCode) {
        match *self {}
    }

    pub(super) fn received(&mut self, _bytes: usize) {
        match *self {}
    }

    pub(super) fn failed(&mut self, _error: &Error) {
        match *self {}
    }
}
