//! Requests to the example's cache: directives, conditions and
//! ranges (RFC 9111 sections 5.2.1 and 4.3.2; RFC 9110 sections 13 and 14).

use test_support::{
    date::{self, Date},
    eventually, Page, Reply, Response, Rules, Site, Use,
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const DIGITS: &[u8] = b"0123456789";

type Fields<'a> = &'a [(&'a str, &'a str)];

/// A page that has been asked for once.
fn stored(answer: Reply) -> Page<'static> {
    let page = Site::shared().page_with(answer);
    page.get();
    page
}

/// A response has these fields as the whole response has them.
fn expect_fields_of(
    rules: &mut Rules,
    section: &str,
    names: &[&str],
    whole: &Response,
    got: &Response,
) {
    for name in names {
        rules.expect(
            section,
            name,
            whole.header(name).map(str::to_owned),
            got.header(name).map(str::to_owned),
        );
    }
}

#[test]
fn a_request_says_which_stored_response_it_wants() {
    let mut rules = Rules::new();
    let young = Reply::fresh();
    // 1,000 seconds old, and fresh for 2,600 more.
    let middle = Reply::fresh().header("Age", 1000);
    // Expired 59 seconds ago.
    let stale = Reply::stale();
    let with = |value: &str| {
        Reply::ok()
            .header("Cache-Control", value)
            .header("Age", 60)
            .header("ETag", "\"v1\"")
    };
    let rows: &[(&str, &Reply, &str, bool)] = &[
        ("5.2.1.1", &young, "max-age=100", true),
        ("5.2.1.1", &middle, "max-age=100", false),
        ("5.2.1.1", &middle, "max-age=3600", true),
        ("5.2.1.1", &young, "max-age=0", false),
        ("5.2.1.1", &middle, "MAX-AGE=\"100\"", false),
        ("5.2.1.2", &stale, "max-stale", true),
        ("5.2.1.2", &stale, "max-stale=3600", true),
        ("5.2.1.2", &stale, "max-stale=5", false),
        (
            "5.2.1.2",
            &with("max-age=1, must-revalidate"),
            "max-stale",
            false,
        ),
        (
            "5.2.1.2",
            &with("max-age=1, proxy-revalidate"),
            "max-stale",
            false,
        ),
        ("5.2.1.2", &with("s-maxage=1"), "max-stale", false),
        ("5.2.1.2", &with("no-cache"), "max-stale", false),
        ("5.2.1.3", &middle, "min-fresh=100", true),
        ("5.2.1.3", &middle, "min-fresh=3000", false),
        ("5.2.1.3", &young, "min-fresh=7200", false),
        ("5.2.1.4", &young, "no-cache", false),
        ("5.2.1.4", &young, "No-Cache", false),
        ("5.2.1.7", &young, "only-if-cached", true),
        ("5.2.1.7", &young, "only-if-cached, max-age=100", true),
        ("5.2.3", &young, "foo, bar=\"no-cache\"", true),
        ("5.2.1.6", &young, "no-transform", true),
    ];
    for (section, answer, directive, reused) in rows {
        let page = stored((*answer).clone());
        let (got, used) = page.get_again(&[("Cache-Control", directive)]);
        rules.expect(
            &format!("RFC 9111 {section}"),
            directive,
            (200, *reused),
            (got.status, used == Use::Reused),
        );
    }
    rules.check();
}

#[test]
fn no_store_in_a_request_stores_nothing() {
    let page = Site::shared().page_with(Reply::fresh());
    page.get_with(&[("Cache-Control", "no-store")]);
    assert_eq!(page.get_again(&[]).1, Use::Fetched, "RFC 9111 5.2.1.5");
    assert_eq!(page.get_again(&[]).1, Use::Reused);
}

#[test]
fn no_cache_in_a_request_validates_what_is_stored() {
    let page = stored(Reply::fresh());
    page.answers([Reply::ok().with_status(304).header("ETag", "\"v1\"")]);
    let (got, used) = page.get_again(&[("Cache-Control", "no-cache")]);
    assert_ne!(used, Use::Reused, "RFC 9111 5.2.1.4");
    if used == Use::Validated {
        assert_eq!((got.status, got.serial()), (200, Some(1)));
    }
}

#[test]
fn a_reload_replaces_what_is_stored() {
    let page = stored(Reply::fresh());
    let reloaded = page.get_with(&[("Cache-Control", "no-cache")]);
    assert_eq!(reloaded.serial(), Some(2));
    assert_eq!(page.get().serial(), Some(2));
    assert_eq!(page.count(), 2);
}

