//! The choice between an object and its compressed siblings (RFC 9110 §12).
//!
//! A sibling is an object of its own: it has its own entry in the cache, `ETag` and length, and ranges
//! and conditions apply to it. So nothing of one form is ever combined with the other.

use http::header::{HeaderValue, CONTENT_ENCODING, CONTENT_TYPE, RANGE, VARY};
use http::{Method, StatusCode};
use log::debug;
use pingora_cache::NoCacheReason;
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::ctx::{Negotiated, RequestCtx};
use super::response::describe_as_asked;
use super::shared::S3ProxyHttp;
use crate::http::rules::accept_encoding::{AcceptedCodings, Coding};
use crate::http::Form;
use crate::proxy::ask::ask;
use crate::proxy::route::Route;
use crate::proxy::web::{self, Known, Website};
use crate::s3::Target;

impl S3ProxyHttp {
    /// Choose the form of the object that a request gets, as far as the siblings are known. Returns the
    /// coding of a sibling that has to be looked for first.
    pub(super) fn negotiate(
        &self,
        session: &Session,
        website: &Website,
        route: &mut Route,
        ctx: &mut RequestCtx,
    ) -> Option<Coding> {
        if website.precompressed.is_empty() && website.compressor.is_none() {
            return None;
        }
        let request = &route.request;
        let negotiable = !request.has_parameters() && !request.passes_the_cache();
        let Target::Object(key) = &request.target else {
            return None;
        };
        if !negotiable || !web::is_compressible(key.as_str()) {
            return None;
        }
        let negotiated = ctx.negotiated.get_or_insert_with(|| {
            Box::new(Negotiated {
                original: key.clone(),
                coding: None,
            })
        });
        let bucket = route.site.access();
        // The proxy's own requests are for what the client was given.
        let is_own = session.subrequest_ctx.is_some();
        let accepted = AcceptedCodings::of(&session.req_header().headers);
        for coding in accepted.best_of(&website.precompressed) {
            let known = self.siblings.has(bucket, key.as_str(), coding, is_own);
            match known {
                None if is_own => {}
                None => return Some(coding),
                Some(false) => {}
                Some(true) => {
                    let sibling = web::sibling_of(key.as_str(), coding);
                    let sibling = sibling.filter(|sibling| route.site.check(sibling).is_ok());
                    if let Some(sibling) = sibling {
                        route.request.target = Target::Object(sibling);
                        negotiated.coding = Some(coding);
                        ctx.caching.set_coded();
                        return None;
                    }
                }
            }
        }
        None
    }

    /// Look for siblings until the form of the object is chosen.
    pub(super) async fn look_for_siblings(&self, session: &Session, ctx: &mut RequestCtx) {
        let Some(mut route) = ctx.route.take() else {
            return;
        };
        if let Some(website) = route.site.website().cloned() {
            while let Some(coding) = self.negotiate(session, &website, &mut route, ctx) {
                let is_there = self.has_sibling(session, &route, coding).await;
                if let Ok(key) = route.key() {
                    let bucket = route.site.access();
                    self.siblings.note(bucket, key.as_str(), coding, is_there);
                }
            }
        }
        ctx.route = Some(route);
    }

    /// True if the origin has a sibling of the requested object.
    async fn has_sibling(&self, session: &Session, route: &Route, coding: Coding) -> bool {
        let key = route.key().ok();
        let sibling = key.and_then(|key| web::sibling_of(key.as_str(), coding));
        let sibling = sibling.filter(|sibling| route.site.check(sibling).is_ok());
        let (Some(sibling), Some(spawner)) = (sibling, &session.subrequest_spawner) else {
            return false;
        };
        match ask(spawner, &route.site, &Method::HEAD, &sibling.encoded(), 0).await {
            Ok(answered) => answered.is_some_and(|answered| answered.header.status.is_success()),
            Err(e) => {
                debug!("{sibling:?} was not found: {e}");
                false
            }
        }
    }

