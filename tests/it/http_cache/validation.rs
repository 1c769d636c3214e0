//! Validation of stored responses by the example's cache, and its use of the
//! answer (RFC 9111 sections 3.2, 4.3.3, 4.3.4 and 4.3.5).

use test_support::{
    date::{self, Date},
    Page, Reply, Request, Response, Rules, Site, Use,
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A page with a stale response, whose origin answers then as given.
fn stale(then: impl IntoIterator<Item = Reply>) -> Page<'static> {
    let page = Site::shared().page_with(Reply::stale().header("X-Old", "old"));
    page.get();
    page.answers(then);
    page
}

fn not_modified() -> Reply {
    Reply::ok().with_status(304).header("ETag", "\"v1\"")
}

/// An origin that evaluates `If-None-Match` on its only version.
fn conditional(etag: &'static str, answer: Reply) -> impl Fn(&Request, usize) -> Reply {
    move |seen, _| {
        let status = if seen.names(etag) { 304 } else { 200 };
        answer.clone().header("ETag", etag).with_status(status)
    }
}

#[test]
fn a_stale_response_is_validated_with_all_its_validators() {
    let changed = Date::from_now(-10 * DAY).asctime();
    let page = Site::shared().page_with(Reply::stale().header("Last-Modified", &changed));
    page.get();
    page.get();
    let seen = &page.seen()[1];
    let mut rules = Rules::new();
    rules.expect(
        "RFC 9111 4.3.1",
        "If-None-Match",
        Some("\"v1\""),
        seen.header("if-none-match"),
    );
    // As it was received, and not written anew.
    rules.expect(
        "RFC 9111 4.3.1",
        "If-Modified-Since",
        Some(&*changed),
        seen.header("if-modified-since"),
    );
    rules.check();
}

#[test]
fn without_a_validator_it_is_fetched() {
    let page = Site::shared().page_with(
        Reply::ok()
            .header("Cache-Control", "max-age=1")
            .header("Age", 60),
    );
    page.get();
    let (got, used) = page.get_again(&[]);
    assert_eq!((used, got.serial()), (Use::Fetched, Some(2)));
}

#[test]
fn a_304_makes_it_fresh_and_updates_its_fields() {
    let dated = date::from_now(-5);
    let page = stale([not_modified()
        .header("Cache-Control", "max-age=3600")
        .header("Date", &dated)
        .header("X-Old", "new")
        .header("X-Added", "added")
        .header("Content-Length", 999)
        .header("Connection", "X-Hop")
        .header("X-Hop", "hop")
        .header("Keep-Alive", "timeout=5")]);

    let revalidated = page.get();
    let hit = page.get();

    assert_eq!(page.count(), 2, "RFC 9111 4.3.4: fresh again");
    let mut rules = Rules::new();
    for (which, got) in [("revalidated", &revalidated), ("hit", &hit)] {
        let field = |name| (which, got.header(name));
        rules.expect(
            "RFC 9111 4.3.3",
            which,
            (200, Some(1)),
            (got.status, got.serial()),
        );
        rules.holds("RFC 9111 4.3.3", which, got.complete, "cut short");
        rules.expect(
            "RFC 9111 3.2",
            "Cache-Control",
            (which, Some("max-age=3600")),
            field("cache-control"),
        );
        rules.expect(
            "RFC 9111 3.2",
            "Date",
            (which, Some(&*dated)),
            field("date"),
        );
        rules.expect(
            "RFC 9111 3.2",
            "X-Old",
            (which, Some("new")),
            field("x-old"),
        );
        rules.expect(
            "RFC 9111 3.2",
            "X-Added",
            (which, Some("added")),
            field("x-added"),
        );
        rules.expect(
            "RFC 9111 3.1",
            "named by Connection",
            (which, None),
            field("x-hop"),
        );
        rules.expect(
            "RFC 9111 3.1",
            "Keep-Alive",
            (which, None),
            field("keep-alive"),
        );
        rules.expect(
            "RFC 9111 3.2",
            "Content-Length",
            (which, Some(&*got.body.len().to_string())),
            field("content-length"),
        );
    }
    let age = hit.age().expect("an Age");
    rules.holds(
        "RFC 9111 4.2.3",
        "the age starts again",
        (5..30).contains(&age),
        age,
    );
    rules.check();
}

