//! The example with `--h2c`: requests over HTTP/2 (RFC 9113) whose end comes in different
//! frames, from clients that begin with HTTP/2 by prior knowledge (section 3.3).

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::OnceLock,
};

use test_support::{Reply, Site, PATIENCE};

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

const BODY: &str = "what is stored";

fn site() -> &'static Site {
    static SITE: OnceLock<Site> = OnceLock::new();
    SITE.get_or_init(|| Site::start(&["--h2c"]))
}

#[test]
fn a_get_without_a_body_is_a_hit_however_it_ends() {
    let page = site().page_with(Reply::fresh().body(BODY));
    assert_eq!(page.get().text(), BODY, "over HTTP/1.1");
    let header_only: &[&[u8]] = &[];
    let ends: [(&str, &[&[u8]]); 4] = [
        ("with HEADERS", header_only),
        ("with an empty DATA frame", &[b""]),
        ("with the second empty DATA frame", &[b"", b""]),
        ("with the third empty DATA frame", &[b"", b"", b""]),
    ];
    for (how, data) in ends {
        assert_eq!(get(page.path(), data), BODY, "it ends {how}");
    }
    assert_eq!(page.count(), 1, "the origin is asked once");
}

#[test]
fn a_get_with_an_empty_data_frame_is_stored() {
    let page = site().page_with(Reply::fresh().body(BODY));
    for _ in 0..2 {
        assert_eq!(get(page.path(), &[b""]), BODY);
    }
    assert_eq!(page.count(), 1, "the origin is asked once");
}

#[test]
fn a_get_with_a_body_is_passed_on_with_it() {
    let page = site().page();
    page.serves(|seen, _| Reply::fresh().body(seen.body.clone()));
    for (data, body) in [
        (&[&b"one"[..]][..], "one"),
        (&[b"", b"two"], "two"),
        (&[b"th", b"", b"ree", b""], "three"),
    ] {
        assert_eq!(get(page.path(), data), body);
    }
    assert_eq!(page.count(), 3);
}

/// Asks on a connection of its own, with these DATA frames, the last of which ends the
/// request. Returns the body of a 200.
fn get(path: &str, data: &[&[u8]]) -> String {
    let mut client = TcpStream::connect(site().addr()).expect("connect");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, b""));
    let end = if data.is_empty() { END_STREAM } else { 0 };
    bytes.extend(frame(HEADERS, END_HEADERS | end, 1, &request(path)));
    client.write_all(&bytes).expect("send a header");
    for (number, piece) in data.iter().enumerate() {
        let end = if number + 1 == data.len() {
            END_STREAM
        } else {
            0
        };
        client
            .write_all(&frame(DATA, end, 1, piece))
            .expect("send a piece");
    }

    let mut body = Vec::new();
    loop {
        let mut header = [0; 9];
        client.read_exact(&mut header).expect("a frame");
        let [l0, l1, l2, kind, flags, stream @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        client.read_exact(&mut payload).expect("its payload");
        if stream != [0, 0, 0, 1] {
            continue;
        }
        match kind {
            // RFC 7541, appendix A: the status is 200
            HEADERS => assert_eq!(payload[0], 0x88, "{payload:?}"),
            DATA => body.extend(payload),
            _ => panic!("frame {kind} on the stream"),
        }
        if flags & END_STREAM != 0 {
            return String::from_utf8(body).expect("text");
        }
    }
}

/// The header block of a GET (RFC 7541, appendix A and section 6.2.2).
fn request(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    for (name, value) in [(4, path), (1, "site.example")] {
        block.extend([name, value.len() as u8]);
        block.extend(value.as_bytes());
    }
    block
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
