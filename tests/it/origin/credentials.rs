//! The credentials that sign requests to the origin: where they come from, and what
//! happens when that place answers late, wrongly or not at all.

use std::{
    fs,
    sync::{
        atomic::{AtomicUsize, Ordering},
        Arc, Mutex,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::builder;
use tempfile::TempDir;
use test_support::{eventually, get, Bucket, Gate, Origin, Proxy, ProxyBuilder, Reply, Request};

/// Makes the same reply each time.
type Answer = fn() -> Reply;

/// Secrets that must never be in a log.
const SECRET: &str = "hunter2hunter2";

#[test]
fn the_environment_has_credentials() {
    let s3 = s3();
    let proxy = proxy(&s3)
        .env("AWS_ACCESS_KEY_ID", "from-environment")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_SESSION_TOKEN", "a-token")
        .start();
    assert_eq!(proxy.get("/assets/a").status, 200);
    let request = s3.requests().pop().expect("a request");
    assert_eq!(access_key(&request), Some("from-environment"));
    assert_eq!(request.header("x-amz-security-token"), Some("a-token"));
    let bucket = [("bucket", "bucket")];
    proxy.expect_metric_where("origin_credentials_failures_total", &bucket, 0);
}

/// A configuration that was written before there was a chain means what it meant.
#[test]
fn a_bucket_without_keys_is_asked_without_a_signature() {
    let s3 = s3();
    let proxy = isolated(builder())
        .bucket(Bucket::at(&s3, "/assets", "bucket"))
        .bucket(Bucket::at(&s3, "/others", "others").set("credentials", "none"))
        .env("AWS_ACCESS_KEY_ID", "from-environment")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .start();
    assert_eq!(proxy.get("/assets/a").status, 200);
    assert_eq!(proxy.get("/others/a").status, 200);
    for request in s3.requests() {
        assert_eq!(request.header("authorization"), None);
    }
}

#[test]
fn an_instance_gives_new_credentials_before_the_old_ones_expire() {
    let s3 = s3();
    let given = AtomicUsize::new(0);
    let imds = Origin::start(move |request| {
        let path = "/latest/meta-data/iam/security-credentials/";
        let has_token = request.header("x-aws-ec2-metadata-token") == Some("imds-token");
        match (request.method.as_str(), request.path()) {
            ("PUT", "/latest/api/token") => {
                Reply::bytes("imds-token").header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
            }
            ("GET", list) if list == path && has_token => Reply::bytes("a-role"),
            ("GET", role) if role == format!("{path}a-role") && has_token => {
                let number = given.fetch_add(1, Ordering::SeqCst);
                document(&format!("instance-{number}"), 4)
            }
            _ => Reply::status(401),
        }
    });
    let proxy = proxy(&s3)
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &imds.url())
        .start();
    let mut number = 0;
    let mut seen = Vec::new();
    eventually("the credentials are replaced twice", || {
        number += 1;
        // None is ever refused: the old ones are valid until there are new ones.
        assert_eq!(proxy.get(&format!("/assets/{number}")).status, 200);
        let request = s3.requests().pop().expect("a request");
        let key = access_key(&request).map(str::to_owned);
        if seen.last() != Some(&key) {
            seen.push(key);
        }
        seen.len() == 3
    });
    let expected = [0, 1, 2].map(|number| Some(format!("instance-{number}")));
    assert_eq!(seen, expected);
    let bucket = [("bucket", "bucket")];
    let metric = proxy.metrics();
    let expiry = metric.sum_where("origin_credentials_expiry_timestamp_seconds", &bucket);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let left = expiry.saturating_sub(now.expect("a date").as_secs());
    assert!(left <= 4, "{left}");
    let found = metric.sum_where("origin_credentials_found_timestamp_seconds", &bucket);
    assert!(found < expiry && found + 4 >= expiry, "{found} {expiry}");
    proxy.expect_metric_where("origin_credentials_refused_total", &bucket, 0);
    assert!(!proxy.stderr().contains(SECRET));
}

#[test]
fn a_container_has_credentials() {
    let s3 = s3();
    let place = Place::default();
    let token = place.file("token", "pod-token");
    let container = Origin::start(|request| match request.header("authorization") {
        Some("pod-token") => document("from-container", 3600),
        _ => Reply::status(401),
    });
    let proxy = proxy(&s3)
        .env(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            &format!("{}/v1/credentials", container.url()),
        )
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token)
        .start();
    assert_eq!(proxy.get("/assets/a").status, 200);
    let request = s3.requests().pop().expect("a request");
    assert_eq!(access_key(&request), Some("from-container"));
    assert_eq!(request.header("x-amz-security-token"), Some("session"));
}

