//! The response to the client, as S3 describes an object.

use http::header::{self, HeaderName};
use http::StatusCode;
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::ctx::{RequestCtx, Subject};
use super::shared::S3ProxyHttp;
use crate::proxy::passthrough::CHECKSUM_MODE;
use crate::proxy::route::Route;
use crate::proxy::web;
use crate::s3::S3Request;

/// The prefix of all checksum fields.
const CHECKSUM: &str = "x-amz-checksum-";

impl S3ProxyHttp {
    /// Add the fields of an object, and those of the cache.
    pub(super) fn describe_response(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        let is_described = match &ctx.subject {
            // A page of the proxy's own is no object.
            Subject::Object => ctx.replaced.is_none(),
            Subject::List(_) => false,
            Subject::Relayed(_) => {
                response.remove_header(&CHECKSUM_MODE);
                // S3 itself describes its answer to a relayed request.
                ctx.caching.is_found(session)
            }
        };
        if response.status.is_success() && is_described {
            response.insert_header(header::ACCEPT_RANGES, "bytes")?;
            if let Some(route) = &ctx.route {
                self.guess_type(route, response)?;
                describe_as_asked(&route.request, response)?;
            }
        }
        let is_form = response.status.is_success() || response.status == StatusCode::NOT_MODIFIED;
        if let Some(negotiated) = ctx.negotiated.as_ref().filter(|_| is_form && is_described) {
            negotiated.describe(response)?;
        }
        ctx.admitted.describe(response)?;
        self.caching
            .response_filter(session, response, &mut ctx.caching)
    }
}

impl S3ProxyHttp {
    /// Replace a type that says nothing, if the website does.
    pub(super) fn guess_type(&self, route: &Route, response: &mut ResponseHeader) -> Result<()> {
        let website = route.site.website();
        let guesses = website.is_some_and(|website| website.guesses_types);
        match route.request.target.key() {
            // The type of a set of ranges is its own (RFC 9110 §14.6).
            Some(key) if guesses && !is_multipart(response) => {
                web::guess_type(key.as_str(), response)
            }
            _ => Ok(()),
        }
    }
}

fn is_multipart(response: &ResponseHeader) -> bool {
    let media_type = response.headers.get(header::CONTENT_TYPE);
    media_type.is_some_and(|media_type| media_type.as_bytes().starts_with(b"multipart/"))
}

/// Describe an object, or a part of one, as the client wants it.
pub(super) fn describe_as_asked(request: &S3Request, response: &mut ResponseHeader) -> Result<()> {
    // The checksum is that of the whole object.
    let is_range =
        response.status == StatusCode::PARTIAL_CONTENT && request.part_number().is_none();
    if !request.wants_checksums() || is_range {
        let is_checksum = |name: &&HeaderName| name.as_str().starts_with(CHECKSUM);
        let names: Vec<_> = response
            .headers
            .keys()
            .filter(is_checksum)
            .cloned()
            .collect();
        for name in names {
            response.remove_header(&name);
        }
    }
    for (name, value) in request.overrides() {
        response.insert_header(name.clone(), value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::http::heads_for_tests::{response, text};
    use crate::s3::Target;

    fn described(query: &str, fields: &[(&'static str, &'static str)], status: u16) -> String {
        let fields = fields.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let headers: HeaderMap = fields.collect();
        let target = Target::in_bucket("key").unwrap();
        let query = Some(query.as_bytes());
        let request = S3Request::read(&Method::GET, target, query, &headers).unwrap();
        let mut response = response(
            status,
            &[
                ("content-type", "text/plain"),
                ("x-amz-checksum-sha256", "a"),
                ("x-amz-checksum-type", "FULL_OBJECT"),
            ],
        );
        describe_as_asked(&request, &mut response).unwrap();
        text(&response)
    }

    #[test]
    fn overrides_take_the_place_of_the_fields_of_the_object() {
        for status in [200, 206] {
            assert_eq!(
                described(
                    "response-content-type=text%2Fhtml&response-content-disposition=attachment",
                    &[],
                    status
                ),
                "content-disposition: attachment, content-type: text/html"
            );
        }
    }

    #[test]
    fn checksums_are_those_of_what_is_sent() {
        let wanted = [("x-amz-checksum-mode", "ENABLED")];
        let all =
            "content-type: text/plain, x-amz-checksum-sha256: a, x-amz-checksum-type: FULL_OBJECT";
        let none = "content-type: text/plain";
        for (query, fields, status, expected) in [
            ("", &wanted[..], 200, all),
            ("", &wanted, 206, none),
            ("partNumber=1", &wanted, 206, all),
            ("", &[], 200, none),
            ("partNumber=1", &[], 206, none),
        ] {
            assert_eq!(
                described(query, fields, status),
                expected,
                "{query} {status}"
            );
        }
    }
}
