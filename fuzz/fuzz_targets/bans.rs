//! A ban list's records are what they encode to, up to the first damaged one,
//! and void what each of them alone would void.

#![no_main]

mod seeds;

use libfuzzer_sys::fuzz_target;
use pingora_sendfile::cache::internals::{encode, Banned, List, Records};

const MAGIC: &[u8; 8] = b"PSFBANS2";

/// So many records are compared with each other.
const COMPARED: usize = 32;

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    check(data);
    check(&sealed(data));
});

fn check(file: &[u8]) {
    let mut records = Records::of(file);
    let mut again = file[..file.len() - records.rest().len()].to_vec();
    let mut bans = Vec::new();
    for (generation, banned) in &mut records {
        again.extend(encode(generation, &banned).expect("a record that was read"));
        bans.push((generation, banned));
    }
    again.extend(records.rest());
    assert_eq!(again, file);

    bans.truncate(COMPARED);
    let mut list = List::default();
    for (generation, banned) in &bans {
        list.add(*generation, banned.clone());
    }
    let newest = bans.iter().map(|(generation, _)| *generation).max();
    assert_eq!(list.newest(), newest.unwrap_or(0));
    for (generation, banned) in &bans {
        let (primary, tag, key) = match banned {
            Banned::Exact(hash) => (*hash, "", Vec::new()),
            Banned::Variants => continue,
            Banned::Prefix(tag, prefix) => ([0; 16], &**tag, [prefix, &b"/x"[..]].concat()),
        };
        for generation in [generation.saturating_sub(1), *generation] {
            let alone = bans
                .iter()
                .any(|ban| voids(ban, generation, &primary, tag, &key));
            let together = list.is_banned(generation, &primary, || (tag, &key));
            assert_eq!(together, alone, "generation {generation} of {banned:?}");
        }
    }
}

/// The verdict of a single ban on an entry.
fn voids(ban: &(u64, Banned), generation: u64, primary: &[u8; 16], tag: &str, key: &[u8]) -> bool {
    let matches = match &ban.1 {
        Banned::Exact(hash) => hash == primary,
        Banned::Variants => false,
        Banned::Prefix(of_tag, prefix) => of_tag == tag && key.starts_with(prefix),
    };
    matches && generation < ban.0
}

/// The same file with the right magic, and the right checksum behind each record
/// that has one: no random bytes have them.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut file = data.to_vec();
    if let Some(magic) = file.first_chunk_mut() {
        *magic = *MAGIC;
    }
    let mut at = MAGIC.len();
    while let Some(end) = end_of_record(&file, at) {
        let checksum = crc32fast::hash(&file[at..end]);
        file[end..end + 4].copy_from_slice(&checksum.to_le_bytes());
        at = end + 4;
    }
    file
}

/// The start of the checksum of the record at `at`, if the file has it all:
/// docs/on-disk-format.md, section Bans.
fn end_of_record(file: &[u8], at: usize) -> Option<usize> {
    let rest = file.get(at..)?;
    let tag_len = u16::from_le_bytes(*rest.get(9..)?.first_chunk()?) as usize;
    let text_len = u32::from_le_bytes(*rest.get(11 + tag_len..)?.first_chunk()?) as usize;
    let len = 11 + tag_len + 4 + text_len;
    (len + 4 <= rest.len()).then_some(at + len)
}

fn examples() -> Vec<Vec<u8>> {
    let prefix = |tag: &str, prefix: &str| Banned::Prefix(tag.into(), prefix.into());
    let bans = [
        (5, prefix("bucket", "host\n/bucket/a/")),
        (6, Banned::Exact([7; 16])),
        (7, prefix("bucket", "host\n/bucket/")),
        (8, prefix("", "")),
        (4, Banned::Exact([7; 16])),
        (9, Banned::Variants),
    ];
    let mut file = MAGIC.to_vec();
    let mut files = vec![file.clone()];
    for (generation, banned) in bans {
        file.extend(encode(generation, &banned).expect("a short ban"));
        files.push(file.clone());
    }
    files
}
