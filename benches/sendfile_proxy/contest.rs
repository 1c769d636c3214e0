//! The variants of a case, with the same objects, in turns.

use std::time::Duration;

use test_support::{Bucket, Origin, Pattern, Proxy, Reply};

use crate::measure::cpu_time;
use crate::{
    case::{Case, Way},
    client::{Address, Client, Order, Requests},
    cores::{pin, Cores},
    results::Turns,
    role, signed, unix_server,
};

/// At once, to each proxy.
pub const CONNECTIONS: u64 = 16;

/// The most objects of a case: each is a file that is kept open.
pub const MAX_OBJECTS: u64 = 2048;

/// Of these the proxy keeps at most a quarter of what it may open, so that a usual
/// limit of 20,000 is enough. Twice the number of objects, as its table of open
/// files does not fill up evenly.
const MAX_OPEN_FILES: usize = 2 * MAX_OBJECTS as usize;

/// More than all objects that are kept in memory.
const MEMORY_MB: u64 = 1000;

/// The host that all requests name.
const HOST: &str = "bench";

/// The variants of a case.
pub struct Contest {
    _origin: Origin,
    servers: Vec<Server>,
}

/// A variant: a proxy whose cache is full, and its client.
pub struct Server {
    way: Way,
    proxy: Proxy,
    client: Client,
    body_len: u64,
    /// As many responses were no hits: the first of each.
    objects: u64,
    /// Responses to the client that filled the cache.
    filled: u64,
    /// The number of lookups that had opened files before anything was measured.
    opens: u64,
}

// === impl Contest ===

impl Contest {
    /// Starts all variants and fills their caches with so many objects.
    pub fn start(case: &Case, objects: u64, cores: Option<Cores>) -> Self {
        let len = case.object_len();
        let origin = Origin::start(move |request| {
            let object = request.path().rsplit('/').next().unwrap_or_default();
            match object.parse() {
                Ok(seed) => Reply::pattern(seed, len).header("ETag", format!("\"{seed}\"")),
                Err(_) => Reply::status(404),
            }
        });
        let start = |way: &Way| Server::start(*way, case, &origin, objects, cores);
        Self {
            servers: case.ways().iter().map(start).collect(),
            _origin: origin,
        }
    }

    pub fn server(&mut self, way: Way) -> &mut Server {
        let mut servers = self.servers.iter_mut();
        servers
            .find(|server| server.way == way)
            .expect("a server for each way")
    }

    /// The variants in turns of `count` responses; each round another one begins.
    pub fn compare(&mut self, count: u64, rounds: usize) -> Vec<(Way, Turns)> {
        let variants = self.servers.len();
        let mut turns: Vec<Turns> = (0..variants).map(|_| Turns::default()).collect();
        for round in 0..rounds {
            for place in 0..variants {
                let which = (round + place) % variants;
                self.servers[which].take_turn(count, &mut turns[which]);
            }
        }
        let ways = self.servers.iter().map(|server| server.way);
        ways.zip(turns).collect()
    }

    /// Panics unless the proxies did what was to be measured.
    pub fn check(&self) {
        self.servers.iter().for_each(Server::check);
    }
}

// === impl Server ===