#[test]
fn a_web_identity_assumes_its_role() {
    let s3 = s3();
    let place = Place::default();
    let token = place.file("token", "eyJhbGciOi.web.identity");
    let sts = Sts::start(|_| assumed("AssumeRoleWithWebIdentity", "from-web-identity", 3600));
    let proxy = proxy(&s3)
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token)
        .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
        .env("AWS_ENDPOINT_URL_STS", &sts.0.url())
        .start();
    assert_eq!(proxy.get("/assets/a").status, 200);
    let request = s3.requests().pop().expect("a request");
    assert_eq!(access_key(&request), Some("from-web-identity"));
    let asked = sts.asked();
    assert!(
        asked.contains("Action=AssumeRoleWithWebIdentity"),
        "{asked}"
    );
    assert!(
        asked.contains("WebIdentityToken=eyJhbGciOi.web.identity"),
        "{asked}"
    );
}

#[test]
fn a_profile_names_a_role() {
    let s3 = s3();
    let place = Place::default();
    let config = place.file(
        "config",
        &format!(
            "[default]\nrole_arn = arn:aws:iam::123456789012:role/reader\n\
             source_profile = base\nexternal_id = of-profile\n\
             [profile base]\naws_access_key_id = of-base\naws_secret_access_key = {SECRET}\n"
        ),
    );
    let sts = Sts::start(|_| assumed("AssumeRole", "from-profile", 3600));
    let proxy = proxy(&s3)
        .env("AWS_CONFIG_FILE", &config)
        .env("AWS_ENDPOINT_URL_STS", &sts.0.url())
        .start();
    assert_eq!(proxy.get("/assets/a").status, 200);
    let request = s3.requests().pop().expect("a request");
    assert_eq!(access_key(&request), Some("from-profile"));
    assert!(sts.asked().contains("ExternalId=of-profile"));
    let asked = sts.0.requests().pop().expect("a request");
    assert_eq!(access_key(&asked), Some("of-base"));
}

#[test]
fn each_bucket_assumes_the_role_that_its_entry_names() {
    let s3 = s3();
    let sts = Sts::start(|request| {
        let body = String::from_utf8_lossy(&request.body);
        let key = match body.contains("role%2Fone") {
            true => "of-role-one",
            false => "of-role-two",
        };
        assumed("AssumeRole", key, 3600)
    });
    let role = |name: &str, more: &str| {
        format!("{{role_arn: 'arn:aws:iam::123456789012:role/{name}'{more}}}")
    };
    let one = Bucket::at(&s3, "/one", "one")
        .credentials("given-key", SECRET)
        .set("assume_role", role("one", ", external_id: 'a-customer/1'"));
    let two = Bucket::at(&s3, "/two", "two")
        .set("assume_role", role("two", ", session_name: of-bucket-two"));
    // Nothing is said twice of one role.
    let three = Bucket::at(&s3, "/three", "three")
        .set("assume_role", role("two", ", session_name: of-bucket-two"));
    let proxy = isolated(builder())
        .bucket(one)
        .bucket(two)
        .bucket(three)
        .env("AWS_ACCESS_KEY_ID", "from-environment")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_ENDPOINT_URL_STS", &sts.0.url())
        .start();
    for (path, expected) in [
        ("/one/a", "of-role-one"),
        ("/two/a", "of-role-two"),
        ("/three/a", "of-role-two"),
    ] {
        assert_eq!(proxy.get(path).status, 200, "{}", proxy.stderr());
        let request = s3.requests().pop().expect("a request");
        assert_eq!(access_key(&request), Some(expected));
    }
    let asked = sts.0.requests();
    assert_eq!(asked.len(), 2);
    for request in asked {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        if body.contains("role%2Fone") {
            assert_eq!(access_key(&request), Some("given-key"));
            assert!(body.contains("ExternalId=a-customer%2F1"), "{body}");
            assert!(body.contains("RoleSessionName=s3-proxy"), "{body}");
        } else {
            assert_eq!(access_key(&request), Some("from-environment"));
            assert!(!body.contains("ExternalId"), "{body}");
            assert!(body.contains("RoleSessionName=of-bucket-two"), "{body}");
        }
    }
}

