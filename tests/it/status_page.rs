//! The status page, as its HTML and in a browser.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Instant;

use crate::browser::Browser;
use crate::proxy;
use test_support::{
    encode_key, eventually, get, request, Bucket, Connection, Origin, Proxy, Reply, Response,
};

const TOKEN: &str = "a-token-that-is-long-enough";

/// A key that would be markup, end an attribute or a line, or be obeyed by a terminal.
const EVIL: &str = "<img src=x onerror=\"document.title='owned'\">'\n\t\u{1b}[31m&amp;\u{202e}";

// --- the HTML ---

#[test]
fn the_page_shows_the_state_and_comes_with_a_strict_policy() {
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    proxy.get("/assets/a");
    proxy.expect_metric("cache_entries", 1);
    proxy.get("/assets/a");
    proxy.expect_metric("cache_hits_total", 1);

    let page = get(proxy.admin_addr(), "/");
    assert_eq!(page.status, 200);
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let html = text(&page);
    let folder = proxy.cache_dir().display().to_string();
    for shown in [
        "50.0&nbsp;%",
        "ready",
        "sendfile over kernel TLS",
        &folder,
        "bucket",
    ] {
        assert!(html.contains(shown), "{shown}: {html}");
    }
    assert!(html.contains("data-purge=\"/assets/a\""), "{html}");
    // Reading the entries costs the disk something, so they are shown to whom asks.
    assert!(!html.contains("id=\"entries\""), "{html}");

    for (path, media_type) in [("/page.js", "text/javascript"), ("/style.css", "text/css")] {
        let resource = get(proxy.admin_addr(), path);
        assert_eq!(resource.status, 200);
        assert!(resource
            .header("content-type")
            .expect("a type")
            .starts_with(media_type));
    }
    let head = request(proxy.admin_addr(), "HEAD", "/", &[]);
    assert_eq!(head.status, 200);
    let refused = request(proxy.admin_addr(), "DELETE", "/", &[]);
    assert_eq!(
        (refused.status, refused.header("allow")),
        (405, Some("GET, HEAD"))
    );
}

#[test]
fn entries_are_listed_by_prefix_whatever_their_names_are() {
    let origin = origin();
    let proxy = proxy(&origin)
        .bucket(Bucket::at_host(&origin, "assets.test", "second"))
        .admin()
        .start();
    let evil = format!("/assets/a/{}", encode_key(EVIL));
    for path in [&*evil, "/assets/a/1", "/assets/b"] {
        assert_eq!(proxy.get(path).status, 200, "{path}");
    }
    let mut at_host = Connection::open(proxy.addr()).with_host("assets.test");
    assert_eq!(at_host.get("/a").status, 200);
    proxy.expect_metric("cache_entries", 4);

    let listed = |prefix: &str| {
        let (paths, next) = entries(&proxy, prefix, None);
        assert_eq!(next, None);
        paths
    };
    let of = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    assert_eq!(listed("/assets/a/"), of(&[&evil, "/assets/a/1"]));
    assert_eq!(listed("/assets/b"), of(&["/assets/b"]));
    assert_eq!(listed("//assets.test/"), of(&["//assets.test/a"]));
    assert_eq!(
        listed("/"),
        of(&[&evil, "/assets/a/1", "/assets/b", "//assets.test/a"])
    );
    assert_eq!(listed(""), listed("/"));
    let page = get(proxy.admin_addr(), "/?prefix=/assets/a/");
    assert!(!text(&page).contains("<img"));

    // A typed prefix is shown, and is no markup either.
    for prefix in [
        "/assets/%3Cimg%3E%22",
        "%3Cimg%3E%22",
        "/nowhere",
        "/assets/%25zz",
        "/%00",
    ] {
        let page = get(proxy.admin_addr(), &format!("/?prefix={prefix}"));
        assert_eq!(page.status, 200, "{prefix}");
        assert!(!text(&page).contains("<img"), "{prefix}");
    }
    for after in ["x", "0.", "9.", "-1.0", "0.zz", "99999999999999999999."] {
        let page = get(proxy.admin_addr(), &format!("/?prefix=/&after={after}"));
        assert_eq!(page.status, 200, "{after}");
    }
    let long = get(
        proxy.admin_addr(),
        &format!("/?prefix=/{}", "x".repeat(10_000)),
    );
    assert_eq!(long.status, 414);
}

