//! A body of which some blocks are stored, and the requests for the others.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{watch, OnceCell};

use crate::cache::state::body_file::BodyFile;
use crate::cache::state::change_counts::{ChangeCounts, Changes};
use crate::cache::state::quota::Reservation;
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::{BlockMap, EntryMeta};

/// Longest stored range that one search returns.
const MAX_STORED: u64 = 4 << 20;

/// The body of an entry in blocks. All its readers share it, so that each block is fetched once.
#[derive(Debug)]
pub struct SparseBody {
    /// The entry.
    pub id: EntryId,
    /// The file, as long as the whole body.
    pub file: Arc<BodyFile>,
    /// Length of the whole body, in bytes.
    pub len: u64,
    block_len: u32,
    state: Mutex<State>,
    /// The file, open for writing. Most bodies are only read.
    pub(crate) writer: OnceCell<Arc<File>>,
    /// Held while the metadata file is replaced: a later replacement has every block of an earlier
    /// one.
    pub(crate) recording: tokio::sync::Mutex<()>,
    /// One reference for each reader that may have blocks fetched, and this one.
    readers: Arc<()>,
}

/// A reader that may have blocks fetched. Runs go on as long as there is one.
#[derive(Debug)]
pub(crate) struct BlocksWanted {
    _readers: Arc<()>,
}

#[derive(Debug)]
struct State {
    /// The metadata without the map of blocks.
    meta: EntryMeta,
    /// CRC-32 of each stored block.
    checksums: BTreeMap<u32, u32>,
    runs: Vec<Arc<Run>>,
    /// Number of changes of the above.
    changes: u64,
    /// The last change that the metadata file has.
    recorded: u64,
    /// Reservations of blocks that were written after the entry's removal.
    kept: Vec<Reservation>,
    /// Start of the last run, if it has stored nothing.
    failed_at: Option<u64>,
}

/// Successive blocks that one request to the origin fetches.
#[derive(Debug)]
pub(crate) struct Run {
    range: Range<u64>,
    progress: watch::Sender<RunProgress>,
}

/// Progress of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunProgress {
    /// Position up to which the body can be read.
    pub written: u64,
    pub state: RunState,
}

/// State of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunState {
    /// More bytes may follow.
    Writing,
    /// All blocks are stored.
    Complete,
    /// The origin failed, for this reason.
    Failed(Arc<str>),
    /// The cache has no room. Readers have to ask the origin themselves.
    NoRoom,
}

/// What can be read at a position.
#[derive(Debug)]
pub(crate) enum Found {
    /// The file has the bytes up to this position.
    Stored(u64),
    /// They are on their way.
    Coming(Arc<Run>),
    /// Nobody has begun to fetch them. The longest run of such blocks, from here.
    Missing(Range<u64>),
}

/// The sparse bodies in use.
#[derive(Debug, Default)]
pub(crate) struct SparseBodies {
    bodies: Mutex<HashMap<EntryId, Weak<SparseBody>>>,
    /// Changes to metadata files. Counted while `bodies` is locked.
    changes: ChangeCounts,
}

/// The blocks that are being recorded.
#[derive(Debug, Default)]
pub(crate) struct Recordings(watch::Sender<usize>);

/// Blocks that are being recorded, until this is dropped.
#[derive(Debug)]
pub(crate) struct Recording(watch::Sender<usize>);

// === impl SparseBody ===

impl SparseBody {
    /// `meta` has no map of blocks.
    pub(crate) fn new(
        id: EntryId,
        file: Arc<BodyFile>,
        meta: EntryMeta,
        blocks: BlockMap,
    ) -> SparseBody {
        let BlockMap {
            block_len,
            checksums,
        } = blocks;
        SparseBody {
            id,
            file,
            len: meta.body_len,
            block_len,
            state: Mutex::new(State {
                meta,
                checksums,
                runs: Vec::new(),
                changes: 0,
                recorded: 0,
                kept: Vec::new(),
                failed_at: None,
            }),
            writer: OnceCell::new(),
            recording: tokio::sync::Mutex::default(),
            readers: Arc::default(),
        }
    }

    /// A reader that may have blocks fetched, until it is dropped.
    pub(crate) fn want(&self) -> BlocksWanted {
        BlocksWanted {
            _readers: self.readers.clone(),
        }
    }

