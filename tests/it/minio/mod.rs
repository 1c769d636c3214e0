//! The proxy in front of a real MinIO, which testcontainers starts.
//!
//! `MINIO_IMAGE` names another image; `tests/minio/build-image` makes one where
//! none can be pulled. Without Docker these tests say that they are skipped;
//! with `REQUIRE_DOCKER=1` they fail.

use std::{collections::HashMap, ops::Deref};

use crate::builder;
use aws_sdk_s3::{
    operation::get_object::GetObjectError,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier},
    Client,
};
use test_support::{
    encode_key, eventually, head, pattern, request, sha256, Bucket, Proxy, Response,
};

pub mod server;

use server::{Server, ACCESS_KEY, SECRET_KEY};

const BUCKET: &str = "assets-bucket";
const MIB: usize = 1024 * 1024;

#[test]
fn the_second_request_for_an_object_is_answered_by_sendfile() {
    let Some(minio) = Minio::start() else { return };
    let model = minio.upload("models/large.bin", 1, 10 * MIB, "application/x-model");
    let proxy = minio.proxy(SECRET_KEY);

    let miss = proxy.get("/assets/models/large.bin");
    model.assert_is(&miss);
    assert_eq!(miss.header("x-cache"), Some("MISS"));
    assert_eq!(proxy.metric("cache_sendfile_total"), 0);

    let hit = proxy.get("/assets/models/large.bin");
    model.assert_is(&hit);
    assert_eq!(hit.header("x-cache"), Some("HIT"));
    assert!(hit.header("age").is_some());
    proxy.expect_metric("cache_sendfile_total", 1);
    proxy.expect_metric("cache_sendfile_bytes_total", model.len());
}

#[test]
fn a_range_of_a_cached_object_goes_by_sendfile_and_a_head_sends_nothing() {
    let Some(minio) = Minio::start() else { return };
    let model = minio.upload("models/large.bin", 2, 10 * MIB, "application/x-model");
    let proxy = minio.proxy(SECRET_KEY);
    let path = "/assets/models/large.bin";
    model.assert_is(&proxy.get(path));

    let range = [("Range", "bytes=1000000-3999999")];
    let part = request(proxy.addr(), "GET", path, &range);
    assert_eq!(part.status, 206);
    assert!(part.complete);
    assert_eq!(
        part.header("content-range"),
        Some("bytes 1000000-3999999/10485760")
    );
    assert_eq!(part.sha256(), sha256(&model.body[1_000_000..4_000_000]));
    proxy.expect_metric("cache_sendfile_total", 1);
    proxy.expect_metric("cache_sendfile_bytes_total", 3_000_000);

    let about = head(proxy.addr(), path);
    assert_eq!(about.status, 200);
    assert_eq!(about.header("content-length"), Some("10485760"));
    assert_eq!(about.header("etag"), Some(model.etag.as_str()));
    assert_eq!(about.header("content-type"), Some("application/x-model"));

    model.assert_is(&proxy.get(path));
    proxy.expect_metric("cache_sendfile_total", 2);
    proxy.expect_metric("cache_sendfile_bytes_total", 3_000_000 + model.len());
}

#[test]
fn keys_that_need_encoding_name_the_same_object() {
    let Some(minio) = Minio::start() else { return };
    let proxy = minio.proxy(SECRET_KEY);
    let keys = [
        "with a space.txt",
        "plus+sign.txt",
        "100%.txt",
        "an%20escape in the name.txt",
        "größe/日本語.txt",
        "reserved/!$&'()*,;=:@.txt",
    ];
    for (seed, key) in (10..).zip(keys) {
        let object = minio.upload(key, seed, 100_000, "text/plain");
        let path = format!("/assets/{}", encode_key(key));
        object.assert_is(&proxy.get(&path));
        object.assert_is(&proxy.get(&path));
        proxy.expect_metric("cache_sendfile_bytes_total", (seed - 9) * object.len());
    }
}

#[test]
fn what_minio_refuses_the_client_is_refused() {
    let Some(minio) = Minio::start() else { return };
    minio.upload("present.bin", 20, 100_000, "application/octet-stream");

    let absent = minio.proxy(SECRET_KEY).get("/assets/absent.bin");
    assert_eq!(absent.status, 404);

    let refused = minio.proxy("not-the-secret").get("/assets/present.bin");
    assert_eq!(refused.status, 403);
}

// --- auth: passthrough ---

