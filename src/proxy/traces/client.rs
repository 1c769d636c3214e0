//! The HTTP client of the exporter.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

/// The longest body of an answer.
const MAX_ANSWER: usize = 64 * 1024;

/// A client that makes a connection for each request: there is at most one each second, unless
/// thousands of requests are traced.
#[derive(Debug)]
pub(super) struct Client(HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>);

// === impl Client ===

impl Client {
    /// A client for a collector, by TLS or without.
    ///
    /// # Errors
    /// TLS needs the certificates of the system, and they cannot be read. The error names the remedy.
    pub fn new(by_tls: bool) -> io::Result<Client> {
        let provider = Arc::new(ring::default_provider());
        let builder = HttpsConnectorBuilder::new();
        let builder = if by_tls {
            builder.with_provider_and_native_roots(provider).map_err(|e| {
                let remedy = "install the package ca-certificates, or name a file of them in SSL_CERT_FILE";
                io::Error::new(e.kind(), format!("{e}; {remedy}"))
            })?
        } else {
            let config = ClientConfig::builder_with_provider(provider);
            let config = config.with_safe_default_protocol_versions();
            let config = config.map_err(io::Error::other)?;
            // It is not used.
            let none = RootCertStore::empty();
            builder.with_tls_config(config.with_root_certificates(none).with_no_client_auth())
        };
        let connector = builder.https_or_http().enable_http1().build();
        let mut builder = HyperClient::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(0);
        Ok(Client(builder.build(connector)))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.0.request(request.map(Full::new)).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    }
}
