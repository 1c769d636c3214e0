//! Objects as S3 clients ask for them: versions, parts, checksums, and what the origin has to
//! decide on each request.

use crate::builder;
use test_support::{
    eventually, pattern, request, Bucket, Origin, Proxy, ProxyBuilder, Reply, Request, Response,
};

const LEN: usize = 100_000;
const OBJECT: &str = "/assets/object";

fn proxy(origin: &Origin) -> ProxyBuilder {
    builder().bucket(Bucket::at(origin, "/assets", "bucket").credentials("AKIAPROXY", "secret"))
}

fn stored(proxy: &Proxy, entries: u64) {
    eventually("the objects are stored", || {
        proxy.metric("cache_entries") == entries
    });
}

fn ask(proxy: &Proxy, query: &str, fields: &[(&str, &str)]) -> Response {
    request(proxy.addr(), "GET", &format!("{OBJECT}{query}"), fields)
}

fn code(answer: &Response) -> String {
    let document = String::from_utf8_lossy(&answer.body);
    let code = document.split_once("<Code>");
    let code = code.and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or(document.to_string(), |(code, _)| code.to_owned())
}

/// The names of the fields under the signature.
fn signed_fields(asked: &Request) -> Vec<String> {
    let signature = asked.header("authorization").expect("a signature");
    let (_, names) = signature.split_once("SignedHeaders=").expect("names");
    let names = names.split(',').next().unwrap_or_default();
    names.split(';').map(str::to_owned).collect()
}

// --- versions ---

/// An origin with two versions; the second is the current one.
fn versions() -> Origin {
    Origin::start(|asked| {
        let (seed, id) = match asked.target.split_once("?versionId=") {
            Some((_, "1%2B")) => (1, "1+"),
            Some((_, "null")) => (3, "null"),
            Some(_) => return Reply::bytes("<Error/>").with_status(404),
            None => (2, "2"),
        };
        Reply::pattern(seed, LEN as u64)
            .header("etag", format!("\"{seed}\""))
            .header("x-amz-version-id", id)
            .answering(asked)
    })
}

#[test]
fn each_version_is_an_object_of_its_own() {
    let origin = versions();
    let proxy = proxy(&origin).admin().start();
    for (query, seed) in [("", 2), ("?versionId=1%2B", 1), ("?versionId=null", 3)] {
        let miss = ask(&proxy, query, &[]);
        assert_eq!(miss.header("x-cache"), Some("MISS"), "{query}");
        assert!(miss.body == pattern(seed, LEN), "{query}");
    }
    stored(&proxy, 3);
    assert_eq!(origin.requests().len(), 3);
    for (query, seed, id) in [
        ("", 2, "2"),
        ("?x-id=GetObject&versionId=1%2b", 1, "1+"),
        ("?versionId=null", 3, "null"),
    ] {
        let hit = ask(&proxy, query, &[]);
        assert_eq!(hit.header("x-cache"), Some("HIT"), "{query}");
        assert_eq!(hit.header("x-amz-version-id"), Some(id));
        assert!(hit.body == pattern(seed, LEN), "{query}");
        let part = ask(&proxy, query, &[("Range", "bytes=10-19")]);
        assert_eq!(part.status, 206);
        assert!(part.body == pattern(seed, LEN)[10..20]);
        let head = request(proxy.addr(), "HEAD", &format!("{OBJECT}{query}"), &[]);
        assert_eq!(head.header("x-amz-version-id"), Some(id));
    }
    assert_eq!(origin.requests().len(), 3);

    let purge = |path: &str| request(proxy.admin_addr(), "PURGE", path, &[]).status;
    assert_eq!(purge("/assets/object?versionId=1%2B"), 200);
    let miss = ask(&proxy, "?versionId=1%2B", &[]);
    assert_eq!(miss.header("x-cache"), Some("MISS"));
    assert_eq!(ask(&proxy, "", &[]).header("x-cache"), Some("HIT"));
}

#[test]
fn a_version_that_is_missing_says_nothing_of_others() {
    let origin = versions();
    let proxy = proxy(&origin).negative_ttl("1h").start();
    for _ in 0..2 {
        let missing = ask(&proxy, "?versionId=9", &[]);
        assert_eq!((missing.status, &*code(&missing)), (404, "NoSuchVersion"));
    }
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(ask(&proxy, "", &[]).status, 200);
    for query in ["?versionId=", "?versionId", "?versionId=1&versionId=2"] {
        let refused = ask(&proxy, query, &[]);
        assert_eq!((refused.status, &*code(&refused)), (400, "InvalidArgument"));
    }
    assert_eq!(origin.requests().len(), 2);
}

