//! Signatures of AWS's published examples, of aws-sigv4, and invalid ones.

use std::time::{Duration, UNIX_EPOCH};

use aws_sigv4::http_request::{
    sign, PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest,
    SignatureLocation, SigningSettings, UriPathNormalizationMode,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use http::{HeaderName, HeaderValue};

use super::*;

const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const REGION: &str = "us-east-1";
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// 20130524T000000Z, the date of the published examples, after [`UNIX_EPOCH`].
const EXAMPLE: Duration = Duration::from_secs(1_369_353_600);

fn now() -> SystemTime {
    UNIX_EPOCH + EXAMPLE
}

/// A request that a test may change.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: Vec<u8>,
    query: Option<Vec<u8>>,
    authority: Option<String>,
    headers: HeaderMap,
}

// === impl Request ===

impl Request {
    /// A GET of a target, without a signature.
    fn get(target: &str) -> Request {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.into())),
            None => (target, None),
        };
        Request {
            method: "GET".into(),
            path: path.into(),
            query,
            authority: None,
            headers: HeaderMap::new(),
        }
        .with("host", "examplebucket.s3.amazonaws.com")
    }

    fn with(mut self, name: &str, value: &str) -> Request {
        self.add(name, value);
        self
    }

    fn add(&mut self, name: &str, value: &str) {
        let value = HeaderValue::from_bytes(value.as_bytes()).expect(value);
        self.headers
            .append(HeaderName::from_bytes(name.as_bytes()).expect(name), value);
    }

    /// The request with this header in place of those of its name.
    fn replaced(&self, name: &'static str, value: &str) -> Request {
        let mut request = self.clone();
        request.headers.remove(name);
        request.with(name, value)
    }

    fn without(&self, name: &str) -> Request {
        let mut request = self.clone();
        request.headers.remove(name).expect(name);
        request
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().expect(name)
    }

    fn query(&self) -> String {
        String::from_utf8(self.query.clone().unwrap_or_default()).expect("UTF-8")
    }

    /// The request with `from` replaced by `to` in its query.
    fn query_with(&self, from: &str, to: &str) -> Request {
        let query = self.query();
        assert!(query.contains(from), "{from} in {query}");
        let query = Some(query.replace(from, to).into());
        Request {
            query,
            ..self.clone()
        }
    }

    fn authorization_with(&self, from: &str, to: &str) -> Request {
        let authorization = self.header("authorization");
        assert!(authorization.contains(from), "{from} in {authorization}");
        self.replaced("authorization", &authorization.replace(from, to))
    }

    /// The request, signed by aws-sigv4 with all headers.
    fn signed(&self, by: &Signer) -> Request {
        let path = String::from_utf8(self.path.clone()).expect("UTF-8");
        let target = match &self.query {
            Some(_) => format!("{path}?{}", self.query()),
            None => path,
        };
        let host = match &self.authority {
            Some(authority) => authority,
            None => self.header("host"),
        };
        let mut headers: Vec<_> = self
            .headers
            .iter()
            .filter(|(name, _)| *name != "host")
            .map(|(name, value)| {
                (
                    name.as_str(),
                    std::str::from_utf8(value.as_bytes()).unwrap(),
                )
            })
            .collect();
        headers.push(("host", host));
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        if let Some(expires) = by.expires {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(expires);
        }
        let identity: Identity = by.credentials().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(by.region)
            .name(by.service)
            .time(UNIX_EPOCH + by.time)
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let body = match by.payload {
            Some(payload) => SignableBody::Precomputed(payload.to_owned()),
            None => SignableBody::Bytes(b""),
        };
        let uri = format!("http://{host}{target}");
        let signable =
            SignableRequest::new(&self.method, uri, headers.into_iter(), body).expect(&target);
        let (instructions, _) = sign(signable, &params).unwrap().into_parts();
        let mut signed = self.clone();
        for (name, value) in instructions.headers() {
            signed.headers.remove(name);
            signed.add(name, value);
        }
        for (name, value) in instructions.params() {
            let encoded = percent_encoded(value);
            let query = match signed.query() {
                query if query.is_empty() => format!("{name}={encoded}"),
                query => format!("{query}&{name}={encoded}"),
            };
            signed.query = Some(query.into());
        }
        signed
    }

    fn incoming(&self) -> Incoming<'_> {
        Incoming {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            host: self.authority.as_deref().map(str::as_bytes),
            headers: &self.headers,
        }
    }

    /// The access key of the client, or the code of the refusal.
    fn verified_at(&self, now: SystemTime) -> Result<String, &'static str> {
        let verifier = verifier();
        match verifier.verify(&self.incoming(), now) {
            Ok(client) => Ok(client.access_key().to_owned()),
            Err(refusal) => Err(refusal.code),
        }
    }

    fn verified(&self) -> Result<String, &'static str> {
        self.verified_at(now())
    }

    #[track_caller]
    fn is_accepted(&self) {
        assert_eq!(self.verified(), Ok(ACCESS_KEY.to_owned()), "{self:?}");
    }

    #[track_caller]
    fn is_refused(&self, code: &str, what: &str) {
        assert_eq!(self.verified(), Err(code), "{what}: {self:?}");
    }

    fn refusal(&self) -> Refusal {
        verifier().verify(&self.incoming(), now()).unwrap_err()
    }
}