#[test]
fn an_entry_is_purged_by_what_only_the_page_itself_can_send() {
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    let evil = format!("/assets/{}", encode_key(EVIL));
    for path in ["/assets/a", &*evil, "/assets/x/../b"] {
        assert_eq!(proxy.get(path).status, 200);
    }
    let purge = |path: &str, fields: &[(&str, &str)]| post(proxy.admin_addr(), path, fields);
    let own = format!("http://{}", proxy.admin_addr());
    let host = proxy.admin_addr().to_string();
    for fields in [
        &[][..],
        &[("Content-Type", "text/plain")],
        &[("X-Requested-With", "a"), ("Origin", "http://evil.test")],
        &[("X-Requested-With", "a"), ("Origin", "null")],
        &[("X-Requested-With", "a"), ("Sec-Fetch-Site", "same-site")],
        &[("Origin", &*own), ("Host", &*host)],
    ] {
        assert_eq!(purge("/assets/a", fields).0, 403, "{fields:?}");
    }
    assert_eq!(proxy.get("/assets/a").header("x-cache"), Some("HIT"));

    let allowed = [
        ("X-Requested-With", "s3-proxy"),
        ("Origin", &*own),
        ("Host", &*host),
        ("Sec-Fetch-Site", "same-origin"),
    ];
    let purged = (200, "purged\n".to_owned());
    for path in ["/assets/a", &*evil, "/assets/x/../b"] {
        assert_eq!(purge(path, &allowed), purged, "{path}");
        assert_eq!(proxy.get(path).header("x-cache"), Some("MISS"), "{path}");
    }
    assert_eq!(purge("/assets/*", &allowed), (200, "banned\n".to_owned()));
    for (path, status) in [
        ("", 404),
        ("assets", 404),
        ("/assets/%zz", 400),
        ("\r\n", 404),
    ] {
        assert_eq!(purge(path, &allowed).0, status, "{path:?}");
    }
    assert_eq!(purge(&"x".repeat(9000), &allowed).0, 413);
    let refused = request(proxy.admin_addr(), "GET", "/purge", &[]);
    assert_eq!(
        (refused.status, refused.header("allow")),
        (405, Some("POST"))
    );
}

#[test]
fn ten_thousand_entries_come_in_pages_of_which_each_is_short() {
    const ENTRIES: usize = 10_000;
    const CLIENTS: usize = 4;
    let origin = Origin::start(|_| Reply::bytes("x"));
    let proxy = proxy(&origin).admin().start();
    let addr = proxy.addr();
    let clients = (0..CLIENTS).map(|client| {
        thread::spawn(move || {
            let mut connection = Connection::open(addr);
            for n in (client..ENTRIES).step_by(CLIENTS) {
                if !connection.is_reusable() {
                    connection = Connection::open(addr);
                }
                assert_eq!(connection.get(&format!("/assets/{n:05}")).status, 200);
            }
        })
    });
    clients
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|client| client.join().expect("a client"));
    proxy.expect_metric("cache_entries", ENTRIES as u64);

    let mut found = BTreeSet::new();
    let mut after = None;
    let mut pages = 0;
    loop {
        let (paths, next) = entries(&proxy, "/assets/", after.as_deref());
        assert!(paths.len() <= 100, "{}", paths.len());
        for path in paths {
            assert!(found.insert(path), "an entry comes twice");
        }
        pages += 1;
        assert!(pages <= 2 * ENTRIES / 100, "the pages do not end");
        match next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(found.len(), ENTRIES);

    // A search that finds little ends in time, and goes on where it ended.
    let begun = Instant::now();
    let (mut paths, mut next) = entries(&proxy, "/assets/07777", None);
    while let Some(after) = next {
        let (more, following) = entries(&proxy, "/assets/07777", Some(&after));
        paths.extend(more);
        next = following;
    }
    assert_eq!(paths.into_iter().collect::<Vec<_>>(), ["/assets/07777"]);
    eprintln!("a search of {ENTRIES} entries took {:?}", begun.elapsed());
}

