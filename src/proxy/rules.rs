//! `cache.rules`: the objects that are stored, and for how long.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use globset::GlobMatcher;
use http::StatusCode;

use crate::config;
use crate::http::StoringRules;

/// All rules, and the one for all other objects.
pub(super) struct Rules {
    default: Arc<Rule>,
    rules: Vec<Matcher>,
}

/// A rule and its objects.
struct Matcher {
    bucket: GlobMatcher,
    key: GlobMatcher,
    rule: Arc<Rule>,
}

/// The rule for an object.
#[derive(Debug)]
pub(super) struct Rule {
    pub storing: Arc<StoringRules>,
    /// The time for which an answer that there is no object is remembered.
    pub negative_ttl: Duration,
    /// A 403 counts as such an answer.
    pub negative_forbidden: bool,
}

// === impl Rules ===

impl Rules {
    /// The rules of a configuration.
    pub(super) fn new(config: &config::Cache) -> Rules {
        let default = Rule {
            storing: Arc::new(StoringRules {
                default_ttl: Some(*config.default_ttl),
                stale_if_error: *config.stale_if_error,
                stale_while_revalidate: *config.stale_while_revalidate,
                ..StoringRules::default()
            }),
            negative_ttl: *config.negative_ttl,
            negative_forbidden: false,
        };
        let rule = |rule: &config::Rule| {
            let or = |period: Option<config::Period>, default| period.map_or(default, |p| *p);
            let base = &default.storing;
            let applies = Rule {
                storing: Arc::new(StoringRules {
                    default_ttl: Some(or(rule.ttl, *config.default_ttl)),
                    store: rule.store,
                    ignore_origin: rule.ignore_origin,
                    stale_if_error: or(rule.stale_if_error, base.stale_if_error),
                    stale_while_revalidate: or(
                        rule.stale_while_revalidate,
                        base.stale_while_revalidate,
                    ),
                    ..StoringRules::default()
                }),
                negative_ttl: or(rule.negative_ttl, default.negative_ttl),
                negative_forbidden: rule.negative_forbidden,
            };
            Matcher {
                bucket: rule.bucket.compile_matcher(),
                key: rule.key.compile_matcher(),
                rule: Arc::new(applies),
            }
        };
        Rules {
            rules: config.rules.iter().map(rule).collect(),
            default: Arc::new(default),
        }
    }

    /// The rule for an object: the first one that matches its bucket and its key.
    pub(super) fn of(&self, bucket: &str, key: &str) -> &Arc<Rule> {
        // A key is no path: dots and slashes are ordinary characters.
        let matches = |glob: &GlobMatcher, text: &str| glob.is_match(OsStr::new(text));
        let first = self
            .rules
            .iter()
            .find(|of| matches(&of.bucket, bucket) && matches(&of.key, key));
        first.map_or(&self.default, |of| &of.rule)
    }
}

// === impl Rule ===

impl Rule {
    /// True if an answer with this status means that there is no object, and is remembered.
    pub(super) fn remembers(&self, status: StatusCode) -> bool {
        !self.negative_ttl.is_zero()
            && match status {
                StatusCode::NOT_FOUND | StatusCode::GONE => true,
                StatusCode::FORBIDDEN => self.negative_forbidden,
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn rules(rules: &str) -> Rules {
        let text = format!(
            "server: {{address: '127.0.0.1:0'}}\nbuckets: [{{path_prefix: /a, bucket: abc, region: r}}]\ncache: {{default_ttl: 7s, rules: [{rules}]}}"
        );
        let config = Config::parse(&text, Path::new("c"), &|_| None).unwrap();
        Rules::new(&config.cache)
    }

    fn ttl(rules: &Rules, bucket: &str, key: &str) -> u64 {
        let ttl = rules.of(bucket, key).storing.default_ttl;
        ttl.expect("a default").as_secs()
    }

    #[test]
    fn the_first_rule_that_names_bucket_and_key_applies() {
        let rules = rules(
            "{bucket: logs, key: 'new/*', ttl: 1s}, {bucket: logs, ttl: 2s}, \
             {bucket: 'media-*', key: '*.{mp4,webm}', ttl: 3s}, {key: 'x?[0-9]', ttl: 4s}",
        );
        for (bucket, key, expected) in [
            ("logs", "new/a/b.txt", 1),
            ("logs", "old", 2),
            ("logs", "new", 2),
            ("media-eu", "a/b/c.mp4", 3),
            ("media-eu", "a/../c.webm", 3),
            ("media-eu", "c.mp3", 7),
            ("media", "c.mp4", 7),
            ("any", "xy5", 4),
            ("any", "xy", 7),
            ("any", "a/xy5", 7),
            ("any", "ü.mp4", 7),
        ] {
            assert_eq!(ttl(&rules, bucket, key), expected, "{bucket} {key}");
        }
    }

    #[test]
    fn dots_and_slashes_of_a_key_are_plain_characters() {
        let rules =
            rules("{key: '*/', ttl: 1s}, {key: '*.json', ttl: 2s}, {key: '/a//b', ttl: 3s}");
        for (key, expected) in [
            ("a/", 1),
            ("a//", 1),
            (".json", 2),
            ("a/.json", 2),
            ("./x.json", 2),
            ("/a//b", 3),
            ("/a/b", 7),
            ("..", 7),
        ] {
            assert_eq!(ttl(&rules, "b", key), expected, "{key}");
        }
    }

    #[test]
    fn a_403_is_remembered_only_where_a_rule_says_so() {
        let rules = rules("{key: a, negative_forbidden: true}, {key: b, negative_ttl: 0}");
        for (key, status, expected) in [
            ("a", 403, true),
            ("a", 404, true),
            ("b", 404, false),
            ("c", 403, false),
            ("c", 404, true),
            ("c", 410, true),
            ("a", 401, false),
            ("a", 500, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let remembers = rules.of("b", key).remembers(status);
            assert_eq!(remembers, expected, "{key} {status}");
        }
    }
}