    /// True if there is a reader that may have blocks fetched.
    pub(crate) fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.readers) > 1
    }

    /// Most bytes that the blocks take once those that are being fetched are stored.
    pub(crate) fn space(&self) -> u64 {
        let state = self.state.lock();
        let stored = state.checksums.len() as u64 * u64::from(self.block_len);
        let runs = state.runs.iter();
        let coming: u64 = runs.map(|run| run.range.end - run.range.start).sum();
        stored.saturating_add(coming)
    }

    /// True if the last run began at this position and has stored nothing.
    pub(crate) fn has_failed_at(&self, position: u64) -> bool {
        self.state.lock().failed_at == Some(position)
    }

    fn block_of(&self, position: u64) -> u32 {
        // The format allows no body with more blocks.
        u32::try_from(position / u64::from(self.block_len)).unwrap_or(u32::MAX)
    }

    /// The place of a block.
    pub(crate) fn block(&self, number: u32) -> Range<u64> {
        let len = u64::from(self.block_len);
        let start = (u64::from(number) * len).min(self.len);
        start..start.saturating_add(len).min(self.len)
    }

    /// The block at a position: its number and its place.
    pub(crate) fn block_at(&self, position: u64) -> (u32, Range<u64>) {
        let number = self.block_of(position);
        (number, self.block(number))
    }

    /// True if the block at a position is stored.
    pub(crate) fn has(&self, position: u64) -> bool {
        let number = self.block_of(position);
        self.state.lock().checksums.contains_key(&number)
    }

    /// True if all blocks of a range are stored.
    pub(crate) fn has_all(&self, range: &Range<u64>) -> bool {
        let Some(last) = range.end.checked_sub(1).filter(|last| range.start <= *last) else {
            return true;
        };
        let blocks = self.block_of(range.start)..=self.block_of(last);
        let count = (blocks.end() - blocks.start()) as usize + 1;
        self.state.lock().checksums.range(blocks).count() == count
    }

    /// Bytes of the blocks that are not stored.
    pub(crate) fn missing(&self) -> u64 {
        let state = self.state.lock();
        let length = |number: &u32| {
            let block = self.block(*number);
            block.end - block.start
        };
        let stored: u64 = state.checksums.keys().map(length).sum();
        self.len.saturating_sub(stored)
    }

    /// True if all blocks are stored.
    pub fn is_complete(&self) -> bool {
        let blocks = self.len.div_ceil(u64::from(self.block_len));
        self.state.lock().checksums.len() as u64 == blocks
    }

    /// What can be read of a range that is not empty.
    pub(crate) fn find(&self, range: &Range<u64>) -> Found {
        let state = self.state.lock();
        let first = self.block_of(range.start);
        let mut next = first;
        let limit = range.end.min(range.start.saturating_add(MAX_STORED));
        while self.block(next).start < limit && state.checksums.contains_key(&next) {
            next += 1;
        }
        if next > first {
            return Found::Stored(self.block(next).start.min(range.end));
        }
        let run = state.runs.iter();
        if let Some(run) = run.clone().find(|run| run.range.contains(&range.start)) {
            return Found::Coming(run.clone());
        }
        let stored = state.checksums.range(first..).next();
        let stored = stored.map_or(self.len, |(number, _)| self.block(*number).start);
        let coming = run.map(|run| run.range.start);
        let coming = coming.filter(|start| *start > range.start).min();
        let last = self.block_of(range.end - 1);
        let end = self.block(last).end;
        let end = end.min(stored).min(coming.unwrap_or(self.len));
        Found::Missing(self.block(first).start..end)
    }

    /// Bytes of the missing blocks of ranges that lie outside them.
    pub(crate) fn excess(&self, ranges: &[Range<u64>]) -> u64 {
        // The blocks between the ends of a range lie within it.
        let mut wanted: BTreeMap<u32, u64> = BTreeMap::new();
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let (first, last) = (self.block_of(range.start), self.block_of(range.end - 1));
            let ends = [first, last];
            for number in &ends[..if first == last { 1 } else { 2 }] {
                let block = self.block(*number);
                let overlap = range.end.min(block.end) - range.start.max(block.start);
                *wanted.entry(*number).or_default() += overlap;
            }
        }
        let state = self.state.lock();
        let is_missing = |number: u32| {
            let start = self.block(number).start;
            !state.checksums.contains_key(&number)
                && !state.runs.iter().any(|run| run.range.contains(&start))
        };
        let missing = wanted.into_iter().filter(|(number, _)| is_missing(*number));
        missing
            .map(|(number, wanted)| {
                let block = self.block(number);
                (block.end - block.start).saturating_sub(wanted)
            })
            .sum()
    }

    /// Begin to fetch missing blocks. `None`: another reader fetches some of them.
    pub(crate) fn begin_run(&self, range: Range<u64>) -> Option<Arc<Run>> {
        let mut state = self.state.lock();
        let blocks = self.block_of(range.start)..=self.block_of(range.end - 1);
        let is_taken = state.checksums.range(blocks).next().is_some()
            || state
                .runs
                .iter()
                .any(|run| run.range.start < range.end && range.start < run.range.end);
        if is_taken {
            return None;
        }
        let written = range.start;
        let run = Arc::new(Run {
            range,
            progress: watch::Sender::new(RunProgress {
                written,
                state: RunState::Writing,
            }),
        });
        state.runs.push(run.clone());
        Some(run)
    }

    /// Note that a block is in the file.
    pub(crate) fn add_block(&self, number: u32, checksum: u32) {
        let mut state = self.state.lock();
        state.checksums.insert(number, checksum);
        state.changes += 1;
    }

    /// Keep the space of blocks until the file is closed.
    pub(crate) fn keep(&self, reservation: Reservation) {
        self.state.lock().kept.push(reservation);
    }

    /// Note that a run has ended.
    pub(crate) fn end_run(&self, run: &Arc<Run>, end: RunState) {
        {
            let mut state = self.state.lock();
            state.runs.retain(|other| !Arc::ptr_eq(other, run));
            let has_nothing = run.progress.borrow().written == run.range.start;
            state.failed_at = has_nothing.then_some(run.range.start);
        }
        run.progress.send_modify(|progress| progress.state = end);
    }

    /// The metadata with the blocks that are in the file now, and the number of the last change;
    /// `None`: the metadata file has all changes.
    pub(crate) fn to_record(&self) -> Option<(EntryMeta, u64)> {
        let state = self.state.lock();
        let meta = || EntryMeta {
            blocks: Some(BlockMap {
                block_len: self.block_len,
                checksums: state.checksums.clone(),
            }),
            ..state.meta.clone()
        };
        (state.changes > state.recorded).then(|| (meta(), state.changes))
    }

    /// Replace Pingora's part of the metadata. Returns all of it without the map of blocks.
    pub(crate) fn set_header(&self, internal: Vec<u8>, header: Vec<u8>) -> EntryMeta {
        let mut state = self.state.lock();
        (state.meta.internal, state.meta.header) = (internal, header);
        state.changes += 1;
        state.meta.clone()
    }
}