#[test]
fn pragma_is_no_cache_where_there_is_no_cache_control() {
    let page = stored(Reply::fresh());
    let (_, alone) = page.get_again(&[("Pragma", "no-cache")]);
    assert_ne!(alone, Use::Reused, "RFC 9111 5.4");
    let (_, beside) = page.get_again(&[("Pragma", "no-cache"), ("Cache-Control", "max-age=3600")]);
    assert_eq!(beside, Use::Reused, "RFC 9111 5.4");
}

#[test]
fn only_if_cached_never_asks_the_origin() {
    let only = [("Cache-Control", "only-if-cached")];
    let nothing = Site::shared().page_with(Reply::fresh());
    assert_eq!(nothing.get_with(&only).status, 504, "RFC 9111 5.2.1.7");
    assert_eq!(nothing.count(), 0);

    let stale = stored(Reply::stale());
    assert_eq!(stale.get_with(&only).status, 504, "RFC 9111 5.2.1.7");
    assert_eq!(stale.count(), 1);

    let fresh = stored(Reply::fresh());
    assert_eq!(fresh.get_with(&only).status, 200);
    assert_eq!(fresh.count(), 1);
}

/// 200 or 304 of what is stored: what a condition comes to.
fn conditions(section: &str, answer: &Reply, rows: &[(Fields, u16)]) {
    let page = stored(answer.clone());
    let mut rules = Rules::new();
    for (fields, expected) in rows {
        let got = page.get_with(fields);
        rules.expect(section, &format!("{fields:?}"), *expected, got.status);
        if got.status == 304 {
            rules.expect(section, "a 304 has no body", 0, got.body.len());
        } else {
            rules.expect(section, "the body", Some(1), got.serial());
        }
        let head = page.request("HEAD", fields, b"").status;
        rules.expect(section, &format!("HEAD {fields:?}"), *expected, head);
    }
    rules.expect(section, "requests to the origin", 1, page.count());
    rules.check();
}

#[test]
fn if_none_match_compares_weakly() {
    let inm = |value| ("If-None-Match", value);
    conditions(
        "RFC 9110 13.1.2",
        &Reply::fresh(),
        &[
            (&[inm("\"v1\"")], 304),
            (&[inm("W/\"v1\"")], 304),
            (&[inm("*")], 304),
            (&[inm("\"a\", \"v1\"")], 304),
            (&[inm("\"v1\",\"a\"")], 304),
            (&[inm("\"a,\",W/\"b\" , \"v1\"")], 304),
            (&[inm("\"a\""), inm("\"v1\"")], 304),
            (&[inm("\"V1\"")], 200),
            (&[inm("\"v\"")], 200),
            (&[inm("\"v11\"")], 200),
            (&[inm("\"a, \", \"v1 \"")], 200),
            (&[inm("\"\"")], 200),
        ],
    );
    let weak = Reply::ok()
        .header("Cache-Control", "max-age=3600")
        .header("ETag", "W/\"v1\"");
    conditions(
        "RFC 9110 13.1.2",
        &weak,
        &[
            (&[inm("\"v1\"")], 304),
            (&[inm("W/\"v1\"")], 304),
            (&[inm("W/\"v2\"")], 200),
        ],
    );
    let none = Reply::ok().header("Cache-Control", "max-age=3600");
    conditions(
        "RFC 9110 13.1.2",
        &none,
        &[(&[inm("\"v1\"")], 200), (&[inm("*")], 304)],
    );
}

#[test]
fn if_modified_since_compares_dates() {
    let changed = Date::from_now(-10 * DAY);
    let answer = Reply::ok()
        .header("Cache-Control", "max-age=3600")
        .header("Last-Modified", changed.imf());
    fn ims(value: &str) -> (&str, &str) {
        ("If-Modified-Since", value)
    }
    conditions(
        "RFC 9110 13.1.3",
        &answer,
        &[
            (&[ims(&changed.imf())], 304),
            (&[ims(&changed.plus(1).imf())], 304),
            (&[ims(&changed.plus(-1).imf())], 200),
            (&[ims(&changed.rfc850())], 304),
            (&[ims(&changed.asctime())], 304),
            (&[ims(&changed.plus(-1).rfc850())], 200),
            (&[ims("yesterday")], 200),
            (&[ims("")], 200),
        ],
    );
    // Without Last-Modified, Date takes its place (RFC 9111, section 4.3.2).
    let dated = Date::from_now(-100);
    let answer = Reply::ok()
        .header("Cache-Control", "max-age=3600")
        .header("Date", dated.imf());
    conditions(
        "RFC 9111 4.3.2",
        &answer,
        &[
            (&[ims(&dated.imf())], 304),
            (&[ims(&dated.plus(-1).imf())], 200),
        ],
    );
}

