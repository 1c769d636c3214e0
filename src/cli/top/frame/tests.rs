use std::time::Duration;

use pingora_sendfile::proxy::status::{Bytes, Folder, Requests};
use ratatui::backend::TestBackend;
use ratatui::Terminal;

use super::*;

const INTERVAL: Duration = Duration::from_secs(2);

fn status() -> Status {
    let origin = |bucket: &str, up, failures| Origin {
        bucket: bucket.into(),
        origin: "s3.example.com".into(),
        up,
        failures,
    };
    let key = |path: &str, share| TopKey {
        path: path.into(),
        share,
    };
    Status {
        version: "0.1.0 (0123456789ab 2026-01-02)".into(),
        pid: 4711,
        uptime_seconds: 7380,
        ready: true,
        connections: 1234,
        requests: Requests {
            hits: 1_234_567,
            misses: 1000,
            hit_ratio: Some(0.9992),
            stale: 3,
            errors: 7,
            origin: 1010,
        },
        bytes: Bytes {
            total: 2_000_000_000_000,
            sendfile: 1_500_000_000_000,
            ktls: 400_000_000_000,
            memory: 80_000_000_000,
            copied: 20_000_000_000,
        },
        cache: Some(Cache {
            entries: 54_321,
            size_bytes: 750_000_000_000,
            max_size_bytes: 1_000_000_000_000,
            fills_in_flight: 2,
            load_progress: 1.0,
            folders: vec![
                Folder {
                    path: "/data/1".into(),
                    up: true,
                    entries: 54_321,
                    size_bytes: 750_000_000_000,
                    max_size_bytes: 900_000_000_000,
                    free_bytes: Some(300_000_000_000),
                    disk_bytes: Some(2_000_000_000_000),
                },
                Folder {
                    path: "/data/2".into(),
                    max_size_bytes: 100_000_000_000,
                    ..Folder::default()
                },
            ],
        }),
        origins: vec![origin("assets", true, 0), origin("models", false, 5)],
        top_keys: vec![
            key("/assets/index.html", 0.25),
            key(
                "/models/llama/part-00001-of-00128-consolidated-weights.safetensors",
                0.125,
            ),
            key("/assets/a%20b", 0.0625),
        ],
        warnings: vec![
            "The origin s3.example.com of bucket models is down: 5 failures in a row.".into(),
        ],
        ..Status::default()
    }
}

/// A proxy that was asked twice; 2 seconds lie between the answers.
fn view(last: Status) -> (View, Instant) {
    let mut first = last.clone();
    first.requests.hits -= 90;
    first.requests.misses -= 10;
    first.requests.origin -= 5;
    first.requests.errors -= 1;
    first.bytes.sendfile -= 246_000_000;
    first.bytes.total -= 246_000_000;
    let begun = Instant::now();
    let mut view = View::new("127.0.0.1:9091".into(), INTERVAL);
    view.take(Ok(first), begun);
    let now = begun + INTERVAL;
    view.take(Ok(last), now);
    (view, now)
}

fn drawn(view: &View, now: Instant, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal
        .draw(|frame| draw(frame, view, now))
        .expect("a frame");
    terminal
}

/// The lines that a terminal of this size shows.
fn shown(view: &View, now: Instant, width: u16, height: u16) -> String {
    let terminal = drawn(view, now, width, height);
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(width.max(1)));
    let rows = rows.map(|row| {
        let row: String = row.iter().map(|cell| cell.symbol()).collect();
        row.trim_end().to_owned() + "\n"
    });
    rows.collect()
}

#[test]
fn a_usual_terminal_shows_all_kinds_of_figures() {
    let (view, now) = view(status());
    let expected = "\
s3-proxy ready  up 2 h 3 min  1,234 connections  process 4711 at 127.0.0.1:9091
The origin s3.example.com of bucket models is down: 5 failures in a row.

Requests            now   since start  Sent by             now     total   share
hit ratio        90.0 %        99.9 %  sendfile     123.0 MB/s    1.5 TB  75.0 %
hits               45/s     1,234,567  kernel TLS        0 B/s  400.0 GB  20.0 %
misses            5.0/s         1,000  memory            0 B/s   80.0 GB   4.0 %
to origins        2.5/s         1,010  copied            0 B/s   20.0 GB   1.0 %
stale               0/s             3  all          123.0 MB/s    2.0 TB 100.0 %
errors            0.5/s             7

Cache       2 fills in flight, 75.0 % full
state       entries      used     limit disk free  directory
DOWN              0       0 B  100.0 GB         ?  /data/2
up           54,321  750.0 GB  900.0 GB  300.0 GB  /data/1

Origins
DOWN  5 failures in a row, models at s3.example.com
up    assets at s3.example.com

Top keys    share of the requests of the last minutes
 25.0 %  /assets/index.html
 12.5 %  /models/llama/part-00001-of-00128-consolidated-weights.safetensors
  6.2 %  /assets/a%20b

every 2 s, q to leave
";
    assert_eq!(shown(&view, now, 80, 26), expected);

    // A name that has no room loses its middle.
    let text = shown(&view, now, 60, 40);
    let elided = " 12.5 %  /models/llama/pa…8-consolidated-weights.safetensors\n";
    assert!(text.contains(elided), "{text}");
}

