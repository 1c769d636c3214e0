//! The changes of a configuration that a running process cannot apply.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Config;

/// The keys and sections that a reload applies. A change of any other key needs a restart, so a new
/// key does until it is added here and to `proxy::settings`.
pub const RELOADED: &[&str] = &[
    "access_log",
    "buckets",
    "cache.default_ttl",
    "cache.negative_ttl",
    "cache.rules",
    "cache.stale_if_error",
    "cache.stale_timeout",
    "cache.stale_while_revalidate",
    "limits.bytes_per_second",
    "limits.header_fields",
    "limits.per_ip",
    "limits.requests_per_second",
    "server.min_send_rate",
    "server.tls.certificate",
    "server.tls.certificates",
    "server.tls.client_auth",
    "server.tls.client_ca",
    "server.tls.http2",
    "server.tls.key",
    "server.tls.min_version",
    "server.tls.redirect",
    "server.tls.redirect_port",
    "server.trusted_proxies",
    "server.write_timeout",
];

// === impl Config ===

impl Config {
    /// The keys and sections whose values differ from those of `running` and that a process with that
    /// configuration applies only when it is started again, in order. `certificates`: the process can
    /// replace those of the HTTPS listener.
    pub fn restart_needed(&self, running: &Config, certificates: bool) -> Vec<String> {
        let value = |config: &Config| match serde_json::to_value(config) {
            Ok(Value::Object(sections)) => sections,
            // The model is a section, which can be serialized.
            _ => Map::new(),
        };
        let mut keys = Vec::new();
        let of_redirects = |key: &str| key.starts_with("server.tls.redirect");
        let is_reloaded = |key: &str| {
            let needs_library = key.starts_with("server.tls.") && !of_redirects(key);
            RELOADED.contains(&key) && (certificates || !needs_library)
        };
        compare("", &value(running), &value(self), &is_reloaded, &mut keys);
        keys
    }
}

fn compare(
    section: &str,
    running: &Map<String, Value>,
    new: &Map<String, Value>,
    is_reloaded: &dyn Fn(&str) -> bool,
    keys: &mut Vec<String>,
) {
    let names: BTreeSet<_> = running.keys().chain(new.keys()).collect();
    for name in names {
        let key = match section {
            "" => name.clone(),
            section => format!("{section}.{name}"),
        };
        if is_reloaded(&key) {
            continue;
        }
        match (running.get(name), new.get(name)) {
            (Some(Value::Object(running)), Some(Value::Object(new))) => {
                compare(&key, running, new, is_reloaded, keys);
            }
            (running, new) if running == new => {}
            _ => keys.push(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(rest: &str) -> Config {
        let text = format!(
            "buckets: [{{path_prefix: /a, bucket: abc, region: r, endpoint: 'http://127.0.0.1:1'}}]\n{rest}"
        );
        Config::parse(&text, Path::new("c"), &|_| None).expect(rest)
    }

    #[test]
    fn only_keys_that_a_reload_does_not_apply_need_a_restart() {
        let running = "server: {address: '127.0.0.1:80', threads: 1}";
        for (new, keys) in [
            (running, &[][..]),
            (
                "server: {address: '127.0.0.1:81', threads: 1}",
                &["server.address"],
            ),
            (
                "server: {address: '127.0.0.1:80', threads: 2, write_timeout: 1s}",
                &["server.threads"],
            ),
            (
                "server: {address: '127.0.0.1:80', threads: 1}\n\
                 metrics: {address: '127.0.0.1:90'}\n\
                 cache: {default_ttl: 1s, rules: [{ttl: 2s}], disk: {path: /x}}\n\
                 access_log: {path: '-'}",
                &[
                    "cache.disk.enabled",
                    "cache.disk.path",
                    "metrics",
                    "server.control_sock",
                    "server.upgrade_sock",
                ],
            ),
        ] {
            let needed = config(new).restart_needed(&config(running), true);
            assert_eq!(needed, keys, "{new}");
        }
    }

    #[test]
    fn the_documents_name_each_key_that_a_reload_applies() {
        let guide = include_str!("../../docs/operations.md");
        let section = guide.split("\n## Reload\n").nth(1).expect("a section");
        let section = section.split("\n## ").next().unwrap_or_default();
        for key in RELOADED {
            assert!(section.contains(&format!("`{key}`")), "{key}");
        }
    }
}