    /// Answer with a compressed form that the proxy has made. `false`: there is none, and the client gets
    /// the object itself.
    pub(super) async fn serve_made(
        &self,
        session: &mut Session,
        ctx: &mut RequestCtx,
    ) -> Result<bool> {
        let Some(form) = self.made_form(session, ctx)? else {
            return Ok(false);
        };
        self.caching
            .serve_form(session, form, &mut ctx.caching)
            .await?;
        Ok(true)
    }

    /// The compressed form that the client accepts. If it has not been made yet, that begins.
    fn made_form(&self, session: &Session, ctx: &mut RequestCtx) -> Result<Option<Form>> {
        let (Some(route), Some(negotiated)) = (&ctx.route, &mut ctx.negotiated) else {
            return Ok(None);
        };
        let website = route.site.website();
        let Some(compressor) = website.and_then(|website| website.compressor.as_ref()) else {
            return Ok(None);
        };
        let request = session.req_header();
        // A range of a form could not be told from one of the object by a client that ignores `ETag`.
        let is_whole = !request.headers.contains_key(RANGE);
        let is_client = session.subrequest_ctx.is_none();
        if !is_whole || !is_client || !route.request.is_plain() || negotiated.coding.is_some() {
            return Ok(None);
        }
        let accepted = AcceptedCodings::of(&request.headers);
        let Some(coding) = accepted.best_of(&compressor.codings).next() else {
            return Ok(None);
        };
        let key = route.cache_key()?;
        let found = match compressor.known(&key, coding) {
            Known::Made(found) => found,
            Known::Useless => return Ok(None),
            Known::Missing => {
                let name = negotiated.original.as_str().to_owned();
                compressor.start(key, name, coding);
                return Ok(None);
            }
        };
        let Some(made) = found.made() else {
            return Ok(None);
        };
        let mut header = (*made.header).clone();
        negotiated.coding = Some(coding);
        self.guess_type(route, &mut header)?;
        header.append_header(VARY, "Accept-Encoding")?;
        describe_as_asked(&route.request, &mut header)?;
        ctx.admitted.describe(&mut header)?;
        Ok(Some(Form {
            header,
            body: made.body.clone(),
            fresh_until: found.fresh_until,
            epoch: found.epoch,
        }))
    }

    /// Go on with the object itself, past the cache, if the origin does not have its sibling any more.
    /// `true`: the request is one for the object now.
    pub(super) fn leave_sibling(
        &self,
        session: &mut Session,
        ctx: &mut RequestCtx,
        status: StatusCode,
    ) -> bool {
        let is_gone = matches!(
            status,
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE
        );
        let (Some(route), Some(negotiated)) = (&mut ctx.route, &mut ctx.negotiated) else {
            return false;
        };
        let Some(coding) = negotiated.coding.take_if(|_| is_gone) else {
            return false;
        };
        let original = negotiated.original.clone();
        let bucket = route.site.access();
        self.siblings.note(bucket, original.as_str(), coding, false);
        route.request.target = Target::Object(original);
        if session.cache.enabled() {
            session.cache.disable(NoCacheReason::Deferred);
        }
        true
    }
}

// === impl Negotiated ===

impl Negotiated {
    /// Describe the form of the object in a response.
    pub(super) fn describe(&self, response: &mut ResponseHeader) -> Result<()> {
        response.append_header(VARY, "Accept-Encoding")?;
        let Some(coding) = self.coding else {
            return Ok(());
        };
        if response.status != StatusCode::NOT_MODIFIED {
            // That of the sibling is that of a compressed file, if any.
            let is_multipart = response.headers.get(CONTENT_TYPE);
            let is_multipart =
                is_multipart.is_some_and(|value| value.as_bytes().starts_with(b"multipart/"));
            if !is_multipart {
                response.remove_header(&CONTENT_TYPE);
                web::guess_type(self.original.as_str(), response)?;
            }
            response.insert_header(CONTENT_ENCODING, HeaderValue::from_static(coding.name()))?;
        }
        Ok(())
    }
}
