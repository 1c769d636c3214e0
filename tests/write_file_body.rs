//! A large file through Pingora's HTTP/1 session: memory does not grow with it.

#![cfg(target_os = "linux")]

use std::{
    fs, io,
    mem::MaybeUninit,
    net::SocketAddr,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use pingora_core::protocols::{http::v1::server::HttpSession, l4::stream::Stream};
use pingora_http::ResponseHeader;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const FILE_LEN: u64 = 3 * 1024 * MIB;

// More than 2 GiB, the most that one sendfile(2) moves, and more than 32 bits.
#[test]
fn three_gibibytes_to_a_slow_reader_take_less_than_four_mebibytes() {
    let file = tempfile::tempfile().expect("make a file");
    file.set_len(FILE_LEN).expect("make it sparse");
    let file = Arc::new(file);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("start a runtime");
    let (received, growth) = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let reader = slow_reader(listener.local_addr().expect("an address"));
        let (stream, _) = listener.accept().await.expect("accept");
        let mut session = HttpSession::new(Box::new(Stream::from(stream)));
        session.read_request().await.expect("read the request");
        assert!(session.supports_zero_copy());
        let mut header = ResponseHeader::build(200, None).expect("a header");
        header
            .insert_header("Content-Length", FILE_LEN)
            .expect("a length");
        session
            .write_response_header(Box::new(header))
            .await
            .expect("write the header");

        // proc(5): VmHWM starts again from what is resident now.
        fs::write("/proc/self/clear_refs", "5").expect("reset the peak");
        let before = status_bytes("VmRSS");
        let sent = session.write_file_body(&file, 0, FILE_LEN).await;
        let growth = status_bytes("VmHWM").saturating_sub(before);

        assert_eq!(sent.expect("send the file"), Some(FILE_LEN));
        assert_eq!(session.body_bytes_sent() as u64, FILE_LEN);
        assert_eq!(session.body_bytes_zero_copy() as u64, FILE_LEN);
        session.finish_body().await.expect("finish the body");
        drop(session);
        (reader.join().expect("the reader"), growth)
    });

    let head = received - FILE_LEN;
    assert!((20..KIB).contains(&head), "{received} bytes received");
    assert!(growth < 4 * MIB, "resident memory grew by {growth} bytes");
}

/// A client that first takes 16 MiB a second for half a second, and then all it
/// can get. Returns how many bytes came before the end.
fn slow_reader(addr: SocketAddr) -> JoinHandle<u64> {
    thread::spawn(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("make a socket");
        // Before connecting: the window scale is agreed in the handshake.
        socket
            .set_recv_buffer_size(64 * KIB as usize)
            .expect("set SO_RCVBUF");
        socket.connect(&addr.into()).expect("connect");
        send_all(&socket, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        socket
            .shutdown(std::net::Shutdown::Write)
            .expect("ask for nothing more");

        let mut received = 0;
        let mut pieces = 0;
        loop {
            let n = discard(&socket, 64 * KIB).expect("receive");
            if n == 0 {
                return received;
            }
            received += n;
            pieces += 1;
            match pieces {
                ..128 => thread::sleep(Duration::from_millis(4)),
                128 => socket
                    .set_recv_buffer_size(4 * MIB as usize)
                    .expect("set SO_RCVBUF"),
                _ => {}
            }
        }
    })
}

fn send_all(mut socket: &Socket, bytes: &[u8]) {
    io::Write::write_all(&mut socket, bytes).expect("send the request");
}

/// tcp(7): with MSG_TRUNC, bytes received are counted and thrown away.
fn discard(socket: &Socket, at_most: u64) -> io::Result<u64> {
    let mut untouched = [MaybeUninit::uninit(); 64 * KIB as usize];
    let room = &mut untouched[..at_most as usize];
    Ok(socket.recv_with_flags(room, libc::MSG_TRUNC)? as u64)
}

/// A line of /proc/self/status that is given in KiB (proc(5)).
fn status_bytes(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("read the status");
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in the status"));
    kib * KIB
}
