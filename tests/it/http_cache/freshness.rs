//! The freshness of responses in the example's cache, and their use when they are
//! stale (RFC 9111 sections 3, 4.2 and 5; RFC 5861; RFC 9213).
//!
//! Nothing here sleeps for freshness: the origin's own fields make a response
//! old.

use std::{thread, time::Duration};

use test_support::{
    date::{self, Date},
    eventually, Gate, Page, Reply, Rules, Site, Use,
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// The finding of a second request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The stored response, and the origin is not asked.
    Fresh,
    /// The origin is asked, whether or not something was stored.
    NotFresh,
    /// The origin is asked without conditions: nothing may have been stored.
    NotStored,
}

use Then::{Fresh, NotFresh, NotStored};

type Fields<'a> = &'a [(&'a str, &'a str)];

/// Asks twice for a page that always answers so, and says whether the second
/// request found what must be.
fn rule(rules: &mut Rules, section: &str, what: &str, answer: Reply, expected: Then) {
    let page = Site::shared().page_with(answer);
    page.get();
    let (_, used) = page.get_again(&[]);
    let right = match expected {
        Fresh => used == Use::Reused,
        NotFresh => used != Use::Reused,
        NotStored => used == Use::Fetched,
    };
    rules.holds(
        section,
        what,
        right,
        format!("expected {expected:?}, got {used:?}"),
    );
}

/// Rules about a 200 with a validator and these fields.
fn rules_of_fields(section: &str, rows: &[(Fields, Then)]) {
    let mut rules = Rules::new();
    for (fields, expected) in rows {
        let answer = Reply::ok().header("ETag", "\"v1\"").headers(fields);
        rule(
            &mut rules,
            section,
            &format!("{fields:?}"),
            answer,
            *expected,
        );
    }
    rules.check();
}

/// As [`rules_of_fields`], of `Cache-Control` alone.
fn rules_of_cache_control(section: &str, rows: &[(&str, Then)]) {
    let rows: Vec<_> = rows
        .iter()
        .map(|(value, then)| ([("Cache-Control", *value)], *then))
        .collect();
    let rows: Vec<(Fields, Then)> = rows
        .iter()
        .map(|(fields, then)| (&fields[..], *then))
        .collect();
    rules_of_fields(section, &rows);
}

#[test]
fn the_lifetime_is_what_the_most_specific_directive_says() {
    let (soon, past) = (date::from_now(HOUR), date::from_now(-HOUR));
    rules_of_fields(
        "RFC 9111 4.2.1",
        &[
            (&[("Cache-Control", "max-age=3600")], Fresh),
            (&[("Cache-Control", "s-maxage=3600")], Fresh),
            (&[("Expires", &soon)], Fresh),
            (&[("Expires", &past)], NotFresh),
            (&[("Cache-Control", "max-age=0")], NotFresh),
            (&[("Cache-Control", "s-maxage=0")], NotFresh),
            // s-maxage before max-age, in whatever order.
            (&[("Cache-Control", "max-age=0, s-maxage=3600")], Fresh),
            (&[("Cache-Control", "s-maxage=0, max-age=3600")], NotFresh),
            // Both before Expires.
            (
                &[("Cache-Control", "max-age=3600"), ("Expires", &past)],
                Fresh,
            ),
            (
                &[("Cache-Control", "s-maxage=3600"), ("Expires", &past)],
                Fresh,
            ),
            (
                &[("Cache-Control", "max-age=0"), ("Expires", &soon)],
                NotFresh,
            ),
            (&[], NotFresh),
        ],
    );
}

