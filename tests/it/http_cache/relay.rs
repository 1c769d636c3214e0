//! Messages that the example passes on between client and origin, in both directions
//! (RFC 9110 sections 7.6, 9, 15; RFC 9112).

use std::{io::Read, thread, time::Duration};

use flate2::read::GzDecoder;
use test_support::{Gate, Page, Reply, Request, Rules, Site};

fn site() -> &'static Site {
    Site::shared()
}

/// A page whose answers are not stored.
fn page() -> Page<'static> {
    site().page_with(Reply::ok().header("Cache-Control", "no-store"))
}

fn last(page: &Page) -> Request {
    page.seen().pop().expect("a request at the origin")
}

#[test]
fn every_method_reaches_the_origin_with_its_body() {
    let mut rules = Rules::new();
    let large = vec![b'x'; 300_000];
    for method in [
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
        "PROPFIND",
        "REPORT",
        "SEARCH",
        "QUERY",
        "M-SEARCH",
        "FOO",
        "foo",
        "X!#$%&'*+-.^_`|~",
    ] {
        for body in [&b""[..], b"a body", &large] {
            let page = page();
            let got = page.request(method, &[], body);
            let what = format!("{method} with {} bytes", body.len());
            rules.expect(
                "RFC 9110 9.1",
                &what,
                (200, true),
                (got.status, got.complete),
            );
            let seen = page.seen();
            rules.expect("RFC 9110 9.1", &what, 1, seen.len());
            for seen in seen {
                rules.expect("RFC 9110 9.1", &what, method, &*seen.method);
                rules.holds("RFC 9110 6.4", &what, seen.body == body, seen.body.len());
            }
        }
    }
    rules.check();
}

#[test]
fn a_chunked_request_body_is_passed_on() {
    let mut rules = Rules::new();
    let mut large = Vec::new();
    for _ in 0..10 {
        large.extend_from_slice(b"4000\r\n");
        large.extend(std::iter::repeat_n(b'y', 0x4000));
        large.extend_from_slice(b"\r\n");
    }
    large.extend_from_slice(b"0\r\n\r\n");
    for (what, method, wire, body) in [
        (
            "two chunks",
            "POST",
            &b"4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\n\r\n"[..],
            b"Wikipedia".to_vec(),
        ),
        ("none", "PUT", b"0\r\n\r\n", Vec::new()),
        (
            "trailers",
            "DELETE",
            b"1\r\na\r\n0\r\nX-Trailer: t\r\n\r\n",
            b"a".to_vec(),
        ),
        ("large", "FOO", &large, vec![b'y'; 10 * 0x4000]),
    ] {
        let page = page();
        let got = page.request(method, &[("Transfer-Encoding", "chunked")], wire);
        rules.expect("RFC 9112 7.1", what, 200, got.status);
        let seen = last(&page);
        rules.expect("RFC 9112 7.1", what, body.len(), seen.body.len());
        rules.holds("RFC 9112 7.1", what, seen.body == body, "another body");
    }
    rules.check();
}

#[test]
fn a_client_that_expects_100_continue_gets_it() {
    let page = page();
    let mut client = site().client();
    client.send_bytes(format!(
        "POST {} HTTP/1.1\r\nHost: site.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
        page.path()
    ));
    let interim = client.receive_interim();
    assert_eq!(interim.status, 100, "RFC 9110 10.1.1");
    client.send_bytes("body");
    assert_eq!(client.receive("POST").status, 200);
    assert_eq!(last(&page).body, b"body");
}

