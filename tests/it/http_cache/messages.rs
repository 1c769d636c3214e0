//! Framing of messages, and their ends: a message that others could read differently is
//! refused, and a complete request is answered.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use test_support::{eventually, Gate, Page, Reply, Rules, Site, PATIENCE};

fn site() -> &'static Site {
    Site::shared()
}

/// A page whose answers are not stored.
fn page() -> Page<'static> {
    site().page_with(Reply::ok().header("Cache-Control", "no-store"))
}

/// RFC 9112 §7.1.1 and §11.2
#[test]
fn a_request_cannot_be_hidden_in_a_chunk() {
    let page = page();
    let hidden = format!("{}-hidden", page.path());
    site().origin().script(&hidden, |_, _| Reply::fresh());
    let smuggled = format!("GET {hidden} HTTP/1.1\r\nHost: site.example\r\n\r\n");
    let request = |body: &str| {
        format!(
            "POST {} HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: chunked\r\n\r\n{body}",
            page.path()
        )
    };
    let size = smuggled.len() + 5;
    for body in [
        // A parser that ends the line at LF reads a chunk of two bytes, and then the
        // request; one that ends it at CRLF reads the request as data.
        format!("2;\nxx\r\n{size:x}\r\n0\r\n\r\n{smuggled}\r\n0\r\n\r\n"),
        format!("0;\n{size:x}\r\n0\r\n\r\n{smuggled}\r\n0\r\n\r\n"),
        format!("2\nxx\r\n0\r\n\r\n{smuggled}"),
        format!("2;a\rb\r\nxx\r\n0\r\n\r\n{smuggled}"),
        format!("\r\n0\r\n\r\n{smuggled}"),
        format!("2\r\nxx\n0\r\n\r\n{smuggled}"),
        format!("2\r\nxx\r\n0\n\r\n{smuggled}"),
        format!("2\r\nxx\r\n0\r\n\n{smuggled}"),
        format!("2\r\nxx\r\n0\r\nA: a\n\r\n{smuggled}"),
        format!("-2\r\nxx\r\n0\r\n\r\n{smuggled}"),
        format!("0x2\r\nxx\r\n0\r\n\r\n{smuggled}"),
        format!("10000000000000002\r\nxx\r\n0\r\n\r\n{smuggled}"),
    ] {
        let mut client = site().client();
        client.send_bytes(request(&body));
        assert_eq!(client.receive("POST").status, 400, "{body:?}");
        assert!(client.is_closed(), "{body:?}");
    }
    assert_eq!(page.count(), 0, "no body came to its end");
    assert_eq!(site().origin().seen(&hidden).len(), 0);
}

/// RFC 9112 §7.1
#[test]
fn malformed_chunks_of_the_origin_are_not_passed_on() {
    let mut rules = Rules::new();
    for body in ["3;a\nabc\r\n0\r\n\r\n", ";a\r\n\r\n", "3\r\nabc\n0\r\n\r\n"] {
        let page = site().page_with(Reply::raw(format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        )));
        for _ in 0..2 {
            let mut client = page.ask("GET", &[], b"");
            let got = client.try_receive("GET");
            let whole = got.is_ok_and(|got| got.status == 200 && got.complete);
            rules.expect("RFC 9112 7.1", body, false, whole);
        }
        // Nothing of it is kept.
        page.answers([Reply::fresh().body("good")]);
        eventually("the fill has failed", || page.get().text() == "good");
    }
    rules.check();
}

/// RFC 9112 §9.6: a client that shuts down the sending half still reads.
#[test]
fn a_client_that_has_sent_all_is_answered_when_the_origin_takes_its_time() {
    let mut rules = Rules::new();
    let no_store = || Reply::ok().header("Cache-Control", "no-store");
    for (what, method, body, answer, stored) in [
        ("miss", "GET", &b""[..], Reply::fresh(), None),
        ("pass", "GET", b"", no_store(), None),
        ("upload", "POST", &[b'a'; 300_000], no_store(), None),
        ("HEAD", "HEAD", b"", no_store(), None),
        (
            "validation",
            "GET",
            b"",
            Reply::ok().with_status(304).header("ETag", "\"v1\""),
            Some(Reply::stale()),
        ),
        ("unknown length", "GET", b"", Reply::fresh().chunked(), None),
    ] {
        let gate = Gate::new();
        let page = site().page();
        if let Some(stored) = stored {
            page.answers([stored]);
            page.get();
        }
        page.answers([answer.hold(&gate)]);
        let mut client = site().client();
        client.ask(method, page.path(), &[], body);
        client.finish_sending();
        gate.wait_for_arrivals(1);
        // The proxy has time to read the end of sending.
        std::thread::sleep(Duration::from_millis(300));
        gate.open();
        let got = client.try_receive(method);
        let status = got.map(|got| (got.status, got.complete));
        rules.expect("RFC 9112 9.6", what, Ok((200, true)), status);
        rules.expect("RFC 9112 9.6", what, true, client.is_closed());
    }
    rules.check();
}