#[test]
fn if_none_match_goes_before_if_modified_since() {
    let changed = Date::from_now(-10 * DAY);
    let answer = Reply::fresh().header("Last-Modified", changed.imf());
    let (same, before) = (changed.imf(), changed.plus(-DAY).imf());
    conditions(
        "RFC 9110 13.2.2",
        &answer,
        &[
            (
                &[("If-None-Match", "\"other\""), ("If-Modified-Since", &same)],
                200,
            ),
            (
                &[("If-Modified-Since", &before), ("If-None-Match", "\"v1\"")],
                304,
            ),
        ],
    );
}

#[test]
fn a_304_of_the_cache_has_the_fields_of_section_15_4_5() {
    let page = stored(
        Reply::fresh()
            .header("Vary", "X-Unsent")
            .header("Expires", date::from_now(HOUR))
            .header("Content-Location", "/elsewhere")
            .header("Date", date::from_now(-50)),
    );
    let whole = page.get();
    let got = page.get_with(&[("If-None-Match", "\"v1\"")]);
    assert_eq!((got.status, page.count()), (304, 1));
    let mut rules = Rules::new();
    let names = [
        "cache-control",
        "content-location",
        "date",
        "etag",
        "expires",
        "vary",
    ];
    expect_fields_of(&mut rules, "RFC 9110 15.4.5", &names, &whole, &got);
    rules.holds("RFC 9111 5.1", "Age", got.age() >= Some(50), got.age());
    rules.check();
}

/// A condition on the state of the origin is the origin's to decide, and its
/// answer is nobody else's.
#[test]
fn if_match_and_if_unmodified_since_on_a_miss_reach_the_origin() {
    let mut rules = Rules::new();
    let past = date::from_now(-DAY);
    for (section, field) in [
        ("RFC 9110 13.1.1", ("If-Match", "\"v0\"")),
        ("RFC 9110 13.1.4", ("If-Unmodified-Since", &*past)),
    ] {
        let page = Site::shared().page();
        page.serves(
            move |seen, _| match seen.header(field.0.to_lowercase().as_str()) {
                Some(_) => Reply::ok()
                    .with_status(412)
                    .header("Cache-Control", "max-age=3600"),
                None => Reply::fresh(),
            },
        );
        let got = page.get_with(&[field]);
        rules.expect(section, field.0, 412, got.status);
        let sent = page.seen()[0].header(field.0).map(str::to_owned);
        rules.expect(section, field.0, Some(field.1.to_owned()), sent);
        rules.expect(section, "afterwards", 200, page.get().status);
    }
    rules.check();
}

#[test]
fn if_match_that_matches_what_is_stored_gets_it() {
    let page = stored(Reply::fresh());
    for value in ["\"v1\"", "\"a\", \"v1\"", "*"] {
        let got = page.get_with(&[("If-Match", value)]);
        assert_eq!(got.status, 200, "RFC 9110 13.1.1: {value}");
    }
}

#[test]
fn conditions_of_other_methods_are_not_the_caches() {
    let page = stored(Reply::fresh());
    page.answers([Reply::ok()]);
    let got = page.request("POST", &[("If-None-Match", "\"v1\"")], b"x");
    assert_eq!(got.status, 200, "RFC 9110 13.2.1");
    let seen = &page.seen()[1];
    assert_eq!(seen.header("if-none-match"), Some("\"v1\""));
}

