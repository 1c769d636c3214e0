//! Tests that every backend passes. Each backend runs the suite in its own tests.

use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;

use crate::cache::io::backend::DiskBackend;
use crate::cache::io::files::EntryFiles;
use crate::cache::io::folder_fd::FolderFd;
use crate::cache::io::nowait::{open_body_nowait, open_nowait};

/// `backend_suite!(backend)`: a test for each function here.
macro_rules! backend_suite {
    ($make:expr) => {
        $crate::cache::io::backend_suite::backend_suite!(@tests $make;
            a_committed_entry_is_found_and_removed
            a_small_body_is_read_along
            a_whole_body_is_read
            what_is_written_can_be_read_before_it_is_committed
            a_discarded_body_leaves_nothing
            a_commit_that_fails_leaves_nothing
            what_is_no_regular_file_is_no_entry
            an_open_body_outlives_removal
            metadata_is_replaced
            pieces_and_offsets_are_kept
            many_operations_at_once
            space_is_reserved_and_the_length_kept
            an_emptied_folder_is_made_again
            a_removed_folder_is_an_error
            a_read_behind_the_end_is_an_error
            an_operation_survives_its_future
        );
    };
    (@tests $make:expr; $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                std::fs::create_dir(dir.path().join("v2")).unwrap();
                $crate::cache::io::backend_suite::$name(dir.path(), &$make).await;
            }
        )*
    };
}
pub(crate) use backend_suite;

/// Metadata, which no backend understands.
const META: &[u8] = b"metadata";

/// The files of one generation of an entry.
fn entry(path: &Path, generation: u64) -> EntryFiles {
    EntryFiles::new(&path.join("v2/ab"), &format!("ab.{generation}"))
}

/// [`entry`] relative to the cache folder.
fn below(generation: u64) -> EntryFiles {
    entry(Path::new(""), generation)
}

async fn store(
    path: &Path,
    backend: &impl DiskBackend,
    generation: u64,
    body: &'static [u8],
) -> EntryFiles {
    let files = entry(path, generation);
    let reserve = Some(body.len() as u64);
    let file = backend.create(&files, reserve).await.unwrap();
    let pieces = body.chunks(3).map(Bytes::from_static).collect();
    backend.write(&file, 0, pieces).await.unwrap();
    backend.commit(&files, &file, META.to_vec()).await.unwrap();
    files
}

/// The names of all files but folders.
fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path.join("v2"))
        .unwrap()
        .flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(crate) async fn a_committed_entry_is_found_and_removed(
    path: &Path,
    backend: &impl DiskBackend,
) {
    let files = store(path, backend, 1, b"0123456789").await;
    assert_eq!(names(path), ["ab.1.body", "ab.1.meta"]);
    let open = backend.open(&files, 0).await.unwrap();
    assert_eq!((&*open.meta, open.body_len), (META, 10));
    assert!(open.prefetched.is_none());
    let open = backend.open_body(&files).await.unwrap();
    assert_eq!(open.body_len, 10);
    let body = backend.read(&open.body, 0, 10).await.unwrap();
    assert_eq!(body, &b"0123456789"[..]);
    let folder = FolderFd::open(path);
    for (len, has_len) in [(9, false), (10, cfg!(target_os = "linux")), (11, false)] {
        assert_eq!(
            open_body_nowait(&folder, below(1), len).is_some(),
            has_len,
            "{len}"
        );
    }

    backend.remove(&files).await.unwrap();
    backend.remove(&files).await.unwrap();
    let e = backend.open(&files, 0).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound);
    let e = backend.open_body(&files).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound);
    assert!(open_body_nowait(&folder, below(1), 10).is_none());
    assert!(names(path).is_empty());
}

pub(crate) async fn a_small_body_is_read_along(path: &Path, backend: &impl DiskBackend) {
    let files = store(path, backend, 1, b"0123456789").await;
    let open = backend.open(&files, 10).await.unwrap();
    assert_eq!(open.prefetched.as_deref(), Some(&b"0123456789"[..]));
    assert!(backend.open(&files, 9).await.unwrap().prefetched.is_none());

    let empty = store(path, backend, 2, b"").await;
    let open = backend.open(&empty, 0).await.unwrap();
    assert_eq!(open.prefetched.as_deref(), Some(&b""[..]));
}

