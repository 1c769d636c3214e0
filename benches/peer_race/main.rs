//! The peer race: hits of the built proxy against other ways to serve the same
//! objects, in one run and in turns.
//!
//! `cargo bench --bench peer_race` races everybody; these shorten it, and a
//! report made with them says so:
//! - `-- --quick`: a smoke run of about a minute; its figures mean little
//! - `-- --sizes 4KiB,1MiB`, `--connections 1,16`, `--peers KEY,KEY`, `--rounds N`,
//!   `--turn MILLISECONDS`, `--no-cpu`: parts of it
//! - `--machine-network`: not in a network namespace of its own
//! - `--reloaded`: all objects are read back from the disk before they are raced, as
//!   after a restart
//! - `--build PATH`, repeatedly: other builds of `s3-proxy` take part, to see what a
//!   change has brought
//!
//! `-- memory` measures resident memory a connection instead.
//!
//! The peers (the key is what `--peers` takes):
//! - `proxy-sendfile`, `proxy-copy`: `s3-proxy`, with sendfile on and off;
//!   everything else at its default but one worker, and as many open files as
//!   nginx's `open_file_cache` is given (of which it takes no more than a quarter
//!   of the process's limit)
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
//!   four, on a port each, from one cache.
//! - `bare-sendfile`: an epoll loop that parses next to nothing: the ceiling
//!
//! Method:
//! - Every peer is a process of its own and pinned to one core, with one thread
//!   that serves; the client is pinned to another core. It is one thread, never
//!   sleeps, sends nothing before a response is complete, and discards bodies in
//!   the kernel (tcp(7), MSG_TRUNC).
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
//! - The second figure, CPU seconds a GiB, comes from an ordinary client that
//!   reads bodies into a buffer at a fixed rate, and sleeps when nothing is due.
//! - What was measured is checked: status, length and `X-Cache: HIT` of every
//!   response, and before that the bytes of some objects of each peer and size.

#![deny(unsafe_code)]

#[cfg(target_os = "linux")]
mod bare;
#[cfg(target_os = "linux")]
#[path = "../common/client.rs"]
#[allow(dead_code, reason = "each bench uses a part")]
mod client;
#[cfg(target_os = "linux")]
#[path = "../common/cores.rs"]
mod cores;
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
        memory::run();
    } else {
        race::run(&options);
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("the peer race needs Linux: epoll, sendfile, /proc");
}
