//! A request as a line.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Version;
use time::OffsetDateTime;

use super::escape::{Place, Text};
use super::redact::{without_user, Redactor};
use crate::config::LogFormat;

/// The longest texts, escapes included. A key of S3 has 1024 bytes, and three times as many
/// encoded.
const MAX_METHOD: usize = 32;
const MAX_PATH: usize = 4096;
const MAX_HOST: usize = 255;
const MAX_KEY_ID: usize = 128;
const MAX_ID: usize = 64;
const MAX_FIELD: usize = 512;

/// The status of a request whose client left before it was answered, as in nginx.
pub(super) const CLIENT_LEFT: u16 = 499;

/// The content of a line. Texts are as the client has sent them.
pub(super) struct Entry<'a> {
    pub began: Timestamp,
    pub client: Option<IpAddr>,
    pub method: &'a [u8],
    pub path: &'a [u8],
    pub query: Option<&'a [u8]>,
    pub version: Version,
    pub status: u16,
    /// Body bytes that were sent.
    pub bytes: u64,
    pub x_cache: Option<&'static str>,
    pub sent: Option<&'static str>,
    pub first_byte: Option<Duration>,
    pub total: Duration,
    pub origin: Option<Duration>,
    pub key_id: Option<&'a [u8]>,
    pub request_id: &'a [u8],
    pub origin_request_id: Option<&'a [u8]>,
    pub host: Option<&'a [u8]>,
    pub referer: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    pub error: Option<&'static str>,
}

/// A time, in microseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timestamp(pub i64);

/// The time of day, for the times of requests. It is read once a second, and its text is kept for
/// the second.
pub(super) struct Clock {
    /// The last time it was read, by both clocks of the system.
    read: Option<(Instant, Timestamp)>,
    second: i64,
    text: String,
}

// === impl Entry ===

