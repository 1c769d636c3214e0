//! An embedded S3 server over a folder: the origin of `s3-proxy demo` and of
//! the tests. It is not made for a network.

use std::future::Future;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::header::{
    HeaderMap, HeaderValue, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::sync::oneshot;

/// The bucket that [`write_sample_folder`] makes.
pub const SAMPLE_BUCKET: &str = "samples";

/// The longest time that running responses may take once the server is dropped.
const GRACE_PERIOD: Duration = Duration::from_secs(1);

/// A running S3 server on a free port of 127.0.0.1. It takes path-style requests over HTTP/1,
/// signed with the pair of keys that it was started with.
///
/// All files in its folder are objects. Dropping it stops it: it takes no new connection, lets
/// running responses end for up to a second, and joins its thread.
#[derive(Debug)]
pub struct S3Server {
    addr: SocketAddr,
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    body_bytes: AtomicU64,
}

/// A response body that counts its bytes.
struct Counted {
    body: Pin<Box<s3s::Body>>,
    counters: Arc<Counters>,
}

// === impl S3Server ===

impl S3Server {
    /// Starts a server over `root`, each subfolder of which is a bucket. It accepts connections
    /// when this returns.
    ///
    /// # Errors
    /// `root` is not a folder, or no socket or thread is available.
    pub fn start(root: &Path, access_key: &str, secret_key: &str) -> io::Result<S3Server> {
        if !root.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{} is not a folder; create it first", root.display()),
            ));
        }
        let files = s3s_fs::FileSystem::new(root).map_err(|error| {
            io::Error::other(format!("{} cannot be served: {error:?}", root.display()))
        })?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let service = builder.build();

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel();
        let thread = {
            let counters = Arc::clone(&counters);
            thread::Builder::new()
                .name("s3-server".to_owned())
                .spawn(move || {
                    runtime.block_on(serve(listener, service, counters, stopped));
                    // A read of a file that hangs must not hold up the drop.
                    runtime.shutdown_background();
                })?
        };
        Ok(S3Server {
            addr,
            counters,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The address of the server.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Requests received so far, refused ones included.
    pub fn requests(&self) -> u64 {
        self.counters.requests.load(Ordering::Relaxed)
    }

    /// Bytes of response bodies handed to connections so far, those of error
    /// messages included.
    pub fn body_bytes(&self) -> u64 {
        self.counters.body_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Either fails only if the thread is gone already.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: tokio::net::TcpListener,
    service: S3Service,
    counters: Arc<Counters>,
    mut stopped: oneshot::Receiver<()>,
) {
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: the listener stays readable, so
            // without a pause this would spin until one is closed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Without it the last segment of a body may wait for an ACK.
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        let counters = Arc::clone(&counters);
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| answer(service.clone(), Arc::clone(&counters), request)),
            );
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // A client that goes away is no event of the server.
            let _ = connection.await;
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE_PERIOD, connections.shutdown()).await;
}

fn answer(
    service: S3Service,
    counters: Arc<Counters>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Counted>, s3s::HttpError>> {
    counters.requests.fetch_add(1, Ordering::Relaxed);
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let conditions = request.headers().clone();
    let path = request.uri().path().to_owned();
    async move {
        let mut response = service.call(request.map(s3s::Body::from)).await?;
        let found = matches!(
            response.status(),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT
        );
        if is_read && found {
            finish_read(&conditions, &path, &mut response);
        }
        Ok(response.map(|body| Counted {
            body: Box::pin(body),
            counters,
        }))
    }
}

/// Adds to the response to a GET or HEAD what s3s-fs 0.14 lacks: a type for files that were not
/// uploaded, and conditional requests.
fn finish_read(request: &HeaderMap, path: &str, response: &mut s3s::HttpResponse) {
    if response.headers().contains_key(ETAG) {
        response
            .headers_mut()
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static(content_type(path)));
    }
    if is_not_modified(request, response.headers()) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        for name in [CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE] {
            response.headers_mut().remove(name);
        }
        *response.body_mut() = s3s::Body::empty();
    }
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.') {
        Some((_, "html")) => "text/html; charset=utf-8",
        Some((_, "txt")) => "text/plain; charset=utf-8",
        // S3 stores this type if an upload names none.
        _ => "binary/octet-stream",
    }
}

