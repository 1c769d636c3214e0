//! The address of a bucket, and the form of requests to it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use crate::s3::credentials::OriginCredentials;
use crate::s3::key::{encode, ObjectKey};
use crate::s3::sign::Signer;

/// The address of an S3 service: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Endpoint {
    tls: bool,
    host: String,
    port: u16,
}

/// A bucket to serve, and the way to its service.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// The prefix of the paths that belong to this bucket. It begins with a slash and, except
    /// for `/` itself, does not end with one.
    pub path_prefix: Option<String>,
    /// The host names whose paths belong to this bucket, in lower case.
    pub hosts: Vec<String>,
    /// The name of the bucket. With `passthrough`, an empty name stands for all buckets of the
    /// service.
    pub name: String,
    /// The beginning of all keys that are served, which clients leave out: empty, or ending
    /// in a slash.
    pub key_prefix: String,
    /// The identity that requests to the service have, such as the access key. `None`: requests
    /// are unsigned.
    pub principal: Option<String>,
    /// The region of the bucket.
    pub region: String,
    /// An S3 service other than AWS.
    pub endpoint: Option<S3Endpoint>,
    /// The credentials that sign requests; `None`: requests are unsigned.
    pub credentials: Option<OriginCredentials>,
    /// True if requests are relayed as clients signed them.
    pub passthrough: bool,
    /// Connections to the service.
    pub connection: ConnectionOptions,
}

/// Options of connections to an S3 service, with their timeouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// The longest time to connect, over all addresses of the host, TLS handshake included.
    pub connect_timeout: Duration,
    /// The longest time from a request to the first byte of its response.
    pub first_byte_timeout: Option<Duration>,
    /// The longest time without a further byte of a response.
    pub read_timeout: Option<Duration>,
    /// The most retries of a request.
    pub retries: u8,
    /// A PEM file with the authorities trusted for the service; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The verification of the service's certificate.
    pub verify: Verify,
    /// The name expected in the certificate; `None`: the host of the endpoint.
    pub tls_name: Option<String>,
}

/// The verification of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// The authority and the name.
    Full,
    /// The authority only.
    Authority,
    /// Nothing: anyone on the network path can read and change everything.
    Nothing,
}

/// A bucket as the proxy reaches it: the address to connect to, and `Host` and path of its
/// requests.
#[derive(Debug)]
pub struct Origin {
    prefix: Option<String>,
    hosts: Vec<String>,
    bucket: String,
    region: String,
    key_prefix: String,
    principal: Option<String>,
    endpoint: S3Endpoint,
    host_header: String,
    /// The path of the bucket: `/bucket` in path style, nothing in virtual-hosted style.
    base_path: String,
    /// The path before the encoded key of a client.
    object_base: String,
    /// The host of the service, independent of the style of requests.
    service: String,
    signer: Option<Signer>,
    passthrough: bool,
    connection: ConnectionOptions,
}

// === impl S3Endpoint ===