#[test]
fn a_response_is_fresh_while_it_is_younger_than_its_lifetime() {
    let (hour_ago, old) = (date::from_now(-HOUR), date::from_now(-2 * HOUR));
    let (minute_ago, ahead) = (date::from_now(-60), date::from_now(HOUR));
    rules_of_fields(
        "RFC 9111 4.2.3",
        &[
            (&[("Cache-Control", "max-age=3600"), ("Age", "1800")], Fresh),
            // Fresh means younger, not as old as.
            (
                &[("Cache-Control", "max-age=3600"), ("Age", "3600")],
                NotFresh,
            ),
            (
                &[("Cache-Control", "max-age=3600"), ("Age", "7200")],
                NotFresh,
            ),
            (
                &[("Cache-Control", "s-maxage=3600"), ("Age", "7200")],
                NotFresh,
            ),
            // The apparent age, where no Age was received or a smaller one.
            (
                &[("Cache-Control", "max-age=3600"), ("Date", &old)],
                NotFresh,
            ),
            (
                &[("Cache-Control", "max-age=3600"), ("Date", &minute_ago)],
                Fresh,
            ),
            (
                &[
                    ("Cache-Control", "max-age=3600"),
                    ("Date", &old),
                    ("Age", "1"),
                ],
                NotFresh,
            ),
            (
                &[
                    ("Cache-Control", "max-age=3600"),
                    ("Date", &minute_ago),
                    ("Age", "7200"),
                ],
                NotFresh,
            ),
            // An origin whose clock is ahead has no negative age.
            (
                &[("Cache-Control", "max-age=3600"), ("Date", &ahead)],
                Fresh,
            ),
            // The lifetime by Expires counts from Date, not from now.
            (&[("Expires", &ahead), ("Date", &hour_ago)], Fresh),
            (
                &[
                    ("Expires", &date::from_now(-60)),
                    ("Date", &date::from_now(-HOUR)),
                ],
                NotFresh,
            ),
            (
                &[
                    ("Expires", &date::from_now(HOUR)),
                    ("Date", &date::from_now(2 * HOUR)),
                ],
                NotFresh,
            ),
            (
                &[
                    ("Expires", &date::from_now(2 * HOUR)),
                    ("Date", &date::from_now(HOUR)),
                ],
                Fresh,
            ),
            (
                &[("Expires", &ahead), ("Age", "3590"), ("Date", &minute_ago)],
                Fresh,
            ),
            (&[("Expires", &ahead), ("Age", "3700")], NotFresh),
        ],
    );
}

#[test]
fn a_received_age_is_read_as_section_5_1_says() {
    let max_age = ("Cache-Control", "max-age=3600");
    rules_of_fields(
        "RFC 9111 5.1",
        &[
            // The first of several; what is no number is ignored.
            (&[max_age, ("Age", "7200, 0")], NotFresh),
            (&[max_age, ("Age", "0, 7200")], Fresh),
            (&[max_age, ("Age", "7200"), ("Age", "0")], NotFresh),
            (&[max_age, ("Age", "0"), ("Age", "7200")], Fresh),
            (&[max_age, ("Age", "-7200")], Fresh),
            (&[max_age, ("Age", "abc")], Fresh),
            (&[max_age, ("Age", "7200.0")], Fresh),
            (&[max_age, ("Age", "")], Fresh),
            // Too large for any integer: as large as can be (section 1.2.2).
            (&[max_age, ("Age", "2147483648")], NotFresh),
            (&[max_age, ("Age", "99999999999999999999")], NotFresh),
        ],
    );
}

#[test]
fn the_time_that_the_origin_took_counts() {
    let held = Gate::new();
    let page = Site::shared().page_with(Reply::fresh().header("Age", 10).hold(&held));
    let mut client = page.ask("GET", &[], b"");
    held.wait_for_arrivals(1);
    // The delay is what this is about.
    thread::sleep(Duration::from_millis(1100));
    held.open();
    client.receive("GET");

    let hit = page.get();

    assert_eq!(page.count(), 1);
    let age = hit.age().expect("an Age");
    assert!((11..30).contains(&age), "RFC 9111 4.2.3: Age: {age}");
}

