//! Pingora apps that serve objects with what the published Pingora offers: peers of
//! the benchmark `peer_race`. `stock-peers WAY DIR` prints its address and serves
//! the objects in DIR until it is killed.

#![forbid(unsafe_code)]

#[path = "../../peer_race/paths.rs"]
mod paths;

use std::{
    collections::HashMap,
    env, fs,
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use pingora_core::{
    apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream},
    listeners::TcpSocketOptions,
    protocols::http::ServerSession,
    server::{
        configuration::{Opt, ServerConf},
        RunArgs, Server, ShutdownWatch,
    },
    services::listening::Service,
    ErrorType, OkOrErr, OrErr, Result,
};
use pingora_http::ResponseHeader;
use socket2::{Domain, Socket, Type};
use tokio::{fs::File, io::AsyncReadExt};

/// As the proxy has, in the version that is better for large buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CHUNK: usize = 64 * 1024;

/// The way of a body from its file to the client.
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

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let way = match arguments.as_slice() {
        [way, dir] if way == "whole" => Some((Way::Whole, dir)),
        [way, dir] if way == "chunks" => Some((Way::Chunks, dir)),
        [way, dir] if way == "memory" => {
            let bodies = read_all(Path::new(dir)).expect("read the objects");
            Some((Way::Memory(bodies), dir))
        }
        _ => None,
    };
    let Some((way, dir)) = way else {
        eprintln!("usage: stock-peers whole|memory|chunks DIR");
        return ExitCode::from(2);
    };
    serve(App {
        dir: dir.into(),
        way,
    });
    ExitCode::SUCCESS
}

fn serve(app: App) {
    let conf = ServerConf {
        // As the proxy with one thread, so that this is no difference.
        threads: 1,
        work_stealing: false,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(Opt::default(), conf);
    // It never listens, and keeps the port for the server.
    let reserved = Socket::new(Domain::IPV4, Type::STREAM, None).expect("make a socket");
    reserved.set_reuse_port(true).expect("set SO_REUSEPORT");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    reserved.bind(&any.into()).expect("find a free port");
    let addr = reserved.local_addr().expect("the port found");
    let addr = addr.as_socket().expect("an IP address");
    let mut options = TcpSocketOptions::default();
    options.so_reuseport = Some(true);
    let mut service = Service::new("app".into(), app);
    service.add_tcp_with_settings(&addr.to_string(), options);
    server.add_service(service);
    server.bootstrap();
    thread::spawn(move || {
        while TcpStream::connect(addr).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
        println!("{addr}");
        io::stdout().flush().expect("write to stdout");
    });
    server.run(RunArgs::default());
}

fn read_all(dir: &Path) -> io::Result<HashMap<(u64, u64), Bytes>> {
    let mut all = HashMap::new();
    for folder in fs::read_dir(dir)? {
        for object in fs::read_dir(folder?.path())? {
            let path = object?.path();
            if let Some(id) = path.to_str().and_then(paths::parse) {
                all.insert(id, fs::read(&path)?.into());
            }
        }
    }
    Ok(all)
}

impl App {
    async fn respond(&self, session: &mut ServerSession) -> Result<()> {
        let id = paths::parse(session.req_header().uri.path());
        let (len, index) = id.or_err(ErrorType::HTTPStatus(404), "no such object")?;
        let mut header = ResponseHeader::build(200, Some(6))?;
        header.insert_header("content-length", len)?;
        header.insert_header("content-type", "binary/octet-stream")?;
        header.insert_header("etag", format!("\"{:x}\"", len + index))?;
        header.insert_header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")?;
        header.insert_header("cache-control", "max-age=86400")?;
        header.insert_header("x-cache", "HIT")?;
        let path = || paths::file(&self.dir, len, index);
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
            eprintln!("stock-peers: {e}");
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }
}
