//! Lists of objects as pages for browsers.

use std::env;
use std::process::Command;

use super::*;
use test_support::{eventually, skip};

/// An origin that lists these keys, and has an object for each. `max-keys` is two at most.
fn listed(keys: &'static [&'static str]) -> Origin {
    Origin::start(move |request| {
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((&request.target, ""));
        if path != "/bucket/" && path != "/bucket" {
            let is_known =
                |key: &&str| path == format!("/bucket/{}", test_support::encode_key(key));
            return match keys.iter().find(|key| is_known(key)) {
                Some(key) => object_reply(key, key),
                None => Reply::status(404).body(SECRET_DOCUMENT),
            };
        }
        let parameter = |name: &str| {
            let mut parameters = query.split('&').filter_map(|pair| pair.split_once('='));
            let value = parameters.find(|(found, _)| *found == name)?.1;
            Some(percent_decoded(value))
        };
        let prefix = parameter("prefix").unwrap_or_default();
        let after = parameter("continuation-token").unwrap_or_default();
        Reply::bytes(page_of(keys, &prefix, &after)).header("Content-Type", "application/xml")
    })
}

fn percent_decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .expect("UTF-8")
        .into_owned()
}

/// The names below a prefix, up to the next slash, five a page.
fn page_of(keys: &[&str], prefix: &str, after: &str) -> String {
    const PAGE: usize = 5;
    let mut names: Vec<String> = keys
        .iter()
        .filter_map(|key| {
            let rest = key.strip_prefix(prefix)?;
            let end = rest.find('/').map_or(rest.len(), |slash| slash + 1);
            Some(format!("{prefix}{}", &rest[..end]))
        })
        .filter(|name| name.as_str() > after)
        .collect();
    names.sort();
    names.dedup();
    let is_truncated = names.len() > PAGE;
    names.truncate(PAGE);
    let encoded = |name: &str| test_support::encode_key(name);
    let entries: String = names
        .iter()
        .map(|name| match name.ends_with('/') && name != prefix {
            true => format!(
                "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>",
                encoded(name)
            ),
            false => format!(
                "<Contents><Key>{}</Key><LastModified>2026-11-02T08:15:00.000Z</LastModified>\
                 <Size>{}</Size></Contents>",
                encoded(name),
                name.len(),
            ),
        })
        .collect();
    let next = match (is_truncated, names.last()) {
        (true, Some(last)) => format!(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>",
            last.replace('&', "&amp;").replace('<', "&lt;")
        ),
        _ => "<IsTruncated>false</IsTruncated>".to_owned(),
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>bucket</Name>\
         <Prefix>{}</Prefix><EncodingType>url</EncodingType>{next}{entries}</ListBucketResult>",
        encoded(prefix)
    )
}

/// The links of a page, as they are written.
fn links(html: &str) -> Vec<String> {
    let links = html.split("<a href=\"").skip(1);
    links
        .map(|rest| rest.split('"').next().unwrap_or_default().to_owned())
        .collect()
}

const KEYS: &[&str] = &[
    "a.txt",
    "b.txt",
    "docs/",
    "docs/one",
    "docs/two",
    "img/x.png",
];
const LIST: &str = "{listing: true}";

