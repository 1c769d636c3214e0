//! The metadata file.
//!
#![doc = include_str!("../../../docs/on-disk-format.md")]

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use pingora_cache::key::{CacheHashKey, CompactCacheKey, HashBinary};

use crate::cache::io::regular::invalid;
use crate::cache::store::entry_id::EntryId;

const MAGIC: &[u8; 8] = b"PSFMETA2";

/// The magic of metadata with a map of blocks.
const BLOCKS_MAGIC: &[u8; 8] = b"PSFMETA3";

/// Most blocks of a body.
const MAX_BLOCKS: u64 = 1 << 18;

/// Bytes of a block of ext4 and XFS as they are usually made. Files take whole ones.
const DISK_BLOCK: u64 = 4096;

/// Least length of a block, of which all lengths are multiples, in bytes.
pub const MIN_BLOCK: u32 = 64 << 10;

/// Bytes of all fields that have a fixed length: no metadata is shorter.
pub const FIXED_LEN: usize = 8 + 8 + 8 + 8 + 4 + 16 + 1 + 2 + 3 * 4 + 4;

/// Content of the metadata file of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryMeta {
    /// The key, which reveals a hash collision or a foreign file.
    pub key: CompactCacheKey,
    /// The key in clear text, from which its hash was made. Bans and listings use it.
    pub primary_key: Vec<u8>,
    /// The generation, which is also part of the file name.
    pub generation: u64,
    /// Start of the fill, in seconds since 1970.
    pub stored_at: u64,
    /// Length of the body file, in bytes.
    pub body_len: u64,
    /// CRC-32 (IEEE 802.3, as gzip has it) of the body file. 0 if it is stored in blocks.
    pub body_crc32: u32,
    /// The blocks of the body that are stored; `None`: all of it.
    pub blocks: Option<BlockMap>,
    /// [`pingora_cache::CacheMeta::serialize`], first part.
    pub internal: Vec<u8>,
    /// [`pingora_cache::CacheMeta::serialize`], second part: the header.
    pub header: Vec<u8>,
}

/// The blocks of a body that are stored. Their file has the length of the whole body, and holes
/// where the other blocks would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMap {
    /// Length of each block but the last one, in bytes.
    pub block_len: u32,
    /// CRC-32 of each stored block, by its number.
    pub checksums: BTreeMap<u32, u32>,
}

/// Checksums of the blocks of a body whose bytes arrive in order.
pub struct BlockSums {
    map: BlockMap,
    /// That of the block that has begun.
    begun: crc32fast::Hasher,
    /// Bytes of that block.
    len: u32,
    /// That of all blocks before it.
    whole: crc32fast::Hasher,
}

/// Length of a block of a body of `body_len` bytes, at least `configured`, rounded up to a power of
/// two; `None`: the body is too long for blocks. Long bodies have longer blocks, so that their map
/// stays short.
pub fn block_len(body_len: u64, configured: u32) -> Option<u32> {
    let least = u64::from(configured.max(MIN_BLOCK));
    let len = body_len.div_ceil(MAX_BLOCKS).max(least);
    u32::try_from(len.checked_next_power_of_two()?).ok()
}

/// Bytes that a file of this length takes on the disk (`st_blocks` of stat(2)), without holes.
pub fn disk_len(len: u64) -> u64 {
    len.checked_next_multiple_of(DISK_BLOCK).unwrap_or(u64::MAX)
}

// === impl BlockSums ===

impl BlockSums {
    /// The checksums of no bytes.
    pub fn new(block_len: u32) -> Self {
        BlockSums {
            map: BlockMap {
                block_len,
                checksums: BTreeMap::new(),
            },
            begun: crc32fast::Hasher::new(),
            len: 0,
            whole: crc32fast::Hasher::new(),
        }
    }

    /// Add the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (self.map.block_len - self.len) as usize;
            let (piece, rest) = bytes.split_at(bytes.len().min(room));
            self.begun.update(piece);
            self.len += piece.len() as u32;
            if self.len == self.map.block_len {
                self.end_block();
            }
            bytes = rest;
        }
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.begun);
        self.whole.combine(&block);
        // One for each block so far.
        let number = self.map.checksums.len() as u32;
        self.map.checksums.insert(number, block.finalize());
        self.len = 0;
    }

    /// The checksum of all bytes.
    pub fn of_all(mut self) -> u32 {
        self.whole.combine(&self.begun);
        self.whole.finalize()
    }

    /// The map of the blocks that are complete.
    pub fn map(&self) -> &BlockMap {
        &self.map
    }

    /// [`map`](Self::map), which is not copied.
    pub fn into_map(self) -> BlockMap {
        self.map
    }
}

