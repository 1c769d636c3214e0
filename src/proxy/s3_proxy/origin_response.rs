//! The origin's answer: errors and lists become the proxy's own documents.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{header, Method, StatusCode};
use log::warn;
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::ctx::{routed, Body, RequestCtx, Subject};
use super::shared::S3ProxyHttp;
use crate::metrics::METRICS;
use crate::proxy::buckets::Listing;
use crate::proxy::errors;
use crate::proxy::retries;
use crate::s3::{Code, Fault, ListError, ListRewriter, S3Error, S3Request, Target};

/// The error of a request that is repeated.
const REPEATED: ErrorType = ErrorType::new("OriginRequestRepeated");

/// The response field that names a bucket's actual region ("HeadBucket", Amazon S3 API
/// Reference).
const BUCKET_REGION: &str = "x-amz-bucket-region";

impl S3ProxyHttp {
    /// Replace errors of the origin, and prepare lists.
    pub(super) async fn read_origin_response(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        ctx.has_answer |= !response.status.is_informational();
        count_error(response.status, ctx.relayed().is_some());
        measure_origin(ctx);
        let origin = routed(&ctx.route)?.site.health();
        origin.note_answer(response.status);
        if let Some(spans) = ctx.spans.as_mut().filter(|_| ctx.has_answer) {
            spans.answered(response.status);
        }
        if let Some(trace) = ctx.caching.trace_mut().filter(|_| ctx.has_answer) {
            trace.answered_by_origin(response);
        }
        if ctx.relayed().is_some() {
            return Box::pin(self.read_relayed_response(session, response, ctx)).await;
        }
        self.note_answer(session, response, ctx)?;
        self.caching
            .upstream_response_filter(session, response, &mut ctx.caching)
            .await?;
        if response.status == StatusCode::BAD_REQUEST {
            let region = response.headers.get(BUCKET_REGION);
            let own = routed(&ctx.route)?.site.region();
            if region.is_some_and(|region| region.as_bytes() != own.as_bytes()) {
                return Err(self.redirected(response, ctx));
            }
        }
        if response.status.is_redirection() && response.status != StatusCode::NOT_MODIFIED {
            return Err(self.redirected(response, ctx));
        }
        let status = response.status;
        if let (true, Some(listing)) = (status.is_success(), ctx.listing()) {
            return prepare_list(listing, response);
        }
        if status.is_informational() || status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(());
        }
        if !(response.status.is_client_error() || response.status.is_server_error()) {
            let why = "the origin's status code is not valid in HTTP";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        let route = routed(&ctx.route)?;
        let is_plain = route.request.reads_object() && !route.request.passes_the_cache();
        if self.is_negative(response, ctx) && is_plain {
            if let Some(rule) = &ctx.rule {
                let (key, ttl) = (route.cache_key()?, rule.negative_ttl);
                let access = route.site.access();
                self.negative_cache
                    .insert(&key, access, status, ttl, ctx.purges);
            }
        }
        if self.leave_sibling(session, ctx, status) {
            return Err(repeat(
                "the origin has no compressed form any more".to_owned(),
            ));
        }
        let route = routed(&ctx.route)?;
        if status == StatusCode::FORBIDDEN && !ctx.caching.is_background() {
            warn!(
                "bucket {}: the origin refuses {} with 403; check access_key, secret_key, region and the bucket's policy",
                route.site.bucket(),
                match route.request.target.key() {
                    Some(key) => format!("{key:?}"),
                    None => "a list".to_owned(),
                }
            );
        }
        // If the origin sends no body, Pingora does not call the body filter.
        let is_empty = response
            .headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|len| len == "0");
        let error = origin_error(status, Some(&route.request));
        ctx.caching.identify(response)?;
        let instead = match is_empty && session.req_header().method != Method::HEAD {
            true => None,
            // Boxed, because few requests come here.
            false => Box::pin(self.instead_of(session, ctx, status)).await,
        };
        let mut body = match instead {
            Some(instead) => {
                ctx.replaced = Some(status);
                errors::strip(response);
                errors::name(response)?;
                instead.describe(response)?
            }
            None => errors::replace(session.req_header(), response, &error)?,
        };
        if is_empty && ctx.replaced.is_none() {
            response.insert_header(header::CONTENT_LENGTH, 0)?;
            body.clear();
        }
        let body = (session.req_header().method != Method::HEAD).then_some(body);
        ctx.body = Body::Replaced(body);
        Ok(())
    }

    /// Replace the body of an error, and rewrite that of a list.
    pub(super) fn read_origin_body(
        &self,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if let (Some(route), Some(relayed), true) = (&ctx.route, ctx.relayed(), end_of_stream) {
            let settings = self.settings.load();
            self.passthrough
                .invalidate_at_end(&settings, route, relayed);
        }
        if let Some(body) = body {
            METRICS.origin_body_bytes.inc_by(body.len() as u64);
            if let Some(spans) = &mut ctx.spans {
                spans.received(body.len());
            }
        }
        if ctx.may_be_fault {
            self.note_fault(body, ctx)?;
        }
        if let Body::Replaced(replacement) = &mut ctx.body {
            *body = replacement.take();
        } else if let Subject::List(listing) = &mut ctx.subject {
            rewrite_list(&mut listing.rewriter, body, end_of_stream)
                .or_err(ErrorType::InternalError, "rewriting a list")
                .map_err(|e| e.into_up())?;
        }
        Ok(())
    }

    /// Note the beginning of an answer.
    ///
    /// # Errors
    /// The request is to be repeated.
    fn note_answer(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if response.status.is_informational() {
            return Ok(());
        }
        ctx.has_answer = true;
        if retries::may_pass(response.status, &response.headers) {
            if self.may_repeat(session, ctx) {
                return Err(repeat(format!("the origin answers {}", response.status)));
            }
        } else if let Some(route) = &ctx.route {
            route.site.budget().earn();
        }
        if response.status == StatusCode::FORBIDDEN && !ctx.clock_corrected {
            ctx.clock_corrected = true;
            if adopt_clock(response, ctx) && session.response_written().is_none() {
                return Err(repeat("the signature had the wrong time".to_owned()));
            }
        }
        ctx.may_be_fault = may_be_fault(session, response);
        Ok(())
    }

    /// True for a negative answer that is kept in memory. One with the origin's own
    /// `Cache-Control` is stored like any other.
    pub(super) fn is_negative(&self, response: &ResponseHeader, ctx: &RequestCtx) -> bool {
        let status = ctx.replaced.unwrap_or(response.status);
        let says_how_long = |name| response.headers.contains_key(name);
        ctx.rule.as_ref().is_some_and(|rule| {
            let stated = ["cache-control", "cdn-cache-control", "expires"]
                .into_iter()
                .any(says_how_long);
            rule.remembers(status) && (rule.storing.ignore_origin || !stated)
        })
    }

    /// The error of an answer that S3 sends for a bucket of another region or endpoint. A client
    /// could not follow it: the address names the bucket, and needs a signature.
    fn redirected(&self, response: &ResponseHeader, ctx: &RequestCtx) -> Box<Error> {
        let status = response.status.as_u16();
        let does = match response.status.is_redirection() {
            true => "redirects with",
            false => "answers",
        };
        let bucket = ctx.bucket();
        let region = response
            .headers
            .get(BUCKET_REGION)
            .map(|region| String::from_utf8_lossy(region.as_bytes()));
        match region {
            Some(region) => warn!(
                "bucket {bucket}: the origin {does} {status}; the bucket is in region {region:?}: set its region and endpoint to that"
            ),
            None => warn!(
                "bucket {bucket}: the origin {does} {status}; check the bucket's region and endpoint"
            ),
        }
        let why = "the bucket is in another region or at another endpoint";
        Error::explain(ErrorType::InvalidHTTPHeader, why).into_up()
    }

    /// Inspect the first bytes of an answer that may be an error document.
    ///
    /// # Errors
    /// The answer is one, with the status of an object.
    #[cold]
    fn note_fault(&self, body: &Option<Bytes>, ctx: &mut RequestCtx) -> Result<()> {
        let Some(bytes) = body.as_ref().filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        ctx.may_be_fault = false;
        let Some(fault) = Fault::read(bytes) else {
            return Ok(());
        };
        let bucket = ctx.bucket();
        let code = fault.code().unwrap_or("no code");
        if matches!(ctx.body, Body::Replaced(_)) {
            if let Some(region) = fault.region() {
                warn!(
                    "bucket {bucket}: the origin answers 400 ({code}); the bucket is in region {region:?}: set its region and endpoint to that"
                );
            }
            return Ok(());
        }
        let why = format!("the origin sends an error ({code}) as an object");
        Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up())
    }

    /// Apply the answer of S3 to a relayed request to the cache and to the permissions.
    async fn read_relayed_response(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        self.caching
            .relay_upstream_response_filter(session, response, &mut ctx.caching)
            .await?;
        let status = response.status;
        let (Some(route), Subject::Relayed(relayed)) = (&ctx.route, &mut ctx.subject) else {
            return Ok(());
        };
        if status.is_informational() {
            return Ok(());
        }
        relayed.note_status(status);
        let given = match status {
            StatusCode::NOT_MODIFIED => {
                let stored = session.cache.maybe_cache_meta();
                stored.map(|stored| stored.headers())
            }
            status => status.is_success().then_some(&response.headers),
        };
        if !ctx.caching.is_background() {
            self.passthrough.remember(relayed, given);
        }
        let settings = self.settings.get();
        self.passthrough.invalidate(&settings, route, relayed).await;
        Ok(())
    }
}