/// The ways to sign.
#[derive(Clone, Copy)]
struct Signer {
    access_key: &'static str,
    secret_key: &'static str,
    token: Option<&'static str>,
    region: &'static str,
    service: &'static str,
    /// After [`UNIX_EPOCH`].
    time: Duration,
    /// Presigned, with this lifetime.
    expires: Option<Duration>,
    payload: Option<&'static str>,
}

const HEADER: Signer = Signer {
    access_key: ACCESS_KEY,
    secret_key: SECRET_KEY,
    token: None,
    region: REGION,
    service: SERVICE,
    time: EXAMPLE,
    expires: None,
    payload: None,
};

const PRESIGNED: Signer = Signer {
    expires: Some(Duration::from_secs(3600)),
    payload: Some("UNSIGNED-PAYLOAD"),
    ..HEADER
};

impl Signer {
    fn credentials(&self) -> Credentials {
        let token = self.token.map(str::to_owned);
        Credentials::new(self.access_key, self.secret_key, token, None, "test")
    }
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = Vec::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte)
            }
            byte => encoded.extend(format!("%{byte:02X}").bytes()),
        }
    }
    String::from_utf8(encoded).unwrap()
}

/// A client without a session token, and one with.
fn verifier() -> Verifier {
    let temporary = Credentials::new("ASIATEMPORARY", "other", Some("to/k+n=".into()), None, "t");
    let plain = Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test");
    Verifier::new(
        REGION,
        [plain, temporary].map(|keys| Client::new(keys, KeyPrefixes::ALL)),
    )
}

const TEMPORARY: Signer = Signer {
    access_key: "ASIATEMPORARY",
    secret_key: "other",
    token: Some("to/k+n="),
    ..HEADER
};