#[test]
fn what_a_304_does_not_say_stays() {
    // It came from another cache, an hour and a minute old.
    let page = Site::shared().page_with(
        Reply::fresh()
            .header("Age", HOUR + 60)
            .header("Date", date::from_now(-HOUR - 60))
            .header("X-Old", "old")
            .header("Content-Type", "text/x"),
    );
    page.get();
    page.answers([not_modified()]);
    page.get();

    let (hit, used) = page.get_again(&[]);

    assert_eq!(used, Use::Reused, "max-age counts from the validation");
    let age = hit.age().expect("an Age");
    assert!(age < 60, "RFC 9111 4.2.3: Age: {age}");
    assert_eq!(hit.header("cache-control"), Some("max-age=3600"));
    assert_eq!(hit.header("x-old"), Some("old"));
    assert_eq!(hit.header("content-type"), Some("text/x"));
    assert_eq!(hit.serial(), Some(1));
}

#[test]
fn a_field_of_several_lines_is_replaced_as_a_whole() {
    let page = Site::shared().page_with(Reply::stale().header("X-List", "a").header("X-List", "b"));
    page.get();
    page.answers([not_modified()
        .header("Cache-Control", "max-age=3600")
        .header("X-List", "c")
        .header("X-List", "d")]);
    page.get();
    assert_eq!(page.get().headers.all("x-list"), ["c", "d"], "RFC 9111 3.2");
    assert_eq!(page.count(), 2);
}

#[test]
fn the_age_of_a_304_counts() {
    let page = stale([not_modified()
        .header("Cache-Control", "max-age=3600")
        .header("Age", 1000)]);
    page.get();
    let (hit, used) = page.get_again(&[]);
    assert_eq!(used, Use::Reused);
    let age = hit.age().expect("an Age");
    assert!((1000..1030).contains(&age), "RFC 9111 4.2.3: Age: {age}");
}

#[test]
fn a_304_that_does_not_make_it_fresh() {
    let page = stale([not_modified().header("Cache-Control", "no-cache")]);
    for count in 2..5 {
        let got = page.get();
        assert_eq!((got.status, got.serial()), (200, Some(1)));
        assert_eq!(page.count(), count, "RFC 9111 5.2.2.4");
    }
}

#[test]
fn a_weak_validator_is_good_enough() {
    let page = Site::shared().page();
    page.serves(conditional(
        "W/\"v1\"",
        Reply::ok().header("Cache-Control", "no-cache"),
    ));
    page.get();
    let (got, used) = page.get_again(&[]);
    assert_eq!(
        (used, got.status, got.serial()),
        (Use::Validated, 200, Some(1)),
        "RFC 9111 4.3.4"
    );
}

#[test]
fn last_modified_alone_is_good_enough() {
    let changed = date::from_now(-DAY);
    let page = Site::shared().page_with(
        Reply::ok()
            .header("Cache-Control", "max-age=1")
            .header("Age", 60)
            .header("Last-Modified", &changed),
    );
    page.get();
    page.answers([Reply::ok()
        .with_status(304)
        .header("Last-Modified", &changed)
        .header("Cache-Control", "max-age=3600")]);
    let (got, used) = page.get_again(&[]);
    assert_eq!(
        (used, got.status, got.serial()),
        (Use::Validated, 200, Some(1)),
        "RFC 9111 4.3.4"
    );
    assert_eq!(page.get_again(&[]).1, Use::Reused);
}

#[test]
fn a_304_of_another_version_is_not_used() {
    let page = Site::shared().page_with(Reply::stale());
    page.get();
    page.serves(|seen, _| match seen.is_conditional() {
        true => Reply::ok()
            .with_status(304)
            .header("ETag", "\"v2\"")
            .header("X-Which", "other")
            .header("Cache-Control", "max-age=3600"),
        false => Reply::fresh().set("ETag", "\"v2\""),
    });

    let got = page.get();

    let seen = page.seen();
    assert_eq!(seen.len(), 3, "RFC 9111 4.3.4: asked again");
    assert!(!seen[2].is_conditional());
    assert_eq!((got.status, got.serial()), (200, Some(3)));
    assert_eq!(got.header("x-which"), None);
    let hit = page.get();
    assert_eq!((hit.serial(), page.count()), (Some(3), 3));
}

#[test]
fn a_304_without_a_validator_is_about_what_was_asked() {
    let page = stale([Reply::ok()
        .with_status(304)
        .header("Cache-Control", "max-age=3600")]);
    let got = page.get();
    assert_eq!(got.status, 200);
    assert!(got.complete && got.serial().is_some());
}