impl Entry<'_> {
    /// Append the line.
    pub fn write(
        &self,
        format: LogFormat,
        redactor: &Redactor,
        clock: &mut Clock,
        line: &mut Vec<u8>,
    ) {
        match format {
            LogFormat::Json => self.write_json(redactor, clock, line),
            LogFormat::Combined => self.write_combined(redactor, clock, line),
        }
    }

    fn write_json(&self, redactor: &Redactor, clock: &mut Clock, line: &mut Vec<u8>) {
        const PLACE: Place = Place::Json;
        line.extend_from_slice(b"{\"time\":\"");
        line.extend_from_slice(clock.second(self.began, iso_8601).as_bytes());
        let [a, b, c] = digits((self.began.0.rem_euclid(1_000_000) / 1000) as u32);
        line.extend_from_slice(&[b'.', a, b, c, b'Z', b'"']);
        line.extend_from_slice(b",\"client\":\"");
        self.push_client(line);
        line.extend_from_slice(b"\",\"method\":\"");
        Text::new(line, PLACE, MAX_METHOD).push(self.method);
        line.extend_from_slice(b"\",\"path\":\"");
        self.push_target(redactor, PLACE, line);
        line.extend_from_slice(b"\",\"protocol\":\"");
        line.extend_from_slice(protocol(self.version));
        line.extend_from_slice(b"\",\"status\":");
        push_number(line, self.status.into());
        line.extend_from_slice(b",\"bytes\":");
        push_number(line, self.bytes);
        for (name, value) in [
            (&b",\"cache\":\""[..], self.x_cache),
            (b",\"sent\":\"", self.sent),
            (b",\"error\":\"", self.error),
        ] {
            if let Some(value) = value {
                line.extend_from_slice(name);
                line.extend_from_slice(value.as_bytes());
                line.push(b'"');
            }
        }
        for (name, value) in [
            (&b",\"ttfb\":"[..], self.first_byte),
            (b",\"total_time\":", Some(self.total)),
            (b",\"origin_time\":", self.origin),
        ] {
            if let Some(value) = value {
                line.extend_from_slice(name);
                push_seconds(line, value);
            }
        }
        for (name, value, max) in [
            (&b",\"key_id\":\""[..], self.key_id, MAX_KEY_ID),
            (b",\"request_id\":\"", Some(self.request_id), MAX_ID),
            (b",\"origin_request_id\":\"", self.origin_request_id, MAX_ID),
            (b",\"host\":\"", self.host.map(without_user), MAX_HOST),
            (b",\"user_agent\":\"", self.user_agent, MAX_FIELD),
        ] {
            if let Some(value) = value {
                line.extend_from_slice(name);
                Text::new(line, PLACE, max).push(value);
                line.push(b'"');
            }
        }
        if let Some(referer) = self.referer {
            line.extend_from_slice(b",\"referer\":\"");
            redactor.write_url(referer, &mut Text::new(line, PLACE, MAX_FIELD));
            line.push(b'"');
        }
        line.extend_from_slice(b"}\n");
    }

    /// "Combined Log Format" (Apache HTTP Server, Log Files).
    fn write_combined(&self, redactor: &Redactor, clock: &mut Clock, line: &mut Vec<u8>) {
        const PLACE: Place = Place::Quoted;
        self.push_client(line);
        line.extend_from_slice(b" - ");
        match self.key_id.filter(|id| !id.is_empty()) {
            Some(id) => Text::new(line, Place::Bare, MAX_KEY_ID).push(id),
            None => line.push(b'-'),
        }
        line.extend_from_slice(b" [");
        line.extend_from_slice(clock.second(self.began, day_first).as_bytes());
        line.extend_from_slice(b" +0000] \"");
        Text::new(line, PLACE, MAX_METHOD).push(self.method);
        line.push(b' ');
        // Escape spaces: one would end the target.
        self.push_target(redactor, Place::Bare, line);
        line.push(b' ');
        line.extend_from_slice(protocol(self.version));
        line.extend_from_slice(b"\" ");
        push_number(line, self.status.into());
        line.push(b' ');
        match self.bytes {
            0 => line.push(b'-'),
            bytes => push_number(line, bytes),
        }
        line.extend_from_slice(b" \"");
        match self.referer {
            Some(referer) => redactor.write_url(referer, &mut Text::new(line, PLACE, MAX_FIELD)),
            None => line.push(b'-'),
        }
        line.extend_from_slice(b"\" \"");
        Text::new(line, PLACE, MAX_FIELD).push(self.user_agent.unwrap_or(b"-"));
        line.extend_from_slice(b"\"\n");
    }

    fn push_client(&self, line: &mut Vec<u8>) {
        match self.client {
            Some(IpAddr::V4(client)) => {
                let mut text = [b'.'; 16];
                let mut len = 0;
                for octet in client.octets() {
                    let digits = digits::<3>(octet.into());
                    let digits = &digits[usize::from(octet < 100) + usize::from(octet < 10)..];
                    text[len..len + digits.len()].copy_from_slice(digits);
                    len += digits.len() + 1;
                }
                line.extend_from_slice(&text[..len - 1]);
            }
            Some(IpAddr::V6(client)) => line.extend_from_slice(client.to_string().as_bytes()),
            None => line.push(b'-'),
        }
    }

    fn push_target(&self, redactor: &Redactor, place: Place, line: &mut Vec<u8>) {
        let mut text = Text::new(line, place, MAX_PATH);
        redactor.write_path(self.path, &mut text);
        if let Some(query) = self.query {
            text.push(b"?");
            redactor.write_query(query, &mut text);
        }
    }
}

fn protocol(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_10 => b"HTTP/1.0",
        Version::HTTP_2 => b"HTTP/2.0",
        _ => b"HTTP/1.1",
    }
}