#[test]
fn a_folder_is_listed_as_a_page() {
    let origin = listed(KEYS);
    let proxy = proxy(&origin, &[("web", LIST)]).start();
    let root = proxy.get("/assets/");
    assert_eq!(root.status, 200);
    assert_eq!(
        root.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let html = root.text();
    assert_eq!(links(&html), ["./docs/", "./img/", "./a.txt", "./b.txt"]);
    assert!(html.contains("<h1>Index of /assets/</h1>"), "{html}");
    assert!(
        html.contains("<td>5 B</td><td>2026-11-02 08:15</td>"),
        "{html}"
    );
    let policy = root.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(!policy.contains("script"), "{policy}");

    let docs = proxy.get("/assets/docs/");
    assert_eq!(links(&docs.text()), ["../", "./one", "./two"]);
    let header = head(&proxy, "/assets/docs/");
    assert_eq!(header.status, 200);
    let len = docs.body.len().to_string();
    assert_eq!(header.header("content-length"), Some(&*len));
    // A page is no object: it has no ranges.
    let part = get_with(&proxy, "/assets/docs/", &[("Range", "bytes=0-1")]);
    assert_eq!((part.status, part.body), (200, docs.body));

    assert_eq!(proxy.get("/assets/none/").status, 404);
    assert_eq!(proxy.get("/assets/a.txt").text(), "a.txt");
    // The list of S3 clients stays closed.
    assert_eq!(proxy.get("/assets/?list-type=2").status, 403);
}

#[test]
fn a_long_list_has_pages() {
    let origin = listed(&["1", "2&<\"", "3", "4", "5", "6", "7", "8", "9", "9a", "9b"]);
    let proxy = proxy(&origin, &[("web", LIST)]).start();
    let mut target = "/assets/".to_owned();
    let mut names = Vec::new();
    for page in 1..=3 {
        let html = proxy.get(&target).text();
        let (entries, next): (Vec<_>, Vec<_>) = links(&html)
            .into_iter()
            .partition(|link| link.starts_with("./"));
        names.extend(entries);
        assert_eq!(next.len(), usize::from(page < 3), "{html}");
        if let Some(next) = next.first() {
            target = format!("/assets/{next}");
        }
    }
    assert_eq!(names.len(), 11);
    assert_eq!(names[1], "./2%26%3C%22");
}

#[test]
fn an_index_document_comes_before_a_list() {
    let origin = listed(&["docs/index.html", "other/a", "other/b/c"]);
    let site = "{index: index.html, listing: true, slash_redirect: true}";
    let proxy = proxy(&origin, &[("web", site)]).start();
    assert_eq!(proxy.get("/assets/docs/").text(), "docs/index.html");
    for from in ["MISS", "HIT", "HIT"] {
        let list = proxy.get("/assets/other/");
        assert_eq!((list.status, list.x_cache().as_str()), (200, from));
        assert_eq!(links(&list.text()), ["../", "./b/", "./a"]);
        assert_eq!(list.header("accept-ranges"), None);
    }
    let moved = proxy.get("/assets/other");
    assert_eq!(
        (moved.status, moved.header("location")),
        (302, Some("./other/"))
    );
    assert_eq!(proxy.get("/assets/none/").status, 404);
    // Nothing of a list is stored in the place of the document.
    eventually("the document is stored", || {
        proxy.metric("cache_entries") == 1
    });
}

#[test]
fn a_list_is_kept_in_memory_for_a_while() {
    let origin = listed(KEYS);
    let proxy = proxy(&origin, &[("web", LIST), ("list_ttl", "1h")]).start();
    let first = proxy.get("/assets/docs/").text();
    eventually("the list comes from memory", || {
        let before = origin.requests().len();
        proxy.get("/assets/docs/").text() == first && origin.requests().len() == before
    });
}

#[test]
fn only_those_who_may_read_a_folder_may_list_it() {
    let origin = listed(KEYS);
    let tokens = Tokens::new();
    let site = "{index: index.html, listing: true, slash_redirect: true}";
    for web in [LIST, site] {
        let site = tokens.protect(bucket(&origin, &[("web", web)]));
        let proxy = builder().bucket(site).start();
        let names = links(&get_as(&proxy, "docs/", "/assets/docs/").text());
        assert_eq!(names, ["../", "./one", "./two"]);
        for (prefix, target) in [
            ("docs/", "/assets/"),
            ("docs/", "/assets/img/"),
            ("docs/one", "/assets/docs/"),
            ("docs/index", "/assets/docs/"),
        ] {
            let refused = get_as(&proxy, prefix, target);
            assert!(
                [403, 404].contains(&refused.status),
                "{web} {prefix} {target}"
            );
            assert!(!refused.text().contains("one"), "{}", refused.text());
        }
        assert_eq!(proxy.get("/assets/docs/").status, 401);
    }
}

/// Names that would be markup, scripts or other addresses if they were not escaped.
const HOSTILE: &[&str] = &[
    "<img src=x onerror=\"document.title='run'\">",
    "\"><script>document.title='run'",
    "javascript:document.title='run'",
    "a\u{202e}b\nc",
    "it's & that",
];

#[test]
fn a_name_is_text_whatever_it_is() {
    let origin = listed(HOSTILE);
    let proxy = proxy(&origin, &[("web", LIST)]).start();
    let html = proxy.get("/assets/").text();
    for bad in ["<img", "<script", "\u{202e}", "href=\"javascript"] {
        assert!(!html.contains(bad), "{bad} in {html}");
    }
    let mut found = Vec::new();
    for link in links(&html) {
        let object = proxy.get(&format!("/assets/{}", &link[2..]));
        assert_eq!(object.status, 200, "{link}");
        found.push(object.text());
    }
    found.sort();
    let mut expected = HOSTILE.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_browser_runs_nothing_of_a_list() {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let is_there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let Some(browser) = names.into_iter().find(is_there) else {
        assert!(
            env::var_os("REQUIRE_BROWSER").is_none(),
            "no Chromium is installed"
        );
        return skip("Chromium is not installed");
    };
    let origin = listed(HOSTILE);
    let proxy = proxy(&origin, &[("web", LIST)]).start();
    let profile = tempfile::tempdir().expect("a directory");
    let shown = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{}/assets/", proxy.addr()))
        .output()
        .expect("run the browser");
    let dom = String::from_utf8_lossy(&shown.stdout);
    assert!(dom.contains("<title>Index of /assets/</title>"), "{dom}");
    assert!(!dom.contains("<img") && !dom.contains("<script"), "{dom}");
    assert_eq!(dom.matches("<a href=").count(), HOSTILE.len(), "{dom}");
}