#[test]
fn a_wide_terminal_shows_long_names_and_the_version() {
    let (view, now) = view(status());
    let text = shown(&view, now, 130, 40);
    assert!(
        text.contains("  version 0.1.0 (0123456789ab 2026-01-02)\n"),
        "{text}"
    );
    let path = "/models/llama/part-00001-of-00128-consolidated-weights.safetensors\n";
    assert!(text.contains(path), "{text}");
}

#[test]
fn a_small_terminal_shows_the_first_things_first() {
    let (view, now) = view(status());
    let expected = "\
s3-proxy ready  up 2 h 3 min
The origin s3.example.com of bucket
models is down: 5 failures in a row.
Requests            now   since start
hit ratio        90.0 %        99.9 %
hits               45/s     1,234,567
misses            5.0/s         1,000
to origins        2.5/s         1,010
stale               0/s             3
every 2 s, q to leave
";
    assert_eq!(shown(&view, now, 40, 10), expected);
    assert_eq!(shown(&view, now, 8, 1), "s3-proxy\n");
}

#[test]
fn no_size_is_too_small_or_too_large() {
    let (seen, now) = view(status());
    let unseen = View::new("127.0.0.1:9091".into(), INTERVAL);
    let mut old = view(status()).0;
    old.take(Err("it is gone".into()), now);
    for view in [&seen, &unseen, &old] {
        for width in (0..10).chain([39, 40, 79, 80, 81, 1000]) {
            for height in (0..40).chain([500]) {
                drawn(view, now, width, height);
            }
        }
    }
}

#[test]
fn long_lists_leave_room_for_each_other() {
    let mut status = status();
    let origin = status.origins[0].clone();
    let down = status.origins[1].clone();
    status.origins = vec![origin; 1000];
    status.origins.push(down);
    status.warnings = (0..50).map(|n| format!("Warning {n}.")).collect();
    let folder = status.cache.as_ref().map(|cache| cache.folders[0].clone());
    let cache = status.cache.as_mut().expect("a cache");
    cache.folders = vec![folder.expect("a folder"); 30];
    let (view, now) = view(status);
    let text = shown(&view, now, 80, 34);
    for what in [
        "Warning 5.\n… and 44 more\n",
        "/data/1\n… and 28 more\n",
        "Origins\nDOWN  5 failures in a row, models",
        "\n… and 998 more\n",
        " 25.0 %  /assets/index.html\n",
        "q to leave",
    ] {
        assert!(text.contains(what), "{what:?} in\n{text}");
    }
    // As text, nothing is left out.
    let text = super::text(&view, now);
    assert!(!text.contains('…'), "{text}");
    assert!(text.contains("Warning 49.\n"), "{text}");
    assert_eq!(text.matches("up    assets at").count(), 1000);
}

#[test]
fn old_figures_are_marked() {
    let (mut view, now) = view(status());
    let reason = "admin.address: cannot connect to 127.0.0.1:9091: Connection refused; start the \
                  proxy with this configuration";
    view.take(Err(reason.into()), now + INTERVAL);
    let later = now + Duration::from_secs(12);
    let text = shown(&view, later, 80, 30);
    let expected = "\
s3-proxy NO ANSWER  up 2 h 3 min  1,234 connections
These figures are 12 s old: admin.address: cannot connect to 127.0.0.1:9091:
Connection refused; start the proxy with this configuration
";
    assert!(text.contains(expected), "{text}");
    assert!(
        text.contains("hits               45/s     1,234,567"),
        "{text}"
    );
    let terminal = drawn(&view, later, 80, 30);
    let cell = |row| terminal.backend().buffer()[(0, row)].style().add_modifier;
    assert!(cell(1).contains(Modifier::BOLD) && !cell(1).contains(Modifier::DIM));
    assert!(cell(6).contains(Modifier::DIM), "{text}");
    assert!(super::text(&view, later).contains("12 s old"));
}

#[test]
fn a_proxy_that_was_never_reached_has_no_figures() {
    let mut view = View::new("127.0.0.1:9091".into(), INTERVAL);
    let now = Instant::now();
    assert_eq!(
        shown(&view, now, 60, 2),
        "s3-proxy at 127.0.0.1:9091  asking\n\n"
    );
    view.take(Err("admin.address: it is not there".into()), now);
    let expected = "\
s3-proxy at 127.0.0.1:9091  asking
No answer yet: admin.address: it is not there
";
    assert_eq!(shown(&view, now, 60, 2), expected);
}

#[test]
fn a_proxy_without_a_cache_or_requests_has_no_ratio() {
    let mut view = View::new("127.0.0.1:9091".into(), INTERVAL);
    let now = Instant::now();
    let unready = vec!["draining".to_owned(), "the origin is down".to_owned()];
    let status = Status {
        unready,
        ..Status::default()
    };
    view.take(Ok(status), now);
    let text = shown(&view, now, 80, 24);
    for what in [
        "s3-proxy NOT READY  up 0 s  0 connections",
        "Not ready: draining; the origin is down\n",
        "hit ratio             -             -  sendfile              -       0 B       -\n",
        "Cache       none: cache.disk is not enabled\n",
        "Top keys    none in the last minutes\n",
    ] {
        assert!(text.contains(what), "{what:?} in\n{text}");
    }
    assert!(!text.contains("Origins"), "{text}");
}