fn push_number(line: &mut Vec<u8>, number: u64) {
    line.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// The last `N` digits of a number, with zeros before it.
fn digits<const N: usize>(mut number: u32) -> [u8; N] {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    digits
}

/// Append a time in seconds, to the microsecond.
fn push_seconds(line: &mut Vec<u8>, time: Duration) {
    let [a, b, c, d, e, f] = digits(time.subsec_micros());
    match time.as_secs() {
        0 => line.push(b'0'),
        seconds => push_number(line, seconds),
    }
    line.extend_from_slice(&[b'.', a, b, c, d, e, f]);
}

// === impl Clock ===

impl Clock {
    pub const fn new() -> Clock {
        Clock {
            read: None,
            second: i64::MIN,
            text: String::new(),
        }
    }

    /// The time of day at `at`, not long before `now`.
    pub fn time_of(&mut self, at: Instant, now: Instant) -> Timestamp {
        const PERIOD: Duration = Duration::from_secs(1);
        let is_recent = |read: &(Instant, Timestamp)| now.duration_since(read.0) < PERIOD;
        let (read_at, time) = match self.read.filter(is_recent) {
            Some(read) => read,
            None => *self.read.insert((now, Timestamp::now())),
        };
        let micros =
            |time: Duration| time.as_secs() as i64 * 1_000_000 + i64::from(time.subsec_micros());
        match at.checked_duration_since(read_at) {
            Some(later) => Timestamp(time.0 + micros(later)),
            None => Timestamp(time.0 - micros(read_at.duration_since(at))),
        }
    }

    /// The second of a time as a text.
    fn second(&mut self, time: Timestamp, format: fn(OffsetDateTime) -> String) -> &str {
        let second = time.0.div_euclid(1_000_000);
        if second != self.second {
            let date = OffsetDateTime::from_unix_timestamp(second);
            self.text = format(date.unwrap_or(OffsetDateTime::UNIX_EPOCH));
            self.second = second;
        }
        &self.text
    }
}

impl Timestamp {
    /// The time now.
    pub fn now() -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = since.map_or(0, |since| since.as_micros());
        Timestamp(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

/// `2026-11-30T05:20:11` (RFC 3339 §5.6, without fraction and zone).
fn iso_8601(time: OffsetDateTime) -> String {
    let (hour, minute, second) = time.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}", time.date())
}

/// `30/Nov/2026:05:20:11`.
fn day_first(time: OffsetDateTime) -> String {
    let (hour, minute, second) = time.to_hms();
    let month = time.month().to_string();
    let (day, month, year) = (time.day(), &month[..3], time.year());
    format!("{day:02}/{month}/{year}:{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-30T05:20:11.012345Z
    const BEGAN: Timestamp = Timestamp(1_796_016_011_012_345);

    fn entry() -> Entry<'static> {
        Entry {
            began: BEGAN,
            client: Some([192, 0, 2, 1].into()),
            method: b"GET",
            path: b"/assets/a.png",
            query: None,
            version: Version::HTTP_11,
            status: 200,
            bytes: 65536,
            x_cache: Some("HIT"),
            sent: Some("sendfile"),
            first_byte: Some(Duration::from_micros(21)),
            total: Duration::from_micros(1_000_050),
            origin: None,
            key_id: None,
            request_id: b"0123456789ABCDEF",
            origin_request_id: None,
            host: Some(b"example.com:8080"),
            referer: None,
            user_agent: Some(b"curl/8.0"),
            error: None,
        }
    }

    fn line(entry: &Entry, format: LogFormat) -> String {
        let mut line = Vec::new();
        entry.write(format, &Redactor::default(), &mut Clock::new(), &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_json_line_has_all_that_is_known() {
        assert_eq!(
            line(&entry(), LogFormat::Json),
            "{\"time\":\"2026-11-30T05:20:11.012Z\",\"client\":\"192.0.2.1\",\"method\":\"GET\",\
             \"path\":\"/assets/a.png\",\"protocol\":\"HTTP/1.1\",\"status\":200,\"bytes\":65536,\
             \"cache\":\"HIT\",\"sent\":\"sendfile\",\"ttfb\":0.000021,\
             \"total_time\":1.000050,\"request_id\":\"0123456789ABCDEF\",\
             \"host\":\"example.com:8080\",\"user_agent\":\"curl/8.0\"}\n"
        );
        let miss = Entry {
            query: Some(b"versionId=1&X-Amz-Signature=s"),
            x_cache: Some("MISS"),
            sent: Some("copied"),
            origin: Some(Duration::from_millis(250)),
            key_id: Some(b"AKIA"),
            origin_request_id: Some(b"42"),
            referer: Some(b"https://example.com/?token=s"),
            error: Some("upstream"),
            ..entry()
        };
        let line = line(&miss, LogFormat::Json);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        for (name, value) in [
            ("client", "192.0.2.1"),
            ("path", "/assets/a.png?versionId=1&X-Amz-Signature=REDACTED"),
            ("cache", "MISS"),
            ("sent", "copied"),
            ("key_id", "AKIA"),
            ("origin_request_id", "42"),
            ("referer", "https://example.com/?token=REDACTED"),
            ("error", "upstream"),
        ] {
            assert_eq!(read[name], value, "{name}");
        }
        assert_eq!(read["origin_time"], 0.25);
    }

    #[test]
    fn a_combined_line_is_that_of_apache() {
        assert_eq!(
            line(&entry(), LogFormat::Combined),
            "192.0.2.1 - - [30/Nov/2026:05:20:11 +0000] \"GET /assets/a.png HTTP/1.1\" 200 65536 \
             \"-\" \"curl/8.0\"\n"
        );
        let other = Entry {
            client: Some("2001:db8::1".parse().unwrap()),
            query: Some(b"sig=s"),
            bytes: 0,
            key_id: Some(b"AK IA"),
            referer: Some(b"https://example.com/?sig=s"),
            user_agent: None,
            version: Version::HTTP_2,
            ..entry()
        };
        assert_eq!(
            line(&other, LogFormat::Combined),
            "2001:db8::1 - AK\\x20IA [30/Nov/2026:05:20:11 +0000] \
             \"GET /assets/a.png?sig=REDACTED HTTP/2.0\" 200 - \
             \"https://example.com/?sig=REDACTED\" \"-\"\n"
        );
    }

    #[test]
    fn no_client_can_forge_a_line_or_make_one_endless() {
        let forged = b"\"\r\n{\"status\":200}\\\"\xff".repeat(10_000);
        let hostile = Entry {
            method: &forged,
            path: &forged,
            query: Some(&forged),
            key_id: Some(&forged),
            host: Some(&forged),
            referer: Some(&forged),
            user_agent: Some(&forged),
            origin_request_id: Some(&forged),
            ..entry()
        };
        for format in [LogFormat::Json, LogFormat::Combined] {
            let line = line(&hostile, format);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(line.len() < 8 * 1024, "{}", line.len());
        }
        let line = line(&hostile, LogFormat::Json);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["status"], 200);
        assert!(read["user_agent"].as_str().unwrap().starts_with("\"\r\n{"));
    }

    #[test]
    fn the_time_of_a_request_is_that_of_its_begin() {
        let mut clock = Clock::new();
        let now = Instant::now();
        let before = Timestamp::now();
        let first = clock.time_of(now, now);
        assert!(first.0 >= before.0 && first.0 <= Timestamp::now().0);
        let later = now + Duration::from_millis(900);
        assert_eq!(clock.time_of(later, later).0 - first.0, 900_000);
        let earlier = now.checked_sub(Duration::from_secs(3)).unwrap();
        assert_eq!(first.0 - clock.time_of(earlier, later).0, 3_000_000);
        for time in [Timestamp(-1), Timestamp(0), BEGAN] {
            assert_eq!(clock.second(time, iso_8601).len(), 19);
        }
    }
}
