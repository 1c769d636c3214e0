//! A date is read back as it was written, in each of its forms; anything else is
//! refused or a moment of the years 0 to 9999, or within 50 years from now.

#![no_main]

mod seeds;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use httpdate::{fmt_http_date, parse_http_date as parse_valid};
use libfuzzer_sys::fuzz_target;
use pingora_sendfile::http::rules::date::parse_http_date;

/// The years 0 to 9999 in seconds since 1970, with a leap second at their end.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_300_800;
/// Seconds.
const YEAR: i64 = 366 * 86_400;

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    // The first bytes are the clock, and the moment that is written.
    let Some((clock, value)) = data.split_first_chunk() else {
        return;
    };
    let clock = u64::from_be_bytes(*clock);
    let now = at((clock % LAST as u64) as i64);
    if let Some(date) = parse_http_date(value, now) {
        assert!(at(FIRST) <= date && date <= at(LAST + 50 * YEAR));
        let lowercase = value.to_ascii_lowercase();
        assert_eq!(parse_http_date(&lowercase, now), Some(date));
        // It compares the weekday, and has its own rule for two digits.
        if let Some(valid) = std::str::from_utf8(value)
            .ok()
            .filter(|value| value.len() == 29 && !value.ends_with(":60 GMT"))
            .and_then(|value| parse_valid(value).ok())
        {
            assert_eq!(date, valid);
        }
    }
    // No clock at all is too far off.
    let distance = Duration::from_secs(clock);
    for now in [UNIX_EPOCH.checked_add(distance), UNIX_EPOCH.checked_sub(distance)] {
        if let Some(now) = now {
            parse_http_date(value, now);
        }
    }
    round_trip(now);
});

fn round_trip(now: SystemTime) {
    let imf_fixdate = fmt_http_date(now);
    let read = |value: &str| parse_http_date(value.as_bytes(), now);
    assert_eq!(read(&imf_fixdate), Some(now), "{imf_fixdate}");

    let [_, day, month, year, time, _] = imf_fixdate
        .split(' ')
        .collect::<Vec<_>>()
        .try_into()
        .expect("six parts");
    let rfc850 = format!("Monday, {day}-{month}-{} {time} GMT", &year[2..]);
    assert_eq!(read(&rfc850), Some(now), "{rfc850}");
    let day = day.trim_start_matches('0');
    let asctime = format!("Mon {month} {day:>2} {time} {year}");
    assert_eq!(read(&asctime), Some(now), "{asctime}");
}

/// Seconds since 1970.
fn at(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

fn examples() -> Vec<Vec<u8>> {
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Fri, 31 Dec 9999 23:59:60 GMT",
        "Tuesday, 29-Feb-00 00:00:00 GMT",
        " thu, 01 jan 0000 00:00:00 gmt ",
        "0",
    ]
    .iter()
    .map(|value| [&1_795_413_600_u64.to_be_bytes(), value.as_bytes()].concat())
    .collect()
}
