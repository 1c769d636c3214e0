//! Authorisation: buckets that are open, whose clients sign as for S3, and whose clients have a
//! token. The decision comes first, on hits too.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::builder;
use aws_sdk_s3::{
    config::{BehaviorVersion, Credentials, Region},
    presigning::PresigningConfig,
    Client, Config,
};
use aws_sigv4::{
    http_request::{
        sign, PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest,
        SignatureLocation, SigningSettings, UriPathNormalizationMode,
    },
    sign::v4,
};
use aws_smithy_runtime_api::client::identity::Identity;
use test_support::{
    encode_key, eventually, https_client, pattern, request, Bucket, HttpVersion, Origin, Proxy,
    Reply, Response, TokenKey,
};

const LEN: usize = 100_000;
const REGION: &str = "us-east-1";
const OBJECT: &str = "/assets/object";

/// The client of the whole bucket.
const ALICE: Keys = Keys {
    access_key: "AKIAALICE",
    secret_key: "alices/secret+key",
    token: None,
};

/// The client of `team-b/`.
const BOB: Keys = Keys {
    access_key: "AKIABOB",
    secret_key: "bobs/secret+key",
    token: None,
};

/// A client with temporary keys.
const CAROL: Keys = Keys {
    access_key: "ASIACAROL",
    secret_key: "carols/secret+key",
    token: Some("carols/token+="),
};

const CLIENTS: &str = "[\
    {access_key: AKIAALICE, secret_key: alices/secret+key}, \
    {access_key: AKIABOB, secret_key: bobs/secret+key, key_prefixes: [team-b/, shared/]}, \
    {access_key: ASIACAROL, secret_key: carols/secret+key, session_token: carols/token+=}]";

#[derive(Clone, Copy)]
struct Keys {
    access_key: &'static str,
    secret_key: &'static str,
    token: Option<&'static str>,
}

/// A request with its signature.
#[derive(Clone, Debug)]
struct Signed {
    method: &'static str,
    target: String,
    fields: Vec<(String, String)>,
}

/// The ways to sign.
#[derive(Clone, Copy)]
struct Way {
    keys: Keys,
    region: &'static str,
    at: SystemTime,
    expires: Option<Duration>,
}

// === impl Way ===

impl Way {
    fn header(keys: Keys) -> Way {
        Way {
            keys,
            region: REGION,
            at: SystemTime::now(),
            expires: None,
        }
    }

    fn presigned(keys: Keys) -> Way {
        Way {
            expires: Some(Duration::from_secs(600)),
            ..Way::header(keys)
        }
    }

    /// Signs by aws-sigv4. The fields are those that are signed, beside those of the signature.
    fn sign(
        self,
        host: &str,
        method: &'static str,
        target: &str,
        fields: &[(&str, &str)],
    ) -> Signed {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let mut body = SignableBody::Bytes(b"");
        if let Some(expires) = self.expires {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(expires);
            body = SignableBody::UnsignedPayload;
        }
        let token = self.keys.token.map(str::to_owned);
        let (access_key, secret_key) = (self.keys.access_key, self.keys.secret_key);
        let identity: Identity =
            Credentials::new(access_key, secret_key, token, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name("s3")
            .time(self.at)
            .settings(settings)
            .build()
            .expect("parameters")
            .into();
        let uri = format!("http://{host}{target}");
        let headers = [("host", host)].into_iter().chain(fields.iter().copied());
        let signable = SignableRequest::new(method, uri, headers, body).expect("a request");
        let (instructions, _) = sign(signable, &params).expect("a signature").into_parts();
        let mut signed = Signed {
            method,
            target: target.to_owned(),
            fields: Vec::new(),
        };
        for (name, value) in fields {
            signed.fields.push((name.to_string(), value.to_string()));
        }
        for (name, value) in instructions.headers() {
            signed.fields.push((name.to_owned(), value.to_owned()));
        }
        for (name, value) in instructions.params() {
            signed.target.push(if signed.target.contains('?') {
                '&'
            } else {
                '?'
            });
            let value = encode_key(value).replace('/', "%2F");
            signed.target += &format!("{name}={value}");
        }
        signed
    }
}

// === impl Signed ===

impl Signed {
    fn send(&self, addr: SocketAddr) -> Response {
        let fields: Vec<_> = self.fields.iter().map(|(n, v)| (&**n, &**v)).collect();
        request(addr, self.method, &self.target, &fields)
    }

    fn with(&self, name: &str, value: &str) -> Signed {
        let mut signed = self.clone();
        signed.fields.push((name.to_owned(), value.to_owned()));
        signed
    }

    fn without(&self, name: &str) -> Signed {
        let mut signed = self.clone();
        signed.fields.retain(|(field, _)| field != name);
        assert!(signed.fields.len() < self.fields.len(), "{name}");
        signed
    }

