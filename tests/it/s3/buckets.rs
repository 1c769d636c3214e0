//! Buckets as S3 clients ask for them: whether they are there, where, and what is in them.

use std::fmt::Write;

use crate::builder;
use test_support::{
    eventually, request, Bucket, Connection, Origin, ProxyBuilder, Reply, Request, Response,
};

/// An origin that lists as many objects of the prefix that it is asked for.
fn lists(objects: usize) -> Origin {
    Origin::start(move |asked| {
        Reply::bytes(list(asked, objects)).header("content-type", "text/xml")
    })
}

fn list(asked: &Request, objects: usize) -> String {
    let prefix = parameter(asked, "prefix");
    let mut document = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Name>internal</Name><Prefix>{prefix}</Prefix><KeyCount>{objects}</KeyCount>\
         <IsTruncated>false</IsTruncated>"
    );
    for number in 0..objects {
        let _ = write!(
            document,
            "<Contents><Key>{prefix}object-{number}&amp;</Key><ETag>&quot;{number}&quot;</ETag>\
             <Size>1</Size></Contents>"
        );
    }
    document + "</ListBucketResult>"
}

fn parameter(asked: &Request, name: &str) -> String {
    let query = asked.target.split_once('?').map_or("", |(_, query)| query);
    let values = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = values.into_iter().find(|(known, _)| *known == name);
    value.map_or_else(String::new, |(_, value)| value.replace("%2F", "/"))
}

fn proxy(origin: &Origin) -> ProxyBuilder {
    builder()
        .bucket(
            Bucket::at(origin, "/open", "internal")
                .region("eu-west-1")
                .credentials("AKIAPROXY", "secret")
                .set("list", "true"),
        )
        .bucket(
            Bucket::at(origin, "/team", "internal")
                .credentials("AKIAPROXY", "secret")
                .set("key_prefix", "a/b/")
                .set("list", "true"),
        )
        .bucket(Bucket::at(origin, "/closed", "internal"))
}

fn text(answer: &Response) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

fn code(answer: &Response) -> String {
    let document = text(answer);
    let code = document.split_once("<Code>");
    let code = code.and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or(document.clone(), |(code, _)| code.to_owned())
}

#[test]
fn a_bucket_is_there_and_says_where() {
    let origin = lists(0);
    let proxy = proxy(&origin).start();
    for (path, region, location) in [
        ("/open", "eu-west-1", ">eu-west-1</LocationConstraint>"),
        ("/open/", "eu-west-1", ">eu-west-1</LocationConstraint>"),
        // As S3 has it for this region.
        ("/closed", "us-east-1", "></LocationConstraint>"),
    ] {
        let head = request(proxy.addr(), "HEAD", path, &[]);
        assert_eq!(head.status, 200, "{path}");
        assert_eq!(head.header("x-amz-bucket-region"), Some(region));
        let answer = proxy.get(&format!("{path}?location"));
        assert_eq!(answer.status, 200);
        assert!(text(&answer).ends_with(location), "{}", text(&answer));
    }
    let head = request(proxy.addr(), "HEAD", "/elsewhere", &[]);
    assert_eq!(head.status, 404);
    assert!(head.body.is_empty());
    assert!(origin.requests().is_empty());
}

#[test]
fn a_bucket_is_listed_only_if_it_is_open() {
    let origin = lists(2);
    let proxy = proxy(&origin).start();
    for query in ["", "?list-type=2", "?prefix=a/", "?max-keys=1"] {
        let refused = proxy.get(&format!("/closed{query}"));
        assert_eq!((refused.status, &*code(&refused)), (403, "AccessDenied"));
    }
    assert!(origin.requests().is_empty());
    for query in ["", "?list-type=2", "?delimiter=%2F"] {
        let answer = proxy.get(&format!("/open{query}"));
        assert_eq!(answer.status, 200, "{query}");
        assert_eq!(answer.header("content-type"), Some("application/xml"));
        let document = text(&answer);
        assert!(document.contains("<Name>open</Name>"), "{document}");
        assert!(document.contains("<Key>object-1&amp;</Key>"), "{document}");
        assert!(!document.contains("internal"), "{document}");
    }
}

#[test]
fn a_list_shows_the_keys_below_the_prefix_as_clients_know_them() {
    let origin = lists(3);
    let proxy = proxy(&origin).start();
    for (query, sent) in [
        ("?list-type=2", "/internal/?list-type=2&prefix=a%2Fb%2F"),
        (
            "?list-type=2&prefix=c/&start-after=c/d&continuation-token=e&delimiter=/&x-id=1",
            "/internal/?delimiter=%2F&prefix=a%2Fb%2Fc%2F&continuation-token=e&list-type=2\
             &start-after=a%2Fb%2Fc%2Fd",
        ),
        (
            "?marker=d&max-keys=7",
            "/internal/?max-keys=7&prefix=a%2Fb%2F&marker=a%2Fb%2Fd",
        ),
    ] {
        origin.forget_requests();
        let answer = proxy.get(&format!("/team/{query}"));
        assert_eq!(answer.status, 200, "{query}");
        let document = text(&answer);
        assert!(!document.contains("a/b/"), "{document}");
        assert!(document.contains("<Name>team</Name>"), "{document}");
        let asked = origin.requests().pop().expect("a request");
        assert!(asked.header("authorization").is_some());
        let sorted = |target: &str| {
            let (path, query) = target.split_once('?').expect("a query");
            let mut query: Vec<_> = query.split('&').map(str::to_owned).collect();
            query.sort();
            (path.to_owned(), query)
        };
        assert_eq!(sorted(&asked.target), sorted(sent));
    }
    origin.forget_requests();
    for query in [
        "?prefix=../",
        "?prefix=c&prefix=d",
        "?list-type=3",
        "?max-keys=x",
    ] {
        let refused = proxy.get(&format!("/team{query}"));
        assert_eq!((refused.status, &*code(&refused)), (400, "InvalidArgument"));
    }
    assert!(origin.requests().is_empty());
}

