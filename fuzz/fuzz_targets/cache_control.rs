//! Cache directives mean the same however they are spread over lines and spelled,
//! and no directive that is added lifts a restriction.

#![no_main]

mod seeds;

use http::header::{HeaderMap, HeaderName, HeaderValue, CACHE_CONTROL};
use libfuzzer_sys::fuzz_target;
use pingora_sendfile::http::rules::cache_control::{
    RequestDirectives, ResponseDirectives, Scope, Seconds,
};

const TARGETED: HeaderName = HeaderName::from_static("cdn-cache-control");
const MAX_SECONDS: u32 = 1 << 31;

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    let lines: Vec<_> = data
        .split(|&byte| byte == b'\n')
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
        .collect();
    let joined: Vec<_> = lines.iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_bytes(&joined.join(&b", "[..])).expect("as valid as each line");

    check_response(&lines, &joined);
    check_request(&lines, &joined);
    check_targeted(&lines, &joined);
});

fn check_response(lines: &[HeaderValue], joined: &HeaderValue) {
    let read = |lines: &[HeaderValue]| {
        ResponseDirectives::from_cache_control(&headers(&CACHE_CONTROL, lines))
    };
    let directives = read(lines);
    check(&directives);
    let without_quotes = !joined.as_bytes().contains(&b'"');
    if without_quotes {
        assert_eq!(read(std::slice::from_ref(joined)), directives);
        let upper = HeaderValue::from_bytes(&joined.as_bytes().to_ascii_uppercase());
        assert_eq!(read(&[upper.expect("as valid as before")]), directives);
    }

    let before = [&[HeaderValue::from_static(ALL)], lines].concat();
    let after = [lines, &[HeaderValue::from_static(ALL)]].concat();
    for more in [read(&before), read(&after)] {
        check(&more);
        assert!(more.no_store && more.must_revalidate && more.proxy_revalidate);
        assert!(more.no_transform && more.public && more.immutable && more.must_understand);
        assert_eq!(more.no_cache, Scope::Everything);
        assert_ne!(more.private, Scope::Nothing);
        assert!(directives.private != Scope::Everything || more.private == Scope::Everything);
    }
    // The first decides.
    assert_eq!(read(&before).max_age, Some(Ok(1)));
    assert_eq!(read(&after).max_age, directives.max_age.or(Some(Ok(1))));
}

const ALL: &str = "max-age=1, no-store, no-cache, private=\"a\", public, must-revalidate, \
                   proxy-revalidate, must-understand, no-transform, immutable";

fn check(directives: &ResponseDirectives) {
    for seconds in [
        directives.max_age,
        directives.s_maxage,
        directives.stale_while_revalidate,
        directives.stale_if_error,
    ] {
        assert!(seconds
            .and_then(Seconds::ok)
            .is_none_or(|seconds| seconds <= MAX_SECONDS));
    }
    for scope in [&directives.no_cache, &directives.private] {
        assert!(!matches!(scope, Scope::Fields(fields) if fields.is_empty()));
    }
}

fn check_request(lines: &[HeaderValue], joined: &HeaderValue) {
    let read =
        |lines: &[HeaderValue]| RequestDirectives::from_headers(&headers(&CACHE_CONTROL, lines));
    let directives = read(lines);
    for seconds in [
        directives.max_age,
        directives.min_fresh,
        directives.stale_if_error,
        directives.max_stale.filter(|&seconds| seconds != u32::MAX),
    ] {
        assert!(seconds.is_none_or(|seconds| seconds <= MAX_SECONDS));
    }
    if !joined.as_bytes().contains(&b'"') {
        assert_eq!(read(std::slice::from_ref(joined)), directives);
    }
    // Requests and responses share a syntax.
    let response = ResponseDirectives::from_cache_control(&headers(&CACHE_CONTROL, lines));
    assert_eq!(directives.no_store, response.no_store);
    assert_eq!(directives.no_cache, response.no_cache != Scope::Nothing);
    let max_age = response.max_age.map(|seconds| seconds.unwrap_or(0));
    assert_eq!(directives.max_age, max_age);
}

fn check_targeted(lines: &[HeaderValue], joined: &HeaderValue) {
    let read = |lines: &[HeaderValue]| {
        ResponseDirectives::from_targeted(&headers(&TARGETED, lines), &TARGETED)
    };
    let directives = read(lines);
    assert_eq!(read(std::slice::from_ref(joined)), directives);
    let Some(directives) = directives else {
        return;
    };
    check(&directives);
    // Absent directives are not restored from elsewhere.
    let mut both = headers(&TARGETED, lines);
    both.append(CACHE_CONTROL, HeaderValue::from_static(ALL));
    assert_eq!(
        ResponseDirectives::from_targeted(&both, &TARGETED),
        Some(directives)
    );
}

fn headers(name: &HeaderName, lines: &[HeaderValue]) -> HeaderMap {
    lines
        .iter()
        .map(|line| (name.clone(), line.clone()))
        .collect()
}

fn examples() -> Vec<Vec<u8>> {
    [
        ALL,
        "s-maxage=\"60\", stale-while-revalidate=1, stale-if-error=99999999999",
        "ext=\"max-age=100, no-store\", max-age=1",
        "private=\"Set-Cookie, X\"\nno-cache=\"\\\"\"\nprivate",
        "max-age = 1, max-age=2\nno-store=foo, public=x",
        "max-stale, min-fresh=5, only-if-cached, max-age=1.5",
        "max-age=10;a=b, no-store=?0, private=\"a, b\", x=(1 2), y=:eA==:, z=@1",
        "ext=\"unterminated, no-store",
    ]
    .iter()
    .map(|lines| lines.as_bytes().to_vec())
    .collect()
}
