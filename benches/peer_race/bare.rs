//! The least that can be done for a hit: find the object's number in the
//! request, write a head, sendfile(2).

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    fs::sendfile,
    io::Errno,
    net::{recv, send, RecvFlags, SendFlags},
};

use crate::{paths, process::open_files, roles::announce};

/// Longer than any request of the client.
const MAX_REQUEST: usize = 1024;

/// The listener's event; connections count from 0.
const LISTENER: u64 = u64::MAX;

struct Files {
    dir: PathBuf,
    open: HashMap<(u64, u64), Rc<File>>,
}

struct Connection {
    tcp: TcpStream,
    received: Vec<u8>,
    sending: Option<Sending>,
}

struct Sending {
    file: Rc<File>,
    at: u64,
    end: u64,
}

/// Serves the objects in `dir` until the process is killed.
pub fn serve(dir: &Path) {
    let mut files = Files {
        dir: dir.to_owned(),
        open: HashMap::new(),
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = TcpListener::bind(any).expect("listen on 127.0.0.1");
    let epoll = epoll::create(CreateFlags::CLOEXEC).expect("make an epoll instance");
    let watch = EventData::new_u64(LISTENER);
    epoll::add(&epoll, &listener, watch, EventFlags::IN).expect("watch the listener");
    announce(listener.local_addr().expect("the listener's address"));

    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut next = 0;
    let mut events: Vec<Event> = Vec::with_capacity(256);
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => panic!("wait for events: {e}"),
        }
        for event in &events {
            let id = event.data.u64();
            if id == LISTENER {
                let (tcp, _) = listener.accept().expect("accept a connection");
                tcp.set_nodelay(true).expect("set TCP_NODELAY");
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                epoll::add(&epoll, &tcp, EventData::new_u64(next), flags)
                    .expect("watch a connection");
                connections.insert(next, Connection::new(tcp));
                next += 1;
            } else if let Some(connection) = connections.get_mut(&id) {
                // The client closed it, or asked for what is not there.
                if connection.proceed(&mut files).is_err() {
                    connections.remove(&id);
                }
            }
        }
    }
}

// === impl Files ===

impl Files {
    fn open(&mut self, (len, index): (u64, u64)) -> io::Result<Rc<File>> {
        if let Some(file) = self.open.get(&(len, index)) {
            return Ok(file.clone());
        }
        if self.open.len() as u64 >= open_files() {
            self.open.clear();
        }
        let file = Rc::new(File::open(paths::file(&self.dir, len, index))?);
        self.open.insert((len, index), file.clone());
        Ok(file)
    }
}

// === impl Connection ===

impl Connection {
    fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            received: Vec::with_capacity(MAX_REQUEST),
            sending: None,
        }
    }

    /// Goes on until it would block.
    fn proceed(&mut self, files: &mut Files) -> io::Result<()> {
        loop {
            if let Some(sending) = &mut self.sending {
                while sending.at < sending.end {
                    let left = (sending.end - sending.at) as usize;
                    match sendfile(&self.tcp, &sending.file, Some(&mut sending.at), left) {
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(Errno::AGAIN) => return Ok(()),
                        Err(e) => return Err(e.into()),
                    }
                }
                self.sending = None;
            }
            let free = spare_capacity(&mut self.received);
            match recv(&self.tcp, free, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            if self.received.ends_with(b"\r\n\r\n") {
                self.begin(files)?;
                self.received.clear();
            }
        }
    }

    fn begin(&mut self, files: &mut Files) -> io::Result<()> {
        let request = str::from_utf8(&self.received).unwrap_or_default();
        let path = request.split(' ').nth(1).unwrap_or_default();
        let id = paths::parse(path).ok_or(io::ErrorKind::NotFound)?;
        let file = files.open(id)?;
        let (len, index) = id;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\
             Content-Type: binary/octet-stream\r\nETag: \"{:x}\"\r\n\
             Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
             Cache-Control: max-age=86400\r\nX-Cache: HIT\r\n\r\n",
            len + index
        );
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // Nothing is unsent on this connection, so the head has room.
        if send(&self.tcp, head.as_bytes(), flags)? != head.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.sending = Some(Sending {
            file,
            at: 0,
            end: len,
        });
        Ok(())
    }
}
