//! Checks that span several keys.
//!
//! They look keys up in the tree of the file, not in the model: there is no model if any value is
//! wrong, and the other values must be checked nevertheless.

use std::net::{IpAddr, SocketAddr};

use super::document::{Entry, Kind, Node};
use super::error::Place;
use super::reader::{value, Finding, Problem, Step};
use super::values::{
    Address, BucketName, Folder, HostName, LogPath, PathPrefix, Period, Secret, Service, WebOrigin,
};
use super::variables::Env;
use super::{Auth, ClientAuth, CredentialsFrom, Rotate, TlsVerify};
use crate::cache::MAX_FOLDERS;
use crate::http::response_fields::MAX_RULES;

/// The most websites of `cors.origins`.
const MAX_ORIGINS: usize = 256;

pub(super) fn check(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    prefixes(root, env, findings);
    hosts(root, env, findings);
    credentials(root, env, findings);
    auth(root, env, findings);
    passthrough(root, env, findings);
    web(root, env, findings);
    connections(root, env, findings);
    disk(root, env, findings);
    https(root, env, findings);
    listeners(root, env, findings);
    admin(root, findings);
    access_log(root, env, findings);
    traces(root, env, findings);
}

/// Checks that the prefixes of buckets do not overlap.
fn prefixes(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    let mut before: Vec<(usize, PathPrefix)> = Vec::new();
    for (index, bucket) in buckets(root) {
        let node = bucket.get("path_prefix");
        if node.is_none() && bucket.get("hosts").is_none() {
            let problem = Problem::new(
                "is missing",
                format!("{}, or name hosts instead", PathPrefix::expected()),
            );
            let path = bucket_key(index, "path_prefix");
            findings.push(finding(bucket.place, path, problem));
        }
        let Some((node, prefix)) = node.zip(value::<PathPrefix>(node, env)) else {
            continue;
        };
        if let Some((other, _)) = before.iter().find(|(_, other)| prefix.overlaps(other)) {
            let problem = Problem::new(
                format!("overlaps with buckets[{other}].path_prefix"),
                "write prefixes whose segments neither equal nor begin with those of another; \
                 / is allowed only for a single bucket",
            );
            let path = bucket_key(index, "path_prefix");
            findings.push(finding(node.place, path, problem));
        }
        before.push((index, prefix));
    }
}

/// Checks that each host leads to one bucket.
fn hosts(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    let mut before: Vec<(usize, HostName)> = Vec::new();
    for (index, bucket) in buckets(root) {
        let Some(Kind::List(hosts)) = bucket.get("hosts").map(|hosts| &hosts.kind) else {
            continue;
        };
        for (at, node) in hosts.iter().enumerate() {
            let Some(host) = value::<HostName>(Some(node), env) else {
                continue;
            };
            if let Some((other, _)) = before.iter().find(|(_, other)| *other == host) {
                let problem = Problem::new(
                    format!("is also in buckets[{other}].hosts"),
                    "name each host once",
                );
                let mut path = bucket_key(index, "hosts");
                path.push(Step::Index(at));
                findings.push(finding(node.place, path, problem));
            }
            before.push((index, host));
        }
        if hosts.is_empty() && bucket.get("path_prefix").is_none() {
            let problem = Problem::new("is an empty list", HostName::expected());
            let place = bucket
                .entry("hosts")
                .map_or(bucket.place, |entry| entry.place);
            findings.push(finding(place, bucket_key(index, "hosts"), problem));
        }
    }
}

/// Checks that keys come in pairs, and credentials from one source.
fn credentials(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    for (index, bucket) in buckets(root) {
        source_of_credentials(index, bucket, env, findings);
        let place = |name: &str| Some(bucket.entry(name)?.place);
        let (access, secret) = (place("access_key"), place("secret_key"));
        let (lone, place, missing) = match (access, secret, place("session_token")) {
            (Some(place), None, _) => ("access_key", place, "secret_key"),
            (None, Some(place), _) => ("secret_key", place, "access_key"),
            (None, None, Some(place)) => ("session_token", place, "access_key"),
            _ => continue,
        };
        let problem = Problem::new(
            format!("is missing beside {lone}"),
            "write both access_key and secret_key, or no key at all for unsigned requests",
        );
        findings.push(finding(place, bucket_key(index, missing), problem));
    }
}