#[test]
fn a_client_of_minio_reads_and_writes_through_the_proxy() {
    let Some(minio) = Minio::start() else { return };
    let proxy = minio.relaying_proxy();
    let client = client(&format!("http://{}", proxy.addr()), SECRET_KEY);
    let is_stored = |entries: u64| {
        eventually("the object is stored", || {
            proxy.metric("cache_entries") == entries
        });
    };
    let put = |key: &str, body: Vec<u8>| {
        let put = client.put_object().bucket(BUCKET).key(key);
        let put = put.content_type("text/new").body(ByteStream::from(body));
        minio.runtime.block_on(put.send()).expect("upload");
    };
    let get = |key: &str| {
        minio.runtime.block_on(async {
            let got = client.get_object().bucket(BUCKET).key(key).send().await;
            let got = got.map_err(|e| Box::new(e.into_service_error()))?;
            assert_eq!(got.content_type(), Some("text/new"));
            Ok::<_, Box<GetObjectError>>(got.body.collect().await.expect("the body").to_vec())
        })
    };
    for version in 1..=2 {
        let body = pattern(version, MIB);
        put("a key/ü+.bin", body.clone());
        assert!(
            get("a key/ü+.bin").expect("read") == body,
            "not the old one"
        );
        is_stored(1);
        let before = proxy.metric("cache_sendfile_bytes_total");
        assert!(get("a key/ü+.bin").expect("read") == body);
        proxy.expect_metric("cache_sendfile_bytes_total", before + MIB as u64);
        let part = client.get_object().bucket(BUCKET).key("a key/ü+.bin");
        let part = part.range("bytes=1000-1999");
        let part = minio.runtime.block_on(async {
            let part = part.send().await.expect("a part");
            part.body.collect().await.expect("its body").to_vec()
        });
        assert!(part == body[1000..2000]);
        proxy.expect_metric("cache_sendfile_bytes_total", before + MIB as u64 + 1000);
        let head = client.head_object().bucket(BUCKET).key("a key/ü+.bin");
        let head = minio.runtime.block_on(head.send()).expect("head");
        assert_eq!(head.content_length(), Some(MIB as i64));
    }

    let copy = client.copy_object().bucket(BUCKET).key("copy.bin");
    let copy = copy.copy_source(format!("{BUCKET}/{}", encode_key("a key/ü+.bin")));
    minio.runtime.block_on(copy.send()).expect("copy");
    assert!(get("copy.bin").expect("read") == pattern(2, MIB));
    is_stored(2);
    put("a key/ü+.bin", pattern(3, MIB));
    let copy = client.copy_object().bucket(BUCKET).key("copy.bin");
    let copy = copy.copy_source(format!("{BUCKET}/{}", encode_key("a key/ü+.bin")));
    minio.runtime.block_on(copy.send()).expect("copy again");
    assert!(get("copy.bin").expect("read") == pattern(3, MIB));

    let parts = [pattern(4, 5 * MIB), pattern(5, MIB)];
    minio.runtime.block_on(async {
        let begun = client
            .create_multipart_upload()
            .bucket(BUCKET)
            .key("copy.bin");
        let begun = begun.content_type("text/new").send().await.expect("begin");
        let id = begun.upload_id().expect("an id");
        let mut done = CompletedMultipartUpload::builder();
        for (number, part) in (1..).zip(&parts) {
            let part = client
                .upload_part()
                .bucket(BUCKET)
                .key("copy.bin")
                .upload_id(id)
                .part_number(number)
                .body(ByteStream::from(part.clone()));
            let part = part.send().await.expect("a part");
            let part = CompletedPart::builder()
                .part_number(number)
                .set_e_tag(part.e_tag)
                .build();
            done = done.parts(part);
        }
        let complete = client.complete_multipart_upload().bucket(BUCKET);
        let complete = complete.key("copy.bin").upload_id(id);
        let complete = complete.multipart_upload(done.build()).send();
        complete.await.expect("complete")
    });
    assert!(get("copy.bin").expect("read") == parts.concat());

    let delete = client.delete_object().bucket(BUCKET).key("copy.bin");
    minio.runtime.block_on(delete.send()).expect("delete");
    assert!(get("copy.bin").unwrap_err().is_no_such_key());
    let listed = client.list_objects_v2().bucket(BUCKET).send();
    let listed = minio.runtime.block_on(listed).expect("list");
    assert_eq!(listed.contents().len(), 1);
    let object = ObjectIdentifier::builder().key("a key/ü+.bin").build();
    let objects = Delete::builder()
        .objects(object.expect("an object"))
        .build();
    let delete = client.delete_objects().bucket(BUCKET);
    let delete = delete.delete(objects.expect("objects"));
    minio
        .runtime
        .block_on(delete.send())
        .expect("delete a list");
    assert!(get("a key/ü+.bin").unwrap_err().is_no_such_key());
    is_stored(0);
}

