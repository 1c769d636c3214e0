//! What every backend has to do. Each backend runs the suite in its own tests.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use bytes::Bytes;
use pingora_cache::key::{CacheHashKey, CompactCacheKey};
use pingora_cache::CacheKey;

use crate::cache::io::nowait::open_now;
use crate::cache::store::format::EntryMeta;
use crate::cache::{DiskBackend, EntryId};

/// `backend_suite!(|path| make the backend)`: a test for each function here.
macro_rules! backend_suite {
    ($make:expr) => {
        $crate::cache::io::backend_suite::backend_suite!(@tests $make;
            a_committed_entry_is_found_and_removed
            a_small_body_is_read_along_and_verified
            what_is_written_can_be_read_before_it_is_committed
            a_discarded_body_leaves_nothing
            a_commit_that_fails_leaves_nothing
            a_body_of_another_length_is_no_entry
            what_is_no_regular_file_is_no_entry
            files_of_another_entry_are_no_entry
            an_open_body_outlives_removal
            metadata_is_replaced
            pieces_and_offsets_are_kept
            many_operations_at_once
            space_is_reserved_and_the_length_kept
            an_emptied_folder_is_made_again
            a_removed_folder_is_an_error
            a_read_behind_the_end_is_an_error
            the_newest_generation_is_where_tools_look
            an_operation_survives_its_future
        );
    };
    (@tests $make:expr; $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                fn make(path: &std::path::Path) -> impl $crate::cache::DiskBackend {
                    #[allow(clippy::redundant_closure_call)]
                    ($make)(path)
                }
                $crate::cache::io::backend_suite::$name(dir.path(), &make(dir.path())).await;
            }
        )*
    };
}
pub(crate) use backend_suite;

fn key() -> CacheKey {
    CacheKey::new("host\n/bucket/key", "bucket")
}

fn entry(generation: u64, body: &[u8]) -> (EntryId, EntryMeta) {
    let compact: CompactCacheKey = key().to_compact();
    let id = EntryId {
        hash: compact.combined_bin(),
        generation,
    };
    let meta = EntryMeta {
        key: compact,
        primary_key: key().primary_key().to_vec(),
        generation,
        stored_at: 0,
        body_len: body.len() as u64,
        body_crc32: crc32fast::hash(body),
        internal: vec![1],
        header: vec![2],
    };
    (id, meta)
}

async fn store(backend: &impl DiskBackend, generation: u64, body: &'static [u8]) -> EntryId {
    let (id, meta) = entry(generation, body);
    let file = backend.create(id, Some(body.len() as u64)).await.unwrap();
    let pieces = body.chunks(3).map(Bytes::from_static).collect();
    backend.write(&file, 0, pieces).await.unwrap();
    backend.commit(id, &file, meta).await.unwrap();
    id
}

/// The names of all files but folders.
fn names(backend: &impl DiskBackend) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(backend.layout().entries())
        .unwrap()
        .flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(crate) async fn a_committed_entry_is_found_and_removed(_: &Path, backend: &impl DiskBackend) {
    let id = store(backend, 1, b"0123456789").await;
    assert_eq!(names(backend), [format!("{id}.body"), format!("{id}.meta")]);
    let open = backend.open(id, 0).await.unwrap();
    assert_eq!(open.meta, entry(1, b"0123456789").1);
    assert!(open.prefetched.is_none());

    backend.remove(id).await.unwrap();
    backend.remove(id).await.unwrap();
    let e = backend.open(id, 0).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound);
    assert!(names(backend).is_empty());
}

pub(crate) async fn a_small_body_is_read_along_and_verified(_: &Path, backend: &impl DiskBackend) {
    let id = store(backend, 1, b"0123456789").await;
    let open = backend.open(id, 10).await.unwrap();
    assert_eq!(open.prefetched.as_deref(), Some(&b"0123456789"[..]));
    assert!(backend.open(id, 9).await.unwrap().prefetched.is_none());

    fs::write(backend.layout().body(&id), b"0123456788").unwrap();
    let e = backend.open(id, 10).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::InvalidData);

    let empty = store(backend, 2, b"").await;
    let open = backend.open(empty, 0).await.unwrap();
    assert_eq!(open.prefetched.as_deref(), Some(&b""[..]));
}

pub(crate) async fn what_is_written_can_be_read_before_it_is_committed(
    _: &Path,
    backend: &impl DiskBackend,
) {
    let (id, _) = entry(1, b"");
    let file = backend.create(id, None).await.unwrap();
    for (offset, piece) in [(0, "abc"), (3, "de")] {
        let data = vec![Bytes::from_static(piece.as_bytes())];
        backend.write(&file, offset, data).await.unwrap();
    }
    assert_eq!(backend.read(&file, 1, 4).await.unwrap(), &b"bcde"[..]);
    backend.load(&file, 0, 5).await.unwrap();
    let e = backend.open(id, 0).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound, "not an entry yet");
}

