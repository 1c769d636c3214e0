//! Types of values, each with its allowed values in words and as a check.

use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::{Glob, GlobBuilder, GlobSetBuilder};
use ipnet::IpNet;
use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use crate::jwt::Keys;
use crate::s3::S3Endpoint;

/// The longest path of a Unix socket, in bytes: `sun_path` less its NUL, see
/// unix(7).
pub(super) const MAX_SOCKET_PATH: usize = 107;

/// A value that is written as a string.
trait Text: Sized {
    /// The allowed values, in words.
    const EXPECTED: &'static str;

    /// Checks the text, whose variables are replaced.
    fn check(text: &str) -> Result<Self, Unfit>;

    /// Any value, in place of one of which a mistake has been reported.
    fn stand_in() -> Self;
}

/// The reason that a text is not a value of the type.
enum Unfit {
    /// A message that follows the value, such as "is not a region".
    Value(String),
    /// A message without the value, which may be a secret.
    Alone(&'static str),
}

/// The error of an invalid value; `what` follows the value in the message.
fn unfit<E: de::Error>(what: &str) -> E {
    // The reader adds the value as it is written, without the values of variables.
    E::invalid_value(Unexpected::Other("value"), &what)
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: Text> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::check(text).map_err(|problem| match problem {
            Unfit::Value(what) => unfit(&what),
            Unfit::Alone(what) => E::custom(what),
        })
    }

    fn visit_unit<E: de::Error>(self) -> Result<T, E> {
        Ok(T::stand_in())
    }
}

/// Wrapper types that are read as their [`Text`].
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident($inner:ty) as $target:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub(super) $inner);

        impl Deref for $name {
            type Target = $target;

            fn deref(&self) -> &$target {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_str(TextVisitor(PhantomData))
            }
        }
    )*};
}

mod web;

pub use web::{
    DocumentKey, DocumentName, ErrorStatus, FieldPattern, FieldText, Map, MapOf, ResponseField,
    WebOrigin,
};

texts! {
    /// An address to listen at, `IP:PORT`.
    Address(SocketAddr) as SocketAddr;
    /// The path of a folder.
    Folder(PathBuf) as Path;
    /// The path of a readable PEM file.
    PemFile(PathBuf) as Path;
    /// The path of a Unix socket.
    Socket(PathBuf) as Path;
    /// The path of a file to append to; `-` is standard output.
    LogPath(PathBuf) as Path;
    /// The addresses of a network.
    Network(IpNet) as IpNet;
    /// A prefix of paths. It begins with a slash and, except for `/` itself, does not end with one.
    PathPrefix(String) as str;
    /// A host name, in lower case and without a final dot.
    HostName(String) as str;
    /// The beginning of keys, ending with a slash.
    KeyPrefix(String) as str;
    /// A text that is not empty.
    Plain(String) as str;
    /// The name of a cookie or a parameter.
    FieldName(String) as str;
    /// The name of a bucket.
    BucketName(String) as str;
    /// The name of a region.
    Region(String) as str;
    /// The address of an S3 service other than AWS.
    Service(S3Endpoint) as S3Endpoint;
    /// The address of an OpenTelemetry collector, with its path.
    Collector(String) as str;
    /// A pattern for names of buckets or objects.
    Pattern(Glob) as Glob;
    /// The ARN of a role.
    RoleArn(String) as str;
    /// The external ID that the owner of a role requires.
    ExternalId(String) as str;
    /// The name of the session of an assumed role.
    SessionName(String) as str;
    /// The name in a certificate.
    TlsName(String) as str;
}

// === impl Address ===

impl Text for Address {
    const EXPECTED: &'static str = "write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080; port 0 \
                                    lets the kernel choose";

    fn check(text: &str) -> Result<Self, Unfit> {
        text.parse()
            .map(Address)
            .map_err(|_| Unfit::Value("is not an IP address with a port".into()))
    }