/// RFC 9112 §9.3.2
#[test]
fn requests_that_come_one_behind_the_other_are_answered_in_order() {
    for way in ["at once", "one after the other"] {
        let gate = Gate::new();
        let first = site().page_with(Reply::fresh().body("first").hold(&gate));
        let second = site().page_with(Reply::fresh().body("second"));
        let mut client = site().client();
        client.ask("GET", first.path(), &[], b"");
        if way != "at once" {
            first.wait_for(1);
        }
        client.ask("GET", second.path(), &[], b"");
        client.finish_sending();
        gate.wait_for_arrivals(1);
        gate.open();
        for body in ["first", "second"] {
            assert_eq!(client.receive("GET").text(), body, "{way}");
        }
        assert!(client.is_closed(), "{way}");
    }
}

/// RFC 9110 §8.6
#[test]
fn the_length_of_an_answer_is_said_once() {
    let mut rules = Rules::new();
    for fields in [
        "Content-Length: 3\r\nContent-Length: 3\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length: 3\r\ncontent-length: 3,3\r\n",
    ] {
        for (control, requests) in [("max-age=60", 1), ("no-store", 2)] {
            let page = site().page_with(Reply::raw(format!(
                "HTTP/1.1 200 OK\r\nCache-Control: {control}\r\n{fields}\r\nabc"
            )));
            for _ in 0..2 {
                let got = page.get();
                let lengths = got.headers.all("content-length");
                rules.expect("RFC 9110 8.6", fields, vec!["3"], lengths);
                rules.expect("RFC 9110 8.6", fields, "abc".to_owned(), got.text());
            }
            rules.expect("RFC 9110 8.6", fields, requests, page.count());
        }
    }
    for fields in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: 3, 4\r\n",
        "Content-Length: 3,\r\n",
        "Content-Length: +3\r\n",
    ] {
        let page = site().page_with(Reply::raw(format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{fields}\r\nabcd"
        )));
        rules.expect("RFC 9112 6.3", fields, 502, page.get().status);
    }
    rules.check();
}

/// RFC 9110 §8.6, RFC 9111 §4.3.4
#[test]
fn an_answer_without_a_body_may_say_a_length() {
    let mut rules = Rules::new();
    for fields in [
        "Content-Length: 5",
        "Content-Length: 0",
        "Transfer-Encoding: chunked",
    ] {
        let page = site().page_with(Reply::raw(format!(
            "HTTP/1.1 204 No Content\r\nCache-Control: max-age=60\r\n{fields}\r\n\r\n"
        )));
        for _ in 0..2 {
            let got = page.get();
            let length = got.header("content-length");
            rules.expect("RFC 9110 15.3.5", fields, 204, got.status);
            rules.expect("RFC 9110 8.6", fields, None, length);
            let coding = got.header("transfer-encoding");
            rules.expect("RFC 9112 6.1", fields, None, coding);
        }
        rules.expect("RFC 9111 3", fields, 1, page.count());
    }
    // A 304 gives the length of the response that it stands for.
    let not_modified = Reply::raw(
        "HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nETag: \"v1\"\r\n\
         Content-Length: 5\r\n\r\n",
    );
    let asked = [("If-None-Match", "\"v1\"")];
    let page = site().page_with(Reply::stale().body("12345"));
    page.get();
    page.answers([not_modified]);
    let text = page.get().text();
    rules.expect("RFC 9111 4.3.4", "stale", "12345".to_owned(), text);
    let status = page.get_with(&asked).status;
    rules.expect("RFC 9111 4.3.4", "fresh again", 304, status);
    rules.expect("RFC 9111 4.3.4", "requests", 2, page.count());
    rules.check();
}

#[test]
fn an_answer_may_have_as_many_fields_as_its_limit_says() {
    let many = |count: usize| {
        let fields = (0..count).map(|n| format!("X-{n}: {n}\r\n"));
        Reply::raw(format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 3\r\n{}\r\nabc",
            fields.collect::<String>()
        ))
    };
    // Field counts that a stored response may have, and that only a passed one may have.
    for (count, stored) in [(250, true), (255, false), (300, false), (1022, false)] {
        let page = site().page_with(many(count));
        // A miss, a hit, and a hit whose header was prepared.
        for _ in 0..3 {
            let got = page.get();
            assert_eq!((got.status, got.text()), (200, "abc".into()), "{count}");
            for n in 0..count {
                let value = n.to_string();
                assert_eq!(got.header(&format!("x-{n}")), Some(&*value), "{count}");
            }
        }
        assert_eq!(page.count(), if stored { 1 } else { 3 }, "{count}");
    }
    // This proxy has a log of its own, in which no such line was suppressed before.
    let site = Site::start(&[]);
    let page = site.page_with(many(1023));
    assert_eq!(page.get().status, 502);
    eventually("the log says why", || {
        site.log().contains("more than 1024 header fields")
    });
}

