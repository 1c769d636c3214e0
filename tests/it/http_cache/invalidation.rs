//! Invalidation of stored responses by unsafe methods (RFC 9111 section 4.4).

use test_support::{Page, Reply, Rules, Site, Use};

fn stored() -> Page<'static> {
    let page = Site::shared().page_with(Reply::fresh());
    page.get();
    assert_eq!(page.get_again(&[]).1, Use::Reused);
    page
}

/// True if the page, after a request by this method that is answered so, is
/// still used without asking.
fn survives(page: &Page, method: &str, answer: Reply) -> bool {
    page.answers([answer, Reply::fresh()]);
    page.request(method, &[], b"body");
    page.get_again(&[]).1 == Use::Reused
}

#[test]
fn the_target_of_an_unsafe_method_is_invalid() {
    let mut rules = Rules::new();
    for method in [
        "POST", "PUT", "DELETE", "PATCH", "MKCOL", "LOCK", "PURGE", "FOO", "get",
    ] {
        let survived = survives(&stored(), method, Reply::ok());
        rules.expect("RFC 9111 4.4", method, false, survived);
    }
    for status in [200, 201, 202, 204, 205, 299, 301, 302, 303, 307, 308] {
        let survived = survives(&stored(), "POST", Reply::ok().with_status(status));
        rules.expect("RFC 9111 4.4", &status.to_string(), false, survived);
    }
    rules.check();
}

#[test]
fn an_error_invalidates_nothing() {
    let mut rules = Rules::new();
    for status in [
        400, 401, 403, 404, 405, 409, 412, 422, 499, 500, 501, 503, 599,
    ] {
        let survived = survives(&stored(), "PUT", Reply::ok().with_status(status));
        rules.expect("RFC 9111 4.4", &status.to_string(), true, survived);
    }
    rules.check();
}

#[test]
fn safe_methods_invalidate_nothing() {
    let mut rules = Rules::new();
    for method in ["OPTIONS", "HEAD", "TRACE"] {
        let page = stored();
        page.answers([Reply::fresh()]);
        page.request(method, &[], b"");
        let used = page.get_again(&[]).1;
        rules.expect("RFC 9111 4.4", method, Use::Reused, used);
    }
    rules.check();
}

#[test]
fn the_answer_may_name_others_of_the_same_origin() {
    let mut rules = Rules::new();
    for name in ["Location", "Content-Location"] {
        for (what, form) in [
            ("a path", "{path}"),
            ("a relative path", ".{path}"),
            ("a whole URI", "http://site.example{path}"),
            ("another case of the host", "http://SITE.example{path}"),
            ("the default port", "http://site.example:80{path}"),
            ("no scheme", "//site.example{path}"),
        ] {
            let named = stored();
            let value = form.replace("{path}", named.path());
            let target = Site::shared().page();
            target.answers([Reply::ok().with_status(201).header(name, &value)]);
            target.request("POST", &[], b"body");
            let used = named.get_again(&[]).1;
            rules.holds(
                "RFC 9111 4.4",
                &format!("{name}: {value} ({what})"),
                used != Use::Reused,
                used,
            );
        }
    }
    rules.check();
}

#[test]
fn the_answer_may_not_name_others_of_another_origin() {
    let mut rules = Rules::new();
    for name in ["Location", "Content-Location"] {
        for form in [
            "http://other.example{path}",
            "//other.example{path}",
            "https://other.example{path}",
            "http://site.example:8080{path}",
        ] {
            let named = stored();
            let value = form.replace("{path}", named.path());
            let target = Site::shared().page();
            target.answers([Reply::ok().with_status(201).header(name, &value)]);
            target.request("POST", &[], b"body");
            let used = named.get_again(&[]).1;
            rules.expect(
                "RFC 9111 4.4",
                &format!("{name}: {value}"),
                Use::Reused,
                used,
            );
        }
    }
    rules.check();
}

#[test]
fn an_error_does_not_invalidate_what_it_names() {
    for name in ["Location", "Content-Location"] {
        let named = stored();
        let target = Site::shared().page();
        target.answers([Reply::ok().with_status(500).header(name, named.path())]);
        target.request("POST", &[], b"body");
        assert_eq!(named.get_again(&[]).1, Use::Reused, "RFC 9111 4.4: {name}");
    }
}

#[test]
fn a_safe_method_does_not_invalidate_what_its_answer_names() {
    let named = stored();
    let target = Site::shared().page();
    target.answers([Reply::fresh().header("Content-Location", named.path())]);
    target.get();
    assert_eq!(named.get_again(&[]).1, Use::Reused, "RFC 9111 4.4");
}

#[test]
fn a_query_is_part_of_the_target() {
    let page = stored();
    page.answers([Reply::ok(), Reply::fresh()]);
    let mut client = Site::shared().client();
    let other = format!("{}?other", page.path());
    client.ask("POST", &other, &[], b"x");
    client.receive("POST");
    assert_eq!(page.get_again(&[]).1, Use::Reused, "RFC 9111 2");
}

#[test]
fn what_an_unsafe_method_gets_is_not_stored() {
    let mut rules = Rules::new();
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "FOO"] {
        let page = Site::shared().page_with(Reply::fresh());
        for asked in 1..3 {
            page.request(method, &[], b"x");
            rules.expect("RFC 9111 3", method, asked, page.count());
        }
        rules.expect("RFC 9111 3", method, Use::Fetched, page.get_again(&[]).1);
    }
    rules.check();
}
