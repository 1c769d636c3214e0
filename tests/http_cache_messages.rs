//! How messages are framed, and where they end: what others could read otherwise
//! is refused, and what a client has asked for completely is answered.

use test_support::{
    eventually,
    scripted::{Answer, Page, Rules, Site},
};

fn site() -> &'static Site {
    Site::shared()
}

/// A page whose answers are not stored.
fn page() -> Page<'static> {
    site().page_with(Answer::ok().field("Cache-Control", "no-store"))
}

/// RFC 9112 §7.1.1 and §11.2
#[test]
fn a_request_cannot_be_hidden_in_a_chunk() {
    let page = page();
    let hidden = format!("{}-hidden", page.path());
    site().origin().script(&hidden, |_, _| Answer::fresh());
    let smuggled = format!("GET {hidden} HTTP/1.1\r\nHost: site.example\r\n\r\n");
    let request = |body: &str| {
        format!(
            "POST {} HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: chunked\r\n\r\n{body}",
            page.path()
        )
    };
    let size = smuggled.len() + 5;
    for body in [
        // Whoever ends the line at LF reads a chunk of two bytes, and then the
        // request; whoever ends it at CRLF reads that as data.
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
        client.send(request(&body));
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
        let page = site().page_with(Answer::raw(format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        )));
        for _ in 0..2 {
            let mut client = page.ask("GET", &[], b"");
            let got = client.try_receive("GET");
            let whole = got.is_ok_and(|got| got.status == 200 && got.complete);
            rules.expect("RFC 9112 7.1", body, false, whole);
        }
        // And nothing of it is kept.
        page.answers([Answer::fresh().body("good")]);
        eventually("the fill has failed", || page.get().text() == "good");
    }
    rules.check();
}
