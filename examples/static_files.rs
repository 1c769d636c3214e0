//! A static file server, `static_files LISTEN FOLDER`: it sends the files below a folder by
//! `sendfile(2)`. [`Session::write_file_body`] is part of the patched Pingora. There is no cache.

use std::{env, fs::File, io, path::Path, sync::Arc};

use http::Method;
use percent_encoding::percent_decode_str;
use pingora_core::{server::Server, upstreams::peer::HttpPeer, Error, ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::{http_proxy_service, range_header_filter, ProxyHttp, RangeType, Session};
use pingora_sendfile::proxy::Listener;

struct StaticFiles(Arc<Path>);

#[async_trait::async_trait]
impl ProxyHttp for StaticFiles {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Error::e_explain(ErrorType::InternalError, "there is no upstream")
    }

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        let (folder, request) = (self.0.clone(), session.req_header());
        let (method, path) = (request.method.clone(), request.uri.path().to_owned());
        if !matches!(method, Method::GET | Method::HEAD) {
            return session.respond_error(405).await.map(|()| true);
        }
        // To open a file can mean to wait for the disk, and worker threads do not wait.
        let opened = tokio::task::spawn_blocking(move || open_below(&folder, &path)).await;
        let Ok((file, len)) = opened.or_err(ErrorType::InternalError, "cannot open a file")? else {
            return session.respond_error(404).await.map(|()| true);
        };
        let mut header = Box::new(ResponseHeader::build(200, None)?);
        header.insert_header("Content-Length", len)?;
        header.insert_header("Accept-Ranges", "bytes")?;
        // Pingora takes fewer ranges than this limit; otherwise the whole is sent. Only a GET has ranges.
        let range = (method == Method::GET)
            .then(|| range_header_filter(session.req_header(), &mut header, Some(2)));
        let (offset, len) = match range {
            Some(RangeType::Single(part)) => (part.start as u64, part.len() as u64),
            Some(RangeType::Invalid) => (0, 0),
            _ => (0, len),
        };
        session.write_response_header(header, false).await?;
        // Nothing is written in response to a HEAD.
        session.write_file_body(&file, offset, len).await?;
        session.write_response_body(None, true).await?;
        let sent = session.as_downstream().body_bytes_zero_copy();
        println!("{} {sent} bytes by sendfile", session.req_header().uri);
        Ok(true)
    }
}

/// Opens a regular file, and returns its length. A link may lead to a place below `folder`.
fn open_below(folder: &Path, path: &str) -> io::Result<(Arc<File>, u64)> {
    let path = percent_decode_str(path.trim_start_matches('/'));
    let path = folder.join(&*path.decode_utf8_lossy()).canonicalize()?;
    if !path.starts_with(folder) || !path.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    Ok((Arc::new(file), len))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [listen, folder] = &env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err("usage: static_files LISTEN FOLDER".into());
    };
    let files = StaticFiles(Path::new(folder).canonicalize()?.into());
    let mut server = Server::new(None)?;
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, files);
    let listener = Listener::reserve(listen.parse()?, "LISTEN")?;
    println!("listening on {}", listener.address());
    service.add_tcp_with_settings(&listener.address().to_string(), listener.options());
    server.add_service(service);
    server.run_forever()
}