impl S3Endpoint {
    /// Reads `http://HOST[:PORT]` or `https://HOST[:PORT]`, with or without a
    /// final slash; HOST is a name, an IPv4 address or an IPv6 address in
    /// brackets (RFC 3986, section 3.2.2).
    ///
    /// # Errors
    /// A description of the mistake that does not repeat the text, which may contain a password.
    pub fn parse(url: &str) -> Result<S3Endpoint, &'static str> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or("has no scheme http:// or https://")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err("has a scheme other than http:// and https://"),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('@') {
            return Err("holds a user name or password");
        }
        if authority.contains(['/', '?', '#']) {
            return Err("has a path, a query or a fragment");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (host, after) = bracketed
                    .split_once(']')
                    .ok_or("has an IPv6 address without its closing bracket")?;
                host.parse::<Ipv6Addr>()
                    .map_err(|_| "has brackets around something other than an IPv6 address")?;
                let port = match after {
                    "" => None,
                    _ => Some(
                        after
                            .strip_prefix(':')
                            .ok_or("has text between the IPv6 address and the port")?,
                    ),
                };
                (host, port)
            }
            None => {
                let (host, port) = match authority.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (authority, None),
                };
                if !is_host_name(host) {
                    return Err("has no valid host name or IP address");
                }
                (host, port)
            }
        };
        let port = match port {
            None => default_port(tls),
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err("has a port outside 1 to 65535"),
            },
            Some(_) => return Err("has a port that is not a number"),
        };
        Ok(S3Endpoint {
            tls,
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// The service at the usual port of a host.
    pub(crate) fn https(host: String) -> S3Endpoint {
        S3Endpoint {
            tls: true,
            host,
            port: default_port(true),
        }
    }

    /// True if the service is reached over TLS.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// The name or address to connect to, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The `Host` field, with the port unless it is the scheme's own (RFC 9110 §7.2), as S3
    /// services expect it in the signature.
    fn host_header(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == default_port(self.tls) {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl fmt::Display for S3Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.host_header())
    }
}

fn default_port(tls: bool) -> u16 {
    if tls {
        443
    } else {
        80
    }
}

fn is_host_name(host: &str) -> bool {
    // A host that ends in a number is an IPv4 address or a mistake (WHATWG URL, "ends in a
    // number").
    let last = host.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    // DNS host names have no underscores, but names of Compose services do.
    host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

// === impl ConnectionOptions ===

impl Default for ConnectionOptions {
    fn default() -> Self {
        ConnectionOptions {
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Some(Duration::from_secs(60)),
            read_timeout: Some(Duration::from_secs(60)),
            retries: 2,
            ca_file: None,
            verify: Verify::Full,
            tls_name: None,
        }
    }
}

// === impl Origin ===

impl Origin {
    /// The origin of a bucket.
    ///
    /// With an endpoint, path style: `endpoint/bucket/key`. Without, AWS in
    /// virtual-hosted style: `bucket.s3.region.amazonaws.com/key`; but path
    /// style for a bucket with dots in its name, which the certificate for
    /// `*.s3.region.amazonaws.com` does not cover. Source: "Virtual hosting of
    /// buckets", Amazon S3 User Guide; for China, "Amazon Web Services in
    /// China, endpoints": `amazonaws.com.cn`.
    pub fn new(bucket: Bucket) -> Origin {
        let signer = Signer::from_bucket(&bucket);
        let (endpoint, service, path_style) = match bucket.endpoint {
            Some(endpoint) => {
                let service = endpoint.host_header();
                (endpoint, service, true)
            }
            None => {
                let domain = if bucket.region.starts_with("cn-") {
                    "amazonaws.com.cn"
                } else {
                    "amazonaws.com"
                };
                let service = format!("s3.{}.{domain}", bucket.region);
                let path_style = bucket.name.contains('.') || bucket.name.is_empty();
                let host = if path_style {
                    service.clone()
                } else {
                    format!("{}.{service}", bucket.name)
                };
                (S3Endpoint::https(host), service, path_style)
            }
        };
        let base_path = if path_style {
            format!("/{}", bucket.name)
        } else {
            String::new()
        };
        Origin {
            prefix: bucket.path_prefix,
            hosts: bucket.hosts,
            host_header: endpoint.host_header(),
            endpoint,
            object_base: format!("{base_path}/{}", encode(&bucket.key_prefix)),
            base_path,
            bucket: bucket.name,
            region: bucket.region,
            key_prefix: bucket.key_prefix,
            principal: bucket.principal,
            service,
            signer,
            passthrough: bucket.passthrough,
            connection: bucket.connection,
        }
    }

    /// The prefix of the paths that this origin answers, without a trailing
    /// slash unless it is `/`.
    pub fn prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// The host names whose paths this origin answers, in lower case.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The name of the bucket as clients know it: the last segment of its path prefix, or
    /// the first label of its host name. `None`: it is the only one, at `/`.
    pub fn public_name(&self) -> Option<&str> {
        let segment = self.prefix().map(|prefix| prefix.rsplit('/').next());
        match segment.flatten() {
            Some("") | None => self.hosts.first()?.split('.').next(),
            segment => segment,
        }
    }

    /// The region of the bucket.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The beginning of all keys that are served, which clients leave out.
    pub fn key_prefix(&self) -> &str {
        &self.key_prefix
    }

    /// The identity that requests to the service have; `None`: they are unsigned.
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// The host of the service: the same for all buckets of an endpoint, or of a region of AWS.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// True if requests are relayed as clients signed them, and S3 decides on each.
    pub fn is_passthrough(&self) -> bool {
        self.passthrough
    }

    /// True if this is all buckets of the service.
    pub fn is_service(&self) -> bool {
        self.passthrough && self.bucket.is_empty()
    }

    /// The name of the bucket; empty if it is [all](Self::is_service).
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The value of the `Host` field, with the port if it is not the scheme's own.
    pub fn host_header(&self) -> &str {
        &self.host_header
    }

    /// The name or address to connect to.
    pub fn connect_host(&self) -> &str {
        self.endpoint.host()
    }

    /// The name or address expected in the certificate.
    pub fn tls_name(&self) -> &str {
        let name = self.connection.tls_name.as_deref();
        name.unwrap_or_else(|| self.connect_host())
    }

    /// A description of the way in which the service is authenticated, to be compared.
    pub(in crate::s3) fn trust(&self) -> String {
        let ConnectionOptions {
            ca_file, verify, ..
        } = &self.connection;
        match self.tls() {
            true => format!("{verify:?}:{}:{ca_file:?}", self.tls_name()),
            false => "None".to_owned(),
        }
    }

    /// The options of connections to the service.
    pub fn connection(&self) -> &ConnectionOptions {
        &self.connection
    }

    /// The TCP port to connect to.
    pub fn port(&self) -> u16 {
        self.endpoint.port()
    }

    /// True if the connection uses TLS.
    pub fn tls(&self) -> bool {
        self.endpoint.tls()
    }

    /// The path of the bucket: `/bucket`, or nothing.
    pub fn base_path(&self) -> &str {
        &self.base_path
    }

    /// The part of every request target before the encoded key of a client: the path of
    /// the bucket, a slash, and the encoded `key_prefix`.
    pub fn object_base(&self) -> &str {
        &self.object_base
    }

    /// The request target for an object: an encoded absolute path.
    pub fn target(&self, key: &ObjectKey) -> String {
        [&self.object_base, &*key.encoded()].concat()
    }

    /// The signer of requests; `None`: requests are unsigned.
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(prefix: &str, name: &str, endpoint: Option<&str>) -> Bucket {
        Bucket {
            path_prefix: Some(prefix.to_owned()),
            hosts: Vec::new(),
            name: name.to_owned(),
            key_prefix: String::new(),
            principal: None,
            region: "eu-west-1".to_owned(),
            endpoint: endpoint.map(|url| S3Endpoint::parse(url).unwrap()),
            credentials: None,
            passthrough: false,
            connection: ConnectionOptions::default(),
        }
    }

    fn origin(prefix: &str, name: &str, endpoint: Option<&str>) -> Origin {
        Origin::new(bucket(prefix, name, endpoint))
    }

    fn key(path: &str) -> ObjectKey {
        ObjectKey::from_request_path(path).unwrap()
    }

    #[test]
    fn endpoints_are_read() {
        for (url, tls, host, port, header) in [
            (
                "http://127.0.0.1:9000",
                false,
                "127.0.0.1",
                9000,
                "127.0.0.1:9000",
            ),
            ("http://minio:9000/", false, "minio", 9000, "minio:9000"),
            ("http://s3.example", false, "s3.example", 80, "s3.example"),
            (
                "http://s3.example:80",
                false,
                "s3.example",
                80,
                "s3.example",
            ),
            (
                "https://s3.example:443",
                true,
                "s3.example",
                443,
                "s3.example",
            ),
            (
                "https://s3.example:80",
                true,
                "s3.example",
                80,
                "s3.example:80",
            ),
            ("HTTPS://S3.Example", true, "s3.example", 443, "s3.example"),
            ("http://[::1]:9000", false, "::1", 9000, "[::1]:9000"),
            (
                "https://[2001:DB8::1]",
                true,
                "2001:db8::1",
                443,
                "[2001:db8::1]",
            ),
            (
                "http://my_minio-1:9000",
                false,
                "my_minio-1",
                9000,
                "my_minio-1:9000",
            ),
        ] {
            let endpoint = S3Endpoint::parse(url).unwrap_or_else(|e| panic!("{url} {e}"));
            assert_eq!(endpoint.tls(), tls, "{url}");
            assert_eq!(endpoint.host(), host, "{url}");
            assert_eq!(endpoint.port(), port, "{url}");
            assert_eq!(endpoint.host_header(), header, "{url}");
            assert_eq!(S3Endpoint::parse(&endpoint.to_string()), Ok(endpoint));
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for (url, problem) in [
            ("", "scheme"),
            ("127.0.0.1:9000", "scheme"),
            ("ftp://h", "scheme"),
            ("http://", "host"),
            ("http:///", "host"),
            ("http://:9000", "host"),
            ("http://a b", "host"),
            ("http://a..b", "host"),
            ("http://1.2.3.456", "host"),
            ("http://a\r\nb", "host"),
            ("http://::1:9000", "host"),
            ("http://[::1", "bracket"),
            ("http://[x]:1", "bracket"),
            ("http://[::1]9", "between"),
            ("http://h:0", "port"),
            ("http://h:65536", "port"),
            ("http://h:+1", "port"),
            ("http://h:", "port"),
            ("http://h:1:2", "port"),
            ("http://h/bucket", "path"),
            ("http://h?x", "query"),
            ("http://h//", "path"),
        ] {
            let error = S3Endpoint::parse(url).expect_err(url);
            assert!(error.contains(problem), "{url:?}: {error}");
        }
        let error = S3Endpoint::parse("http://user:hunter2@h").unwrap_err();
        assert!(error.contains("password") && !error.contains("hunter2"));
    }

    #[test]
    fn an_endpoint_is_asked_in_path_style() {
        let origin = origin("/a", "my-bucket", Some("http://127.0.0.1:9000"));
        assert_eq!(origin.target(&key("x/%20+")), "/my-bucket/x/%20%2B");
        assert_eq!(origin.host_header(), "127.0.0.1:9000");
        assert_eq!(
            (origin.connect_host(), origin.port(), origin.tls()),
            ("127.0.0.1", 9000, false)
        );
    }

    #[test]
    fn aws_is_asked_in_virtual_hosted_style_where_its_certificate_allows() {
        let plain = origin("/a", "my-bucket", None);
        assert_eq!(plain.host_header(), "my-bucket.s3.eu-west-1.amazonaws.com");
        assert_eq!(plain.connect_host(), plain.host_header());
        assert_eq!(plain.target(&key("k")), "/k");
        assert_eq!((plain.port(), plain.tls()), (443, true));

        let dotted = origin("/a", "www.example.com", None);
        assert_eq!(dotted.host_header(), "s3.eu-west-1.amazonaws.com");
        assert_eq!(dotted.target(&key("k")), "/www.example.com/k");

        let china = Origin::new(Bucket {
            region: "cn-north-1".to_owned(),
            ..bucket("/a", "my-bucket", None)
        });
        assert_eq!(
            china.host_header(),
            "my-bucket.s3.cn-north-1.amazonaws.com.cn"
        );
    }
}
