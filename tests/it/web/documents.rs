//! Index documents, redirects to them, and error documents.

use super::*;
use test_support::{eventually, https_client, HttpVersion};

const INDEX: (&str, &str) = ("docs/index.html", "<h1>Documents</h1>");
const ROOT: (&str, &str) = ("index.html", "<h1>Start</h1>");
const NOT_FOUND: (&str, &str) = ("errors/404.html", "<h1>Not here</h1>");
const BROKEN: (&str, &str) = ("errors/5xx.html", "<h1>Try again later</h1>");

const SITE: &str = "{index: index.html, slash_redirect: true, error_documents: \
                    {404: errors/404.html, 502: errors/5xx.html, 504: errors/5xx.html}}";

fn website() -> Origin {
    origin_of(&[INDEX, ROOT, NOT_FOUND, BROKEN])
}

/// True for S3's document of an error, as the proxy writes it.
fn is_usual_error(response: &Response, status: u16, code: &str) {
    assert_eq!(response.status, status);
    assert_eq!(response.header("content-type"), Some("application/xml"));
    let text = response.text();
    assert!(text.contains(&format!("<Code>{code}</Code>")), "{text}");
    assert!(!text.contains("BucketName"), "{text}");
}

fn stored(proxy: &Proxy, entries: u64) {
    eventually("the objects are stored", || {
        proxy.metric("cache_entries") == entries
    });
}

// --- index documents ---

#[test]
fn a_path_with_a_slash_is_that_of_its_index_document() {
    let origin = website();
    let proxy = proxy(&origin, &[("web", SITE)]).start();
    let miss = proxy.get("/assets/docs/");
    assert_eq!((miss.status, miss.text().as_str()), (200, INDEX.1));
    assert_eq!(miss.x_cache(), "MISS");
    stored(&proxy, 1);
    // The document at its own path is the same entry, and so is a path with a parameter of the page's.
    for target in [
        "/assets/docs/",
        "/assets/docs/index.html",
        "/assets/docs/?a=b",
    ] {
        for _ in 0..2 {
            let hit = proxy.get(target);
            assert_eq!(
                (hit.x_cache().as_str(), hit.text().as_str()),
                ("HIT", INDEX.1)
            );
            assert_eq!(hit.header("content-type"), Some("text/html"));
        }
    }
    let headers = head(&proxy, "/assets/docs/");
    assert_eq!(headers.status, 200);
    assert_eq!(headers.header("content-length"), Some("18"));
    let part = get_with(&proxy, "/assets/docs/", &[("Range", "bytes=4-6")]);
    assert_eq!((part.status, part.text().as_str()), (206, "Doc"));
    let etag = miss.header("etag").expect("an ETag");
    let same = get_with(&proxy, "/assets/docs/", &[("If-None-Match", etag)]);
    assert_eq!(same.status, 304);
    assert_eq!(origin.requests_for("/bucket/docs/index.html"), 1);
    assert_eq!(origin.requests_for("/bucket/docs/"), 0);

    assert_eq!(proxy.get("/assets/").text(), ROOT.1);
    assert_eq!(
        head(&proxy, "/assets/").header("content-length"),
        Some("14")
    );
}

#[test]
fn requests_of_s3_clients_for_the_bucket_stay_what_they_are() {
    let origin = website();
    let proxy = proxy(&origin, &[("web", SITE)]).start();
    is_usual_error(&proxy.get("/assets/?list-type=2"), 403, "AccessDenied");
    is_usual_error(&proxy.get("/assets/?prefix="), 403, "AccessDenied");
    assert_eq!(proxy.get("/assets/?location").status, 200);
    let signed = [("x-amz-date", "20261130T000000Z")];
    let bucket = request(proxy.addr(), "HEAD", "/assets/", &signed);
    assert_eq!(bucket.header("x-amz-bucket-region"), Some("us-east-1"));
    let bucket = head(&proxy, "/assets");
    assert_eq!(bucket.header("x-amz-bucket-region"), Some("us-east-1"));
    assert!(origin.requests().is_empty());
}

#[test]
fn without_the_key_a_path_with_a_slash_is_an_object() {
    let origin = origin_of(&[("docs/", "a folder of S3 browsers"), INDEX]);
    let proxy = proxy(&origin, &[]).start();
    assert_eq!(proxy.get("/assets/docs/").text(), "a folder of S3 browsers");
    is_usual_error(&proxy.get("/assets/docs"), 404, "NoSuchKey");
    is_usual_error(&proxy.get("/assets/"), 403, "AccessDenied");
    assert_eq!(origin.requests_for("/bucket/docs/index.html"), 0);
}