#[test]
fn with_a_token_the_page_asks_for_it_and_tells_nothing() {
    let origin = origin();
    let proxy = proxy(&origin).admin().admin_key("token", TOKEN).start();
    proxy.get("/assets/secret-name");
    let page = get(proxy.admin_addr(), "/?prefix=/");
    assert_eq!(page.status, 401);
    assert_eq!(page.header("www-authenticate"), Some("Bearer"));
    assert!(page.header("content-security-policy").is_some());
    let html = text(&page);
    assert!(
        html.contains("id=\"login\"") && !html.contains("secret-name"),
        "{html}"
    );
    assert!(!html.contains("bucket"), "{html}");
    for path in ["/page.js", "/style.css", "/health", "/ready"] {
        assert_eq!(get(proxy.admin_addr(), path).status, 200, "{path}");
    }
    let bearer = format!("Bearer {TOKEN}");
    let with = [("Authorization", &*bearer)];
    let page = request(proxy.admin_addr(), "GET", "/?prefix=/", &with);
    assert_eq!(page.status, 200);
    assert!(text(&page).contains("/assets/secret-name"));
    assert_eq!(post(proxy.admin_addr(), "/assets/secret-name", &[]).0, 401);
    let purged = post(proxy.admin_addr(), "/assets/secret-name", &with);
    assert_eq!(purged, (200, "purged\n".to_owned()));
}

#[test]
fn without_a_cache_the_page_says_so() {
    let origin = origin();
    let proxy = proxy(&origin).without_cache().admin().start();
    let page = get(proxy.admin_addr(), "/?prefix=/");
    assert_eq!(page.status, 200);
    assert!(text(&page).contains("There is no cache"), "{}", text(&page));
}

// --- in a browser ---

#[test]
fn an_operator_browses_and_purges() {
    let Some(mut browser) = Browser::start("") else {
        return;
    };
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    let evil = format!("/assets/{}", encode_key(EVIL));
    for path in ["/assets/a", "/assets/b", &*evil] {
        proxy.get(path);
    }
    proxy.expect_metric("cache_entries", 3);
    let url = format!("http://{}/", proxy.admin_addr());
    let mut tab = browser.open(&url);
    tab.wait("document.querySelectorAll('#status table').length >= 5");
    // The policy lets its own style in.
    assert_eq!(
        tab.evaluate("document.styleSheets[0].cssRules.length > 5"),
        true
    );
    tab.evaluate(
        "document.querySelector('input[name=prefix]').value = '/assets/';
         document.querySelector('form').requestSubmit()",
    );
    let rows = "document.querySelectorAll('#entries tr').length";
    // The script of the page runs once all of it is there.
    tab.wait(&format!(
        "{rows} === 4 && document.readyState === 'complete'"
    ));
    assert_eq!(tab.evaluate("document.title"), "s3-proxy");
    assert_eq!(tab.evaluate("document.images.length"), 0);

    let press = |path: &str| {
        let path = serde_json::to_string(path).expect("JSON");
        format!(
            "[...document.querySelectorAll('#entries button')]
               .find((button) => button.dataset.purge === {path}).click()"
        )
    };
    tab.evaluate(&press(&evil));
    tab.wait(&format!("{rows} === 3"));
    assert_eq!(proxy.get(&evil).header("x-cache"), Some("MISS"));
    tab.evaluate(&press("/assets/a"));
    tab.wait("document.getElementById('said').textContent.startsWith('/assets/a: 200 purged')");
    assert_eq!(proxy.get("/assets/b").header("x-cache"), Some("HIT"));
    assert_eq!(proxy.get("/assets/a").header("x-cache"), Some("MISS"));
}

