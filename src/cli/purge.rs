//! `s3-proxy purge`: asks a running proxy to remove objects from its cache.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use pingora_sendfile::config::Config;

use super::{Failure, Outcome, Output};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The answer comes once the ban is on the disk, which may be busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer, or line of its header, that is read, in bytes.
const MAX_LEN: u64 = 64 * 1024;

/// The response of the admin listener.
pub struct Answer {
    pub status: u16,
    pub text: String,
}

/// The admin listener of a running proxy.
pub struct AdminClient {
    address: SocketAddr,
}

/// `s3-proxy purge --config FILE PATH`.
pub fn run(config: &Config, path: &str) -> Outcome {
    send(&AdminClient::new(config)?, path)
}

/// Purges a path, and prints the result.
pub fn send(admin: &AdminClient, path: &str) -> Outcome {
    let answer = admin.purge(path)?;
    if answer.status != 200 {
        return Err(Failure::Other(format!("{path}: {}", answer.text)));
    }
    let mut output = Output::new();
    output.line(answer.text)?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

// === impl AdminClient ===

impl AdminClient {
    /// The admin listener of a configuration.
    pub fn new(config: &Config) -> Result<Self, Failure> {
        let unfit = |what| Err(config.mistake("admin.address", what).into());
        let Some(admin) = &config.admin else {
            return unfit("is missing; set it, such as 127.0.0.1:9091, and start the proxy again");
        };
        let mut address = *admin.address;
        if address.port() == 0 {
            return unfit("has port 0, so the port is not known here; write a fixed port");
        }
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Ok(AdminClient { address })
    }

    /// Sends `PURGE`, and returns the response, whatever its status. `path` is
    /// percent-encoded.
    pub fn purge(&self, path: &str) -> Result<Answer, Failure> {
        let address = self.address;
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(|e| {
            Failure::Other(format!(
                "admin.address: cannot connect to {address}: {e}; start the proxy with this configuration"
            ))
        })?;
        ask(stream, address, path).map_err(|e| {
            Failure::Other(format!(
                "admin.address: the proxy at {address} does not answer: {e}; see its log"
            ))
        })
    }
}

fn ask(mut stream: TcpStream, address: SocketAddr, path: &str) -> std::io::Result<Answer> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let request = format!("PURGE {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;

    let mut reader = BufReader::new(stream);
    let mut line = || -> std::io::Result<String> {
        let mut line = String::new();
        reader.by_ref().take(MAX_LEN).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    let invalid = || std::io::Error::other("not an HTTP/1.1 response");
    let status = line()?
        .strip_prefix("HTTP/1.1 ")
        .and_then(|line| line.get(..3)?.parse().ok())
        .ok_or_else(invalid)?;
    let mut len = 0;
    loop {
        let field = line()?;
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').ok_or_else(invalid)?;
        if name.eq_ignore_ascii_case("content-length") {
            len = value.trim().parse().map_err(|_| invalid())?;
        }
    }
    let mut text = String::new();
    reader.take(MAX_LEN.min(len)).read_to_string(&mut text)?;
    Ok(Answer {
        status,
        text: text.trim_end().to_owned(),
    })
}
