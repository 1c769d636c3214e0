//! File descriptors: the limit, and its shares.

use std::sync::Arc;

use log::{info, warn};
use pingora_core::listeners::ConnectionLimit;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

use crate::cache::DiskCacheConfig;

/// The most client connections, unless configured.
const MAX_CONNECTIONS: usize = 65_536;

/// The most idle connections to origins; Pingora's default.
const MAX_IDLE_ORIGIN_CONNECTIONS: usize = 128;

/// The most connections of each listener for operators: those of `warm`, and some others.
const MAX_OPERATOR_CONNECTIONS: usize = 96;

/// Raise the soft limit on open files to the hard one. Returns the new limit.
///
/// Call it before the cache is opened, which keeps a share of the limit open.
pub fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let mut open_files = limit.current;
    if limit.current != limit.maximum {
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => {
                info!(
                    "limit on open files raised from {} to {}",
                    shown(limit.current),
                    shown(limit.maximum)
                );
                open_files = limit.maximum;
            }
            // macOS allows fewer open files than its hard limit.
            Err(e) => warn!(
                "limit on open files stays at {}: it cannot be raised to {}: {e}",
                shown(limit.current),
                shown(limit.maximum)
            ),
        }
    }
    open_files.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".into(), |limit| limit.to_string())
}

/// The limit of client connections, see [`max_clients`].
pub fn clients(open_files: usize, configured: Option<usize>) -> Arc<ConnectionLimit> {
    Arc::new(ConnectionLimit::new(max_clients(open_files, configured)))
}

/// The most client connections. It is a quarter of the open files, because each connection may
/// need one to an origin, and files of the cache. `configured` sets another number, up to three
/// quarters of the open files.
pub fn max_clients(open_files: usize, configured: Option<usize>) -> usize {
    let allowed = open_files / 4 * 3;
    let max = match configured {
        None => default_clients(open_files),
        Some(max) if max > allowed => {
            warn!(
                "limits.connections: {max} is more than three quarters of the limit of \
                 open files; lowered to {allowed}, since the limit is {open_files}"
            );
            allowed
        }
        Some(max) => max,
    };
    max.max(1)
}

fn default_clients(open_files: usize) -> usize {
    (open_files / 4).clamp(1, MAX_CONNECTIONS)
}

/// The most client connections, unless configured, for a process that raises its limit of open
/// files to the hard one.
pub fn default_connections() -> usize {
    default_clients(hard_limit())
}

/// The most files of the cache that are kept open, unless configured, for such a process.
pub fn default_cached_files() -> usize {
    DiskCacheConfig::new("", 0).open_files(hard_limit())
}

fn hard_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).maximum;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// The number of files that a cache keeps open, which is logged if fewer than configured are
/// allowed.
pub fn cached_files(open_files: usize, cache: &DiskCacheConfig) -> usize {
    let allowed = cache.open_files(open_files);
    if let Some(max) = cache.max_open_files.filter(|max| *max > allowed) {
        warn!(
            "cache.disk.max_open_files: {max} is more than a quarter of the limit on open files; \
             lowered to {allowed}, since the limit is {open_files}"
        );
    }
    allowed
}

/// Log the limit and its shares.
pub fn log_shares(open_files: usize, clients: usize, cached: usize) {
    info!(
        "limit on open files: {open_files}; at most {clients} client connections and {cached} \
         files of the cache"
    );
}

/// The number of idle connections to origins that are kept.
pub fn idle_origin_connections(open_files: usize) -> usize {
    (open_files / 16).clamp(1, MAX_IDLE_ORIGIN_CONNECTIONS)
}

/// The limit of connections to a listener for operators, see [`max_operators`].
pub fn operators(open_files: usize) -> Arc<ConnectionLimit> {
    Arc::new(ConnectionLimit::new(max_operators(open_files)))
}

/// The most connections to a listener for operators. Client connections do not count.
pub fn max_operators(open_files: usize) -> usize {
    (open_files / 16).clamp(4, MAX_OPERATOR_CONNECTIONS)
}