    fn stand_in() -> Self {
        Address(([0, 0, 0, 0], 0).into())
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

// === impl Folder ===

/// Access to the allowed values for other modules.
macro_rules! expected {
    ($($name:ident)*) => {$(
        impl $name {
            /// The allowed values, in words.
            pub(super) fn expected() -> &'static str {
                Self::EXPECTED
            }
        }
    )*};
}

expected!(BucketName Folder HostName PathPrefix);

impl Text for Folder {
    const EXPECTED: &'static str = "write the path of a directory, such as /var/cache/s3-proxy";

    fn check(text: &str) -> Result<Self, Unfit> {
        path(text).map(Folder)
    }

    fn stand_in() -> Self {
        Folder(PathBuf::new())
    }
}

impl Serialize for Folder {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0.display())
    }
}

fn path(text: &str) -> Result<PathBuf, Unfit> {
    if text.contains('\0') {
        return Err(Unfit::Value("is not a path".into()));
    }
    Ok(PathBuf::from(text))
}

// === impl PemFile ===

impl Text for PemFile {
    const EXPECTED: &'static str = "write the path of a readable PEM file";

    fn check(text: &str) -> Result<Self, Unfit> {
        let path = path(text)?;
        let is_file = std::fs::File::open(&path)
            .and_then(|file| file.metadata())
            .map(|metadata| metadata.is_file());
        match is_file {
            Ok(true) => Ok(PemFile(path)),
            Ok(false) => Err(Unfit::Value("is not a file".into())),
            Err(e) => Err(Unfit::Value(format!("cannot be opened: {e}"))),
        }
    }

    fn stand_in() -> Self {
        PemFile(PathBuf::new())
    }
}

impl Serialize for PemFile {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0.display())
    }
}

/// The longest key file, in bytes.
const MAX_KEY_FILE: u64 = 1 << 20;

/// Files with keys that sign tokens, read when the configuration is.
macro_rules! key_files {
    ($($(#[$doc:meta])* $name:ident: $read:ident, $expected:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(PathBuf, Option<Keys>);

        impl $name {
            /// The keys.
            pub fn keys(&self) -> Option<&Keys> {
                self.1.as_ref()
            }
        }

        impl Text for $name {
            const EXPECTED: &'static str = $expected;

            fn check(text: &str) -> Result<Self, Unfit> {
                let path = path(text)?;
                let bytes = read_key_file(&path)?;
                match Keys::$read(&bytes) {
                    Ok(keys) => Ok($name(path, Some(keys))),
                    Err(what) => Err(Unfit::Value(what.into())),
                }
            }

            fn stand_in() -> Self {
                $name(PathBuf::new(), None)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_str(TextVisitor(PhantomData))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(&self.0.display())
            }
        }
    )*};
}

key_files! {
    /// A set of keys.
    JwksFile: from_jwks,
        "write the path of a JSON Web Key Set with keys for RS256, ES256, EdDSA or HS256";
    /// A public key.
    PublicKeyFile: from_public_pem,
        "write the path of a PEM file with one public key: RSA, P-256 or Ed25519";
    /// A secret.
    HmacKeyFile: from_secret,
        "write the path of a file that holds nothing but the secret, at least 32 bytes";
}

fn read_key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Unfit> {
    let cannot = |e: std::io::Error| Unfit::Value(format!("cannot be read: {e}"));
    let mut bytes = Zeroizing::new(Vec::new());
    // Only regular files are opened: a pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(Unfit::Value("is not a file".into()));
    }
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(MAX_KEY_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > MAX_KEY_FILE {
        return Err(Unfit::Value("is larger than 1 MiB".into()));
    }
    Ok(bytes)
}

// === impl Plain ===

impl Text for Plain {
    const EXPECTED: &'static str = "write a text that is not empty";

    fn check(text: &str) -> Result<Self, Unfit> {
        match text.is_empty() {
            true => Err(Unfit::Value("is empty".into())),
            false => Ok(Plain(text.to_owned())),
        }
    }

    fn stand_in() -> Self {
        Plain(String::new())
    }
}

impl Serialize for Plain {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl FieldName ===

impl Text for FieldName {
    const EXPECTED: &'static str = "write a name of letters, digits, - and _";

    fn check(text: &str) -> Result<Self, Unfit> {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        match !text.is_empty() && text.bytes().all(is_name) {
            true => Ok(FieldName(text.to_owned())),
            false => Err(Unfit::Value("is not a name".into())),
        }
    }

    fn stand_in() -> Self {
        FieldName(String::new())
    }
}

impl Serialize for FieldName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl Socket ===

impl Text for Socket {
    const EXPECTED: &'static str = "write the path of a Unix socket, at most 107 bytes, such as \
                                    /run/s3-proxy/upgrade.sock";

    fn check(text: &str) -> Result<Self, Unfit> {
        if text.len() > MAX_SOCKET_PATH {
            return Err(Unfit::Value("is too long for a socket".into()));
        }
        path(text).map(Socket)
    }

    fn stand_in() -> Self {
        Socket(PathBuf::new())
    }
}

impl Serialize for Socket {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0.display())
    }
}