#[test]
fn request_fields_pass_end_to_end() {
    let long = "z".repeat(6000);
    let fields = [
        ("X-One", "1"),
        ("x-repeated", "a"),
        ("X-Repeated", "b, c"),
        ("X-Empty", ""),
        ("X-Obs", "caf\u{e9} \u{80}\u{ff}"),
        ("X-Tab", "a\tb"),
        ("X!#$%&'*+-.^_`|~", "token"),
        ("X_Under", "score"),
        ("X-Long", &long),
        ("Cookie", "a=b; c=d"),
        ("Authorization", "Basic YTpi"),
        ("User-Agent", "test (x; \"y\")"),
        ("Referer", "http://site.example/a?b#c"),
        ("Accept", "*/*;q=0.1"),
        ("Content-Type", "text/x"),
        ("Forwarded", "for=1.2.3.4"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Origin", "http://other.example"),
    ];
    let mut rules = Rules::new();
    for (method, body) in [("GET", &b""[..]), ("POST", b"x")] {
        let page = page();
        let got = page.request(method, &fields, body);
        assert_eq!(got.status, 200, "{method}");
        let seen = last(&page);
        for (name, value) in fields {
            let all = seen.headers.all(name).join(", ");
            let right = match name.to_ascii_lowercase().as_str() {
                "x-repeated" => all == "a, b, c",
                // A proxy may add itself.
                "forwarded" | "x-forwarded-for" => all.starts_with(value),
                _ => all == value,
            };
            rules.holds("RFC 9110 5", &format!("{method}: {name}"), right, all);
        }
        rules.expect(
            "RFC 9110 7.2",
            method,
            Some("site.example"),
            seen.header("host"),
        );
        rules.expect("RFC 9110 7.1", method, page.path(), &*seen.target);
    }
    rules.check();
}

#[test]
fn what_is_for_this_connection_stays_on_it() {
    let page = page();
    page.get_with(&[
        ("Connection", "X-Named, keep-alive, TE"),
        ("X-Named", "named"),
        ("X-Unnamed", "unnamed"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers;q=0.5"),
        ("Upgrade", "h2c"),
    ]);
    let seen = last(&page);
    let mut rules = Rules::new();
    for name in ["x-named", "keep-alive", "proxy-connection", "te", "upgrade"] {
        rules.expect("RFC 9110 7.6.1", name, None, seen.header(name));
    }
    let unnamed = seen.header("x-unnamed");
    rules.expect("RFC 9110 7.6.1", "x-unnamed", Some("unnamed"), unnamed);
    let options = seen.headers.all("connection").join(",").to_lowercase();
    rules.holds(
        "RFC 9110 7.6.1",
        "Connection",
        !options.contains("x-named"),
        options,
    );
    rules.check();
}

#[test]
fn a_gateway_says_via_in_what_it_sends_to_the_origin() {
    let page = page();
    page.get_with(&[("Via", "1.0 before.example")]);
    let via = last(&page).headers.all("via").join(", ");
    let members: Vec<_> = via.split(", ").collect();
    assert_eq!(members.len(), 2, "RFC 9110 7.6.3: {via:?}");
    assert_eq!(members[0], "1.0 before.example", "RFC 9110 7.6.3");
    assert!(members[1].starts_with("1.1 "), "RFC 9110 7.6.3: {via:?}");
}

#[test]
fn max_forwards_counts_down_for_options_and_trace() {
    let mut rules = Rules::new();
    for method in ["OPTIONS", "TRACE"] {
        let page = page();
        page.request(method, &[("Max-Forwards", "3")], b"");
        let sent = last(&page).header("max-forwards").map(str::to_owned);
        rules.expect("RFC 9110 7.6.2", method, Some("2".to_owned()), sent);

        let page = self::page();
        let got = page.request(method, &[("Max-Forwards", "0")], b"");
        rules.expect("RFC 9110 7.6.2", "0 goes no further", 0, page.count());
        rules.holds(
            "RFC 9110 7.6.2",
            "0 is answered",
            got.status >= 200,
            got.status,
        );
    }
    rules.check();
}

#[test]
fn request_targets_have_their_forms() {
    let mut rules = Rules::new();
    let page = page();
    let mut ask = |what: &str, target: &str, expected: &str| {
        let mut client = site().client();
        client.ask("GET", target, &[("Connection", "close")], b"");
        rules.expect("RFC 9112 3.2", what, 200, client.receive("GET").status);
        rules.expect("RFC 9112 3.2", what, expected, &*last(&page).target);
    };
    let path = page.path();
    for suffix in ["?a=1&a=2", "?", "?a=%2F%2f&b=%E2%82%AC", "?a=b?c"] {
        let target = format!("{path}{suffix}");
        ask("origin-form", &target, &target);
    }
    let absolute = format!("http://site.example{path}?a");
    ask("absolute-form", &absolute, &format!("{path}?a"));
    rules.check();

    site()
        .origin()
        .script("*", |_, _| Reply::ok().with_status(204));
    let mut client = site().client();
    client.ask("OPTIONS", "*", &[("Connection", "close")], b"");
    assert_eq!(client.receive("OPTIONS").status, 204, "RFC 9112 3.2.4");
    assert_eq!(site().origin().seen("*").len(), 1);
}

#[test]
fn a_request_without_host_is_refused() {
    let page = page();
    let mut client = site().client();
    client.send_bytes(format!("GET {} HTTP/1.1\r\n\r\n", page.path()));
    assert_eq!(client.receive("GET").status, 400, "RFC 9112 3.2");
    assert_eq!(page.count(), 0);
}

#[test]
fn every_final_status_is_passed_on() {
    let mut rules = Rules::new();
    for status in [
        200, 201, 202, 203, 204, 205, 206, 226, 299, 300, 301, 302, 303, 305, 307, 308, 399, 400,
        401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418,
        421, 422, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 511, 599,
        600, 699, 700, 999,
    ] {
        let empty = matches!(status, 204 | 205);
        let body = if empty { "" } else { "the body" };
        let mut answer = Reply::ok()
            .with_status(status)
            .header("Cache-Control", "no-store")
            .header("X-Field", "value")
            .body(body);
        // A part has to be asked for, and to say its range.
        let range: &[(&str, &str)] = match status {
            206 => &[("Range", "bytes=0-7")],
            _ => &[],
        };
        if status == 206 {
            answer = answer.header("Content-Range", "bytes 0-7/100");
        }
        let page = site().page_with(answer);
        let got = page.get_with(range);
        let what = status.to_string();
        rules.expect("RFC 9110 15", &what, status, got.status);
        rules.expect("RFC 9110 15", &what, body.to_owned(), got.text());
        rules.expect("RFC 9110 15", &what, Some("value"), got.header("x-field"));
        rules.expect("RFC 9110 15", &what, true, got.complete);
        rules.expect("RFC 9110 9.2.2", &what, 1, page.count());
    }
    rules.check();
}

#[test]
fn response_fields_pass_end_to_end() {
    let long = "z".repeat(6000);
    let fields = [
        ("X-One", "1"),
        ("Set-Cookie", "a=b; Expires=Wed, 09 Jun 2021 10:18:14 GMT"),
        ("Set-Cookie", "c=d"),
        ("Link", "</a>; rel=preload"),
        ("link", "</b>; rel=preload"),
        ("X-Empty", ""),
        ("X-Obs", "caf\u{e9} \u{80}\u{ff}"),
        ("X!#$%&'*+-.^_`|~", "token"),
        ("X_Under", "score"),
        ("X-Long", &long),
        ("Server", "scripted/1.0"),
        ("WWW-Authenticate", "Basic realm=\"a, b\""),
        ("Alt-Svc", "clear"),
        ("Content-Encoding", "x-none"),
        ("Content-Disposition", "attachment; filename=\"a;b\""),
        ("Location", "/elsewhere#fragment"),
        ("Content-MD5", "x"),
        ("Warning", "199 - \"old\""),
        ("Accept-Ranges", "none"),
        ("Cache-Control", "no-store, x-extension=\"a, b\""),
        ("CDN-Cache-Control", "no-store"),
        ("Pragma", "foo"),
        ("Expires", "0"),
    ];
    let page = site().page_with(Reply::ok().headers(&fields));
    let got = page.get();
    let mut rules = Rules::new();
    let mut names: Vec<_> = fields.iter().map(|(name, _)| name.to_lowercase()).collect();
    names.dedup();
    for name in names {
        let sent: Vec<_> = fields
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(&name))
            .map(|(_, value)| *value)
            .collect();
        rules.expect("RFC 9110 5", &name, sent, got.headers.all(&name));
    }
    rules.check();
}

#[test]
fn interim_responses_are_passed_on() {
    let link = [("Link", "</style.css>; rel=preload"), ("X-Obs", "\u{e9}")];
    for (what, cacheable) in [("stored", "max-age=3600"), ("not stored", "no-store")] {
        // In one packet with the final response, and before it.
        let gate = Gate::new();
        let answer = || {
            Reply::ok()
                .header("Cache-Control", cacheable)
                .interim(102, &[])
                .interim(103, &link)
                .interim(103, &[("Link", "</b>")])
        };
        let together = site().page_with(answer());
        let got = together.get();
        let statuses: Vec<_> = got.interim.iter().map(|interim| interim.status).collect();
        assert_eq!(statuses, [102, 103, 103], "RFC 9110 15.2: {what}, at once");
        assert_eq!((got.status, got.serial()), (200, Some(1)));
        for (name, value) in link {
            assert_eq!(got.interim[1].headers.get(name), Some(value), "{what}");
        }

        let before = site().page_with(answer().hold(&gate));
        let mut client = before.ask("GET", &[], b"");
        let first = client.receive_interim();
        assert_eq!(first.status, 102, "RFC 9110 15.2: {what}, before");
        assert_eq!(client.receive_interim().status, 103);
        assert_eq!(client.receive_interim().status, 103);
        gate.open();
        let got = client.receive("GET");
        assert_eq!((got.status, got.serial()), (200, Some(1)));
        assert!(got.interim.is_empty());
    }
}

#[test]
fn interim_responses_are_passed_on_for_other_methods() {
    let page = site().page_with(Reply::ok().interim(102, &[]).interim(103, &[]));
    let got = page.request("POST", &[], b"x");
    let statuses: Vec<_> = got.interim.iter().map(|interim| interim.status).collect();
    assert_eq!(statuses, [102, 103], "RFC 9110 15.2");
    assert_eq!(got.status, 200);
}

#[test]
fn interim_responses_are_not_for_http_1_0_and_not_stored() {
    let page = site().page_with(Reply::fresh().interim(103, &[("Link", "</a>")]));
    let mut client = site().client();
    client.send_bytes(format!(
        "GET {} HTTP/1.0\r\nHost: site.example\r\n\r\n",
        page.path()
    ));
    let got = client.receive("GET");
    assert!(got.interim.is_empty(), "RFC 9110 15.2");
    assert_eq!((got.status, got.serial()), (200, Some(1)));
    let hit = page.get();
    assert!(hit.interim.is_empty() && hit.header("link").is_none());
    assert_eq!(page.count(), 1);
}

#[test]
fn a_client_of_http_1_0_gets_no_chunks() {
    for cache_control in ["max-age=3600", "no-store"] {
        let page = site().page_with(
            Reply::ok()
                .header("Cache-Control", cache_control)
                .body("0123456789")
                .chunked(),
        );
        for _ in 0..2 {
            let mut client = site().client();
            client.send_bytes(format!(
                "GET {} HTTP/1.0\r\nHost: site.example\r\n\r\n",
                page.path()
            ));
            let got = client.receive("GET");
            assert_eq!(got.header("transfer-encoding"), None, "RFC 9112 6.1");
            assert_eq!(&*got.text(), "0123456789");
        }
    }
}

#[test]
fn an_origin_of_http_1_0_is_understood() {
    let page = site().page_with(
        Reply::ok()
            .header("Cache-Control", "no-store")
            .http10()
            .until_close(),
    );
    for serial in 1..4 {
        let got = page.get();
        assert_eq!((got.status, got.serial()), (200, Some(serial)));
    }
}

/// Pingora keeps back what does not fill a segment, as nginx does with
/// `postpone_output`.
#[test]
fn bytes_are_passed_on_as_they_come() {
    const SEGMENT: usize = 1460;
    let body: Vec<u8> = (0..200_000u32).map(|i| (i / 7) as u8).collect();
    for cache_control in ["max-age=3600", "no-store"] {
        let gate = Gate::new();
        let page = site().page_with(
            Reply::ok()
                .header("Cache-Control", cache_control)
                .body(body.clone())
                .hold_at(100_000, &gate),
        );
        let mut client = page.ask("GET", &[], b"");
        let head = client.receive_head();
        assert!(
            head.is_ok(),
            "{cache_control}: no head before the body's end"
        );
        let there = 100_000 - SEGMENT;
        assert!(
            client.receive_bytes(there as u64)[..] == body[..there],
            "{cache_control}"
        );
        gate.open();
        let rest = client.receive_bytes((body.len() - there) as u64);
        assert!(rest[..] == body[there..], "{cache_control}");
    }
}

#[test]
fn a_connection_carries_one_request_after_another() {
    let page = site().page_with(Reply::fresh());
    let posted = self::page();
    let mut client = site().client();
    for _ in 0..3 {
        client.ask("GET", page.path(), &[], b"");
        assert_eq!(client.receive("GET").serial(), Some(1));
        client.ask("HEAD", page.path(), &[], b"");
        assert_eq!(client.receive("HEAD").status, 200);
        client.ask("POST", posted.path(), &[], b"x");
        assert_eq!(client.receive("POST").status, 200);
        client.ask("GET", page.path(), &[("If-None-Match", "\"v1\"")], b"");
        assert_eq!(client.receive("GET").status, 304);
    }
    assert_eq!((page.count(), posted.count()), (1, 3));
}

/// Asks until a request has come on a connection that was used before, which
/// the origin then closes without an answer; on a new one it answers. The site
/// is the test's own, so that no others use its connections.
fn asked_on_a_used_connection(site: &Site, method: &str, body: &[u8]) -> (u16, Vec<Request>) {
    for _ in 0..50 {
        let answer = Reply::ok().header("Cache-Control", "no-store");
        site.page_with(answer.clone()).get();
        let page = site.page();
        page.serves(move |seen, _| match seen.nth {
            1 => answer.clone(),
            _ => Reply::hang_up(),
        });
        let status = page.request(method, &[], body).status;
        let seen = page.seen();
        if seen.iter().any(|seen| seen.nth > 1) {
            return (status, seen);
        }
    }
    panic!("no connection to the origin is used twice");
}

#[test]
fn what_may_not_be_repeated_is_sent_once() {
    let site = Site::start(&[]);
    let mut rules = Rules::new();
    for method in ["POST", "PATCH", "FOO", "LOCK"] {
        for body in [&b""[..], b"body"] {
            let (status, seen) = asked_on_a_used_connection(&site, method, body);
            let what = format!("{method} with {} bytes", body.len());
            rules.expect("RFC 9110 9.2.2", &what, 1, seen.len());
            rules.expect("RFC 9110 15.6.3", &what, 502, status);
        }
    }
    rules.check();
}

#[test]
fn what_may_be_repeated_survives_a_connection_that_breaks() {
    let site = Site::start(&[]);
    let mut rules = Rules::new();
    for method in ["GET", "HEAD", "OPTIONS"] {
        let (status, seen) = asked_on_a_used_connection(&site, method, b"");
        rules.expect("RFC 9112 9.3.1", method, 200, status);
        rules.holds("RFC 9112 9.3.1", method, seen.len() >= 2, seen.len());
    }
    rules.check();
}

#[test]
fn a_post_that_breaks_on_a_new_connection_is_sent_once() {
    let page = site().page_with(Reply::hang_up());
    let got = page.request("POST", &[], b"body");
    assert_eq!(got.status, 502, "RFC 9110 15.6.3");
    assert_eq!(page.count(), 1, "RFC 9110 9.2.2");
}

#[test]
fn an_answer_that_makes_no_sense_is_a_502() {
    let mut rules = Rules::new();
    for wire in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "",
    ] {
        let page = site().page_with(Reply::raw(wire));
        let got = page.get();
        rules.expect("RFC 9110 15.6.3", wire, 502, got.status);
    }
    rules.check();
}

