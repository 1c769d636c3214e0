//! A metadata file is either refused, or exactly what its content encodes to.

#![no_main]

mod seeds;

use std::io::ErrorKind;

use libfuzzer_sys::fuzz_target;
use pingora_cache::key::CompactCacheKey;
use pingora_sendfile::cache::{BlockMap, EntryMeta};

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    check(data);
    // No random bytes get past the checksum: these do.
    let mut sealed = data.to_vec();
    sealed.extend(crc32fast::hash(data).to_le_bytes());
    check(&sealed);
});

fn check(data: &[u8]) {
    match EntryMeta::decode(data) {
        Ok(meta) => {
            assert_eq!(meta.encode(), data);
            assert_eq!(meta.encoded_len(), data.len() as u64);
            assert!(meta.blocks.is_some() || meta.weight() >= meta.body_len);
            check_blocks(&meta);
        }
        Err(e) => assert_eq!(e.kind(), ErrorKind::InvalidData, "{e}"),
    }
}

/// The stored blocks are parts of the body, in order, and none overlaps another.
fn check_blocks(meta: &EntryMeta) {
    let Some(blocks) = &meta.blocks else { return };
    let (mut end, mut stored) = (0, 0);
    for ((range, _), number) in meta.checksums().into_iter().zip(blocks.checksums.keys()) {
        assert_eq!(range, blocks.block(*number, meta.body_len));
        assert!(end <= range.start && range.start < range.end);
        (end, stored) = (range.end, stored + (range.end - range.start));
    }
    assert!(end <= meta.body_len);
    assert_eq!(stored, blocks.stored_len(meta.body_len));
    assert!(blocks.checksums.len() as u64 <= blocks.count(meta.body_len));
}

/// Metadata files, each with and without its checksum.
fn examples() -> Vec<Vec<u8>> {
    let full = EntryMeta {
        key: CompactCacheKey {
            primary: [7; 16],
            variance: Some(Box::new([9; 16])),
            user_tag: "bucket".into(),
        },
        primary_key: b"host\n/bucket/key".to_vec(),
        generation: 1 << 40,
        stored_at: 1_800_000_000,
        body_len: 100 << 30,
        body_crc32: 0xdead_beef,
        blocks: None,
        internal: vec![1; 20],
        header: vec![2; 300],
    };
    let empty = EntryMeta {
        key: CompactCacheKey::default(),
        primary_key: Vec::new(),
        generation: 0,
        stored_at: 0,
        body_len: 0,
        body_crc32: 0,
        blocks: None,
        internal: Vec::new(),
        header: Vec::new(),
    };
    let in_blocks = EntryMeta {
        body_crc32: 0,
        blocks: Some(BlockMap {
            block_len: 1 << 20,
            checksums: [(0, 1), (7, 2), (99_999, 3)].into(),
        }),
        ..full.clone()
    };
    [full, empty, in_blocks]
        .iter()
        .map(EntryMeta::encode)
        .flat_map(|file| [file[..file.len() - 4].to_vec(), file])
        .collect()
}
