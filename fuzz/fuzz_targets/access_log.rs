//! A URL in the access log ends neither its field nor its line, is not longer than the field may be, and
//! has no secret, whatever precedes it.

#![no_main]

mod seeds;

use libfuzzer_sys::fuzz_target;
use pingora_sendfile::proxy::access_log::internals::{redacted, Format};

const MAX: usize = 512;
/// Follows a text that is cut.
const CUT: usize = "...".len();

const SECRET: &str = "5ecret";
const PARAMETERS: [&str; 4] = [
    "&X-Amz-Signature=5ecret",
    "&x_amz_security-token%3D5ecret",
    "%26X-Amz-%53ignature%3D5ecret",
    "%2526access%255Ftoken%253D5ecret",
];

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    for format in [Format::Json, Format::Combined] {
        check(&redacted(data, format, MAX), format);
        // Twice decoded, it could be the end of a longer escape.
        if contains(data, SECRET) || data.ends_with(b"%") || data.ends_with(b"%25") {
            continue;
        }
        for parameter in PARAMETERS {
            let url = [data, parameter.as_bytes()].concat();
            let text = redacted(&url, format, usize::MAX / 2);
            assert!(!contains(&text, SECRET), "{}", String::from_utf8_lossy(&text));
        }
    }
});

fn check(text: &[u8], format: Format) {
    assert!(text.len() <= MAX + CUT);
    match format {
        Format::Json => {
            let string = [b"\"", text, b"\""].concat();
            serde_json::from_slice::<String>(&string).expect("a string of JSON");
        }
        Format::Combined => {
            assert!(text.iter().all(|b| matches!(b, b' '..=b'~') && *b != b'"'));
        }
    }
}

fn contains(text: &[u8], part: &str) -> bool {
    text.windows(part.len())
        .any(|window| window == part.as_bytes())
}

fn examples() -> Vec<Vec<u8>> {
    [
        "/a?X-Amz-Credential=AKIA%2F20260101&X-Amz-Signature=s",
        "https://user:password@example.com/a;jsessionid=s?x=1#token",
        "/a?next=https%3A%2F%2Fh%2Fa%3FX-Amz-Signature%3Ds%26y&z",
        "/a%253Fsig%253Ds%2526x",
        "//user:pw@h/?eyJhbGciOiJ",
        "\"\\\u{2028}\u{7f}%zz",
    ]
    .iter()
    .map(|url| url.as_bytes().to_vec())
    .collect()
}