#[test]
fn idle_connections_to_the_origin_are_closed_within_4_seconds() {
    let site = Site::start(&[]);
    let page = site.page_with(Reply::ok().header("Cache-Control", "no-store"));
    page.get();
    let idle = site.origin().wait_for_close(last(&page).connection);
    assert!(
        idle <= Duration::from_millis(4500),
        "issue 5: idle for {idle:?}"
    );
}

#[test]
fn a_hundred_clients_are_served_at_once() {
    let gate = Gate::new();
    let pages: Vec<_> = (0..100)
        .map(|_| site().page_with(Reply::fresh().hold(&gate)))
        .collect();
    thread::scope(|scope| {
        let clients: Vec<_> = pages
            .iter()
            .map(|page| scope.spawn(|| (page.get(), page.get())))
            .collect();
        // Nobody is answered before all have been asked for.
        gate.wait_for_arrivals(100);
        gate.open();
        for client in clients {
            let (first, second) = client.join().expect("a client");
            assert_eq!((first.status, first.serial()), (200, Some(1)));
            assert_eq!((second.status, second.serial()), (200, Some(1)));
        }
    });
    assert!(pages.iter().all(|page| page.count() == 1));
}

#[test]
fn requests_for_different_pages_do_not_mix() {
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let page = page();
                    let body = page.path().repeat(50);
                    let got = page.request("POST", &[], body.as_bytes());
                    assert!(got.text().starts_with(&format!("{} #", page.path())));
                    assert_eq!(last(&page).body, body.as_bytes());
                }
            });
        }
    });
}