#[test]
fn a_reload_looks_up_only_the_credentials_that_are_new() {
    let s3 = s3();
    let sts = Sts::start(|request| {
        let body = String::from_utf8_lossy(&request.body);
        let key = match body.contains("role%2Freader") {
            true => "of-reader",
            false => "of-writer",
        };
        assumed("AssumeRole", key, 3600)
    });
    let proxy = assuming(&s3, &sts);
    assert_eq!(proxy.get("/assets/a").status, 200);
    assert_eq!(sts.0.requests().len(), 1);

    let entry = format!(
        "  - {{path_prefix: /others, bucket: others, region: us-east-1, endpoint: '{}', \
         access_key: given-key, secret_key: {SECRET}, \
         assume_role: {{role_arn: 'arn:aws:iam::123456789012:role/writer'}}}}\n",
        s3.url()
    );
    proxy.edit_config(|yaml| yaml.replacen("buckets:\n", &format!("buckets:\n{entry}"), 1));
    assert_eq!(proxy.reload(), "ok");
    for (path, expected) in [("/assets/b", "of-reader"), ("/others/b", "of-writer")] {
        assert_eq!(proxy.get(path).status, 200);
        let request = s3.requests().pop().expect("a request");
        assert_eq!(access_key(&request), Some(expected));
    }
    assert_eq!(sts.0.requests().len(), 2);

    proxy.edit_config(|yaml| yaml.replace(&entry, ""));
    assert_eq!(proxy.reload(), "ok");
    assert_eq!(proxy.get("/assets/c").status, 200);
    assert_eq!(sts.0.requests().len(), 2);
    let metrics = proxy.metrics();
    let of = metrics.values("origin_credentials_expiry_timestamp_seconds", "bucket");
    assert_eq!(of.into_iter().collect::<Vec<_>>(), ["bucket"]);
}

#[test]
fn credentials_are_used_until_they_expire_and_then_there_is_503() {
    let s3 = s3();
    let works = Arc::new(Mutex::new(true));
    let sts = Sts::start({
        let works = works.clone();
        move |_| match *works.lock().unwrap() {
            true => assumed("AssumeRole", "assumed", 6),
            false => Reply::bytes("<oops").with_status(500),
        }
    });
    let proxy = assuming(&s3, &sts);
    assert_eq!(proxy.get("/assets/stored").status, 200);
    *works.lock().unwrap() = false;

    let bucket = [("bucket", "bucket")];
    let failures = || {
        let name = "origin_credentials_failures_total";
        proxy.metrics().sum_where(name, &bucket)
    };
    eventually("a lookup fails", || failures() > 0);
    let mut number = 0;
    let mut miss = || {
        number += 1;
        proxy.get(&format!("/assets/{number}"))
    };
    eventually("the credentials have expired", || {
        let response = miss();
        assert!(matches!(response.status, 200 | 503), "{}", response.status);
        response.status == 503
    });
    eventually("the log says so", || {
        proxy.stderr().contains("bucket bucket: no credentials")
    });
    let log = proxy.stderr();
    assert!(!log.contains(SECRET), "{log}");
    let metrics = proxy.metrics();
    let refused = metrics.sum_where("origin_credentials_refused_total", &bucket);
    assert!(refused > 0);

    // A hit needs none.
    let asked = s3.requests().len();
    assert_eq!(proxy.get("/assets/stored").status, 200);
    assert_eq!(s3.requests().len(), asked);

    *works.lock().unwrap() = true;
    eventually("the origin is asked again", || miss().status == 200);
}

#[test]
fn hits_do_not_wait_for_credentials_and_misses_not_for_ever() {
    let s3 = s3();
    let hangs = Arc::new(Mutex::new(false));
    let gate = Gate::new();
    let sts = Sts::start({
        let (hangs, gate) = (hangs.clone(), gate.clone());
        move |_| {
            let reply = assumed("AssumeRole", "assumed", 3600);
            match *hangs.lock().unwrap() {
                true => reply.hold_at(0, &gate),
                false => reply,
            }
        }
    });
    let mut proxy = assuming(&s3, &sts);
    assert_eq!(proxy.get("/assets/stored").status, 200);
    proxy.stop_gracefully();
    *hangs.lock().unwrap() = true;
    proxy.restart();

    gate.wait_for_arrivals(1);
    let begun = Instant::now();
    assert_eq!(proxy.get("/assets/stored").status, 200);
    // Less than a request may wait for credentials.
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!(proxy.get("/assets/other").status, 503);
    // Less than a lookup may take.
    assert!(begun.elapsed() < Duration::from_secs(20));

    // One that waits is answered when the lookup ends.
    let address = proxy.addr();
    let waiting = thread::spawn(move || get(address, "/assets/waiting").status);
    gate.open();
    assert_eq!(waiting.join().expect("an answer"), 200);
}