#[test]
fn a_wrong_secret_gets_no_cached_object() {
    let Some(minio) = Minio::start() else { return };
    let proxy = minio.relaying_proxy();
    let endpoint = format!("http://{}", proxy.addr());
    let object = minio.upload("private.bin", 30, MIB, "text/plain");
    let ask = |secret: &str| {
        let client = client(&endpoint, secret);
        minio.runtime.block_on(async {
            let got = client
                .get_object()
                .bucket(BUCKET)
                .key("private.bin")
                .send()
                .await;
            let got = got.map_err(|e| e.raw_response().map(|raw| raw.status().as_u16()))?;
            Ok(got.body.collect().await.expect("the body").to_vec())
        })
    };
    assert!(ask(SECRET_KEY) == Ok(object.body.clone()));
    eventually("it is stored", || proxy.metric("cache_entries") == 1);
    assert_eq!(ask("not-the-secret"), Err(Some(403)));
    let anonymous = proxy.get(&format!("/{BUCKET}/private.bin"));
    assert_eq!(anonymous.status, 403);
    assert!(ask(SECRET_KEY) == Ok(object.body.clone()));
    proxy.expect_metric("cache_sendfile_bytes_total", object.len());
}

/// A MinIO with the bucket.
struct Minio(Server);

/// An object as MinIO holds it.
struct Object {
    body: Vec<u8>,
    content_type: &'static str,
    metadata: HashMap<String, String>,
    etag: String,
}

// === impl Minio ===

impl Minio {
    /// None: there is no Docker, and none is required.
    fn start() -> Option<Self> {
        Server::start(BUCKET).map(Self)
    }

    /// Uploads `len` bytes of the pattern, then asks MinIO what it holds.
    fn upload(&self, key: &str, seed: u64, len: usize, content_type: &'static str) -> Object {
        let put = self
            .client
            .put_object()
            .bucket(BUCKET)
            .key(key)
            .content_type(content_type)
            .metadata("colour", "blue")
            .metadata("seed", seed.to_string())
            .body(ByteStream::from(pattern(seed, len)));
        self.runtime
            .block_on(put.send())
            .unwrap_or_else(|e| panic!("upload {key}: {e:?}"));

        let held = self.runtime.block_on(async {
            let held = self.client.get_object().bucket(BUCKET).key(key);
            let held = held.send().await.expect("ask MinIO for the object");
            assert_eq!(held.content_type(), Some(content_type));
            Object {
                content_type,
                metadata: held.metadata().cloned().unwrap_or_default(),
                etag: held.e_tag().expect("MinIO gives ETags").to_owned(),
                body: held.body.collect().await.expect("read the object").to_vec(),
            }
        });
        assert_eq!(held.body.len(), len, "{key} as MinIO holds it");
        held
    }

    /// A proxy that relays what clients sign.
    fn relaying_proxy(&self) -> Proxy {
        builder()
            .bucket(
                Bucket::new(&format!("/{BUCKET}"), BUCKET)
                    .endpoint(&self.endpoint)
                    .set("auth", "passthrough"),
            )
            .start()
    }

    /// A proxy that serves the bucket under `/assets`.
    fn proxy(&self, secret_key: &str) -> Proxy {
        builder()
            .bucket(
                Bucket::new("/assets", BUCKET)
                    .endpoint(&self.endpoint)
                    .credentials(ACCESS_KEY, secret_key),
            )
            .start()
    }
}

impl Deref for Minio {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

/// A client with these keys of MinIO's user.
fn client(endpoint: &str, secret_key: &str) -> Client {
    server::client(endpoint, ACCESS_KEY, secret_key)
}

// === impl Object ===

impl Object {
    fn len(&self) -> u64 {
        self.body.len() as u64
    }

    /// The response is this object, whole, with what MinIO says about it.
    fn assert_is(&self, response: &Response) {
        assert_eq!(response.status, 200);
        assert!(response.complete);
        assert_eq!(response.sha256(), sha256(&self.body));
        assert_eq!(response.header("etag"), Some(self.etag.as_str()));
        assert_eq!(response.header("content-type"), Some(self.content_type));
        assert!(response.header("last-modified").is_some());
        assert_eq!(response.header("accept-ranges"), Some("bytes"));
        for (name, value) in &self.metadata {
            let name = format!("x-amz-meta-{name}");
            assert_eq!(response.header(&name), Some(value.as_str()), "{name}");
        }
    }
}