/// The parts of a 206, each with its first and last position.
fn parts(got: &Response) -> Vec<(usize, usize, Vec<u8>)> {
    let kind = got.header("content-type").unwrap_or_default();
    let range = |value: &str| {
        let range = value.trim().strip_prefix("bytes ").expect("bytes");
        let (positions, len) = range.split_once('/').expect("a length");
        assert_eq!(len, "10", "the whole length");
        let (first, last) = positions.split_once('-').expect("positions");
        (first.parse().expect("first"), last.parse().expect("last"))
    };
    if !kind.starts_with("multipart/byteranges") {
        let (first, last) = range(got.header("content-range").expect("Content-Range"));
        return vec![(first, last, got.body.clone())];
    }
    assert!(
        got.header("content-range").is_none(),
        "RFC 9110 15.3.7.2: Content-Range beside parts"
    );
    let (_, boundary) = kind.split_once("boundary=").expect("a boundary");
    let text = got.text();
    let delimiter = format!("--{}", boundary.trim_matches('"'));
    let mut parts = Vec::new();
    let mut pieces = text.split(&delimiter).skip(1);
    for piece in pieces.by_ref() {
        if piece.starts_with("--") {
            break;
        }
        let (head, body) = piece.split_once("\r\n\r\n").expect("a part's head");
        let position = head
            .lines()
            .find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-range").then_some(value)
            })
            .expect("a part's Content-Range");
        let (first, last) = range(position);
        let body = body.strip_suffix("\r\n").expect("a part's end");
        parts.push((first, last, body.as_bytes().to_vec()));
    }
    assert!(pieces.next().is_none(), "something behind the last part");
    parts
}

#[test]
fn a_range_of_what_is_stored() {
    let page = stored(Reply::fresh().body(DIGITS));
    let mut rules = Rules::new();
    let mut expect = |range: &str, status: u16, body: &str, content_range: Option<&str>| {
        let got = page.get_with(&[("Range", range)]);
        rules.expect("RFC 9110 14", range, status, got.status);
        if status != 416 {
            rules.expect("RFC 9110 14", range, body.to_owned(), got.text());
        }
        rules.expect(
            "RFC 9110 14.4",
            range,
            content_range.map(str::to_owned),
            got.header("content-range").map(str::to_owned),
        );
        rules.expect(
            "RFC 9110 8.6",
            range,
            Some(got.body.len().to_string()),
            got.header("content-length").map(str::to_owned),
        );
    };
    expect("bytes=0-3", 206, "0123", Some("bytes 0-3/10"));
    expect("bytes=4-6", 206, "456", Some("bytes 4-6/10"));
    expect("bytes=9-9", 206, "9", Some("bytes 9-9/10"));
    expect("bytes=4-", 206, "456789", Some("bytes 4-9/10"));
    expect("bytes=0-", 206, "0123456789", Some("bytes 0-9/10"));
    expect("bytes=-3", 206, "789", Some("bytes 7-9/10"));
    expect("bytes=-100", 206, "0123456789", Some("bytes 0-9/10"));
    expect("bytes=5-100", 206, "56789", Some("bytes 5-9/10"));
    expect(
        "bytes=5-99999999999999999999999",
        206,
        "56789",
        Some("bytes 5-9/10"),
    );
    expect("bytes=0-0,", 206, "0", Some("bytes 0-0/10"));
    // Range units have no case (section 14.1).
    expect("BYTES=0-3", 206, "0123", Some("bytes 0-3/10"));
    expect("Bytes=-1", 206, "9", Some("bytes 9-9/10"));
    // Nothing that can be satisfied.
    expect("bytes=10-", 416, "", Some("bytes */10"));
    expect("bytes=10-20", 416, "", Some("bytes */10"));
    expect("bytes=20-30,40-", 416, "", Some("bytes */10"));
    expect("bytes=-0", 416, "", Some("bytes */10"));
    expect(
        "bytes=99999999999999999999999-",
        416,
        "",
        Some("bytes */10"),
    );
    // Invalid ranges and unknown units are ignored.
    for ignored in [
        "bytes=5-3",
        "bytes=0-3,5-4",
        "bytes=a-b",
        "bytes=0-b",
        "bytes=-",
        "bytes=",
        "bytes",
        "bytes 0-3",
        "bytes=0-3-5",
        "bytes=--3",
        "bytes=+0-3",
        "bytes=0x0-3",
        "bytes=1 - 3",
        "bytes=0-3;x",
        "chars=0-3",
        "",
    ] {
        expect(ignored, 200, "0123456789", None);
    }
    rules.expect("RFC 9110 14", "requests to the origin", 1, page.count());
    rules.check();
}

