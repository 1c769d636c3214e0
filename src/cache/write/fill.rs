//! The task that writes a fill.

use std::sync::Arc;
use std::time::Duration;

use log::{debug, warn};
use tokio::sync::mpsc;

use crate::cache::state::fill::{Fill, NewFill, State};
use crate::cache::state::fill_permits::Permit;
use crate::cache::state::quota::Reservation;
use crate::cache::state::readers::Audience;
use crate::cache::state::stats::Cause;
use crate::cache::state::window::{self, Window};
use crate::cache::state::Core;
use crate::cache::store::format::{block_len, disk_len, BlockSums};
use crate::cache::write::block_writer::{Block, Blocks, Piece};
use crate::cache::write::checkpoints::Checkpoints;
use crate::cache::write::commit::{commit, discard, Content};
use crate::cache::write::space;

/// The reason of a fill that has no room.
pub(crate) const NO_ROOM_FOR_IT: &str = "there is no room for it in the cache";

/// The reason of a fill of a body that is too long.
pub(crate) const TOO_LARGE: &str = "it is larger than the cache or the configured limit";

/// Most pieces of a body that wait for the disk. Meanwhile a block of 256 KiB is being
/// written, a piece waits to join the next block, and one is left over. Pieces of Pingora
/// have at most 64 KiB, so this is 0.7 MB a fill.
const QUEUE: usize = 4;

/// Begin a fill: readers find it from now on.
pub(crate) fn begin(
    core: &'static Core,
    new: NewFill,
    reservation: Reservation,
    permit: Permit,
) -> (Arc<Fill>, mpsc::Sender<Piece>) {
    let fill = Fill::new(new);
    let (sender, receiver) = mpsc::channel(QUEUE);
    core.fills.add(&fill);
    // A purge while the file was being created has not seen it.
    if core.is_banned_fill(&fill) {
        core.invalidate_fills(|other| other.id == fill.id);
    }
    let task = run(core, fill.clone(), receiver, reservation, permit);
    core.io.runtime().spawn(task);
    (fill, sender)
}

/// Write a fill as its body arrives, then commit it or clean up.
async fn run(
    core: &'static Core,
    fill: Arc<Fill>,
    pieces: mpsc::Receiver<Piece>,
    mut reservation: Reservation,
    permit: Permit,
) {
    let mut blocks = Blocks::new(pieces);
    let block_len = fill
        .promised
        .and_then(|len| block_len(len, core.blocks.block_bytes));
    let mut sums = BlockSums::new(block_len.unwrap_or(u32::MAX));
    let mut checkpoints = Checkpoints::new(fill.promised.unwrap_or(0));
    let stored = (&mut sums, &mut checkpoints);
    let written = write(core, &fill, &mut blocks, stored, &mut reservation).await;
    let checkpoint = checkpoints.end().await;
    fill.ends();
    let GivenUp {
        cause,
        why,
        rest,
        is_sound,
    } = match written {
        Ok(body_len) => {
            let content = Content::Whole(sums.of_all());
            commit(core, &fill, body_len, content, reservation, checkpoint).await;
            return;
        }
        Err(given_up) => given_up,
    };
    let cause = match cause {
        Cause::Origin if fill.readers().has_ended() => Cause::Deserted,
        cause => cause,
    };
    give_up(core, &fill, cause, &why);
    fill.set_broken(cause, why);
    let written = fill.written();
    let map = sums.into_map();
    if let Some(body_len) = fill.promised {
        if is_sound && fill.is_resumable && !map.checksums.is_empty() {
            // Before its readers are told: who asks again then finds the blocks.
            let content = Content::Blocks(map);
            commit(core, &fill, body_len, content, reservation, checkpoint).await;
            return fill.advance(written, State::Broken);
        }
    }
    // The fill leaves the table before its readers are told.
    core.fills.remove(&fill);
    match rest {
        Some(block) => {
            fill.open_window(Window::new(written));
            discard(core, &fill, reservation).await;
            // The rest takes as long as the slowest reader, and no disk.
            drop(permit);
            blocks.return_permits();
            pass(core, &fill, &mut blocks, written, block).await;
        }
        None => {
            fill.advance(written, State::Broken);
            discard(core, &fill, reservation).await;
        }
    }
}

/// Count a fill that is given up. Log a warning unless clients decide how often that
/// happens.
fn give_up(core: &Core, fill: &Fill, cause: Cause, why: &str) {
    core.count_fill_error(cause);
    match cause {
        Cause::NoSpace | Cause::Deserted => {
            debug!("cache fill {fill} is given up: {why}");
        }
        _ => warn!("cache fill {fill} is given up: {why}"),
    }
}