fn source_of_credentials(index: usize, bucket: &Node, env: Env, findings: &mut Vec<Finding>) {
    let Some(entry) = bucket.entry("credentials") else {
        return;
    };
    let Some(from) = value::<CredentialsFrom>(Some(&entry.value), env) else {
        return;
    };
    let has = |name: &str| bucket.entry(name).is_some();
    let (problem, remedy) = match from {
        CredentialsFrom::Keys if !has("access_key") => (
            "is keys, but there are none",
            "write access_key and secret_key, or another value",
        ),
        CredentialsFrom::Chain | CredentialsFrom::None if has("access_key") => (
            "is not keys, but there are some",
            "leave out either credentials or all keys of the bucket",
        ),
        CredentialsFrom::None if has("assume_role") => (
            "is none, but a role can only be assumed with credentials",
            "write keys or chain, or leave out assume_role",
        ),
        _ => return,
    };
    let problem = Problem::new(problem, remedy);
    let path = bucket_key(index, "credentials");
    findings.push(finding(entry.place, path, problem));
}

/// Checks that each mode of authorization has the keys that it needs, and none of another mode.
fn auth(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    for (index, bucket) in buckets(root) {
        let place = |name: &str| bucket.entry(name).map(|entry| entry.place);
        let mode = match bucket.get("auth") {
            None => Some(Auth::None),
            node => value::<Auth>(node, env),
        };
        let Some(mode) = mode else { continue };
        let mut report = |name: &str, problem| {
            let place = place(name).or(place("auth")).unwrap_or(bucket.place);
            findings.push(finding(place, bucket_key(index, name), problem));
        };
        let has_clients = match bucket.get("clients").map(|clients| &clients.kind) {
            Some(Kind::List(clients)) => !clients.is_empty(),
            // Reported as a wrong type.
            clients => clients.is_some(),
        };
        for (name, of, is_there, remedy) in [
            (
                "clients",
                Auth::Sigv4,
                has_clients,
                "list the clients with access_key and secret_key",
            ),
            (
                "jwt",
                Auth::Jwt,
                bucket.get("jwt").is_some(),
                "add the section with one of jwks_file, public_key_file and hmac_key_file",
            ),
        ] {
            let mode_name = if of == Auth::Jwt { "jwt" } else { "sigv4" };
            if mode == of && !is_there {
                report(name, Problem::new("is missing", remedy));
            }
            // The operator who wrote it expects the bucket to be protected.
            if mode != of && place(name).is_some() {
                let remedy = format!("write auth: {mode_name}, or leave the key out");
                report(name, Problem::new("has no effect with this auth", remedy));
            }
        }
        same_client_twice(index, bucket, env, findings);
        key_files(index, bucket, findings);
    }
}

