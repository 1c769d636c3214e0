//! The status page: HTML without anything from elsewhere.
//!
//! All text that is not the page's own passes [`Text`], which escapes it. The policy in
//! [`CONTENT_SECURITY_POLICY`] is a second fence: even markup that got through could neither run nor load
//! anything.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::browse::{NoPage, Page};
use crate::proxy::status::{Cache, Status};
use crate::s3::key::encode_value;

/// The rights of the page in a browser.
pub(super) const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) const SCRIPT: &str = include_str!("page.js");
pub(super) const STYLE: &str = include_str!("page.css");

/// The entries on a page, if they were asked for.
pub(super) struct Browsed<'a> {
    pub(super) prefix: &'a str,
    pub(super) page: Result<Page, NoPage>,
}

/// A text in an element or in a quoted attribute. Characters that would be invisible, or change the
/// order of others, are replaced.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() || is_invisible(c) => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// True for marks of direction and the like (Unicode, Bidi_Control and zero width).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The whole page.
pub(super) fn page(status: &Status, browsed: Option<&Browsed>) -> String {
    let mut html = String::with_capacity(32 * 1024);
    // Writing to a String cannot fail.
    let _ = write_page(&mut html, status, browsed);
    html
}

/// The page that asks for the token.
pub(super) fn login() -> String {
    let mut html = String::new();
    let _ = write_frame(&mut html, |html| {
        html.push_str(
            "<form id=\"login\"><p><label>Token (admin.token): \
             <input name=\"token\" type=\"password\" autocomplete=\"off\" required></label> \
             <button>Show</button></p></form>\n<noscript><p>The token needs the script of this \
             page.</p></noscript>\n",
        );
        Ok(())
    });
    html
}

fn write_frame(html: &mut String, main: impl FnOnce(&mut String) -> fmt::Result) -> fmt::Result {
    html.push_str(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>s3-proxy</title>\n\
         <link rel=\"stylesheet\" href=\"/style.css\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <script src=\"/page.js\" defer></script>\n</head>\n<body>\n<h1>s3-proxy</h1>\n\
         <p id=\"said\" role=\"status\"></p>\n<main id=\"main\">\n",
    );
    main(html)?;
    html.push_str("</main>\n</body>\n</html>\n");
    Ok(())
}

fn write_page(html: &mut String, status: &Status, browsed: Option<&Browsed>) -> fmt::Result {
    write_frame(html, |html| {
        html.push_str("<div id=\"status\">\n");
        write_status(html, status)?;
        html.push_str("</div>\n");
        if status.cache.is_some() {
            write_entries(html, browsed)?;
        }
        Ok(())
    })
}

fn write_status(html: &mut String, status: &Status) -> fmt::Result {
    let (class, ready) = match status.ready {
        true => ("good", "ready".to_owned()),
        false => ("bad", format!("not ready: {}", status.unready.join("; "))),
    };
    writeln!(
        html,
        "<p>Version {}, process {}, up {}, {} client connections, <span class=\"{class}\">{}</span></p>",
        Text(&status.version),
        status.pid,
        period(status.uptime_seconds),
        status.connections,
        Text(&ready)
    )?;
    if !status.warnings.is_empty() {
        html.push_str("<ul id=\"warnings\">\n");
        for warning in &status.warnings {
            writeln!(html, "<li>{}</li>", Text(warning))?;
        }
        html.push_str("</ul>\n");
    }
    let requests = &status.requests;
    let ratio = requests.hit_ratio.map_or("no requests".to_owned(), percent);
    table(
        html,
        "Requests since the start",
        &[
            "hit ratio",
            "hits",
            "misses",
            "stale",
            "failed responses",
            "requests to origins",
        ],
    )?;
    writeln!(
        html,
        "<tr><td class=\"n\">{ratio}</td>{}</tr>\n</table>",
        numbers(&[
            requests.hits,
            requests.misses,
            requests.stale,
            requests.errors,
            requests.origin
        ])
    )?;
    let sent = &status.bytes;
    table(
        html,
        "Bytes to clients, by the way they took",
        &["way", "bytes", "share"],
    )?;
    for (way, count) in [
        ("sendfile", sent.sendfile),
        ("sendfile over kernel TLS", sent.ktls),
        ("copied from memory", sent.memory),
        ("copied from a disk or an origin", sent.copied),
        ("all", sent.total),
    ] {
        let share = count as f64 / sent.total.max(1) as f64;
        writeln!(
            html,
            "<tr><td>{way}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            bytes(count),
            percent(share)
        )?;
    }
    html.push_str("</table>\n");
    match &status.cache {
        Some(cache) => write_cache(html, cache)?,
        None => {
            html.push_str("<h2>Cache</h2>\n<p>There is no cache: cache.disk is not enabled.</p>\n")
        }
    }
    table(html, "Origins", &["bucket", "origin", "health"])?;
    for origin in &status.origins {
        let (class, health) = match origin.up {
            true => ("good", "up".to_owned()),
            false => (
                "bad",
                format!("down: {} failures in a row", origin.failures),
            ),
        };
        let (bucket, host) = (Text(&origin.bucket), Text(&origin.origin));
        writeln!(
            html,
            "<tr><td>{bucket}</td><td>{host}</td><td class=\"{class}\">{health}</td></tr>"
        )?;
    }
    html.push_str("</table>\n");
    table(
        html,
        "Objects that are requested most, in the last minutes",
        &["share", "path", ""],
    )?;
    for top in &status.top_keys {
        writeln!(
            html,
            "<tr><td class=\"n\">{}</td><td>{}</td><td>{}</td></tr>",
            percent(top.share),
            Text(&top.path),
            purge(&top.path, "Purge")
        )?;
    }
    html.push_str("</table>\n");
    Ok(())
}