// --- parts ---

#[test]
fn a_part_is_not_mixed_with_the_whole() {
    let origin = Origin::start(|asked| {
        let whole = Reply::pattern(1, LEN as u64).header("etag", "\"1-2\"");
        match asked.target.split_once("?partNumber=") {
            None => whole.answering(asked),
            Some((_, "2")) => Reply::bytes(&pattern(1, LEN)[60_000..])
                .with_status(206)
                .header("etag", "\"1-2\"")
                .header("content-range", format!("bytes 60000-{}/{LEN}", LEN - 1))
                .header("x-amz-mp-parts-count", 2),
            Some((_, "3")) => Reply::bytes("x")
                .with_status(206)
                .header("content-range", "bytes 0-9/10"),
            Some(_) => Reply::bytes("<Error/>").with_status(416),
        }
    });
    let proxy = proxy(&origin).start();
    let part = |number: &str| ask(&proxy, &format!("?partNumber={number}"), &[]);
    for turn in ["before", "after"] {
        let second = part("2");
        assert_eq!(second.status, 206, "{turn} the whole is stored");
        assert_eq!(second.header("x-amz-mp-parts-count"), Some("2"));
        assert_eq!(
            second.header("content-range"),
            Some("bytes 60000-99999/100000")
        );
        assert!(second.body == pattern(1, LEN)[60_000..], "{turn}");
        let whole = ask(&proxy, "", &[]);
        assert_eq!(whole.status, 200);
        assert_eq!(whole.header("x-amz-mp-parts-count"), None);
        assert!(whole.body == pattern(1, LEN), "{turn}");
        stored(&proxy, 1);
    }
    let missing = part("9");
    assert_eq!(
        (missing.status, &*code(&missing)),
        (416, "InvalidPartNumber")
    );
    let head = request(proxy.addr(), "HEAD", "/assets/object?partNumber=2", &[]);
    assert_eq!(
        (head.status, head.header("x-amz-mp-parts-count")),
        (206, Some("2"))
    );
    assert_eq!(
        part("3").status,
        502,
        "a part of another length than it says"
    );

    origin.forget_requests();
    let both = ask(&proxy, "?partNumber=2", &[("Range", "bytes=0-1")]);
    assert_eq!((both.status, &*code(&both)), (400, "InvalidRequest"));
    for number in ["0", "10001", "x"] {
        assert_eq!(code(&part(number)), "InvalidArgument");
    }
    assert!(origin.requests().is_empty());
}

#[test]
fn a_part_of_a_version_is_asked_for_by_both() {
    let origin = Origin::start(|_| Reply::bytes("part"));
    let proxy = proxy(&origin).start();
    assert_eq!(
        ask(&proxy, "?versionId=a%2Fb&partNumber=1", &[]).status,
        200
    );
    let asked = &origin.requests()[0];
    assert_eq!(asked.target, "/bucket/object?partNumber=1&versionId=a%2Fb");
}

// --- checksums ---

#[test]
fn checksums_are_stored_and_given_to_those_who_ask() {
    let origin = Origin::start(|asked| {
        assert_eq!(asked.header("x-amz-checksum-mode"), Some("ENABLED"));
        assert!(signed_fields(asked).contains(&"x-amz-checksum-mode".to_owned()));
        Reply::pattern(1, LEN as u64)
            .header("etag", "\"1\"")
            .header("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")
            .header("x-amz-checksum-type", "FULL_OBJECT")
            .answering(asked)
    });
    let proxy = proxy(&origin).start();
    let wanted = ("x-amz-checksum-mode", "ENABLED");
    let checksum = |answer: &Response| {
        let of = |name| answer.header(name).map(str::to_owned);
        assert_eq!(
            of("x-amz-checksum-crc64nvme").is_some(),
            of("x-amz-checksum-type").is_some()
        );
        of("x-amz-checksum-crc64nvme")
    };
    let miss = ask(&proxy, "", &[]);
    assert_eq!(checksum(&miss), None);
    stored(&proxy, 1);
    // Neither kind of client changes what the other one gets, on the fast path either.
    for _ in 0..3 {
        let hit = ask(&proxy, "", &[wanted]);
        assert_eq!(hit.header("x-cache"), Some("HIT"));
        assert_eq!(checksum(&hit).as_deref(), Some("AAAAAAAAAAA="));
        let hit = ask(&proxy, "", &[]);
        assert_eq!(hit.header("x-cache"), Some("HIT"));
        assert_eq!(checksum(&hit), None);
        let head = request(proxy.addr(), "HEAD", OBJECT, &[wanted]);
        assert_eq!(checksum(&head).as_deref(), Some("AAAAAAAAAAA="));
    }
    // It is that of the whole, and a client would compare it with the range.
    let part = ask(&proxy, "", &[wanted, ("Range", "bytes=0-9")]);
    assert_eq!((part.status, checksum(&part)), (206, None));
    assert_eq!(origin.requests().len(), 1);
}

