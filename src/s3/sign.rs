//! AWS Signature Version 4 for the requests to an origin.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sigv4::http_request::{
    sign, PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;

use super::credentials::{NoCredentials, OriginCredentials, Refreshed};
use super::Bucket;

/// The signer of requests without a body (GET and HEAD), with a bucket's credentials.
pub struct Signer {
    credentials: Keys,
    region: String,
    /// The lead of the service's clock over this machine's, in seconds.
    skew: AtomicI64,
}

/// The smallest clock error that is corrected, in seconds. S3 accepts 15 minutes
/// ("RequestTimeTooSkewed", Amazon S3 API Reference).
const LEAST_SKEW: i64 = 10 * 60;

/// The largest clock error that is corrected, in seconds. With a larger difference, the service's
/// clock is more likely to be wrong.
const LARGEST_SKEW: i64 = 24 * 3600;

enum Keys {
    Fixed(Identity),
    Refreshed(Arc<Refreshed>),
}

/// The reason that a request cannot be signed.
#[derive(Debug)]
pub struct SignError(String);

// === impl Signer ===

impl Signer {
    /// The signer of a bucket; `None`: its requests are unsigned.
    pub fn from_bucket(bucket: &Bucket) -> Option<Signer> {
        let credentials = match bucket.credentials.clone()? {
            OriginCredentials::Keys(keys) => Keys::Fixed(keys.into()),
            OriginCredentials::Refreshed(refreshed) => Keys::Refreshed(refreshed),
        };
        Some(Signer {
            credentials,
            region: bucket.region.clone(),
            skew: AtomicI64::new(0),
        })
    }

    /// Waits for credentials, for a bounded time. Fixed keys are always there.
    ///
    /// # Errors
    /// The reason that there are none.
    pub async fn ready(&self) -> Result<(), NoCredentials> {
        match &self.credentials {
            Keys::Fixed(_) => Ok(()),
            Keys::Refreshed(refreshed) => refreshed.wait().await,
        }
    }

    /// Adjusts the time of signatures to the date of a service that has refused one. Returns the
    /// lead of the service's clock in seconds if the adjustment changed.
    pub fn learn_clock(&self, date: SystemTime, now: SystemTime) -> Option<i64> {
        let ahead = match date.duration_since(now) {
            Ok(ahead) => i64::try_from(ahead.as_secs()).ok()?,
            Err(behind) => -i64::try_from(behind.duration().as_secs()).ok()?,
        };
        let known = self.skew.load(Ordering::Relaxed);
        let is_news = (ahead - known).abs() >= LEAST_SKEW && ahead.abs() <= LARGEST_SKEW;
        if is_news {
            self.skew.store(ahead, Ordering::Relaxed);
        }
        is_news.then_some(ahead)
    }

    /// Adopts what another signer knows of the clock of the same service.
    pub fn adopt_clock(&self, other: &Signer) {
        let skew = other.skew.load(Ordering::Relaxed);
        self.skew.store(skew, Ordering::Relaxed);
    }

    /// The time by the service's clock.
    fn service_time(&self, now: SystemTime) -> SystemTime {
        let skew = self.skew.load(Ordering::Relaxed);
        let by = Duration::from_secs(skew.unsigned_abs());
        let corrected = match skew >= 0 {
            true => now.checked_add(by),
            false => now.checked_sub(by),
        };
        corrected.unwrap_or(now)
    }

    /// The credentials, if they are looked up in the background.
    pub fn refreshed(&self) -> Option<&Arc<Refreshed>> {
        match &self.credentials {
            Keys::Fixed(_) => None,
            Keys::Refreshed(refreshed) => Some(refreshed),
        }
    }

