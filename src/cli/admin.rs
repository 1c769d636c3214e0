//! The client of the admin listener of a running proxy, and of `/health` and `/ready`.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pingora_sendfile::config::{Config, Token};
use zeroize::Zeroizing;

use super::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The limits for `/health` and `/ready`, which wait for nothing themselves. Together, they are shorter than the time
/// that the image's HEALTHCHECK grants.
const HEALTH_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const HEALTH_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit for an answer that does not wait for an origin. That of a purge comes once the ban is
/// on the disk, which may be busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest line of the header of an answer that is read, in bytes.
const MAX_LINE: u64 = 64 * 1024;
/// The longest answer that is read, in bytes: a page of a list.
const MAX_ANSWER: u64 = 64 << 20;

/// The response of the admin listener.
pub struct Answer {
    pub status: u16,
    pub text: String,
    /// The time after which the request may be sent again.
    pub retry_after: Option<Duration>,
    /// The marker of the next page of a list.
    pub next_page: Option<String>,
}

/// The admin listener of a running proxy.
#[derive(Clone)]
pub struct AdminClient {
    listener: Listener,
}

/// A connection to the admin listener, for one request after another.
pub struct AdminConnection {
    listener: Listener,
    stream: Option<BufReader<Stream>>,
}

/// A listener for operators.
#[derive(Clone)]
struct Listener {
    /// The key of its address in the configuration.
    key: &'static str,
    place: Place,
    connect_timeout: Duration,
    token: Option<Token>,
}

/// The address of a listener.
#[derive(Clone)]
enum Place {
    Address(SocketAddr),
    Socket(PathBuf),
}

/// A connection to a listener.
struct Stream {
    socket: Socket,
    /// The end of the response is awaited until then.
    deadline: Option<Instant>,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The response to `/health` or `/ready` of the metrics listener, or of the admin listener where there
/// is no other.
pub fn health(config: &Config, path: &str) -> Result<Answer, Failure> {
    let missing = "is missing; set it, such as 127.0.0.1:9090, and start the proxy again";
    let address = config.metrics.as_ref().map(|metrics| *metrics.address);
    let mut listener = match (address, &config.admin) {
        (None, Some(_)) => Listener::admin(config)?,
        _ => Listener::new(config, "metrics.address", address, missing)?,
    };
    listener.connect_timeout = HEALTH_CONNECT_TIMEOUT;
    AdminConnection::new(listener).ask("GET", path, Some(HEALTH_ANSWER_TIMEOUT))
}

// === impl Listener ===

impl Listener {
    fn new(
        config: &Config,
        key: &'static str,
        address: Option<SocketAddr>,
        missing: &'static str,
    ) -> Result<Self, Failure> {
        let unfit = |what| Err(config.mistake(key, what).into());
        let Some(mut address) = address else {
            return unfit(missing);
        };
        if address.port() == 0 {
            return unfit("has port 0, so the port is not known here; write a fixed port");
        }
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Ok(Listener {
            key,
            place: Place::Address(address),
            connect_timeout: CONNECT_TIMEOUT,
            token: None,
        })
    }

    /// The listener for operators: the socket, if there is one.
    fn admin(config: &Config) -> Result<Self, Failure> {
        let section = config.admin.as_ref();
        if let Some(socket) = section.and_then(|admin| admin.socket.as_deref()) {
            return Ok(Listener {
                key: "admin.socket",
                place: Place::Socket(socket.to_owned()),
                connect_timeout: CONNECT_TIMEOUT,
                token: None,
            });
        }
        let address = section.and_then(|admin| admin.address.as_deref().copied());
        let missing = "is missing; set it, such as 127.0.0.1:9091, and start the proxy again";
        Ok(Listener {
            token: section.and_then(|admin| admin.token.clone()),
            ..Listener::new(config, "admin.address", address, missing)?
        })
    }

