//! The SDK for Rust.

use std::{fs, path::Path};

use aws_sdk_s3::{primitives::ByteStream, Client};
use tokio::runtime::Runtime;

use super::tool::{Access, Op, Outcome, Tool, BUCKET};
use crate::minio::server::client;

/// aws-sdk-s3, which has no transfer manager.
pub struct Sdk(Runtime);

// === impl Sdk ===

impl Sdk {
    pub fn new() -> Self {
        Self(Runtime::new().expect("start a runtime"))
    }
}

impl Tool for Sdk {
    fn name(&self) -> &str {
        "aws-sdk-s3"
    }

    fn run(&self, access: &Access, op: &Op) -> Option<Outcome> {
        if matches!(op, Op::SyncDown(..) | Op::SyncUp(..)) {
            return None;
        }
        let client = client(&access.endpoint, &access.access_key, &access.secret_key);
        let done = self.0.block_on(run(client, op));
        Some(match done {
            Ok(stdout) => Outcome {
                ok: true,
                stdout,
                stderr: String::new(),
            },
            Err(stderr) => Outcome {
                ok: false,
                stdout: String::new(),
                stderr,
            },
        })
    }
}

async fn run(client: Client, op: &Op<'_>) -> Result<String, String> {
    match op {
        Op::List(prefix) => {
            let list = client.list_objects_v2().bucket(BUCKET).prefix(*prefix);
            let mut pages = list.into_paginator().page_size(2).send();
            let mut keys = String::new();
            while let Some(page) = pages.next().await {
                for object in page.map_err(debug)?.contents() {
                    keys += object.key().unwrap_or_default();
                    keys.push('\n');
                }
            }
            Ok(keys)
        }
        Op::Head(key) => {
            let head = client.head_object().bucket(BUCKET).key(*key).send().await;
            Ok(format!(
                "{:?}",
                head.map_err(debug)?.content_length().unwrap_or(-1)
            ))
        }
        Op::Get(key, to) => get(&client, key, None, to).await,
        Op::Range(key, start, end, to) => {
            let end = end.map_or(String::new(), |end| end.to_string());
            get(&client, key, Some(format!("bytes={start}-{end}")), to).await
        }
        Op::Put(from, key) => {
            let body = ByteStream::from_path(from).await.map_err(debug)?;
            let put = client.put_object().bucket(BUCKET).key(*key).body(body);
            put.send().await.map_err(debug)?;
            Ok(String::new())
        }
        Op::Copy(from, to) => {
            let copy = client.copy_object().bucket(BUCKET).key(*to);
            let copy = copy.copy_source(format!("{BUCKET}/{from}"));
            copy.send().await.map_err(debug)?;
            Ok(String::new())
        }
        Op::Delete(key) => {
            let delete = client.delete_object().bucket(BUCKET).key(*key);
            delete.send().await.map_err(debug)?;
            Ok(String::new())
        }
        Op::SyncDown(..) | Op::SyncUp(..) => Err("the SDK does not sync".to_owned()),
    }
}

async fn get(
    client: &Client,
    key: &str,
    range: Option<String>,
    to: &Path,
) -> Result<String, String> {
    let get = client.get_object().bucket(BUCKET).key(key).set_range(range);
    let body = get.send().await.map_err(debug)?.body;
    let bytes = body.collect().await.map_err(debug)?.into_bytes();
    fs::write(to, &bytes).map_err(debug)?;
    Ok(String::new())
}

fn debug(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}