/// Checks that each client has its own access key.
fn same_client_twice(index: usize, bucket: &Node, env: Env, findings: &mut Vec<Finding>) {
    let Some(Kind::List(clients)) = bucket.get("clients").map(|clients| &clients.kind) else {
        return;
    };
    let mut before: Vec<(usize, Secret)> = Vec::new();
    for (at, client) in clients.iter().enumerate() {
        let prefixes = client.entry("key_prefixes");
        let is_empty = |entry: &&Entry| match &entry.value.kind {
            Kind::List(prefixes) => prefixes.is_empty(),
            _ => false,
        };
        if let Some(entry) = prefixes.filter(is_empty) {
            // It would mean all keys, but the operator may have meant none.
            let remedy = "list the beginnings of keys, or leave the key out for all keys";
            let mut path = bucket_key(index, "clients");
            path.extend([Step::Index(at), Step::Name("key_prefixes".into())]);
            let problem = Problem::new("is an empty list", remedy);
            findings.push(finding(entry.place, path, problem));
        }
        let node = client.get("access_key");
        let Some((node, key)) = node.zip(value::<Secret>(node, env)) else {
            continue;
        };
        if let Some((other, _)) = before.iter().find(|(_, other)| *other == key) {
            let problem = Problem::new(
                format!("is the same as that of clients[{other}]"),
                "give each client of a bucket an access key of its own",
            );
            let mut path = bucket_key(index, "clients");
            path.extend([Step::Index(at), Step::Name("access_key".into())]);
            findings.push(finding(node.place, path, problem));
        }
        before.push((at, key));
    }
}

/// Checks that the keys of tokens come from one file.
fn key_files(index: usize, bucket: &Node, findings: &mut Vec<Finding>) {
    let Some(jwt) = bucket
        .get("jwt")
        .filter(|jwt| matches!(jwt.kind, Kind::Section(_)))
    else {
        return;
    };
    let files = ["jwks_file", "public_key_file", "hmac_key_file"];
    let mut given = files
        .iter()
        .filter_map(|name| Some((*name, jwt.entry(name)?.place)));
    let (what, name, place) = match (given.next(), given.next()) {
        (None, _) => ("is missing", "jwks_file", jwt.place),
        (Some((first, _)), Some((name, place))) => {
            let what = match first {
                "jwks_file" => "is given beside jwks_file",
                _ => "is given beside public_key_file",
            };
            (what, name, place)
        }
        _ => return,
    };
    let remedy = "write one of jwks_file, public_key_file and hmac_key_file";
    let mut path = bucket_key(index, "jwt");
    path.push(Step::Name(name.into()));
    findings.push(finding(place, path, Problem::new(what, remedy)));
}

/// Checks that a relayed request names the bucket as S3 does, and has no key that would change it.
fn passthrough(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    for (index, bucket) in buckets(root) {
        let auth = bucket.entry("auth");
        let mode = auth.and_then(|entry| value::<Auth>(Some(&entry.value), env));
        if mode != Some(Auth::Passthrough) {
            let ttl = bucket.entry("auth_ttl").filter(|entry| {
                value::<Period>(Some(&entry.value), env).is_some_and(|ttl| !ttl.is_zero())
            });
            if bucket.get("bucket").is_none() && (auth.is_none() || mode.is_some()) {
                let problem = Problem::new("is missing", BucketName::expected());
                findings.push(finding(bucket.place, bucket_key(index, "bucket"), problem));
            }
            if let Some(entry) = ttl {
                let problem = Problem::new(
                    "has no effect without auth: passthrough",
                    "leave it out, or write auth: passthrough",
                );
                findings.push(finding(entry.place, bucket_key(index, "auth_ttl"), problem));
            }
            continue;
        }
        for (name, entry) in ["list", "list_ttl"]
            .iter()
            .filter_map(|name| Some((*name, bucket.entry(name)?)))
        {
            let problem = Problem::new(
                "has no effect with auth: passthrough, where S3 decides on lists too",
                "leave it out",
            );
            findings.push(finding(entry.place, bucket_key(index, name), problem));
        }
        for name in ["web", "response_headers", "cors", "security_headers"] {
            let Some(entry) = bucket.entry(name) else {
                continue;
            };
            // The default, which a printed configuration has too.
            if value(Some(&entry.value), env) == Some(false) {
                continue;
            }
            let problem = Problem::new(
                "is not possible with auth: passthrough, which passes on what S3 answers",
                "leave it out",
            );
            findings.push(finding(entry.place, bucket_key(index, name), problem));
        }
        if let Some(entry) = bucket.entry("key_prefix") {
            let problem = Problem::new(
                "is not possible with auth: passthrough, which relays paths unchanged",
                "leave it out",
            );
            findings.push(finding(
                entry.place,
                bucket_key(index, "key_prefix"),
                problem,
            ));
        }
        let node = bucket.get("path_prefix");
        let prefix = value::<PathPrefix>(node, env);
        let name = value::<BucketName>(bucket.get("bucket"), env);
        let expected = match &name {
            Some(name) => format!("/{}", &**name),
            None => "/".to_owned(),
        };
        let (Some(node), Some(prefix)) = (node, prefix) else {
            continue;
        };
        if *prefix != *expected {
            let problem = Problem::new(
                "is not the path of the bucket at S3, and auth: passthrough relays paths unchanged",
                format!("write {expected}, or name hosts instead"),
            );
            findings.push(finding(
                node.place,
                bucket_key(index, "path_prefix"),
                problem,
            ));
        }
    }
}

