//! Each request, for an object in each state of storage, compared with an ideal cache: one that holds
//! the version that RFC 9111 has it serve, and answers from it as RFC 9110 says.
//!
//! An entry in blocks is an incomplete response (RFC 9111 §3.3), to which parts of the same version are
//! added (§3.4, RFC 9110 §15.3.7). No client can tell it from a whole one.

use std::{
    ops::Range,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
};

use crate::proxy;
use test_support::{eventually, pattern, Connection, Origin, Proxy, Reply, Response};

const MIB: usize = 1 << 20;
/// Just long enough to be stored in blocks.
const LEN: usize = 16 * MIB + 12_345;
const OLDER: &str = "Tue, 31 Dec 2019 23:59:59 GMT";
const MODIFIED: &str = "Wed, 01 Jan 2020 00:00:00 GMT";
const NEWER: &str = "Thu, 02 Jan 2020 00:00:00 GMT";

/// The part of an object that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Nothing,
    NoBlock,
    SomeBlocks,
    AllBlocks,
    Whole,
}

/// The version that the origin has when the request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    /// The stored one, which is fresh.
    Fresh,
    /// The stored one, which has to be validated.
    Unchanged,
    /// Another one, and the stored one has to be validated.
    Replaced,
}

/// The header of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    /// With all that it takes to be stored in blocks.
    Strong,
    WeakTag,
    NoTag,
    NoRanges,
    Varying,
}

/// A method, and fields in which `{tag}` is the tag of the first version.
type Asked = (&'static str, &'static [(&'static str, &'static str)]);

const REQUESTS: &[Asked] = &[
    ("GET", &[]),
    ("HEAD", &[]),
    ("HEAD", &[("range", "bytes=0-9")]),
    // Within a block that SomeBlocks has, within one that it lacks, and across both.
    ("GET", &[("range", "bytes=2097152-2097161")]),
    ("GET", &[("range", "bytes=7000000-7000009")]),
    ("GET", &[("range", "bytes=3100000-5300000")]),
    ("GET", &[("range", "bytes=0-0")]),
    ("GET", &[("range", "bytes=-5")]),
    ("GET", &[("range", "bytes=16777216-")]),
    ("GET", &[("range", "bytes=16700000-999999999")]),
    ("GET", &[("range", "bytes=99999999-")]),
    ("GET", &[("range", "bytes=9-3")]),
    ("GET", &[("range", "pages=1-2")]),
    ("GET", &[("range", "bytes=0-9,7000000-7000009")]),
    ("GET", &[("range", "bytes=2097152-2097161,-5")]),
    ("GET", &[("range", "bytes=99999999-,3-4")]),
    ("GET", &[("if-none-match", "{tag}")]),
    ("GET", &[("if-none-match", "\"other\", {tag}")]),
    ("GET", &[("if-none-match", "*")]),
    ("HEAD", &[("if-none-match", "{tag}")]),
    (
        "GET",
        &[("if-none-match", "\"other\""), ("range", "bytes=0-9")],
    ),
    ("GET", &[("if-none-match", "{tag}"), ("range", "bytes=0-9")]),
    ("GET", &[("if-modified-since", MODIFIED)]),
    (
        "GET",
        &[("if-modified-since", OLDER), ("range", "bytes=0-9")],
    ),
    (
        "GET",
        &[("if-match", "{tag}"), ("range", "bytes=7000000-7000009")],
    ),
    ("GET", &[("if-match", "\"other\"")]),
    ("HEAD", &[("if-match", "\"other\"")]),
    ("GET", &[("if-match", "*"), ("range", "bytes=0-9")]),
    ("GET", &[("if-unmodified-since", OLDER)]),
    (
        "GET",
        &[("if-unmodified-since", MODIFIED), ("range", "bytes=0-9")],
    ),
    (
        "GET",
        &[("if-range", "{tag}"), ("range", "bytes=7000000-7000009")],
    ),
    ("GET", &[("if-range", "\"other\""), ("range", "bytes=0-9")]),
    ("GET", &[("if-range", MODIFIED), ("range", "bytes=0-9")]),
    ("GET", &[("if-range", OLDER), ("range", "bytes=0-9")]),
];