pub(crate) async fn a_discarded_body_leaves_nothing(_: &Path, backend: &impl DiskBackend) {
    let (id, _) = entry(1, b"");
    let file = backend.create(id, Some(100_000)).await.unwrap();
    let data = vec![Bytes::from_static(b"abc")];
    backend.write(&file, 0, data).await.unwrap();
    assert_eq!(names(backend), [format!("{id}.body.tmp")]);
    backend.discard(id).await.unwrap();
    backend.discard(id).await.unwrap();
    assert!(names(backend).is_empty());
}

pub(crate) async fn a_commit_that_fails_leaves_nothing(_: &Path, backend: &impl DiskBackend) {
    let (id, meta) = entry(1, b"abc");
    let file = backend.create(id, None).await.unwrap();
    let data = vec![Bytes::from_static(b"abc")];
    backend.write(&file, 0, data).await.unwrap();
    // No file can be renamed to the name of a folder.
    fs::create_dir(backend.layout().meta(&id)).unwrap();
    assert!(backend.commit(id, &file, meta).await.is_err());
    assert_eq!(names(backend), [format!("{id}.meta")], "only the folder");
}

pub(crate) async fn a_body_of_another_length_is_no_entry(_: &Path, backend: &impl DiskBackend) {
    let id = store(backend, 1, b"0123456789").await;
    let path = backend.layout().body(&id);
    let file = File::options().write(true).open(&path).unwrap();
    for (len, prefetch) in [(9, 100), (0, 100), (11, 100), (9, 0), (11, 0)] {
        file.set_len(len).unwrap();
        let e = backend.open(id, prefetch).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidData, "length {len}");
    }
}

/// A named pipe, which has neither a reader nor a writer.
pub(crate) fn make_pipe(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

pub(crate) async fn what_is_no_regular_file_is_no_entry(path: &Path, backend: &impl DiskBackend) {
    type Make = fn(&Path);
    let make: [(&str, Make); 4] = [
        ("folder", |path| fs::create_dir(path).unwrap()),
        ("pipe", make_pipe),
        ("socket", |path| {
            std::os::unix::net::UnixListener::bind(path).unwrap();
        }),
        ("link", |path| {
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
        }),
    ];
    let id = store(backend, 1, b"0123456789").await;
    for file in [backend.layout().meta(&id), backend.layout().body(&id)] {
        let aside = path.join("aside");
        fs::rename(&file, &aside).unwrap();
        for (kind, make) in make {
            make(&file);
            for prefetch in [0, 100] {
                assert!(open_now(backend.layout(), &id, prefetch).is_none());
                let e = backend.open(id, prefetch).await.unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{kind}: {e}");
            }
            match kind {
                "folder" => fs::remove_dir(&file).unwrap(),
                _ => fs::remove_file(&file).unwrap(),
            }
        }
        fs::rename(&aside, &file).unwrap();
    }
    assert!(backend.open(id, 100).await.is_ok());
}

pub(crate) async fn files_of_another_entry_are_no_entry(_: &Path, backend: &impl DiskBackend) {
    let id = store(backend, 1, b"0123456789").await;
    let other = EntryId {
        generation: 2,
        ..id
    };
    let layout = backend.layout();
    fs::rename(layout.meta(&id), layout.meta(&other)).unwrap();
    fs::rename(layout.body(&id), layout.body(&other)).unwrap();
    let e = backend.open(other, 0).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::InvalidData);

    let renamed = EntryId {
        hash: [id.hash[0]; 16],
        ..id
    };
    fs::rename(layout.meta(&other), layout.meta(&renamed)).unwrap();
    fs::rename(layout.body(&other), layout.body(&renamed)).unwrap();
    let e = backend.open(renamed, 0).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::InvalidData);
}

pub(crate) async fn an_open_body_outlives_removal(_: &Path, backend: &impl DiskBackend) {
    let id = store(backend, 1, b"0123456789").await;
    let open = backend.open(id, 0).await.unwrap();
    backend.remove(id).await.unwrap();
    let body = backend.read(&open.body, 0, 10).await.unwrap();
    assert_eq!(body, &b"0123456789"[..]);
}

pub(crate) async fn metadata_is_replaced(_: &Path, backend: &impl DiskBackend) {
    let id = store(backend, 1, b"0123456789").await;
    for byte in 0..20 {
        let meta = EntryMeta {
            header: vec![byte; 5000],
            ..entry(1, b"0123456789").1
        };
        backend.write_meta(id, meta.clone()).await.unwrap();
        assert_eq!(backend.open(id, 0).await.unwrap().meta, meta);
    }
    assert_eq!(names(backend).len(), 2, "no temporary file is left");
}