// Source: the examples of "Signature Calculations for the Authorization Header" and
// "Authenticating Requests: Using Query Parameters", Amazon S3 API Reference.
#[test]
fn the_published_examples_are_accepted() {
    for (target, range, names, signature) in [
        (
            "/test.txt",
            Some("bytes=0-9"),
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "/?lifecycle",
            None,
            "host;x-amz-content-sha256;x-amz-date",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            "/?max-keys=2&prefix=J",
            None,
            "host;x-amz-content-sha256;x-amz-date",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ] {
        let mut request = Request::get(target)
            .with("x-amz-date", "20130524T000000Z")
            .with("x-amz-content-sha256", EMPTY_SHA256)
            .with(
                "authorization",
                &format!(
                    "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20130524/us-east-1/s3/aws4_request,\
                     SignedHeaders={names},Signature={signature}"
                ),
            );
        if let Some(range) = range {
            request.add("range", range);
        }
        request.is_accepted();
    }
    Request::get(
        "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
         &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
         &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
         &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
    )
    .is_accepted();
}

#[test]
fn what_aws_sigv4_signs_is_accepted() {
    let targets = [
        "/",
        "/bucket/key",
        "/bucket/a%20b/c%2Bd/%C3%A9~_-.",
        "/bucket//a//",
        "/bucket/a/../b/./c",
        "/bucket/a'(b)*!$&,:;=@",
        "/bucket/%2F%25",
        "/bucket/key?x-id=GetObject",
        "/bucket/key?x-id=GetObject&versionId=a%2Fb%3D",
        "/bucket/?list-type=2&prefix=a%20b&delimiter=%2F&encoding-type=url",
        "/bucket/?list-type=2&prefix=a+b",
        "/bucket/?prefix=%c3%a9&a=b=c&&uploads&b=",
        "/bucket/?b=2&a=2&a=1&a-=0&A=3",
        "/bucket/?prefix=a/b:c",
    ];
    for target in targets {
        for signer in [HEADER, PRESIGNED, TEMPORARY] {
            for method in ["GET", "HEAD"] {
                let mut request = Request::get(target);
                request.method = method.into();
                let signed = request.signed(&signer);
                assert_eq!(
                    signed.verified().as_deref(),
                    Ok(signer.access_key),
                    "{signed:?}"
                );
            }
        }
    }
}

#[test]
fn values_are_signed_without_their_spaces() {
    for signer in [HEADER, PRESIGNED] {
        for values in [
            &["  a   b  "][..],
            &["a", " b  c "],
            &[""],
            &["a, b"],
            &["é"],
        ] {
            let mut request = Request::get("/key");
            for value in values {
                request.add("x-amz-meta-a", value);
                request.add("range", value);
            }
            request.signed(&signer).is_accepted();
        }
    }
}

#[test]
fn the_host_is_what_the_request_names() {
    for signer in [HEADER, PRESIGNED] {
        for host in ["h", "h:9000", "127.0.0.1:80", "[::1]:8443"] {
            let request = Request::get("/key").replaced("host", host);
            let signed = request.signed(&signer);
            signed.is_accepted();
            signed
                .replaced("host", "other")
                .is_refused("SignatureDoesNotMatch", "host");
            // HTTP/2
            let mut request = request.without("host");
            request.is_refused("InvalidRequest", "no host");
            request.authority = Some(host.to_owned());
            let signed = request.signed(&signer);
            signed.is_accepted();
            let mut other = signed.clone();
            other.authority = Some("other".to_owned());
            other.is_refused("SignatureDoesNotMatch", "authority");
            let twice = request.with("host", host).with("host", host);
            twice.signed(&signer).is_refused("InvalidRequest", "twice");
        }
    }
}

#[test]
fn a_target_may_be_signed_as_it_is_sent_or_as_it_is_encoded() {
    // aws-sigv4 leaves the path as it is, and decodes and encodes the query.
    let encoded = Request::get("/a%2Bb%27%C3%A9?prefix=a%20b").signed(&HEADER);
    for (path, query) in [
        ("/a+b'%c3%a9", "prefix=a+b"),
        ("/a%2bb%27%C3%A9", "prefix=a%20b"),
        ("/%61%2Bb'é", "pre%66ix=a+b"),
    ] {
        let sent = Request {
            path: path.into(),
            query: Some(query.into()),
            ..encoded.clone()
        };
        sent.is_accepted();
    }
    Request::get("/a+b'%c3%a9").signed(&HEADER).is_accepted();
    for other in [
        "/a%20b%27%C3%A9",
        "/a%252Bb%27%C3%A9",
        "/a%2Bb%27%C3%A8",
        "/a%2Bb%27%C3%A9/",
    ] {
        let sent = Request {
            path: other.into(),
            ..encoded.clone()
        };
        sent.is_refused("SignatureDoesNotMatch", other);
    }
    // botocore signs the query as it is sent, in order.
    let request = Request::get("/k?prefix=a/b&a=%c3%a9").signed(&HEADER);
    let signature = sign_text(
        &request,
        "GET\n/k\na=%c3%a9&prefix=a/b\nhost:examplebucket.s3.amazonaws.com\n\
         x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\
         x-amz-date:20130524T000000Z\n\nhost;x-amz-content-sha256;x-amz-date\n\
         e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    );
    assert_ne!(signature, request);
    request.replaced("authorization", &signature).is_accepted();
}

/// The `Authorization` of a request with the signature of this canonical request.
fn sign_text(request: &Request, canonical: &str) -> String {
    let hash = String::from_utf8(hex_digits(&Sha256::digest(canonical)).to_vec()).unwrap();
    let text =
        format!("AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n{hash}");
    let key = generate_signing_key(SECRET_KEY, now(), REGION, SERVICE);
    let signature = v4::calculate_signature(key, text.as_bytes());
    let authorization = request.header("authorization");
    let at = authorization.find("Signature=").unwrap() + "Signature=".len();
    format!("{}{signature}", &authorization[..at])
}

impl PartialEq<Request> for String {
    fn eq(&self, request: &Request) -> bool {
        self == request.header("authorization")
    }
}

#[test]
fn the_tampered_is_refused() {
    const MISMATCH: &str = "SignatureDoesNotMatch";
    let request = Request::get("/bucket/key?versionId=1").with("range", "bytes=0-9");
    for signer in [HEADER, PRESIGNED] {
        let signed = request.signed(&signer);
        signed.is_accepted();
        let tampered = |change: &dyn Fn(&mut Request)| {
            let mut request = signed.clone();
            change(&mut request);
            request
        };
        tampered(&|r| r.method = "HEAD".into()).is_refused(MISMATCH, "method");
        tampered(&|r| r.path.push(b'2')).is_refused(MISMATCH, "path");
        signed
            .query_with("versionId=1", "versionId=2")
            .is_refused(MISMATCH, "value");
        signed
            .query_with("versionId", "versionid")
            .is_refused(MISMATCH, "name");
        signed
            .query_with("versionId=1", "acl")
            .is_refused(MISMATCH, "sub-resource");
        signed
            .query_with("versionId=1", "versionId=1&acl")
            .is_refused(MISMATCH, "more");
        signed
            .replaced("range", "bytes=0-8")
            .is_refused(MISMATCH, "range");
        signed.without("range").is_refused(MISMATCH, "no range");
        signed
            .clone()
            .with("range", "bytes=0-1")
            .is_refused(MISMATCH, "two ranges");
        // An empty parameter has no meaning.
        signed
            .query_with("versionId=1", "&versionId=1&")
            .is_accepted();
        // Fields that need not be signed.
        signed.clone().with("user-agent", "x").is_accepted();
    }
    let wrong = |signer: Signer| Signer {
        secret_key: "wrong",
        ..signer
    };
    request
        .signed(&wrong(HEADER))
        .is_refused(MISMATCH, "secret");
    request
        .signed(&wrong(PRESIGNED))
        .is_refused(MISMATCH, "secret");
}

#[test]
fn each_element_of_a_presigned_url_counts() {
    let signed = Request::get("/bucket/key").signed(&PRESIGNED);
    let elements: Vec<_> = signed.query().split('&').map(str::to_owned).collect();
    assert_eq!(elements.len(), 6);
    for element in &elements {
        let (name, value) = element.split_once('=').unwrap();
        let without = elements.iter().filter(|other| *other != element);
        let without: Vec<_> = without.cloned().collect();
        let stripped = Request {
            query: Some(without.join("&").into()),
            ..signed.clone()
        };
        stripped.is_refused("AuthorizationQueryParametersError", name);
        let twice = signed.query_with(element, &format!("{element}&{element}"));
        twice.is_refused("AuthorizationQueryParametersError", name);
        let lower = signed.query_with(name, &name.to_lowercase());
        lower.is_refused("AuthorizationQueryParametersError", name);
        // Each character in turn.
        for at in 0..value.len() {
            let mut changed = value.as_bytes().to_vec();
            changed[at] = match changed[at] {
                b'1' => b'2',
                _ => b'1',
            };
            let changed = format!("{name}={}", String::from_utf8(changed).unwrap());
            let changed = signed.query_with(element, &changed);
            assert!(changed.verified().is_err(), "{changed:?}");
        }
    }
    let none = Request {
        query: None,
        ..signed
    };
    none.is_refused("AccessDenied", "no query");
}

#[test]
fn each_element_of_the_header_counts() {
    const MALFORMED: &str = "AuthorizationHeaderMalformed";
    let signed = Request::get("/bucket/key").signed(&HEADER);
    for (from, to, code) in [
        ("Credential=", "credential=", MALFORMED),
        ("Credential=", "Credential", MALFORMED),
        ("Credential=", "Credential=,Credential=", MALFORMED),
        ("Credential=AKIAIOSFODNN7EXAMPLE/", "Credential=", MALFORMED),
        (
            "Credential=AKIAIOSFODNN7EXAMPLE/",
            "Credential=/",
            MALFORMED,
        ),
        ("/20130524/", "/20130525/", MALFORMED),
        ("/us-east-1/", "/us-east-2/", MALFORMED),
        ("/s3/", "/sts/", MALFORMED),
        ("/aws4_request", "/aws5_request", MALFORMED),
        ("SignedHeaders=", "SignedHeaders=;", MALFORMED),
        ("host;", "Host;", MALFORMED),
        ("host;", "host;host;", MALFORMED),
        (
            "host;x-amz-content-sha256",
            "x-amz-content-sha256;host",
            MALFORMED,
        ),
        ("host;", "", "AccessDenied"),
        (";x-amz-date", "", "AccessDenied"),
        (";x-amz-date", ";x-amz-data", "SignatureDoesNotMatch"),
        ("Signature=", "Signature=0", "SignatureDoesNotMatch"),
        ("Signature=", "Signature=,", MALFORMED),
        ("Signature=", "signature=", MALFORMED),
        (", Signature=", ", x=y, Signature=", MALFORMED),
        ("EXAMPLE/", "EXAMPLF/", "InvalidAccessKeyId"),
        ("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256", "InvalidArgument"),
        ("AWS4-HMAC-SHA256 ", "aws4-hmac-sha256 ", "InvalidArgument"),
        (
            "AWS4-HMAC-SHA256 ",
            "AWS4-ECDSA-P256-SHA256 ",
            "InvalidRequest",
        ),
        ("AWS4-HMAC-SHA256 ", "AWS ", "InvalidRequest"),
        ("AWS4-HMAC-SHA256 ", "Bearer ", "InvalidArgument"),
    ] {
        signed.authorization_with(from, to).is_refused(code, to);
    }
    for (from, to) in [(", ", ","), (", ", "  ,  "), ("256 ", "256   ")] {
        signed.authorization_with(from, to).is_accepted();
    }
    let upper = signed.header("authorization").rsplit_once('=').unwrap();
    let upper = format!("{}={}", upper.0, upper.1.to_uppercase());
    signed
        .replaced("authorization", &upper)
        .is_refused("SignatureDoesNotMatch", "upper");
    signed
        .without("authorization")
        .is_refused("AccessDenied", "stripped");
    let twice = signed
        .clone()
        .with("authorization", signed.header("authorization"));
    twice.is_refused("InvalidArgument", "twice");
    for name in ["x-amz-date", "x-amz-content-sha256"] {
        let twice = signed.clone().with(name, signed.header(name));
        twice.is_refused(MALFORMED, name);
    }
    signed
        .without("x-amz-date")
        .is_refused("AccessDenied", "no date");
    signed
        .without("x-amz-content-sha256")
        .is_refused("InvalidRequest", "no hash");
}

#[test]
fn a_wrong_region_is_told_the_right_one() {
    let other = |signer: Signer| Signer {
        region: "eu-west-1",
        ..signer
    };
    for signer in [HEADER, PRESIGNED] {
        let refusal = Request::get("/key").signed(&other(signer)).refusal();
        assert_eq!((refusal.status, refusal.reason), (400, Reason::Scope));
        assert!(
            refusal.message.ends_with("expecting 'us-east-1'"),
            "{refusal}"
        );
    }
}

#[test]
fn a_request_has_one_signature() {
    let both = Request::get("/key").signed(&PRESIGNED).signed(&HEADER);
    both.is_refused("InvalidArgument", "both");
    for query in [
        "X-Amz-Signature=0",
        "X-Amz-Algorithm=x",
        "X-Amz-Credential",
        "AWSAccessKeyId=a",
    ] {
        let request = Request::get(&format!("/key?{query}"));
        request.signed(&HEADER).is_refused("InvalidArgument", query);
    }
    let version_2 = "AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Expires=1369357200&Signature=abc%3D";
    let request = Request::get(&format!("/key?{version_2}"));
    request.is_refused("InvalidRequest", "version 2");
    let version_4a = Request::get("/key").signed(&PRESIGNED);
    let version_4a = version_4a.query_with("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256");
    assert_eq!(version_4a.refusal(), Refusal::VERSION_4A);
}

#[test]
fn clocks_may_differ_by_a_quarter_of_an_hour() {
    let signed = Request::get("/key").signed(&HEADER);
    let quarter = Duration::from_secs(900);
    let second = Duration::from_secs(1);
    for now in [now() + quarter, now() - quarter] {
        assert!(signed.verified_at(now).is_ok());
    }
    for now in [now() + quarter + second, now() - quarter - second] {
        assert_eq!(signed.verified_at(now), Err("RequestTimeTooSkewed"));
    }
    assert_eq!(signed.verified_at(UNIX_EPOCH), Err("RequestTimeTooSkewed"));
}

#[test]
fn a_presigned_url_lives_as_long_as_it_says() {
    let week = Duration::from_secs(7 * 86400);
    let second = Duration::from_secs(1);
    for life in [second, Duration::from_secs(3600), week] {
        let signed = Request::get("/key").signed(&Signer {
            expires: Some(life),
            ..PRESIGNED
        });
        for now in [now(), now() + life, now() - Duration::from_secs(900)] {
            assert!(signed.verified_at(now).is_ok(), "{life:?}");
        }
        let refused = |now| {
            verifier()
                .verify(&signed.incoming(), now)
                .map(drop)
                .unwrap_err()
        };
        assert_eq!(refused(now() + life + second), Refusal::EXPIRED);
        assert_eq!(refused(now() - Duration::from_secs(901)), Refusal::NOT_YET);
    }
    let signed = Request::get("/key").signed(&PRESIGNED);
    for expires in [
        "0",
        "604801",
        "-1",
        "-0",
        "",
        "1h",
        "+60",
        "99999999999999999999999",
        "6%30x",
    ] {
        let request = signed.query_with("X-Amz-Expires=3600", &format!("X-Amz-Expires={expires}"));
        request.is_refused("AuthorizationQueryParametersError", expires);
    }
}

#[test]
fn the_date_may_come_in_another_header() {
    let date = "Fri, 24 May 2013 00:00:00 GMT";
    let names = "host;x-amz-content-sha256";
    let request = Request::get("/k")
        .with("date", date)
        .with("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        .with(
            "authorization",
            &format!(
                "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20130524/us-east-1/s3/aws4_request,\
                 SignedHeaders={names},Signature="
            ),
        );
    let canonical = format!(
        "GET\n/k\n\nhost:examplebucket.s3.amazonaws.com\n\
         x-amz-content-sha256:UNSIGNED-PAYLOAD\n\n{names}\nUNSIGNED-PAYLOAD"
    );
    let signed = request.replaced("authorization", &sign_text(&request, &canonical));
    signed.is_accepted();
    signed
        .replaced("date", "Fri, 24 May 2013 00:00:01 GMT")
        .is_refused("SignatureDoesNotMatch", "another date");
    signed
        .replaced("date", "yesterday")
        .is_refused("AccessDenied", "no date");
    let old = signed.replaced("date", "Thu, 23 May 2013 00:00:00 GMT");
    old.is_refused("AuthorizationHeaderMalformed", "another day");
}

#[test]
fn amazons_headers_are_signed() {
    for signer in [HEADER, PRESIGNED] {
        let signed = Request::get("/key").signed(&signer);
        for name in [
            "x-amz-request-payer",
            "x-amz-meta-a",
            "x-amz-security-token",
            "x-amz-acl",
        ] {
            let refusal = signed.clone().with(name, "x").refusal();
            assert_eq!(refusal, Refusal::UNSIGNED_HEADER, "{name}");
            Request::get("/key")
                .with(name, "x")
                .signed(&signer)
                .is_accepted();
        }
        for name in [
            "x-amzn-trace-id",
            "accept",
            "cache-control",
            "if-none-match",
        ] {
            signed.clone().with(name, "x").is_accepted();
        }
    }
    // Clients that presign leave them to the users of the URL.
    let checksum = Request::get("/key")
        .signed(&PRESIGNED)
        .with("x-amz-checksum-mode", "ENABLED");
    checksum.is_accepted();
    let checksum = Request::get("/key")
        .signed(&HEADER)
        .with("x-amz-checksum-mode", "ENABLED");
    checksum.is_refused("AccessDenied", "not presigned");
}

#[test]
fn as_many_headers_are_signed_as_a_request_may_have() {
    for signer in [HEADER, PRESIGNED] {
        let mut request = Request::get("/key");
        for number in (0..240).rev() {
            request.add(&format!("x-amz-meta-{number:03}"), "x");
        }
        request.add("x-amz-meta-007", "y");
        let signed = request.signed(&signer);
        signed.is_accepted();
        let missing = signed.without("x-amz-meta-100");
        assert_eq!(missing.refusal(), Refusal::MISMATCH);
        let swapped = signed
            .replaced("x-amz-meta-007", "y")
            .with("x-amz-meta-007", "x");
        assert_eq!(swapped.refusal(), Refusal::MISMATCH);
        let again = signed.clone().with("x-amz-meta-100", "x");
        assert_eq!(again.refusal(), Refusal::MISMATCH);
        let more = signed.with("x-amz-meta-0", "x");
        assert_eq!(more.refusal(), Refusal::UNSIGNED_HEADER);
    }
}

#[test]
fn the_hash_is_that_of_no_body() {
    for (payload, code) in [
        (EMPTY_SHA256, None),
        ("UNSIGNED-PAYLOAD", None),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", None),
        ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", None),
        (
            "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            Some("XAmzContentSHA256Mismatch"),
        ),
        ("STREAMING-OTHER", Some("InvalidArgument")),
        ("", Some("InvalidArgument")),
    ] {
        let signed = Request::get("/key").signed(&Signer {
            payload: Some(payload),
            ..HEADER
        });
        assert_eq!(signed.verified().err(), code, "{payload}");
    }
    let mut upload = Request::get("/key");
    upload.method = "PUT".into();
    let hash = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    let signer = Signer {
        payload: Some(hash),
        ..HEADER
    };
    upload.signed(&signer).is_accepted();
    // Presigned with a hash of its own, in the query or in a header.
    let signer = Signer {
        payload: Some(EMPTY_SHA256),
        ..PRESIGNED
    };
    let hash = format!("X-Amz-Content-Sha256={EMPTY_SHA256}");
    let in_query = Request::get(&format!("/key?{hash}")).signed(&signer);
    in_query.is_accepted();
    in_query
        .query_with(&hash, "a=b")
        .is_refused("SignatureDoesNotMatch", "no hash");
    let in_header = Request::get("/key").with("x-amz-content-sha256", EMPTY_SHA256);
    in_header.signed(&signer).is_accepted();
}

#[test]
fn a_session_token_is_compared() {
    let presigned = Signer {
        expires: PRESIGNED.expires,
        payload: PRESIGNED.payload,
        ..TEMPORARY
    };
    for signer in [TEMPORARY, presigned] {
        let token = |token| Request::get("/key").signed(&Signer { token, ..signer });
        let accepted = token(TEMPORARY.token).verified();
        assert_eq!(accepted.as_deref(), Ok("ASIATEMPORARY"));
        token(Some("to/k+n")).is_refused("InvalidToken", "another token");
        token(Some("other")).is_refused("InvalidToken", "another token");
        token(None).is_refused("InvalidAccessKeyId", "no token");
        // A token tells nobody without the secret key more.
        let wrong = Signer {
            secret_key: "wrong",
            ..signer
        };
        Request::get("/key")
            .signed(&wrong)
            .is_refused("SignatureDoesNotMatch", "wrong");
    }
    // A client whose keys are not temporary has no token to compare.
    let more = Signer {
        token: Some("x"),
        ..HEADER
    };
    Request::get("/key").signed(&more).is_accepted();
}

#[test]
fn an_unknown_key_is_refused_whatever_it_signs() {
    let unknown = Signer {
        access_key: "AKIAOTHER",
        ..HEADER
    };
    Request::get("/key")
        .signed(&unknown)
        .is_refused("InvalidAccessKeyId", "unknown");
    // Not even with the secret of the one in its place.
    let nobody = Signer {
        secret_key: "0000000000000000000000000000000000000000",
        ..unknown
    };
    Request::get("/key")
        .signed(&nobody)
        .is_refused("InvalidAccessKeyId", "nobody");
}

#[test]
fn derived_keys_are_kept_for_some_days() {
    let verifier = verifier();
    for day in 0..60 {
        let time = EXAMPLE + Duration::from_secs(day * 86400);
        let now = UNIX_EPOCH + time;
        for _ in 0..2 {
            let signed = Request::get("/key").signed(&Signer { time, ..HEADER });
            assert!(verifier.verify(&signed.incoming(), now).is_ok());
            let unknown = Signer {
                access_key: "unknown",
                time,
                ..HEADER
            };
            let signed = Request::get("/key").signed(&unknown);
            assert!(verifier.verify(&signed.incoming(), now).is_err());
        }
        let kept = |client: &Client| client.keys.read().len();
        let expected = DAYS.min(day as usize + 1);
        assert_eq!(kept(&verifier.clients[ACCESS_KEY]), expected);
        assert_eq!(kept(&verifier.nobody), expected);
    }
}

#[test]
fn no_secret_is_printed() {
    let debug = format!("{:?}", verifier());
    assert!(debug.contains(ACCESS_KEY), "{debug}");
    assert!(
        !debug.contains("wJalr") && !debug.contains("to/k"),
        "{debug}"
    );
}

/// xorshift64: Marsaglia, "Xorshift RNGs", Journal of Statistical Software
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        let at = self.below(list.len());
        &list[at]
    }

    fn text(&mut self, pieces: &[&str], most: usize) -> String {
        (0..self.below(most + 1))
            .map(|_| *self.of(pieces))
            .collect()
    }

    fn request(&mut self) -> Request {
        const PATH: [&str; 16] = [
            "a", "Z", "0", "-", "_", ".", "~", "/", "%20", "%2F", "%C3%A9", "+", "!", "%25", "=",
            "%2B",
        ];
        const QUERY: [&str; 18] = [
            "a", "B", "1", "&", "&", "=", "=", "+", "%20", "%26", "%3D", "%C3%A9", "%2f", "/", ":",
            "-", "~", "*",
        ];
        let mut target = format!("/{}", self.text(&PATH, 20));
        if self.below(2) == 0 {
            target += &format!("?{}", self.text(&QUERY, 20));
        }
        let mut request = Request::get(&target);
        for _ in 0..self.below(5) {
            let name = self.of(&["range", "accept", "x-amz-a", "x-amz-b", "if-match", "zz"]);
            let value = self.text(&["a", " ", "  ", ",", "\"", "é", "=", ";"], 10);
            request.add(name, value.trim());
        }
        request.method = (*self.of(&["GET", "HEAD"])).into();
        request
    }
}