/// The answer of the ideal cache.
#[derive(Debug, PartialEq, Eq)]
enum Ideal {
    Whole,
    Parts(Vec<Range<usize>>),
    NotModified,
    Failed,
    NotSatisfiable,
}

/// One object, and the request for it.
struct Case {
    object: Object,
    stored: Stored,
    now: Now,
    asked: Asked,
    path: String,
}

// === impl Object ===

impl Object {
    fn tag(self, version: u64) -> Option<String> {
        match self {
            Object::Strong | Object::NoRanges | Object::Varying => Some(format!("\"v{version}\"")),
            Object::WeakTag => Some(format!("W/\"v{version}\"")),
            Object::NoTag => None,
        }
    }

    fn modified(version: u64) -> &'static str {
        match version {
            1 => MODIFIED,
            _ => NEWER,
        }
    }

    fn header(self, reply: Reply, version: u64) -> Reply {
        let mut reply = reply.header("last-modified", Self::modified(version));
        if let Some(tag) = self.tag(version) {
            reply = reply.header("etag", tag);
        }
        if self != Object::NoRanges {
            reply = reply.header("accept-ranges", "bytes");
        }
        match self {
            Object::Varying => reply.header("vary", "accept-language"),
            _ => reply,
        }
    }
}

// === impl Ideal ===

impl Ideal {
    /// The answer to a request with these fields, from this version of an object.
    fn of<'a>(
        object: Object,
        version: u64,
        method: &str,
        field: impl Fn(&str) -> Option<&'a str>,
    ) -> Ideal {
        let tag = object.tag(version);
        let weakly = |tag: &str| tag.trim_start_matches("W/").to_owned();
        let is_strong = |tag: &str| !tag.starts_with("W/");
        let lists = |list: &str, equal: &dyn Fn(&str, &str) -> bool| {
            let mut listed = list.split(", ");
            list == "*"
                || tag
                    .as_ref()
                    .is_some_and(|tag| listed.any(|one| equal(one, tag)))
        };
        // RFC 9110 §13.2.2. The dates sort as text, from the weekday on.
        let time = |date: &str| {
            [OLDER, MODIFIED, NEWER]
                .iter()
                .position(|known| *known == date)
        };
        let modified = time(Object::modified(version));
        if let Some(list) = field("if-match") {
            if !lists(list, &|one, tag| is_strong(tag) && one == tag) {
                return Ideal::Failed;
            }
        } else if field("if-unmodified-since").is_some_and(|date| modified > time(date)) {
            return Ideal::Failed;
        }
        if let Some(list) = field("if-none-match") {
            if lists(list, &|one, tag| weakly(one) == weakly(tag)) {
                return Ideal::NotModified;
            }
        } else if field("if-modified-since").is_some_and(|date| modified <= time(date)) {
            return Ideal::NotModified;
        }
        let applies = field("if-range").is_none_or(|condition| match time(condition) {
            Some(date) => Some(date) == modified,
            None => tag.as_deref() == Some(condition) && is_strong(condition),
        });
        match field("range").filter(|_| method == "GET" && applies) {
            Some(range) => Self::of_range(range),
            None => Ideal::Whole,
        }
    }

    /// RFC 9110 §14.2.
    fn of_range(range: &str) -> Ideal {
        let Some(ranges) = range.strip_prefix("bytes=") else {
            return Ideal::Whole;
        };
        let mut parts = Vec::new();
        for range in ranges.split(',') {
            let (first, last) = range.split_once('-').expect("a range");
            let number = |text: &str| text.parse::<usize>().ok();
            let part = match (number(first), number(last)) {
                (Some(first), Some(last)) if first > last => return Ideal::Whole,
                (Some(first), Some(last)) => first..LEN.min(last + 1),
                (Some(first), None) => first..LEN,
                (None, last) => LEN - last.expect("a suffix")..LEN,
            };
            parts.extend(Some(part).filter(|part| part.start < LEN));
        }
        match parts.is_empty() {
            true => Ideal::NotSatisfiable,
            false => Ideal::Parts(parts),
        }
    }
}

// === impl Case ===

