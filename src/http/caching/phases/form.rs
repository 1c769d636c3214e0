//! Another form of a stored response, which the proxy keeps in memory.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::StatusCode;
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use crate::http::caching::hit_header::{age, make_lasting, HitFields};
use crate::http::caching::shared::HttpCaching;
use crate::http::caching::state::{CachingCtx, State};
use crate::http::rules::cache_status::{CacheResult, CacheStatus};
use crate::http::rules::conditional::{evaluate, Precondition};
use crate::http::rules::freshness::ttl;

/// Another form of a stored response.
pub struct Form {
    /// Its header, with a `Content-Length`.
    pub header: ResponseHeader,
    /// Its body.
    pub body: Bytes,
    /// The end of the freshness of the stored response.
    pub fresh_until: SystemTime,
    /// The time at which the age of the stored response was zero.
    pub epoch: SystemTime,
}

impl HttpCaching {
    pub(in crate::http::caching) async fn send_form(
        &self,
        session: &mut Session,
        form: Form,
        ctx: &mut CachingCtx,
    ) -> Result<()> {
        let Form {
            mut header,
            mut body,
            fresh_until,
            epoch,
        } = form;
        let now = SystemTime::now();
        let request = session.req_header();
        let outcome = evaluate(
            &request.method,
            &request.headers,
            header.status,
            &header.headers,
            now,
        );
        if outcome == Precondition::Failed {
            header = ResponseHeader::build(StatusCode::PRECONDITION_FAILED, Some(4))?;
        } else if outcome != Precondition::Proceed {
            header.set_status(StatusCode::NOT_MODIFIED)?;
            for name in [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE] {
                header.remove_header(&name);
            }
            body.clear();
        }
        ctx.state = State::FastHit;
        make_lasting(&mut header, "HIT")?;
        let status = CacheStatus {
            ttl: Some(ttl(fresh_until, now)),
            ..CacheStatus::hit(self.options.name)
        };
        HitFields::new(age(epoch, now), &status).append_to(&mut header)?;
        ctx.set_result(CacheResult::Hit);
        ctx.in_memory = true;
        if outcome == Precondition::Failed {
            return self.respond(session, header, ctx).await;
        }
        self.add_own_fields(session, &mut header, ctx)?;
        self.send(session, header, body).await
    }
}