/// Pass the body to the readers that have already joined, without storing it.
async fn pass(
    core: &'static Core,
    fill: &Arc<Fill>,
    blocks: &mut Blocks,
    mut passed: u64,
    mut block: Block,
) {
    let Some(window) = fill.window() else { return };
    let mut patience: Duration = window::PATIENCE;
    loop {
        block.permits.clear();
        let end = passed + block.len;
        let whole = check_len(fill, end, block.finish.is_some());
        let goes_on = match &whole {
            Ok(()) if block.len == 0 => true,
            Ok(()) => {
                let pushed = window.push(fill.readers(), block.data, &mut patience);
                pushed.await
            }
            Err(_) => false,
        };
        if !goes_on {
            if let Err((cause, why)) = whole {
                give_up(core, fill, cause, &why);
            }
            fill.readers().end();
            return fill.advance(passed, State::Broken);
        }
        passed = end;
        if let Some(answer) = block.finish {
            fill.advance(passed, State::Complete);
            let _ = answer.send(Ok(passed));
            return;
        }
        fill.advance(passed, State::Writing);
        match next_block(core, fill, blocks, passed).await {
            Some(next) => block = next,
            None => return fill.advance(passed, State::Broken),
        }
    }
}

/// A fill that is given up.
struct GivenUp {
    cause: Cause,
    why: String,
    /// The block that was to be written, if only the space was missing.
    rest: Option<Block>,
    /// True if nothing is wrong with what has arrived.
    is_sound: bool,
}

async fn write(
    core: &'static Core,
    fill: &Arc<Fill>,
    blocks: &mut Blocks,
    (sums, checkpoints): (&mut BlockSums, &mut Checkpoints),
    reservation: &mut Reservation,
) -> Result<u64, GivenUp> {
    let mut written = 0;
    let meta_len = reservation.meta_len();
    let given_up = |cause, why| GivenUp {
        cause,
        why,
        rest: None,
        is_sound: false,
    };
    loop {
        let Some(block) = next_block(core, fill, blocks, written).await else {
            let why = "the origin's response broke off".to_owned();
            return Err(GivenUp {
                is_sound: true,
                ..given_up(Cause::Origin, why)
            });
        };
        let end = written + block.len;
        if let Err((cause, why)) = check_len(fill, end, block.finish.is_some()) {
            return Err(given_up(cause, why));
        }
        if block.len > 0 {
            if fill.promised.is_none() {
                core.fills.count(fill, end);
            }
            // A fill without readers does not evict entries that are asked for more
            // often.
            let uses = match fill.readers().audience() {
                Audience::Present if !fill.yields_room => u8::MAX,
                Audience::Present => fill.uses(),
                Audience::Gone | Audience::Satisfied => fill.uses(),
            };
            let space = disk_len(end).saturating_add(meta_len);
            let is_too_large = end > core.max_object_bytes || space > core.max_size_bytes;
            if is_too_large || !space::grow(core, reservation, space, uses).await {
                if fill.promised.is_none() && is_too_large {
                    core.too_large.add(&fill.id.hash);
                }
                let why = match is_too_large {
                    true => TOO_LARGE,
                    false => NO_ROOM_FOR_IT,
                };
                let why = why.to_owned();
                return Err(GivenUp {
                    rest: Some(block),
                    ..given_up(Cause::NoSpace, why)
                });
            }
            let write = || {
                let data = block.data.clone();
                let written = core.backend().write(fill.body.file(), written, data);
                core.patiently(core.patience.long(), written)
            };
            if let Err(e) = space::with_disk_space(core, block.len, uses, write).await {
                let cause = Cause::of(&e);
                let why = format!("writing its body: {e}");
                return Err(GivenUp {
                    rest: Some(block).filter(|_| cause == Cause::NoSpace),
                    ..given_up(cause, why)
                });
            }
            for piece in &block.data {
                sums.update(piece);
            }
        }
        written = end;
        if let Some(answer) = block.finish {
            fill.advance(end, State::Complete);
            let _ = answer.send(Ok(end));
            return Ok(end);
        }
        fill.advance(written, State::Writing);
        if let Err(e) = checkpoints.advance(core, fill, sums, written).await {
            return Err(GivenUp {
                rest: Some(Block::default()),
                ..given_up(Cause::of(&e), format!("recording what has arrived: {e}"))
            });
        }
    }
}

/// Check that a body may have this length, and if `ends`, that it may end here.
fn check_len(fill: &Fill, len: u64, ends: bool) -> Result<(), (Cause, String)> {
    match fill.promised {
        Some(promised) if len > promised => Err(wrong_length(fill, "more")),
        Some(promised) if ends && len < promised => Err(wrong_length(fill, "fewer")),
        _ => Ok(()),
    }
}

fn wrong_length(fill: &Fill, more_or_fewer: &str) -> (Cause, String) {
    let promised = fill.promised.unwrap_or(0);
    let why = format!("the body has {more_or_fewer} bytes than its Content-Length, {promised}");
    (Cause::Origin, why)
}

/// The next block; `None`: the origin has broken off, or all readers have left. A stalled
/// origin does not keep a fill without readers.
async fn next_block(
    core: &'static Core,
    fill: &Fill,
    blocks: &mut Blocks,
    offset: u64,
) -> Option<Block> {
    let next = blocks.next_block(offset, fill.promised);
    tokio::pin!(next);
    loop {
        tokio::select! {
            biased;
            block = &mut next => return block,
            () = fill.left() => {
                // Other readers may come and go before the request that writes reads.
                let has_begun = fill.readers().has_led() || fill.has_received_any();
                if has_begun && !fill.is_wanted(&core.fills) {
                    return None;
                }
            }
        }
    }
}