#[test]
fn a_304_that_nobody_asked_for_is_not_stored() {
    let page = Site::shared().page();
    page.answers([
        Reply::ok()
            .with_status(304)
            .header("ETag", "\"v1\"")
            .header("Cache-Control", "max-age=3600"),
        Reply::fresh(),
    ]);
    let first = page.get();
    // Not the client's either: it has nothing that it could be about.
    assert!(
        matches!(first.status, 200 | 502),
        "RFC 9110 15.4.5: {}",
        first.status
    );
    let second = page.get();
    assert_eq!((second.status, second.serial()), (200, Some(2)));
}

#[test]
fn another_answer_replaces_what_is_stored() {
    let mut rules = Rules::new();
    for status in [200, 203, 404, 410, 301] {
        let page = stale([Reply::fresh().with_status(status).set("ETag", "\"v2\"")]);
        let got = page.get();
        let what = status.to_string();
        rules.expect(
            "RFC 9111 4.3.3",
            &what,
            (status, Some(2)),
            (got.status, got.serial()),
        );
        let hit = page.get();
        rules.expect(
            "RFC 9111 4.3.3",
            &what,
            (status, Some(2)),
            (hit.status, hit.serial()),
        );
        rules.expect("RFC 9111 4.3.3", &what, 2, page.count());
        rules.expect("RFC 9111 4.3.3", "X-Old", None, hit.header("x-old"));
    }
    rules.check();
}

#[test]
fn a_5xx_does_not_lose_what_is_stored() {
    let page = stale([
        Reply::ok().with_status(503),
        not_modified().header("Cache-Control", "max-age=60"),
    ]);
    let error = page.get();
    // Passed on, or as if the origin had not answered: RFC 9111, section 4.3.3.
    assert!(matches!(
        (error.status, error.serial()),
        (503, _) | (200, Some(1))
    ));
    let got = page.get();
    assert_eq!((got.status, got.serial()), (200, Some(1)));
    assert!(page.seen()[2].names("\"v1\""), "it is still there");
}

/// Answers to clients that have a version of their own.
#[test]
fn a_clients_own_condition_is_decided_on_what_is_validated() {
    let mut rules = Rules::new();
    let no_cache = || Reply::ok().header("Cache-Control", "no-cache");
    let mut expect = |what: &str, client: &str, origin: &'static str, expected: &[u16]| {
        let page = Site::shared().page();
        page.serves(conditional("\"v1\"", no_cache()));
        page.get();
        page.serves(conditional(origin, no_cache().header("X-Version", origin)));
        let got = page.get_with(&[("If-None-Match", client)]);
        rules.holds(
            "RFC 9111 4.3.2",
            what,
            expected.contains(&got.status),
            got.status,
        );
        let etag = got.header("etag").map(str::to_owned);
        rules.expect("RFC 9111 4.3.2", what, Some(origin.to_owned()), etag);
        // And nothing of it is in the way of the next one.
        let next = page.get();
        rules.expect("RFC 9111 4.3.2", what, 200, next.status);
        let version = next.header("x-version").map(str::to_owned);
        rules.expect("RFC 9111 4.3.2", what, Some(origin.to_owned()), version);
    };
    expect(
        "client, cache and origin have v1",
        "\"v1\"",
        "\"v1\"",
        &[304],
    );
    expect("client v0, cache and origin v1", "\"v0\"", "\"v1\"", &[200]);
    // The origin is spared the client's question.
    expect(
        "client and origin v2, cache v1",
        "\"v2\"",
        "\"v2\"",
        &[304, 200],
    );
    expect("client and cache v1, origin v2", "\"v1\"", "\"v2\"", &[200]);
    expect("all differ", "\"v0\"", "\"v2\"", &[200]);
    rules.check();
}

#[test]
fn a_clients_condition_on_a_miss_does_not_lose_the_fill() {
    let page = Site::shared().page();
    page.serves(conditional(
        "\"v1\"",
        Reply::ok().header("Cache-Control", "max-age=3600"),
    ));
    let got = page.get_with(&[("If-None-Match", "\"v1\"")]);
    assert_eq!((got.status, got.body.len()), (304, 0), "issue 5");
    let hit = page.get();
    assert_eq!((hit.status, hit.serial()), (200, Some(1)));
    assert_eq!(page.count(), 1, "the first answer was stored");

    let page = Site::shared().page();
    page.serves(conditional(
        "\"v1\"",
        Reply::ok().header("Cache-Control", "max-age=3600"),
    ));
    let other = page.get_with(&[("If-None-Match", "\"v0\"")]);
    assert_eq!((other.status, other.serial()), (200, Some(1)));
    assert_eq!(page.get().serial(), Some(1));
    assert_eq!(page.count(), 1);
}