#[test]
fn over_http_2_the_documents_are_the_same() {
    let origin = website();
    let proxy = proxy(&origin, &[("web", SITE)]).tls().start();
    let client = https_client(HttpVersion::Http2);
    let at = |path: &str| format!("https://{}/assets/{path}", proxy.https_addr());
    for _ in 0..3 {
        let index = client.get(at("docs/")).send().expect("an answer");
        assert_eq!(index.status(), 200);
        assert_eq!(index.text().expect("a body"), INDEX.1);
        let missing = client.get(at("none")).send().expect("an answer");
        assert_eq!(missing.status(), 404);
        assert_eq!(missing.text().expect("a body"), NOT_FOUND.1);
        // The client follows the redirect.
        let moved = client.get(at("docs")).send().expect("an answer");
        assert_eq!(moved.url().path(), "/assets/docs/");
        assert_eq!(moved.text().expect("a body"), INDEX.1);
    }
}

// --- redirects ---

#[test]
fn a_folder_without_a_slash_is_redirected_to_its_document() {
    let origin = website();
    let proxy = proxy(&origin, &[("web", SITE)]).start();
    // Once by the origin's answer, then by the remembered one.
    for from in ["MISS", "HIT", "HIT"] {
        let moved = proxy.get("/assets/docs?a=b");
        assert_eq!((moved.status, moved.x_cache().as_str()), (302, from));
        assert_eq!(moved.header("location"), Some("./docs/?a=b"));
        assert_eq!(moved.text(), "Moved to ./docs/?a=b\n");
    }
    let moved = head(&proxy, "/assets/docs");
    assert_eq!(
        (moved.status, moved.header("location")),
        (302, Some("./docs/"))
    );
    let root = proxy.get("/assets");
    assert_eq!(
        (root.status, root.header("location")),
        (302, Some("./assets/"))
    );
    assert_eq!(origin.requests_for("/bucket/docs"), 1);
    assert_eq!(origin.requests_for("/bucket/docs/index.html"), 1);

    let none = proxy.get("/assets/none");
    assert_eq!((none.status, none.header("location")), (404, None));
    let version = proxy.get("/assets/docs?versionId=1");
    assert_eq!((version.status, version.header("location")), (404, None));
}

#[test]
fn an_object_comes_before_a_folder_of_its_name() {
    let origin = origin_of(&[("docs", "an object"), INDEX]);
    let proxy = proxy(&origin, &[("web", SITE)]).start();
    assert_eq!(proxy.get("/assets/docs").text(), "an object");
    assert_eq!(proxy.get("/assets/docs/").text(), INDEX.1);
}

#[test]
fn no_redirect_leads_to_another_server() {
    let folders = [
        "/evil.example",
        "\\evil.example",
        "https:",
        "javascript:alert(1)",
    ];
    let names = folders.map(|name| format!("{name}/index.html"));
    let origin = Origin::start({
        let paths = names.map(|name| format!("/bucket/{}", test_support::encode_key(&name)));
        move |request| match paths.contains(&request.path().to_owned()) {
            true => object_reply("a.html", "found"),
            false => Reply::status(404).body(SECRET_DOCUMENT),
        }
    });
    let bucket = Bucket::at(&origin, "/", "bucket").set("web", SITE);
    let proxy = builder().bucket(bucket).start();
    for (target, location) in [
        ("//evil.example", "./evil.example/"),
        ("/%5Cevil.example", "./%5Cevil.example/"),
        ("/https:", "./https:/"),
        ("/javascript:alert(1)", "./javascript:alert(1)/"),
    ] {
        let moved = proxy.get(target);
        assert_eq!(moved.status, 302, "{target}");
        assert_eq!(moved.header("location"), Some(location), "{target}");
    }
}

// --- error documents ---

#[test]
fn an_error_has_its_document_and_keeps_its_status() {
    let origin = website();
    let proxy = proxy(&origin, &[("web", SITE)]).start();
    for from in ["MISS", "HIT", "HIT"] {
        let missing = proxy.get("/assets/none");
        assert_eq!((missing.status, missing.x_cache().as_str()), (404, from));
        assert_eq!(missing.text(), NOT_FOUND.1);
        assert_eq!(missing.header("content-type"), Some("text/html"));
        assert!(missing.header("x-amz-request-id").is_some());
        // They are those of the document, which nobody has asked for.
        assert_eq!(missing.header("etag"), None);
        assert_eq!(missing.header("last-modified"), None);
    }
    let missing = head(&proxy, "/assets/none2");
    assert_eq!(missing.status, 404);
    assert_eq!(missing.header("content-length"), Some("17"));
    // A range and a condition are for the object that is not there.
    for field in [("Range", "bytes=0-3"), ("If-None-Match", "\"17\"")] {
        let missing = get_with(&proxy, "/assets/none3", &[field]);
        assert_eq!(
            (missing.status, missing.text().as_str()),
            (404, NOT_FOUND.1)
        );
    }
    // The index document of a folder that has none.
    assert_eq!(proxy.get("/assets/empty/").text(), NOT_FOUND.1);
    stored(&proxy, 1);
    assert_eq!(origin.requests_for("/bucket/errors/404.html"), 1);
    // The document itself is an object like any other.
    let document = proxy.get("/assets/errors/404.html");
    assert_eq!((document.status, document.x_cache().as_str()), (200, "HIT"));
}