/// Checks that there are not too many rules, and that a redirect to an index document is given only
/// with one.
fn web(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    for (index, bucket) in buckets(root) {
        if let Some(entry) = bucket.entry("response_headers") {
            if matches!(&entry.value.kind, Kind::List(rules) if rules.len() > MAX_RULES) {
                let problem = Problem::new("has more than 64 rules", "merge some of them");
                let path = bucket_key(index, "response_headers");
                findings.push(finding(entry.place, path, problem));
            }
        }
        cors(index, bucket, env, findings);
        let Some(web) = bucket.get("web") else {
            continue;
        };
        let redirects = web.entry("slash_redirect");
        let redirects = redirects.filter(|entry| value(Some(&entry.value), env) == Some(true));
        let lists = value(web.get("listing"), env) == Some(true);
        if let (Some(entry), None, false) = (redirects, web.get("index"), lists) {
            let problem = Problem::new(
                "has no effect without web.index and web.listing",
                "name an index document, write listing: true, or leave it out",
            );
            let mut path = bucket_key(index, "web");
            path.push(Step::Name("slash_redirect".to_owned()));
            findings.push(finding(entry.place, path, problem));
        }
    }
}

/// Checks that not all websites may send credentials, that there are some, and not too many.
fn cors(index: usize, bucket: &Node, env: Env, findings: &mut Vec<Finding>) {
    let Some(cors) = bucket.get("cors") else {
        return;
    };
    let key = |name: &str| {
        let mut path = bucket_key(index, "cors");
        path.push(Step::Name(name.to_owned()));
        path
    };
    let Some(Kind::List(origins)) = cors.get("origins").map(|origins| &origins.kind) else {
        return;
    };
    let place = |name: &str| cors.entry(name).map_or(cors.place, |entry| entry.place);
    if origins.is_empty() || origins.len() > MAX_ORIGINS {
        let problem = Problem::new(
            "does not have 1 to 256 values",
            "name websites, or write [\"*\"]",
        );
        findings.push(finding(place("origins"), key("origins"), problem));
    }
    let is_all = |origin: &Node| value::<WebOrigin>(Some(origin), env).is_some_and(|o| &*o == "*");
    let sends = value(cors.get("credentials"), env) == Some(true);
    if sends && origins.iter().any(is_all) {
        let problem = Problem::new(
            "would let scripts of any website read with the cookies of its visitors",
            "name the websites in origins, or leave credentials out",
        );
        findings.push(finding(place("credentials"), key("credentials"), problem));
    }
}

/// Checks that the keys of TLS are given only with TLS.
fn connections(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    for (index, bucket) in buckets(root) {
        let service = value::<Service>(bucket.get("endpoint"), env);
        if service.is_none_or(|service| service.tls()) {
            continue;
        }
        for name in ["ca_file", "tls_verify", "tls_name"] {
            let Some(entry) = bucket.entry(name) else {
                continue;
            };
            // The default, which a printed configuration has too.
            if value(Some(&entry.value), env) == Some(TlsVerify::Full) {
                continue;
            }
            let problem = Problem::new(
                "is given for an endpoint without TLS",
                "write https:// in endpoint, or leave the key out",
            );
            findings.push(finding(entry.place, bucket_key(index, name), problem));
        }
    }
}

