//! The pieces of a body that arrive, gathered into the blocks that are written.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{timeout_at, Instant};

use crate::cache::state::fill_permits::Permit;

/// Bytes of a block. Blocks begin at multiples of this.
///
/// The kernel stores the bytes of one write(2) in the page cache in as few folios as length
/// and offset allow (`fgf_set_order()` of `<linux/pagemap.h>`). The folios stay as they are
/// for all readers of the file, and sendfile(2) and cachestat(2) take longer the more there
/// are. Pieces written as they arrive begin and end anywhere, which makes five folios for 64
/// KiB. XFS has large folios since Linux 6.6, ext4 since 6.16.
const BLOCK: u64 = 256 * 1024;

/// Most pieces of a block, however small they are.
const MAX_PIECES: usize = 256;

/// Longest time that bytes, and the readers of the fill, wait for the rest of a block. An
/// origin that sends 13 MB/s completes a block sooner.
const PATIENCE: Duration = Duration::from_millis(20);

/// The same for the first bytes, for which a client that has nothing yet waits.
const FIRST_PATIENCE: Duration = Duration::from_millis(2);

/// A message to the task that writes a fill. If the sender is dropped before it sends
/// `Finish`, the origin has broken off.
pub(crate) enum Piece {
    /// A piece of the body, and its permit to wait for the disk.
    Data(Bytes, Option<Permit>),
    /// The end of the body. The answer comes when everything is written, before the commit.
    Finish(oneshot::Sender<std::io::Result<u64>>),
}

/// The pieces of a body that arrive, gathered into blocks.
pub(crate) struct Blocks {
    pieces: mpsc::Receiver<Piece>,
    /// Messages received ahead of their time.
    received: VecDeque<Piece>,
    /// Bytes that belong to the next block.
    next: Option<Bytes>,
}

/// Bytes to be written at once.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// The bytes, in order.
    pub data: Vec<Bytes>,
    /// Number of bytes.
    pub len: u64,
    /// The permits of the pieces that arrived last.
    pub permits: Vec<Permit>,
    /// Set at the end of the body: receives the result when it is written.
    pub finish: Option<oneshot::Sender<std::io::Result<u64>>>,
}

impl Block {
    fn push(&mut self, piece: Bytes) {
        self.len += piece.len() as u64;
        self.data.push(piece);
    }
}

