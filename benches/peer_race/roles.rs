//! What this program is when it runs as its own child.

use std::{io::Write, net::SocketAddr, path::Path, thread};

use test_support::{Origin, Reply};

use crate::{bare, paths, process};

pub const ORIGIN: &str = "role-origin";
pub const BARE: &str = "role-bare";

/// False: the arguments name no role.
pub fn run(arguments: &[String]) -> bool {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [process::LAUNCH, ..] => {
            let rest: Vec<String> = arguments[1..].iter().map(|a| (*a).to_owned()).collect();
            process::launch(&rest)
        }
        [ORIGIN] => serve_origin(),
        [BARE, dir] => bare::serve(Path::new(dir)),
        _ => return false,
    }
    true
}

/// The line by which a role tells that it is ready.
pub fn announce(addr: SocketAddr) {
    println!("{addr}");
    std::io::stdout().flush().expect("write to stdout");
}

/// Any object that is asked for, under any folder.
fn serve_origin() {
    let origin = Origin::start(|request| match paths::parse(request.path()) {
        Some((len, index)) => {
            let seed = len + index;
            Reply::pattern(seed, len)
                .header("Content-Type", "binary/octet-stream")
                .header("ETag", format!("\"{seed:x}\""))
                .header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
                .header("Cache-Control", "max-age=86400")
        }
        None => Reply::status(404),
    });
    announce(origin.addr());
    loop {
        thread::park();
    }
}