#[test]
fn several_ranges_of_what_is_stored() {
    let page = stored(Reply::fresh().body(DIGITS).header("Content-Type", "text/x"));
    let mut rules = Rules::new();
    for (ranges, wanted) in [
        ("bytes=0-1,8-9", "01 89"),
        ("bytes=0-1, 4-5 ,\t-2", "01 45 89"),
        ("bytes=8-9,0-1", "01 89"),
        ("bytes=0-1,20-30", "01"),
        ("bytes=20-30,-1", "9"),
        ("bytes=0-5,3-8", "012345678"),
        ("bytes=0-0,1-1", "01"),
        ("bytes=0-9,0-9", "0123456789"),
        ("bytes=0-0,,9-9", "0 9"),
    ] {
        let got = page.get_with(&[("Range", ranges)]);
        let mut covered = [false; 10];
        match got.status {
            206 => {
                for (first, last, body) in parts(&got) {
                    rules.expect("RFC 9110 14.6", ranges, DIGITS[first..=last].to_vec(), body);
                    covered[first..=last].fill(true);
                }
            }
            // A server may ignore Range (section 14.2).
            200 => {
                rules.expect("RFC 9110 14.2", ranges, DIGITS.to_vec(), got.body.clone());
                continue;
            }
            other => rules.expect("RFC 9110 14.2", ranges, 206, other),
        }
        for (at, digit) in ('0'..='9').enumerate() {
            // Ranges with a small gap between them may be put together.
            let missing = wanted.contains(digit) && !covered[at];
            rules.expect("RFC 9110 15.3.7.2", ranges, false, missing);
        }
    }
    rules.expect("RFC 9110 14", "requests to the origin", 1, page.count());
    rules.check();
}

#[test]
fn many_small_ranges_are_no_amplifier() {
    let page = stored(Reply::fresh().body(DIGITS));
    let ranges = format!("bytes={}", vec!["0-"; 500].join(","));
    let got = page.get_with(&[("Range", &ranges)]);
    assert!(
        matches!(got.status, 200 | 206 | 416) && got.body.len() < 2048,
        "RFC 9110 14.2: {} with {} bytes",
        got.status,
        got.body.len()
    );
}

#[test]
fn a_206_of_the_cache_has_the_fields_of_section_15_3_7() {
    let page = stored(
        Reply::fresh()
            .header("Vary", "X-Unsent")
            .header("Expires", date::from_now(HOUR))
            .header("Content-Location", "/elsewhere")
            .header("Content-Type", "text/x")
            .header("Date", date::from_now(-50))
            .body(DIGITS),
    );
    let whole = page.get();
    let got = page.get_with(&[("Range", "bytes=1-2")]);
    assert_eq!((got.status, page.count()), (206, 1));
    let mut rules = Rules::new();
    let names = [
        "cache-control",
        "content-location",
        "content-type",
        "date",
        "etag",
        "expires",
        "vary",
    ];
    expect_fields_of(&mut rules, "RFC 9110 15.3.7", &names, &whole, &got);
    rules.holds("RFC 9111 5.1", "Age", got.age() >= Some(50), got.age());
    rules.check();
}

#[test]
fn range_is_for_get_and_for_200() {
    let page = stored(Reply::fresh().body(DIGITS));
    let head = page.request("HEAD", &[("Range", "bytes=0-3")], b"");
    assert_eq!(head.status, 200, "RFC 9110 14.2");
    assert_eq!(head.header("content-length"), Some("10"));

    let absent = stored(Reply::fresh().with_status(404).body(DIGITS));
    let got = absent.get_with(&[("Range", "bytes=0-3")]);
    assert_eq!((got.status, &got.body[..]), (404, DIGITS), "RFC 9110 14.2");
    assert_eq!(absent.count(), 1);
}

#[test]
fn if_range_compares_strongly() {
    let changed = Date::from_now(-10 * DAY);
    let page = stored(
        Reply::fresh()
            .header("Last-Modified", changed.imf())
            .body(DIGITS),
    );
    let mut rules = Rules::new();
    for (condition, expected) in [
        ("\"v1\"", 206),
        ("\"v2\"", 200),
        ("W/\"v1\"", 200),
        ("*", 200),
        (&*changed.imf(), 206),
        (&*changed.plus(1).imf(), 200),
        (&*changed.plus(-1).imf(), 200),
        ("yesterday", 200),
    ] {
        let got = page.get_with(&[("Range", "bytes=0-3"), ("If-Range", condition)]);
        rules.expect("RFC 9110 13.1.5", condition, expected, got.status);
        let len = if expected == 206 { 4 } else { 10 };
        rules.expect("RFC 9110 13.1.5", condition, len, got.body.len());
    }
    let alone = page.get_with(&[("If-Range", "\"v1\"")]);
    rules.expect("RFC 9110 13.1.5", "without Range", 200, alone.status);
    rules.expect("RFC 9110 13.1.5", "requests to the origin", 1, page.count());

    let weak = stored(
        Reply::ok()
            .header("Cache-Control", "max-age=3600")
            .header("ETag", "W/\"v1\"")
            .body(DIGITS),
    );
    let got = weak.get_with(&[("Range", "bytes=0-3"), ("If-Range", "W/\"v1\"")]);
    rules.expect("RFC 9110 13.1.5", "weak and stored weak", 200, got.status);

    // Changed in the second in which it was sent: weak (section 8.8.2.2).
    let now = Date::from_now(0);
    let young = stored(
        Reply::ok()
            .header("Cache-Control", "max-age=3600")
            .header("Date", now.imf())
            .header("Last-Modified", now.imf())
            .body(DIGITS),
    );
    let got = young.get_with(&[("Range", "bytes=0-3"), ("If-Range", &now.imf())]);
    rules.expect("RFC 9110 8.8.2.2", "changed just now", 200, got.status);
    rules.check();
}

