//! Many clients at once for the same thing (issue 5; RFC 9111 section 4).

use std::{
    sync::Barrier,
    thread::{self, ScopedJoinHandle},
};

use test_support::{raise_descriptor_limit, Gate, Page, Reply, Response, Rules, Site};

/// Small, so that a thousand threads are no burden.
const STACK: usize = 128 * 1024;

fn site() -> &'static Site {
    // Before the proxy starts, which inherits it.
    raise_descriptor_limit();
    Site::shared()
}

/// This many GETs at once.
fn crowd(page: &Page, count: usize, meanwhile: impl FnOnce()) -> Vec<Response> {
    let barrier = Barrier::new(count + 1);
    thread::scope(|scope| {
        let clients: Vec<ScopedJoinHandle<Response>> = (0..count)
            .map(|_| {
                thread::Builder::new()
                    .stack_size(STACK)
                    .spawn_scoped(scope, || {
                        let mut client = page.ask("GET", &[], b"");
                        barrier.wait();
                        client.receive("GET")
                    })
                    .expect("start a thread")
            })
            .collect();
        // All have sent their requests.
        barrier.wait();
        meanwhile();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .collect()
    })
}

#[test]
fn a_thousand_clients_make_one_request() {
    let gate = Gate::new();
    let page = site().page_with(Reply::fresh().hold(&gate));
    let all = crowd(&page, 1000, || {
        gate.wait_for_arrivals(1);
        gate.open();
    });
    assert_eq!(page.count(), 1, "issue 5");
    let expected = page.get().text();
    for got in &all {
        assert!(got.complete && got.status == 200 && got.text() == expected);
    }
    let collapsed = all.iter().filter(|got| {
        let status = got.cache_status();
        status.has("collapsed") || status.is_hit()
    });
    assert_eq!(collapsed.count(), 999, "RFC 9211 2.6");
}

#[test]
fn those_who_come_during_the_body_follow_it() {
    let gate = Gate::new();
    let body: Vec<u8> = (0..500_000).map(|i| (i / 3) as u8).collect();
    let page = site().page_with(Reply::fresh().body(body.clone()).hold_at(100_000, &gate));
    let mut first = page.ask("GET", &[], b"");
    first.receive_head().expect("a head");
    gate.wait_for_arrivals(1);
    let mut late = page.ask("GET", &[], b"");
    late.receive_head().expect("a head before the end");
    assert!(late.receive_bytes(50_000) == body[..50_000], "and bytes");
    gate.open();
    assert!(late.receive_bytes(450_000) == body[50_000..]);
    assert!(first.receive_bytes(500_000) == body);
    assert_eq!(page.count(), 1);
}

#[test]
fn a_crowd_on_a_stale_response_makes_one_request() {
    let gate = Gate::new();
    let page = site().page_with(Reply::stale());
    page.get();
    page.answers([Reply::ok()
        .with_status(304)
        .header("ETag", "\"v1\"")
        .header("Cache-Control", "max-age=3600")
        .hold(&gate)]);
    let all = crowd(&page, 100, || {
        gate.wait_for_arrivals(1);
        gate.open();
    });
    assert_eq!(page.count(), 2, "issue 5");
    for got in all {
        assert_eq!((got.status, got.serial()), (200, Some(1)));
    }
}

#[test]
fn answers_that_cannot_be_shared_do_not_serialise() {
    let mut rules = Rules::new();
    for value in ["no-store", "private", "private, max-age=3600"] {
        // The origin answers the first, and then the others only together.
        let (first, together) = (Gate::new(), Gate::new());
        let page = site().page();
        let answer = Reply::ok().header("Cache-Control", value);
        page.answers([answer.clone().hold(&first), answer.hold(&together)]);
        let all = crowd(&page, 100, || {
            first.wait_for_arrivals(1);
            first.open();
            page.wait_for(100);
            together.open();
        });
        rules.expect("issue 5", value, 100, page.count());
        let mut serials: Vec<_> = all.iter().map(Response::serial).collect();
        serials.sort();
        serials.dedup();
        rules.expect("RFC 9111 3", value, 100, serials.len());
    }
    rules.check();
}

#[test]
fn an_answer_that_varies_is_shared_by_those_whom_it_fits() {
    let gate = Gate::new();
    let page = site().page();
    let hold = gate.clone();
    page.serves(move |seen, _| {
        let one = seen.header("x-one").unwrap_or_default().to_owned();
        Reply::fresh().header("Vary", "X-One").body(one).hold(&hold)
    });
    let ask = |one: &str| page.ask("GET", &[("X-One", one)], b"");
    let mut clients: Vec<_> = (0..40)
        .map(|at| if at % 2 == 0 { "a" } else { "b" })
        .map(|one| (one, ask(one)))
        .collect();
    gate.wait_for_arrivals(1);
    gate.open();
    for (one, client) in &mut clients {
        let got = client.receive("GET");
        assert_eq!((got.status, &*got.text()), (200, *one), "RFC 9111 4.1");
    }
    let before = page.count();
    assert!(before >= 2);
    for one in ["a", "b"] {
        assert_eq!(page.get_with(&[("X-One", one)]).text(), one);
    }
    assert_eq!(page.count(), before, "both are stored");
}

#[test]
fn an_origin_that_fails_the_first_does_not_fail_all() {
    let gate = Gate::new();
    let page = site().page();
    page.answers([
        Reply::hang_up().hold(&gate),
        // Asked again for the first one, perhaps.
        Reply::fresh(),
    ]);
    let all = crowd(&page, 50, || {
        gate.wait_for_arrivals(1);
        gate.open();
    });
    let failed = all.iter().filter(|got| got.status != 200).count();
    assert!(failed <= 1, "{failed} of 50 failed with the first");
}

#[test]
fn a_client_that_leaves_does_not_fail_those_who_wait() {
    let gate = Gate::new();
    let page = site().page_with(Reply::fresh().hold(&gate));
    let leaving = page.ask("GET", &[], b"");
    gate.wait_for_arrivals(1);
    let mut waiting: Vec<_> = (0..20).map(|_| page.ask("GET", &[], b"")).collect();
    drop(leaving);
    gate.open();
    for client in &mut waiting {
        let got = client.receive("GET");
        assert!(got.status == 200 && got.complete);
    }
    assert!(page.count() <= 2, "{} requests", page.count());
}

#[test]
fn other_keys_do_not_wait() {
    let gate = Gate::new();
    let hanging = site().page_with(Reply::fresh().hold(&gate));
    let mut client = hanging.ask("GET", &[], b"");
    gate.wait_for_arrivals(1);
    assert_eq!(site().page_with(Reply::fresh()).get().status, 200);
    gate.open();
    assert_eq!(client.receive("GET").status, 200);
}