#[test]
fn cache_control_is_read_as_sections_1_2_2_and_5_2_say() {
    rules_of_cache_control(
        "RFC 9111 5.2",
        &[
            // Names without case; both forms of an argument.
            ("MAX-AGE=3600", Fresh),
            ("mAx-AgE=3600", Fresh),
            ("max-age=\"3600\"", Fresh),
            ("s-maxage=\"3600\"", Fresh),
            ("max-age=\"0\"", NotFresh),
            ("No-Store, max-age=3600", NotStored),
            ("PRIVATE, max-age=3600", NotStored),
            ("No-CaChE, max-age=3600", NotFresh),
            // Unknown directives are ignored (section 5.2.3), quotes and all.
            ("foo, max-age=3600", Fresh),
            ("max-age=3600, foo=bar", Fresh),
            ("foo=\"max-age=0\", max-age=3600", Fresh),
            ("foo=\"a, max-age=0, b\", max-age=3600", Fresh),
            ("foo=\"no-store\", max-age=3600", Fresh),
            ("foo=\"a \\\", no-store\", max-age=3600", Fresh),
            ("x-max-age=0, max-age=3600", Fresh),
            ("max-age-x=3600", NotFresh),
            ("no-storage, max-age=3600", Fresh),
            // Lists have empty members (RFC 9110, section 5.6.1) and spaces.
            (",, max-age=3600, ,", Fresh),
            ("foo ,\tmax-age=3600\t, bar", Fresh),
            ("foo,max-age=3600", Fresh),
            // delta-seconds has no limit: section 1.2.2.
            ("max-age=2147483647", Fresh),
            ("max-age=2147483648", Fresh),
            ("max-age=4294967296", Fresh),
            ("max-age=18446744073709551616", Fresh),
            ("max-age=99999999999999999999999999", Fresh),
            ("max-age=0003600", Fresh),
        ],
    );
}

#[test]
fn a_field_in_several_lines_is_one_list() {
    rules_of_fields(
        "RFC 9110 5.3",
        &[
            (
                &[("Cache-Control", "foo"), ("Cache-Control", "max-age=3600")],
                Fresh,
            ),
            (
                &[
                    ("Cache-Control", "max-age=3600"),
                    ("Cache-Control", "no-store"),
                ],
                NotStored,
            ),
            (
                &[
                    ("Cache-Control", "no-store"),
                    ("Cache-Control", "max-age=3600"),
                ],
                NotStored,
            ),
        ],
    );
}

#[test]
fn wrong_freshness_is_no_freshness() {
    let (soon, later) = (date::from_now(HOUR), date::from_now(2 * HOUR));
    let past = date::from_now(-HOUR);
    // With what would allow a heuristic, were nothing said.
    let old = ("Last-Modified", &*date::from_now(-100 * DAY));
    let mut rows: Vec<(Vec<(&str, &str)>, Then)> = Vec::new();
    for value in [
        "max-age=-1",
        "max-age=abc",
        "max-age=",
        "max-age",
        "max-age=\"\"",
        "max-age=3600a",
        "max-age=a3600",
        "max-age=1.5",
        "max-age=3600.0",
        "max-age=0x3600",
        "max-age='3600'",
        "max-age=1e9",
        "s-maxage=abc",
        "s-maxage=-3600",
        // The first one, or none.
        "max-age=0, max-age=3600",
    ] {
        rows.push((vec![("Cache-Control", value), old], NotFresh));
    }
    // Encouraged: invalid means stale, whatever else there is.
    rows.push((
        vec![("Cache-Control", "max-age=abc"), ("Expires", &soon)],
        NotFresh,
    ));
    for expires in [
        "0",
        "-1",
        "tomorrow",
        "",
        "3600",
        "Thu, 99 Foo 2099 00:00:00 GMT",
    ] {
        rows.push((vec![("Expires", expires), old], NotFresh));
    }
    rows.push((vec![("Expires", &past), ("Expires", &soon)], NotFresh));
    rows.push((vec![("Expires", &past), ("Expires", &later)], NotFresh));
    let rows: Vec<(Fields, Then)> = rows.iter().map(|(row, then)| (&row[..], *then)).collect();
    rules_of_fields("RFC 9111 4.2.1", &rows);
}

