//! A TCP relay that counts.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc,
    },
    thread,
};

/// Stands between the proxy and MinIO, and counts what MinIO sends.
pub struct Relay {
    address: SocketAddr,
    received: Arc<AtomicU64>,
}

// === impl Relay ===

impl Relay {
    /// A relay to `http://HOST:PORT`, which lives as long as the process.
    pub fn to(endpoint: &str) -> Self {
        let target: SocketAddr = endpoint
            .strip_prefix("http://")
            .and_then(|address| address.parse().ok())
            .expect("an address of MinIO");
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("the relay's address");
        let received = Arc::<AtomicU64>::default();
        let counter = received.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(target) else {
                    continue;
                };
                let clones = (client.try_clone(), server.try_clone());
                let (Ok(to_client), Ok(from_client)) = (client.try_clone(), clones.0) else {
                    continue;
                };
                let Ok(to_server) = clones.1 else { continue };
                let counter = counter.clone();
                thread::spawn(move || pump(from_client, to_server, &AtomicU64::new(0)));
                thread::spawn(move || pump(server, to_client, &counter));
            }
        });
        Self { address, received }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bytes that MinIO has sent.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, counter: &AtomicU64) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        counter.fetch_add(n as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // Both fail only where the peer is gone.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