pub(crate) async fn a_whole_body_is_read(path: &Path, backend: &impl DiskBackend) {
    for (generation, body) in [(1, &b"0123456789"[..]), (2, b"")] {
        let files = store(path, backend, generation, body).await;
        let read = backend.read_body(&files, body.len()).await.unwrap();
        assert_eq!(read, body);
        let longer = backend.read_body(&files, body.len() + 1).await;
        assert_eq!(longer.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    let shorter = backend.read_body(&entry(path, 1), 9).await;
    assert_eq!(shorter.unwrap_err().kind(), io::ErrorKind::InvalidData);
    let missing = backend.read_body(&entry(path, 3), 10).await;
    assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
}

pub(crate) async fn what_is_written_can_be_read_before_it_is_committed(
    path: &Path,
    backend: &impl DiskBackend,
) {
    let files = entry(path, 1);
    let file = backend.create(&files, None).await.unwrap();
    for (offset, piece) in [(0, "abc"), (3, "de")] {
        let data = vec![Bytes::from_static(piece.as_bytes())];
        backend.write(&file, offset, data).await.unwrap();
    }
    assert_eq!(backend.read(&file, 1, 4).await.unwrap(), &b"bcde"[..]);
    backend.load(&file, 0, 5).await.unwrap();
    let e = backend.open(&files, 0).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound, "not an entry yet");
}

pub(crate) async fn a_discarded_body_leaves_nothing(path: &Path, backend: &impl DiskBackend) {
    let files = entry(path, 1);
    let file = backend.create(&files, Some(100_000)).await.unwrap();
    let data = vec![Bytes::from_static(b"abc")];
    backend.write(&file, 0, data).await.unwrap();
    assert_eq!(names(path), ["ab.1.body.tmp"]);
    backend.discard(&files).await.unwrap();
    backend.discard(&files).await.unwrap();
    assert!(names(path).is_empty());
}

pub(crate) async fn a_commit_that_fails_leaves_nothing(path: &Path, backend: &impl DiskBackend) {
    let files = entry(path, 1);
    let file = backend.create(&files, None).await.unwrap();
    let data = vec![Bytes::from_static(b"abc")];
    backend.write(&file, 0, data).await.unwrap();
    // No file can be renamed to the name of a folder.
    fs::create_dir(files.meta()).unwrap();
    assert!(backend.commit(&files, &file, META.to_vec()).await.is_err());
    assert_eq!(names(path), ["ab.1.meta"], "only the folder");
}

/// A named pipe without reader or writer.
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
    let files = store(path, backend, 1, b"0123456789").await;
    let folder = FolderFd::open(path);
    for file in [files.meta(), files.body()] {
        let aside = path.join("aside");
        fs::rename(&file, &aside).unwrap();
        for (kind, make) in make {
            make(&file);
            for prefetch in [0, 100] {
                assert!(open_nowait(&folder, &below(1), prefetch).is_none());
                let e = backend.open(&files, prefetch).await.unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{kind}: {e}");
            }
            if file == files.body() {
                let e = backend.read_body(&files, 10).await.unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{kind}: {e}");
                assert!(open_body_nowait(&folder, below(1), 10).is_none());
                let e = backend.open_body(&files).await.unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{kind}: {e}");
            }
            match kind {
                "folder" => fs::remove_dir(&file).unwrap(),
                _ => fs::remove_file(&file).unwrap(),
            }
        }
        fs::rename(&aside, &file).unwrap();
    }
    assert!(backend.open(&files, 100).await.is_ok());
}

pub(crate) async fn an_open_body_outlives_removal(path: &Path, backend: &impl DiskBackend) {
    let files = store(path, backend, 1, b"0123456789").await;
    let open = backend.open(&files, 0).await.unwrap();
    backend.remove(&files).await.unwrap();
    let body = backend.read(&open.body, 0, 10).await.unwrap();
    assert_eq!(body, &b"0123456789"[..]);
}

pub(crate) async fn metadata_is_replaced(path: &Path, backend: &impl DiskBackend) {
    let files = store(path, backend, 1, b"0123456789").await;
    for byte in 0..20 {
        let meta = vec![byte; 5000];
        backend.write_meta(&files, meta.clone()).await.unwrap();
        assert_eq!(backend.open(&files, 0).await.unwrap().meta, meta);
    }
    assert_eq!(names(path).len(), 2, "no temporary file is left");
}

