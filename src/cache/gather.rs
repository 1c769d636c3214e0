//! What comes of a body, gathered to be written in blocks.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{timeout_at, Instant};

use super::fill::Piece;

/// Bytes that are written at once, from a multiple of their number on.
///
/// The kernel keeps what one write(2) adds to the page cache in as few folios as
/// its length and its offset allow (`fgf_set_order()` of `<linux/pagemap.h>`), and
/// they stay as they are for all who read the file: sendfile(2) and cachestat(2)
/// take longer, the more there are. Written as they come, the pieces of a body
/// end up in five folios for 64 KiB, since they begin and end anywhere.
pub const BLOCK: u64 = 256 * 1024;

/// Most pieces that are written at once, however small they are.
const MAX_PIECES: usize = 256;

/// How long what has come waits for the rest of its block, and with it who reads
/// the fill. An origin that sends 13 MB/s, or all that it has, is not waited for.
const PATIENCE: Duration = Duration::from_millis(20);

/// The receiving end of a fill's pieces.
pub(super) struct Gather {
    pieces: mpsc::Receiver<Piece>,
    /// What belongs to the next block.
    rest: Option<Bytes>,
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// The bytes, in order.
    pub data: Vec<Bytes>,
    /// How many they are.
    pub len: u64,
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
        Gather { pieces, rest: None }
    }

    /// What is to be written at `offset`, of a body whose length may be known;
    /// `None` when there will not be more, and nobody said that this was all.
    pub async fn next(&mut self, offset: u64, promised: Option<u64>) -> Option<Block> {
        let room = BLOCK - offset % BLOCK;
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
                self.pieces.recv().await
            } else {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                match timeout_at(deadline, self.pieces.recv()).await {
                    Ok(received) => received,
                    Err(_) => return Some(block),
                }
            };
            next = match received {
                Some(Piece::Data(piece)) => Some(piece),
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

    /// A fill's pieces, all of which have come.
    fn gather(pieces: impl IntoIterator<Item = Piece>) -> (mpsc::Sender<Piece>, Gather) {
        let (sender, receiver) = mpsc::channel(1024);
        for piece in pieces {
            assert!(sender.try_send(piece).is_ok());
        }
        (sender, Gather::new(receiver))
    }

    fn data(len: usize) -> Piece {
        Piece::Data(vec![7; len].into())
    }

    #[tokio::test]
    async fn pieces_become_blocks() {
        let (finish, _answer) = oneshot::channel();
        let pieces = [data(300_000), data(70_000), data(500), data(700_000)];
        let (_sender, mut gather) = gather(pieces.into_iter().chain([Piece::Finish(finish)]));

        let mut written = 0;
        let mut blocks = Vec::new();
        loop {
            let block = gather.next(written, None).await.unwrap();
            let sum: usize = block.data.iter().map(Bytes::len).sum();
            assert_eq!(sum as u64, block.len);
            written += block.len;
            blocks.push(block.len);
            if block.finish.is_some() {
                break;
            }
        }
        let last = 1_070_500 - 4 * BLOCK;
        assert_eq!(blocks, [BLOCK, BLOCK, BLOCK, BLOCK, last]);
    }

    #[tokio::test]
    async fn a_block_begins_anywhere_and_ends_where_the_next_begins() {
        let (_sender, mut gather) = gather([data(1000), data(1000)]);

        let block = gather.next(BLOCK - 1500, None).await.unwrap();
        assert_eq!(block.len, 1500);
        assert_eq!(gather.rest.unwrap().len(), 500);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_promised_is_not_waited_for() {
        let (_sender, mut gather) = gather([data(1000), data(1000)]);
        let start = Instant::now();

        assert_eq!(gather.next(0, Some(2000)).await.unwrap().len, 2000);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_origin_is_waited_for_once_a_block() {
        let (sender, mut gather) = gather([data(1000)]);
        let start = Instant::now();
        let trickle = tokio::spawn(async move {
            loop {
                tokio::time::sleep(PATIENCE * 3 / 4).await;
                if sender.send(data(1000)).await.is_err() {
                    break;
                }
            }
        });

        assert_eq!(gather.next(0, None).await.unwrap().len, 2000);
        // The timer's ticks are of a millisecond.
        assert!(start.elapsed() <= PATIENCE + Duration::from_millis(1));
        drop(gather);
        trickle.await.unwrap();
    }

    #[tokio::test]
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