// === impl LogPath ===

impl LogPath {
    /// The file; `None`: standard output.
    pub fn file(&self) -> Option<&Path> {
        (self.0 != Path::new("-")).then_some(&self.0)
    }
}

impl Text for LogPath {
    const EXPECTED: &'static str = "write the path of a file, such as \
                                    /var/log/s3-proxy/access.log, or '-' for standard output";

    fn check(text: &str) -> Result<Self, Unfit> {
        path(text).map(LogPath)
    }

    fn stand_in() -> Self {
        LogPath(PathBuf::new())
    }
}

impl Serialize for LogPath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0.display())
    }
}

// === impl Network ===

impl Text for Network {
    const EXPECTED: &'static str =
        "write an address or a network, such as 192.0.2.1, 10.0.0.0/8 or \
                                    2001:db8::/32";

    fn check(text: &str) -> Result<Self, Unfit> {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        let network = address.or_else(|_| text.parse::<IpNet>());
        let network = network.map_err(|_| Unfit::Value("is not a network".into()))?;
        // It may be a mistake in the address or in the length.
        if network != network.trunc() {
            return Err(Unfit::Value(format!(
                "has bits beyond its prefix length; the network is {}",
                network.trunc()
            )));
        }
        if is_everything(&network) {
            return Err(Unfit::Value(
                "is every address, so any client could state the address and id of its requests"
                    .into(),
            ));
        }
        Ok(Network(network))
    }

    fn stand_in() -> Self {
        Network(IpAddr::from([0, 0, 0, 0]).into())
    }
}

/// True for a network of all addresses of IPv4 or IPv6. Those of IPv4 may be written as IPv6 (RFC
/// 4291 §2.5.5.2).
fn is_everything(network: &IpNet) -> bool {
    let is_mapped = match network {
        IpNet::V4(_) => false,
        IpNet::V6(network) => {
            network.prefix_len() <= 96 && network.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped())
        }
    };
    network.prefix_len() == 0 || is_mapped
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

// === impl PathPrefix ===

impl Text for PathPrefix {
    const EXPECTED: &'static str = "write / or a path such as /assets: segments of letters, \
                                    digits and -._~!$&'()*+,;=:@";

    fn check(text: &str) -> Result<Self, Unfit> {
        if text == "/" {
            return Ok(PathPrefix(text.to_owned()));
        }
        let Some(path) = text.strip_prefix('/') else {
            return Err(Unfit::Value("does not start with /".into()));
        };
        // The prefix is compared with the raw path. A character that clients must or may encode
        // would never match, or in one spelling only.
        let is_literal = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
        let is_segment =
            |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_literal);
        let path = path.strip_suffix('/').unwrap_or(path);
        if !path.split('/').all(is_segment) {
            return Err(Unfit::Value("is not a literal path".into()));
        }
        Ok(PathPrefix(format!("/{path}")))
    }

    fn stand_in() -> Self {
        PathPrefix("/".into())
    }
}

