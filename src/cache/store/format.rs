//! The metadata file.
//!
#![doc = include_str!("../../../docs/on-disk-format.md")]

use std::io;

use pingora_cache::key::{CacheHashKey, CompactCacheKey, HashBinary};

use crate::cache::io::regular::invalid;
use crate::cache::store::entry_id::EntryId;

const MAGIC: &[u8; 8] = b"PSFMETA2";

/// Bytes of all fields that have a fixed length.
const FIXED_LEN: usize = 8 + 8 + 8 + 8 + 4 + 16 + 1 + 2 + 3 * 4 + 4;

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
    /// CRC-32 (IEEE 802.3, as gzip has it) of the body file.
    pub body_crc32: u32,
    /// [`pingora_cache::CacheMeta::serialize`], first part.
    pub internal: Vec<u8>,
    /// [`pingora_cache::CacheMeta::serialize`], second part: the header.
    pub header: Vec<u8>,
}

impl EntryMeta {
    /// Length of the metadata file, in bytes.
    pub fn encoded_len(&self) -> u64 {
        let variance = self.key.variance.as_deref().map_or(0, |v| v.len());
        (FIXED_LEN
            + self.primary_key.len()
            + variance
            + self.tag().len()
            + self.internal.len()
            + self.header.len()) as u64
    }

    /// Bytes that the entry takes on disk: body and metadata.
    pub fn weight(&self) -> u64 {
        self.body_len.saturating_add(self.encoded_len())
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

    fn tag(&self) -> &[u8] {
        // The tag is the name of a bucket, of at most 63 bytes.
        &self.key.user_tag.as_bytes()[..self.key.user_tag.len().min(u16::MAX as usize)]
    }

    /// Encode as the content of a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len() as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.stored_at.to_le_bytes());
        out.extend_from_slice(&self.body_len.to_le_bytes());
        out.extend_from_slice(&self.body_crc32.to_le_bytes());
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
        if fields.array::<8>()? != *MAGIC {
            return Err(invalid("metadata file is of another format"));
        }
        if crc32fast::hash(data) != u32::from_le_bytes(*checksum) {
            return Err(invalid("metadata file has a wrong checksum"));
        }
        let generation = u64::from_le_bytes(fields.array()?);
        let stored_at = u64::from_le_bytes(fields.array()?);
        let body_len = u64::from_le_bytes(fields.array()?);
        let body_crc32 = u32::from_le_bytes(fields.array()?);
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
            internal: vec![1, 2, 3],
            header: vec![4; 500],
        }
    }

    #[test]
    fn decode_reverses_encode() {
        for variance in [false, true] {
            let meta = sample(variance);
            let data = meta.encode();
            assert_eq!(EntryMeta::decode(&data).unwrap(), meta);
            assert_eq!(data.len() as u64, meta.encoded_len());
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let data = sample(true).encode();
        for len in 0..data.len() {
            let e = EntryMeta::decode(&data[..len]).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidData, "at {len} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let data = sample(true).encode();
        for bit in 0..data.len() * 8 {
            let mut flipped = data.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(EntryMeta::decode(&flipped).is_err(), "bit {bit}");
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
