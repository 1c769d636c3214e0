//! What comes of a body, gathered to be written in blocks.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{timeout_at, Instant};

use crate::cache::state::permits::Turn;
use crate::cache::write::fill::Piece;

/// Bytes that are written at once, from a multiple of their number on.
///
/// The kernel keeps what one write(2) adds to the page cache in as few folios as
/// its length and its offset allow (`fgf_set_order()` of `<linux/pagemap.h>`), and
/// they stay as they are for all who read the file: sendfile(2) and cachestat(2)
/// take longer, the more there are. Written as they come, the pieces of a body
/// end up in five folios for 64 KiB, since they begin and end anywhere. XFS has
/// such folios since Linux 6.6, ext4 since 6.16.
const BLOCK: u64 = 256 * 1024;

/// Most pieces that are written at once, however small they are.
const MAX_PIECES: usize = 256;

/// How long what has come waits for the rest of its block, and with it who reads
/// the fill. An origin that sends 13 MB/s is not waited for.
const PATIENCE: Duration = Duration::from_millis(20);

/// The same for the first bytes: a client waits for them, and has nothing yet.
const FIRST_PATIENCE: Duration = Duration::from_millis(2);

/// The receiving end of a fill's pieces.
pub(crate) struct Gather {
    pieces: mpsc::Receiver<Piece>,
    /// Bytes received ahead of their time.
    received: VecDeque<Piece>,
    /// What belongs to the next block.
    rest: Option<Bytes>,
}

/// What is to be written.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// The bytes, in order.
    pub data: Vec<Bytes>,
    /// How many they are.
    pub len: u64,
    /// The turns of the pieces that came last.
    pub turns: Vec<Turn>,
    /// The body ends here; who is told when it is written.
    pub finish: Option<oneshot::Sender<std::io::Result<u64>>>,
}

impl Block {
    fn push(&mut self, piece: Bytes) {
        self.len += piece.len() as u64;
        self.data.push(piece);
    }
}

impl Gather {
    pub fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Gather {
            pieces,
            received: VecDeque::new(),
            rest: None,
        }
    }

    /// Nothing that has come waits for the disk any more: give back its turns.
    pub fn wait_no_more(&mut self) {
        // No more than have come by now: their places are taken again at once.
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

    /// What is to be written at `offset`, of a body whose length may be known;
    /// `None` when there will not be more, and nobody said that this was all.
    pub async fn next(&mut self, offset: u64, promised: Option<u64>) -> Option<Block> {
        let room = BLOCK - offset % BLOCK;
        let patience = match offset {
            0 => FIRST_PATIENCE,
            _ => PATIENCE,
        };
        let mut block = Block::default();
        let mut deadline = None;
        let mut next = self.rest.take();
        loop {
            if let Some(mut piece) = next {
                let fits = piece.len().min((room - block.len) as usize);
                block.push(piece.split_to(fits));
                self.rest = Some(piece).filter(|rest| !rest.is_empty());
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
                Some(Piece::Data(piece, turn)) => {
                    block.turns.extend(turn);
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
    use crate::cache::state::permits::Turns;

    /// What is gathered from these pieces, all of which have come.
    fn gather(pieces: impl IntoIterator<Item = Piece>) -> (mpsc::Sender<Piece>, Gather) {
        let (sender, receiver) = mpsc::channel(1024);
        for piece in pieces {
            assert!(sender.try_send(piece).is_ok());
        }
        (sender, Gather::new(receiver))
    }

    fn data(len: usize) -> Piece {
        Piece::Data(vec![7; len].into(), None)
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_no_more_gives_its_turns_back() {
        let turns: &'static Turns = Box::leak(Box::new(Turns::new(1)));
        let mut pieces = Vec::new();
        for byte in 0..4u8 {
            let turn = turns.to_queue(1).await;
            pieces.push(Piece::Data(vec![byte].into(), turn));
        }
        let (sender, mut gather) = gather(pieces);
        assert!(!turns.are_free(1));
        gather.wait_no_more();
        assert!(turns.are_free(1));
        assert!(sender.send(data(1)).await.is_ok());
        let block = gather.next(0, None).await.unwrap();
        assert_eq!(block.data.concat(), [0, 1, 2, 3, 7]);
    }

    #[test]
    fn no_more_is_taken_than_has_come() {
        const PIECES: usize = 10_000;
        const QUEUE: usize = 4;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut gather = Gather::new(receiver);
        assert!(sender.try_send(data(1)).is_ok());
        let sending = std::thread::spawn(move || {
            for _ in 0..PIECES {
                if sender.blocking_send(data(1)).is_err() {
                    break;
                }
            }
        });
        gather.wait_no_more();
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
            let block = gather.next(written.len() as u64, None).await.unwrap();
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

        let block = gather.next(BLOCK - 1500, None).await.unwrap();
        assert_eq!(block.len, 1500);
        assert_eq!(gather.rest.unwrap().len(), 500);
    }

    #[tokio::test(start_paused = true)]
    async fn after_what_was_promised_nothing_is_waited_for() {
        let (sender, mut gather) = gather([data(1000), data(1000)]);
        let start = Instant::now();

        assert_eq!(gather.next(0, Some(2000)).await.unwrap().len, 2000);
        let (finish, _answer) = oneshot::channel();
        assert!(sender.try_send(Piece::Finish(finish)).is_ok());
        let end = gather.next(2000, Some(2000)).await.unwrap();
        assert!(end.len == 0 && end.finish.is_some());

        // More than that is told as well.
        assert!(sender.try_send(data(1)).is_ok());
        assert_eq!(gather.next(2000, Some(2000)).await.unwrap().len, 1);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn an_empty_body_ends_at_once() {
        let (finish, _answer) = oneshot::channel();
        let (_sender, mut gather) = gather([Piece::Finish(finish)]);

        let block = gather.next(0, Some(0)).await.unwrap();
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
        assert_eq!(gather.next(0, None).await.unwrap().len, 1000);
        assert!(start.elapsed() <= FIRST_PATIENCE + tick);
        assert_eq!(gather.next(1000, None).await.unwrap().len, 2000);
        assert!(start.elapsed() <= PATIENCE * 3 / 4 + PATIENCE + 2 * tick);
        drop(gather);
        trickle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_pieces_are_not_hoarded() {
        let (_sender, mut gather) = gather((0..300).map(|_| data(1)));

        assert_eq!(gather.next(0, None).await.unwrap().len, MAX_PIECES as u64);
    }

    #[tokio::test]
    async fn what_came_before_the_origin_broke_off_is_written() {
        let (sender, mut gather) = gather([data(1000)]);
        drop(sender);

        assert_eq!(gather.next(0, None).await.unwrap().len, 1000);
        assert!(gather.next(1000, None).await.is_none());
    }
}