#[test]
fn every_form_of_a_date_is_understood() {
    let soon = Date::from_now(HOUR);
    let far = Date::from_now(400 * DAY);
    let [imf, rfc850, asctime] = [soon.imf(), soon.rfc850(), soon.asctime()];
    // RFC 9110, section 5.6.7: more than 50 years ahead is the past.
    let century = Date::from_now(60 * 365 * DAY).rfc850();
    let zone = |zone: &str| imf.replace("GMT", zone);
    rules_of_fields(
        "RFC 9111 4.2 and 5.3, RFC 9110 5.6.7",
        &[
            (&[("Expires", &imf)], Fresh),
            (&[("Expires", &rfc850)], Fresh),
            (&[("Expires", &asctime)], Fresh),
            (&[("Expires", &far.imf())], Fresh),
            (&[("Expires", &far.rfc850())], Fresh),
            (&[("Expires", &far.asctime())], Fresh),
            // SHOULD match without case.
            (&[("Expires", &imf.to_lowercase())], Fresh),
            (&[("Expires", &imf.to_uppercase())], Fresh),
            (&[("Expires", &rfc850.to_lowercase())], Fresh),
            (&[("Expires", &asctime.to_uppercase())], Fresh),
            (&[("Expires", &century)], NotFresh),
            // SHOULD take another zone for invalid.
            (&[("Expires", &zone("UTC"))], NotFresh),
            (&[("Expires", &zone("CET"))], NotFresh),
            (&[("Expires", &zone("+0000"))], NotFresh),
            (&[("Expires", &zone("GMT+1"))], NotFresh),
            // Dates in other fields have the same forms.
            (
                &[
                    ("Cache-Control", "max-age=3600"),
                    ("Date", &Date::from_now(-2 * HOUR).rfc850()),
                ],
                NotFresh,
            ),
            (
                &[
                    ("Cache-Control", "max-age=3600"),
                    ("Date", &Date::from_now(-2 * HOUR).asctime()),
                ],
                NotFresh,
            ),
            (
                &[("Last-Modified", &Date::from_now(-100 * DAY).rfc850())],
                Fresh,
            ),
            (
                &[("Last-Modified", &Date::from_now(-100 * DAY).asctime())],
                Fresh,
            ),
        ],
    );
}

#[test]
fn heuristic_freshness_is_a_tenth_of_the_time_since_the_last_change() {
    let hours_ago = |hours: i64| date::from_now(-hours * HOUR);
    rules_of_fields(
        "RFC 9111 4.2.2",
        &[
            // 1,000 hours: fresh for 100.
            (
                &[
                    ("Last-Modified", &hours_ago(10)),
                    ("Age", &(HOUR / 2).to_string()),
                ],
                Fresh,
            ),
            (
                &[
                    ("Last-Modified", &hours_ago(10)),
                    ("Age", &(HOUR * 3 / 2).to_string()),
                ],
                NotFresh,
            ),
            // Counted from Date to Last-Modified, not from now: 163 minutes.
            (
                &[
                    ("Last-Modified", &date::from_now(-1800 * 60)),
                    ("Date", &date::from_now(-168 * 60)),
                ],
                NotFresh,
            ),
            // No heuristic where something is said, even if badly.
            (
                &[("Last-Modified", &hours_ago(1000)), ("Expires", "0")],
                NotFresh,
            ),
            (
                &[
                    ("Last-Modified", &hours_ago(1000)),
                    ("Cache-Control", "max-age=0"),
                ],
                NotFresh,
            ),
            (
                &[
                    ("Last-Modified", &hours_ago(1000)),
                    ("Cache-Control", "no-cache"),
                ],
                NotFresh,
            ),
            // Nothing to count from.
            (&[("Last-Modified", "yesterday")], NotFresh),
            (&[("Last-Modified", &date::from_now(HOUR))], NotFresh),
        ],
    );
}

#[test]
fn heuristic_freshness_is_for_the_statuses_that_allow_it() {
    let old = date::from_now(-100 * DAY);
    let mut rules = Rules::new();
    let mut expect = |status, expected| {
        let answer = Reply::ok()
            .with_status(status)
            .header("Last-Modified", &old)
            .header("ETag", "\"v1\"");
        let what = format!("{status}, changed 100 days ago");
        rule(&mut rules, "RFC 9110 15.1", &what, answer, expected);
    };
    for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
        expect(status, Fresh);
    }
    for status in [
        201, 202, 205, 299, 302, 303, 307, 400, 401, 403, 408, 409, 418, 429, 451, 499, 500, 502,
        503, 504, 599, 999,
    ] {
        expect(status, NotFresh);
    }
    rules.check();
}