#[test]
fn what_is_no_list_below_the_prefix_does_not_reach_the_client() {
    for (document, status) in [
        (
            "<ListBucketResult><Contents><Key>secret/a</Key></Contents></ListBucketResult>",
            None,
        ),
        ("<ListBucketResult><Contents><Key>a/b/c</Key>", None),
        ("not a list", None),
        (
            "<Error><BucketName>internal</BucketName></Error>",
            Some((404, "NoSuchBucket")),
        ),
        (
            "<Error><BucketName>internal</BucketName></Error>",
            Some((403, "AccessDenied")),
        ),
        (
            "<Error><BucketName>internal</BucketName></Error>",
            Some((503, "SlowDown")),
        ),
    ] {
        let origin = Origin::start(move |_| {
            let status = status.map_or(200, |(status, _)| status);
            Reply::bytes(document).with_status(status)
        });
        let proxy = proxy(&origin).start();
        match status {
            Some((status, error)) => {
                let answer = proxy.get("/team/");
                assert_eq!((answer.status, &*code(&answer)), (status, error));
                assert!(!text(&answer).contains("internal"));
            }
            None => {
                let mut connection = Connection::open(proxy.addr());
                let head = "GET /team/ HTTP/1.1\r\nHost: proxy\r\n\r\n";
                connection.send_raw(head.as_bytes()).expect("send");
                let answer = connection.incoming("GET", "/team/").finish();
                assert!(answer.status != 200 || !answer.complete, "{document}");
                assert!(!text(&answer).contains("secret"), "{document}");
            }
        }
    }
}

#[test]
fn a_list_comes_from_the_origin_each_time() {
    let origin = lists(1);
    let proxy = proxy(&origin).start();
    for _ in 0..3 {
        // A list is not cut.
        let answer = request(proxy.addr(), "GET", "/open/", &[("Range", "bytes=0-9")]);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(answer.body.len() > 10);
    }
    assert_eq!(origin.requests().len(), 3);
    assert_eq!(proxy.metric("cache_entries"), 0);
    for asked in origin.requests() {
        assert_eq!(asked.header("range"), None);
    }
}

#[test]
fn a_list_answers_others_for_its_ttl() {
    let origin = lists(1);
    let bucket = |path: &str, prefix: &str| {
        Bucket::at(&origin, path, "internal")
            .set("key_prefix", prefix)
            .set("list", "true")
            .set("list_ttl", "1h")
    };
    let proxy = builder()
        .bucket(bucket("/one", "a/"))
        .bucket(bucket("/two", "a/"))
        .bucket(bucket("/three", "b/"))
        .start();
    let paths = [
        "/one/",
        "/one/?prefix=c",
        "/one/?list-type=2",
        "/two/",
        "/three/",
    ];
    for (number, path) in paths.iter().enumerate() {
        let miss = proxy.get(path);
        assert_eq!(miss.header("x-cache"), Some("MISS"), "{path}");
        assert_eq!(miss.header("cache-control"), Some("max-age=3600"));
        eventually("it is stored", || {
            proxy.metric("cache_entries") == number as u64 + 1
        });
        let hit = proxy.get(path);
        assert_eq!(hit.header("x-cache"), Some("HIT"), "{path}");
        assert_eq!(text(&hit), text(&miss), "{path}");
    }
    assert_eq!(origin.requests().len(), paths.len());
    assert!(text(&proxy.get("/two/")).contains("<Name>two</Name>"));
    // No object is mistaken for a list, nor a list for an object.
    assert_eq!(proxy.get("/one/%3Flist").header("x-cache"), Some("MISS"));
}

#[test]
fn a_list_of_any_length_takes_little_memory() {
    const OBJECTS: usize = 200_000;
    let origin = lists(OBJECTS);
    let proxy = proxy(&origin).start();
    let small = proxy.get("/team/?max-keys=1");
    assert_eq!(small.status, 200);
    proxy.reset_peak_rss();
    let before = proxy.rss_bytes();
    let mut connection = Connection::open(proxy.addr());
    let mut len = 0;
    let transfer = connection
        .begin("GET", "/team/", &[])
        .stream(|_, piece| len += piece.len());
    assert!(transfer.complete);
    assert!(len > OBJECTS * 50, "{len}");
    let grown = proxy.peak_rss_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for a list of {len}");
}

#[test]
fn all_buckets_that_may_be_listed_are() {
    let origin = lists(0);
    let proxy = proxy(&origin)
        .bucket(Bucket::at_host(&origin, "cdn.example.com", "internal").set("list", "true"))
        .start();
    let answer = proxy.get("/");
    assert_eq!(answer.status, 200);
    let document = text(&answer);
    let names: Vec<_> = document
        .split("<Name>")
        .skip(1)
        .filter_map(|rest| rest.split_once("</Name>"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["open", "team", "cdn"]);
    assert!(!document.contains("internal"), "{document}");
    assert!(origin.requests().is_empty());

    let closed = builder()
        .bucket(Bucket::at(&origin, "/closed", "internal"))
        .start();
    let refused = closed.get("/");
    assert_eq!((refused.status, &*code(&refused)), (403, "AccessDenied"));
}
