//! Open bodies, which keep their space when they are removed.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::body_file::BodyFile;
use super::room::Claim;
use super::EntryId;

/// Entries that are remembered before those with closed bodies are dropped.
const MIN_PRUNE: usize = 1024;

/// The open bodies by entry: one that the readers of a fill share, and perhaps another
/// that was opened after the fill had become an entry.
#[derive(Debug, Default)]
pub(super) struct OpenBodies(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    bodies: HashMap<EntryId, Vec<Weak<BodyFile>>>,
    prune_at: usize,
}

impl OpenBodies {
    /// Note that a body was opened.
    pub(super) fn add(&self, id: EntryId, body: &Arc<BodyFile>) {
        let mut table = self.0.lock();
        if table.bodies.len() >= table.prune_at {
            table.bodies.retain(|_, bodies| {
                bodies.retain(|body| body.strong_count() > 0);
                !bodies.is_empty()
            });
            table.prune_at = MIN_PRUNE.max(2 * table.bodies.len());
        }
        let bodies = table.bodies.entry(id).or_default();
        bodies.retain(|body| body.strong_count() > 0);
        bodies.push(Arc::downgrade(body));
    }

    /// Note that the files of an entry are gone. Their bytes stay claimed until its bodies
    /// are closed.
    pub(super) fn hold(&self, id: &EntryId, claim: Claim) {
        let bodies = self.0.lock().bodies.remove(id).unwrap_or_default();
        let open: Vec<_> = bodies.iter().filter_map(Weak::upgrade).collect();
        if !open.is_empty() {
            let claim = Arc::new(claim.held());
            open.iter().for_each(|body| body.hold(claim.clone()));
        }
    }
}