    fn connect(&self) -> Result<Stream, Failure> {
        let socket = match &self.place {
            Place::Address(address) => {
                TcpStream::connect_timeout(address, self.connect_timeout).map(Socket::Tcp)
            }
            Place::Socket(path) => UnixStream::connect(path).map(Socket::Unix),
        };
        let connected = socket.map(|socket| Stream {
            socket,
            deadline: None,
        });
        connected.map_err(|e| {
            let remedy = match e.kind() {
                ErrorKind::PermissionDenied => {
                    "run the command as the user of the proxy, or as root"
                }
                _ => "start the proxy with this configuration",
            };
            let Listener { key, place, .. } = self;
            Failure::Other(format!("{key}: cannot connect to {place}: {e}; {remedy}"))
        })
    }
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Address(address) => address.fmt(f),
            Place::Socket(path) => path.display().fmt(f),
        }
    }
}

// === impl Stream ===

impl Stream {
    /// Limit the wait for the whole response, and for a part of the request to be taken.
    fn set_limits(&mut self, patience: Option<Duration>, write: Duration) -> io::Result<()> {
        self.deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        if self.deadline.is_none() {
            self.socket.set_read_timeout(None)?;
        }
        match &self.socket {
            Socket::Tcp(stream) => stream.set_write_timeout(Some(write)),
            Socket::Unix(stream) => stream.set_write_timeout(Some(write)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
        }
        let read = match &mut self.socket {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Unix(stream) => stream.read(buffer),
        };
        // The error that a time limit of a socket makes, socket(7).
        read.map_err(|e| match e.kind() {
            ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
            _ => e,
        })
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.socket {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(stream) => stream.flush(),
            Socket::Unix(stream) => stream.flush(),
        }
    }
}

// === impl Socket ===

impl Socket {
    fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.set_read_timeout(limit),
            Socket::Unix(stream) => stream.set_read_timeout(limit),
        }
    }
}

// === impl AdminClient ===

impl AdminClient {
    /// The admin listener of a configuration.
    pub fn new(config: &Config) -> Result<Self, Failure> {
        let listener = Listener::admin(config)?;
        Ok(AdminClient { listener })
    }

    /// The address or the socket of the listener.
    #[cfg(feature = "top")]
    pub fn place(&self) -> impl fmt::Display + '_ {
        &self.listener.place
    }

    /// Sends `PURGE`, and returns the response, whatever its status. `path` is
    /// percent-encoded.
    pub fn purge(&self, path: &str) -> Result<Answer, Failure> {
        self.ask("PURGE", path)
    }

    /// Sends a request that waits for no origin, and returns the response, whatever its status.
    pub fn ask(&self, method: &str, path: &str) -> Result<Answer, Failure> {
        self.connection().ask(method, path, Some(ANSWER_TIMEOUT))
    }

    /// A connection, which is opened by its first request.
    pub fn connection(&self) -> AdminConnection {
        AdminConnection::new(self.listener.clone())
    }
}

// === impl AdminConnection ===

impl AdminConnection {
    fn new(listener: Listener) -> Self {
        AdminConnection {
            listener,
            stream: None,
        }
    }

    /// Sends a request, and returns the response, whatever its status. `path` is percent-encoded.
    /// `patience` limits the wait for the whole response.
    pub fn ask(
        &mut self,
        method: &str,
        path: &str,
        patience: Option<Duration>,
    ) -> Result<Answer, Failure> {
        self.ask_with(method, path, "", patience)
    }