impl Server {
    fn start(way: Way, case: &Case, origin: &Origin, objects: u64, cores: Option<Cores>) -> Self {
        let builder = if case.is_over_unix() {
            role::builder()
        } else {
            Proxy::builder(env!("CARGO_BIN_EXE_s3-proxy"))
        };
        let mut bucket = Bucket::at(origin, "/assets", "bench");
        if way == Way::Signed {
            bucket = signed::protect(bucket);
        }
        let builder = builder
            .bucket(bucket)
            .threads(1)
            .default_ttl("1h")
            .max_open_files(MAX_OPEN_FILES)
            .memory_mb(if way == Way::Memory { MEMORY_MB } else { 0 })
            .sendfile(way.is_sendfile())
            .sendfile_threshold(0);
        if let Some(cores) = cores {
            pin(cores.server);
        }
        let proxy = builder.start();
        if let Some(cores) = cores {
            pin(cores.client);
        }
        let address = if case.is_over_unix() {
            Address::Unix(unix_server::socket(proxy.config()))
        } else {
            Address::Tcp(proxy.addr())
        };

        let object_len = case.object_len();
        let requests = || whole_objects(way, objects, object_len);
        let connect =
            |requests| Client::connect("the proxy", &address, CONNECTIONS as usize, requests);
        let mut client = connect(requests()).filling();
        client.fetch(objects);
        // The last entry is complete a little later than its response.
        proxy.expect_metric("cache_entries", objects);
        assert_eq!(client.take_misses(), objects);
        // From now on it is open, or in memory.
        client.fetch(objects);
        assert_eq!(client.take_misses(), 0);
        let filled = client.sent();

        let body_len = case.body_len();
        let mut client = connect(match case.is_range() {
            true => ranges(objects, object_len, body_len),
            false => requests(),
        });
        // The client discards bodies; one response is looked at.
        let body = client.look(0, 0);
        Pattern::new(0).check(0, &body);
        if cores.is_none() {
            client = client.sleeping();
        }

        Self {
            opens: proxy.metric("cache_opens_total"),
            way,
            proxy,
            client,
            body_len,
            objects,
            filled,
        }
    }

    /// As [`Client::fetch`].
    pub fn fetch(&mut self, count: u64) -> Duration {
        self.client.fetch(count)
    }

    fn take_turn(&mut self, count: u64, turns: &mut Turns) {
        let cpu_before = cpu_time(self.proxy.pid());
        let elapsed = self.fetch(count);
        turns.server_cpu += cpu_time(self.proxy.pid()) - cpu_before;
        turns.elapsed += elapsed;
        let bytes = (count * self.body_len) as f64;
        turns.bytes_per_second.push(bytes / elapsed.as_secs_f64());
    }

    fn check(&self) {
        let proxy = &self.proxy;
        let hits = self.filled + self.client.sent() - self.objects;
        proxy.expect_metric("cache_hits_total", hits);
        proxy.expect_metric("origin_requests_total", self.objects);
        let by_sendfile = if self.way.is_sendfile() { hits } else { 0 };
        proxy.expect_metric("cache_sendfile_total", by_sendfile);
        let elsewhere = match self.way {
            Way::File | Way::Sendfile | Way::Signed => "cache_memory_hits_total",
            Way::Memory => "cache_descriptor_hits_total",
        };
        proxy.expect_metric(elsewhere, 0);
        let opens = proxy.metric("cache_opens_total");
        assert_eq!(
            opens,
            self.opens,
            "files were opened meanwhile: raise the limit of open files to {}",
            4 * MAX_OPEN_FILES
        );
    }
}

fn request(object: u64, fields: &str) -> Vec<u8> {
    format!("GET /assets/{object} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n").into_bytes()
}

fn whole_objects(way: Way, objects: u64, len: u64) -> Requests {
    let text = |object| match way {
        Way::Signed => request(object, &signed::fields(HOST, &format!("/assets/{object}"))),
        _ => request(object, ""),
    };
    Requests {
        texts: (0..objects).map(text).collect(),
        order: Order::in_turn(),
        status: "200",
        body_len: len,
    }
}

/// All first ranges, then all second ones, and so on.
fn ranges(objects: u64, object_len: u64, len: u64) -> Requests {
    let texts = (0..object_len / len).flat_map(|range| {
        let first = range * len;
        let field = format!("Range: bytes={first}-{}\r\n", first + len - 1);
        (0..objects).map(move |object| request(object, &field))
    });
    Requests {
        texts: texts.collect(),
        order: Order::in_turn(),
        status: "206",
        body_len: len,
    }
}