// === impl Run ===

impl Run {
    /// The blocks.
    pub(crate) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The progress, and a way to wait for more.
    pub(crate) fn progress(&self) -> watch::Receiver<RunProgress> {
        self.progress.subscribe()
    }

    /// Note how far the file is written.
    pub(crate) fn advance(&self, written: u64) {
        self.progress
            .send_modify(|progress| progress.written = written);
    }
}

// === impl Recordings ===

impl Recordings {
    pub(crate) fn begin(&self) -> Recording {
        self.0.send_modify(|count| *count += 1);
        Recording(self.0.clone())
    }

    /// Wait until nothing is being recorded.
    pub(crate) async fn done(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

// === impl SparseBodies ===

impl SparseBodies {
    /// The changes to the metadata file of an entry so far.
    pub(crate) fn changes(&self, id: &EntryId) -> Changes {
        self.changes.of(id)
    }

    /// The body of an entry that was opened. If it is in use, its readers share it. `since`: the
    /// [changes](Self::changes) before its metadata was read. `None`: blocks may have been recorded
    /// meanwhile by a body that is no longer in use. The map of the opened one may lack them.
    pub(crate) fn share(&self, opened: SparseBody, since: Changes) -> Option<Arc<SparseBody>> {
        let id = opened.id;
        let mut bodies = self.bodies.lock();
        if let Some(body) = bodies.get(&id).and_then(Weak::upgrade) {
            return Some(body);
        }
        if self.changes.of(&id) != since {
            return None;
        }
        if bodies.len() == bodies.capacity() {
            bodies.retain(|_, body| body.strong_count() > 0);
        }
        let body = Arc::new(opened);
        bodies.insert(id, Arc::downgrade(&body));
        Some(body)
    }

    /// Note that the metadata file has a change of this body and all before it.
    pub(crate) fn set_recorded(&self, body: &SparseBody, change: u64) {
        body.state.lock().recorded = change;
        let _bodies = self.bodies.lock();
        self.changes.add(&body.id);
    }

    /// Number of bodies in use.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        let bodies = self.bodies.lock();
        bodies
            .values()
            .filter(|body| body.strong_count() > 0)
            .count()
    }

    /// True if later readers share this body, so that its map of blocks is the only one.
    pub(crate) fn has(&self, body: &SparseBody) -> bool {
        let bodies = self.bodies.lock();
        let shared = bodies.get(&body.id).map(Weak::as_ptr);
        shared.is_some_and(|shared| std::ptr::eq(shared, body))
    }

    /// Forget the bodies in use, whose metadata files another process may have changed: the next
    /// readers open them again.
    pub(crate) fn clear(&self) {
        let mut bodies = self.bodies.lock();
        self.changes.add_to_all();
        bodies.clear();
    }
}

impl Drop for SparseBody {
    fn drop(&mut self) {
        if let Some(file) = self.writer.take() {
            self.file.close_other(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_cache::key::CompactCacheKey;

    const BLOCK: u64 = 64 << 10;

    fn body(len: u64, stored: &[u32]) -> SparseBody {
        let file = std::fs::File::open("/dev/null").unwrap();
        let meta = EntryMeta {
            key: CompactCacheKey::default(),
            primary_key: vec![],
            generation: 1,
            stored_at: 0,
            body_len: len,
            body_crc32: 0,
            blocks: None,
            internal: vec![1],
            header: vec![2],
        };
        let blocks = BlockMap {
            block_len: BLOCK as u32,
            checksums: stored.iter().map(|number| (*number, 7)).collect(),
        };
        let id = EntryId {
            hash: [0; 16],
            generation: 1,
        };
        let file = Arc::new(BodyFile::new(Arc::new(file)));
        SparseBody::new(id, file, meta, blocks)
    }

    fn missing(found: Found) -> Range<u64> {
        match found {
            Found::Missing(range) => range,
            other => panic!("{other:?}"),
        }
    }

    fn stored(found: Found) -> u64 {
        match found {
            Found::Stored(end) => end,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn stored_blocks_are_found_up_to_a_hole() {
        let body = body(10 * BLOCK, &[2, 3, 7]);
        assert_eq!(stored(body.find(&(2 * BLOCK + 5..10 * BLOCK))), 4 * BLOCK);
        assert_eq!(
            stored(body.find(&(3 * BLOCK..3 * BLOCK + 9))),
            3 * BLOCK + 9
        );
        assert_eq!(missing(body.find(&(5..10 * BLOCK))), 0..2 * BLOCK);
        assert_eq!(
            missing(body.find(&(4 * BLOCK + 1..5 * BLOCK))),
            4 * BLOCK..5 * BLOCK
        );
        assert_eq!(
            missing(body.find(&(4 * BLOCK + 1..5 * BLOCK + 1))),
            4 * BLOCK..6 * BLOCK
        );
        assert_eq!(
            missing(body.find(&(8 * BLOCK..10 * BLOCK))),
            8 * BLOCK..10 * BLOCK
        );
    }

    #[test]
    fn a_range_is_stored_if_all_its_blocks_are() {
        let body = body(10 * BLOCK, &[1, 2, 4]);
        for (range, has) in [
            (BLOCK..3 * BLOCK, true),
            (2 * BLOCK - 1..2 * BLOCK + 1, true),
            (BLOCK - 1..BLOCK + 1, false),
            (BLOCK..5 * BLOCK, false),
            (4 * BLOCK..4 * BLOCK, true),
            (0..10 * BLOCK, false),
        ] {
            assert_eq!(body.has_all(&range), has, "{range:?}");
        }
    }

    #[test]
    fn what_is_missing_is_counted_in_bytes() {
        for (stored, expected) in [
            (&[][..], 2 * BLOCK + 100),
            (&[0], BLOCK + 100),
            (&[2], 2 * BLOCK),
            (&[0, 1, 2], 0),
        ] {
            let body = body(2 * BLOCK + 100, stored);
            assert_eq!(body.missing(), expected, "{stored:?}");
        }
    }

    #[test]
    fn what_is_fetched_beyond_a_range_is_known() {
        let body = body(10 * BLOCK + 100, &[1, 2]);
        let excess = |range: Range<u64>| body.excess(std::slice::from_ref(&range));
        assert_eq!(excess(0..BLOCK), 0);
        assert_eq!(excess(5..7), BLOCK - 2);
        assert_eq!(excess(BLOCK + 5..BLOCK + 7), 0, "it is stored");
        assert_eq!(excess(2 * BLOCK - 1..3 * BLOCK + 1), BLOCK - 1);
        assert_eq!(excess(4 * BLOCK + 1..6 * BLOCK - 1), 2);
        assert_eq!(excess(10 * BLOCK + 99..10 * BLOCK + 100), 99);
        assert_eq!(excess(7..7), 0);
        let _run = body.begin_run(0..BLOCK).unwrap();
        assert_eq!(excess(5..7), 0, "it is coming");
        let several = [4 * BLOCK..4 * BLOCK + 1, 4 * BLOCK + 9..4 * BLOCK + 11];
        assert_eq!(body.excess(&several), BLOCK - 3, "of one block");
    }

    #[test]
    fn the_last_block_is_shorter() {
        let body = body(BLOCK + 10, &[1]);
        assert_eq!(body.block(1), BLOCK..BLOCK + 10);
        assert_eq!(stored(body.find(&(BLOCK..BLOCK + 10))), BLOCK + 10);
        assert!(!body.is_complete());
        body.add_block(0, 1);
        assert!(body.is_complete());
        assert_eq!(stored(body.find(&(0..BLOCK + 10))), BLOCK + 10);
        let (meta, change) = body.to_record().unwrap();
        assert_eq!(meta.stored_len(), BLOCK + 10);
        SparseBodies::default().set_recorded(&body, change);
        assert!(body.to_record().is_none());
    }

    #[test]
    fn each_block_is_fetched_by_one_run() {
        let body = body(10 * BLOCK, &[5]);
        let run = body.begin_run(BLOCK..3 * BLOCK).unwrap();
        assert!(
            body.begin_run(2 * BLOCK..4 * BLOCK).is_none(),
            "some are coming"
        );
        assert!(
            body.begin_run(4 * BLOCK..6 * BLOCK).is_none(),
            "some are stored"
        );
        assert_eq!(missing(body.find(&(0..10 * BLOCK))), 0..BLOCK);
        assert!(matches!(
            body.find(&(2 * BLOCK..3 * BLOCK)),
            Found::Coming(_)
        ));
        assert_eq!(
            missing(body.find(&(3 * BLOCK..10 * BLOCK))),
            3 * BLOCK..5 * BLOCK
        );

        body.add_block(1, 9);
        assert_eq!(stored(body.find(&(BLOCK..10 * BLOCK))), 2 * BLOCK);
        body.end_run(&run, RunState::NoRoom);
        assert_eq!(run.progress().borrow().state, RunState::NoRoom);
        assert_eq!(
            missing(body.find(&(2 * BLOCK..10 * BLOCK))),
            2 * BLOCK..5 * BLOCK
        );
    }

    #[test]
    fn a_body_in_use_is_shared() {
        let bodies = SparseBodies::default();
        let share = |opened: SparseBody| {
            let since = bodies.changes(&opened.id);
            bodies.share(opened, since).expect("it is up to date")
        };
        let first = share(body(BLOCK, &[]));
        let second = share(body(BLOCK, &[0]));
        assert!(Arc::ptr_eq(&first, &second));
        let mut other = body(BLOCK, &[]);
        other.id.generation = 2;
        assert!(!Arc::ptr_eq(&first, &share(other)));
        drop((first, second));
        assert!(share(body(BLOCK, &[0])).is_complete());
    }

    #[test]
    fn a_body_that_was_opened_before_blocks_were_recorded_is_not_used() {
        let bodies = SparseBodies::default();
        let in_use = body(BLOCK, &[]);
        let since = bodies.changes(&in_use.id);
        let in_use = bodies.share(in_use, since).expect("it is up to date");
        let since = bodies.changes(&in_use.id);
        // Another reader reads the metadata here.
        in_use.add_block(0, 7);
        bodies.set_recorded(&in_use, 1);
        let shared = bodies.share(body(BLOCK, &[]), since);
        assert!(shared.expect("it is in use").is_complete());
        drop(in_use);
        assert!(bodies.share(body(BLOCK, &[]), since).is_none());

        let since = bodies.changes(&body(BLOCK, &[]).id);
        bodies.clear();
        assert!(bodies.share(body(BLOCK, &[]), since).is_none());
    }
}
