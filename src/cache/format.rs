//! The metadata file, version 1.
//!
//! All numbers are little-endian. A file that is shorter or longer than its
//! fields, or whose checksum is wrong, is not an entry.
//!
//! | field | bytes |
//! |---|---|
//! | magic `PSFMETA1` | 8 |
//! | generation | 8 |
//! | body length | 8 |
//! | primary hash of the key | 16 |
//! | variance hash, zero bytes if there is none | 1 (length: 0 or 16) + length |
//! | user tag of the key | 2 (length) + length |
//! | Pingora's internal metadata | 4 (length) + length |
//! | Pingora's serialized response header | 4 (length) + length |
//! | CRC-32 of all of the above | 4 |

use std::io;

use pingora_cache::key::{CompactCacheKey, HashBinary};

const MAGIC: &[u8; 8] = b"PSFMETA1";

/// Longest metadata file that is read, in bytes. Response headers are limited
/// far below this by the HTTP parser.
pub const MAX_META_LEN: u64 = 4 << 20;

/// What the metadata file of an entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryMeta {
    /// The key, to tell a hash collision or a foreign file.
    pub key: CompactCacheKey,
    /// The generation that the file name carries too.
    pub generation: u64,
    /// Length of the body file, in bytes.
    pub body_len: u64,
    /// [`pingora_cache::CacheMeta::serialize`], first part.
    pub internal: Vec<u8>,
    /// [`pingora_cache::CacheMeta::serialize`], second part: the header.
    pub header: Vec<u8>,
}

impl EntryMeta {
    /// Bytes that the entry takes on disk, for eviction.
    pub fn weight(&self) -> usize {
        let meta = 64 + self.key.user_tag.len() + self.internal.len() + self.header.len();
        usize::try_from(self.body_len)
            .unwrap_or(usize::MAX)
            .saturating_add(meta)
    }

    /// The file's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.internal.len() + self.header.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.body_len.to_le_bytes());
        out.extend_from_slice(&self.key.primary);
        let variance = self.key.variance.as_deref().map_or(&[][..], |v| &v[..]);
        out.push(variance.len() as u8);
        out.extend_from_slice(variance);
        // The tag is a bucket's name: at most 63 bytes.
        let tag = &self.key.user_tag.as_bytes()[..self.key.user_tag.len().min(u16::MAX as usize)];
        out.extend_from_slice(&(tag.len() as u16).to_le_bytes());
        out.extend_from_slice(tag);
        for part in [&self.internal, &self.header] {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(part);
        }
        let checksum = crc32fast::hash(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Read a file's content. Errors are of the kind `InvalidData`.
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
        let body_len = u64::from_le_bytes(fields.array()?);
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
        let internal_len = u32::from_le_bytes(fields.array()?);
        let internal = fields.bytes(internal_len as usize)?.to_vec();
        let header_len = u32::from_le_bytes(fields.array()?);
        let header = fields.bytes(header_len as usize)?.to_vec();
        if !fields.0.is_empty() {
            return Err(invalid("metadata file has bytes after its last field"));
        }
        Ok(EntryMeta {
            key: CompactCacheKey {
                primary,
                variance,
                user_tag,
            },
            generation,
            body_len,
            internal,
            header,
        })
    }
}

/// Takes fields off the front.
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

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (field, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| invalid("metadata file ends within a field"))?;
        self.0 = rest;
        Ok(*field)
    }
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
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
            generation: 1 << 40,
            body_len: 100 << 30,
            internal: vec![1, 2, 3],
            header: vec![4; 500],
        }
    }

    #[test]
    fn decode_reverses_encode() {
        for variance in [false, true] {
            let meta = sample(variance);
            assert_eq!(EntryMeta::decode(&meta.encode()).unwrap(), meta);
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
