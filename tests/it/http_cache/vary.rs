//! Which of several stored responses fits a request (RFC 9111 section 4.1;
//! RFC 9110 section 12.5.5).

use test_support::{Page, Reply, Request, Rules, Site, Use};

type Fields<'a> = &'a [(&'a str, &'a str)];

fn fresh(vary: &str) -> Reply {
    Reply::ok()
        .header("Cache-Control", "max-age=3600")
        .header("Vary", vary)
}

/// Asks with the first fields and then with the second; must the origin be
/// asked again?
fn pairs(section: &str, vary: &str, rows: &[(Fields, Fields, bool)]) {
    let mut rules = Rules::new();
    for (first, second, same) in rows {
        let page = Site::shared().page_with(fresh(vary));
        page.get_with(first);
        let (got, used) = page.get_again(second);
        let what = format!("Vary: {vary}; {first:?}, then {second:?}");
        rules.expect(section, &what, *same, used == Use::Reused);
        rules.expect(section, &what, 200, got.status);
    }
    rules.check();
}

#[test]
fn a_variant_is_used_where_all_named_fields_match() {
    pairs(
        "RFC 9111 4.1",
        "X-One",
        &[
            (&[("X-One", "a")], &[("X-One", "a")], true),
            (&[("x-one", "a")], &[("X-ONE", "a")], true),
            (&[("X-One", "a")], &[("X-One", "b")], false),
            (&[("X-One", "a")], &[("X-One", "A")], false),
            (&[("X-One", "a")], &[("X-One", "a"), ("X-Two", "b")], true),
            (&[("X-One", "a, b")], &[("X-One", "b, a")], false),
            // Absent is absent, and not empty.
            (&[], &[], true),
            (&[("X-One", "a")], &[], false),
            (&[], &[("X-One", "a")], false),
            (&[], &[("X-One", "")], false),
            (&[("X-One", "")], &[], false),
            (&[("X-One", "")], &[("X-One", "")], true),
            // Several lines are one list (RFC 9110, section 5.3).
            (
                &[("X-One", "a"), ("X-One", "b")],
                &[("X-One", "a, b")],
                true,
            ),
            (
                &[("X-One", "a"), ("X-One", "b")],
                &[("X-One", "b"), ("X-One", "a")],
                false,
            ),
            (&[("X-One", "a"), ("X-One", "b")], &[("X-One", "a")], false),
        ],
    );
}

#[test]
fn several_fields_all_have_to_match() {
    for vary in ["X-One, X-Two", "x-two,X-ONE", ", X-One ,, X-Two"] {
        pairs(
            "RFC 9111 4.1",
            vary,
            &[
                (
                    &[("X-One", "a"), ("X-Two", "b")],
                    &[("X-Two", "b"), ("X-One", "a")],
                    true,
                ),
                (
                    &[("X-One", "a"), ("X-Two", "b")],
                    &[("X-One", "a"), ("X-Two", "c")],
                    false,
                ),
                (
                    &[("X-One", "a"), ("X-Two", "b")],
                    &[("X-One", "b"), ("X-Two", "a")],
                    false,
                ),
                (&[("X-One", "a"), ("X-Two", "b")], &[("X-One", "a")], false),
                // Nothing moves from one field to the other.
                (&[("X-One", "a")], &[("X-Two", "a")], false),
            ],
        );
    }
}

#[test]
fn vary_in_several_lines_is_one_list() {
    let page = Site::shared().page_with(fresh("X-One").header("Vary", "X-Two"));
    page.get_with(&[("X-One", "a"), ("X-Two", "b")]);
    let (_, other) = page.get_again(&[("X-One", "a"), ("X-Two", "c")]);
    assert_ne!(other, Use::Reused, "RFC 9110 5.3");
    let (_, same) = page.get_again(&[("X-One", "a"), ("X-Two", "b")]);
    assert_eq!(same, Use::Reused);
}

#[test]
fn vary_on_anything_matches_nothing() {
    for vary in ["*", "X-One, *", "*, X-One", " * "] {
        pairs(
            "RFC 9111 4.1",
            vary,
            &[
                (&[], &[], false),
                (&[("X-One", "a")], &[("X-One", "a")], false),
            ],
        );
    }
    // In a line of its own too.
    let page = Site::shared().page_with(fresh("X-One").header("Vary", "*"));
    page.get();
    assert_ne!(page.get_again(&[]).1, Use::Reused, "RFC 9111 4.1");
}