impl Blocks {
    pub fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Blocks {
            pieces,
            received: VecDeque::new(),
            next: None,
        }
    }

    /// Return the permits of the bytes that have arrived: they no longer wait for the disk.
    pub fn return_permits(&mut self) {
        // Only those that have arrived by now: their places are taken again at once.
        for _ in 0..self.pieces.len() {
            let Ok(piece) = self.pieces.try_recv() else {
                break;
            };
            self.received.push_back(match piece {
                Piece::Data(data, _) => Piece::Data(data, None),
                finish => finish,
            });
        }
    }

    async fn receive(&mut self) -> Option<Piece> {
        match self.received.pop_front() {
            Some(piece) => Some(piece),
            None => self.pieces.recv().await,
        }
    }

    /// The block to be written at `offset`, of a body whose length may be known; `None`: the
    /// sender is gone before the end of the body.
    pub async fn next_block(&mut self, offset: u64, promised: Option<u64>) -> Option<Block> {
        let room = BLOCK - offset % BLOCK;
        let patience = match offset {
            0 => FIRST_PATIENCE,
            _ => PATIENCE,
        };
        let mut block = Block::default();
        let mut deadline = None;
        let mut next = self.next.take();
        loop {
            if let Some(mut piece) = next {
                let fits = piece.len().min((room - block.len) as usize);
                block.push(piece.split_to(fits));
                self.next = Some(piece).filter(|next| !next.is_empty());
                let all = promised.is_some_and(|promised| offset + block.len >= promised);
                if all || block.len == room || block.data.len() == MAX_PIECES {
                    return Some(block);
                }
            }
            let received = if block.data.is_empty() {
                self.receive().await
            } else {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + patience);
                match timeout_at(deadline, self.receive()).await {
                    Ok(received) => received,
                    Err(_) => return Some(block),
                }
            };
            next = match received {
                Some(Piece::Data(piece, permit)) => {
                    block.permits.extend(permit);
                    Some(piece)
                }
                Some(Piece::Finish(answer)) => {
                    block.finish = Some(answer);
                    return Some(block);
                }
                None => return (!block.data.is_empty()).then_some(block),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::state::fill_permits::FillPermits;

    /// Blocks of these pieces, all of which have arrived.
    fn gather(pieces: impl IntoIterator<Item = Piece>) -> (mpsc::Sender<Piece>, Blocks) {
        let (sender, receiver) = mpsc::channel(1024);
        for piece in pieces {
            assert!(sender.try_send(piece).is_ok());
        }
        (sender, Blocks::new(receiver))
    }

    fn data(len: usize) -> Piece {
        Piece::Data(vec![7; len].into(), None)
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_wait_no_more_return_their_permits() {
        let permits: &'static FillPermits = Box::leak(Box::new(FillPermits::new(1, 1)));
        let mut pieces = Vec::new();
        for byte in 0..4u8 {
            let permit = permits.queue(1).await;
            pieces.push(Piece::Data(vec![byte].into(), permit));
        }
        let (sender, mut gather) = gather(pieces);
        assert!(!permits.are_free(1));
        gather.return_permits();
        assert!(permits.are_free(1));
        assert!(sender.send(data(1)).await.is_ok());
        let block = gather.next_block(0, None).await.unwrap();
        assert_eq!(block.data.concat(), [0, 1, 2, 3, 7]);
    }

    #[test]
    fn no_more_is_taken_than_has_come() {
        const PIECES: usize = 10_000;
        const QUEUE: usize = 4;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut gather = Blocks::new(receiver);
        assert!(sender.try_send(data(1)).is_ok());
        let sending = std::thread::spawn(move || {
            for _ in 0..PIECES {
                if sender.blocking_send(data(1)).is_err() {
                    break;
                }
            }
        });
        gather.return_permits();
        assert!(gather.received.len() <= QUEUE, "{}", gather.received.len());
        drop(gather);
        sending.join().expect("the sender ends");
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_become_blocks() {
        let body: Bytes = (0..250_000u32).flat_map(u32::to_le_bytes).collect();
        let mut pieces = Vec::new();
        let mut rest = body.clone();
        for len in [300_000, 70_000, 500, 600_000, 29_500] {
            pieces.push(Piece::Data(rest.split_to(len), None));
        }
        assert!(rest.is_empty());
        let (finish, _answer) = oneshot::channel();
        let (_sender, mut gather) = gather(pieces.into_iter().chain([Piece::Finish(finish)]));

        let mut written = Vec::new();
        let mut blocks = Vec::new();
        loop {
            let block = gather.next_block(written.len() as u64, None).await.unwrap();
            let before = written.len() as u64;
            block.data.iter().for_each(|piece| written.extend(piece));
            assert_eq!(written.len() as u64, before + block.len);
            blocks.push(block.len);
            if block.finish.is_some() {
                break;
            }
        }
        assert!(written == body);
        assert_eq!(blocks, [BLOCK, BLOCK, BLOCK, 1_000_000 - 3 * BLOCK]);
    }

    #[tokio::test]
    async fn a_block_begins_anywhere_and_ends_where_the_next_begins() {
        let (_sender, mut gather) = gather([data(1000), data(1000)]);

        let block = gather.next_block(BLOCK - 1500, None).await.unwrap();
        assert_eq!(block.len, 1500);
        assert_eq!(gather.next.unwrap().len(), 500);
    }

    #[tokio::test(start_paused = true)]
    async fn after_what_was_promised_nothing_is_waited_for() {
        let (sender, mut gather) = gather([data(1000), data(1000)]);
        let start = Instant::now();

        assert_eq!(gather.next_block(0, Some(2000)).await.unwrap().len, 2000);
        let (finish, _answer) = oneshot::channel();
        assert!(sender.try_send(Piece::Finish(finish)).is_ok());
        let end = gather.next_block(2000, Some(2000)).await.unwrap();
        assert!(end.len == 0 && end.finish.is_some());

        // More than that is told as well.
        assert!(sender.try_send(data(1)).is_ok());
        assert_eq!(gather.next_block(2000, Some(2000)).await.unwrap().len, 1);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn an_empty_body_ends_at_once() {
        let (finish, _answer) = oneshot::channel();
        let (_sender, mut gather) = gather([Piece::Finish(finish)]);

        let block = gather.next_block(0, Some(0)).await.unwrap();
        assert!(block.data.is_empty() && block.finish.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_origin_is_waited_for_once_a_block() {
        let (sender, mut gather) = gather([data(1000)]);
        let trickle = tokio::spawn(async move {
            loop {
                tokio::time::sleep(PATIENCE * 3 / 4).await;
                if sender.send(data(1000)).await.is_err() {
                    break;
                }
            }
        });

        // The timer's ticks are of a millisecond.
        let tick = Duration::from_millis(1);
        let start = Instant::now();
        assert_eq!(gather.next_block(0, None).await.unwrap().len, 1000);
        assert!(start.elapsed() <= FIRST_PATIENCE + tick);
        assert_eq!(gather.next_block(1000, None).await.unwrap().len, 2000);
        assert!(start.elapsed() <= PATIENCE * 3 / 4 + PATIENCE + 2 * tick);
        drop(gather);
        trickle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_pieces_are_not_hoarded() {
        let (_sender, mut gather) = gather((0..300).map(|_| data(1)));

        assert_eq!(
            gather.next_block(0, None).await.unwrap().len,
            MAX_PIECES as u64
        );
    }

    #[tokio::test]
    async fn what_came_before_the_origin_broke_off_is_written() {
        let (sender, mut gather) = gather([data(1000)]);
        drop(sender);

        assert_eq!(gather.next_block(0, None).await.unwrap().len, 1000);
        assert!(gather.next_block(1000, None).await.is_none());
    }
}
