//! Routing and authorisation, before anything is looked up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{header, Method, StatusCode};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::ctx::{routed, RequestCtx, Subject};
use super::instead::Instead;
use super::shared::{S3ProxyHttp, FORWARDED};
use crate::http::{sends_body, Ask, Fetch};
use crate::proxy::access_log;
use crate::proxy::auth::{Admitted, Refused};
use crate::proxy::bucket_rules::ListRules;
use crate::proxy::buckets::{self, Listing};
use crate::proxy::cache_key::{raw_path, requested_query};
use crate::proxy::errors;
use crate::proxy::http1::answer_what_was_asked;
use crate::proxy::limits::rates::{Client, Rates, TooMany};
use crate::proxy::redirect::{self, Redirect};
use crate::proxy::route::{Found, Route};
use crate::proxy::settings::{Served, Settings};
use crate::proxy::web::{self, Website};
use crate::s3::{Code, ObjectKey, Operation, S3Error, S3Request, Target};

/// The decision on a request, before anything is looked up for it.
pub(super) enum Decision {
    /// The request is served.
    Proceed,
    /// The request is answered with an error.
    Refuse(Box<Refused>),
}

/// Outcome of [`S3ProxyHttp::admit`] for a request.
pub(super) enum Admission {
    /// The request is for an object, and goes on to the cache.
    Serve,
    /// The request is for an object, and its compressed forms have to be looked for.
    Negotiate,
    /// The request has no route, or is malformed.
    Error(S3Error),
    /// The client is not permitted to make the request.
    Refuse(Box<Refused>),
    /// The request is a GET or HEAD that may have a body, which it must not have.
    MayHaveBody(Found),
    /// The request is for all buckets.
    Service(Arc<Settings>, S3Request),
    /// S3 decides on the request.
    Pass(Route),
    /// The request is for something other than an object.
    Other(Route),
    /// The client must use TLS.
    Redirect(Redirect),
    /// A browser asks what a script may do.
    Preflight(Route),
    /// The request is for a folder, which is listed as a page.
    Listing(Route),
    /// The client has had too much within the last seconds.
    TooMany(TooMany),
}

impl S3ProxyHttp {
    /// The part of the decision that does not wait.
    pub(super) fn admit(&self, session: &mut Session, ctx: &mut RequestCtx) -> Admission {
        ctx.began = Some(Instant::now());
        ctx.caching.measure();
        let settings = self.settings.load();
        let admission = self.admit_any(&settings, session, ctx);
        match &settings.rates {
            None => admission,
            Some(rates) => meter(rates, admission, ctx),
        }
    }

    /// [`admit`](Self::admit), for any number of requests.
    fn admit_any(
        &self,
        settings: &Arc<Settings>,
        session: &mut Session,
        ctx: &mut RequestCtx,
    ) -> Admission {
        let is_logged = settings.access_log.is_some();
        let mut is_trusted = false;
        let is_metered = settings.rates.is_some();
        if session.subrequest_ctx.is_none()
            && (is_logged || is_metered || !settings.front.is_empty())
        {
            let sender = settings.front.read(session);
            is_trusted = sender.is_trusted;
            if is_metered {
                ctx.client = sender.client;
            }
            if is_logged {
                ctx.caching.set_trace(access_log::trace(sender));
            }
        }
        if let Some(tracer) = &self.tracer {
            ctx.spans = tracer.begin(session, is_trusted);
        }
        answer_what_was_asked(session);
        session.set_write_timeout(settings.write_timeout);
        session.set_min_send_rate(settings.min_send_rate);
        self.limit_keepalive(session);
        if let Some(error) = settings.limits.exceeded(session.req_header()) {
            return Admission::Error(error);
        }
        if let Some(redirect) = settings.redirect.filter(|_| redirect::is_plain(session)) {
            return Admission::Redirect(redirect);
        }
        let found = match Found::of(settings, session.req_header()) {
            Ok(found) => found,
            Err(error) => return Admission::Error(error),
        };
        let is_read = matches!(session.req_header().method, Method::GET | Method::HEAD);
        if is_read && !session.is_body_empty() {
            return Admission::MayHaveBody(found);
        }
        self.admit_found(session, found, ctx)
    }