#[test]
fn heuristic_freshness_has_a_bound() {
    let page = Site::shared()
        .page_with(Reply::ok().header("Last-Modified", "Thu, 01 Jan 1970 00:00:10 GMT"));
    page.get();
    let hit = page.get();
    assert_eq!(page.count(), 1, "RFC 9111 4.2.2");
    let ttl = hit.cache_status();
    let ttl: i64 = ttl.get("ttl").expect("a ttl").parse().expect("a number");
    assert!(ttl <= 366 * DAY, "fresh for {} days more", ttl / DAY);
}

#[test]
fn any_final_status_can_be_stored_when_it_says_so() {
    let mut rules = Rules::new();
    for status in [
        200, 203, 204, 299, 300, 301, 302, 303, 307, 308, 400, 403, 404, 405, 410, 414, 451, 499,
        500, 501, 503, 599, 999,
    ] {
        let answer = Reply::ok()
            .with_status(status)
            .header("Cache-Control", "max-age=3600");
        let what = format!("{status} with max-age");
        rule(&mut rules, "RFC 9111 3", &what, answer, Fresh);
    }
    rules.check();
}

#[test]
fn a_status_that_must_be_understood() {
    let mut rules = Rules::new();
    let mut expect = |status, value: &str, expected| {
        let answer = Reply::ok()
            .with_status(status)
            .header("Cache-Control", value)
            .header("ETag", "\"v1\"");
        let what = format!("{status} {value}");
        rule(&mut rules, "RFC 9111 5.2.2.3", &what, answer, expected);
    };
    expect(200, "must-understand, max-age=3600", Fresh);
    expect(200, "must-understand, no-store, max-age=3600", Fresh);
    expect(200, "no-store, must-understand, max-age=3600", Fresh);
    expect(404, "must-understand, no-store, max-age=3600", Fresh);
    expect(299, "must-understand, max-age=3600", NotStored);
    expect(299, "must-understand, no-store, max-age=3600", NotStored);
    expect(499, "must-understand, max-age=3600", NotStored);
    expect(599, "must-understand, max-age=3600", NotStored);
    rules.check();
}

#[test]
fn what_must_not_be_stored_or_not_be_used_unasked() {
    rules_of_cache_control(
        "RFC 9111 5.2.2",
        &[
            ("no-store", NotStored),
            ("no-store, max-age=3600", NotStored),
            ("max-age=3600, no-store", NotStored),
            ("no-store, public, s-maxage=3600", NotStored),
            ("private", NotStored),
            ("private, max-age=3600", NotStored),
            ("max-age=3600, private", NotStored),
            ("private, s-maxage=3600", NotStored),
            ("no-cache", NotFresh),
            ("no-cache, max-age=3600", NotFresh),
            ("max-age=3600, no-cache", NotFresh),
            ("public, max-age=3600", Fresh),
            ("immutable, max-age=3600", Fresh),
            ("must-revalidate, max-age=3600", Fresh),
            ("proxy-revalidate, max-age=3600", Fresh),
            ("no-transform, max-age=3600", Fresh),
            ("immutable", NotFresh),
            ("public", NotFresh),
        ],
    );
}

#[test]
fn no_cache_of_a_stored_response_asks_the_origin_first() {
    let page = Site::shared().page();
    page.serves(|seen, _| {
        let status = if seen.names("\"v1\"") { 304 } else { 200 };
        Reply::ok()
            .with_status(status)
            .header("Cache-Control", "no-cache")
            .header("ETag", "\"v1\"")
    });
    page.get();

    let (second, used) = page.get_again(&[]);

    assert_eq!(used, Use::Validated, "RFC 9111 5.2.2.4");
    assert_eq!((second.status, second.serial()), (200, Some(1)));
}

