//! File descriptors: how many there may be, and who gets them.

use std::sync::Arc;

use log::{info, warn};
use pingora_core::listeners::ConnectionLimit;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

/// The most connections of clients where nothing is configured.
const MAX_CONNECTIONS: usize = 65_536;

/// The most connections to origins that are kept, as Pingora's default.
const MAX_IDLE_ORIGIN_CONNECTIONS: usize = 128;

/// The most connections of each of the listeners that clients do not reach.
const MAX_OPERATOR_CONNECTIONS: usize = 32;

/// Raise the soft limit of open files to the hard one, and return what it is then.
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
                    "limit of open files raised from {} to {}",
                    shown(limit.current),
                    shown(limit.maximum)
                );
                open_files = limit.maximum;
            }
            // macOS allows fewer than its hard limit says.
            Err(e) => warn!(
                "limit of open files stays at {}: it cannot be raised to {}: {e}",
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

/// Connections of clients: a quarter of the open files, since each may need a connection to
/// an origin and files of the cache. `configured` asks for another number, and gets it as
/// far as a quarter is left for the rest.
pub fn clients(open_files: usize, configured: Option<usize>) -> Arc<ConnectionLimit> {
    let (default, allowed) = (open_files / 4, open_files / 4 * 3);
    let max = match configured {
        None => default.min(MAX_CONNECTIONS),
        Some(max) if max > allowed => {
            warn!(
                "server.max_connections: {max} is more than three quarters of the limit of \
                 open files; lowered to {allowed}, since the limit is {open_files}"
            );
            allowed
        }
        Some(max) => max,
    };
    Arc::new(ConnectionLimit::new(max.max(1)))
}

/// Connections to origins that are kept for another request.
pub fn idle_origin_connections(open_files: usize) -> usize {
    (open_files / 16).clamp(1, MAX_IDLE_ORIGIN_CONNECTIONS)
}

/// Connections to a listener for operators, which clients' connections cannot use up.
pub fn operators(open_files: usize) -> Arc<ConnectionLimit> {
    let max = (open_files / 32).clamp(4, MAX_OPERATOR_CONNECTIONS);
    Arc::new(ConnectionLimit::new(max))
}