// === impl BlockMap ===

impl BlockMap {
    /// Bytes of the stored blocks of a body of `body_len` bytes.
    pub fn stored_len(&self, body_len: u64) -> u64 {
        let numbers = self.checksums.keys();
        numbers
            .map(|number| {
                let block = self.block(*number, body_len);
                block.end - block.start
            })
            .sum()
    }

    /// The place of a block in a body of `body_len` bytes.
    pub fn block(&self, number: u32, body_len: u64) -> Range<u64> {
        let len = u64::from(self.block_len);
        let start = (u64::from(number) * len).min(body_len);
        start..start.saturating_add(len).min(body_len)
    }

    /// Number of blocks of a body of `body_len` bytes.
    pub fn count(&self, body_len: u64) -> u64 {
        body_len.div_ceil(u64::from(self.block_len))
    }

    fn encoded_len(&self) -> usize {
        2 * 4 + self.checksums.len() * 2 * 4
    }

    fn decode(fields: &mut Fields, body_len: u64) -> io::Result<BlockMap> {
        let block_len = u32::from_le_bytes(fields.array()?);
        if block_len < MIN_BLOCK || block_len % MIN_BLOCK != 0 {
            return Err(invalid("metadata file has blocks of a wrong length"));
        }
        let stored = u32::from_le_bytes(fields.array()?);
        let mut map = BlockMap {
            block_len,
            checksums: BTreeMap::new(),
        };
        for _ in 0..stored {
            let number = u32::from_le_bytes(fields.array()?);
            let last = map.checksums.last_key_value();
            let is_next = last.is_none_or(|(last, _)| number > *last);
            if !is_next || u64::from(number) >= map.count(body_len) {
                return Err(invalid("metadata file has blocks out of place"));
            }
            let checksum = u32::from_le_bytes(fields.array()?);
            map.checksums.insert(number, checksum);
        }
        Ok(map)
    }
}

// === impl EntryMeta ===

impl EntryMeta {
    /// Length of the metadata file, in bytes.
    pub fn encoded_len(&self) -> u64 {
        let variance = self.key.variance.as_deref().map_or(0, |v| v.len());
        let blocks = self.blocks.as_ref().map_or(0, BlockMap::encoded_len);
        (FIXED_LEN
            + blocks
            + self.primary_key.len()
            + variance
            + self.tag().len()
            + self.internal.len()
            + self.header.len()) as u64
    }

    /// Bytes of the body that are stored.
    pub fn stored_len(&self) -> u64 {
        match &self.blocks {
            Some(blocks) => blocks.stored_len(self.body_len),
            None => self.body_len,
        }
    }

    /// Bytes that the entry takes on the disk: body and metadata.
    pub fn weight(&self) -> u64 {
        disk_len(self.stored_len()).saturating_add(disk_len(self.encoded_len()))
    }

    /// The CRC-32 of each stored range of the body.
    pub fn checksums(&self) -> Vec<(Range<u64>, u32)> {
        match &self.blocks {
            None => vec![(0..self.body_len, self.body_crc32)],
            Some(blocks) => blocks
                .checksums
                .iter()
                .map(|(number, checksum)| (blocks.block(*number, self.body_len), *checksum))
                .collect(),
        }
    }

    /// The hash in the file name.
    pub fn hash(&self) -> [u8; 16] {
        self.key.combined_bin()
    }

    /// Check that this is the metadata of an entry. Errors are of the kind `InvalidData`.
    pub(crate) fn check_id(&self, id: &EntryId) -> io::Result<()> {
        if self.generation != id.generation || self.hash() != id.hash {
            return Err(invalid("metadata file is that of another entry"));
        }
        Ok(())
    }

    /// Check that this is the body of the entry. Errors are of the kind `InvalidData`.
    pub(crate) fn check_body(&self, body: &[u8]) -> io::Result<()> {
        if body.len() as u64 != self.body_len || crc32fast::hash(body) != self.body_crc32 {
            return Err(invalid("body file has a wrong checksum"));
        }
        Ok(())
    }