/// `no-cache` and `private` may name fields: then these are not reused
/// unasked, or nothing is.
#[test]
fn fields_that_no_cache_or_private_name_are_not_reused() {
    let mut rules = Rules::new();
    for (section, value) in [
        ("RFC 9111 5.2.2.4", "max-age=3600, no-cache=\"X-Named\""),
        ("RFC 9111 5.2.2.4", "max-age=3600, no-cache=x-named"),
        (
            "RFC 9111 5.2.2.4",
            "no-cache=\"foo, x-named\", max-age=3600",
        ),
        ("RFC 9111 5.2.2.7", "max-age=3600, private=\"X-Named\""),
        ("RFC 9111 5.2.2.7", "max-age=3600, private=x-named"),
        (
            "RFC 9111 5.2.2.7",
            "private=\"x-named , foo\", max-age=3600",
        ),
    ] {
        let page = Site::shared().page_with(
            Reply::ok()
                .header("Cache-Control", value)
                .header("X-Named", "secret")
                .header("X-Other", "open"),
        );
        let first = page.get();
        rules.expect(section, value, Some("secret"), first.header("x-named"));
        let (second, used) = page.get_again(&[]);
        rules.holds(
            section,
            value,
            used != Use::Reused || second.header("x-named").is_none(),
            "the field was reused",
        );
        rules.expect(section, value, Some("open"), second.header("x-other"));
    }
    rules.check();
}

#[test]
fn a_response_to_authorization_is_stored_only_where_it_says_so() {
    let mut rules = Rules::new();
    let alice = [("Authorization", "Basic YWxpY2U6")];
    for (value, shared) in [
        ("max-age=3600", false),
        ("max-age=3600, proxy-revalidate", false),
        ("max-age=3600, immutable", false),
        ("max-age=3600, public", true),
        ("max-age=3600, must-revalidate", true),
        ("s-maxage=3600", true),
        ("public, no-store", false),
        ("max-age=3600, private, public", false),
    ] {
        let page = Site::shared().page_with(
            Reply::ok()
                .header("Cache-Control", value)
                .header("ETag", "\"v1\""),
        );
        page.get_with(&alice);
        let (_, without) = page.get_again(&[]);
        let expected = if shared { Use::Reused } else { Use::Fetched };
        rules.expect("RFC 9111 3.5", value, expected, without);
    }
    // A response stored for everybody is for her too.
    let page = Site::shared().page_with(Reply::fresh());
    page.get();
    let (_, hers) = page.get_again(&alice);
    rules.expect("RFC 9111 3.5", "stored without", Use::Reused, hers);
    rules.check();
}

#[test]
fn set_cookie_does_not_inhibit_caching() {
    let page = Site::shared().page_with(Reply::fresh().header("Set-Cookie", "a=b; Path=/"));
    page.get();
    let (hit, used) = page.get_again(&[]);
    assert_eq!(used, Use::Reused, "RFC 9111 7.3");
    assert_eq!(hit.header("set-cookie"), Some("a=b; Path=/"));

    let page = Site::shared().page_with(
        Reply::ok()
            .header("Cache-Control", "max-age=3600, no-cache=\"Set-Cookie\"")
            .header("Set-Cookie", "a=b"),
    );
    page.get();
    let (second, used) = page.get_again(&[]);
    assert!(
        used != Use::Reused || second.header("set-cookie").is_none(),
        "RFC 9111 5.2.2.4"
    );
}

#[test]
fn pragma_means_nothing_in_a_response() {
    rules_of_fields(
        "RFC 9111 5.4",
        &[(
            &[("Cache-Control", "max-age=3600"), ("Pragma", "no-cache")],
            Fresh,
        )],
    );
}

