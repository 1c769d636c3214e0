//! The peer race: hits of the built proxy against other ways to serve the same
//! objects, in one run and in turns.
//!
//! `cargo bench --bench peer_race` races everybody; these shorten it, and a
//! report made with them says so:
//! - `-- --quick`: a smoke run of about two minutes; its figures mean little
//! - `-- --parts http,https,http2,handshakes`, `--sizes 4KiB,1MiB`, `--connections 1,16`,
//!   `--peers KEY,KEY`, `--rounds N`, `--turn MILLISECONDS`, `--no-cpu`: parts of it
//! - `--objects N`: so many objects of each size; `--sizes` also takes `16KiB`
//! - `--zipf EXPONENT`: objects are requested by Zipf's law
//! - `--open-files N`: the proxy and nginx's `open_file_cache` keep at most N files open;
//!   `default`: as many as the proxy does where nothing is set
//! - `--machine-network`: not in a network namespace of its own
//! - `--reloaded`: all objects are read back from the disk before they are raced, as
//!   after a restart
//! - `--threads N`: the proxies serve with N threads, on any core; the other peers have one. With
//!   several, compare only proxies
//! - `--build PATH`, repeatedly: other builds of `s3-proxy` take part, over each protocol, to
//!   see what a change has brought
//!
//! `-- memory` measures resident memory a download and a connection instead; of the builds
//! that `--build` names, if it names some. `-- growth` measures the proxy with 10^3 to 10^7
//! entries in its cache, `--most-entries N` with no more than that.
//!
//! The peers (the key is what `--peers` takes):
//! - `proxy-sendfile`, `proxy-copy`: `s3-proxy`, with sendfile on and off;
//!   everything else at its default but one worker, and as many open files as
//!   nginx's `open_file_cache` is given (of which it takes no more than a quarter
//!   of the process's limit)
//! - `proxy-log`: `proxy-sendfile` with an access log in its folder
//! - `proxy-minio`: `proxy-sendfile` in front of an origin that sends MinIO's header,
//!   which has a `Vary`
//! - `old-flow`: a Pingora app that reads the whole object and writes it at once
//! - `pingora-memory`, `pingora-chunks`: a Pingora app that has all objects in
//!   memory, or reads files in pieces of 64 KiB. These three are on the published
//!   crates, without the patches: the package `benches/stock`, which `make bench`
//!   builds; they run as it was built last, and are skipped where it was not. They
//!   have the proxy's kind of runtime, and its allocator, in the version that is the
//!   better one for large buffers.
//! - `nginx-sendfile`, `nginx-sendfile-ofc`, `nginx-copy`, `nginx-copy-ofc`:
//!   nginx's `proxy_cache`; `ofc` has `open_file_cache`. One nginx serves all
//!   its modes, on ports of their own, from one cache.
//! - `bare-sendfile`: an epoll loop that parses next to nothing: the ceiling
//!
//! Over TLS, with HTTP/1.1 and HTTP/2:
//! - `proxy-tls`: the process that is `proxy-sendfile`
//! - `nginx-tls-16k`, `nginx-tls-4k`: nginx at its best, with `open_file_cache` and that
//!   `ssl_buffer_size`
//! - `proxy-tls-defaults`, `nginx-tls-defaults`: both with nothing set but one worker, what
//!   they serve, and for nginx that connections are kept. They are compared with each other.
//!
//! Method:
//! - Every peer is a process of its own and pinned to one core, with one thread
//!   that serves; the client is pinned to another core. It is one thread, never
//!   sleeps, sends nothing before a response is complete, and discards bodies in
//!   the kernel (tcp(7), MSG_TRUNC).
//! - Over TLS, all offer what all prefer: TLS 1.3, TLS_AES_256_GCM_SHA384, X25519, to a
//!   certificate of ECDSA P-256. The client decrypts the heads of responses and the headers of
//!   frames alone, and discards all other records unread. On each connection, the first
//!   response and the last are decrypted whole, their tags checked and their bytes compared
//!   (`client::tls`).
//! - Over HTTP/2, each of the connections has several requests under way, as the report says.
//!   The client's windows never fill, and its frames are of the default size.
//! - Handshakes are of a connection each, 16 at once; one is done when a ticket has come,
//!   which a server sends after the client's last message. The client trusts the one certificate
//!   and verifies no signature, which would cost it more than the server's signing. A resumed
//!   handshake uses a ticket that no other has used. Where the server is not busy, the client
//!   limits the rate, and CPU time tells the peers apart.
//! - As root, it makes a network namespace, whose loopback has no firewall, and where
//!   it can be set, as the report says, a congestion control that does not pace
//!   ([`network`]).
//! - Objects are asked for in a pseudo-random order, the same for all peers.
//!   Those of a size exceed the processor's caches; they stay in the page cache, which
//!   they are put into just before they are raced.
//! - A round gives each peer a turn, and rotates who begins. Rates are of body
//!   bytes that arrived during the turn; ratios are of each round. Turns are short,
//!   and rounds many: what neighbours take from a machine comes in phases, and then
//!   hits all peers of a round alike.
//! - CPU seconds a GiB are those of the server in its turns, as fast as it can. A second
//!   figure, without TLS, comes from an ordinary client that reads bodies into a buffer at a
//!   fixed rate, and sleeps when nothing is due.
//! - What was measured is checked: status and length of every response, `X-Cache: HIT` of
//!   every one over HTTP/1.1, and before that the bytes of some objects of each peer and
//!   size.

#![deny(unsafe_code)]

#[cfg(target_os = "linux")]
mod bare;
#[cfg(target_os = "linux")]
#[path = "../common/client/mod.rs"]
#[allow(dead_code, reason = "each bench uses a part")]
mod client;
#[cfg(target_os = "linux")]
#[path = "../common/cores.rs"]
mod cores;
#[cfg(target_os = "linux")]
mod growth;
#[cfg(target_os = "linux")]
mod handshakes;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod nginx;
#[cfg(target_os = "linux")]
mod objects;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod paths;
#[cfg(target_os = "linux")]
mod peers;
#[cfg(target_os = "linux")]
mod plot;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod protocol;
#[cfg(target_os = "linux")]
mod race;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod roles;
#[cfg(target_os = "linux")]
#[path = "../common/stats.rs"]
#[allow(dead_code, reason = "each bench uses a part")]
mod stats;
#[cfg(target_os = "linux")]
#[path = "../common/table.rs"]
mod table;

#[cfg(target_os = "linux")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if roles::run(&arguments) {
        return;
    }
    let options = options::Options::parse(&arguments);
    process::raise_descriptor_limit();
    process::clean_up_on_signals();
    if options.memory {
        memory::run(&options.builds);
    } else if options.growth {
        growth::run(&options);
    } else {
        race::run(&options);
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("the peer race needs Linux: epoll, sendfile, /proc");
}