impl PathPrefix {
    /// True if a path can be under both prefixes.
    pub(super) fn overlaps(&self, other: &PathPrefix) -> bool {
        let under = |path: &str, prefix: &str| {
            path.strip_prefix(prefix.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        under(self, other) || under(other, self)
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PathPrefix {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl HostName ===

impl Text for HostName {
    const EXPECTED: &'static str = "write a host name such as assets.example.com, without \
                                    scheme, port and path";

    fn check(text: &str) -> Result<Self, Unfit> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // A name that ends in a number is an IP address (WHATWG URL, "ends in a number").
        let last = name.rsplit('.').next().unwrap_or_default();
        let valid = name.len() <= 253
            && name.split('.').all(is_label)
            && !last.bytes().all(|b| b.is_ascii_digit());
        if !valid {
            return Err(Unfit::Value("is not a host name".into()));
        }
        Ok(HostName(name.to_ascii_lowercase()))
    }

    fn stand_in() -> Self {
        HostName(String::new())
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl KeyPrefix ===

impl Text for KeyPrefix {
    const EXPECTED: &'static str = "write the beginning of keys up to a slash, such as team-a/: \
                                    segments other than . and .., at most 512 bytes";

    fn check(text: &str) -> Result<Self, Unfit> {
        let Some(path) = text.strip_suffix('/') else {
            // Otherwise dot segments of a key could lead to another name with this beginning.
            return Err(Unfit::Value("does not end in /".into()));
        };
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..");
        if text.len() > 512 || !path.split('/').all(is_segment) {
            return Err(Unfit::Value("is not the beginning of keys".into()));
        }
        Ok(KeyPrefix(text.to_owned()))
    }

    fn stand_in() -> Self {
        KeyPrefix(String::new())
    }
}

impl Serialize for KeyPrefix {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl BucketName ===

impl Text for BucketName {
    const EXPECTED: &'static str = "write 3 to 63 of a-z, 0-9, - and ., with a letter or digit \
                                    at both ends and no two dots in a row, not an IP address";

    fn check(name: &str) -> Result<Self, Unfit> {
        // "General purpose bucket naming rules", Amazon S3 User Guide, without the reserved prefixes
        // and suffixes, which AWS itself refuses.
        let valid = (3..=63).contains(&name.len())
            && name.chars().all(|c| is_plain(c) || c == '-' || c == '.')
            && name.starts_with(is_plain)
            && name.ends_with(is_plain)
            && !name.contains("..")
            && name.parse::<IpAddr>().is_err();
        if !valid {
            return Err(Unfit::Value("is not a bucket name".into()));
        }
        Ok(BucketName(name.to_owned()))
    }

    fn stand_in() -> Self {
        BucketName(String::new())
    }
}

impl Serialize for BucketName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

// === impl Region ===

impl Text for Region {
    const EXPECTED: &'static str =
        "write a region such as us-east-1: a-z, 0-9 and -, at most 63 characters";

    fn check(region: &str) -> Result<Self, Unfit> {
        // It is a label of a host name, and part of every signature.
        let valid = region.len() <= 63
            && region.chars().all(|c| is_plain(c) || c == '-')
            && region.starts_with(is_plain)
            && region.ends_with(is_plain);
        if !valid {
            return Err(Unfit::Value("is not a region".into()));
        }
        Ok(Region(region.to_owned()))
    }

    fn stand_in() -> Self {
        Region(String::new())
    }
}

impl Serialize for Region {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl Service ===

impl Text for Service {
    const EXPECTED: &'static str =
        "write http://HOST[:PORT] or https://HOST[:PORT], or leave the key out for AWS";

    fn check(url: &str) -> Result<Self, Unfit> {
        // The message does not repeat the URL, which may contain a password.
        S3Endpoint::parse(url).map(Service).map_err(Unfit::Alone)
    }

    fn stand_in() -> Self {
        Service(S3Endpoint::https(String::new()))
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

// === impl Collector ===

impl Collector {
    /// The path of traces ("OTLP/HTTP Request", OpenTelemetry Protocol Specification).
    const PATH: &'static str = "/v1/traces";
}

impl Text for Collector {
    const EXPECTED: &'static str =
        "write http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH], such as \
         http://localhost:4318";

    fn check(url: &str) -> Result<Self, Unfit> {
        let authority = url.find("://").map_or(0, |at| at + "://".len());
        let path = url[authority..]
            .find('/')
            .map_or(url.len(), |at| authority + at);
        let (service, path) = url.split_at(path);
        // The message does not repeat the URL, which may contain a password.
        let service = S3Endpoint::parse(service).map_err(Unfit::Alone)?;
        let is_path = |b: u8| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b);
        if !path.bytes().all(is_path) {
            return Err(Unfit::Alone(
                "has a query, or a character that is not one of a path",
            ));
        }
        let path = match path {
            "" | "/" => Collector::PATH,
            path => path,
        };
        Ok(Collector(format!("{service}{path}")))
    }

    fn stand_in() -> Self {
        Collector(String::new())
    }
}

impl Serialize for Collector {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl SecretField ===

impl SecretField {
    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Text for SecretField {
    const EXPECTED: &'static str =
        "write the value of a header field, with ${NAME} to take a secret from the environment";

    fn check(text: &str) -> Result<Self, Unfit> {
        let is_field = |b: u8| b.is_ascii_graphic() || b == b' ';
        if text.trim().is_empty() || !text.bytes().all(is_field) {
            return Err(Unfit::Alone(
                "is empty, or holds a line end or a character that is not ASCII",
            ));
        }
        Ok(SecretField(text.to_owned().into()))
    }

    fn stand_in() -> Self {
        SecretField(String::new().into())
    }
}

impl<'de> Deserialize<'de> for SecretField {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(TextVisitor(PhantomData))
    }
}

impl fmt::Debug for SecretField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for SecretField {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(REDACTED)
    }
}

// === impl RoleArn ===

impl Text for RoleArn {
    const EXPECTED: &'static str =
        "write the ARN of a role, such as arn:aws:iam::123456789012:role/reader";

    fn check(arn: &str) -> Result<Self, Unfit> {
        // "AssumeRole", AWS Security Token Service API Reference. MinIO takes any.
        let valid = (20..=2048).contains(&arn.len())
            && arn.starts_with("arn:")
            && arn.matches(':').count() >= 5
            && arn.bytes().all(|b| b.is_ascii_graphic());
        if !valid {
            return Err(Unfit::Value("is not an ARN".into()));
        }
        Ok(RoleArn(arn.to_owned()))
    }

    fn stand_in() -> Self {
        RoleArn(String::new())
    }
}

impl Serialize for RoleArn {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl ExternalId ===

impl Text for ExternalId {
    const EXPECTED: &'static str = "write 2 to 1224 letters, digits and +=,.@:/-_";

    fn check(id: &str) -> Result<Self, Unfit> {
        // "AssumeRole", AWS Security Token Service API Reference.
        let valid = (2..=1224).contains(&id.len()) && is_sts_text(id, b"+=,.@:/-_");
        if !valid {
            return Err(Unfit::Value("is not an external ID".into()));
        }
        Ok(ExternalId(id.to_owned()))
    }

    fn stand_in() -> Self {
        ExternalId(String::new())
    }
}

impl Serialize for ExternalId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl SessionName ===

impl Text for SessionName {
    const EXPECTED: &'static str = "write 2 to 64 letters, digits and +=,.@-_";

    fn check(name: &str) -> Result<Self, Unfit> {
        // "AssumeRole", AWS Security Token Service API Reference.
        let valid = (2..=64).contains(&name.len()) && is_sts_text(name, b"+=,.@-_");
        if !valid {
            return Err(Unfit::Value("is not a session name".into()));
        }
        Ok(SessionName(name.to_owned()))
    }

    fn stand_in() -> Self {
        SessionName(String::new())
    }
}

impl Serialize for SessionName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

// === impl TlsName ===

impl Text for TlsName {
    const EXPECTED: &'static str = "write a host name or an IP address, without a port";

    fn check(name: &str) -> Result<Self, Unfit> {
        let is_address = name.parse::<IpAddr>().is_ok();
        let is_host = S3Endpoint::parse(&format!("https://{name}"))
            .is_ok_and(|endpoint| endpoint.host().eq_ignore_ascii_case(name));
        if !is_address && !is_host {
            return Err(Unfit::Value("is not a host name".into()));
        }
        Ok(TlsName(name.to_ascii_lowercase()))
    }

    fn stand_in() -> Self {
        TlsName(String::new())
    }
}

impl Serialize for TlsName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

fn is_sts_text(text: &str, others: &[u8]) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
}

/// The longest pattern, in bytes: the length of the longest key.
const MAX_PATTERN: usize = 1024;

// === impl Pattern ===

impl Pattern {
    /// The pattern that matches all names.
    pub(super) fn any() -> Pattern {
        Pattern::check("*").unwrap_or_else(|_| Self::stand_in())
    }
}

impl Text for Pattern {
    const EXPECTED: &'static str = "write a pattern of at most 1024 bytes: * for any characters, \
                                    slashes too, ? for one, [a-z] and {jpg,png} for choices, and \
                                    a backslash before a literal one of these";

    fn check(text: &str) -> Result<Self, Unfit> {
        if text.is_empty() || text.len() > MAX_PATTERN {
            return Err(Unfit::Value("is not a pattern".into()));
        }
        let glob = GlobBuilder::new(text).backslash_escape(true).build();
        // A pattern may be too large to be compiled.
        let compiled = glob.and_then(|glob| {
            let mut set = GlobSetBuilder::new();
            set.add(glob.clone()).build().map(|_| glob)
        });
        compiled
            .map(Pattern)
            .map_err(|e| Unfit::Value(format!("is not a pattern: {}", e.kind())))
    }

    fn stand_in() -> Self {
        // The empty pattern is valid.
        Pattern(Glob::new("").unwrap_or_else(|_| unreachable!("a pattern without characters")))
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.glob())
    }
}

/// A text that no message, `Debug` output or printed configuration contains, and that is overwritten
/// in memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// The value of a header field, which may be a secret. `Debug` and `Serialize` write a placeholder.
#[derive(Clone)]
pub struct SecretField(Zeroizing<String>);

// === impl Secret ===

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Text for Secret {
    const EXPECTED: &'static str = "write ${NAME} to take it from the environment, or leave out \
                                    all keys of the bucket for unsigned requests";

    fn check(text: &str) -> Result<Self, Unfit> {
        // A line end would end the header field.
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Unfit::Alone(
                "holds a space, a line end or a character that is not ASCII, perhaps copied along \
                 with the key",
            ));
        }
        Ok(Secret(text.to_owned().into()))
    }

    fn stand_in() -> Self {
        Secret(String::new().into())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(TextVisitor(PhantomData))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(REDACTED)
    }
}

/// The text in place of a secret.
pub(super) const REDACTED: &str = "[redacted]";

/// The secret of operators, with which they identify themselves at the admin address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(Secret);

/// The text in place of a token. It has the length of one.
const REDACTED_TOKEN: &str = "[redacted-token]";

// === impl Token ===

impl Token {
    /// The token itself.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl Text for Token {
    const EXPECTED: &'static str =
        "write ${NAME} to take it from the environment: 16 to 512 visible \
                                    ASCII characters, such as those of openssl rand -hex 32";

    fn check(text: &str) -> Result<Self, Unfit> {
        let Ok(token) = Secret::check(text) else {
            return Err(Unfit::Alone(
                "holds a space, a line end or a character that is not ASCII",
            ));
        };
        match (16..=512).contains(&text.len()) {
            true => Ok(Token(token)),
            false => Err(Unfit::Alone("is too short to be secret, or too long")),
        }
    }

    fn stand_in() -> Self {
        Token(Secret::stand_in())
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(TextVisitor(PhantomData))
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(REDACTED_TOKEN)
    }
}

/// A duration, written with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub(super) Duration);

/// The units of durations and their milliseconds, the smallest first.
const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60 * 1000),
    ("h", 3600 * 1000),
    ("d", 86400 * 1000),
];

struct PeriodVisitor;

// === impl Period ===

impl Period {
    /// The longest duration.
    pub(super) const LONGEST: Duration = Duration::from_secs(365 * 86400);

    pub(super) const fn from_secs(secs: u64) -> Period {
        Period(Duration::from_secs(secs))
    }

    /// The duration; `None` if it is zero, which often means off.
    pub fn non_zero(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl Deref for Period {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl Visitor<'_> for PeriodVisitor {
    type Value = Period;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(
            "write a whole number with a unit ms, s, m, h or d, such as 500ms, 60s or 1h, at \
             most 365d, or 0",
        )
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Period, E> {
        match number {
            0 => Ok(Period(Duration::ZERO)),
            _ => Err(unfit("has no unit")),
        }
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Period, E> {
        Err(unfit("has no unit"))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Period, E> {
        Err(unfit("has no unit"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
        if text == "0" {
            return Ok(Period(Duration::ZERO));
        }
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let digits = &text[..text.len() - unit.len()];
        let Some((_, unit_ms)) = UNITS.into_iter().find(|(name, _)| *name == unit) else {
            return Err(unfit("is not a duration"));
        };
        if digits.is_empty() {
            return Err(unfit("is not a duration"));
        }
        // Only digits: a failure to parse means that there are too many.
        digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit_ms))
            .map(Duration::from_millis)
            .filter(|duration| *duration <= Period::LONGEST)
            .map(Period)
            .ok_or_else(|| unfit("is out of range"))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Period, E> {
        Ok(Period(Duration::ZERO))
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PeriodVisitor)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        match UNITS.into_iter().rfind(|(_, unit)| ms % unit == 0) {
            Some((name, unit)) if ms > 0 => write!(f, "{}{name}", ms / unit),
            _ => f.write_str("0"),
        }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    V1_2,
    /// RFC 8446.
    V1_3,
}

struct TlsVersionVisitor;

// === impl TlsVersion ===

impl Visitor<'_> for TlsVersionVisitor {
    type Value = TlsVersion;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("write 1.2 or 1.3")
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<TlsVersion, E> {
        Err(unfit("is not a supported version of TLS"))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<TlsVersion, E> {
        self.visit_u64(0)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<TlsVersion, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<TlsVersion, E> {
        match text {
            "1.2" => Ok(TlsVersion::V1_2),
            "1.3" => Ok(TlsVersion::V1_3),
            _ => self.visit_u64(0),
        }
    }

    fn visit_unit<E: de::Error>(self) -> Result<TlsVersion, E> {
        Ok(TlsVersion::default())
    }
}

impl<'de> Deserialize<'de> for TlsVersion {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TlsVersionVisitor)
    }
}

impl Serialize for TlsVersion {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match self {
            TlsVersion::V1_2 => "1.2",
            TlsVersion::V1_3 => "1.3",
        })
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Whole<T, const MIN: u64, const MAX: u64>(pub(super) T);

struct WholeVisitor<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

// === impl Whole ===

impl<T, const MIN: u64, const MAX: u64> Deref for Whole<T, MIN, MAX> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: TryFrom<u64>, const MIN: u64, const MAX: u64> Visitor<'_> for WholeVisitor<T, MIN, MAX> {
    type Value = Whole<T, MIN, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "write a whole number from {MIN} to {MAX}")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        if !(MIN..=MAX).contains(&number) {
            return Err(unfit("is out of range"));
        }
        match T::try_from(number) {
            Ok(number) => Ok(Whole(number)),
            Err(_) => Err(unfit("is out of range")),
        }
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        self.visit_u64(MIN)
    }
}

impl<'de, T: TryFrom<u64>, const MIN: u64, const MAX: u64> Deserialize<'de> for Whole<T, MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_u64(WholeVisitor(PhantomData))
    }
}

/// A whole number from `MIN` to `MAX`; `None`: `auto`, a default that depends on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoOr<T, const MIN: u64, const MAX: u64>(pub(super) Option<T>);

struct AutoOrVisitor<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

// === impl AutoOr ===

const AUTO: &str = "auto";

impl<T, const MIN: u64, const MAX: u64> Deref for AutoOr<T, MIN, MAX> {
    type Target = Option<T>;

    fn deref(&self) -> &Option<T> {
        &self.0
    }
}

impl<T: TryFrom<u64>, const MIN: u64, const MAX: u64> Visitor<'_> for AutoOrVisitor<T, MIN, MAX> {
    type Value = AutoOr<T, MIN, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "write {AUTO} or a whole number from {MIN} to {MAX}")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        let Whole(number) = WholeVisitor::<T, MIN, MAX>(PhantomData).visit_u64(number)?;
        Ok(AutoOr(Some(number)))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Err(unfit("is out of range"))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Err(unfit("is not a whole number"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        if text == AUTO {
            return Ok(AutoOr(None));
        }
        match text.parse() {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(unfit("is neither auto nor a whole number")),
        }
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(AutoOr(None))
    }
}

impl<'de, T: TryFrom<u64>, const MIN: u64, const MAX: u64> Deserialize<'de>
    for AutoOr<T, MIN, MAX>
{
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AutoOrVisitor(PhantomData))
    }
}