    fn tag(&self) -> &[u8] {
        // The tag is the name of a bucket, of at most 63 bytes.
        &self.key.user_tag.as_bytes()[..self.key.user_tag.len().min(u16::MAX as usize)]
    }

    /// Encode as the content of a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len() as usize);
        out.extend_from_slice(match self.blocks {
            Some(_) => BLOCKS_MAGIC,
            None => MAGIC,
        });
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.stored_at.to_le_bytes());
        out.extend_from_slice(&self.body_len.to_le_bytes());
        out.extend_from_slice(&self.body_crc32.to_le_bytes());
        if let Some(blocks) = &self.blocks {
            out.extend_from_slice(&blocks.block_len.to_le_bytes());
            out.extend_from_slice(&(blocks.checksums.len() as u32).to_le_bytes());
            for (number, checksum) in &blocks.checksums {
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&checksum.to_le_bytes());
            }
        }
        out.extend_from_slice(&self.key.primary);
        let variance = self.key.variance.as_deref().map_or(&[][..], |v| &v[..]);
        out.push(variance.len() as u8);
        out.extend_from_slice(variance);
        let tag = self.tag();
        out.extend_from_slice(&(tag.len() as u16).to_le_bytes());
        out.extend_from_slice(tag);
        for part in [&self.primary_key, &self.internal, &self.header] {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(part);
        }
        let checksum = crc32fast::hash(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Decode the content of a file. Errors are of the kind `InvalidData`.
    pub fn decode(data: &[u8]) -> io::Result<EntryMeta> {
        let (data, checksum) = data
            .split_last_chunk::<4>()
            .ok_or_else(|| invalid("metadata file is too short"))?;
        let mut fields = Fields(data);
        let magic = fields.array::<8>()?;
        if magic != *MAGIC && magic != *BLOCKS_MAGIC {
            return Err(invalid("metadata file is of another format"));
        }
        if crc32fast::hash(data) != u32::from_le_bytes(*checksum) {
            return Err(invalid("metadata file has a wrong checksum"));
        }
        let generation = u64::from_le_bytes(fields.array()?);
        let stored_at = u64::from_le_bytes(fields.array()?);
        let body_len = u64::from_le_bytes(fields.array()?);
        let body_crc32 = u32::from_le_bytes(fields.array()?);
        let blocks = match magic == *BLOCKS_MAGIC {
            true => Some(BlockMap::decode(&mut fields, body_len)?),
            false => None,
        };
        let primary: HashBinary = fields.array()?;
        let variance = match fields.array::<1>()? {
            [0] => None,
            [16] => Some(Box::new(fields.array()?)),
            _ => return Err(invalid("metadata file has a variance of unknown length")),
        };
        let tag_len = u16::from_le_bytes(fields.array()?);
        let user_tag = std::str::from_utf8(fields.bytes(tag_len as usize)?)
            .map_err(|_| invalid("metadata file has a tag that is not UTF-8"))?
            .into();
        let primary_key = fields.sized()?;
        let internal = fields.sized()?;
        let header = fields.sized()?;
        if !fields.0.is_empty() {
            return Err(invalid("metadata file has bytes after its last field"));
        }
        Ok(EntryMeta {
            key: CompactCacheKey {
                primary,
                variance,
                user_tag,
            },
            primary_key,
            generation,
            stored_at,
            body_len,
            body_crc32,
            blocks,
            internal,
            header,
        })
    }
}