/// Evaluates RFC 9110 §13.1.2 and §13.1.3, dates only by equality: a client that revalidates
/// sends back the date that it was given.
fn is_not_modified(request: &HeaderMap, response: &HeaderMap) -> bool {
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    if request.contains_key(IF_NONE_MATCH) {
        let Some(current) = response.get(ETAG).and_then(text) else {
            return false;
        };
        // s3s makes strong tags of hexadecimal digits: no comma within one.
        return request
            .get_all(IF_NONE_MATCH)
            .iter()
            .filter_map(text)
            .any(|list| {
                list.split(',')
                    .map(str::trim)
                    .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == current)
            });
    }
    match (request.get(IF_MODIFIED_SINCE), response.get(LAST_MODIFIED)) {
        (Some(asked), Some(current)) => asked == current,
        _ => false,
    }
}

// === impl Counted ===

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = <s3s::Body as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = self.body.as_mut().poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            self.counters
                .body_bytes
                .fetch_add(bytes as u64, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Makes the bucket [`SAMPLE_BUCKET`] in `root`, and `root` itself, with three
/// objects: `hello.txt`, `page.html`, and `10MiB.bin`, whose bytes look random
/// but are the same each time.
///
/// # Errors
/// A folder or file cannot be written.
pub fn write_sample_folder(root: &Path) -> io::Result<()> {
    let bucket = root.join(SAMPLE_BUCKET);
    std::fs::create_dir_all(&bucket)?;
    std::fs::write(bucket.join("hello.txt"), "Hello from the sample bucket.\n")?;
    std::fs::write(
        bucket.join("page.html"),
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><title>Sample</title></head>\n\
         <body><p>A page from the sample bucket.</p></body>\n</html>\n",
    )?;
    let mut file = io::BufWriter::new(std::fs::File::create(bucket.join("10MiB.bin"))?);
    // xorshift64: Marsaglia, "Xorshift RNGs", Journal of Statistical Software
    // 8(14), 2003; the shifts 13, 7, 17.
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    for _ in 0..(10 << 20) / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::{
        Bucket, ConnectionOptions, Credentials, ObjectKey, Origin, S3Endpoint, Signer,
    };
    use std::io::Read;
    use std::net::TcpStream;
    use std::time::SystemTime;

    const HELLO: &[u8] = b"Hello from the sample bucket.\n";

    struct Fixture {
        folder: tempfile::TempDir,
        server: S3Server,
    }

    struct Reply {
        status: u16,
        head: String,
        body: Vec<u8>,
    }

    impl Reply {
        fn read(stream: &mut TcpStream) -> Reply {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            Reply {
                status: head[9..12].parse().unwrap(),
                head,
                body: bytes[end + 4..].to_vec(),
            }
        }

        fn header(&self, name: &str) -> Option<&str> {
            self.head.lines().find_map(|line| {
                let (found, value) = line.split_once(": ")?;
                found.eq_ignore_ascii_case(name).then_some(value)
            })
        }
    }

    impl Fixture {
        fn new() -> Fixture {
            let folder = tempfile::tempdir().unwrap();
            write_sample_folder(folder.path()).unwrap();
            let server = S3Server::start(folder.path(), "access", "secret").unwrap();
            Fixture { folder, server }
        }

        fn bucket(&self, secret_key: &str) -> Bucket {
            Bucket {
                path_prefix: Some("/".to_owned()),
                hosts: Vec::new(),
                name: SAMPLE_BUCKET.to_owned(),
                key_prefix: String::new(),
                principal: Some("access".to_owned()),
                region: "us-east-1".to_owned(),
                endpoint: S3Endpoint::parse(&format!("http://{}", self.server.addr())).ok(),
                credentials: Some(
                    Credentials::new("access", secret_key, None, None, "test").into(),
                ),
                passthrough: false,
                connection: ConnectionOptions::default(),
            }
        }

        fn origin(&self) -> Origin {
            Origin::new(self.bucket("secret"))
        }

        fn send(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Reply {
            let mut stream = TcpStream::connect(self.server.addr()).unwrap();
            let mut request = format!(
                "{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n",
                self.server.addr()
            );
            for (name, value) in headers {
                request.push_str(&format!("{name}: {value}\r\n"));
            }
            request.push_str("\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            Reply::read(&mut stream)
        }

        fn send_signed(
            &self,
            signer: &Signer,
            method: &str,
            target: &str,
            headers: &[(&str, &str)],
        ) -> Reply {
            let host = self.server.addr().to_string();
            let signature = signer
                .sign(method, &host, target, headers, SystemTime::now())
                .unwrap();
            let mut all = headers.to_vec();
            all.extend(signature.iter().map(|(n, v)| (n.as_str(), v.as_str())));
            self.send(method, target, &all)
        }

        /// A request for an object of the sample bucket, as the proxy makes it.
        fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
            let origin = self.origin();
            let target = origin.target(&ObjectKey::from_request_path(path).unwrap());
            self.send_signed(origin.signer().unwrap(), method, &target, headers)
        }
    }

    #[test]
    fn a_signed_get_yields_the_object() {
        let fixture = Fixture::new();
        let reply = fixture.ask("GET", "hello.txt", &[]);
        assert_eq!(reply.status, 200, "{}", reply.head);
        assert_eq!(reply.body, HELLO);
        assert_eq!(reply.header("content-length"), Some("30"));
        assert_eq!(
            reply.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert!(reply.header("etag").is_some(), "{}", reply.head);
        assert!(reply.header("last-modified").is_some(), "{}", reply.head);
        assert_eq!(fixture.server.requests(), 1);
        assert_eq!(fixture.server.body_bytes(), HELLO.len() as u64);
    }

    #[test]
    fn a_large_object_arrives_whole() {
        let fixture = Fixture::new();
        let reply = fixture.ask("GET", "10MiB.bin", &[]);
        let file = fixture.folder.path().join("samples/10MiB.bin");
        assert_eq!(reply.body.len(), 10 << 20);
        assert!(reply.body == std::fs::read(file).unwrap());
        assert_eq!(fixture.server.body_bytes(), 10 << 20);
    }

    #[test]
    fn head_yields_the_same_header_and_no_body() {
        let fixture = Fixture::new();
        let get = fixture.ask("GET", "10MiB.bin", &[]);
        let head = fixture.ask("HEAD", "10MiB.bin", &[]);
        assert_eq!(head.status, 200);
        assert!(head.body.is_empty());
        for name in ["content-length", "content-type", "etag", "last-modified"] {
            assert!(get.header(name).is_some(), "{name}");
            assert_eq!(head.header(name), get.header(name), "{name}");
        }
    }

    #[test]
    fn a_range_yields_its_bytes() {
        let fixture = Fixture::new();
        for (range, body, content_range) in [
            ("bytes=0-4", &b"Hello"[..], "bytes 0-4/30"),
            ("bytes=22-", b"bucket.\n", "bytes 22-29/30"),
            ("bytes=-8", b"bucket.\n", "bytes 22-29/30"),
        ] {
            let reply = fixture.ask("GET", "hello.txt", &[("range", range)]);
            assert_eq!(reply.status, 206, "{}", reply.head);
            assert_eq!(reply.body, body, "{range}");
            assert_eq!(reply.header("content-range"), Some(content_range));
        }
        let reply = fixture.ask("GET", "hello.txt", &[("range", "bytes=30-")]);
        assert_eq!(reply.status, 416, "{}", reply.head);
    }

    #[test]
    fn only_the_right_key_opens_the_bucket() {
        let fixture = Fixture::new();
        let target = "/samples/hello.txt";
        assert_eq!(fixture.send("GET", target, &[]).status, 403);
        let stranger = Signer::from_bucket(&fixture.bucket("wrong")).unwrap();
        let reply = fixture.send_signed(&stranger, "GET", target, &[]);
        assert_eq!(reply.status, 403);
        assert!(!reply.body.windows(5).any(|w| w == b"Hello"));
        assert_eq!(fixture.server.requests(), 2);
    }

    #[test]
    fn an_object_that_is_not_there_is_not_found() {
        assert_eq!(Fixture::new().ask("GET", "nothing", &[]).status, 404);
    }

    #[test]
    fn keys_of_every_kind_arrive_right() {
        let fixture = Fixture::new();
        for (name, path) in [
            ("a b", "a%20b"),
            ("a+b", "a+b"),
            ("grüße 📦+1%.txt", "gr%C3%BC%C3%9Fe%20%F0%9F%93%A6+1%25.txt"),
            ("100%25", "100%2525"),
            ("q?x=1&y#z", "q%3Fx=1&y%23z"),
            ("sub folder/x", "sub%20folder%2Fx"),
        ] {
            let file = fixture.folder.path().join(SAMPLE_BUCKET).join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, name).unwrap();
            let reply = fixture.ask("GET", path, &[]);
            assert_eq!(reply.status, 200, "{name}: {}", reply.head);
            assert_eq!(reply.body, name.as_bytes());
        }
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let fixture = Fixture::new();
        let first = fixture.ask("GET", "hello.txt", &[]);
        let etag = first.header("etag").unwrap();
        let date = first.header("last-modified").unwrap();
        let weak = format!("\"other\", W/{etag}");
        for headers in [
            &[("if-none-match", etag)][..],
            &[("if-none-match", &weak)],
            &[("if-none-match", "*")],
            &[("if-modified-since", date)],
        ] {
            for method in ["GET", "HEAD"] {
                let reply = fixture.ask(method, "hello.txt", headers);
                assert_eq!(reply.status, 304, "{headers:?}: {}", reply.head);
                assert!(reply.body.is_empty());
                assert_eq!(reply.header("etag"), Some(etag));
            }
        }
        for headers in [
            &[("if-none-match", "\"other\"")][..],
            &[("if-none-match", "\"other\""), ("if-modified-since", date)],
            &[("if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT")],
        ] {
            let reply = fixture.ask("GET", "hello.txt", headers);
            assert_eq!(reply.status, 200, "{headers:?}: {}", reply.head);
            assert_eq!(reply.body, HELLO);
        }
    }

    #[test]
    fn what_an_upload_says_of_itself_is_kept() {
        let fixture = Fixture::new();
        let described = [
            ("cache-control", "max-age=60"),
            ("content-type", "image/x-test"),
            ("x-amz-meta-colour", "green"),
        ];
        // An upload without a body, and a copy of an object onto itself: the
        // two that need no signature over a body.
        let mut upload = described.to_vec();
        upload.push(("content-length", "0"));
        let reply = fixture.ask("PUT", "new.txt", &upload);
        assert_eq!(reply.status, 200, "{}", reply.head);

        let mut copy = described.to_vec();
        copy.push(("x-amz-copy-source", "/samples/hello.txt"));
        copy.push(("x-amz-metadata-directive", "REPLACE"));
        let reply = fixture.ask("PUT", "hello.txt", &copy);
        assert_eq!(reply.status, 200, "{}", reply.head);

        for (path, body) in [("new.txt", &b""[..]), ("hello.txt", HELLO)] {
            for method in ["GET", "HEAD"] {
                let reply = fixture.ask(method, path, &[]);
                assert_eq!(reply.status, 200, "{path}: {}", reply.head);
                for (name, value) in described {
                    assert_eq!(reply.header(name), Some(value), "{path}: {}", reply.head);
                }
                if method == "GET" {
                    assert_eq!(reply.body, body);
                }
            }
        }
    }

    #[test]
    fn a_dropped_server_closes_its_connections_and_its_port() {
        let fixture = Fixture::new();
        let addr = fixture.server.addr();
        let mut idle = TcpStream::connect(addr).unwrap();
        idle.write_all(b"HEAD /samples/hello.txt HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        let mut first = [0];
        idle.read_exact(&mut first).unwrap();
        drop(fixture.server);
        // Ends only because the server closes the connection it had kept.
        idle.read_to_end(&mut Vec::new()).unwrap();
        assert!(TcpStream::connect(addr).is_err());
    }

    #[test]
    fn a_client_that_takes_nothing_does_not_hold_up_the_drop() {
        let fixture = Fixture::new();
        let origin = fixture.origin();
        let host = fixture.server.addr().to_string();
        // More than the buffers of both sockets hold.
        let size = 64 << 20;
        std::fs::File::create(fixture.folder.path().join("samples/large"))
            .and_then(|file| file.set_len(size))
            .unwrap();
        let target = "/samples/large";
        let signed = origin
            .signer()
            .unwrap()
            .sign("GET", &host, target, &[], SystemTime::now())
            .unwrap();
        let mut request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n");
        for (name, value) in signed {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        let mut client = TcpStream::connect(fixture.server.addr()).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        client.read_exact(&mut [0; 15]).unwrap();
        drop(fixture.server);
        let mut rest = Vec::new();
        // A reset is as good an end as a close.
        let _ = client.read_to_end(&mut rest);
        assert!((rest.len() as u64) < size);
    }

    #[test]
    fn a_folder_that_is_not_there_cannot_be_served() {
        let error = S3Server::start(Path::new("no/such/folder"), "a", "s").unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }

    #[test]
    fn the_sample_folder_is_the_same_each_time() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_sample_folder(one.path()).unwrap();
        write_sample_folder(two.path()).unwrap();
        write_sample_folder(two.path()).unwrap();
        for name in ["hello.txt", "page.html", "10MiB.bin"] {
            let read = |root: &Path| std::fs::read(root.join(SAMPLE_BUCKET).join(name)).unwrap();
            assert!(read(one.path()) == read(two.path()), "{name}");
        }
    }
}
