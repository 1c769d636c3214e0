//! The roles of this program when it runs as its own child.

use std::{io::Write, net::SocketAddr, path::Path, thread};

use test_support::{Origin, Reply};

use crate::{bare, paths, process};

pub const ORIGIN: &str = "role-origin";
pub const BARE: &str = "role-bare";

/// Objects in this bucket of the origin have MinIO's header.
pub const MINIO_BUCKET: &str = "minio";

/// The fields that MinIO adds to those that S3 sends.
const MINIO_FIELDS: [(&str, &str); 6] = [
    ("Server", "MinIO"),
    (
        "Strict-Transport-Security",
        "max-age=31536000; includeSubDomains",
    ),
    ("Vary", "Origin, Accept-Encoding"),
    ("X-Amz-Request-Id", "18B2C4D6E8F0A2B4"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Xss-Protection", "1; mode=block"),
];

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
            let reply = Reply::pattern(seed, len)
                .header("Content-Type", "binary/octet-stream")
                .header("ETag", format!("\"{seed:x}\""))
                .header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
                .header("Cache-Control", "max-age=86400");
            let is_minio = request.path().split('/').nth(1) == Some(MINIO_BUCKET);
            let fields = MINIO_FIELDS.iter().filter(|_| is_minio);
            fields.fold(reply, |reply, (name, value)| reply.header(name, value))
        }
        None => Reply::status(404),
    });
    announce(origin.addr());
    loop {
        thread::park();
    }
}