    fn target_with(&self, from: &str, to: &str) -> Signed {
        assert!(self.target.contains(from), "{from} in {}", self.target);
        Signed {
            target: self.target.replacen(from, to, 1),
            ..self.clone()
        }
    }
}

fn get(proxy: &Proxy, way: Way, target: &str) -> Response {
    sign_for(proxy, way, target).send(proxy.addr())
}

fn sign_for(proxy: &Proxy, way: Way, target: &str) -> Signed {
    way.sign(&proxy.addr().to_string(), "GET", target, &[])
}

fn objects() -> Origin {
    Origin::start(|asked| {
        Reply::pattern(1, LEN as u64)
            .header("etag", "\"1\"")
            .answering(asked)
    })
}

fn bucket(origin: &Origin) -> Bucket {
    Bucket::at(origin, "/assets", "bucket")
}

/// A proxy whose clients sign.
fn private(origin: &Origin) -> Proxy {
    let bucket = bucket(origin).set("auth", "sigv4").set("clients", CLIENTS);
    builder().bucket(bucket).start()
}

fn stored(proxy: &Proxy, entries: u64) {
    eventually("the objects are stored", || {
        proxy.metric("cache_entries") == entries
    });
}

#[track_caller]
fn is_object(answer: &Response, cache: &str) {
    assert_eq!(
        answer.status,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    assert!(answer.body == pattern(1, LEN));
    assert_eq!(answer.header("x-cache"), Some(cache));
}

#[track_caller]
fn is_refused(answer: &Response, status: u16, code: &str) {
    let body = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status, status, "{body}");
    assert_eq!(answer.header("content-type"), Some("application/xml"));
    assert!(
        body.contains(&format!("<Code>{code}</Code>")),
        "{code}: {body}"
    );
    for secret in ["secret", "bucket", "127.0.0.1", "carols"] {
        assert!(!body.contains(secret), "{secret}: {body}");
    }
}

fn refusals(proxy: &Proxy, reason: &str, expected: u64) {
    proxy.expect_metric_where("auth_refused_total", &[("reason", reason)], expected);
}

#[test]
fn a_reload_admits_new_clients_and_no_former_ones() {
    let origin = objects();
    let proxy = private(&origin);
    is_object(&get(&proxy, Way::header(ALICE), OBJECT), "MISS");
    let other = "AKIAOTHER";
    proxy.edit_config(|yaml| yaml.replace(ALICE.access_key, other));
    assert_eq!(proxy.reload(), "ok");
    let refused = get(&proxy, Way::header(ALICE), OBJECT);
    is_refused(&refused, 403, "InvalidAccessKeyId");
    let keys = Keys {
        access_key: other,
        ..ALICE
    };
    is_object(&get(&proxy, Way::header(keys), OBJECT), "HIT");
}

// --- all modes ---

/// A method, the end of a target, and fields.
type Asked = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// A route to an object, and the way in which a client asks there.
#[derive(Clone, Copy)]
struct Door {
    path: &'static str,
    host: Option<&'static str>,
    bucket: &'static str,
    signs: bool,
    token: bool,
}

const OPEN: Door = Door {
    path: "/open",
    host: None,
    bucket: "one",
    signs: false,
    token: false,
};

const DOORS: [Door; 5] = [
    OPEN,
    Door {
        path: "",
        host: Some("open.example"),
        ..OPEN
    },
    Door {
        path: "/signed",
        signs: true,
        ..OPEN
    },
    Door {
        path: "/token",
        token: true,
        ..OPEN
    },
    Door {
        path: "/two",
        bucket: "two",
        ..OPEN
    },
];

impl Door {
    fn ask(
        self,
        proxy: &Proxy,
        token: &str,
        method: &'static str,
        target: &str,
        fields: &[(&str, &str)],
    ) -> Response {
        let target = format!("{}{target}", self.path);
        if self.signs {
            let host = proxy.addr().to_string();
            let signed = Way::header(ALICE).sign(&host, method, &target, fields);
            return signed.send(proxy.addr());
        }
        let mut fields = fields.to_vec();
        let bearer = format!("Bearer {token}");
        if self.token {
            fields.push(("Authorization", &bearer));
        }
        if let Some(host) = self.host {
            fields.push(("Host", host));
        }
        request(proxy.addr(), method, &target, &fields)
    }
}

#[test]
fn no_request_of_one_client_changes_what_another_gets() {
    // The origin answers with the target, and with those of these fields that it got.
    let origin = Origin::start(|asked| {
        let fields = [
            "cookie",
            "origin",
            "accept-encoding",
            "x-forwarded-host",
            "x-original-url",
            "x-http-method-override",
            "x-amz-request-payer",
            "x-amz-expected-bucket-owner",
            "x-amz-server-side-encryption-customer-algorithm",
        ];
        let reached: Vec<_> = fields
            .into_iter()
            .filter(|name| asked.header(name).is_some())
            .collect();
        Reply::bytes(format!("{} {reached:?}", asked.target))
            .header("etag", "\"1\"")
            .answering(asked)
    });
    let keys = key_file(SECRET);
    let at = |path, name| Bucket::at(&origin, path, name).credentials("reader", "secret");
    let section = format!("{{hmac_key_file: '{}'}}", keys.path.display());
    let proxy = builder()
        .bucket(at("/open", "one").set("hosts", "[open.example]"))
        .bucket(
            at("/signed", "one")
                .set("auth", "sigv4")
                .set("clients", CLIENTS),
        )
        .bucket(at("/token", "one").set("auth", "jwt").set("jwt", section))
        .bucket(at("/two", "two"))
        .start();
    let token = TokenKey::hs256(SECRET).token(&claims(""));
    let requests: &[Asked] = &[
        ("GET", "", &[("Range", "bytes=1-2")]),
        ("GET", "", &[("Range", "bytes=-1")]),
        ("GET", "", &[("If-Match", "\"2\"")]),
        ("GET", "", &[("If-None-Match", "*")]),
        (
            "GET",
            "",
            &[("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT")],
        ),
        ("GET", "", &[("Cookie", "a=b")]),
        ("GET", "", &[("Origin", "https://evil.example")]),
        ("GET", "", &[("Accept-Encoding", "gzip")]),
        ("GET", "", &[("X-Forwarded-Host", "evil.example")]),
        ("GET", "", &[("X-Original-URL", "/two/other")]),
        ("GET", "", &[("X-HTTP-Method-Override", "DELETE")]),
        ("GET", "", &[("x-amz-request-payer", "requester")]),
        ("GET", "", &[("x-amz-expected-bucket-owner", "1")]),
        ("GET", "", &[("x-amz-checksum-mode", "ENABLED")]),
        (
            "GET",
            "",
            &[
                ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
                ("x-amz-server-side-encryption-customer-key", "a2V5"),
                ("x-amz-server-side-encryption-customer-key-MD5", "a2V5"),
            ],
        ),
        ("GET", "?versionId=1", &[]),
        ("GET", "?versionId=null", &[]),
        ("GET", "?partNumber=1", &[]),
        ("GET", "?response-content-type=text%2Fhtml", &[]),
        ("GET", "?response-content-encoding=gzip", &[]),
        ("GET", "?x-id=GetObject&unknown=1", &[]),
        ("GET", "?acl", &[]),
        ("GET", "?list-type=2", &[]),
        ("GET", "/?list-type=2", &[]),
        ("HEAD", "", &[]),
        ("HEAD", "?versionId=1", &[]),
        ("HEAD", "", &[("Range", "bytes=1-2")]),
        ("PUT", "", &[]),
        ("POST", "", &[]),
        ("DELETE", "", &[]),
        ("OPTIONS", "", &[("Origin", "https://evil.example")]),
    ];
    for (first, door) in DOORS.iter().enumerate() {
        for (number, (method, query, fields)) in requests.iter().enumerate() {
            let key = format!("/{first}-{number}");
            let what = format!("{method} {query} {fields:?} at {}", door.path);
            let answer = door.ask(&proxy, &token, method, &format!("{key}{query}"), fields);
            assert!(
                answer.status < 500 || answer.status == 501,
                "{what}: {}",
                answer.status
            );
            for other in DOORS {
                let answer = other.ask(&proxy, &token, "GET", &key, &[]);
                let body = String::from_utf8_lossy(&answer.body);
                let expected = format!("/{}{key} []", other.bucket);
                assert_eq!((answer.status, &*body), (200, &*expected), "{what}");
                assert_ne!(answer.header("content-type"), Some("text/html"), "{what}");
                assert_eq!(answer.header("content-encoding"), None, "{what}");
            }
        }
    }
}

// --- none ---

#[test]
fn an_open_bucket_ignores_signatures() {
    let origin = objects();
    let proxy = builder().bucket(bucket(&origin)).start();
    is_object(&get(&proxy, Way::header(ALICE), OBJECT), "MISS");
    stored(&proxy, 1);
    is_object(&get(&proxy, Way::presigned(BOB), OBJECT), "HIT");
    let old = Way {
        at: UNIX_EPOCH,
        region: "elsewhere",
        ..Way::header(CAROL)
    };
    is_object(&get(&proxy, old, OBJECT), "HIT");
    for authorization in ["AWS4-HMAC-SHA256 nonsense", "AWS a:b", "Bearer x"] {
        let fields = [("Authorization", authorization)];
        is_object(&request(proxy.addr(), "GET", OBJECT, &fields), "HIT");
    }
    is_object(&proxy.get(OBJECT), "HIT");
    assert_eq!(origin.requests().len(), 1);
}

// --- sigv4 ---

#[test]
fn clients_that_sign_share_hits_by_sendfile() {
    let origin = objects();
    let proxy = private(&origin);
    is_object(&get(&proxy, Way::header(ALICE), OBJECT), "MISS");
    stored(&proxy, 1);
    let sent = proxy.metric("cache_sendfile_total");
    is_object(&get(&proxy, Way::header(ALICE), OBJECT), "HIT");
    is_object(&get(&proxy, Way::presigned(ALICE), OBJECT), "HIT");
    is_object(&get(&proxy, Way::header(CAROL), OBJECT), "HIT");
    is_object(&get(&proxy, Way::presigned(CAROL), OBJECT), "HIT");
    is_object(
        &get(
            &proxy,
            Way::header(ALICE),
            &format!("{OBJECT}?x-id=GetObject"),
        ),
        "HIT",
    );
    proxy.expect_metric("cache_sendfile_total", sent + 5);
    let asked = origin.requests();
    assert_eq!(asked.len(), 1);
    // Nothing of the signature goes on, and the origin of this test needs none.
    assert_eq!(asked[0].target, "/bucket/object");
    for name in [
        "authorization",
        "x-amz-date",
        "x-amz-content-sha256",
        "x-amz-security-token",
    ] {
        assert_eq!(asked[0].header(name), None, "{name}");
    }
}

#[test]
fn the_signature_of_a_presigned_url_does_not_reach_the_origin() {
    let origin = objects();
    let proxy = private(&origin);
    for way in [Way::presigned(ALICE), Way::presigned(CAROL)] {
        is_object(
            &get(&proxy, way, "/assets/a%20b"),
            if way.keys.token.is_none() {
                "MISS"
            } else {
                "HIT"
            },
        );
        stored(&proxy, 1);
    }
    assert_eq!(origin.requests()[0].target, "/bucket/a%20b");
}

#[test]
fn a_hit_is_for_those_who_may_have_it() {
    let origin = objects();
    let proxy = private(&origin);
    is_object(&get(&proxy, Way::header(ALICE), OBJECT), "MISS");
    stored(&proxy, 1);
    is_refused(&proxy.get(OBJECT), 403, "AccessDenied");
    refusals(&proxy, "unsigned", 1);
    // Known, but for other keys.
    is_refused(&get(&proxy, Way::header(BOB), OBJECT), 403, "AccessDenied");
    is_refused(
        &get(&proxy, Way::presigned(BOB), OBJECT),
        403,
        "AccessDenied",
    );
    refusals(&proxy, "prefix", 2);
    let eve = Keys {
        access_key: "AKIAEVE",
        ..ALICE
    };
    is_refused(
        &get(&proxy, Way::header(eve), OBJECT),
        403,
        "InvalidAccessKeyId",
    );
    refusals(&proxy, "unknown_key", 1);
    let guess = Keys {
        secret_key: "guess",
        ..ALICE
    };
    is_refused(
        &get(&proxy, Way::presigned(guess), OBJECT),
        403,
        "SignatureDoesNotMatch",
    );
    refusals(&proxy, "signature", 1);
    for fields in [
        [("Cookie", "session=alice"), ("Accept", "*/*")],
        [("If-None-Match", "\"1\""), ("Accept", "*/*")],
        [("Range", "bytes=0-9"), ("If-Range", "\"1\"")],
        [("If-Match", "\"1\""), ("Accept", "*/*")],
    ] {
        is_refused(
            &request(proxy.addr(), "GET", OBJECT, &fields),
            403,
            "AccessDenied",
        );
    }
    let head = request(proxy.addr(), "HEAD", OBJECT, &[]);
    assert_eq!((head.status, head.body.len()), (403, 0));
    assert_eq!(head.header("etag"), None);
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn nothing_is_told_of_objects_that_a_client_may_not_read() {
    let origin = Origin::start(|asked| match asked.path() {
        "/bucket/team-a/here" => Reply::pattern(1, LEN as u64).answering(asked),
        _ => Reply::bytes("no such object").with_status(404),
    });
    let proxy = private(&origin);
    get(&proxy, Way::header(ALICE), "/assets/team-a/here");
    get(&proxy, Way::header(ALICE), "/assets/team-a/missing");
    let asked = origin.requests().len();
    let answers = ["here", "missing"].map(|name| {
        let answer = get(&proxy, Way::header(BOB), &format!("/assets/team-a/{name}"));
        let body = String::from_utf8(answer.body).expect("XML");
        let (start, _) = body.split_once("<Resource>").expect("a resource");
        (answer.status, start.to_owned())
    });
    assert_eq!(answers[0].0, 403);
    assert_eq!(answers[0], answers[1]);
    assert_eq!(origin.requests().len(), asked);
}

#[test]
fn key_prefixes_limit_what_a_client_reads() {
    let origin = objects();
    let proxy = private(&origin);
    for key in [
        "team-b/a",
        "team-b//a",
        "team-b/a/../b",
        "shared/x",
        "%74eam-b/a",
    ] {
        let answer = get(&proxy, Way::header(BOB), &format!("/assets/{key}"));
        assert_eq!(answer.status, 200, "{key}");
    }
    for key in [
        "team-b",
        "team-bc/a",
        "team-a/a",
        "a",
        "/team-b/a",
        "Team-b/a",
        "team-b/../team-a/a",
        "./team-b/../a",
        "shared%2F..%2Fa",
    ] {
        let answer = get(&proxy, Way::header(BOB), &format!("/assets/{key}"));
        is_refused(&answer, 403, "AccessDenied");
    }
}

#[test]
fn key_prefixes_limit_what_a_client_lists() {
    let origin = Origin::start(|_| Reply::bytes("<ListBucketResult></ListBucketResult>"));
    let bucket = bucket(&origin)
        .set("auth", "sigv4")
        .set("clients", CLIENTS)
        .set("list", "true")
        .set("list_ttl", "1h");
    let proxy = builder().bucket(bucket).start();
    let list = |keys, query: &str| get(&proxy, Way::header(keys), &format!("/assets?{query}"));
    for _ in 0..2 {
        assert_eq!(list(ALICE, "list-type=2").status, 200);
        assert_eq!(list(ALICE, "list-type=2&prefix=team-a%2F").status, 200);
        assert_eq!(list(BOB, "list-type=2&prefix=shared%2F").status, 200);
        // A list that is stored for one client is none for another.
        for query in [
            "list-type=2",
            "list-type=2&prefix=team-a%2F",
            "prefix=share",
        ] {
            is_refused(&list(BOB, query), 403, "AccessDenied");
        }
        is_refused(&proxy.get("/assets?list-type=2"), 403, "AccessDenied");
        stored(&proxy, 3);
    }
    let query = "list-type=2&prefix=shared%2F..%2Fteam-a%2F";
    assert_eq!(list(BOB, query).status, 400);
    assert_eq!(get(&proxy, Way::header(ALICE), "/").status, 200);
    is_refused(&proxy.get("/"), 403, "AccessDenied");
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn a_key_with_dot_segments_is_no_way_to_another_object() {
    // An issuer that presigns what its users name.
    let origin = Origin::start(|asked| match asked.path() {
        "/bucket/hidden" => Reply::pattern(1, LEN as u64).answering(asked),
        _ => Reply::bytes("no such object").with_status(404),
    });
    let proxy = private(&origin);
    for way in [Way::header(ALICE), Way::presigned(ALICE)] {
        for _ in 0..3 {
            let answer = get(&proxy, way, "/assets/uploads/../hidden");
            is_refused(&answer, 404, "NoSuchKey");
        }
    }
}

#[test]
fn each_element_of_a_presigned_url_counts_on_hits() {
    let origin = objects();
    let proxy = private(&origin);
    is_object(&get(&proxy, Way::presigned(CAROL), OBJECT), "MISS");
    stored(&proxy, 1);
    let signed = sign_for(&proxy, Way::presigned(CAROL), OBJECT);
    is_object(&signed.send(proxy.addr()), "HIT");
    let (path, query) = signed.target.split_once('?').expect("a query");
    let elements: Vec<_> = query.split('&').collect();
    assert_eq!(elements.len(), 7);
    for element in &elements {
        let rest: Vec<_> = elements
            .iter()
            .filter(|other| *other != element)
            .copied()
            .collect();
        let stripped = Signed {
            target: format!("{path}?{}", rest.join("&")),
            ..signed.clone()
        };
        assert!(
            [400, 403].contains(&stripped.send(proxy.addr()).status),
            "without {element}"
        );
        let twice = signed.target_with(element, &format!("{element}&{element}"));
        is_refused(
            &twice.send(proxy.addr()),
            400,
            "AuthorizationQueryParametersError",
        );
        let (name, value) = element.split_once('=').expect("a value");
        let last = if value.ends_with('0') { '1' } else { '0' };
        let changed = format!("{name}={}{last}", &value[..value.len() - 1]);
        let changed = signed.target_with(element, &changed).send(proxy.addr());
        assert!(
            [400, 403].contains(&changed.status),
            "{element}: {}",
            changed.status
        );
    }
    let stripped = Signed {
        target: path.to_owned(),
        ..signed.clone()
    };
    is_refused(&stripped.send(proxy.addr()), 403, "AccessDenied");
    for (what, tampered) in [
        ("path", signed.target_with("/object", "/objects")),
        ("case", signed.target_with("/object", "/Object")),
        ("more", signed.target_with("?", "?versionId=1&")),
        (
            "override",
            signed.target_with("?", "?response-content-type=text%2Fhtml&"),
        ),
        (
            "method",
            Signed {
                method: "HEAD",
                ..signed.clone()
            },
        ),
        ("host", signed.with("Host", "elsewhere")),
    ] {
        let status = tampered.send(proxy.addr()).status;
        assert_eq!(status, 403, "{what}");
    }
    is_object(&signed.send(proxy.addr()), "HIT");
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn refusals_have_the_codes_of_s3() {
    let origin = objects();
    let proxy = private(&origin);
    let now = SystemTime::now();
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let header = Way::header(ALICE);
    let presigned = Way::presigned(ALICE);
    let signed = sign_for(&proxy, header, OBJECT);
    let at = |way: Way, at| Way { at, ..way };
    let region = |way: Way| Way {
        region: "eu-west-1",
        ..way
    };
    let token = |token| Way::header(Keys { token, ..CAROL });
    for (what, request, status, code) in [
        (
            "old",
            sign_for(&proxy, at(header, now - minutes(16)), OBJECT),
            403,
            "RequestTimeTooSkewed",
        ),
        (
            "ahead",
            sign_for(&proxy, at(header, now + minutes(16)), OBJECT),
            403,
            "RequestTimeTooSkewed",
        ),
        (
            "expired",
            sign_for(&proxy, at(presigned, now - minutes(11)), OBJECT),
            403,
            "AccessDenied",
        ),
        (
            "too early",
            sign_for(&proxy, at(presigned, now + minutes(16)), OBJECT),
            403,
            "AccessDenied",
        ),
        (
            "region",
            sign_for(&proxy, region(header), OBJECT),
            400,
            "AuthorizationHeaderMalformed",
        ),
        (
            "region",
            sign_for(&proxy, region(presigned), OBJECT),
            400,
            "AuthorizationQueryParametersError",
        ),
        (
            "not signed",
            signed.with("x-amz-request-payer", "requester"),
            403,
            "AccessDenied",
        ),
        ("no date", signed.without("x-amz-date"), 403, "AccessDenied"),
        (
            "no hash",
            signed.without("x-amz-content-sha256"),
            400,
            "InvalidRequest",
        ),
        (
            "twice",
            signed.with("Authorization", "AWS4-HMAC-SHA256 x"),
            400,
            "InvalidArgument",
        ),
        (
            "both",
            signed.target_with(OBJECT, &sign_for(&proxy, presigned, OBJECT).target),
            400,
            "InvalidArgument",
        ),
        (
            "token",
            sign_for(&proxy, token(Some("other")), OBJECT),
            400,
            "InvalidToken",
        ),
        (
            "no token",
            sign_for(&proxy, token(None), OBJECT),
            403,
            "InvalidAccessKeyId",
        ),
    ] {
        let answer = request.send(proxy.addr());
        assert_eq!(answer.status, status, "{what}");
        is_refused(&answer, status, code);
    }
    for (authorization, status, code) in [
        ("AWS AKIAALICE:c2lnbmF0dXJl", 400, "InvalidRequest"),
        ("AWS4-ECDSA-P256-SHA256 Credential=a", 400, "InvalidRequest"),
        (
            "AWS4-HMAC-SHA256 Credential=a",
            400,
            "AuthorizationHeaderMalformed",
        ),
        ("Basic YTpi", 400, "InvalidArgument"),
        ("Bearer a.b.c", 400, "InvalidArgument"),
    ] {
        let fields = [("Authorization", authorization)];
        is_refused(&request(proxy.addr(), "GET", OBJECT, &fields), status, code);
    }
    for (query, status, code) in [
        (
            "X-Amz-Signature=0",
            400,
            "AuthorizationQueryParametersError",
        ),
        (
            "AWSAccessKeyId=AKIAALICE&Signature=a&Expires=4102444800",
            400,
            "InvalidRequest",
        ),
    ] {
        is_refused(&proxy.get(&format!("{OBJECT}?{query}")), status, code);
    }
    assert!(origin.requests().is_empty());
}

#[test]
fn presigned_urls_live_up_to_a_week() {
    let origin = objects();
    let proxy = private(&origin);
    let day = 86400;
    for (life, age, lives) in [
        (1, 0, true),
        (7 * day, 7 * day - 60, true),
        (7 * day, 7 * day + 60, false),
        (7 * day + 1, 0, false),
        (60, 61, false),
    ] {
        let way = Way {
            at: SystemTime::now() - Duration::from_secs(age),
            expires: Some(Duration::from_secs(life)),
            ..Way::presigned(ALICE)
        };
        let status = get(&proxy, way, OBJECT).status;
        assert_eq!(status == 200, lives, "{life} {age}: {status}");
    }
}

#[test]
fn keys_that_need_encoding_are_signed_as_they_are_sent() {
    let origin = objects();
    let proxy = private(&origin);
    for key in [
        "a b",
        "a+b",
        "100%",
        "grüße/📦",
        "a//b/",
        "a'(b)*!$&,:;=@",
        "a%20b",
        "-_.~",
    ] {
        let target = format!("/assets/{}", encode_key(key));
        for way in [Way::header(ALICE), Way::presigned(ALICE)] {
            let answer = get(&proxy, way, &target);
            assert_eq!(answer.status, 200, "{key}");
        }
    }
    // Spelled by a client that encodes less than S3 documents, and signed either way.
    let encoded = sign_for(&proxy, Way::header(ALICE), "/assets/a%2Bb%27");
    for target in ["/assets/a+b'", "/assets/a%2bb%27", "/%61ssets/a%2Bb'"] {
        let sent = Signed {
            target: target.to_owned(),
            ..encoded.clone()
        };
        assert_eq!(sent.send(proxy.addr()).status, 200, "{target}");
        assert_eq!(
            get(&proxy, Way::header(ALICE), target).status,
            200,
            "{target}"
        );
    }
    let other = encoded.target_with("%2B", "%20");
    is_refused(&other.send(proxy.addr()), 403, "SignatureDoesNotMatch");
}

#[test]
fn the_sdk_presigns_and_downloads() {
    let origin = objects();
    let proxy = private(&origin);
    let client = |keys: Keys| {
        let token = keys.token.map(str::to_owned);
        let credentials = Credentials::new(keys.access_key, keys.secret_key, token, None, "test");
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(format!("http://{}", proxy.addr()))
            .force_path_style(true)
            .credentials_provider(credentials)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        Client::from_conf(config)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        for (number, key) in ["plain", "with a space", "größe+/日本語"]
            .into_iter()
            .enumerate()
        {
            for keys in [ALICE, CAROL] {
                let object = client(keys).get_object().bucket("assets").key(key);
                let lifetime = PresigningConfig::expires_in(Duration::from_secs(60)).unwrap();
                let presigned = object.clone().presigned(lifetime).await.expect("presign");
                let uri = presigned.uri();
                let (_, target) = uri.split_once(&proxy.addr().to_string()).expect("a target");
                let answer = test_support::get(proxy.addr(), target);
                assert_eq!(answer.status, 200, "{key}");
                assert!(answer.body == pattern(1, LEN));
                stored(&proxy, number as u64 + 1);
                let answer = object.send().await.expect("get");
                let body = answer.body.collect().await.expect("a body").into_bytes();
                assert!(body == pattern(1, LEN)[..]);
                let head = client(keys)
                    .head_object()
                    .bucket("assets")
                    .key(key)
                    .send()
                    .await;
                assert_eq!(head.expect("head").content_length(), Some(LEN as i64));
            }
        }
        let refused = client(BOB)
            .get_object()
            .bucket("assets")
            .key("plain")
            .send()
            .await;
        let error = refused.expect_err("refused").into_service_error();
        assert_eq!(error.meta().code(), Some("AccessDenied"));
        assert!(error.meta().message().is_some());
    });
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn http_2_is_signed_by_its_authority() {
    let origin = objects();
    let bucket = bucket(&origin).set("auth", "sigv4").set("clients", CLIENTS);
    let proxy = builder().bucket(bucket).tls().start();
    let host = format!("localhost:{}", proxy.https_addr().port());
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let client = https_client(version);
        let send = |signed: &Signed| {
            let mut request = client.get(format!("https://{host}{}", signed.target));
            for (name, value) in &signed.fields {
                request = request.header(name, value);
            }
            request.send().expect("an answer").status().as_u16()
        };
        for way in [Way::header(ALICE), Way::presigned(ALICE)] {
            assert_eq!(
                send(&way.sign(&host, "GET", OBJECT, &[])),
                200,
                "{version:?}"
            );
            let other = way.sign("localhost:1", "GET", OBJECT, &[]);
            assert_eq!(send(&other), 403, "{version:?}");
        }
        assert_eq!(send(&Way::header(BOB).sign(&host, "GET", OBJECT, &[])), 403);
    }
}

#[test]
fn fields_that_need_care_are_signed() {
    let origin = objects();
    let proxy = private(&origin);
    let host = proxy.addr().to_string();
    for fields in [
        &[("expect", "100-continue")][..],
        &[("range", "bytes=0-99999")],
        &[("x-amz-meta-spaces", "a   b")],
        &[
            ("accept-encoding", "identity"),
            ("amz-sdk-request", "attempt=1; max=3"),
        ],
        &[("content-length", "0")],
    ] {
        let signed = Way::header(ALICE).sign(&host, "GET", OBJECT, fields);
        let answer = signed.send(proxy.addr());
        assert!(
            [200, 206].contains(&answer.status),
            "{fields:?}: {}",
            answer.status
        );
    }
    let ranged = Way::header(ALICE).sign(&host, "GET", OBJECT, &[("range", "bytes=0-9")]);
    assert_eq!(ranged.send(proxy.addr()).status, 206);
    let other = ranged.without("range").with("range", "bytes=0-99");
    is_refused(&other.send(proxy.addr()), 403, "SignatureDoesNotMatch");
    is_refused(
        &ranged.without("range").send(proxy.addr()),
        403,
        "SignatureDoesNotMatch",
    );
}

#[test]
fn who_has_signed_may_set_fields_of_the_answer() {
    let origin = objects();
    let proxy = private(&origin);
    let target = format!("{OBJECT}?response-content-type=text%2Fplain");
    for _ in 0..2 {
        let answer = get(&proxy, Way::presigned(ALICE), &target);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        stored(&proxy, 1);
    }
    is_refused(&proxy.get(&target), 403, "AccessDenied");
}

#[test]
fn a_part_lets_the_proxy_fetch_the_whole_for_itself() {
    let origin = objects();
    let proxy = private(&origin);
    let host = proxy.addr().to_string();
    let ranged = Way::header(ALICE).sign(&host, "GET", OBJECT, &[("range", "bytes=0-9")]);
    assert_eq!(ranged.send(proxy.addr()).status, 206);
    stored(&proxy, 1);
    is_object(&get(&proxy, Way::header(ALICE), OBJECT), "HIT");
    is_refused(&proxy.get(OBJECT), 403, "AccessDenied");
}

#[test]
fn buckets_have_clients_of_their_own() {
    let origin = objects();
    let other = "[{access_key: AKIAALICE, secret_key: another}]";
    let proxy = builder()
        .bucket(bucket(&origin).set("auth", "sigv4").set("clients", CLIENTS))
        .bucket(
            Bucket::at(&origin, "/other", "bucket2")
                .set("auth", "sigv4")
                .set("clients", other),
        )
        .bucket(Bucket::at(&origin, "/open", "bucket3"))
        .start();
    assert_eq!(get(&proxy, Way::header(ALICE), OBJECT).status, 200);
    let answer = get(&proxy, Way::header(ALICE), "/other/object");
    is_refused(&answer, 403, "SignatureDoesNotMatch");
    let answer = get(&proxy, Way::header(CAROL), "/other/object");
    is_refused(&answer, 403, "InvalidAccessKeyId");
    assert_eq!(proxy.get("/open/object").status, 200);
    // A URL for one bucket does not open another.
    let signed = sign_for(&proxy, Way::presigned(ALICE), OBJECT);
    let moved = signed.target_with("/assets/", "/other/");
    is_refused(&moved.send(proxy.addr()), 403, "SignatureDoesNotMatch");
}

#[test]
fn what_only_reads_is_said_to_those_who_may_ask() {
    let origin = objects();
    let proxy = private(&origin);
    let host = proxy.addr().to_string();
    let signed = Way::header(ALICE).sign(&host, "DELETE", OBJECT, &[]);
    is_refused(&signed.send(proxy.addr()), 501, "NotImplemented");
    let unsigned = request(proxy.addr(), "DELETE", OBJECT, &[]);
    is_refused(&unsigned, 403, "AccessDenied");
    let location = get(&proxy, Way::header(BOB), "/assets/?location");
    assert_eq!(location.status, 200);
    is_refused(&proxy.get("/assets/?location"), 403, "AccessDenied");
    let head = Way::header(BOB).sign(&host, "HEAD", "/assets", &[]);
    assert_eq!(head.send(proxy.addr()).status, 200);
    assert!(origin.requests().is_empty());
}

#[test]
fn each_key_has_a_rate_of_its_own() {
    let origin = objects();
    let bucket = bucket(&origin).set("auth", "sigv4").set("clients", CLIENTS);
    let proxy = builder()
        .bucket(bucket)
        .limit("requests_per_second", 5)
        .start();
    // Anyone can name Alice's key, who is not charged for that.
    let forger = Keys {
        secret_key: "a guess",
        ..ALICE
    };
    let refused_of = |keys: Keys| {
        let statuses = (0..100).map(|_| get(&proxy, Way::header(keys), OBJECT).status);
        statuses.filter(|status| *status == 429).count()
    };
    assert!(refused_of(forger) > 0);
    assert_eq!(get(&proxy, Way::header(ALICE), OBJECT).status, 200);
    assert!(refused_of(ALICE) > 0);
    // A key of the same address.
    let shared = "/assets/shared/object";
    assert_eq!(get(&proxy, Way::header(BOB), shared).status, 200);
    assert_eq!(get(&proxy, Way::presigned(CAROL), OBJECT).status, 200);
}

#[test]
fn the_log_has_no_presigned_url() {
    let origin = Origin::start(|_| Reply::pattern(1, LEN as u64).close_at(10));
    let proxy = private(&origin);
    let signed = sign_for(&proxy, Way::presigned(ALICE), OBJECT);
    for _ in 0..3 {
        signed.send(proxy.addr());
    }
    eventually("the failure is logged", || proxy.stderr().contains(OBJECT));
    assert!(!proxy.stderr().contains("X-Amz"), "{}", proxy.stderr());
}

#[test]
fn refusals_do_not_fill_the_log() {
    let origin = objects();
    let proxy = private(&origin);
    let before = proxy.stderr().len();
    let unknown = sign_for(
        &proxy,
        Way::header(Keys {
            access_key: "x",
            ..ALICE
        }),
        OBJECT,
    );
    for _ in 0..50 {
        proxy.get(OBJECT);
        proxy.get(&format!("{OBJECT}?X-Amz-Signature=0"));
        unknown.send(proxy.addr());
    }
    refusals(&proxy, "unsigned", 50);
    refusals(&proxy, "malformed", 50);
    refusals(&proxy, "unknown_key", 50);
    let written = proxy.stderr()[before..].to_owned();
    assert_eq!(written, "");
}

// --- jwt ---

const SECRET: &[u8; 40] = b"a secret that is long enough for HS256..";

/// A file of keys that is gone when dropped.
struct KeyFile {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn key_file(content: impl AsRef<[u8]>) -> KeyFile {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("keys");
    fs::write(&path, content).expect("write the keys");
    KeyFile { _dir: dir, path }
}

/// A proxy whose clients have tokens. `rules`: further keys of the section.
fn with_tokens(origin: &Origin, file: &str, keys: &KeyFile, rules: &str) -> Proxy {
    let section = format!("{{{file}: '{}'{rules}}}", keys.path.display());
    let bucket = bucket(origin).set("auth", "jwt").set("jwt", section);
    builder().bucket(bucket).start()
}

fn after(secs: i64) -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time");
    now.as_secs() as i64 + secs
}

fn claims(more: &str) -> String {
    format!("{{\"exp\":{}{more}}}", after(300))
}

fn with_token(proxy: &Proxy, target: &str, token: &str) -> Response {
    let bearer = format!("Bearer {token}");
    request(proxy.addr(), "GET", target, &[("Authorization", &bearer)])
}

#[track_caller]
fn is_challenged(answer: &Response, why: &str) {
    is_refused(answer, 401, "AccessDenied");
    let challenge = answer.header("www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("Bearer realm=\"s3\""), "{challenge}");
    assert!(challenge.contains(why), "{challenge}");
    assert_eq!(challenge.contains("error"), !why.is_empty(), "{challenge}");
}

#[test]
fn tokens_open_a_bucket() {
    let origin = objects();
    let keys = key_file(SECRET);
    let proxy = with_tokens(&origin, "hmac_key_file", &keys, "");
    let key = TokenKey::hs256(SECRET);
    is_challenged(&proxy.get(OBJECT), "");
    let token = key.token(&claims(""));
    is_object(&with_token(&proxy, OBJECT, &token), "MISS");
    stored(&proxy, 1);
    is_object(&with_token(&proxy, OBJECT, &token), "HIT");
    is_object(
        &with_token(&proxy, OBJECT, &key.token(&claims(",\"a\":1"))),
        "HIT",
    );
    let lower = format!("bearer {token}");
    is_object(
        &request(proxy.addr(), "GET", OBJECT, &[("Authorization", &lower)]),
        "HIT",
    );
    // On hits too.
    is_challenged(&proxy.get(OBJECT), "");
    refusals(&proxy, "unsigned", 2);
    let expired = key.token(&format!("{{\"exp\":{}}}", after(-100)));
    is_challenged(&with_token(&proxy, OBJECT, &expired), "has expired");
    let early = key.token(&claims(&format!(",\"nbf\":{}", after(100))));
    is_challenged(&with_token(&proxy, OBJECT, &early), "not valid yet");
    refusals(&proxy, "time", 2);
    let other = TokenKey::hs256(&[1; 32]).token(&claims(""));
    is_challenged(&with_token(&proxy, OBJECT, &other), "signature");
    refusals(&proxy, "signature", 1);
    is_challenged(&with_token(&proxy, OBJECT, &key.token("{}")), "claim");
    refusals(&proxy, "claims", 1);
    let none = key.token_with("{\"alg\":\"none\"}", &claims(""));
    is_challenged(&with_token(&proxy, OBJECT, &none), "algorithm");
    is_challenged(&with_token(&proxy, OBJECT, "x"), "malformed");
    refusals(&proxy, "malformed", 2);
    let basic = [("Authorization", "Basic YTpi")];
    is_challenged(&request(proxy.addr(), "GET", OBJECT, &basic), "");
    let asked = origin.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
}

#[test]
fn tokens_of_public_keys_open_a_bucket() {
    for key in [TokenKey::rs256(), TokenKey::es256(), TokenKey::eddsa()] {
        let origin = objects();
        let pem = key_file(key.public_pem());
        let proxy = with_tokens(&origin, "public_key_file", &pem, "");
        for cache in ["MISS", "HIT"] {
            is_object(&with_token(&proxy, OBJECT, &key.token(&claims(""))), cache);
            stored(&proxy, 1);
        }
        // Whoever knows the public key signs with it as a secret.
        let confused = TokenKey::hs256(key.public_pem().as_bytes()).token(&claims(""));
        is_challenged(&with_token(&proxy, OBJECT, &confused), "algorithm");
    }
}

#[test]
fn a_token_names_a_key_of_the_set() {
    let origin = objects();
    let [one, two] = [TokenKey::es256(), TokenKey::es256()];
    let set = format!("{{\"keys\":[{},{}]}}", one.jwk("one"), two.jwk("two"));
    let rules = ", issuers: [me], audiences: [s3]";
    let proxy = with_tokens(&origin, "jwks_file", &key_file(set), rules);
    let good = claims(",\"iss\":\"me\",\"aud\":\"s3\"");
    is_object(
        &with_token(&proxy, OBJECT, &one.token_of("one", &good)),
        "MISS",
    );
    stored(&proxy, 1);
    is_object(
        &with_token(&proxy, OBJECT, &two.token_of("two", &good)),
        "HIT",
    );
    is_challenged(
        &with_token(&proxy, OBJECT, &two.token_of("one", &good)),
        "signature",
    );
    is_challenged(
        &with_token(&proxy, OBJECT, &two.token_of("three", &good)),
        "key",
    );
    let issuer = claims(",\"iss\":\"you\",\"aud\":\"s3\"");
    is_challenged(
        &with_token(&proxy, OBJECT, &one.token_of("one", &issuer)),
        "issuer",
    );
    let audience = claims(",\"iss\":\"me\",\"aud\":\"s4\"");
    is_challenged(
        &with_token(&proxy, OBJECT, &one.token_of("one", &audience)),
        "audience",
    );
}

#[test]
fn a_claim_limits_what_a_client_reads() {
    let origin = objects();
    let rules = ", prefix_claim: prefixes";
    let proxy = with_tokens(&origin, "hmac_key_file", &key_file(SECRET), rules);
    let key = TokenKey::hs256(SECRET);
    let token = key.token(&claims(",\"prefixes\":[\"team-b/\"]"));
    assert_eq!(with_token(&proxy, "/assets/team-b/a", &token).status, 200);
    let whole = key.token(&claims(",\"prefixes\":\"\""));
    for target in [
        "/assets/team-a/a",
        "/assets/team-b",
        "/assets/team-b/../team-a/a",
    ] {
        let answer = with_token(&proxy, target, &token);
        is_refused(&answer, 403, "AccessDenied");
        assert_eq!(with_token(&proxy, target, &whole).status, 200, "{target}");
        // The object is stored by then, and refused all the same.
        is_refused(&with_token(&proxy, target, &token), 403, "AccessDenied");
    }
    is_challenged(
        &with_token(&proxy, OBJECT, &key.token(&claims(""))),
        "claim",
    );
}

#[test]
fn a_token_comes_in_a_cookie_or_a_query_only_where_allowed() {
    let origin = objects();
    let keys = key_file(SECRET);
    let token = TokenKey::hs256(SECRET).token(&claims(""));
    let cookie = format!("a=b; session={token}; c=d");
    let cookie = [("Cookie", &*cookie)];
    let in_query = format!("{OBJECT}?a=b&access_token={token}");

    let strict = with_tokens(&origin, "hmac_key_file", &keys, "");
    is_challenged(&request(strict.addr(), "GET", OBJECT, &cookie), "");
    is_challenged(&strict.get(&in_query), "");

    let rules = ", cookie: session, query: access_token";
    let lax = with_tokens(&origin, "hmac_key_file", &keys, rules);
    for cache in ["MISS", "HIT", "HIT"] {
        let answer = request(lax.addr(), "GET", OBJECT, &cookie);
        is_object(&answer, cache);
        // A cache in front of the proxy would give it to all.
        assert_eq!(answer.header("vary"), Some("Cookie"));
        stored(&lax, 1);
    }
    is_object(&lax.get(&in_query), "HIT");
    is_object(&with_token(&lax, OBJECT, &token), "HIT");
    assert_eq!(with_token(&lax, OBJECT, &token).header("vary"), None);
    let twice = lax.get(&format!("{in_query}&access_token={token}"));
    is_refused(&twice, 400, "InvalidRequest");
    let bearer = format!("Bearer {token}");
    let twice = [("Authorization", &*bearer), ("Authorization", &*bearer)];
    is_refused(
        &request(lax.addr(), "GET", OBJECT, &twice),
        400,
        "InvalidRequest",
    );
    // The header counts.
    let wrong = [cookie[0], ("Authorization", "Bearer x")];
    is_challenged(&request(lax.addr(), "GET", OBJECT, &wrong), "malformed");
    let asked = origin.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        (&*asked[0].target, asked[0].header("cookie")),
        ("/bucket/object", None)
    );
}

#[test]
fn what_a_cookie_gives_is_not_for_everybody() {
    let origin = Origin::start(|_| Reply::bytes("no such object").with_status(404));
    let keys = key_file(SECRET);
    let token = TokenKey::hs256(SECRET).token(&claims(""));
    let section = format!(
        "{{hmac_key_file: '{}', cookie: session}}",
        keys.path.display()
    );
    let bucket = bucket(&origin)
        .set("auth", "jwt")
        .set("jwt", section)
        .set("list", "true");
    // The TTL is long, so that the second 404 is a remembered one on a slow machine too.
    let proxy = builder().bucket(bucket).negative_ttl("1h").start();
    let cookie = format!("session={token}");
    let cookie = [("Cookie", &*cookie)];
    for (target, status) in [
        ("/assets/absent", 404),
        ("/assets/absent", 404),
        ("/assets?location", 200),
        ("/assets?acl", 501),
        ("/", 200),
    ] {
        let answer = request(proxy.addr(), "GET", target, &cookie);
        assert_eq!(answer.status, status, "{target}");
        assert_eq!(answer.header("vary"), Some("Cookie"), "{target}");
        // Shared caches store no answer to a request with `Authorization` (RFC 9111 §3.5).
        assert_eq!(with_token(&proxy, target, &token).header("vary"), None);
    }
    assert_eq!(origin.requests().len(), 1);
}

// --- proxies in front, and the access log ---

#[test]
fn the_id_of_a_trusted_proxy_breaks_no_signature() {
    const ID: &str = "x-amz-request-id";
    let origin = objects();
    for (networks, status) in [("[127.0.0.1]", 200), ("[192.0.2.1]", 403)] {
        let bucket = bucket(&origin).set("auth", "sigv4").set("clients", CLIENTS);
        let proxy = builder().bucket(bucket).trusted_proxies(networks).start();
        let plain = sign_for(&proxy, Way::header(ALICE), OBJECT);
        for ids in [&["7"][..], &["not plain"], &["7", "8"]] {
            let add = |signed: Signed, id: &&str| signed.with(ID, id);
            let sent = ids.iter().fold(plain.clone(), add);
            assert_eq!(sent.send(proxy.addr()).status, status, "{ids:?}");
        }
        // The client itself has sent and signed this one.
        let host = proxy.addr().to_string();
        let signed = Way::header(ALICE).sign(&host, "GET", OBJECT, &[(ID, "7")]);
        assert_eq!(signed.send(proxy.addr()).status, 200);
    }
}

#[test]
fn the_access_log_names_no_key_that_only_the_client_names() {
    let origin = objects();
    let keys = key_file(SECRET);
    let section = format!("{{hmac_key_file: '{}'}}", keys.path.display());
    let at = |path, name| Bucket::at(&origin, path, name);
    let proxy = builder()
        .bucket(
            at("/assets", "bucket")
                .set("auth", "sigv4")
                .set("clients", CLIENTS)
                .set("list", "true"),
        )
        .bucket(at("/token", "two").set("auth", "jwt").set("jwt", section))
        .bucket(at("/open", "three"))
        .access_log()
        .start();
    let bearer = format!("Bearer {}", TokenKey::hs256(SECRET).token(&claims("")));
    let forged = "AWS AKIAMALLORY:signature=";
    let plain = |target: &str, authorization: &str| Signed {
        method: "GET",
        target: target.to_owned(),
        fields: vec![("authorization".to_owned(), authorization.to_owned())],
    };
    let alice = Way::header(ALICE);
    let tampered = sign_for(&proxy, Way::presigned(ALICE), OBJECT).target_with("object", "other");
    for (number, (request, status, key)) in [
        (sign_for(&proxy, alice, OBJECT), 200, Some("AKIAALICE")),
        (
            sign_for(&proxy, Way::presigned(ALICE), OBJECT),
            200,
            Some("AKIAALICE"),
        ),
        (sign_for(&proxy, alice, "/"), 200, Some("AKIAALICE")),
        // An error has the key that the client names, whoever it is.
        (tampered, 403, Some("AKIAALICE")),
        (plain("/elsewhere", forged), 404, Some("AKIAMALLORY")),
        (plain("/open/object", forged), 200, None),
        (
            plain("/token/object?AWSAccessKeyId=AKIAMALLORY", &bearer),
            200,
            None,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(request.send(proxy.addr()).status, status, "{request:?}");
        let text = || fs::read_to_string(proxy.access_log()).unwrap_or_default();
        eventually("the request has its line", || {
            text().lines().count() > number
        });
        let text = text();
        let line = text.lines().last().expect("a line");
        let named = key.map(|key| format!("\"key_id\":\"{key}\""));
        match named {
            Some(named) => assert!(line.contains(&named), "{line}"),
            None => assert!(!line.contains("key_id"), "{line}"),
        }
    }
}