pub(crate) async fn pieces_and_offsets_are_kept(path: &Path, backend: &impl DiskBackend) {
    let body: Vec<u8> = (0..1_000_003u32).map(|i| (i / 3 + i % 251) as u8).collect();
    let files = entry(path, 1);
    let file = backend
        .create(&files, Some(body.len() as u64))
        .await
        .unwrap();
    let mut offset = 0;
    for batch in body.chunks(300_001) {
        let pieces = batch.chunks(777).map(Bytes::copy_from_slice).collect();
        backend.write(&file, offset, pieces).await.unwrap();
        offset += batch.len() as u64;
    }
    backend.commit(&files, &file, META.to_vec()).await.unwrap();
    let open = backend.open(&files, u64::MAX).await.unwrap();
    assert!(open.prefetched.unwrap() == body);
    let middle = backend.read(&open.body, 123_457, 600_000).await.unwrap();
    assert!(middle == body[123_457..723_457]);
    backend.load(&open.body, 5, 1_000_000 - 5).await.unwrap();
}

pub(crate) async fn many_operations_at_once(path: &Path, backend: &impl DiskBackend) {
    let fill = |generation: u64| async move {
        let body = vec![generation as u8; 10_000 + generation as usize];
        let files = entry(path, generation);
        let file = backend.create(&files, None).await.unwrap();
        for (number, piece) in body.chunks(1000).enumerate() {
            let data = vec![Bytes::copy_from_slice(piece)];
            let offset = number as u64 * 1000;
            backend.write(&file, offset, data).await.unwrap();
        }
        backend.commit(&files, &file, META.to_vec()).await.unwrap();
        let open = backend.open(&files, u64::MAX).await.unwrap();
        assert!(open.prefetched.unwrap() == body);
        backend.remove(&files).await.unwrap();
    };
    futures::future::join_all((1..=300).map(fill)).await;
    assert!(names(path).is_empty());
}

pub(crate) async fn space_is_reserved_and_the_length_kept(path: &Path, backend: &impl DiskBackend) {
    let files = entry(path, 1);
    let file = backend.create(&files, Some(1 << 20)).await.unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    #[cfg(target_os = "linux")]
    {
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 >= 1 << 20, "{blocks} blocks");
    }
    let data = vec![Bytes::from_static(b"short")];
    backend.write(&file, 0, data).await.unwrap();
    backend.commit(&files, &file, META.to_vec()).await.unwrap();
    assert!(backend.open(&files, 5).await.unwrap().prefetched.is_some());
}

pub(crate) async fn an_emptied_folder_is_made_again(path: &Path, backend: &impl DiskBackend) {
    for shard in fs::read_dir(path.join("v2")).unwrap() {
        fs::remove_dir(shard.unwrap().path()).unwrap();
    }
    let files = store(path, backend, 1, b"0123456789").await;
    assert!(backend.open(&files, 0).await.is_ok());
}

pub(crate) async fn a_removed_folder_is_an_error(path: &Path, backend: &impl DiskBackend) {
    let files = store(path, backend, 1, b"0123456789").await;
    fs::remove_dir_all(path.join("v2")).unwrap();
    let e = backend.create(&entry(path, 2), None).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound);
    let e = backend.open(&files, 0).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::NotFound);
    backend.remove(&files).await.unwrap();
    assert_eq!(fs::read_dir(path).unwrap().count(), 0, "nothing is made");
}

pub(crate) async fn a_read_behind_the_end_is_an_error(path: &Path, backend: &impl DiskBackend) {
    let files = store(path, backend, 1, b"0123456789").await;
    let open = backend.open(&files, 0).await.unwrap();
    let e = backend.read(&open.body, 5, 6).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
    let e = backend.load(&open.body, 5, 6).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
}

pub(crate) async fn an_operation_survives_its_future(path: &Path, backend: &impl DiskBackend) {
    let files = entry(path, 1);
    let file = backend.create(&files, None).await.unwrap();
    for (number, byte) in b"0123456789".iter().enumerate() {
        let data = vec![Bytes::copy_from_slice(&[*byte])];
        let mut write = backend.write(&file, number as u64, data);
        // Polled once, and forgotten.
        let _ = futures::poll!(&mut write);
    }
    // The operations end some time; no handle is left to wait for.
    while file.metadata().unwrap().len() < 10
        || fs::read(files.body_tmp()).unwrap() != b"0123456789"
    {
        tokio::task::yield_now().await;
    }
    backend.commit(&files, &file, META.to_vec()).await.unwrap();
    assert!(backend.open(&files, 10).await.is_ok());
}
