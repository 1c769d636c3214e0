//! HEAD and ranges of what is not stored: the client is answered at once, and
//! the whole object is fetched behind, once (issue 5; RFC 9111 sections 3.3 and
//! 3.4; RFC 9110 section 14).

use std::thread;

use test_support::{eventually, Gate, Page, Reply, Request, Response, Rules, Site, Use};

const LEN: usize = 1_000_000;

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 / 5) as u8).collect()
}

/// An origin that answers single ranges `bytes=A-B` and whole requests.
fn ranged(seen: &Request, body: &[u8], answer: Reply) -> Reply {
    let Some(range) = seen.header("range") else {
        return answer.body(body);
    };
    let (first, last) = range
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
        .expect("a range");
    let first: usize = first.parse().expect("first");
    let last = last.parse().unwrap_or(usize::MAX).min(body.len() - 1);
    if first > last {
        return Reply::ok()
            .with_status(416)
            .header("Content-Range", format!("bytes */{}", body.len()))
            .body("");
    }
    answer
        .with_status(206)
        .header(
            "Content-Range",
            format!("bytes {first}-{last}/{}", body.len()),
        )
        .body(&body[first..=last])
}

/// A page of `LEN` bytes whose whole is sent behind the gate.
fn held(gate: &Gate) -> Page<'static> {
    let page = Site::shared().page();
    let (body, gate) = (content(LEN), gate.clone());
    page.serves(move |seen, _| {
        let answer = ranged(seen, &body, Reply::fresh());
        match seen.header("range") {
            Some(_) => answer,
            None => answer.hold(&gate),
        }
    });
    page
}

fn whole_requests(page: &Page) -> usize {
    let seen = page.seen();
    seen.iter().filter(|s| s.header("range").is_none()).count()
}

fn expect_part(got: &Response, first: usize, last: usize) {
    assert_eq!(got.status, 206);
    let expected = format!("bytes {first}-{last}/{LEN}");
    assert_eq!(got.header("content-range"), Some(&*expected));
    assert!(got.complete && got.body == content(LEN)[first..=last]);
}

#[test]
fn a_head_on_a_miss_is_a_head_at_the_origin() {
    let page = Site::shared().page_with(Reply::fresh().body(content(LEN)));
    let head = page.head();
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some("1000000"));
    assert_eq!(head.header("etag"), Some("\"v1\""));
    let seen = page.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].method, "HEAD", "issue 5: no body from the origin");
}

#[test]
fn a_range_on_a_miss_is_a_range_at_the_origin_and_a_fill_behind() {
    let gate = Gate::new();
    let page = held(&gate);
    // At once: the whole is still held.
    let part = page.get_with(&[("Range", "bytes=500000-500099")]);
    expect_part(&part, 500_000, 500_099);
    assert_eq!(page.seen()[0].header("range"), Some("bytes=500000-500099"));

    gate.wait_for_arrivals(1);
    gate.open();
    eventually("the whole object is stored", || {
        page.get_with(&[("Cache-Control", "only-if-cached")]).status == 200
    });
    assert_eq!(page.count(), 2, "one range, one fill");
    assert_eq!(page.seen()[1].header("range"), None);
    let (whole, used) = page.get_again(&[]);
    assert_eq!((whole.status, used), (200, Use::Reused));
    assert!(whole.body == content(LEN));
    let (part, used) = page.get_again(&[("Range", "bytes=1-2")]);
    assert_eq!(used, Use::Reused);
    expect_part(&part, 1, 2);
}

#[test]
fn a_fill_behind_is_started_once() {
    let gate = Gate::new();
    let page = held(&gate);
    for at in 0..8 {
        let first = at * 100_000;
        let last = first + 99;
        let part = page.get_with(&[("Range", &format!("bytes={first}-{last}"))]);
        expect_part(&part, first, last);
    }
    gate.wait_for_arrivals(1);
    assert_eq!(whole_requests(&page), 1, "issue 5");
    gate.open();
    eventually("the whole object is stored", || {
        page.get_with(&[("Cache-Control", "only-if-cached")]).status == 200
    });
    assert_eq!(whole_requests(&page), 1);
}

#[test]
fn parallel_ranges_cost_the_origin_at_most_twice_the_object() {
    let page = Site::shared().page();
    let body = content(LEN);
    page.serves(move |seen, _| ranged(seen, &body, Reply::fresh()));
    thread::scope(|scope| {
        for at in 0..10 {
            let page = &page;
            scope.spawn(move || {
                let first = at * 100_000;
                let last = first + 99_999;
                let part = page.get_with(&[("Range", &format!("bytes={first}-{last}"))]);
                expect_part(&part, first, last);
            });
        }
    });
    eventually("the whole object is stored", || {
        page.get_with(&[("Cache-Control", "only-if-cached")]).status == 200
    });
    assert_eq!(whole_requests(&page), 1, "issue 5");
    let ranges: Vec<_> = page
        .seen()
        .iter()
        .filter_map(|seen| seen.header("range").map(str::to_owned))
        .collect();
    let mut distinct = ranges.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(ranges.len(), distinct.len(), "each range once at most");
}