fn write_cache(html: &mut String, cache: &Cache) -> fmt::Result {
    table(
        html,
        "Cache",
        &[
            "directory",
            "state",
            "entries",
            "size",
            "limit",
            "free on the disk",
        ],
    )?;
    for folder in &cache.folders {
        let (class, state) = match folder.up {
            true => ("good", "up"),
            false => ("bad", "cannot be used"),
        };
        let free = folder.free_bytes.map_or("unknown".to_owned(), bytes);
        writeln!(
            html,
            "<tr><td>{}</td><td class=\"{class}\">{state}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{free}</td></tr>",
            Text(&folder.path),
            folder.entries,
            bytes(folder.size_bytes),
            bytes(folder.max_size_bytes),
        )?;
    }
    writeln!(
        html,
        "</table>\n<p>{} entries, {} of {}, {} fills in flight, {} listed</p>",
        cache.entries,
        bytes(cache.size_bytes),
        bytes(cache.max_size_bytes),
        cache.fills_in_flight,
        percent(cache.load_progress)
    )
}

fn write_entries(html: &mut String, browsed: Option<&Browsed>) -> fmt::Result {
    let prefix = browsed.map_or("/", |browsed| browsed.prefix);
    write!(
        html,
        "<h2>Entries</h2>\n<form action=\"/\"><p><label>Path begins with \
         <input name=\"prefix\" value=\"{}\"></label> <button>Show entries</button>",
        Text(prefix)
    )?;
    let Some(browsed) = browsed else {
        html.push_str("</p></form>\n");
        return Ok(());
    };
    if prefix.starts_with('/') {
        write!(
            html,
            " {}",
            purge(&format!("{prefix}*"), "Purge all of these")
        )?;
    }
    html.push_str("</p></form>\n");
    let page = match &browsed.page {
        Ok(page) => page,
        Err(e) => {
            let why = match e {
                NoPage::Busy => "Other entries are being read. Try again.".to_owned(),
                NoPage::Prefix(why) => format!("The path cannot be used: {why}"),
                NoPage::Marker => "This link is not of this page. Begin again.".to_owned(),
            };
            return writeln!(html, "<p class=\"bad\">{}</p>", Text(&why));
        }
    };
    html.push_str(
        "<table id=\"entries\">\n<tr><th>path</th><th class=\"n\">bytes</th><th>stored</th>\
         <th>fresh for</th><th></th></tr>\n",
    );
    for entry in &page.entries {
        let (path, button) = match &entry.path {
            Some(path) => (path, purge(path, "Purge")),
            // Of a bucket that is no longer configured.
            None => (&entry.key, String::new()),
        };
        let fresh = entry
            .fresh_for
            .map_or("stale".to_owned(), |left: Duration| period(left.as_secs()));
        writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td>{}</td><td>{fresh}</td><td>{button}</td></tr>",
            Text(path),
            entry.len,
            date(entry.stored_at),
        )?;
    }
    html.push_str("</table>\n");
    for failure in &page.failures {
        writeln!(html, "<p class=\"bad\">{}</p>", Text(failure))?;
    }
    writeln!(
        html,
        "<p>{} entries here, in no particular order; {} of the cache searched{}</p>",
        page.entries.len(),
        percent(page.searched),
        match &page.next {
            Some(next) => format!(
                ". <a id=\"next\" href=\"/?prefix={}&amp;after={}\">Next entries</a>",
                Text(&encode_value(prefix)),
                Text(&encode_value(next))
            ),
            None => String::new(),
        }
    )
}