/// Measure the time to the header of an answer.
fn measure_origin(ctx: &mut RequestCtx) {
    let asked = ctx.asked_origin.take_if(|_| ctx.has_answer);
    if let (Some(asked), Some(route)) = (asked, &ctx.route) {
        route.site.times().observe_origin(asked.elapsed());
    }
}

/// Count an answer that says that the origin fails, or that it refuses the proxy. A 403 to a relayed
/// request concerns the client's own signature.
fn count_error(status: StatusCode, is_relayed: bool) {
    let class = match status {
        StatusCode::FORBIDDEN if !is_relayed => "403",
        status if status.is_server_error() => "5xx",
        _ => return,
    };
    METRICS
        .origin_error_responses
        .with_label_values(&[class])
        .inc();
}

/// Prepare the header of a list that is rewritten.
fn prepare_list(listing: &Listing, response: &mut ResponseHeader) -> Result<()> {
    if response.status != StatusCode::OK || response.headers.contains_key(header::CONTENT_ENCODING)
    {
        let why = "the origin did not send a list";
        return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
    }
    errors::rewrite(response)?;
    let fresh = match listing.ttl {
        Duration::ZERO => "no-store".to_owned(),
        ttl => format!("max-age={}", ttl.as_secs()),
    };
    response.remove_header(&header::EXPIRES);
    response.insert_header(header::CACHE_CONTROL, fresh)
}

