//! Load until the power is cut: fills, ranges, clients that leave, new versions, purges.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use test_support::{request, Connection, Proxy, Random};

use super::{
    objects::{Object, COUNT, FOLDERS},
    origin::World,
};

const CLIENTS: usize = 4;

/// Longest pause between two changes of the origin or the cache, in milliseconds.
const PAUSE: u64 = 1_500;

/// Longest range that a client asks for, in bytes.
const RANGE: u64 = 3 << 19;

/// Puts load on the proxy for a time. The error: a response is wrong.
pub fn run(
    proxy: &Proxy,
    world: &World,
    random: &mut Random,
    time: Duration,
) -> Result<(), String> {
    let end = Instant::now() + time;
    let (address, admin) = (proxy.addr(), proxy.admin_addr());
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..CLIENTS {
            let mut random = random.fork();
            threads.push(scope.spawn(move || {
                while Instant::now() < end {
                    get_some(address, world, &mut random)?;
                }
                Ok(())
            }));
        }
        let mut random = random.fork();
        threads.push(scope.spawn(move || {
            while Instant::now() < end {
                thread::sleep(Duration::from_millis(random.of(0..PAUSE)));
                change_some(admin, world, &mut random)?;
            }
            Ok(())
        }));
        threads.into_iter().try_for_each(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err("a client panicked".to_owned()))
        })
    })
}

/// One response, of which a client may not read the end.
fn get_some(address: SocketAddr, world: &World, random: &mut Random) -> Result<(), String> {
    let number = random.of(0..COUNT as u64) as usize;
    let object = Object::new(number);
    let mut start = 0;
    let mut field = None;
    if object.is_large() && random.percent(90) {
        start = random.of(0..object.len);
        let end = object.len.min(start + random.of(1..RANGE));
        field = Some(format!("bytes={start}-{}", end - 1));
    }
    let fields: Vec<_> = field.iter().map(|field| ("Range", &**field)).collect();
    let leaves_at = random.percent(15).then(|| random.of(0..object.len));
    let purged = world.purged(number);
    let mut client = Connection::open(address);
    let Ok(mut response) = client.try_begin("GET", &object.path(), &fields) else {
        return Ok(());
    };
    if !matches!(response.status, 200 | 206) {
        return Err(format!(
            "object {number}, {field:?}: status {}",
            response.status
        ));
    }
    let etag = response.headers.get("etag").unwrap_or_default().to_owned();
    let version = world.judge(number, &etag, purged)?;
    let pattern = object.pattern(version);
    loop {
        if leaves_at.is_some_and(|at| start >= at) {
            return Ok(());
        }
        let bytes = response.read_some(64 << 10);
        if bytes.is_empty() {
            // The end, or a response that broke off because another version replaced it.
            return Ok(());
        }
        if let Some(difference) = pattern.difference(start, &bytes) {
            return Err(format!("object {number}, version {version}: {difference}"));
        }
        start += bytes.len() as u64;
    }
}

/// Replaces or purges an object, or purges a folder.
fn change_some(admin: SocketAddr, world: &World, random: &mut Random) -> Result<(), String> {
    let number = random.of(0..COUNT as u64) as usize;
    match random.of(0..20) {
        0..8 => {
            world.replace(number);
            Ok(())
        }
        8..19 => {
            let version = world.current(number);
            world.replace(number);
            purge(admin, &Object::new(number).path())?;
            world.note_purge(number, version);
            Ok(())
        }
        _ => {
            let folder = *random.pick(&FOLDERS).expect("there are some");
            let of_folder = || Object::all().filter(|(_, object)| object.folder() == folder);
            let versions: Vec<_> = of_folder()
                .map(|(number, _)| (number, world.current(number)))
                .collect();
            for (number, _) in &versions {
                world.replace(*number);
            }
            purge(admin, &format!("{folder}*"))?;
            for (number, version) in versions {
                world.note_purge(number, version);
            }
            Ok(())
        }
    }
}

/// Returns when the purge is acknowledged.
fn purge(admin: SocketAddr, path: &str) -> Result<(), String> {
    let answer = request(admin, "PURGE", path, &[]);
    match answer.status {
        // 404: nothing was stored.
        200 | 404 => Ok(()),
        status => Err(format!("PURGE {path}: {status} {}", answer.text())),
    }
}