impl<T: Serialize, const MIN: u64, const MAX: u64> Serialize for AutoOr<T, MIN, MAX> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            None => to.serialize_str(AUTO),
            Some(number) => number.serialize(to),
        }
    }
}

/// Numbers with fractions, in a range.
macro_rules! decimals {
    ($($(#[$doc:meta])* $name:ident: $min:literal..=$max:literal, $expected:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name(pub(super) f64);

        impl Deref for $name {
            type Target = f64;

            fn deref(&self) -> &f64 {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Decimal;

                impl Visitor<'_> for Decimal {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_f64<E: de::Error>(self, number: f64) -> Result<$name, E> {
                        // Infinities and NaN are out of range.
                        if !($min..=$max).contains(&number) {
                            return Err(unfit("is out of range"));
                        }
                        Ok($name(number))
                    }

                    fn visit_unit<E: de::Error>(self) -> Result<$name, E> {
                        Ok($name($min))
                    }
                }

                from.deserialize_f64(Decimal)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                // 10, not 10.0.
                match self.0.fract() == 0.0 {
                    true => to.serialize_u64(self.0 as u64),
                    false => to.serialize_f64(self.0),
                }
            }
        }
    )*};
}

decimals! {
    /// A share of a whole.
    Share: 0.0..=1.0, "write a share from 0 to 1; 0: always, 1: never";
    /// A share of requests.
    SampleRatio: 0.0..=1.0, "write a share from 0 to 1; 0: none, 1: all";
    /// A size in gigabytes of 10^9 bytes: the SI unit, as disks are sold.
    Gigabytes: 0.001..=1e6,
        "write a number of gigabytes (10^9 bytes) from 0.001 to 1000000, such as 0.5";
    /// A size in megabytes of 10^6 bytes; 0: none.
    Megabytes: 0.0..=1e6, "write a number of megabytes (10^6 bytes) from 0 to 1000000; 0: none";
    /// A budget in megabytes of 10^6 bytes a minute; 0: no limit.
    MegabytesPerMinute: 0.0..=1e6,
        "write a number of megabytes (10^6 bytes) from 0 to 1000000; 0: no limit";
    /// A rate in megabytes of 10^6 bytes a second; 0: off.
    MegabytesPerSecond: 0.0..=1e4,
        "write a number of megabytes (10^6 bytes) a second from 0 to 10000; 0: off";
}

// === impl Gigabytes ===

impl Gigabytes {
    const UNIT: f64 = 1e9;

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        // The cast saturates; what is read from a file is far from the limit.
        (self.0 * Self::UNIT).round() as u64
    }
}

/// Conversions between megabytes and bytes.
macro_rules! megabytes {
    ($($name:ident)*) => {$(
        impl $name {
            const UNIT: f64 = 1e6;

            pub(super) fn from_bytes(bytes: u64) -> $name {
                $name(bytes as f64 / Self::UNIT)
            }

            /// In bytes.
            pub fn bytes(self) -> u64 {
                (self.0 * Self::UNIT).round() as u64
            }
        }
    )*};
}

megabytes!(Megabytes MegabytesPerMinute MegabytesPerSecond);
