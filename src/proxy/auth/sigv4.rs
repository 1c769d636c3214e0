//! Clients that sign their requests as for S3.

use std::time::SystemTime;

use http::StatusCode;
use pingora_http::RequestHeader;

use super::{raw_parts, refused, Refused};
use crate::config;
use crate::proxy::cache_key::requested_query;
use crate::s3::verify::{Client, Incoming, Refusal, Verifier};
use crate::s3::{Credentials, KeyPrefixes, S3Error};

/// The clients of a bucket with `auth: sigv4`.
pub(super) struct Sigv4 {
    verifier: Verifier,
}

// === impl Sigv4 ===

impl Sigv4 {
    pub(super) fn new(bucket: &config::Bucket) -> Sigv4 {
        Sigv4 {
            verifier: Verifier::new(&bucket.region, bucket.clients.iter().map(client)),
        }
    }

    /// The client that has signed a request.
    pub(super) fn verify(&self, header: &RequestHeader) -> Result<&Client, Box<Refused>> {
        let (path, host) = raw_parts(header);
        let incoming = Incoming {
            method: header.method.as_str(),
            path: &path,
            query: requested_query(header),
            host,
            headers: &header.headers,
        };
        let verified = self.verifier.verify(&incoming, SystemTime::now());
        verified.map_err(|refusal| refused(refusal.reason.name(), error(refusal)))
    }
}

fn client(client: &config::Client) -> Client {
    let credentials = Credentials::new(
        client.access_key.expose(),
        client.secret_key.expose(),
        client
            .session_token
            .as_ref()
            .map(|token| token.expose().to_owned()),
        None,
        "configuration file",
    );
    let prefixes = match &client.key_prefixes[..] {
        [] => KeyPrefixes::ALL,
        prefixes => KeyPrefixes::only(prefixes.iter().map(|prefix| prefix.to_string())),
    };
    Client::new(credentials, prefixes)
}

fn error(refusal: Refusal) -> S3Error {
    S3Error {
        code: refusal.code,
        status: StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN),
        message: refusal.message,
    }
}
