//! Open body files, which keep their space when they are removed.

use std::sync::Arc;

use crate::cache::state::body_file::BodySpace;
use crate::cache::state::places::Places;
use crate::cache::state::quota::Reservation;
use crate::cache::store::entry_id::EntryId;

/// The open body files by entry: one that the readers of a fill share, and perhaps others that
/// were opened after the fill had become an entry.
#[derive(Debug, Default)]
pub(crate) struct OpenBodies(Places<BodySpace>);

impl OpenBodies {
    /// Note that a body is about to be opened. A note after the open(2) could come after the
    /// removal.
    pub(crate) fn open(&self, id: EntryId) -> Arc<BodySpace> {
        self.0.add(id, BodySpace::at)
    }

    /// Note that the files of an entry are removed. Their bytes stay reserved until its bodies
    /// are closed.
    pub(crate) fn hold(&self, id: &EntryId, reservation: Reservation) {
        BodySpace::hold(&self.0.take(id), reservation);
    }
}