#[test]
fn a_document_from_the_cache_answers_while_the_origin_fails() {
    let origin = Origin::scripted();
    origin.script("/bucket/errors/5xx.html", |_, nth| match nth {
        1 => object_reply("a.html", BROKEN.1),
        _ => Reply::hang_up(),
    });
    origin.script("/bucket/object", |_, _| Reply::hang_up());
    let site = bucket(&origin, &[("web", SITE), ("retries", "0")]);
    let proxy = builder().bucket(site).start();
    assert_eq!(proxy.get("/assets/errors/5xx.html").status, 200);
    stored(&proxy, 1);
    for _ in 0..3 {
        let failed = proxy.get("/assets/object");
        assert_eq!((failed.status, failed.text().as_str()), (502, BROKEN.1));
        assert_eq!(failed.header("content-type"), Some("text/html"));
    }
    let failed = head(&proxy, "/assets/object");
    assert_eq!(
        (failed.status, failed.header("content-length")),
        (502, Some("24"))
    );
    assert_eq!(origin.requests_for("/bucket/errors/5xx.html"), 1);
}

#[test]
fn without_its_document_an_error_is_the_usual_one() {
    let origin = origin_of(&[INDEX]);
    let proxy = proxy(&origin, &[("web", SITE)]).start();
    // In place of a missing document, no document is looked for.
    for target in ["/assets/none", "/assets/none", "/assets/errors/404.html"] {
        is_usual_error(&proxy.get(target), 404, "NoSuchKey");
    }
    let log = proxy.stderr();
    assert!(
        log.contains("bucket bucket: the document \"errors/404.html\" for status 404 is not used"),
        "{log}"
    );
    is_usual_error(&proxy.get("/assets/?list-type=2"), 403, "AccessDenied");

    let large = "a".repeat(300 * 1024);
    let origin = origin_of(&[(NOT_FOUND.0, &large)]);
    let proxy = self::proxy(&origin, &[("web", SITE)]).start();
    is_usual_error(&proxy.get("/assets/none"), 404, "NoSuchKey");
}

#[test]
fn a_new_document_applies_to_errors_that_are_stored() {
    let origin = Origin::start(|request| match request.path() {
        "/bucket/errors/404.html" => object_reply("a.html", NOT_FOUND.1),
        _ => Reply::status(404)
            .header("Cache-Control", "max-age=600")
            .body(SECRET_DOCUMENT),
    });
    let mut proxy = proxy(&origin, &[]).start();
    is_usual_error(&proxy.get("/assets/none"), 404, "NoSuchKey");
    stored(&proxy, 1);
    assert_eq!(proxy.get("/assets/none").x_cache(), "HIT");

    proxy.edit_config(|yaml| {
        let entry = "    bucket: 'bucket'\n";
        yaml.replace(entry, &format!("{entry}    web: {SITE}\n"))
    });
    proxy.restart();
    assert_eq!(proxy.get("/assets/none").text(), NOT_FOUND.1);
    // Nothing of the document was stored in the place of the object.
    proxy.edit_config(|yaml| yaml.replace(&format!("    web: {SITE}\n"), ""));
    proxy.restart();
    is_usual_error(&proxy.get("/assets/none"), 404, "NoSuchKey");
}

// --- authorization ---

#[test]
fn a_document_needs_the_permission_for_its_own_key() {
    let origin = website();
    let tokens = Tokens::new();
    let site = tokens.protect(bucket(&origin, &[("web", SITE)]));
    let proxy = builder().bucket(site).start();

    assert_eq!(get_as(&proxy, "", "/assets/docs/").text(), INDEX.1);
    assert_eq!(get_as(&proxy, "docs/", "/assets/docs/").text(), INDEX.1);
    // The path would be allowed; the document is not, though it is in the cache.
    stored(&proxy, 1);
    is_usual_error(
        &get_as(&proxy, "docs/a", "/assets/docs/"),
        403,
        "AccessDenied",
    );
    let unknown = proxy.get("/assets/docs/");
    is_usual_error(&unknown, 401, "AccessDenied");

    // A client that may not read the error document does not get it, nor does one without a token.
    assert_eq!(get_as(&proxy, "", "/assets/none").text(), NOT_FOUND.1);
    is_usual_error(&get_as(&proxy, "no", "/assets/none"), 404, "NoSuchKey");
    is_usual_error(
        &get_as(&proxy, "docs/", "/assets/none"),
        403,
        "AccessDenied",
    );

    // Nobody learns of a folder that it may not read.
    let moved = get_as(&proxy, "docs", "/assets/docs");
    assert_eq!(
        (moved.status, moved.header("location")),
        (302, Some("./docs/"))
    );
    let secret = get_as(&proxy, "docs/", "/assets/docs");
    is_usual_error(&secret, 403, "AccessDenied");
    proxy.expect_metric_where("auth_refused_total", &[("reason", "unsigned")], 1);
    proxy.expect_metric_where("auth_refused_total", &[("reason", "prefix")], 3);
}