impl Case {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let tag = self.object.tag(1).unwrap_or("\"v1\"".to_owned());
        let (_, fields) = self.asked;
        let value = |value: &str| value.replace("{tag}", &tag);
        fields
            .iter()
            .map(|(name, text)| (*name, value(text)))
            .collect()
    }

    fn ask(&self, client: &mut Connection) -> Response {
        let fields = self.fields();
        let fields = fields.iter().map(|(name, value)| (*name, &**value));
        let fields: Vec<_> = fields.collect();
        client.request(self.asked.0, &self.path, &fields)
    }

    fn version(&self) -> u64 {
        match self.now {
            Now::Fresh | Now::Unchanged => 1,
            Now::Replaced => 2,
        }
    }

    fn ideal(&self) -> Ideal {
        let fields = self.fields();
        let field = |name: &str| {
            let field = fields.iter().find(|(other, _)| *other == name);
            field.map(|(_, value)| &**value)
        };
        Ideal::of(self.object, self.version(), self.asked.0, field)
    }

    /// True if the answer may come from the origin, which does not send several parts, and of some
    /// objects none.
    fn may_be_whole(&self, parts: &[Range<usize>]) -> bool {
        let is_origins = self.stored == Stored::Nothing || self.now == Now::Replaced;
        is_origins
            && (parts.len() > 1
                || self.asked.1[0].1.contains(',')
                || self.object == Object::NoRanges)
    }

    fn check(&self, response: &Response, versions: &[Vec<u8>]) {
        let case = format!(
            "{:?} {:?} {:?} {:?}: {:?}",
            self.object, self.stored, self.now, self.asked, response.headers
        );
        let body = &versions[self.version() as usize - 1];
        let is_head = self.asked.0 == "HEAD";
        assert!(response.complete, "{case}");
        let tag = self.object.tag(self.version());
        let has_tag = |case: &str| assert_eq!(response.header("etag"), tag.as_deref(), "{case}");
        let is_whole = || {
            assert_eq!(response.status, 200, "{case}");
            has_tag(&case);
            assert_eq!(
                response.header("content-length"),
                Some(&*LEN.to_string()),
                "{case}"
            );
            assert_eq!(response.header("content-range"), None, "{case}");
            assert!(
                response.body == body[..if is_head { 0 } else { LEN }],
                "{case}"
            );
        };
        match self.ideal() {
            Ideal::Whole => is_whole(),
            Ideal::Parts(parts) if response.status == 200 && self.may_be_whole(&parts) => {
                is_whole()
            }
            Ideal::Parts(parts) => {
                assert_eq!(response.status, 206, "{case}");
                has_tag(&case);
                let received = parts_of(response);
                assert_eq!(received.len(), parts.len(), "{case}");
                for (part, (range, bytes)) in parts.into_iter().zip(received) {
                    let expected = format!("bytes {}-{}/{LEN}", part.start, part.end - 1);
                    assert_eq!(range, expected, "{case}");
                    assert!(*bytes == body[part], "{case}");
                }
            }
            Ideal::NotModified => {
                assert_eq!((response.status, response.body.len()), (304, 0), "{case}");
                has_tag(&case);
            }
            Ideal::Failed => assert_eq!(response.status, 412, "{case}"),
            Ideal::NotSatisfiable => {
                assert_eq!(response.status, 416, "{case}");
                let expected = format!("bytes */{LEN}");
                assert_eq!(response.header("content-range"), Some(&*expected), "{case}");
            }
        }
    }

    /// Bytes of the blocks that the answer takes and that are not stored.
    fn missing(&self) -> u64 {
        let (whole, parts) = (0..LEN, self.ideal());
        let parts = match parts {
            Ideal::Whole if self.asked.0 == "GET" => vec![whole],
            Ideal::Parts(parts) => parts,
            _ => vec![],
        };
        let is_stored = |block: usize| match self.stored {
            Stored::Nothing | Stored::NoBlock => false,
            Stored::SomeBlocks => SOME_BLOCKS.contains(&block),
            Stored::AllBlocks | Stored::Whole => true,
        };
        let takes = |block: usize| {
            let block = block * MIB..LEN.min((block + 1) * MIB);
            parts
                .iter()
                .any(|part| part.start < block.end && block.start < part.end)
        };
        let blocks = (0..LEN.div_ceil(MIB)).filter(|block| takes(*block) && !is_stored(*block));
        blocks
            .map(|block| (LEN - block * MIB).min(MIB) as u64)
            .sum()
    }
}