pub(crate) async fn pieces_and_offsets_are_kept(_: &Path, backend: &impl DiskBackend) {
    let body: Vec<u8> = (0..1_000_003u32).map(|i| (i / 3 + i % 251) as u8).collect();
    let (id, meta) = entry(1, &body);
    let file = backend.create(id, Some(body.len() as u64)).await.unwrap();
    let mut offset = 0;
    for batch in body.chunks(300_001) {
        let pieces = batch.chunks(777).map(Bytes::copy_from_slice).collect();
        backend.write(&file, offset, pieces).await.unwrap();
        offset += batch.len() as u64;
    }
    backend.commit(id, &file, meta).await.unwrap();
    let open = backend.open(id, u64::MAX).await.unwrap();
    assert!(open.prefetched.unwrap() == body);
    let middle = backend.read(&open.body, 123_457, 600_000).await.unwrap();
    assert!(middle == body[123_457..723_457]);
    backend.load(&open.body, 5, 1_000_000 - 5).await.unwrap();
}

pub(crate) async fn many_operations_at_once(_: &Path, backend: &impl DiskBackend) {
    let fill = |generation: u64| async move {
        let body = vec![generation as u8; 10_000 + generation as usize];
        let (id, meta) = entry(generation, &body);
        let file = backend.create(id, None).await.unwrap();
        for (number, piece) in body.chunks(1000).enumerate() {
            let data = vec![Bytes::copy_from_slice(piece)];
            let offset = number as u64 * 1000;
            backend.write(&file, offset, data).await.unwrap();
        }
        backend.commit(id, &file, meta).await.unwrap();
        let open = backend.open(id, u64::MAX).await.unwrap();
        assert!(open.prefetched.unwrap() == body);
        backend.remove(id).await.unwrap();
    };
    futures::future::join_all((1..=300).map(fill)).await;
    assert!(names(backend).is_empty());
}

pub(crate) async fn space_is_reserved_and_the_length_kept(_: &Path, backend: &impl DiskBackend) {
    let (id, meta) = entry(1, b"short");
    let file = backend.create(id, Some(1 << 20)).await.unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    #[cfg(target_os = "linux")]
    {
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 >= 1 << 20, "{blocks} blocks");
    }
    let data = vec![Bytes::from_static(b"short")];
    backend.write(&file, 0, data).await.unwrap();
    backend.commit(id, &file, meta).await.unwrap();
    assert!(backend.open(id, 5).await.unwrap().prefetched.is_some());
}

pub(crate) async fn an_emptied_folder_is_made_again(_: &Path, backend: &impl DiskBackend) {
    for shard in fs::read_dir(backend.layout().entries()).unwrap() {
        fs::remove_dir(shard.unwrap().path()).unwrap();
    }
    let id = store(backend, 1, b"0123456789").await;
    assert!(backend.open(id, 0).await.is_ok());
}

pub(crate) async fn a_removed_folder_is_an_error(path: &Path, backend: &impl DiskBackend) {
    let id = store(backend, 1, b"0123456789").await;
    fs::remove_dir_all(backend.layout().entries()).unwrap();
    let next = EntryId {
        generation: 2,
        ..id
    };
    let e = backend.create(next, None).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound);
    let e = backend.open(id, 0).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound);
    backend.remove(id).await.unwrap();
    assert_eq!(fs::read_dir(path).unwrap().count(), 0, "nothing is made");
}

pub(crate) async fn a_read_behind_the_end_is_an_error(_: &Path, backend: &impl DiskBackend) {
    let id = store(backend, 1, b"0123456789").await;
    let open = backend.open(id, 0).await.unwrap();
    let e = backend.read(&open.body, 5, 6).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
    let e = backend.load(&open.body, 5, 6).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
}

pub(crate) async fn the_newest_generation_is_where_tools_look(
    _: &Path,
    backend: &impl DiskBackend,
) {
    assert_eq!(backend.get_file_path(&key()), None);
    store(backend, 1, b"old").await;
    let newest = store(backend, 0x1_0000_0000, b"new").await;
    store(backend, 2, b"old").await;
    let path = backend.get_file_path(&key()).unwrap();
    assert_eq!(path, backend.layout().body(&newest));
    assert_eq!(fs::read(path).unwrap(), b"new");
    assert_eq!(backend.supports_sendfile(), cfg!(target_os = "linux"));
}

pub(crate) async fn an_operation_survives_its_future(_: &Path, backend: &impl DiskBackend) {
    let (id, meta) = entry(1, b"0123456789");
    let file = backend.create(id, None).await.unwrap();
    for (number, byte) in b"0123456789".iter().enumerate() {
        let data = vec![Bytes::copy_from_slice(&[*byte])];
        let mut write = backend.write(&file, number as u64, data);
        // Polled once, and forgotten.
        let _ = futures::poll!(&mut write);
    }
    // What was begun ends some time; there is no handle left to wait on.
    while file.metadata().unwrap().len() < 10
        || fs::read(backend.layout().body_tmp(&id)).unwrap() != b"0123456789"
    {
        tokio::task::yield_now().await;
    }
    backend.commit(id, &file, meta).await.unwrap();
    assert!(backend.open(id, 10).await.is_ok());
}