#[test]
fn conditions_go_before_ranges() {
    let page = stored(Reply::fresh().body(DIGITS));
    let range = ("Range", "bytes=0-3");
    let same = page.get_with(&[range, ("If-None-Match", "\"v1\"")]);
    assert_eq!(same.status, 304, "RFC 9110 13.2.2");
    let other = page.get_with(&[range, ("If-None-Match", "\"v0\"")]);
    assert_eq!(other.status, 206, "RFC 9110 13.2.2");
    let both = page.get_with(&[range, ("If-None-Match", "\"v1\""), ("If-Range", "\"v0\"")]);
    assert_eq!(both.status, 304, "RFC 9110 13.2.2");
    // A condition that holds, and a range that cannot be satisfied.
    let beyond = page.get_with(&[("Range", "bytes=10-"), ("If-None-Match", "\"v0\"")]);
    assert_eq!(beyond.status, 416);
    let other = page.get_with(&[("Range", "bytes=10-"), ("If-Range", "\"v0\"")]);
    assert_eq!(other.status, 200, "RFC 9110 13.1.5");
    assert_eq!(page.count(), 1);
}

#[test]
fn a_range_of_a_large_object_comes_from_the_disk() {
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 / 3) as u8).collect();
    let page = stored(Reply::fresh().body(body.clone()));
    for (range, wanted) in [
        ("bytes=1000000-1999999", &body[1_000_000..2_000_000]),
        ("bytes=2999999-", &body[2_999_999..]),
        ("bytes=-100000", &body[2_900_000..]),
        ("bytes=0-0", &body[..1]),
    ] {
        let got = page.get_with(&[("Range", range)]);
        assert_eq!(got.status, 206, "{range}");
        assert!(got.complete && got.body == wanted, "{range}");
    }
    let several = page.get_with(&[("Range", "bytes=0-99,2000000-2000099")]);
    assert!(matches!(several.status, 200 | 206));
    assert!(several.complete);
    assert_eq!(page.count(), 1);
}

#[test]
fn a_range_of_what_came_without_a_length() {
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 / 3) as u8).collect();
    let page = stored(Reply::fresh().body(body.clone()).chunked());
    // As long as it is not stored to its end, nobody knows how long it is.
    eventually("a range of it", || {
        let got = page.get_with(&[("Range", "bytes=-100000")]);
        let wanted = if got.status == 206 { 2_900_000 } else { 0 };
        assert!(got.complete && got.body == body[wanted..]);
        got.status == 206
    });
    assert_eq!(page.count(), 1);
}

#[test]
fn a_chunked_get_without_chunks_is_a_hit() {
    let page = stored(Reply::fresh().body("what is stored"));
    for (what, wire) in [
        ("at once", &[&b"0\r\n\r\n"[..]][..]),
        ("in parts", &[b"0\r", b"\n\r\n"]),
        ("with an extension", &[b"0;a=b\r\n\r\n"]),
    ] {
        let mut client = page.site().client();
        for _ in 0..2 {
            client.ask("GET", page.path(), &[("Transfer-Encoding", "chunked")], b"");
            for bytes in wire {
                client.send_bytes(bytes);
            }
            let got = client.receive("GET");
            assert_eq!(
                (got.status, got.text()),
                (200, "what is stored".into()),
                "{what}"
            );
        }
    }
    assert_eq!(page.count(), 1, "the origin is asked once");

    let got = page.request(
        "GET",
        &[("Transfer-Encoding", "chunked")],
        b"1\r\na\r\n0\r\n\r\n",
    );
    assert_eq!(got.status, 200);
    let seen = page.seen();
    assert_eq!(seen.len(), 2, "a request with a body is passed on");
    assert_eq!(seen[1].body, b"a");
}