// --- what the origin decides ---

#[test]
fn an_object_with_a_key_of_the_client_is_never_stored() {
    const KEY: &str = "x-amz-server-side-encryption-customer-key";
    let origin = Origin::start(|asked| match asked.header(KEY) {
        Some("right") => {
            for name in [KEY, "x-amz-server-side-encryption-customer-algorithm"] {
                assert!(signed_fields(asked).contains(&name.to_owned()), "{name}");
            }
            Reply::pattern(1, LEN as u64)
                .header("etag", "\"1\"")
                .answering(asked)
        }
        Some(_) => Reply::bytes("<Error/>").with_status(403),
        None => Reply::bytes("<Error/>").with_status(400),
    });
    let proxy = proxy(&origin).start();
    let with_key = |key, range: &[(&str, &str)]| {
        let algorithm = ("x-amz-server-side-encryption-customer-algorithm", "AES256");
        let fields = [&[(KEY, key), algorithm], range].concat();
        ask(&proxy, "", &fields)
    };
    for _ in 0..2 {
        let answer = with_key("right", &[]);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-cache"), Some("BYPASS"));
        assert!(answer.body == pattern(1, LEN));
        assert_eq!(with_key("wrong", &[]).status, 403);
        let without = ask(&proxy, "", &[]);
        assert_eq!((without.status, &*code(&without)), (400, "InvalidRequest"));
        let part = with_key("right", &[("Range", "bytes=5-9")]);
        assert_eq!(part.status, 206);
        assert!(part.body == pattern(1, LEN)[5..10]);
    }
    assert_eq!(origin.requests().len(), 8);
    assert_eq!(proxy.metric("cache_entries"), 0);
}

#[test]
fn who_pays_and_who_owns_is_for_the_origin_to_judge_on_hits_too() {
    let origin = Origin::start(|asked| {
        let refuses = asked.header("x-amz-expected-bucket-owner") == Some("2");
        match refuses {
            true => Reply::bytes("<Error/>").with_status(403),
            false => Reply::pattern(1, LEN as u64).header("etag", "\"1\""),
        }
    });
    let proxy = proxy(&origin).start();
    ask(&proxy, "", &[]);
    stored(&proxy, 1);
    origin.forget_requests();
    let owner = "x-amz-expected-bucket-owner";
    for (name, value, status) in [
        (owner, "1", 200),
        (owner, "2", 403),
        ("x-amz-request-payer", "requester", 200),
    ] {
        let answer = ask(&proxy, "", &[(name, value)]);
        assert_eq!(answer.status, status, "{name}");
        let asked = origin.requests().pop().expect("a request");
        assert_eq!(asked.header(name), Some(value));
        assert!(signed_fields(&asked).contains(&name.to_owned()));
    }
    assert_eq!(origin.requests().len(), 3);
    assert_eq!(ask(&proxy, "", &[]).header("x-cache"), Some("HIT"));
}

/// As S3: "Request specific response headers cannot be used for anonymous GET requests."
#[test]
fn nobody_sets_fields_of_the_response_without_authentication() {
    let origin = Origin::start(|_| Reply::pattern(1, LEN as u64).header("etag", "\"1\""));
    let proxy = proxy(&origin).start();
    ask(&proxy, "", &[]);
    stored(&proxy, 1);
    for query in [
        "?response-content-type=text/html",
        "?response-content-disposition=attachment",
        "?x-id=GetObject&response-cache-control=no-store",
    ] {
        let refused = ask(&proxy, query, &[]);
        assert_eq!((refused.status, &*code(&refused)), (400, "InvalidRequest"));
    }
    let split = ask(&proxy, "?response-expires=a%0d%0aSet-Cookie:b", &[]);
    assert_eq!((split.status, &*code(&split)), (400, "InvalidArgument"));
    assert_eq!(origin.requests().len(), 1);
}