    /// The rest of [`admit_any`](Self::admit_any), for a request with a route and without a forbidden
    /// body.
    fn admit_found(&self, session: &Session, found: Found, ctx: &mut RequestCtx) -> Admission {
        let mut route = match found {
            Found::Site(route) => route,
            Found::Service(settings, request) => return Admission::Service(settings, request),
        };
        if route.site.is_passthrough() {
            return Admission::Pass(route);
        }
        if let Some(website) = route.site.website().cloned() {
            let chosen = self.choose_document(session, &website, &mut route, ctx);
            if session.subrequest_ctx.is_none() {
                let key = route.request.target.key();
                let key = key.map_or("", ObjectKey::as_str);
                let headers = &session.req_header().headers;
                ctx.caching.set_fields(website.fields_of(key, headers));
            }
            if let Err(error) = chosen {
                return Admission::Error(error);
            }
            let is_preflight = route.request.operation == Operation::PreflightRequest;
            if is_preflight && website.cors.is_some() {
                return Admission::Preflight(route);
            }
        }
        match self.authorise(session, &route.request, &route.site, ctx) {
            Decision::Proceed => {}
            Decision::Refuse(refused) => return Admission::Refuse(refused),
        }
        if !route.request.reads_object() {
            if ctx.folder.is_some() {
                return Admission::Listing(route);
            }
            return Admission::Other(route);
        }
        let mut is_chosen = true;
        if let Some(website) = route.site.website().cloned() {
            is_chosen = self.negotiate(session, &website, &mut route, ctx).is_none();
        }
        if !route.request.is_plain() || ctx.admitted.by_cookie {
            ctx.caching.forbid_fast_hit();
        }
        if route.request.passes_the_cache() {
            ctx.caching
                .bypass_cache(route.request.part_number().is_some());
        }
        ctx.route = Some(route);
        match is_chosen {
            true => Admission::Serve,
            false => Admission::Negotiate,
        }
    }

    /// Turn a request for a folder into one for its index document, or for a list of it.
    fn choose_document(
        &self,
        session: &Session,
        website: &Website,
        route: &mut Route,
        ctx: &mut RequestCtx,
    ) -> std::result::Result<(), S3Error> {
        let header = session.req_header();
        // The proxy's own requests are for objects.
        let lists = website.lists && session.subrequest_ctx.is_none();
        if website.index.is_none() && !lists {
            return Ok(());
        }
        // Relative links of a document lead below its folder only if the path has the slash.
        let is_folder = raw_path(header).ends_with(b"/");
        let folder = web::folder_of(&route.request, &header.headers).filter(|_| is_folder);
        let Some(folder) = folder.map(Box::<str>::from) else {
            return Ok(());
        };
        let (target, query);
        match &website.index {
            Some(index) => {
                let key = ObjectKey::new([&*folder, index.as_str()].concat())?;
                route.site.check(&key)?;
                target = Target::Object(key);
                query = requested_query(header).unwrap_or_default().to_vec();
            }
            None => {
                target = Target::Bucket;
                query = web::listing::list_query(&folder, requested_query(header)).into_bytes();
            }
        }
        ctx.folder = Some(folder);
        route.request = S3Request::read(&Method::GET, target, Some(&query), &header.headers)?;
        if header.method == Method::HEAD && route.request.reads_object() {
            route.request.operation = Operation::HeadObject;
        }
        Ok(())
    }

    /// Answer with a page that lists a folder.
    async fn answer_listing(
        &self,
        session: &mut Session,
        route: Route,
        ctx: &mut RequestCtx,
    ) -> Result<bool> {
        let folder = ctx.folder.clone().unwrap_or_default();
        let error = match self.list(session, &route.site, &folder).await {
            Ok(Some(page)) => {
                let listing = Instead::Listing(page);
                self.respond_instead(session, ctx, StatusCode::OK, listing, None)
                    .await?;
                return Ok(true);
            }
            Ok(None) => Code::NoSuchKey.into(),
            Err(error) => error,
        };
        ctx.folder = None;
        ctx.route = Some(route);
        if let Some(page) = self.page(session, ctx, error.status).await {
            let page = Instead::Page(page);
            self.respond_instead(session, ctx, error.status, page, None)
                .await?;
            return Ok(true);
        }
        self.refuse(session, error, ctx).await
    }