#[test]
fn an_operator_gives_the_token_once_in_a_tab() {
    let Some(mut browser) = Browser::start("") else {
        return;
    };
    let origin = origin();
    let proxy = proxy(&origin).admin().admin_key("token", TOKEN).start();
    proxy.get("/assets/a");
    proxy.expect_metric("cache_entries", 1);
    let url = format!("http://{}/", proxy.admin_addr());
    let mut tab = browser.open(&url);
    let give = |token: &str| {
        format!(
            "document.querySelector('input[name=token]').value = '{token}';
             document.getElementById('login').requestSubmit()"
        )
    };
    tab.evaluate(&give("wrong"));
    tab.wait("sessionStorage.length === 0 && document.getElementById('login')");
    tab.evaluate(&give(TOKEN));
    tab.wait("document.getElementById('status')");
    tab.navigate(&format!("{url}?prefix=/assets/"));
    tab.wait("document.querySelectorAll('#entries tr').length === 2");
    tab.evaluate("document.querySelector('#entries button').click()");
    tab.wait("document.querySelectorAll('#entries tr').length === 1");
    assert_eq!(proxy.get("/assets/a").header("x-cache"), Some("MISS"));
}

#[test]
fn a_page_of_an_attacker_does_nothing_and_learns_nothing() {
    let Some(mut browser) = Browser::start("MAP evil.test 127.0.0.1") else {
        return;
    };
    let origin = origin();
    let proxy = proxy(&origin).admin().start();
    proxy.get("/assets/a");
    eventually("the cache is listed", || {
        get(proxy.metrics_addr(), "/ready").status == 200
    });
    let admin = format!("http://{}", proxy.admin_addr());
    let attacker = serve_attack();
    // Another site, and another port of the same one.
    for site in ["evil.test", "127.0.0.1"] {
        let mut tab = browser.open(&format!("http://{site}:{}/", attacker.port()));
        let learnt = tab.evaluate(&format!("attack('{admin}')"));
        let learnt = learnt.as_array().expect("what the attack has learnt");
        assert!(learnt.len() >= 10, "{learnt:?}");
        // `null`: the browser has kept the answer from the page, or none was given.
        for answer in learnt {
            assert_eq!(*answer, serde_json::Value::Null, "{learnt:?}");
        }
        tab.wait("document.getElementById('frame').dataset.loaded");
        assert_eq!(
            tab.evaluate("document.getElementById('frame').contentDocument === null"),
            true
        );
        assert_eq!(get(proxy.metrics_addr(), "/ready").status, 200, "drained");
        assert_eq!(
            proxy.get("/assets/a").header("x-cache"),
            Some("HIT"),
            "purged"
        );
    }

    // Its own name resolves to the address of the listener.
    let rebound = format!("http://evil.test:{}/", proxy.admin_addr().port());
    let mut tab = browser.open(&rebound);
    let seen = tab.evaluate("document.body.innerText");
    assert!(
        seen.as_str()
            .expect("text")
            .starts_with("write the IP address"),
        "{seen}"
    );
    let status = tab.evaluate(
        "fetch('/purge', {method: 'POST', body: '/assets/a',
                          headers: {'X-Requested-With': 's3-proxy'}})
           .then((response) => response.status)",
    );
    assert_eq!(status, 403);
    let status = tab.evaluate("fetch('/assets/a', {method: 'PURGE'}).then((r) => r.status)");
    assert_eq!(status, 403);
    assert_eq!(proxy.get("/assets/a").header("x-cache"), Some("HIT"));
    assert_eq!(get(proxy.metrics_addr(), "/ready").status, 200);
}