/// The error that a status of the origin means.
pub(super) fn origin_error(status: StatusCode, request: Option<&S3Request>) -> S3Error {
    let names_version = request.is_some_and(|request| request.version_id().is_some());
    let names_part = request.is_some_and(|request| request.part_number().is_some());
    let names_object = request.is_none_or(|request| request.target != Target::Bucket);
    match status {
        StatusCode::NOT_FOUND if !names_object => Code::NoSuchBucket.into(),
        StatusCode::NOT_FOUND if names_version => Code::NoSuchVersion.into(),
        StatusCode::RANGE_NOT_SATISFIABLE if names_part => Code::InvalidPartNumber.into(),
        status => S3Error::of_status(status),
    }
}

/// The error that makes Pingora repeat the request to the origin.
fn repeat(why: String) -> Box<Error> {
    let mut error = Error::explain(REPEATED, why).into_up();
    error.set_retry(true);
    error
}

/// Adopt the clock of a service that has refused a request. True: signatures have another date
/// from now on.
#[cold]
fn adopt_clock(response: &ResponseHeader, ctx: &RequestCtx) -> bool {
    let Some(route) = &ctx.route else {
        return false;
    };
    let fields = &response.headers;
    // A response from a cache has the date of its creation.
    let date = fields.get(header::DATE);
    let date = date.filter(|_| !fields.contains_key(header::AGE));
    let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let signer = route.site.signer().zip(date);
    let learnt = signer.and_then(|(signer, date)| signer.learn_clock(date, SystemTime::now()));
    if let Some(ahead) = learnt {
        warn!(
            "bucket {}: the clock of the origin is {ahead} seconds ahead of this machine's; signatures use its time; set the clock of this machine",
            route.site.bucket()
        );
    }
    learnt.is_some()
}

/// True if the body of an answer may be an error document, whatever its status. An object has an
/// `ETag`.
fn may_be_fault(session: &Session, response: &ResponseHeader) -> bool {
    let fields = &response.headers;
    let is_success = response.status.is_success() && session.req_header().method == Method::GET;
    let names_version =
        fields.contains_key(header::ETAG) || fields.contains_key(header::LAST_MODIFIED);
    let is_xml = || {
        let media_type = fields.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let media_type = media_type.split(';').next()?.trim();
        Some(["text/xml", "application/xml"].contains(&media_type))
    };
    // Only the document of a 400 names the right region.
    response.status == StatusCode::BAD_REQUEST
        || (is_success && !names_version && is_xml().unwrap_or(false))
}

/// Rewrite a piece of a list.
fn rewrite_list(
    rewriter: &mut ListRewriter,
    body: &mut Option<Bytes>,
    is_end: bool,
) -> Result<(), ListError> {
    let mut rewritten = match body.take() {
        Some(piece) => rewriter.write(&piece)?,
        None => Vec::new(),
    };
    if is_end {
        rewritten.extend(rewriter.finish()?);
    }
    *body = Some(rewritten.into());
    Ok(())
}