#[test]
fn interim_answers_of_the_origin_have_an_end() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for (count, status) in [(100, 200), (100_000, 502)] {
        let page = site().page_with(Reply::raw([&hints.repeat(count), ok].concat()));
        let got = page.get();
        assert_eq!(got.status, status, "{count}");
        assert!(got.interim.len() <= 128, "{count}: {}", got.interim.len());
    }
}

/// RFC 9112 §6.1
#[test]
fn a_coding_that_nobody_undoes_is_refused() {
    let page = page();
    let ask = |codings: &str| {
        let mut client = site().client();
        client.send_bytes(format!(
            "POST {} HTTP/1.1\r\nHost: site.example\r\n{codings}\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            page.path()
        ));
        let status = client.receive("POST").status;
        (status, status != 200 && client.is_closed())
    };
    for (codings, status) in [
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: identity, chunked", 501),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501),
        ("Transfer-Encoding: chunked, chunked", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        ("Transfer-Encoding: chunked, gzip", 400),
        ("Transfer-Encoding: xchunked", 400),
        ("Transfer-Encoding:", 400),
    ] {
        assert_eq!(ask(codings), (status, true), "{codings}");
    }
    assert_eq!(page.count(), 0);
    for codings in [
        "Transfer-Encoding: Chunked",
        "Transfer-Encoding: ,\tchunked ,",
        "Transfer-Encoding:\r\nTransfer-Encoding: chunked",
    ] {
        assert_eq!(ask(codings), (200, false), "{codings}");
    }
    assert_eq!(page.count(), 3);
}

/// RFC 9112 §6.1
#[test]
fn an_answer_in_an_unknown_coding_is_neither_passed_on_nor_stored() {
    let chunks = "3\r\nabc\r\n0\r\n\r\n";
    let answer = |codings: &str| {
        Reply::raw(format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{codings}\r\n\r\n{chunks}"
        ))
    };
    for codings in [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: gzip\r\nContent-Length: 13",
    ] {
        let page = site().page_with(answer(codings));
        assert_eq!(page.get().status, 502, "{codings}");
        page.answers([Reply::fresh().body("good")]);
        assert_eq!(page.get().text(), "good", "{codings}");
    }
    for codings in [
        "Transfer-Encoding: CHUNKED",
        "Transfer-Encoding: ,\tchunked ,",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: ",
    ] {
        let page = site().page_with(answer(codings));
        let got = page.get();
        assert_eq!((got.status, got.text()), (200, "abc".into()), "{codings}");
    }
}

/// RFC 9112 §3.2.2
#[test]
fn the_authority_of_an_absolute_target_counts_whatever_host_says() {
    let page = site().page_with(Reply::fresh());
    let ask = |authority: &str, host: &str| {
        let mut client = site().client();
        client.send_bytes(format!(
            "GET http://{authority}{} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
            page.path()
        ));
        client.receive("GET")
    };
    for (authority, host) in [
        ("site.example", "SITE.example"),
        ("Site.Example", "site.example"),
        ("site.example", "site.example:80"),
        ("site.example:80", "site.example"),
        ("site.example", "other.example"),
        ("site.example", "site.example:8080"),
        ("site.example", ""),
    ] {
        let got = ask(authority, host);
        assert_eq!(got.status, 200, "{host} for {authority}");
        let seen = page.seen();
        let seen = seen.last().expect("the origin is asked, or was");
        let host = seen.header("host").unwrap_or_default();
        assert!(
            host.to_ascii_lowercase().starts_with("site.example"),
            "{host}"
        );
    }
    assert_eq!(ask("site.example", "a\r\nHost: b").status, 400);
}

/// The answer as read by a client that sends its whole body first, whatever comes back.
fn upload(head: &str, len: usize) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(site().addr())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(head.as_bytes())?;
    let piece = vec![b'a'; 1 << 20];
    for _ in 0..len >> 20 {
        stream.write_all(&piece)?;
    }
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

#[test]
fn an_upload_that_is_refused_early_can_read_the_answer() {
    const LEN: usize = 32 << 20;
    let page = page();
    let path = page.path();
    let long = "a".repeat(9000);
    let large = "a".repeat(70_000);
    for (status, line, fields) in [
        (
            400,
            format!("POST {path} HTTP/1.1"),
            "Host: a\r\nHost: b\r\n",
        ),
        (400, format!("POST {path} x HTTP/1.1"), ""),
        (400, format!("POST {path} HTTP/1.1"), "Host: a b\r\n"),
        (414, format!("POST /{long} HTTP/1.1"), "Host: a\r\n"),
        (431, format!("POST {path} HTTP/1.1\r\nX: {large}"), ""),
        (405, "CONNECT a:80 HTTP/1.1".into(), "Host: a:80\r\n"),
    ] {
        let head = format!("{line}\r\n{fields}Content-Length: {LEN}\r\n\r\n");
        let got = upload(&head, LEN);
        let got = got.unwrap_or_else(|e| panic!("{line:.60}: {e}"));
        assert!(
            got.starts_with(&format!("HTTP/1.1 {status} ")),
            "{line:.60}: {got}"
        );
    }
    assert_eq!(page.count(), 0);
}