#[test]
fn what_a_field_means_may_be_the_same_in_other_words() {
    pairs(
        "RFC 9111 4.1 and issue 5",
        "Accept-Encoding",
        &[
            (
                &[("Accept-Encoding", "gzip,br")],
                &[("Accept-Encoding", "gzip, br")],
                true,
            ),
            (
                &[("Accept-Encoding", "gzip ,\tbr")],
                &[("Accept-Encoding", "gzip,br")],
                true,
            ),
            (
                &[("Accept-Encoding", "br, gzip")],
                &[("Accept-Encoding", "gzip, br")],
                true,
            ),
            (
                &[("Accept-Encoding", "GZip")],
                &[("Accept-Encoding", "gzip")],
                true,
            ),
            (
                &[("Accept-Encoding", "gzip"), ("Accept-Encoding", "br")],
                &[("Accept-Encoding", "gzip, br")],
                true,
            ),
            (
                &[("Accept-Encoding", "gzip")],
                &[("Accept-Encoding", "br")],
                false,
            ),
            (
                &[("Accept-Encoding", "gzip")],
                &[("Accept-Encoding", "gzip;q=0")],
                false,
            ),
            (&[("Accept-Encoding", "")], &[], false),
        ],
    );
    pairs(
        "RFC 9111 4.1 and issue 5",
        "Accept-Language",
        &[
            (
                &[("Accept-Language", "en-US,de")],
                &[("Accept-Language", "en-us, DE")],
                true,
            ),
            (
                &[("Accept-Language", "en, de;q=0.5")],
                &[("Accept-Language", "de, en;q=0.5")],
                false,
            ),
        ],
    );
}

#[test]
fn variants_live_side_by_side() {
    let page = Site::shared().page();
    page.serves(|seen, _| {
        let language = seen.header("x-language").unwrap_or("none");
        fresh("X-Language").body(format!("in {language}"))
    });
    let languages = ["de", "en", "fr", "tr", "el"];
    let ask = |language: &str| page.get_with(&[("X-Language", language)]).text();
    for language in languages {
        assert_eq!(ask(language), format!("in {language}"));
    }
    assert_eq!(page.get().text(), "in none");
    assert_eq!(page.count(), 6);
    for language in languages.iter().rev().chain(&languages) {
        assert_eq!(ask(language), format!("in {language}"));
    }
    assert_eq!(page.get().text(), "in none");
    assert_eq!(page.count(), 6, "RFC 9111 4.1: each is stored once");
}

#[test]
fn a_response_may_vary_on_more_than_the_one_before() {
    let page = Site::shared().page();
    page.serves(|seen, serial| match seen.header("x-one") {
        Some("a") => fresh("X-One").body(format!("a #{serial}")),
        _ => {
            let two = seen.header("x-two").unwrap_or("none");
            fresh("X-One, X-Two").body(format!("b {two} #{serial}"))
        }
    });
    let ask = |one: &str, two: &str| page.get_with(&[("X-One", one), ("X-Two", two)]).text();
    let mut rules = Rules::new();
    let mut expect = |one, two, starts: &str| {
        let text = ask(one, two);
        let what = format!("X-One: {one}, X-Two: {two}");
        rules.holds(
            "RFC 9111 4.1",
            &what,
            text.starts_with(starts),
            text.clone(),
        );
    };
    expect("a", "x", "a #");
    expect("b", "x", "b x #");
    expect("b", "y", "b y #");
    expect("a", "x", "a #");
    expect("b", "x", "b x #");
    expect("b", "y", "b y #");
    rules.check();
}

#[test]
fn head_finds_the_variant_too() {
    let page = Site::shared().page();
    page.serves(|seen, _| {
        let one = seen.header("x-one").unwrap_or_default().to_owned();
        fresh("X-One").header("X-Is", &one).body(one.repeat(3))
    });
    page.get_with(&[("X-One", "a")]);
    page.get_with(&[("X-One", "bb")]);
    let head = page.request("HEAD", &[("X-One", "bb")], b"");
    assert_eq!(head.header("x-is"), Some("bb"));
    assert_eq!(head.header("content-length"), Some("6"));
    assert_eq!(page.count(), 2);
}

/// Two stale variants, "va" and "vb", whose origin knows both.
fn two_stale_variants() -> Page<'static> {
    let page = Site::shared().page();
    let etag = |seen: &Request| match seen.header("x-one") {
        Some("a") => "\"va\"",
        _ => "\"vb\"",
    };
    page.serves(move |seen, serial| {
        let answer = Reply::ok()
            .header("Vary", "X-One")
            .header("ETag", etag(seen));
        let which = seen.header("x-one").unwrap_or_default().to_owned();
        match seen.names(etag(seen)) {
            true => answer
                .with_status(304)
                .header("Cache-Control", "max-age=3600"),
            false => answer
                .header("Cache-Control", "max-age=1")
                .header("Age", 60)
                .body(format!("{which} #{serial}")),
        }
    });
    page.get_with(&[("X-One", "a")]);
    page.get_with(&[("X-One", "b")]);
    page
}