    /// The fields that sign a request: `authorization`, `x-amz-date`, `x-amz-content-sha256` and,
    /// with a session token, `x-amz-security-token`; names in lower case.
    ///
    /// `host` is the value of `Host`, `target` the encoded path with its query, and `headers` are
    /// the other fields to sign. A field that an intermediary may change must not be among them. All
    /// must be sent exactly as given.
    ///
    /// Source: "Signature Calculations for the Authorization Header", Amazon S3 API Reference. Unlike
    /// other services, S3 signs the path encoded once and not normalized, so that `a//b` and `a/b`
    /// are two objects.
    ///
    /// # Errors
    /// The parts do not form an HTTP request, or there are no valid credentials.
    pub fn sign(
        &self,
        method: &str,
        host: &str,
        target: &str,
        headers: &[(&str, &str)],
        now: SystemTime,
    ) -> Result<Vec<(String, String)>, SignError> {
        if !target.starts_with('/') {
            return Err(SignError("the request target is not a path".to_owned()));
        }
        let identity = match &self.credentials {
            Keys::Fixed(identity) => identity.clone(),
            Keys::Refreshed(refreshed) => refreshed
                .identity(SystemTime::now())
                .ok_or_else(|| SignError("there are no valid credentials".to_owned()))?,
        };
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;

        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(self.service_time(now))
            .settings(settings)
            .build()
            .map_err(SignError::from_display)?
            .into();
        // As a field, the host is signed as it is sent. Derived from the URI, it would depend on
        // the default port.
        let signed = std::iter::once(("host", host)).chain(headers.iter().copied());
        let request = SignableRequest::new(
            method,
            format!("https://{host}{target}"),
            signed,
            SignableBody::Bytes(&[]),
        )
        .map_err(SignError::from_display)?;
        let (instructions, _signature) = sign(request, &params)
            .map_err(SignError::from_display)?
            .into_parts();
        Ok(instructions
            .headers()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

// === impl SignError ===

impl SignError {
    // The crates of the SDK keep the cause in `source()`; all of it goes into one line.
    fn from_display(error: impl std::error::Error) -> SignError {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        SignError(message)
    }
}

impl fmt::Display for SignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request to the origin cannot be signed: {}", self.0)
    }
}

impl std::error::Error for SignError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::{ConnectionOptions, Credentials, ObjectKey};
    use std::time::UNIX_EPOCH;

    const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn bucket() -> Bucket {
        Bucket {
            path_prefix: Some("/".to_owned()),
            hosts: Vec::new(),
            name: "examplebucket".to_owned(),
            key_prefix: String::new(),
            principal: None,
            region: "us-east-1".to_owned(),
            endpoint: None,
            credentials: Some(credentials(None).into()),
            passthrough: false,
            connection: ConnectionOptions::default(),
        }
    }

    fn credentials(session_token: Option<&str>) -> Credentials {
        Credentials::new(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            session_token.map(str::to_owned),
            None,
            "test",
        )
    }