/// Checks that a cache on disk has a directory.
fn disk(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    let Some(disk) = root.get("cache").and_then(|cache| cache.get("disk")) else {
        return;
    };
    let enabled = match disk.get("enabled") {
        None => true,
        enabled => value(enabled, env).unwrap_or(false),
    };
    let key = |name: &str| ["cache", "disk", name].map(|name| Step::Name(name.into()));
    let has_path = disk.get("path").is_some();
    let Some(paths) = disk.entry("paths") else {
        if matches!(disk.kind, Kind::Section(_)) && enabled && !has_path {
            let problem = Problem::new("is missing", Folder::expected());
            findings.push(finding(disk.place, key("path").into(), problem));
        }
        return;
    };
    if has_path {
        let problem = Problem::new("is beside path", "write only one of the two");
        findings.push(finding(paths.place, key("paths").into(), problem));
    }
    let Kind::List(folders) = &paths.value.kind else {
        return;
    };
    if folders.is_empty() && !has_path {
        let remedy = "list directories as - path: DIRECTORY";
        let problem = Problem::new("is an empty list", remedy);
        findings.push(finding(paths.place, key("paths").into(), problem));
    }
    if folders.len() > MAX_FOLDERS {
        let problem = Problem::new(
            format!("has {} directories", folders.len()),
            format!("list at most {MAX_FOLDERS}"),
        );
        findings.push(finding(paths.place, key("paths").into(), problem));
        return;
    }
    let mut before: Vec<(usize, Folder)> = Vec::new();
    for (index, folder) in folders.iter().enumerate() {
        let Some((node, folder)) = folder
            .get("path")
            .and_then(|node| Some((node, value::<Folder>(Some(node), env)?)))
        else {
            continue;
        };
        let overlaps = |(_, other): &&(usize, Folder)| {
            other.starts_with(&*folder) || folder.starts_with(&**other)
        };
        if let Some((other, _)) = before.iter().find(overlaps) {
            let problem = Problem::new(
                format!("is, contains or is in cache.disk.paths[{other}].path"),
                "write separate directories, one a disk",
            );
            let mut path: Vec<_> = key("paths").into();
            path.extend([Step::Index(index), Step::Name("path".into())]);
            findings.push(finding(node.place, path, problem));
        }
        before.push((index, folder));
    }
}

/// Checks that no key of `server.tls` lacks the one that it depends on.
fn https(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    let Some(tls) = root.get("server").and_then(|server| server.get("tls")) else {
        return;
    };
    let redirects = value(tls.get("redirect"), env).unwrap_or(tls.get("redirect").is_some());
    let is_optional = value(tls.get("client_auth"), env) == Some(ClientAuth::Optional);
    for (name, has_effect, what, remedy) in [
        (
            "client_auth",
            tls.get("client_ca").is_some() || !is_optional,
            "has no effect without client_ca",
            "add client_ca, or leave the key out",
        ),
        (
            "redirect_port",
            redirects,
            "has no effect without redirect",
            "write redirect: true, or leave the key out",
        ),
    ] {
        let Some(entry) = tls.entry(name).filter(|_| !has_effect) else {
            continue;
        };
        let path = ["server", "tls", name].map(|name| Step::Name(name.into()));
        findings.push(finding(
            entry.place,
            path.into(),
            Problem::new(what, remedy),
        ));
    }
}

