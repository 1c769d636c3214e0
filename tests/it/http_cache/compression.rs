//! The example with `--compression`: responses that are compressed, and those that must not
//! be (RFC 9110 sections 8.4, 12.5.3, 14 and 15.3.7, RFC 9111 section 5.2.2.6).

use std::{io::Read, sync::OnceLock};

use flate2::read::GzDecoder;
use test_support::{Page, Reply, Response, Site};

const GZIP: [(&str, &str); 1] = [("Accept-Encoding", "gzip")];

fn site() -> &'static Site {
    static SITE: OnceLock<Site> = OnceLock::new();
    SITE.get_or_init(|| Site::start(&["--compression", "6"]))
}

fn text() -> String {
    (0..5_000).map(|line| format!("line {line}\n")).collect()
}

/// An answer that would be compressed.
fn answer() -> Reply {
    Reply::fresh()
        .header("Content-Type", "text/plain")
        .body(text())
}

fn expect_gzip(got: &Response) {
    assert_eq!(got.status, 200);
    assert_eq!(got.header("content-encoding"), Some("gzip"));
    let mut plain = String::new();
    GzDecoder::new(&got.body[..])
        .read_to_string(&mut plain)
        .expect("decompress");
    assert!(got.complete && plain == text(), "{} bytes", plain.len());
}

fn expect_plain(got: &Response) {
    assert_eq!(got.status, 200);
    assert_eq!(got.header("content-encoding"), None, "{}", got.headers);
    assert_eq!(
        got.header("content-length"),
        Some(&*text().len().to_string())
    );
    assert!(got.complete && got.body == text().as_bytes());
}

/// A miss, a hit, and a hit whose header was prepared.
fn each_way(page: &Page, fields: &[(&str, &str)], expect: impl Fn(&Response)) {
    for _ in 0..3 {
        expect(&page.get_with(fields));
    }
    assert_eq!(page.count(), 1);
}

#[test]
fn the_header_is_that_of_the_compressed_body() {
    let page = site().page_with(
        answer()
            .header("Accept-Ranges", "bytes")
            .header("Content-MD5", "bm90IHRoaXMgb25l"),
    );
    each_way(&page, &GZIP, |got| {
        expect_gzip(got);
        assert_eq!(got.header("etag"), Some("W/\"v1\""));
        assert_eq!(got.header("vary"), Some("accept-encoding"));
        for name in ["content-length", "accept-ranges", "content-md5"] {
            assert_eq!(got.header(name), None, "{name}");
        }
    });
    let plain = page.get();
    expect_plain(&plain);
    assert_eq!(plain.header("etag"), Some("\"v1\""));
    assert_eq!(plain.header("vary"), Some("accept-encoding"));
    // A client that has either of them has the current version.
    for etag in ["\"v1\"", "W/\"v1\""] {
        let got = page.get_with(&[GZIP[0], ("If-None-Match", etag)]);
        assert_eq!((got.status, got.body.len()), (304, 0), "{etag}");
        assert_eq!(got.header("transfer-encoding"), None);
    }
    assert_eq!(page.count(), 1);
}

#[test]
fn a_part_is_a_part_of_the_body_as_it_is() {
    let page = site().page_with(answer());
    let (text, len) = (text(), text().len());
    page.get();
    for (range, first, last) in [("100-20099", 100, 20_099), ("0-19", 0, 19)] {
        let range = format!("bytes={range}");
        let got = page.get_with(&[GZIP[0], ("Range", &range)]);
        assert_eq!(got.status, 206);
        assert_eq!(got.header("content-encoding"), None);
        assert_eq!(got.header("etag"), Some("\"v1\""));
        let of_whole = format!("bytes {first}-{last}/{len}");
        assert_eq!(got.header("content-range"), Some(&*of_whole));
        assert!(got.complete && got.body == text.as_bytes()[first..=last]);
    }
    let several = page.get_with(&[GZIP[0], ("Range", "bytes=0-99,1000-1099")]);
    assert_eq!(several.status, 206);
    assert_eq!(several.header("content-encoding"), None);
    assert!(several.complete && several.text().contains(&text[1000..1100]));
    let beyond = page.get_with(&[GZIP[0], ("Range", "bytes=1000000-")]);
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-encoding"), None);
    // A validator of the compressed body does not permit parts.
    let got = page.get_with(&[GZIP[0], ("Range", "bytes=0-19"), ("If-Range", "W/\"v1\"")]);
    expect_gzip(&got);
}

#[test]
fn a_part_from_the_origin_is_left_alone() {
    let page = site().page();
    let len = text().len();
    page.serves(move |seen, _| match seen.header("range") {
        Some("bytes=100-20099") => answer()
            .with_status(206)
            .set("Cache-Control", "no-store")
            .header("Content-Range", format!("bytes 100-20099/{len}"))
            .body(&text().as_bytes()[100..20_100]),
        _ => answer(),
    });
    let got = page.get_with(&[GZIP[0], ("Range", "bytes=100-20099")]);
    assert_eq!(got.status, 206);
    assert_eq!(got.header("content-encoding"), None);
    assert!(got.complete && got.body == text().as_bytes()[100..20_100]);
}