#[test]
fn a_field_for_cdns_goes_before_cache_control() {
    let cdn = |value| ("CDN-Cache-Control", value);
    let general = |value| ("Cache-Control", value);
    let past = date::from_now(-HOUR);
    rules_of_fields(
        "RFC 9213 2",
        &[
            (&[cdn("max-age=3600")], Fresh),
            (&[cdn("max-age=3600"), general("no-store")], Fresh),
            (&[general("no-store"), cdn("max-age=3600")], Fresh),
            (&[cdn("max-age=3600"), general("private")], Fresh),
            (&[cdn("max-age=3600"), general("max-age=0")], Fresh),
            (&[cdn("max-age=3600"), ("Expires", &past)], Fresh),
            (&[cdn("max-age=0"), general("max-age=3600")], NotFresh),
            (&[cdn("no-cache"), general("max-age=3600")], NotFresh),
            (&[cdn("no-store"), general("max-age=3600")], NotStored),
            (&[cdn("private"), general("max-age=3600")], NotStored),
            (&[cdn("max-age=3600"), ("Age", "7200")], NotFresh),
            // Valid, so that nothing else counts, though it says no lifetime.
            (&[cdn("must-revalidate"), general("max-age=3600")], NotFresh),
            // A dictionary of structured fields: parameters are ignored, the
            // last of the same name counts, names are in lower case.
            (&[cdn("max-age=3600;foo=bar"), general("no-store")], Fresh),
            (
                &[cdn("max-age=0, max-age=3600"), general("no-store")],
                Fresh,
            ),
            (
                &[cdn("max-age=3600, max-age=0"), general("max-age=3600")],
                NotFresh,
            ),
            (
                &[
                    cdn("foo=(a b);c, max-age=3600, bar=?0"),
                    general("no-store"),
                ],
                Fresh,
            ),
            (
                &[cdn("foo"), cdn("max-age=3600"), general("no-store")],
                Fresh,
            ),
            // A directive that cannot be parsed is ignored.
            (&[cdn("Max-Age=0"), general("max-age=3600")], Fresh),
            (&[cdn("max-age=0,"), general("max-age=3600")], Fresh),
            (&[cdn("max-age=0, &"), general("max-age=3600")], Fresh),
            (&[cdn("max-age="), general("max-age=3600")], Fresh),
            (&[cdn("max-age =0"), general("max-age=3600")], Fresh),
            (&[cdn(""), general("max-age=3600")], Fresh),
            (&[cdn("max-age=3600,"), general("no-store")], NotStored),
            (&[cdn("\"max-age=3600"), general("max-age=0")], NotFresh),
        ],
    );
}

/// A page with these fields that has an answer older than they allow, and then
/// what the test adds.
fn stale_page(fields: &str, then: Reply) -> Page<'static> {
    let page = Site::shared().page();
    page.answers([
        Reply::ok()
            .header("Cache-Control", fields)
            .header("Age", 60)
            .header("ETag", "\"v1\""),
        then,
    ]);
    assert_eq!(page.get().serial(), Some(1));
    page
}

#[test]
fn stale_while_revalidate_answers_at_once_and_asks_behind() {
    let held = Gate::new();
    let page = stale_page(
        "max-age=1, stale-while-revalidate=3600",
        Reply::fresh().header("X-New", "yes").hold(&held),
    );

    // The origin answers nobody before the gate is open.
    let stale = page.get();
    assert_eq!((stale.status, stale.serial()), (200, Some(1)), "RFC 5861 3");
    assert!(stale.age().expect("an Age") >= 60);
    held.wait_for_arrivals(1);
    let meanwhile = page.get();
    assert_eq!(meanwhile.serial(), Some(1));
    assert_eq!(page.count(), 2, "one revalidation at a time");

    held.open();
    eventually("the new response is used", || {
        page.get().serial() == Some(2)
    });
    assert_eq!(page.count(), 2);
    assert!(page.seen()[1].names("\"v1\""), "it is asked conditionally");
}

#[test]
fn a_revalidation_behind_that_says_304_makes_it_fresh() {
    let page = stale_page(
        "max-age=1, stale-while-revalidate=3600",
        Reply::ok()
            .with_status(304)
            .header("ETag", "\"v1\"")
            .header("Cache-Control", "max-age=3600, stale-while-revalidate=3600"),
    );
    assert_eq!(page.get().serial(), Some(1));
    eventually("it is fresh again", || {
        let got = page.get();
        assert_eq!(got.serial(), Some(1));
        got.age().expect("an Age") < 30
    });
    assert_eq!(page.count(), 2);
}