/// The ranges of a 206 and their bytes.
fn parts_of(response: &Response) -> Vec<(String, &[u8])> {
    if let Some(range) = response.header("content-range") {
        return vec![(range.to_owned(), &response.body)];
    }
    let kind = response.header("content-type").expect("a type");
    let boundary = kind.split_once("boundary=").expect("a boundary").1;
    let find = |bytes: &[u8], what: &str| {
        let mut windows = bytes.windows(what.len());
        windows.position(|window| window == what.as_bytes())
    };
    let delimiter = format!("\r\n--{boundary}");
    let first = find(&response.body, &delimiter[2..]).expect("the first delimiter");
    let mut rest = &response.body[first + delimiter.len() - 2..];
    let mut parts = Vec::new();
    while !rest.starts_with(b"--") {
        let body = find(rest, "\r\n\r\n").expect("the end of a header") + 4;
        let header = String::from_utf8_lossy(&rest[..body]).to_lowercase();
        let range = header
            .lines()
            .find_map(|line| line.strip_prefix("content-range: "));
        let end = body + find(&rest[body..], &delimiter).expect("the next delimiter");
        parts.push((range.expect("a range").to_owned(), &rest[body..end]));
        rest = &rest[end + delimiter.len()..];
    }
    parts
}

/// The blocks of [`Stored::SomeBlocks`].
const SOME_BLOCKS: &[usize] = &[2, 3, 16];

/// A correct origin of the cases, whose paths tell the kind of object and when it is replaced.
fn origin(is_later: &Arc<AtomicBool>) -> Origin {
    let is_later = is_later.clone();
    Origin::start(move |request| {
        let path = request.path();
        let is = |text: &str| path.contains(text);
        let objects = [
            Object::Strong,
            Object::WeakTag,
            Object::NoTag,
            Object::NoRanges,
            Object::Varying,
        ];
        let object = objects
            .into_iter()
            .find(|object| is(&format!("{object:?}")));
        let object = object.expect("a kind of object");
        let version = 1 + u64::from(is("Replaced") && is_later.load(Ordering::Acquire));
        let field = |name: &str| request.header(name);
        let ranges =
            field("range").filter(|range| !range.contains(',') && object != Object::NoRanges);
        let field = |name: &str| if name == "range" { ranges } else { field(name) };
        let whole = || Reply::pattern(version, LEN as u64);
        let reply = match Ideal::of(object, version, &request.method, field) {
            Ideal::Whole => whole(),
            Ideal::Parts(parts) => {
                let range = format!("bytes={}-{}", parts[0].start, parts[0].end - 1);
                whole().part(&range)
            }
            Ideal::NotModified => Reply::status(304),
            Ideal::Failed => Reply::status(412),
            Ideal::NotSatisfiable => {
                Reply::status(416).header("content-range", format!("bytes */{LEN}"))
            }
        };
        let control = if is("Fresh") {
            "max-age=3600"
        } else {
            "no-cache"
        };
        object
            .header(reply, version)
            .header("cache-control", control)
    })
}

fn read(client: &mut Connection, path: &str, range: &str) {
    let part = client.request("GET", path, &[("range", range)]);
    assert_eq!(part.status, 206, "{path} {range}");
}

/// Brings the objects of the cases into their states.
fn store(proxy: &Proxy, cases: &[Case]) {
    let mut client = Connection::open(proxy.addr());
    let mut paths: Vec<(&str, Stored)> = Vec::new();
    for case in cases {
        if !paths.iter().any(|(path, _)| *path == case.path) {
            paths.push((&case.path, case.stored));
        }
    }
    let mut entries = 0;
    for (path, stored) in &paths {
        match stored {
            Stored::Nothing => continue,
            Stored::Whole => drop(client.get(path)),
            Stored::NoBlock | Stored::SomeBlocks | Stored::AllBlocks => {
                read(&mut client, path, "bytes=9000000-9000000");
            }
        }
        entries += 1;
    }
    proxy.expect_metric("cache_entries", entries);
    for (path, stored) in &paths {
        match stored {
            Stored::Nothing | Stored::NoBlock | Stored::Whole => {}
            Stored::SomeBlocks => {
                read(&mut client, path, "bytes=2097152-4194303");
                read(&mut client, path, "bytes=-1");
            }
            Stored::AllBlocks => drop(client.get(path)),
        }
    }
    assert_eq!(proxy.metric("cache_entries"), entries);
}

