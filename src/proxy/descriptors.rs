//! File descriptors: how many there may be, and who gets them.

use std::sync::Arc;

use log::{info, warn};
use pingora_core::listeners::ConnectionLimit;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

/// The most connections of clients where nothing is configured.
const MAX_CONNECTIONS: usize = 65_536;

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

/// Connections of clients: half of the open files, since the other half is for the cache's
/// files, connections to origins, and the listeners of operators. `configured` asks for
/// another number, and gets it as far as a quarter is left for the rest.
pub fn clients(open_files: usize, configured: Option<usize>) -> Arc<ConnectionLimit> {
    let max = match configured {
        None => (open_files / 2).min(MAX_CONNECTIONS),
        Some(max) if max > open_files / 4 * 3 => {
            let allowed = open_files / 4 * 3;
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

/// Connections to a listener for operators, which clients' connections cannot use up.
pub fn operators(open_files: usize) -> Arc<ConnectionLimit> {
    let max = (open_files / 32).clamp(4, MAX_OPERATOR_CONNECTIONS);
    Arc::new(ConnectionLimit::new(max))
}
