//! Lists of objects as pages for browsers.
//!
//! Keys are whatever a client of S3 has chosen. So every name is escaped, every link begins with `./`,
//! and no page may load or run anything.

use std::fmt::Write;

use http::header::{
    HeaderName, HeaderValue, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use pingora_core::Result;
use pingora_http::ResponseHeader;

use crate::s3::key::encode_value;
use crate::s3::{ListPage, Listed};

/// The most entries of a page.
const ENTRIES: usize = 500;

/// The parameter that continues a list.
const AFTER: &str = "after";

/// The longest value of [`AFTER`], in bytes.
const MAX_AFTER: usize = 2048;

/// The fields of a page.
const FIELDS: [(HeaderName, &str); 5] = [
    (CONTENT_TYPE, "text/html; charset=utf-8"),
    (CACHE_CONTROL, "no-cache"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'self'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
];

const STYLE: &str = "body{font-family:sans-serif;margin:2em;color:#222;background:#fff}\
                     table{border-collapse:collapse}\
                     th,td{padding:.2em 2em .2em 0;text-align:left;white-space:pre-wrap}\
                     td:nth-child(2),th:nth-child(2){text-align:right}\
                     a{text-decoration:none}a:hover{text-decoration:underline}";

/// The query of S3 for the page of a list, after the bucket. `query`: that of the browser.
pub(in crate::proxy) fn list_query(folder: &str, query: Option<&[u8]>) -> String {
    let mut list = format!(
        "list-type=2&delimiter=%2F&encoding-type=url&max-keys={ENTRIES}&prefix={}",
        encode_value(folder)
    );
    let parameters = query.unwrap_or_default().split(|byte| *byte == b'&');
    let mut after = parameters.filter_map(|parameter| {
        let value = parameter.strip_prefix(AFTER.as_bytes())?;
        value.strip_prefix(b"=")
    });
    // It is encoded as the link to the page has it.
    let is_encoded = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%".contains(b);
    let after = after.next().filter(|after| {
        !after.is_empty() && after.len() <= MAX_AFTER && after.iter().all(is_encoded)
    });
    if let Some(after) = after.and_then(|after| std::str::from_utf8(after).ok()) {
        list += "&continuation-token=";
        list += after;
    }
    list
}

/// True if a folder has no entry at all, so that there is no such folder.
pub(in crate::proxy) fn is_absent(folder: &str, page: &ListPage) -> bool {
    !folder.is_empty() && page.objects.is_empty() && page.prefixes.is_empty()
}

/// Make a header that of a page with this length.
pub(in crate::proxy) fn describe(header: &mut ResponseHeader, len: usize) -> Result<()> {
    for (name, value) in FIELDS {
        header.insert_header(name, HeaderValue::from_static(value))?;
    }
    header.insert_header(CONTENT_LENGTH, len)
}

/// The page of a list: folders first, each in the order of their names. `path`: that of the folder as it
/// is shown. Its entries begin with the key `folder`.
pub(in crate::proxy) fn render(path: &str, folder: &str, page: &ListPage) -> String {
    let mut folders: Vec<&str> = page
        .prefixes
        .iter()
        .filter_map(|p| name(p, folder))
        .collect();
    folders.sort_unstable();
    let objects = page.objects.iter();
    let mut objects: Vec<(&str, &Listed)> = objects
        .filter_map(|object| Some((name(&object.key, folder)?, object)))
        .collect();
    objects.sort_unstable_by_key(|(name, _)| *name);
    let path = shown(path);
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Index of {path}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>Index of {path}</h1>\n<table>\n\
         <thead><tr><th>Name</th><th>Size</th><th>Last modified (UTC)</th></tr></thead>\n<tbody>\n"
    );
    if !folder.is_empty() {
        html += "<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n";
    }
    for name in folders {
        row(&mut html, name, "/", "", "");
    }
    for (name, object) in objects {
        row(
            &mut html,
            name,
            "",
            &size(object.size),
            &date(&object.modified),
        );
    }
    html += "</tbody>\n</table>\n";
    if let Some(next) = &page.next {
        let next = encode_value(next);
        // Writing to a String cannot fail.
        let _ = writeln!(
            html,
            "<p><a href=\"?{AFTER}={next}\" rel=\"next\">Next page</a></p>"
        );
    }
    html += "</body>\n</html>\n";
    html
}

/// The name of an entry in its folder. `None` for the folder itself.
fn name<'k>(key: &'k str, folder: &str) -> Option<&'k str> {
    let name = key.strip_prefix(folder)?;
    let name = match name.strip_suffix('/') {
        // A folder, which may have no name.
        Some(inner) => inner,
        None if name.is_empty() => return None,
        None => name,
    };
    Some(name)
}

fn row(html: &mut String, name: &str, end: &str, size: &str, date: &str) {
    let text = shown(name);
    // Browsers would take dots for this folder or the one above.
    let cell = match name {
        "." | ".." => format!("{text}{end}"),
        _ => format!("<a href=\"./{}{end}\">{text}{end}</a>", encode_value(name)),
    };
    let _ = writeln!(
        html,
        "<tr><td>{cell}</td><td>{size}</td><td>{date}</td></tr>"
    );
}

