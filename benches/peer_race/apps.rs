//! Pingora apps that serve objects with what Pingora offers without the patches.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use pingora_core::{
    apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream},
    protocols::http::ServerSession,
    server::{
        configuration::{Opt, ServerConf},
        RunArgs, Server, ShutdownWatch,
    },
    services::listening::Service,
    ErrorType, OkOrErr, OrErr, Result,
};
use pingora_http::ResponseHeader;
use pingora_sendfile::proxy::Endpoint;
use tokio::{fs::File, io::AsyncReadExt};

use crate::{objects, roles::announce};

pub const WHOLE: &str = "whole";
pub const MEMORY: &str = "memory";
pub const CHUNKS: &str = "chunks";

const CHUNK: usize = 64 * 1024;

/// How a body gets from its file to the client.
enum Way {
    /// The whole file is read, then written.
    Whole,
    /// It was read before the start.
    Memory(HashMap<(u64, u64), Bytes>),
    /// A piece is read and written, then the next.
    Chunks,
}

struct App {
    dir: PathBuf,
    way: Way,
}

/// Serves the objects in `dir` until the process is killed.
pub fn serve(way: &str, dir: &Path) {
    let way = match way {
        WHOLE => Way::Whole,
        MEMORY => Way::Memory(read_all(dir).expect("read the objects")),
        CHUNKS => Way::Chunks,
        other => panic!("no way to serve: {other}"),
    };
    let conf = ServerConf {
        threads: 1,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(Opt::default(), conf);
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let endpoint = Endpoint::reserve(any, "the app").expect("find a free port");
    let app = App {
        dir: dir.to_owned(),
        way,
    };
    let mut service = Service::new("app".into(), app);
    service.add_tcp_with_settings(&endpoint.address().to_string(), endpoint.options());
    server.add_service(service);
    server.bootstrap();
    thread::spawn(move || {
        endpoint.wait_until_served();
        announce(endpoint.address());
    });
    server.run(RunArgs::default());
}

fn read_all(dir: &Path) -> io::Result<HashMap<(u64, u64), Bytes>> {
    let mut all = HashMap::new();
    for folder in fs::read_dir(dir)? {
        for object in fs::read_dir(folder?.path())? {
            let path = object?.path();
            if let Some(id) = path.to_str().and_then(objects::parse) {
                all.insert(id, fs::read(&path)?.into());
            }
        }
    }
    Ok(all)
}

impl App {
    async fn respond(&self, session: &mut ServerSession) -> Result<()> {
        let id = objects::parse(session.req_header().uri.path());
        let (len, index) = id.or_err(ErrorType::HTTPStatus(404), "no such object")?;
        let mut header = ResponseHeader::build(200, Some(6))?;
        header.insert_header("content-length", len)?;
        header.insert_header("content-type", "binary/octet-stream")?;
        header.insert_header("etag", format!("\"{:x}\"", len + index))?;
        header.insert_header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")?;
        header.insert_header("cache-control", "max-age=86400")?;
        header.insert_header("x-cache", "HIT")?;
        let path = || objects::file(&self.dir, len, index);
        let failed = "reading an object";
        match &self.way {
            Way::Memory(bodies) => {
                let body = bodies.get(&(len, index)).cloned();
                let body = body.or_err(ErrorType::HTTPStatus(404), "no such object")?;
                session.write_response_header(Box::new(header)).await?;
                session.write_response_body(body, true).await
            }
            Way::Whole => {
                let read = tokio::fs::read(path()).await;
                let body = read.or_err(ErrorType::FileReadError, failed)?;
                session.write_response_header(Box::new(header)).await?;
                session.write_response_body(body.into(), true).await
            }
            Way::Chunks => {
                let opened = File::open(path()).await;
                let mut file = opened.or_err(ErrorType::FileOpenError, failed)?;
                session.write_response_header(Box::new(header)).await?;
                let mut left = len as usize;
                while left > 0 {
                    let mut piece = BytesMut::with_capacity(left.min(CHUNK));
                    let read = file.read_buf(&mut piece).await;
                    let n = read.or_err(ErrorType::FileReadError, failed)?;
                    left = left.checked_sub(n).filter(|_| n > 0).or_err(
                        ErrorType::FileReadError,
                        "an object is not as long as it should be",
                    )?;
                    session
                        .write_response_body(piece.freeze(), left == 0)
                        .await?;
                }
                Ok(())
            }
        }
    }
}

#[async_trait]
impl HttpServerApp for App {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        _: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !matches!(session.read_request().await, Ok(true)) {
            return None;
        }
        session.set_keepalive(Some(600));
        if let Err(e) = self.respond(&mut session).await {
            eprintln!("peer_race: {e}");
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }
}