#[test]
fn nonsense_is_no_credential() {
    let s3 = s3();
    let answers: [(&str, Answer); 9] = [
        ("no JSON", || Reply::bytes(format!("<html>{SECRET}</html>"))),
        ("no JSON object", || Reply::bytes(format!("[\"{SECRET}\"]"))),
        ("no keys", || Reply::bytes("{}")),
        ("a number", || {
            Reply::bytes(format!(
                "{{\"AccessKeyId\": 1, \"SecretAccessKey\": \"{SECRET}\"}}"
            ))
        }),
        ("expired", || document("expired", -60)),
        ("empty", || document("", 3600)),
        ("a line end", || document("key\\r\\nx-injected: 1", 3600)),
        ("nothing", || Reply::status(204)),
        ("a redirect", || {
            Reply::status(302).header("Location", "http://127.0.0.1:1/")
        }),
    ];
    for (name, nonsense) in answers {
        let container = Origin::start(move |_| nonsense());
        let proxy = proxy(&s3)
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container.url())
            .start();
        assert_eq!(proxy.get("/assets/a").status, 503, "{name}");
        eventually(&format!("{name}: the log says why"), || {
            proxy.stderr().contains("no credentials")
        });
        let log = proxy.stderr();
        assert!(!log.contains(SECRET), "{name}: {log}");
    }
    assert_eq!(s3.requests().len(), 0);
}

/// An empty folder, for files that the environment names.
struct Place(TempDir);

/// A Security Token Service.
struct Sts(Origin);

// === impl Place ===

impl Default for Place {
    fn default() -> Self {
        Place(TempDir::new().expect("make a folder"))
    }
}

impl Place {
    fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, content).expect("write a file");
        path.display().to_string()
    }
}

// === impl Sts ===

impl Sts {
    fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Sts(Origin::start(answer))
    }

    /// The parameters of the last request.
    fn asked(&self) -> String {
        let request = self.0.requests().pop().expect("a request to STS");
        String::from_utf8(request.body).expect("parameters")
    }
}

fn s3() -> Origin {
    Origin::start(|request| {
        Reply::bytes("hello")
            .header("ETag", "\"a\"")
            .answering(request)
    })
}

/// A proxy without credentials in its home.
fn isolated(builder: ProxyBuilder) -> ProxyBuilder {
    builder
        .env("AWS_CONFIG_FILE", "/nonexistent/config")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
}

/// A proxy whose bucket has the credentials that the chain finds.
fn proxy(s3: &Origin) -> ProxyBuilder {
    isolated(builder()).bucket(Bucket::at(s3, "/assets", "bucket").set("credentials", "chain"))
}

/// A proxy with a bucket that is read in a role.
fn assuming(s3: &Origin, sts: &Sts) -> Proxy {
    let role = "{role_arn: 'arn:aws:iam::123456789012:role/reader'}";
    let bucket = Bucket::at(s3, "/assets", "bucket")
        .credentials("given-key", SECRET)
        .set("assume_role", role);
    isolated(builder())
        .bucket(bucket)
        .env("AWS_ENDPOINT_URL_STS", &sts.0.url())
        .start()
}

/// The access key of a signature.
fn access_key(request: &Request) -> Option<&str> {
    let (_, credential) = request.header("authorization")?.split_once("Credential=")?;
    Some(credential.split_once('/')?.0)
}

fn date_after(seconds: i64) -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a date");
    let date = now.as_secs() as i64 + seconds;
    let date = time::OffsetDateTime::from_unix_timestamp(date).expect("a date");
    let format = time::format_description::well_known::Rfc3339;
    date.format(&format).expect("a date")
}

/// The answer of an instance or a container.
fn document(access_key: &str, seconds: i64) -> Reply {
    Reply::bytes(format!(
        "{{\"Code\": \"Success\", \"Type\": \"AWS-HMAC\", \"AccessKeyId\": \"{access_key}\", \
         \"SecretAccessKey\": \"{SECRET}\", \"Token\": \"session\", \
         \"LastUpdated\": \"{}\", \"Expiration\": \"{}\"}}",
        date_after(-60),
        date_after(seconds)
    ))
    .header("Content-Type", "application/json")
}

/// The answer of STS.
fn assumed(action: &str, access_key: &str, seconds: i64) -> Reply {
    Reply::bytes(format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>\
         <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/reader/s</Arn>\
         <AssumedRoleId>AROA:s</AssumedRoleId></AssumedRoleUser>\
         <Credentials><AccessKeyId>{access_key}</AccessKeyId>\
         <SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>session</SessionToken>\
         <Expiration>{}</Expiration></Credentials></{action}Result>\
         <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></{action}Response>",
        date_after(seconds)
    ))
    .header("Content-Type", "text/xml")
}
