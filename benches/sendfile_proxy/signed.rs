//! Requests that are signed as for S3, and the configuration that accepts them.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    sign, PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use test_support::Bucket;

const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const REGION: &str = "us-east-1";

/// Let only the client ask.
pub fn protect(bucket: Bucket) -> Bucket {
    let client = format!("[{{access_key: {ACCESS_KEY}, secret_key: {SECRET_KEY}}}]");
    bucket
        .region(REGION)
        .set("auth", "sigv4")
        .set("clients", client)
}

/// The fields of a signed GET, which hold for a quarter of an hour.
pub fn fields(host: &str, path: &str) -> String {
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let identity: Identity = Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "bench").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(REGION)
        .name("s3")
        .time(SystemTime::now())
        .settings(settings)
        .build()
        .expect("parameters")
        .into();
    let host = [("host", host)];
    let uri = format!("http://{}{path}", host[0].1);
    let request = SignableRequest::new("GET", uri, host.into_iter(), SignableBody::Bytes(b""));
    let signed = sign(request.expect("a request"), &params).expect("a signature");
    let (instructions, _) = signed.into_parts();
    let fields = instructions.headers();
    fields
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect()
}