    /// [`ask`](Self::ask) with a body.
    pub fn ask_with(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
        patience: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let request = self.request(method, path, body);
        // The proxy may have closed an idle connection.
        if let Some(stream) = self.stream.take() {
            match self.exchange(stream, &request, patience) {
                Err(e) if is_closed(&e) => {}
                answer => return answer.map_err(|e| self.unanswered(&e)),
            }
        }
        let stream = self.listener.connect()?;
        let answer = self.exchange(BufReader::new(stream), &request, patience);
        answer.map_err(|e| self.unanswered(&e))
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Zeroizing<String> {
        let Listener { place, token, .. } = &self.listener;
        let host = match place {
            Place::Address(address) => address.to_string(),
            Place::Socket(_) => "localhost".to_owned(),
        };
        let token = token.as_ref().map_or("", Token::expose);
        let authorization = match token {
            "" => Zeroizing::default(),
            token => Zeroizing::new(format!("Authorization: Bearer {token}\r\n")),
        };
        let authorization = authorization.as_str();
        let length = match body.len() {
            0 => String::new(),
            len => format!("Content-Length: {len}\r\n"),
        };
        Zeroizing::new(format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nX-Requested-With: s3-proxy\r\n\
             {authorization}{length}\r\n{body}"
        ))
    }

    fn exchange(
        &mut self,
        mut stream: BufReader<Stream>,
        request: &str,
        patience: Option<Duration>,
    ) -> io::Result<Answer> {
        stream.get_mut().set_limits(patience, ANSWER_TIMEOUT)?;
        stream.get_mut().write_all(request.as_bytes())?;
        let (answer, stays) = read_answer(&mut stream)?;
        self.stream = stays.then_some(stream);
        Ok(answer)
    }

    fn unanswered(&self, e: &io::Error) -> Failure {
        let Listener { key, place, .. } = &self.listener;
        Failure::Other(format!(
            "{key}: the proxy at {place} does not answer: {e}; see its log"
        ))
    }
}

/// True for the error of a connection that was closed before the response began.
fn is_closed(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
    )
}

/// Reads a response. True: the connection stays open.
fn read_answer(reader: &mut BufReader<Stream>) -> io::Result<(Answer, bool)> {
    let mut line = || -> io::Result<String> {
        let mut line = String::new();
        match reader.by_ref().take(MAX_LINE).read_line(&mut line)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    };
    let invalid = || io::Error::other("not an HTTP/1.1 response");
    let status = line()?
        .strip_prefix("HTTP/1.1 ")
        .and_then(|line| line.get(..3)?.parse().ok())
        .ok_or_else(invalid)?;
    let mut answer = Answer {
        status,
        text: String::new(),
        retry_after: None,
        next_page: None,
    };
    let (mut len, mut stays) = (None, true);
    loop {
        let field = line()?;
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').ok_or_else(invalid)?;
        let value = value.trim();
        match &*name.to_ascii_lowercase() {
            "content-length" => len = Some(value.parse().map_err(|_| invalid())?),
            "connection" => stays = !value.eq_ignore_ascii_case("close"),
            "retry-after" => answer.retry_after = value.parse().ok().map(Duration::from_secs),
            "next-page" => answer.next_page = Some(value.to_owned()),
            _ => {}
        }
    }
    let len = len.filter(|len| *len <= MAX_ANSWER).ok_or_else(invalid)?;
    let read = reader.take(len).read_to_string(&mut answer.text)?;
    if read as u64 != len {
        return Err(io::Error::other("the response is cut short"));
    }
    answer.text.truncate(answer.text.trim_end().len());
    Ok((answer, stays))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_response_that_never_ends_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        let endless = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut sent = stream.write(b"HTTP/1.1 200 OK\r\n");
            // Until the client has closed the connection.
            while sent.is_ok() {
                sent = stream.write(b"Field: value\r\n");
            }
        });
        let mut connection = AdminConnection::new(Listener {
            key: "admin.address",
            place: Place::Address(address),
            connect_timeout: CONNECT_TIMEOUT,
            token: None,
        });
        let answer = connection.ask("GET", "/", Some(Duration::from_millis(200)));
        let Err(failure) = answer else {
            panic!("a response without an end was accepted");
        };
        assert_eq!(
            failure.to_string(),
            format!(
                "admin.address: the proxy at {address} does not answer: timed out; see its log"
            )
        );
        endless.join().expect("the client closes the connection");
    }
}