/// The fields that have not been decoded yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> io::Result<&'a [u8]> {
        let (field, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| invalid("metadata file ends within a field"))?;
        self.0 = rest;
        Ok(field)
    }

    /// Bytes that follow their length, which takes 4 bytes.
    fn sized(&mut self) -> io::Result<Vec<u8>> {
        let len = u32::from_le_bytes(self.array()?);
        Ok(self.bytes(len as usize)?.to_vec())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (field, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| invalid("metadata file ends within a field"))?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(variance: bool) -> EntryMeta {
        EntryMeta {
            key: CompactCacheKey {
                primary: [7; 16],
                variance: variance.then(|| Box::new([9; 16])),
                user_tag: "bucket".into(),
            },
            primary_key: b"host\n/bucket/key".to_vec(),
            generation: 1 << 40,
            stored_at: 1_800_000_000,
            body_len: 100 << 30,
            body_crc32: 0xdead_beef,
            blocks: None,
            internal: vec![1, 2, 3],
            header: vec![4; 500],
        }
    }

    fn in_blocks() -> EntryMeta {
        let mut meta = sample(false);
        meta.body_crc32 = 0;
        meta.blocks = Some(BlockMap {
            block_len: 1 << 20,
            checksums: [(0, 1), (7, 2), ((100 << 10) - 1, 3)].into(),
        });
        meta
    }

    #[test]
    fn decode_reverses_encode() {
        for meta in [sample(false), sample(true), in_blocks()] {
            let data = meta.encode();
            assert_eq!(EntryMeta::decode(&data).unwrap(), meta);
            assert_eq!(data.len() as u64, meta.encoded_len());
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for data in [sample(true).encode(), in_blocks().encode()] {
            for len in 0..data.len() {
                let e = EntryMeta::decode(&data[..len]).unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::InvalidData, "at {len} bytes");
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        for data in [sample(true).encode(), in_blocks().encode()] {
            for bit in 0..data.len() * 8 {
                let mut flipped = data.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(EntryMeta::decode(&flipped).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let meta = EntryMeta {
            key: CompactCacheKey {
                primary: [7; 16],
                variance: None,
                user_tag: "b".into(),
            },
            primary_key: b"k".to_vec(),
            generation: 1,
            stored_at: 2,
            body_len: 3,
            body_crc32: 4,
            blocks: None,
            internal: vec![5],
            header: vec![6, 6],
        };
        let mut expected = b"PSFMETA2".to_vec();
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
        expected.extend([7; 16]);
        expected.extend([
            0, 1, 0, b'b', 1, 0, 0, 0, b'k', 1, 0, 0, 0, 5, 2, 0, 0, 0, 6, 6,
        ]);
        let crc = crc32fast::hash(&expected);
        expected.extend(crc.to_le_bytes());
        assert_eq!(meta.encode(), expected);
    }

    #[test]
    fn the_format_of_a_block_map_is_the_documented_one() {
        let mut meta = in_blocks();
        meta.body_len = 3 << 20;
        let blocks = meta.blocks.as_mut().unwrap();
        blocks.checksums = [(2, 0x0403_0201)].into();
        let data = meta.encode();
        assert_eq!(&data[..8], b"PSFMETA3");
        let expected = [0, 0, 16, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 2, 3, 4];
        assert_eq!(&data[36..52], expected);
        assert_eq!(meta.weight(), (1 << 20) + 4096);
        meta.body_len = (2 << 20) + 5;
        assert_eq!(meta.weight(), 2 * 4096, "the last block");

        // A block that the body does not have.
        meta.body_len = 2 << 20;
        assert!(EntryMeta::decode(&meta.encode()).is_err());
    }

    #[test]
    fn checksums_of_blocks_add_up_to_that_of_the_whole() {
        let body: Vec<u8> = (0..300_000u32).map(|at| (at / 7) as u8).collect();
        for piece in [1000, MIN_BLOCK as usize, 100_001] {
            let sums = || {
                let mut sums = BlockSums::new(MIN_BLOCK);
                body.chunks(piece).for_each(|piece| sums.update(piece));
                sums
            };
            assert_eq!(sums().of_all(), crc32fast::hash(&body));
            let map = sums().into_map();
            let blocks = body.chunks_exact(MIN_BLOCK as usize);
            let expected = (0..).zip(blocks.map(crc32fast::hash)).collect();
            assert_eq!(map.checksums, expected);
        }
    }

    #[test]
    fn a_map_stays_short_however_long_the_body_is() {
        assert_eq!(block_len(1, 1 << 20), Some(1 << 20));
        assert_eq!(block_len(256 << 30, 1 << 20), Some(1 << 20));
        assert_eq!(block_len((256 << 30) + 1, 1 << 20), Some(2 << 20));
        assert_eq!(block_len(u64::MAX, 1 << 20), None);
        assert_eq!(block_len(1, 0), Some(MIN_BLOCK));
        assert_eq!(block_len(1, MIN_BLOCK + 1), Some(2 * MIN_BLOCK));
        assert_eq!(block_len(256 << 30, MIN_BLOCK), Some(1 << 20));
        assert_eq!(block_len(1, u32::MAX), None);
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let meta = sample(false);
        let mut data = meta.encode();
        data.truncate(data.len() - 4);
        data.push(0);
        let checksum = crc32fast::hash(&data);
        data.extend_from_slice(&checksum.to_le_bytes());
        assert!(EntryMeta::decode(&data).is_err());
    }
}