/// Makes the requests, and compares the answers with those of the ideal cache.
fn compare(cases: impl IntoIterator<Item = (Object, Stored, Now, Asked)>) {
    let is_later = Arc::new(AtomicBool::new(false));
    let origin = origin(&is_later);
    let proxy = proxy(&origin).range_fill("client_mb_per_minute", 0);
    let proxy = proxy.max_size_gb(20).start();
    eventually("the recovery is over", || proxy.listings() > 0);
    let cases: Vec<Case> = cases
        .into_iter()
        .enumerate()
        .map(|(number, (object, stored, now, asked))| {
            // Cases share an object whose state no request changes.
            let is_shared =
                now != Now::Replaced && matches!(stored, Stored::AllBlocks | Stored::Whole);
            let number = if is_shared { usize::MAX } else { number };
            let path = format!("/assets/{object:?}-{stored:?}-{now:?}-{number}");
            Case {
                object,
                stored,
                now,
                asked,
                path,
            }
        })
        .collect();
    assert!(!cases.is_empty());
    store(&proxy, &cases);
    is_later.store(true, Ordering::Release);
    let versions = [1, 2].map(|version| pattern(version, LEN));
    let mut client = Connection::open(proxy.addr());
    for case in &cases {
        let before = origin.bytes_sent();
        let response = case.ask(&mut client);
        case.check(&response, &versions);
        if !client.is_reusable() {
            client = Connection::open(proxy.addr());
        }
        let is_stored = case.stored != Stored::Nothing && case.now != Now::Replaced;
        if is_stored && case.object == Object::Strong {
            let missing = case.missing();
            eventually("the bytes are counted", || {
                origin.bytes_sent() - before >= missing
            });
            let fetched = origin.bytes_sent() - before;
            assert_eq!(
                fetched, missing,
                "{:?} {:?} {:?}",
                case.stored, case.now, case.asked
            );
        }
    }
    // Whatever they have left behind is of one version.
    for case in cases {
        let asked = ("GET", &[("range", "bytes=5242870-5242890")][..]);
        let case = Case { asked, ..case };
        let response = case.ask(&mut client);
        case.check(&response, &versions);
    }
}

/// All requests, for an object in each of these states.
fn compare_in(states: &[Stored], now: Now) {
    compare(states.iter().flat_map(|stored| {
        let case = move |asked: &Asked| (Object::Strong, *stored, now, *asked);
        REQUESTS.iter().map(case)
    }));
}

const STORED: &[Stored] = &[
    Stored::NoBlock,
    Stored::SomeBlocks,
    Stored::AllBlocks,
    Stored::Whole,
];

#[test]
fn a_fresh_object_in_blocks_is_like_a_whole_one() {
    compare_in(STORED, Now::Fresh);
}

#[test]
fn a_validated_object_in_blocks_is_like_a_whole_one() {
    compare_in(STORED, Now::Unchanged);
}

#[test]
fn a_new_version_replaces_all_blocks() {
    compare_in(&[Stored::NoBlock, Stored::SomeBlocks], Now::Replaced);
}

#[test]
fn what_cannot_be_stored_in_blocks_is_stored_as_a_whole() {
    use Object::{NoRanges, NoTag, Varying, WeakTag};
    let objects = [WeakTag, NoTag, NoRanges, Varying];
    let stored = objects.into_iter().flat_map(|object| {
        let case = move |asked: &Asked| (object, Stored::Whole, Now::Unchanged, *asked);
        REQUESTS.iter().step_by(3).map(case)
    });
    let replaced = objects.into_iter().flat_map(|object| {
        let case = move |asked: &Asked| (object, Stored::Whole, Now::Replaced, *asked);
        REQUESTS.iter().step_by(5).map(case)
    });
    compare(stored.chain(replaced));
}

#[test]
fn an_object_of_which_nothing_is_stored_is_like_a_whole_one() {
    let has_condition = |asked: &&Asked| asked.1.iter().any(|(name, _)| name.starts_with("if-"));
    let plain = REQUESTS.iter().filter(|asked| !has_condition(asked));
    compare(plain.map(|asked| (Object::Strong, Stored::Nothing, Now::Fresh, *asked)));
}