#[test]
fn stale_responses_are_not_used_where_that_is_forbidden_or_over() {
    let mut rules = Rules::new();
    for (section, fields) in [
        // Expired 59 seconds ago.
        ("RFC 5861 3", "max-age=1, stale-while-revalidate=30"),
        ("RFC 5861 3", "max-age=1"),
        (
            "RFC 9111 5.2.2.2",
            "max-age=1, stale-while-revalidate=3600, must-revalidate",
        ),
        (
            "RFC 9111 5.2.2.8",
            "max-age=1, stale-while-revalidate=3600, proxy-revalidate",
        ),
        // s-maxage means proxy-revalidate too.
        (
            "RFC 9111 5.2.2.10",
            "s-maxage=1, stale-while-revalidate=3600",
        ),
        (
            "RFC 9111 5.2.2.4",
            "max-age=1, stale-while-revalidate=3600, no-cache",
        ),
    ] {
        let page = stale_page(fields, Reply::fresh());
        rules.expect(section, fields, Some(2), page.get().serial());
    }
    rules.check();
}

#[test]
fn stale_if_error_covers_an_origin_that_fails() {
    let mut rules = Rules::new();
    let allowed = "max-age=1, stale-if-error=3600";
    for status in [500, 502, 503, 504] {
        let page = stale_page(allowed, Reply::ok().with_status(status));
        let got = page.get();
        let what = format!("{status} while allowed");
        rules.expect(
            "RFC 5861 4",
            &what,
            (200, Some(1)),
            (got.status, got.serial()),
        );
        rules.expect("RFC 5861 4", &what, 2, page.count());
    }
    let page = stale_page(allowed, Reply::hang_up());
    let got = page.get();
    rules.expect(
        "RFC 5861 4",
        "no answer while allowed",
        (200, Some(1)),
        (got.status, got.serial()),
    );
    // Other answers of the origin are passed on.
    for status in [404, 410, 403, 501] {
        let page = stale_page(allowed, Reply::ok().with_status(status));
        let what = format!("{status} is an answer");
        rules.expect("RFC 5861 4", &what, status, page.get().status);
    }
    for (section, fields) in [
        ("RFC 5861 4", "max-age=1, stale-if-error=30"),
        (
            "RFC 9111 5.2.2.2",
            "max-age=1, stale-if-error=3600, must-revalidate",
        ),
        (
            "RFC 9111 5.2.2.8",
            "max-age=1, stale-if-error=3600, proxy-revalidate",
        ),
        ("RFC 9111 5.2.2.10", "s-maxage=1, stale-if-error=3600"),
        (
            "RFC 9111 5.2.2.4",
            "max-age=1, stale-if-error=3600, no-cache",
        ),
    ] {
        let page = stale_page(fields, Reply::ok().with_status(503));
        rules.expect(section, fields, 503, page.get().status);
    }
    rules.check();
}

#[test]
fn an_origin_that_is_gone_makes_must_revalidate_an_error() {
    let mut rules = Rules::new();
    for fields in [
        "max-age=1, must-revalidate",
        "max-age=1, proxy-revalidate",
        "s-maxage=1",
        "max-age=3600, no-cache",
    ] {
        let page = stale_page(fields, Reply::hang_up());
        let status = page.get().status;
        rules.holds(
            "RFC 9111 4.2.4 and 5.2.2.2",
            fields,
            matches!(status, 502 | 504),
            status,
        );
    }
    rules.check();
}

#[test]
fn a_default_lifetime_is_for_responses_that_say_nothing() {
    let site = Site::start(&["--default-ttl", "60"]);
    let mut rules = Rules::new();
    let past = date::from_now(-HOUR);
    for (answer, what, expected) in [
        (Reply::ok(), "200 that says nothing", Use::Reused),
        (
            Reply::ok().header("Age", 120),
            "200 that is older already",
            Use::Fetched,
        ),
        (
            Reply::ok().header("Cache-Control", "max-age=0"),
            "200 with max-age=0",
            Use::Fetched,
        ),
        (
            Reply::ok().header("Expires", &past),
            "200 that has expired",
            Use::Fetched,
        ),
        (
            Reply::ok().header("Cache-Control", "no-store"),
            "200 with no-store",
            Use::Fetched,
        ),
        (
            Reply::ok().with_status(503),
            "503 that says nothing",
            Use::Fetched,
        ),
        (
            Reply::ok().with_status(302),
            "302 that says nothing",
            Use::Fetched,
        ),
    ] {
        let page = site.page_with(answer);
        page.get();
        rules.expect("issue 5", what, expected, page.get_again(&[]).1);
    }
    rules.check();
}