#[test]
fn what_the_client_does_not_accept_is_not_compressed() {
    let page = site().page_with(answer());
    for accepts in [
        "gzip;q=0",
        "gzip;q=0.000, identity",
        "*;q=0",
        "identity",
        "identity, gzip;q=0.5",
        "gzip ; q=x",
    ] {
        let got = page.get_with(&[("Accept-Encoding", accepts)]);
        expect_plain(&got);
        assert_eq!(got.header("vary"), Some("accept-encoding"), "{accepts}");
    }
    for accepts in ["gzip;q=0.5, identity;q=0.1", "br;q=0, gzip", "gzip, *;q=0"] {
        expect_gzip(&page.get_with(&[("Accept-Encoding", accepts)]));
    }
    assert_eq!(page.count(), 1);
}

#[test]
fn nor_what_must_not_be_transformed() {
    let page = site().page_with(answer().header("Cache-Control", "no-transform"));
    each_way(&page, &GZIP, |got| {
        expect_plain(got);
        assert_eq!(got.header("etag"), Some("\"v1\""));
    });
}

#[test]
fn nor_what_is_encoded_already() {
    let page = site().page_with(answer().header("Content-Encoding", "br"));
    each_way(&page, &GZIP, |got| {
        assert_eq!(got.header("content-encoding"), Some("br"));
        assert_eq!(got.header("etag"), Some("\"v1\""));
        assert!(got.complete && got.body == text().as_bytes());
    });
}

#[test]
fn a_client_of_http_1_0_gets_the_body_as_it_is() {
    let page = site().page_with(answer());
    for _ in 0..3 {
        let mut client = site().client();
        client.send_bytes(format!(
            "GET {} HTTP/1.0\r\nHost: site.example\r\nAccept-Encoding: gzip\r\n\r\n",
            page.path()
        ));
        let got = client.receive("GET");
        expect_plain(&got);
        assert_eq!(got.header("transfer-encoding"), None);
    }
}

#[test]
fn what_has_no_body_is_announced_without_one() {
    for caching in ["no-store", "max-age=3600"] {
        let page = site().page_with(
            Reply::ok()
                .with_status(204)
                .header("Content-Type", "text/plain")
                .header("Cache-Control", caching),
        );
        for _ in 0..3 {
            let got = page.get_with(&GZIP);
            assert_eq!(got.status, 204);
            for name in ["transfer-encoding", "content-encoding"] {
                assert_eq!(got.header(name), None, "{name}, {caching}");
            }
        }
    }
}

/// RFC 9110 sections 9.3.2 and 15.4.5
#[test]
fn head_and_304_have_the_header_of_get() {
    let len = text().len().to_string();
    for (answer, fields, compressed) in [
        (answer(), &GZIP[..], true),
        (answer(), &[], false),
        (answer().set("Content-Type", "image/png"), &GZIP, false),
    ] {
        let page = site().page_with(answer);
        // From the origin, and when the response to GET is stored.
        let miss = page.request("HEAD", fields, b"");
        let got = page.get_with(fields);
        let hit = page.request("HEAD", fields, b"");
        assert_eq!(page.count(), 2);
        let encoding = compressed.then_some("gzip");
        let etag = if compressed { "W/\"v1\"" } else { "\"v1\"" };
        assert_eq!(got.header("content-encoding"), encoding);
        assert_eq!(got.header("etag"), Some(etag));
        for head in [miss, hit] {
            assert_eq!(head.status, 200);
            for name in ["content-encoding", "content-length", "etag", "vary"] {
                assert_eq!(head.header(name), got.header(name), "{name}");
            }
            assert_eq!(head.header("transfer-encoding"), None);
            let kept = (!compressed).then_some(&*len);
            assert_eq!(head.header("content-length"), kept);
        }
        for method in ["GET", "HEAD"] {
            let fields = [fields, &[("If-None-Match", etag)]].concat();
            let not_modified = page.request(method, &fields, b"");
            assert_eq!((not_modified.status, not_modified.body.len()), (304, 0));
            for name in ["etag", "vary"] {
                assert_eq!(not_modified.header(name), got.header(name), "{name}");
            }
            for name in ["content-encoding", "transfer-encoding"] {
                assert_eq!(not_modified.header(name), None, "{name}");
            }
        }
        assert_eq!(page.count(), 2);
    }
}

#[test]
fn a_304_of_what_is_not_stored_yet_varies_too() {
    let page = site().page_with(answer());
    let fields = [GZIP[0], ("If-None-Match", "\"v1\"")];
    let got = page.get_with(&fields);
    assert_eq!(got.status, 304);
    assert_eq!(got.header("vary"), Some("accept-encoding"));
    assert_eq!(got.header("etag"), Some("W/\"v1\""));
}