#[test]
fn lengths_of_heads_are_passed_on() {
    let page = site().page_with(
        Reply::ok()
            .header("Cache-Control", "no-store")
            .header("Content-Length", 12_345),
    );
    let got = page.head();
    assert_eq!(got.header("content-length"), Some("12345"), "RFC 9110 8.6");
    assert!(got.body.is_empty());
}

#[test]
fn hits_are_compressed_to_their_end() {
    let site = Site::start(&["--compression", "6"]);
    for lines in [100, 50_000] {
        let text = "the same line again\n".repeat(lines);
        let answer = Reply::fresh().header("Content-Type", "text/plain");
        let page = site.page_with(answer.body(text.clone()));
        // A miss, the first hit, and those after it, which take a shorter way.
        for turn in 0..4 {
            let got = page.get_with(&[("Accept-Encoding", "gzip")]);
            assert!(got.complete, "turn {turn}");
            assert_eq!(got.header("content-encoding"), Some("gzip"), "turn {turn}");
            let mut plain = String::new();
            GzDecoder::new(&got.body[..])
                .read_to_string(&mut plain)
                .expect("decompress");
            assert!(plain == text, "turn {turn}: {} bytes", plain.len());
            let got = page.get();
            assert_eq!(got.header("content-encoding"), None, "turn {turn}");
            assert!(got.body == text.as_bytes(), "turn {turn}");
        }
        assert_eq!(page.count(), 1);
    }
}
