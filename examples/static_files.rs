//! A static file server: the regular files below a folder, sent by `sendfile(2)`.
//!
//! ```text
//! static_files LISTEN FOLDER
//! ```
//!
//! [`Session::write_file_body`] is part of the patched Pingora. There is no cache.

use std::{env, fs::File, io, os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use http::{Method, StatusCode};
use pingora_core::{
    server::{RunArgs, Server},
    upstreams::peer::HttpPeer,
    Error, ErrorType, OrErr, Result,
};
use pingora_http::ResponseHeader;
use pingora_proxy::{range_header_filter, ProxyHttp, RangeType, Session};
use pingora_sendfile::proxy::Listener;
use rustix::fs::{openat, Mode, OFlags};

struct StaticFiles(Arc<OwnedFd>);

#[async_trait]
impl ProxyHttp for StaticFiles {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Error::e_explain(ErrorType::InternalError, "there is no upstream")
    }

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        let request = session.req_header();
        let (root, path) = (self.0.clone(), request.uri.path().to_owned());
        let is_get = request.method == Method::GET;
        if !is_get && request.method != Method::HEAD {
            session.respond_error(405).await?;
            return Ok(true);
        }
        // To open a file can mean to wait for the disk, and worker threads do not wait.
        let opened = tokio::task::spawn_blocking(move || open_below(&root, &path)).await;
        let Ok(file) = opened.or_err(ErrorType::InternalError, "cannot open a file")? else {
            session.respond_error(404).await?;
            return Ok(true);
        };
        let metadata = file.metadata().or_err(ErrorType::FileReadError, "fstat")?;
        let modified = metadata
            .modified()
            .or_err(ErrorType::FileReadError, "fstat")?;
        let mut header = ResponseHeader::build(StatusCode::OK, None)?;
        header.insert_header("Content-Type", media_type(session.req_header().uri.path()))?;
        header.insert_header("Content-Length", metadata.len())?;
        header.insert_header("Last-Modified", httpdate::fmt_http_date(modified))?;
        header.insert_header("Accept-Ranges", "bytes")?;
        // Pingora takes fewer ranges than this limit; otherwise the whole is sent.
        let range = is_get.then(|| range_header_filter(session.req_header(), &mut header, Some(2)));
        let (offset, len) = match range {
            Some(RangeType::Single(part)) => (part.start as u64, part.len() as u64),
            Some(RangeType::Invalid) => (0, 0),
            _ => (0, metadata.len()),
        };
        let no_body = !is_get || len == 0;
        session
            .write_response_header(Box::new(header), no_body)
            .await?;
        if !no_body {
            session.write_file_body(&file, offset, len).await?;
            session.write_response_body(None, true).await?;
        }
        Ok(true)
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, _: &mut ()) {
        let sent = session.as_downstream().body_bytes_zero_copy();
        println!("{} {sent} bytes by sendfile", session.req_header().uri);
    }
}

/// Opens a regular file. Each step is opened below the one before it, and no symbolic link is
/// followed: nothing outside `root` is reached, whatever happens to its folders meanwhile.
fn open_below(root: &OwnedFd, path: &str) -> io::Result<Arc<File>> {
    let path: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    let mut opened = root.try_clone()?;
    for name in path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
    {
        if name == b".." {
            return Err(io::ErrorKind::NotFound.into());
        }
        // Without NONBLOCK, the open of a FIFO waits for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        opened = openat(&opened, name, flags, Mode::empty())?;
    }
    let file = File::from(opened);
    match file.metadata()?.is_file() {
        true => Ok(Arc::new(file)),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "css" => "text/css",
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(listen), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: static_files LISTEN FOLDER".into());
    };
    let files = StaticFiles(Arc::new(File::open(folder)?.into()));
    let mut server = Server::new(None)?;
    server.bootstrap();
    let mut service = pingora_proxy::http_proxy_service(&server.configuration, files);
    let listener = Listener::reserve(listen.parse()?, "LISTEN")?;
    println!("listening on {}", listener.address());
    service.add_tcp_with_settings(&listener.address().to_string(), listener.options());
    server.add_service(service);
    server.run(RunArgs::default());
    Ok(())
}