/// A text as HTML. Characters that are not visible, or that change the direction of the text, are
/// replaced.
fn shown(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            '\'' => html += "&#39;",
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                html.push('\u{fffd}');
            }
            c if c.is_control() => html.push('\u{fffd}'),
            c => html.push(c),
        }
    }
    html
}

/// A number of bytes in words.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The time of a change in minutes: `2026-11-30 08:00`. Empty if the origin writes it in another way.
fn date(written: &str) -> String {
    let is_date = written.len() >= 16
        && written
            .bytes()
            .take(16)
            .enumerate()
            .all(|(at, byte)| match at {
                4 | 7 => byte == b'-',
                10 => byte == b'T',
                13 => byte == b':',
                _ => byte.is_ascii_digit(),
            });
    match is_date {
        true => written[..16].replace('T', " "),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(objects: &[&str], prefixes: &[&str], next: Option<&str>) -> ListPage {
        let objects = objects.iter().map(|key| Listed {
            key: (*key).to_owned(),
            size: 1,
            modified: "2026-11-30T08:00:01.000Z".to_owned(),
        });
        ListPage {
            objects: objects.collect(),
            prefixes: prefixes.iter().map(|&prefix| prefix.to_owned()).collect(),
            next: next.map(str::to_owned),
        }
    }

    /// The links of a page, each with its text.
    fn links(html: &str) -> Vec<(String, String)> {
        let links = html.split("<a href=\"").skip(1);
        let link = |rest: &str| {
            let (href, rest) = rest.split_once('"').unwrap();
            let (_, text) = rest.split_once('>').unwrap();
            let (text, _) = text.split_once("</a>").unwrap();
            (href.to_owned(), text.to_owned())
        };
        links.map(link).collect()
    }

    #[test]
    fn folders_come_first_and_names_in_order() {
        let page = page(&["d/", "d/b", "d/a"], &["d/z/", "d/x/"], None);
        let html = render("/assets/d/", "d/", &page);
        let expected = [
            ("../", "../"),
            ("./x/", "x/"),
            ("./z/", "z/"),
            ("./a", "a"),
            ("./b", "b"),
        ];
        let expected = expected.map(|(href, text)| (href.to_owned(), text.to_owned()));
        assert_eq!(links(&html), expected);
        assert!(
            html.contains("<td>1 B</td><td>2026-11-30 08:00</td>"),
            "{html}"
        );
    }

    #[test]
    fn no_name_becomes_markup_or_leads_elsewhere() {
        let names = [
            "<script>alert(1)</script>",
            "\" onclick=\"alert(1)",
            "javascript:alert(1)",
            "https:evil.example",
            "\\\\evil.example",
            "a\u{202e}gpj.exe",
            "a\r\nb\u{0}",
            "?a=b#c",
            "%2e%2e",
            "ü&amp;",
        ];
        let html = render(
            "/<b>/",
            "",
            &page(&names, &["/", "//"], Some("a\"><script>")),
        );
        for bad in ["<script", "<b>", "onclick=\"", "\u{202e}", "\u{0}", "\r"] {
            assert!(!html.contains(bad), "{bad} in {html}");
        }
        for (href, _) in links(&html) {
            let (start, rest) = href.split_at(href.find(['/', '=']).unwrap() + 1);
            assert!(["./", "?after="].contains(&start), "{href}");
            let stays = |c: char| c.is_ascii_alphanumeric() || "-._~%/".contains(c);
            assert!(rest.chars().all(stays), "{href}");
        }
        // Each can be requested again.
        let found = links(&html);
        for name in names {
            let href = format!("./{}", encode_value(name));
            assert!(found.iter().any(|(found, _)| *found == href), "{href}");
        }
        let dots = render("/", "", &page(&["."], &["../"], None));
        assert!(links(&dots).is_empty(), "{dots}");
    }

    #[test]
    fn the_next_page_is_that_of_the_link() {
        let html = render("/", "", &page(&["a"], &[], Some("1/a+b==")));
        let (href, _) = &links(&html)[1];
        assert_eq!(href, "?after=1%2Fa%2Bb%3D%3D");
        let query = list_query("d e/", Some(&href.as_bytes()[1..]));
        assert_eq!(
            query,
            "list-type=2&delimiter=%2F&encoding-type=url&max-keys=500&prefix=d%20e%2F\
             &continuation-token=1%2Fa%2Bb%3D%3D"
        );
        for bad in ["after=", "after=a\"b", "afters=a", "after=a&#x"] {
            let query = list_query("", Some(bad.as_bytes()));
            assert!(
                !query.contains('"') && !query.contains("&continuation-token=&"),
                "{query}"
            );
        }
        assert!(!list_query("", Some(b"afters=a")).contains("token"));
    }

    #[test]
    fn sizes_and_dates_are_short() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
        assert_eq!(date("2026-11-30T08:15:30Z"), "2026-11-30 08:15");
        for other in ["", "<b>2026-11-30T08", "2026-11-3üT08:15:30"] {
            assert_eq!(date(other), "", "{other}");
        }
    }
}