    /// Answer a request that [`admit`](Self::admit) does not serve. `None`: the request goes on to
    /// the cache.
    pub(super) async fn admit_rare(
        &self,
        session: &mut Session,
        mut admission: Admission,
        ctx: &mut RequestCtx,
    ) -> Result<Option<bool>> {
        if let Admission::MayHaveBody(found) = admission {
            if sends_body(session).await {
                session.set_keepalive(None);
                let why = "a GET or HEAD has no body";
                let error = S3Error::new(Code::InvalidRequest, why);
                return self.refuse(session, error, ctx).await.map(Some);
            }
            admission = self.admit_found(session, found, ctx);
        }
        let answered = match admission {
            Admission::Serve | Admission::MayHaveBody(_) => return Ok(None),
            Admission::Negotiate => {
                self.look_for_siblings(session, ctx).await;
                return Ok(None);
            }
            Admission::Error(error) => self.refuse(session, error, ctx).await,
            Admission::Refuse(refused) => self.refuse_client(session, &refused, ctx).await,
            Admission::Service(settings, request) => {
                self.answer_service(session, &settings, &request, ctx).await
            }
            Admission::Pass(route) => self.relay(session, route, ctx).await,
            Admission::Other(route) => self.answer_other(session, route, ctx).await,
            Admission::Listing(route) => self.answer_listing(session, route, ctx).await,
            Admission::Preflight(route) => self.answer_preflight(session, &route, ctx).await,
            Admission::TooMany(refused) => self.refuse_too_many(session, refused, ctx).await,
            Admission::Redirect(redirect) => {
                redirect.answer(&self.caching, session, &ctx.caching).await
            }
        };
        answered.map(Some)
    }

    /// Decide if a client may do what it asks for. The decision comes before the lookup, so it
    /// applies to hits too. The proxy's own subrequests have the target and the fields of a
    /// client's request that was admitted.
    fn authorise(
        &self,
        session: &Session,
        request: &S3Request,
        site: &Served,
        ctx: &mut RequestCtx,
    ) -> Decision {
        if session.subrequest_ctx.is_some() {
            return Decision::Proceed;
        }
        let auth = &site.settings().auth;
        match auth.decide(site.index(), session.req_header(), request) {
            Ok(admitted) => ctx.admitted = admitted,
            Err(refused) => return Decision::Refuse(refused),
        }
        if !request.overrides().is_empty() && !ctx.admitted.is_authenticated {
            let why =
                "Request specific response headers cannot be used for anonymous GET requests.";
            let error = S3Error::new(Code::InvalidRequest, why);
            return Decision::Refuse(Box::new(error.into()));
        }
        Decision::Proceed
    }

    /// The key of the object without its dot segments, if it has some and the origin may not have
    /// the key with them.
    pub(super) fn without_dots(&self, ctx: &RequestCtx) -> Result<Option<ObjectKey>> {
        let route = routed(&ctx.route)?;
        let resolved = route.key()?.without_dot_segments();
        // A signed key is the key as S3 reads it, so its dot segments stay.
        let auth = &route.site.settings().auth;
        Ok(resolved.filter(|_| auth.is_open(route.site.index())))
    }

    /// Route a request to its resolved key if the origin does not have the key with dot segments.
    pub(super) async fn resolve_to(
        &self,
        session: &mut Session,
        resolved: ObjectKey,
        ctx: &mut RequestCtx,
    ) -> Result<Decision> {
        let key = routed(&ctx.route)?.cache_key()?;
        let is_warming = ctx.caching.is_warming();
        if !self.dot_segments.is_absent(session, &key, is_warming).await {
            return Ok(Decision::Proceed);
        }
        let Some(mut route) = ctx.route.take() else {
            return Ok(Decision::Proceed);
        };
        route.request.target = Target::Object(resolved);
        // A client that may read the first object need not be permitted to read this one.
        let decision = self.authorise(session, &route.request, &route.site, ctx);
        ctx.route = Some(route);
        Ok(decision)
    }