#[test]
fn whatever_aws_sigv4_signs_is_accepted_and_what_is_changed_is_not() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for _ in 0..2000 {
        let signer = *random.of(&[HEADER, PRESIGNED]);
        let signed = random.request().signed(&signer);
        signed.is_accepted();
        let mut changed = signed.clone();
        match random.below(4) {
            0 => changed.path.push(b'x'),
            1 => changed.method.push('X'),
            2 => changed.query.get_or_insert_default().extend(b"&x=y"),
            _ => changed.add("host", "x"),
        }
        assert!(changed.verified().is_err(), "{changed:?}");
    }
}

#[test]
fn nothing_that_is_sent_is_a_panic_or_a_client() {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    for _ in 0..5000 {
        let signer = *random.of(&[HEADER, PRESIGNED]);
        let signed = Request::get("/key?a=b").signed(&signer);
        let mut garbled = signed.clone();
        let garble = |random: &mut Random, text: &[u8]| {
            let mut text = text.to_vec();
            for _ in 0..=random.below(3) {
                let at = random.below(text.len());
                let with = [
                    &b"%"[..],
                    b"",
                    b"/",
                    b"=",
                    b"&",
                    b",",
                    b";",
                    b"0",
                    b"\xff",
                    b"+%",
                    b" ",
                ];
                let with = *random.of(&with);
                text.splice(at..=at, with.iter().copied());
                if text.is_empty() {
                    break;
                }
            }
            text
        };
        if signer.expires.is_some() {
            garbled.query = garbled.query.map(|query| garble(&mut random, &query));
        } else {
            let name = random.of(&["authorization", "x-amz-date", "x-amz-content-sha256"]);
            let value = garble(&mut random, garbled.headers[*name].as_bytes());
            let value = HeaderValue::from_bytes(&value).unwrap();
            garbled.headers.insert(*name, value);
        }
        // A change may have been undone by the next, or be one of spelling.
        let verified = garbled.verified();
        let means_the_same = garbled.query.as_deref().map(sorted)
            == signed.query.as_deref().map(sorted)
            && without_spaces(&garbled) == without_spaces(&signed);
        assert_eq!(verified.is_ok(), means_the_same, "{garbled:?}");
    }
}

fn sorted(query: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let decoded = |part| canonical::decoded(part, Part::Query).into_owned();
    let mut parameters: Vec<_> = canonical::parameters(query)
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    parameters.sort();
    parameters
}

fn without_spaces(request: &Request) -> Vec<Vec<u8>> {
    let bytes = |value: &HeaderValue| {
        let bytes = value.as_bytes().iter().copied();
        bytes.filter(|byte| *byte != b' ').collect()
    };
    request.headers.values().map(bytes).collect()
}