/// The button that purges a path.
fn purge(path: &str, label: &str) -> String {
    format!(
        "<button type=\"button\" data-purge=\"{}\">{label}</button>",
        Text(path)
    )
}

/// The beginning of a table.
fn table(html: &mut String, title: &str, columns: &[&str]) -> fmt::Result {
    write!(html, "<h2>{title}</h2>\n<table>\n<tr>")?;
    for column in columns {
        write!(html, "<th>{column}</th>")?;
    }
    html.push_str("</tr>\n");
    Ok(())
}

fn numbers(numbers: &[u64]) -> String {
    numbers.iter().fold(String::new(), |mut cells, number| {
        let _ = write!(cells, "<td class=\"n\">{number}</td>");
        cells
    })
}

fn percent(share: f64) -> String {
    format!("{:.1}&nbsp;%", share * 100.0)
}

/// A number of bytes in units of powers of ten.
fn bytes(bytes: u64) -> String {
    crate::proxy::status::bytes(bytes).replace(' ', "&nbsp;")
}

/// A time in its two largest units.
fn period(seconds: u64) -> String {
    crate::proxy::status::period(seconds).replace(' ', "&nbsp;")
}

/// A time in seconds since 1970.
fn date(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    // httpdate panics after the year 9999.
    const LAST: u64 = 253_402_300_799;
    match time.filter(|_| seconds <= LAST) {
        Some(time) => httpdate::fmt_http_date(time),
        None => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::admin::browse::Entry;
    use crate::proxy::status::{Folder, Origin, TopKey};

    /// Text that would be markup, end an attribute, or be obeyed.
    const EVIL: &str = "\"'><script>alert(1)</script>&\n\u{0}\u{202e}<img src=x onerror=alert(1)>";

    #[test]
    fn no_text_from_elsewhere_is_markup() {
        let evil = || EVIL.to_owned();
        let status = Status {
            version: evil(),
            unready: vec![evil()],
            warnings: vec![evil()],
            cache: Some(Cache {
                folders: vec![Folder {
                    path: evil(),
                    ..Folder::default()
                }],
                ..Cache::default()
            }),
            origins: vec![Origin {
                bucket: evil(),
                origin: evil(),
                ..Origin::default()
            }],
            top_keys: vec![TopKey {
                path: evil(),
                share: 0.5,
            }],
            ..Status::default()
        };
        let entry = |path| Entry {
            path,
            key: evil(),
            len: 1,
            stored_at: u64::MAX,
            fresh_for: None,
        };
        let page_of = |page| {
            let browsed = Browsed { prefix: EVIL, page };
            page_with(&status, &browsed)
        };
        fn page_with(status: &Status, browsed: &Browsed) -> String {
            page(status, Some(browsed))
        }
        let full = Page {
            entries: vec![entry(Some(evil())), entry(None)],
            next: Some(evil()),
            searched: 0.5,
            failures: vec![evil()],
        };
        for html in [page_of(Ok(full)), page_of(Err(NoPage::Prefix(evil())))] {
            assert!(html.contains("&quot;&#39;&gt;&lt;script&gt;"), "{html}");
            assert!(!html.contains("alert(1)</script>"), "{html}");
            assert!(!html.contains("<img"), "{html}");
            assert_eq!(html.matches("<script").count(), 1, "{html}");
            assert!(!html.contains(['\u{0}', '\u{202e}']), "{html}");
            // No attribute has ended early: each quote of the page's own has a partner.
            for tag in html.split('<').skip(1) {
                let tag = tag.split('>').next().unwrap_or_default();
                assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
                assert!(
                    !tag.contains("onerror=alert") || !tag.starts_with("img"),
                    "{tag}"
                );
            }
        }
    }

    #[test]
    fn nothing_comes_from_another_site() {
        for text in [page(&Status::default(), None), login()] {
            for from in [
                "http:",
                "https:",
                "src=\"//",
                "href=\"//",
                "style=",
                "onclick=",
            ] {
                assert!(!text.contains(from), "{from}: {text}");
            }
        }
        for text in [SCRIPT, STYLE] {
            for from in ["http:", "https:", "@import", "url(", "eval(", "innerHTML"] {
                assert!(!text.contains(from), "{from}");
            }
        }
    }
}