    /// 20130524T000000Z, the date of the published example.
    fn example_date() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_369_353_600)
    }

    fn value<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
        headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .unwrap_or_else(|| panic!("no {name} in {headers:?}"))
    }

    fn sign_path(target: &str) -> String {
        let signer = Signer::from_bucket(&bucket()).unwrap();
        let headers = signer
            .sign(
                "GET",
                "examplebucket.s3.amazonaws.com",
                target,
                &[],
                example_date(),
            )
            .unwrap();
        value(&headers, "authorization").to_owned()
    }

    #[test]
    fn the_published_get_object_example_is_reproduced() {
        let signer = Signer::from_bucket(&bucket()).unwrap();
        let headers = signer
            .sign(
                "GET",
                "examplebucket.s3.amazonaws.com",
                "/test.txt",
                &[("range", "bytes=0-9")],
                example_date(),
            )
            .unwrap();
        assert_eq!(
            value(&headers, "authorization"),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(value(&headers, "x-amz-date"), "20130524T000000Z");
        assert_eq!(value(&headers, "x-amz-content-sha256"), EMPTY_SHA256);
        assert_eq!(headers.len(), 3);
    }

    // Each expected signature was computed from the canonical request of the
    // S3 API Reference with Python's hmac and hashlib, not with this code.
    #[test]
    fn a_path_is_signed_as_it_is_sent() {
        for (key, signature) in [
            (
                "a b",
                "148958ace6e83bc7d9893e7fb92c63d466140bd5acf2a0722d6fea26964f5651",
            ),
            (
                "a+b",
                "7523a42446ee9a64714e5f5dd7b1170963c0ad092ceaf8e589232dbc7873cc91",
            ),
            (
                "100%",
                "1f0e407b0e0dbb1c03529a298ba038b5929c764bee828f8e7b2e6221e66cc78f",
            ),
            (
                "grüße/📦",
                "d6fb29b85eda7aff05ff37f211321ea2287592777a9c98a6936c468a31cbf0f7",
            ),
            (
                "a//b/",
                "3189262023d09307c0820a4a0110caedeee02dd2adcfcb1c32eb4d34bf725b50",
            ),
        ] {
            let encoded = encode(key);
            let authorization = sign_path(&format!("/{encoded}"));
            assert!(
                authorization.ends_with(&format!("Signature={signature}")),
                "{key}: {authorization}"
            );
        }
    }

    fn encode(key: &str) -> String {
        ObjectKey::from_request_path(&key.replace('%', "%25"))
            .unwrap()
            .encoded()
            .into_owned()
    }

    #[test]
    fn a_session_token_is_sent_and_signed() {
        let signer = Signer::from_bucket(&Bucket {
            credentials: Some(credentials(Some("token+/=")).into()),
            passthrough: false,
            ..bucket()
        })
        .unwrap();
        let headers = signer.sign("HEAD", "h", "/k", &[], example_date()).unwrap();
        assert_eq!(value(&headers, "x-amz-security-token"), "token+/=");
        assert!(value(&headers, "authorization")
            .contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token"));
    }

    #[test]
    fn method_host_and_range_are_under_the_signature() {
        let signer = Signer::from_bucket(&bucket()).unwrap();
        let signature = |method: &str, host: &str, range: &str| {
            let headers = signer
                .sign(method, host, "/k", &[("range", range)], example_date())
                .unwrap();
            value(&headers, "authorization").to_owned()
        };
        let first = signature("GET", "h:9000", "bytes=0-1");
        assert_ne!(first, signature("HEAD", "h:9000", "bytes=0-1"));
        assert_ne!(first, signature("GET", "h:9001", "bytes=0-1"));
        assert_ne!(first, signature("GET", "h:9000", "bytes=0-2"));
    }

    #[test]
    fn signatures_have_the_date_of_the_service() {
        let signer = Signer::from_bucket(&bucket()).unwrap();
        let now = example_date();
        let dated = || {
            let headers = signer.sign("GET", "h", "/k", &[], now).unwrap();
            value(&headers, "x-amz-date").to_owned()
        };
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        // A lead that S3 accepts, and a date that is not plausible.
        for date in [
            now,
            now + Duration::from_secs(300),
            now - Duration::from_secs(300),
            now + hours(25),
            UNIX_EPOCH,
        ] {
            assert_eq!(signer.learn_clock(date, now), None);
            assert_eq!(dated(), "20130524T000000Z");
        }
        assert_eq!(signer.learn_clock(now + hours(2), now), Some(7200));
        assert_eq!(dated(), "20130524T020000Z");
        // It is known now.
        assert_eq!(signer.learn_clock(now + hours(2), now), None);
        assert_eq!(signer.learn_clock(now - hours(1), now), Some(-3600));
        assert_eq!(dated(), "20130523T230000Z");
        // The clock has been set.
        assert_eq!(signer.learn_clock(now, now), Some(0));
        assert_eq!(dated(), "20130524T000000Z");
    }

    #[test]
    fn a_bucket_without_keys_has_no_signer() {
        assert!(Signer::from_bucket(&Bucket {
            credentials: None,
            ..bucket()
        })
        .is_none());
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        let signer = Signer::from_bucket(&bucket()).unwrap();
        for (host, target, headers) in [
            ("h", "no-slash", &[] as &[(&str, &str)]),
            ("h h", "/k", &[]),
            ("", "/k", &[]),
            ("h", "/a b", &[]),
            ("h", "/k", &[("bad name", "v")]),
            ("h", "/k", &[("x", "a\r\nb")]),
        ] {
            let result = signer.sign("GET", host, target, headers, example_date());
            assert!(result.is_err(), "{host:?} {target:?} {headers:?}");
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let debug = format!("{:?} {:?}", Signer::from_bucket(&bucket()), bucket());
        assert!(!debug.contains("wJalr"), "{debug}");
    }
}
