//! Answers of a website in place of errors: documents, and redirects to folders.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, StatusCode};
use log::debug;
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::{FailToProxy, Session};

use super::ctx::{RequestCtx, Subject};
use super::shared::S3ProxyHttp;
use crate::proxy::ask::ask;
use crate::proxy::cache_key::{raw_path, requested_query};
use crate::proxy::errors;
use crate::proxy::route::Route;
use crate::proxy::web::{self, Page, Website};
use crate::s3::{Code, ListReader, ObjectKey, S3Error, S3Request, Site, Target};

/// The largest list that is read for a page, in bytes.
const MAX_LIST: usize = 4 << 20;

/// An answer in place of an error.
pub(super) enum Instead {
    /// A document, with the status of the error.
    Page(Arc<Page>),
    /// A redirect to the folder of this name, see [`web::slash_location`].
    Redirect(HeaderValue),
    /// A page that lists a folder.
    Listing(Bytes),
}

impl S3ProxyHttp {
    /// The website that a client's request is for, if its bucket has one.
    pub(super) fn website<'a>(
        &'a self,
        session: &Session,
        ctx: &'a RequestCtx,
    ) -> Option<(&'a Website, &'a Route)> {
        let route = ctx.route.as_ref()?;
        let website = route.site.website()?;
        let is_page = session.subrequest_ctx.is_none() && matches!(ctx.subject, Subject::Object);
        is_page.then_some((website, route))
    }

    /// True if a document may take the place of an error.
    pub(super) fn has_document(
        &self,
        session: &Session,
        ctx: &RequestCtx,
        status: StatusCode,
    ) -> bool {
        let website = self.website(session, ctx);
        website.is_some_and(|(website, _)| website.document_of(status).is_some())
    }

    /// The answer in place of an error with this status. The proxy's own requests get the error itself,
    /// so no document is looked for in place of a document.
    pub(super) async fn instead_of(
        &self,
        session: &Session,
        ctx: &RequestCtx,
        status: StatusCode,
    ) -> Option<Instead> {
        let (website, route) = self.website(session, ctx)?;
        if status == StatusCode::NOT_FOUND {
            if let Some(folder) = ctx.folder.as_deref().filter(|_| website.lists) {
                // A client that may read the document need not be permitted to list its folder.
                if let Some(page) = self.list_for(session, ctx, route, folder).await {
                    return Some(Instead::Listing(page));
                }
            } else if let Some(location) = self.slash_redirect(session, ctx, website, route).await {
                return Some(Instead::Redirect(location));
            }
        }
        self.page(session, ctx, status).await.map(Instead::Page)
    }

    /// The document in place of an error with this status.
    pub(super) async fn page(
        &self,
        session: &Session,
        ctx: &RequestCtx,
        status: StatusCode,
    ) -> Option<Arc<Page>> {
        let (website, route) = self.website(session, ctx)?;
        let document = website.document_of(status)?;
        let target = Target::Object(document.key().clone());
        if !self.may_also_read(session, ctx, route, target, "") {
            return None;
        }
        let spawner = session.subrequest_spawner.as_ref()?;
        let read = || {
            let target = document.key().encoded().into_owned();
            async move {
                let limit = web::MAX_DOCUMENT;
                ask(spawner, &route.site, &Method::GET, &target, limit).await
            }
        };
        document.page(route.site.bucket(), read).await
    }

    /// The redirect to the folder of the name that a request has, if there is something in the folder
    /// for a browser.
    pub(super) async fn slash_redirect(
        &self,
        session: &Session,
        ctx: &RequestCtx,
        website: &Website,
        route: &Route,
    ) -> Option<HeaderValue> {
        if !website.redirects || route.request.has_parameters() {
            return None;
        }
        let header = session.req_header();
        let location = web::slash_location(raw_path(header), requested_query(header))?;
        let folder = match &route.request.target {
            Target::Object(key) => format!("{}/", key.as_str()),
            _ => String::new(),
        };
        if let Some(index) = &website.index {
            let key = ObjectKey::new([&*folder, index.as_str()].concat()).ok()?;
            let is_readable = route.site.check(&key).is_ok()
                && self.may_also_read(session, ctx, route, Target::Object(key.clone()), "");
            if is_readable && self.exists(session, route, &key).await {
                return Some(location);
            }
        }
        let is_listed =
            website.lists && self.list_for(session, ctx, route, &folder).await.is_some();
        is_listed.then_some(location)
    }

    /// True if the bucket has an object.
    async fn exists(&self, session: &Session, route: &Route, key: &ObjectKey) -> bool {
        let Some(spawner) = &session.subrequest_spawner else {
            return false;
        };
        match ask(spawner, &route.site, &Method::HEAD, &key.encoded(), 0).await {
            Ok(answered) => answered.is_some_and(|answered| answered.header.status.is_success()),
            Err(e) => {
                debug!("{key:?} was not found: {e}");
                false
            }
        }
    }

    /// The page that lists a folder, if the client may list it, and there is such a folder.
    async fn list_for(
        &self,
        session: &Session,
        ctx: &RequestCtx,
        route: &Route,
        folder: &str,
    ) -> Option<Bytes> {
        let query = web::listing::list_query(folder, None);
        if !self.may_also_read(session, ctx, route, Target::Bucket, &query) {
            return None;
        }
        let page = self.list(session, &route.site, folder).await;
        page.unwrap_or_else(|e| {
            debug!("a list is not shown: {e}");
            None
        })
    }

    /// The page that lists a folder. `None`: there is no such folder.
    ///
    /// # Errors
    /// The list cannot be read, or too many others are being read.
    pub(super) async fn list(
        &self,
        session: &Session,
        site: &Site,
        folder: &str,
    ) -> std::result::Result<Option<Bytes>, S3Error> {
        let (Ok(_permit), Some(spawner)) =
            (self.page_lists.try_acquire(), &session.subrequest_spawner)
        else {
            return Err(Code::SlowDown.into());
        };
        let header = session.req_header();
        let query = web::listing::list_query(folder, requested_query(header));
        let asked = ask(spawner, site, &Method::GET, &format!("?{query}"), MAX_LIST).await;
        let answered = match asked {
            Ok(Some(answered)) => answered,
            Ok(None) => return Err(Code::InternalError.into()),
            Err(e) => {
                debug!("a list was not read: {e}");
                return Err(S3Error::of_status(StatusCode::BAD_GATEWAY));
            }
        };
        if answered.header.status != StatusCode::OK {
            return Err(S3Error::of_status(answered.header.status));
        }
        let mut reader = ListReader::default();
        let read = reader.write(&answered.body).and_then(|()| reader.finish());
        let page = read.map_err(|e| {
            debug!("a list was not read: {e}");
            S3Error::of_status(StatusCode::BAD_GATEWAY)
        })?;
        if web::listing::is_absent(folder, &page) {
            return Ok(None);
        }
        let path = String::from_utf8_lossy(raw_path(header)).into_owned();
        let decoded = ObjectKey::from_request_path(&path);
        let path = decoded.as_ref().map_or(&*path, ObjectKey::as_str);
        let html = web::listing::render(path, folder, &page);
        Ok(Some(html.into()))
    }

    /// True if the client of a request may also read something else of the bucket.
    fn may_also_read(
        &self,
        session: &Session,
        ctx: &RequestCtx,
        route: &Route,
        target: Target,
        query: &str,
    ) -> bool {
        let bucket = route.site.index();
        let auth = &route.site.settings().auth;
        if auth.is_open(bucket) {
            return true;
        }
        let header = session.req_header();
        let query = Some(query.as_bytes());
        let request = S3Request::read(&Method::GET, target, query, &http::HeaderMap::new());
        ctx.admitted.is_authenticated
            && request.is_ok_and(|request| auth.also_permits(bucket, header, &request))
    }

    /// Answer in place of a remembered error, which is valid for `left`.
    pub(super) async fn respond_instead(
        &self,
        session: &mut Session,
        ctx: &RequestCtx,
        status: StatusCode,
        instead: Instead,
        left: Option<Duration>,
    ) -> Result<()> {
        let mut header = ResponseHeader::build(status, Some(8))?;
        if let Some(left) = left {
            errors::label_remembered(&mut header, left)?;
        }
        ctx.admitted.describe(&mut header)?;
        let body = instead.describe(&mut header)?;
        self.caching
            .add_own_fields(session, &mut header, &ctx.caching)?;
        errors::name(&mut header)?;
        errors::send(session, header, body).await
    }

    /// Answer a request that fails with a document. `None`: there is none.
    pub(super) async fn fail_with_document(
        &self,
        session: &mut Session,
        ctx: &RequestCtx,
        status: StatusCode,
    ) -> Option<FailToProxy> {
        let page = self.page(session, ctx, status).await?;
        let mut header = ResponseHeader::build(status, Some(5)).ok()?;
        ctx.admitted.describe(&mut header).ok()?;
        let body = page.describe(&mut header).ok()?;
        ctx.caching.identify(&mut header).ok()?;
        errors::name(&mut header).ok()?;
        let failed = self.caching.fail_with(session, header, body, &ctx.caching);
        Some(failed.await)
    }
}

// === impl Instead ===

impl Instead {
    /// Make the header of an error that of this answer.
    pub(super) fn describe(&self, header: &mut ResponseHeader) -> Result<Bytes> {
        header.remove_header(&CONTENT_RANGE);
        match self {
            Instead::Page(page) => page.describe(header),
            Instead::Redirect(location) => {
                header.set_status(StatusCode::FOUND)?;
                header.insert_header(LOCATION, location.clone())?;
                header.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8")?;
                let body = [b"Moved to ", location.as_bytes(), b"\n"].concat();
                header.insert_header(CONTENT_LENGTH, body.len())?;
                Ok(body.into())
            }
            Instead::Listing(page) => {
                header.set_status(StatusCode::OK)?;
                web::listing::describe(header, page.len())?;
                Ok(page.clone())
            }
        }
    }
}
