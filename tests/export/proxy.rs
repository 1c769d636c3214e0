//! A proxy of somebody else: it serves one file by itself and caches the rest
//! on disk.

use std::{fs::File, sync::Arc};

use async_trait::async_trait;
use pingora_cache::CacheKey;
use pingora_core::{upstreams::peer::HttpPeer, Result};
use pingora_proxy::{ProxyHttp, Session};
use pingora_sendfile::cache::{DiskCache, DiskCacheConfig};

struct MyProxy {
    cache: &'static DiskCache,
    file: Arc<File>,
    len: u64,
}

#[async_trait]
impl ProxyHttp for MyProxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(
            "127.0.0.1:9000",
            false,
            String::new(),
        )))
    }

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        if session.req_header().uri.path() != "/file" {
            return Ok(false);
        }
        let mut header = pingora_http::ResponseHeader::build(200, None)?;
        header.insert_header("Content-Length", self.len)?;
        session
            .write_response_header(Box::new(header), false)
            .await?;
        session.write_file_body(&self.file, 0, self.len).await?;
        session.write_response_body(None, true).await?;
        Ok(true)
    }

    fn request_cache_filter(&self, session: &mut Session, _: &mut ()) -> Result<()> {
        session.cache.enable(self.cache, None, None, None, None);
        Ok(())
    }

    fn cache_key_callback(&self, session: &Session, _: &mut ()) -> Result<CacheKey> {
        Ok(CacheKey::new(
            "my-proxy",
            session.req_header().uri.to_string(),
        ))
    }

    fn needs_response_body(&self, _: &Session, _: &()) -> bool {
        false
    }
}

fn main() {
    let file = File::open("file").expect("open the file");
    let proxy = MyProxy {
        cache: DiskCache::open(DiskCacheConfig::new("cache", 1 << 30)).expect("open the cache"),
        len: file.metadata().expect("the file's length").len(),
        file: Arc::new(file),
    };
    let mut server = pingora_core::server::Server::new(None).expect("a server");
    let mut service = pingora_proxy::http_proxy_service(&server.configuration, proxy);
    service.add_tcp("127.0.0.1:8080");
    server.add_service(service);
    server.run_forever();
}
