use std::{
    env,
    fmt::{Display, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::{Origin, Proxy, SelfSigned};

/// A proxy to be started: what is not set is left out of the configuration, so
/// that the proxy's own default holds.
#[derive(Clone, Debug)]
pub struct ProxyBuilder {
    binary: PathBuf,
    parent: PathBuf,
    environment: Vec<(String, String)>,
    buckets: Vec<Bucket>,
    server: Vec<(&'static str, String)>,
    limits: Vec<(&'static str, String)>,
    upgrade_sock: bool,
    cache: Vec<(&'static str, String)>,
    memory: Vec<(&'static str, String)>,
    range_fill: Vec<(&'static str, String)>,
    disk: Vec<(&'static str, String)>,
    sendfile: Vec<(&'static str, String)>,
    tls: bool,
    tls_keys: Vec<(&'static str, String)>,
    handshake_timeout: Option<String>,
    ktls: Option<&'static str>,
    admin: bool,
    admin_socket: bool,
    admin_keys: Vec<(&'static str, String)>,
    health: Option<String>,
    access_log: Option<Vec<(&'static str, String)>>,
    traces: Vec<(&'static str, String)>,
}

/// An entry of `buckets`.
#[derive(Clone, Debug)]
pub struct Bucket {
    path_prefix: String,
    bucket: String,
    region: String,
    endpoint: Option<String>,
    credentials: Option<(String, String)>,
    /// Further keys, each with a value as it stands in the file.
    others: Vec<(&'static str, String)>,
}

// === impl ProxyBuilder ===

impl ProxyBuilder {
    pub(crate) fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            parent: env::temp_dir(),
            environment: Vec::new(),
            buckets: Vec::new(),
            server: Vec::new(),
            limits: Vec::new(),
            upgrade_sock: false,
            cache: Vec::new(),
            memory: Vec::new(),
            range_fill: Vec::new(),
            disk: vec![("enabled", "true".to_owned())],
            sendfile: Vec::new(),
            tls: false,
            tls_keys: Vec::new(),
            handshake_timeout: None,
            ktls: None,
            admin: false,
            admin_socket: false,
            admin_keys: Vec::new(),
            health: None,
            access_log: None,
            traces: Vec::new(),
        }
    }

    pub fn bucket(mut self, bucket: Bucket) -> Self {
        self.buckets.push(bucket);
        self
    }

    /// Puts the proxy's own directory into `parent` instead of the system's temporary directory.
    pub fn within(mut self, parent: &Path) -> Self {
        self.parent = parent.to_owned();
        self
    }

    /// Sets a variable of the proxy's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn threads(mut self, threads: usize) -> Self {
        self.server.push(("threads", threads.to_string()));
        self
    }

    /// As in the configuration: `"60s"`.
    pub fn write_timeout(mut self, duration: &str) -> Self {
        self.server.push(("write_timeout", duration.to_owned()));
        self
    }

    pub fn min_send_rate(mut self, bytes_per_second: u64) -> Self {
        self.server
            .push(("min_send_rate", bytes_per_second.to_string()));
        self
    }

    pub fn send_buffer(mut self, bytes: u32) -> Self {
        self.server.push(("send_buffer", bytes.to_string()));
        self
    }

    pub fn keepalive_timeout(mut self, duration: &str) -> Self {
        self.server.push(("keepalive_timeout", duration.to_owned()));
        self
    }

    pub fn request_head_timeout(mut self, duration: &str) -> Self {
        self.server
            .push(("request_head_timeout", duration.to_owned()));
        self
    }

    pub fn max_request_head_bytes(mut self, bytes: usize) -> Self {
        self.server
            .push(("max_request_head_bytes", bytes.to_string()));
        self
    }

    /// `server.http2`, as a flow mapping.
    pub fn http2(mut self, limits: &str) -> Self {
        self.server.push(("http2", limits.to_owned()));
        self
    }

    pub fn grace_period(mut self, duration: &str) -> Self {
        self.server.push(("grace_period", duration.to_owned()));
        self
    }

    pub fn max_connections(self, connections: usize) -> Self {
        self.limit("connections", connections)
    }

    /// Sets a key of `limits`.
    pub fn limit(mut self, key: &'static str, value: impl Display) -> Self {
        self.limits.push((key, value.to_string()));
        self
    }

    pub fn default_ttl(mut self, duration: &str) -> Self {
        self.cache.push(("default_ttl", duration.to_owned()));
        self
    }

    pub fn negative_ttl(mut self, duration: &str) -> Self {
        self.cache.push(("negative_ttl", duration.to_owned()));
        self
    }

    /// Stores an object from its n-th request on.
    pub fn admission(mut self, requests: u8) -> Self {
        self.cache.push(("admission", requests.to_string()));
        self
    }

    /// Sets a key of `cache`.
    pub fn cache(mut self, key: &'static str, value: impl Display) -> Self {
        self.cache.push((key, value.to_string()));
        self
    }

    pub fn metadata_mb(mut self, size: impl Display) -> Self {
        self.memory.push(("max_metadata_mb", size.to_string()));
        self
    }

    pub fn memory_mb(mut self, size: impl Display) -> Self {
        self.memory.push(("max_size_mb", size.to_string()));
        self
    }

    /// A key of `cache.range_fill`.
    pub fn range_fill(mut self, key: &'static str, value: impl Display) -> Self {
        self.range_fill.push((key, value.to_string()));
        self
    }

    /// `cache.disk.enabled: false`.
    pub fn without_cache(mut self) -> Self {
        self.disk = vec![("enabled", "false".to_owned())];
        self
    }

    pub fn max_object_gb(mut self, size: impl Display) -> Self {
        self.disk.push(("max_object_gb", size.to_string()));
        self
    }

    pub fn max_size_gb(mut self, size: impl Display) -> Self {
        self.disk.push(("max_size_gb", size.to_string()));
        self
    }

    /// `tokio`, `uring` or `auto`.
    pub fn backend(mut self, name: &str) -> Self {
        self.disk.push(("backend", name.to_owned()));
        self
    }

    /// As in the configuration: `"30d"`.
    pub fn inactive(mut self, duration: &str) -> Self {
        self.disk.push(("inactive", duration.to_owned()));
        self
    }

    pub fn max_open_files(mut self, files: usize) -> Self {
        self.disk.push(("max_open_files", files.to_string()));
        self
    }

    pub fn scrub_mb_per_second(mut self, rate: impl Display) -> Self {
        self.disk.push(("scrub_mb_per_second", rate.to_string()));
        self
    }

    pub fn sendfile(mut self, enabled: bool) -> Self {
        self.sendfile.push(("enabled", enabled.to_string()));
        self
    }

    pub fn sendfile_threshold(mut self, bytes: u64) -> Self {
        self.sendfile.push(("threshold_bytes", bytes.to_string()));
        self
    }

    /// Serves HTTPS beside HTTP, with a self-signed certificate.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Serves HTTPS with this certificate and key.
    pub fn tls_with(self, certificate: &Path, key: &Path) -> Self {
        self.tls()
            .tls_key("certificate", certificate.display())
            .tls_key("key", key.display())
    }

    /// Sets a key of `server.tls`; only with [`Self::tls`].
    pub fn tls_key(mut self, key: &'static str, value: impl Display) -> Self {
        self.tls_keys.push((key, value.to_string()));
        self
    }

    /// Written as in the configuration, such as `"10s"`; only with [`Self::tls`].
    pub fn handshake_timeout(mut self, duration: &str) -> Self {
        self.handshake_timeout = Some(duration.to_owned());
        self
    }

    /// Use of kernel TLS: `auto`, `on` or `off`.
    pub fn ktls(mut self, choice: &'static str) -> Self {
        self.ktls = Some(choice);
        self
    }

    /// Listens for operators.
    pub fn admin(mut self) -> Self {
        self.admin = true;
        self
    }

    /// Listens for operators at [`Proxy::admin_socket`].
    pub fn admin_socket(mut self) -> Self {
        self.admin_socket = true;
        self
    }

    /// Sets a key of `admin`.
    pub fn admin_key(mut self, key: &'static str, value: impl Display) -> Self {
        self.admin_keys.push((key, value.to_string()));
        self
    }

    /// `health`, as a flow mapping.
    pub fn health(mut self, health: &str) -> Self {
        self.health = Some(health.to_owned());
        self
    }

    /// Logs requests, as JSON in [`Proxy::access_log`] unless told otherwise.
    pub fn access_log(mut self) -> Self {
        self.access_log.get_or_insert_default();
        self
    }

    /// Sets a key of `access_log`, and has one.
    pub fn access_log_key(mut self, key: &'static str, value: impl Display) -> Self {
        let keys = self.access_log.get_or_insert_default();
        keys.push((key, value.to_string()));
        self
    }

    /// Sets a key of `traces`.
    pub fn traces(mut self, key: &'static str, value: impl Display) -> Self {
        self.traces.push((key, value.to_string()));
        self
    }

    /// As in the configuration: `"[10.0.0.0/8]"`.
    pub fn trusted_proxies(mut self, networks: &str) -> Self {
        self.server.push(("trusted_proxies", networks.to_owned()));
        self
    }

    /// As in the configuration: `"[10.0.0.0/8]"`.
    pub fn proxy_protocol(mut self, networks: &str) -> Self {
        self.server.push(("proxy_protocol", networks.to_owned()));
        self
    }

    /// Has a place of its own for [`Proxy::upgrade`].
    pub fn upgradable(mut self) -> Self {
        self.upgrade_sock = true;
        self
    }

    /// Starts the proxy in a directory of its own and waits until it is ready.
    pub fn start(self) -> Proxy {
        let environment = self.environment.clone();
        Proxy::launch(&self.binary, &self.parent, environment, |dir| {
            self.yaml(dir)
        })
    }

    /// The configuration of a proxy that keeps its files in `dir`; makes the
    /// certificate there where one is needed.
    fn yaml(&self, dir: &Path) -> String {
        let mut yaml = Yaml::default();
        yaml.section(0, "server");
        yaml.text(1, "address", ANY_PORT);
        yaml.all(1, &self.server);
        if self.upgrade_sock {
            yaml.text(1, "upgrade_sock", dir.join(UPGRADE_SOCK).display());
        }
        if self.tls {
            yaml.section(1, "tls");
            yaml.text(2, "address", ANY_PORT);
            if !self.tls_keys.iter().any(|(key, _)| *key == "certificate") {
                let made = SelfSigned::write_to(dir);
                yaml.text(2, "certificate", made.certificate.display());
                yaml.text(2, "key", made.key.display());
            }
            yaml.all(2, &self.tls_keys);
            if let Some(timeout) = &self.handshake_timeout {
                yaml.value(2, "handshake_timeout", timeout);
            }
            if let Some(choice) = self.ktls {
                yaml.text(2, "ktls", choice);
            }
        }
        if !self.limits.is_empty() {
            yaml.section(0, "limits");
            yaml.all(1, &self.limits);
        }
        yaml.section(0, "buckets");
        for bucket in &self.buckets {
            bucket.write(&mut yaml);
        }
        yaml.section(0, "cache");
        yaml.all(1, &self.cache);
        if !self.range_fill.is_empty() {
            yaml.section(1, "range_fill");
            yaml.all(2, &self.range_fill);
        }
        if !self.memory.is_empty() {
            yaml.section(1, "memory");
            yaml.all(2, &self.memory);
        }
        yaml.section(1, "disk");
        yaml.text(2, "path", dir.join(CACHE).display());
        yaml.all(2, &self.disk);
        if let (Ok(backend), false) = (
            env::var(BACKEND),
            self.disk.iter().any(|(key, _)| *key == "backend"),
        ) {
            yaml.text(2, "backend", backend);
        }
        if !self.sendfile.is_empty() {
            yaml.section(2, "sendfile");
            yaml.all(3, &self.sendfile);
        }
        yaml.section(0, "metrics");
        yaml.text(1, "address", ANY_PORT);
        if self.admin || self.admin_socket {
            yaml.section(0, "admin");
        }
        if self.admin {
            yaml.text(1, "address", ANY_PORT);
        }
        if self.admin_socket {
            yaml.text(1, "socket", dir.join(ADMIN_SOCK).display());
        }
        yaml.all(1, &self.admin_keys);
        if let Some(health) = &self.health {
            yaml.value(0, "health", health);
        }
        if let Some(keys) = &self.access_log {
            yaml.section(0, "access_log");
            if !keys.iter().any(|(key, _)| *key == "path") {
                yaml.text(1, "path", dir.join(ACCESS_LOG).display());
            }
            yaml.all(1, keys);
        }
        if !self.traces.is_empty() {
            yaml.section(0, "traces");
            yaml.all(1, &self.traces);
        }
        yaml.text
    }
}

/// Names the backend of all proxies whose test does not: so a whole run can be
/// made on the other one.
pub const BACKEND: &str = "CACHE_BACKEND";

/// The cache's place in the proxy's directory.
pub(crate) const CACHE: &str = "cache";

/// The access log's place in the proxy's directory.
pub(crate) const ACCESS_LOG: &str = "access.log";

/// The place of its socket for an upgrade.
pub(crate) const UPGRADE_SOCK: &str = "upgrade.sock";

/// The place of the socket for operators.
pub(crate) const ADMIN_SOCK: &str = "admin.sock";

/// The address of every listener: the kernel chooses the port.
const ANY_PORT: &str = "127.0.0.1:0";

/// The same configuration with the addresses that a proxy has announced, in the
/// order in which [`ProxyBuilder::yaml`] writes them.
pub(crate) fn pinned(yaml: &str, addresses: impl IntoIterator<Item = SocketAddr>) -> String {
    let mut addresses = addresses.into_iter();
    let mut parts = yaml.split(ANY_PORT);
    let mut pinned = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let address = addresses.next().expect("an address for each listener");
        pinned += &address.to_string();
        pinned += part;
    }
    pinned
}

// === impl Bucket ===

impl Bucket {
    /// A bucket in `us-east-1`, at AWS and without keys unless told otherwise. Without a name,
    /// it is the whole service.
    pub fn new(path_prefix: &str, bucket: &str) -> Self {
        Self {
            path_prefix: path_prefix.to_owned(),
            bucket: bucket.to_owned(),
            region: "us-east-1".to_owned(),
            endpoint: None,
            credentials: None,
            others: Vec::new(),
        }
    }

    /// A bucket that the scripted origin serves at a host name, path style, without keys.
    pub fn at_host(origin: &Origin, host: &str, bucket: &str) -> Self {
        Self::at(origin, "", bucket).set("hosts", format!("[{host}]"))
    }

    /// A bucket that the scripted origin serves, path style, without keys.
    pub fn at(origin: &Origin, path_prefix: &str, bucket: &str) -> Self {
        Self::new(path_prefix, bucket).endpoint(origin.url())
    }

    pub fn region(mut self, region: &str) -> Self {
        self.region = region.to_owned();
        self
    }

    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    pub fn credentials(mut self, access_key: &str, secret_key: &str) -> Self {
        self.credentials = Some((access_key.to_owned(), secret_key.to_owned()));
        self
    }

    /// Any other key, with a value as it stands in the file.
    pub fn set(mut self, key: &'static str, value: impl Display) -> Self {
        self.others.push((key, value.to_string()));
        self
    }

    fn write(&self, yaml: &mut Yaml) {
        if self.path_prefix.is_empty() {
            yaml.text(1, "- bucket", &self.bucket);
        } else {
            yaml.text(1, "- path_prefix", &self.path_prefix);
            if !self.bucket.is_empty() {
                yaml.text(2, "bucket", &self.bucket);
            }
        }
        yaml.text(2, "region", &self.region);
        if let Some(endpoint) = &self.endpoint {
            yaml.text(2, "endpoint", endpoint);
        }
        if let Some((access_key, secret_key)) = &self.credentials {
            yaml.text(2, "access_key", access_key);
            yaml.text(2, "secret_key", secret_key);
        }
        yaml.all(2, &self.others);
    }
}

/// Block-style YAML, line by line.
#[derive(Default)]
struct Yaml {
    text: String,
}

// === impl Yaml ===

impl Yaml {
    fn section(&mut self, depth: usize, key: &str) {
        self.line(depth, key, "");
    }

    fn value(&mut self, depth: usize, key: &str, value: impl Display) {
        self.line(depth, key, &format!(" {value}"));
    }

    /// A quoted value: in single quotes, YAML escapes nothing but the quote.
    fn text(&mut self, depth: usize, key: &str, value: impl Display) {
        let quoted = value.to_string().replace('\'', "''");
        self.value(depth, key, format!("'{quoted}'"));
    }

    fn all(&mut self, depth: usize, values: &[(&'static str, String)]) {
        for (key, value) in values {
            self.value(depth, key, value);
        }
    }

    fn line(&mut self, depth: usize, key: &str, value: &str) {
        let indent = "  ".repeat(depth);
        writeln!(self.text, "{indent}{key}:{value}").expect("write to a string");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_set_is_written() {
        let yaml = ProxyBuilder::new("s3-proxy")
            .bucket(
                Bucket::new("/assets", "my-bucket")
                    .endpoint("http://127.0.0.1:9000")
                    .credentials("it's", "${SECRET}"),
            )
            .write_timeout("1s")
            .sendfile_threshold(1)
            .admission(2)
            .memory_mb(0.5)
            .backend("tokio")
            .admin()
            .yaml(Path::new("/d"));
        let expected = "\
server:
  address: '127.0.0.1:0'
  write_timeout: 1s
buckets:
  - path_prefix: '/assets'
    bucket: 'my-bucket'
    region: 'us-east-1'
    endpoint: 'http://127.0.0.1:9000'
    access_key: 'it''s'
    secret_key: '${SECRET}'
cache:
  admission: 2
  memory:
    max_size_mb: 0.5
  disk:
    path: '/d/cache'
    enabled: true
    backend: tokio
    sendfile:
      threshold_bytes: 1
metrics:
  address: '127.0.0.1:0'
admin:
  address: '127.0.0.1:0'
";
        assert_eq!(yaml, expected);

        let addresses = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let pinned = pinned(&yaml, addresses);
        assert!(pinned.contains("metrics:\n  address: '127.0.0.1:2'\n"));
        assert!(pinned.contains("admin:\n  address: '127.0.0.1:3'\n"));
    }
}