/// Everything that a page may send to another site.
const ATTACK: &str = r#"<!DOCTYPE html><title>attack</title>
<iframe id="frame" name="frame"></iframe>
<script>
async function attack(admin) {
  const frame = document.getElementById("frame");
  frame.onload = () => { frame.dataset.loaded = "yes"; };
  const learnt = [];
  const attempts = [
    [`${admin}/assets/a`, {method: "PURGE"}],
    [`${admin}/assets/*`, {method: "PURGE", mode: "cors", credentials: "include"}],
    [`${admin}/drain`, {method: "POST"}],
    [`${admin}/drain`, {method: "POST", mode: "no-cors"}],
    [`${admin}/drain`, {method: "POST", mode: "no-cors", body: new URLSearchParams("a=b")}],
    [`${admin}/drain`, {method: "POST", headers: {"X-Requested-With": "s3-proxy"}}],
    [`${admin}/purge`, {method: "POST", mode: "no-cors", body: "/assets/a"}],
    [`${admin}/purge`, {method: "POST", body: "/assets/a", headers: {"X-Requested-With": "a"}}],
    [`${admin}/log-level`, {method: "PUT", body: "trace"}],
    [`${admin}/status`, {}],
    [`${admin}/status`, {mode: "no-cors"}],
    [`${admin}/`, {mode: "no-cors"}],
  ];
  for (const [url, options] of attempts) {
    const answer = await fetch(url, options).then((r) => r.text()).catch(() => "");
    learnt.push(answer || null);
  }
  for (const what of ["script", "img"]) {
    const element = document.createElement(what);
    const loaded = new Promise((done) => {
      element.onload = () => done("loaded");
      element.onerror = () => done(null);
    });
    element.src = `${admin}/${what === "script" ? "page.js" : "status"}`;
    document.body.append(element);
    learnt.push(await loaded);
  }
  const form = document.createElement("form");
  form.method = "post";
  form.action = `${admin}/drain`;
  form.target = "frame";
  document.body.append(form);
  form.submit();
  return learnt;
}
</script>"#;

/// Serves [`ATTACK`] on a port of its own.
fn serve_attack() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                    line.clear();
                }
                let len = ATTACK.len();
                // The browser may have left.
                let _ = write!(
                    &stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len}\r\n\
                     Connection: close\r\n\r\n{ATTACK}"
                );
            });
        }
    });
    address
}

/// Has every object.
fn origin() -> Origin {
    Origin::start(|request| Reply::bytes(request.path()))
}

fn text(response: &Response) -> String {
    String::from_utf8(response.body.clone()).expect("UTF-8")
}

/// The paths on a page of entries, and the marker of the next page.
fn entries(proxy: &Proxy, prefix: &str, after: Option<&str>) -> (BTreeSet<String>, Option<String>) {
    let after = after.map_or(String::new(), |after| format!("&after={after}"));
    let target = format!("/?prefix={}{after}", encode_key(prefix));
    let page = get(proxy.admin_addr(), &target);
    assert_eq!(page.status, 200);
    let html = text(&page);
    let (_, table) = html
        .split_once("<table id=\"entries\">")
        .expect("the entries");
    let (table, rest) = table
        .split_once("</table>")
        .expect("the end of the entries");
    let rows = table.split("<tr><td>").skip(1);
    let paths = rows.map(|row| row.split_once("</td>").expect("a cell").0);
    let next = rest.split_once("&amp;after=").map(|(_, after)| {
        let (next, _) = after.split_once('"').expect("the end of the link");
        next.to_owned()
    });
    let unescaped = |path: &str| path.replace("&#39;", "'").replace("&amp;", "&");
    (paths.map(unescaped).collect(), next)
}

/// The status and the text of the answer to `POST /purge`.
fn post(addr: SocketAddr, path: &str, fields: &[(&str, &str)]) -> (u16, String) {
    let mut connection = Connection::open(addr);
    let mut all = vec![("Connection", "close")];
    all.extend(fields);
    connection.ask("POST", "/purge", &all, path.as_bytes());
    let answer = connection.receive("POST");
    (answer.status, text(&answer))
}