    /// Answer a browser that asks what a script may do. Such a request has no credentials.
    async fn answer_preflight(
        &self,
        session: &mut Session,
        route: &Route,
        ctx: &RequestCtx,
    ) -> Result<bool> {
        let website = route.site.website();
        let cors = website.and_then(|website| website.cors.as_ref());
        let headers = &session.req_header().headers;
        let Some(fields) = cors.and_then(|cors| cors.preflight(headers)) else {
            let why = "CORSResponse: This CORS request is not allowed.";
            let error = S3Error::new(Code::AccessDenied, why);
            return self.refuse(session, error, ctx).await;
        };
        let mut header = ResponseHeader::build(StatusCode::NO_CONTENT, Some(fields.len() + 3))?;
        for (name, value) in fields {
            header.insert_header(name, value)?;
        }
        let asked = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        header.insert_header(header::VARY, asked)?;
        self.caching
            .add_own_fields(session, &mut header, &ctx.caching)?;
        errors::send(session, header, Bytes::new()).await?;
        Ok(true)
    }

    /// Answer a request that is for all buckets.
    async fn answer_service(
        &self,
        session: &mut Session,
        settings: &Arc<Settings>,
        request: &S3Request,
        ctx: &mut RequestCtx,
    ) -> Result<bool> {
        if request.operation != Operation::ListBuckets {
            return self
                .refuse(session, buckets::not_implemented(request), ctx)
                .await;
        }
        // The buckets that the client may list.
        let mut refused = None;
        let mut admitted = Admitted::default();
        let mut sites = Vec::new();
        for site in settings.router().sites() {
            if !settings
                .lists
                .get(site.index())
                .is_some_and(|rules| rules.is_open)
            {
                continue;
            }
            match self.authorise(session, request, &Served::new(settings, site), ctx) {
                Decision::Proceed => {
                    admitted.by_cookie |= ctx.admitted.by_cookie;
                    admitted.key_id = ctx.admitted.key_id.take().or(admitted.key_id);
                    sites.push(&**site);
                }
                Decision::Refuse(error) => refused = Some(error),
            }
        }
        match refused {
            Some(refused) if sites.is_empty() => {
                return self.refuse_client(session, &refused, ctx).await
            }
            None if sites.is_empty() => {
                return self.refuse(session, Code::AccessDenied.into(), ctx).await;
            }
            _ => {}
        }
        let document = buckets::list_of(sites.into_iter());
        ctx.admitted = admitted;
        errors::respond_document(&self.caching, session, document, ctx.recipient()).await?;
        Ok(true)
    }

    /// Answer a request for a bucket, or begin to serve a list.
    async fn answer_other(
        &self,
        session: &mut Session,
        route: Route,
        ctx: &mut RequestCtx,
    ) -> Result<bool> {
        const CLOSED: ListRules = ListRules {
            is_open: false,
            ttl: Duration::ZERO,
        };
        const FOR_OPERATOR: ListRules = ListRules {
            is_open: true,
            ttl: Duration::ZERO,
        };
        if let Some(website) = route.site.website() {
            // A HEAD without the slash is HeadBucket.
            let is_page = web::folder_of(&route.request, &session.req_header().headers).is_some()
                && route.request.operation == Operation::ListObjects;
            if is_page && session.subrequest_ctx.is_none() && website.redirects {
                let redirect = self.slash_redirect(session, ctx, website, &route);
                // Boxed, because few requests come here.
                if let Some(location) = Box::pin(redirect).await {
                    let instead = Instead::Redirect(location);
                    let status = StatusCode::FOUND;
                    self.respond_instead(session, ctx, status, instead, None)
                        .await?;
                    return Ok(true);
                }
            }
        }
        let of_bucket = route
            .site
            .settings()
            .lists
            .get(route.site.index())
            .unwrap_or(&CLOSED);
        let for_page = ListRules {
            is_open: true,
            ttl: of_bucket.ttl,
        };
        let rules = if is_from::<Fetch>(session) {
            &FOR_OPERATOR
        } else if is_from::<Ask>(session) {
            &for_page
        } else {
            of_bucket
        };
        let listing = match Listing::of(&route, rules) {
            Ok(Some(listing)) => listing,
            Ok(None) => {
                buckets::answer(&self.caching, session, &route, ctx.recipient()).await?;
                return Ok(true);
            }
            Err(error) => return self.refuse(session, error, ctx).await,
        };
        // Ranges and conditions do not apply to a list.
        for name in FORWARDED {
            session.req_header_mut().remove_header(&name);
        }
        ctx.caching.forbid_fast_hit();
        if listing.ttl.is_zero() {
            ctx.caching.bypass_cache(false);
        }
        ctx.subject = Subject::List(Box::new(listing));
        ctx.route = Some(route);
        self.caching.request_filter(session, &mut ctx.caching).await
    }