#[test]
fn a_304_freshens_the_variant_that_it_names() {
    let page = two_stale_variants();
    let (a, used) = page.get_again(&[("X-One", "a")]);
    assert_eq!(
        (used, &*a.text()),
        (Use::Validated, "a #1"),
        "RFC 9111 4.3.4"
    );
    let (a, used) = page.get_again(&[("X-One", "a")]);
    assert_eq!((used, &*a.text()), (Use::Reused, "a #1"));

    // The other one is as stale as before.
    let (b, used) = page.get_again(&[("X-One", "b")]);
    assert_eq!(
        (used, &*b.text()),
        (Use::Validated, "b #2"),
        "RFC 9111 4.3.4"
    );
    let (b, used) = page.get_again(&[("X-One", "b")]);
    assert_eq!((used, &*b.text()), (Use::Reused, "b #2"));
}

#[test]
fn a_new_variant_that_is_one_of_the_old_ones() {
    let page = two_stale_variants();
    // To the origin, c is what b is. It may be asked about both.
    let c = page.get_with(&[("X-One", "c")]);
    assert_eq!(c.status, 200);
    let text = c.text();
    assert!(text == "b #2" || text == "c #3", "RFC 9111 4.3.1: {text}");
    assert_eq!(c.header("etag"), Some("\"vb\""));
    let a = page.get_with(&[("X-One", "a")]);
    assert_eq!(a.text(), "a #1");
}

#[test]
fn an_unsafe_method_invalidates_all_variants() {
    let page = Site::shared().page_with(fresh("X-One"));
    for one in ["a", "b"] {
        page.get_with(&[("X-One", one)]);
    }
    page.request("DELETE", &[("X-One", "a")], b"");
    for one in ["a", "b"] {
        let (_, used) = page.get_again(&[("X-One", one)]);
        assert_ne!(used, Use::Reused, "RFC 9111 4.4: {one}");
    }
}

#[test]
fn vary_is_said_on_hits_and_on_304() {
    let page = Site::shared().page_with(fresh("X-One, Accept-Encoding").header("ETag", "\"v1\""));
    page.get();
    let hit = page.get();
    let same = page.get_with(&[("If-None-Match", "\"v1\"")]);
    assert_eq!((hit.status, same.status, page.count()), (200, 304, 1));
    for got in [hit, same] {
        let vary = got.headers.all("vary").join(", ").to_lowercase();
        assert_eq!(vary, "x-one, accept-encoding", "RFC 9110 12.5.5");
    }
}

#[test]
fn strangers_do_not_have_a_response_stored_as_often_as_they_like() {
    let page = Site::shared().page_with(fresh("X-One"));
    let ask = |number: usize| {
        let value = number.to_string();
        page.get_again(&[("X-One", &value)]).1
    };
    for number in 0..40 {
        assert_eq!(ask(number), Use::Fetched, "{number}");
    }
    // Eight of the forty had to leave: those that were stored first.
    let fetched = (0..40)
        .rev()
        .filter(|number| ask(*number) == Use::Fetched)
        .count();
    assert!((7..=9).contains(&fetched), "{fetched}");
    assert_eq!(ask(39), Use::Reused);
}

#[test]
fn codings_that_no_origin_has_select_no_variant() {
    let page = Site::shared().page_with(fresh("Accept-Encoding"));
    page.get_with(&[("Accept-Encoding", "gzip")]);
    for number in 0..50 {
        let accepted = format!("x-{number}, gzip;q=0.{number}1");
        let (_, used) = page.get_again(&[("Accept-Encoding", &accepted)]);
        assert_eq!(used, Use::Reused, "{accepted}");
    }
}

#[test]
fn a_response_in_a_coding_of_its_own_hides_no_other() {
    let page = Site::shared().page();
    page.serves(|seen, _| {
        let accepted = seen.header("accept-encoding").unwrap_or("");
        let coding = match accepted.contains("x-own") {
            true => "x-own",
            false => "gzip",
        };
        fresh("Accept-Encoding")
            .header("Content-Encoding", coding)
            .body(coding)
    });
    let ask = |accepted: &str| {
        let (got, used) = page.get_again(&[("Accept-Encoding", accepted)]);
        (got.text(), used)
    };
    let own = || "x-own".to_owned();
    let gzip = || "gzip".to_owned();
    // The first one is where a lookup begins.
    assert_eq!(ask("x-own"), (own(), Use::Fetched));
    assert_eq!(ask("gzip"), (gzip(), Use::Fetched));
    for _ in 0..3 {
        assert_eq!(ask("gzip"), (gzip(), Use::Reused));
        assert_eq!(ask("x-own"), (own(), Use::Reused));
    }
    // Of the known codings, it accepts what the last client accepts.
    assert_eq!(ask("x-own, br"), (own(), Use::Fetched));
    assert_eq!(ask("br, x-own"), (own(), Use::Reused));
    assert_eq!(ask("br").0, gzip(), "it cannot read the other one");
}