/// Checks that no two listeners need the same port.
fn listeners(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    const LISTENERS: [&[&str]; 4] = [
        &["server", "address"],
        &["server", "tls", "address"],
        &["metrics", "address"],
        &["admin", "address"],
    ];
    let mut before: Vec<(&[&str], Address)> = Vec::new();
    for path in LISTENERS {
        let node = path.iter().try_fold(root, |node, name| node.get(name));
        let Some((node, address)) = node.zip(value::<Address>(node, env)) else {
            continue;
        };
        let taken = before
            .iter()
            .find(|(_, other)| same_listener(&address, other));
        if let Some((other, _)) = taken {
            let problem = Problem::new(
                format!("conflicts with {}", other.join(".")),
                "give each listener a port of its own, or port 0 to let the kernel choose",
            );
            let path = path.iter().map(|name| Step::Name((*name).into())).collect();
            findings.push(finding(node.place, path, problem));
        }
        before.push((path, address));
    }
}

/// Checks that the listener for operators has an address or a socket.
fn admin(root: &Node, findings: &mut Vec<Finding>) {
    let Some(entry) = root.entry("admin") else {
        return;
    };
    let admin = &entry.value;
    let is_section = matches!(admin.kind, Kind::Section(_));
    if is_section && admin.entry("address").is_none() && admin.entry("socket").is_none() {
        let problem = Problem::new(
            "is missing",
            "write IP:PORT, such as 127.0.0.1:9091, or the path of a socket in admin.socket",
        );
        let path = ["admin", "address"].map(|name| Step::Name(name.into()));
        findings.push(finding(entry.place, path.into(), problem));
    }
}

/// Checks that only a file has a date in its name.
fn access_log(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    let Some(log) = root.get("access_log") else {
        return;
    };
    let path = value::<LogPath>(log.get("path"), env);
    let is_stdout = path.is_some_and(|path| path.file().is_none());
    let Some(entry) = log.entry("rotate").filter(|_| is_stdout) else {
        return;
    };
    if value(Some(&entry.value), env) == Some(Rotate::Daily) {
        let problem = Problem::new(
            "has no effect on standard output",
            "write the path of a file in access_log.path, or leave the key out",
        );
        let path = ["access_log", "rotate"].map(|name| Step::Name(name.into()));
        findings.push(finding(entry.place, path.into(), problem));
    }
}

/// Checks that a request to the collector has a time limit.
fn traces(root: &Node, env: Env, findings: &mut Vec<Finding>) {
    let timeout = root
        .get("traces")
        .and_then(|traces| traces.entry("timeout"));
    let Some(entry) = timeout else { return };
    let timeout = value::<Period>(Some(&entry.value), env);
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        let problem = Problem::new(
            "means no limit, and a collector that hangs would get no spans any more",
            "write a duration such as 5s, or leave the key out",
        );
        let path = ["traces", "timeout"].map(|name| Step::Name(name.into()));
        findings.push(finding(entry.place, path.into(), problem));
    }
}

/// True if the kernel would refuse the second of two listeners.
fn same_listener(a: &SocketAddr, b: &SocketAddr) -> bool {
    // `[::]` includes IPv4, see ipv6(7), IPV6_V6ONLY.
    let takes =
        |any: IpAddr, other: IpAddr| any.is_unspecified() && (any.is_ipv6() || other.is_ipv4());
    a.port() != 0
        && a.port() == b.port()
        && (a.ip() == b.ip() || takes(a.ip(), b.ip()) || takes(b.ip(), a.ip()))
}

fn buckets(root: &Node) -> impl Iterator<Item = (usize, &Node)> {
    let buckets = match root.get("buckets").map(|buckets| &buckets.kind) {
        Some(Kind::List(buckets)) => buckets.as_slice(),
        _ => &[],
    };
    buckets.iter().enumerate()
}

fn bucket_key(index: usize, name: &str) -> Vec<Step> {
    vec![
        Step::Name("buckets".into()),
        Step::Index(index),
        Step::Name(name.into()),
    ]
}

fn finding(place: Place, path: Vec<Step>, problem: Problem) -> Finding {
    Finding {
        place: Some(place),
        path,
        problem,
    }
}