    /// Begin to relay a request as the client made it.
    async fn relay(
        &self,
        session: &mut Session,
        route: Route,
        ctx: &mut RequestCtx,
    ) -> Result<bool> {
        let (relay, mut relayed) = self.passthrough.read(session.req_header(), &route);
        if session.is_body_empty() {
            relayed.note_sent();
        }
        ctx.caching.relay(relay);
        ctx.subject = Subject::Relayed(Box::new(relayed));
        ctx.route = Some(route);
        self.caching.request_filter(session, &mut ctx.caching).await
    }

    /// Limit the wait for the next request. Pingora waits forever, which it expresses by zero.
    fn limit_keepalive(&self, session: &mut Session) {
        if self.settings.is_retiring() || self.health.is_draining() {
            session.set_keepalive(None);
            return;
        }
        if self.keepalive_timeout.is_some() && session.get_keepalive() == Some(0) {
            session.set_keepalive(self.keepalive_timeout);
        }
    }

    /// Answer with an error. Always `true`, the result of `request_filter`.
    async fn refuse(
        &self,
        session: &mut Session,
        error: S3Error,
        ctx: &RequestCtx,
    ) -> Result<bool> {
        errors::respond(&self.caching, session, &error, ctx.recipient()).await?;
        Ok(true)
    }

    /// Answer a client that has had too much. Always `true`, the result of `request_filter`.
    async fn refuse_too_many(
        &self,
        session: &mut Session,
        refused: TooMany,
        ctx: &RequestCtx,
    ) -> Result<bool> {
        let error = S3Error::of_status(StatusCode::TOO_MANY_REQUESTS);
        let mut header = ResponseHeader::build(error.status, Some(5))?;
        header.insert_header(header::RETRY_AFTER, refused.retry_after())?;
        let to = ctx.recipient();
        errors::respond_with(&self.caching, session, header, &error, to).await?;
        Ok(true)
    }

    /// Answer a client that may not do what it asks for. Always `true`, the result of
    /// `request_filter`.
    pub(super) async fn refuse_client(
        &self,
        session: &mut Session,
        refused: &Refused,
        ctx: &RequestCtx,
    ) -> Result<bool> {
        let mut header = ResponseHeader::build(refused.error.status, Some(5))?;
        if let Some(challenge) = &refused.challenge {
            header.insert_header(header::WWW_AUTHENTICATE, challenge)?;
        }
        // Boxed, because few requests come here.
        Box::pin(errors::respond_with(
            &self.caching,
            session,
            header,
            &refused.error,
            ctx.recipient(),
        ))
        .await?;
        Ok(true)
    }
}

/// Charge the client of a request, whatever its answer is. The proxy's own requests have none. An
/// access key that S3 verifies may be forged, so it does not stand for a client.
fn meter(rates: &Arc<Rates>, admission: Admission, ctx: &mut RequestCtx) -> Admission {
    let client = match (&ctx.admitted.key_id, ctx.client) {
        (_, None) => return admission,
        (Some(key), _) => Client::Key(key.clone()),
        (None, Some(address)) => Client::at(address),
    };
    match rates.admit(&client) {
        Ok(charged) => {
            ctx.charged = Some(charged);
            admission
        }
        Err(refused) => Admission::TooMany(refused),
    }
}

/// True for a request of the proxy to itself with this context.
fn is_from<C: 'static>(session: &Session) -> bool {
    let subrequest = session.subrequest_ctx.as_ref();
    let user = subrequest.and_then(|subrequest| subrequest.user_ctx());
    user.is_some_and(|user| user.is::<C>())
}