#[test]
fn a_clients_date_on_a_miss_does_not_lose_the_fill() {
    let changed = Date::from_now(-DAY);
    let page = Site::shared().page();
    let last_modified = changed.imf();
    page.serves(move |seen, _| {
        let status = match seen.header("if-modified-since") {
            Some(since) if since == last_modified => 304,
            _ => 200,
        };
        Reply::ok()
            .with_status(status)
            .header("Cache-Control", "max-age=3600")
            .header("Last-Modified", &last_modified)
    });
    let got = page.get_with(&[("If-Modified-Since", &changed.imf())]);
    assert_eq!((got.status, got.body.len()), (304, 0), "issue 5");
    let hit = page.get();
    assert_eq!((hit.status, hit.serial()), (200, Some(1)));
    assert_eq!(page.count(), 1, "the first answer was stored");
}

/// A page with a fresh response, of which a HEAD then has something to say.
fn after_head(head: Reply) -> (Page<'static>, Response, Use) {
    let page = Site::shared().page_with(
        Reply::fresh()
            .body("0123456789")
            .header("X-Old", "old")
            .header("Age", 1000),
    );
    page.get();
    page.answers([head, Reply::fresh().body("second")]);
    let got = page.request("HEAD", &[("Cache-Control", "no-cache")], b"");
    assert!(got.status == 200 && got.body.is_empty());
    assert_eq!(page.seen()[1].method, "HEAD");
    let (next, used) = page.get_again(&[]);
    (page, next, used)
}

#[test]
fn a_head_updates_the_stored_get() {
    let (_, got, used) = after_head(
        Reply::fresh()
            .header("Content-Length", 10)
            .header("X-Old", "new")
            .header("X-Added", "added"),
    );
    assert_eq!(used, Use::Reused, "RFC 9111 4.3.5");
    assert_eq!(got.text(), "0123456789");
    assert_eq!(got.header("x-old"), Some("new"), "RFC 9111 4.3.5");
    assert_eq!(got.header("x-added"), Some("added"), "RFC 9111 4.3.5");
}

#[test]
fn a_head_of_another_version_makes_the_stored_get_stale() {
    let mut rules = Rules::new();
    for (what, head) in [
        (
            "another ETag",
            Reply::ok()
                .header("Cache-Control", "max-age=3600")
                .header("ETag", "\"v2\"")
                .header("Content-Length", 10),
        ),
        (
            "another length",
            Reply::fresh().header("Content-Length", 11),
        ),
    ] {
        let (_, got, used) = after_head(head);
        rules.holds("RFC 9111 4.3.5", what, used != Use::Reused, used);
        rules.expect("RFC 9111 4.3.5", what, "second".to_owned(), got.text());
    }
    rules.check();
}

#[test]
fn a_head_is_answered_by_a_stored_get() {
    let page = Site::shared().page_with(Reply::fresh().body("0123456789"));
    page.get();
    let head = page.head();
    assert_eq!((head.status, head.body.len(), page.count()), (200, 0, 1));
    assert_eq!(head.header("content-length"), Some("10"));
    assert!(head.age().is_some(), "RFC 9111 4");
}

#[test]
fn a_range_of_a_stale_response_is_of_what_is_validated() {
    let range = [("Range", "bytes=0-3")];
    let old = || Reply::stale().body("0123456789");
    let page = Site::shared().page_with(old());
    page.get();
    page.answers([not_modified().header("Cache-Control", "max-age=3600")]);
    let same = page.get_with(&range);
    assert_eq!((same.status, &*same.text()), (206, "0123"));
    assert_eq!(same.header("content-range"), Some("bytes 0-3/10"));

    let page = Site::shared().page_with(old());
    page.get();
    page.serves(|seen, _| {
        let whole = Reply::ok()
            .header("Cache-Control", "max-age=3600")
            .header("ETag", "\"v2\"");
        match seen.header("range") {
            Some(_) => whole
                .with_status(206)
                .header("Content-Range", "bytes 0-3/12")
                .body("abcd"),
            None => whole.body("abcdefghijkl"),
        }
    });
    let new = page.get_with(&range);
    assert!(matches!(new.status, 200 | 206));
    let expected = if new.status == 206 {
        "abcd"
    } else {
        "abcdefghijkl"
    };
    assert_eq!(new.text(), expected, "never of two versions");
}