#[test]
fn a_range_inside_what_is_being_filled_follows_the_fill() {
    let gate = Gate::new();
    let page = Site::shared().page();
    let (body, hold) = (content(LEN), gate.clone());
    page.serves(move |seen, _| ranged(seen, &body, Reply::fresh()).hold_at(400_000, &hold));
    let mut filling = page.ask("GET", &[], b"");
    filling.receive_head().expect("a head");
    gate.wait_for_arrivals(1);
    let inside = page.get_with(&[("Range", "bytes=1000-1999")]);
    expect_part(&inside, 1000, 1999);
    assert_eq!(page.count(), 1, "issue 5: it follows the fill");
    gate.open();
    assert!(filling.receive_bytes(LEN as u64) == content(LEN));
}

#[test]
fn an_origin_without_ranges_is_asked_once() {
    let page = Site::shared().page();
    let body = content(LEN);
    page.serves(move |_, _| Reply::fresh().body(body.clone()));
    let got = page.get_with(&[("Range", "bytes=10-19")]);
    let expected = match got.status {
        206 => content(LEN)[10..20].to_vec(),
        _ => content(LEN),
    };
    assert!(matches!(got.status, 200 | 206) && got.body == expected);
    eventually("the whole object is stored", || {
        page.get_with(&[("Cache-Control", "only-if-cached")]).status == 200
    });
    assert!(page.count() <= 2, "{} requests", page.count());
    assert!(page.get().body == content(LEN));
}

#[test]
fn what_cannot_be_stored_is_not_filled() {
    let mut rules = Rules::new();
    for value in ["no-store", "private", "no-store, max-age=3600"] {
        let page = Site::shared().page();
        let body = content(1000);
        page.serves(move |seen, _| ranged(seen, &body, Reply::ok().header("Cache-Control", value)));
        for asked in 1..4 {
            let got = page.get_with(&[("Range", "bytes=0-9")]);
            rules.expect("issue 5", value, 206, got.status);
            rules.expect("issue 5", value, asked, page.count());
        }
        rules.expect("issue 5", value, 0, whole_requests(&page));
    }
    rules.check();
}

#[test]
fn an_unsatisfiable_range_on_a_miss() {
    let page = Site::shared().page();
    let body = content(1000);
    page.serves(move |seen, _| ranged(seen, &body, Reply::fresh()));
    let got = page.get_with(&[("Range", "bytes=2000-")]);
    assert_eq!(got.status, 416, "RFC 9110 15.5.17");
    assert_eq!(got.header("content-range"), Some("bytes */1000"));
    let whole = page.get();
    assert_eq!((whole.status, whole.body.len()), (200, 1000));
}

#[test]
fn an_invalid_range_on_a_miss_is_no_range() {
    let page = Site::shared().page_with(Reply::fresh().body("0123456789"));
    let got = page.get_with(&[("Range", "bytes=5-3")]);
    assert_eq!((got.status, &*got.text()), (200, "0123456789"));
    assert_eq!(page.get_again(&[]).1, Use::Reused);
}

#[test]
fn several_ranges_on_a_miss_are_answered() {
    let page = Site::shared().page();
    page.serves(|_, _| Reply::fresh().body("0123456789"));
    let got = page.get_with(&[("Range", "bytes=0-1,8-9")]);
    assert!(
        matches!(got.status, 200 | 206) && got.complete,
        "{}",
        got.status
    );
    assert_eq!(page.get().text(), "0123456789");
}

#[test]
fn if_range_on_a_miss_is_decided_on_what_the_origin_has() {
    let mut rules = Rules::new();
    for (condition, expected) in [("\"v1\"", 206), ("\"v0\"", 200), ("W/\"v1\"", 200)] {
        let page = Site::shared().page();
        page.serves(|seen, _| {
            let whole = Reply::fresh().body("0123456789");
            let part = Reply::fresh()
                .with_status(206)
                .header("Content-Range", "bytes 0-3/10")
                .body("0123");
            match (seen.header("range"), seen.header("if-range")) {
                (Some(_), None | Some("\"v1\"")) => part,
                _ => whole,
            }
        });
        let got = page.get_with(&[("Range", "bytes=0-3"), ("If-Range", condition)]);
        rules.expect("RFC 9110 13.1.5", condition, expected, got.status);
        let len = if expected == 206 { 4 } else { 10 };
        rules.expect("RFC 9110 13.1.5", condition, len, got.body.len());
    }
    rules.check();
}

#[test]
fn a_part_of_a_new_version_does_not_mix_with_the_old_one() {
    // The origin changes between the part and the whole.
    let page = Site::shared().page();
    page.serves(|seen, _| match seen.header("range") {
        Some(_) => Reply::fresh()
            .with_status(206)
            .header("Content-Range", "bytes 0-3/10")
            .body("0123"),
        None => Reply::fresh().set("ETag", "\"v2\"").body("abcdefghijkl"),
    });
    let part = page.get_with(&[("Range", "bytes=0-3")]);
    assert_eq!((part.status, &*part.text()), (206, "0123"));
    let whole = page.get();
    assert_eq!(
        (whole.status, whole.header("etag"), &*whole.text()),
        (200, Some("\"v2\""), "abcdefghijkl"),
        "RFC 9111 3.4"
    );
}

#[test]
fn a_head_does_not_start_a_fill() {
    let page = Site::shared().page_with(Reply::fresh().body("0123456789"));
    page.request("HEAD", &[("Range", "bytes=0-3")], b"");
    page.head();
    let methods: Vec<_> = page.seen().iter().map(|seen| seen.method.clone()).collect();
    assert!(methods.iter().all(|method| method == "HEAD"), "{methods:?}");
    assert_eq!(page.get().text(), "0123456789");
}
