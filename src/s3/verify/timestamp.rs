//! The time of a signature.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{Date, Month, OffsetDateTime};

/// The length of `20130524T000000Z`.
const LEN: usize = 16;

/// A time to the second, with the text that is signed: `20130524T000000Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timestamp {
    text: [u8; LEN],
    time: SystemTime,
}

// === impl Timestamp ===

impl Timestamp {
    /// Reads the basic format of ISO 8601, in UTC.
    pub(super) fn parse(text: &[u8]) -> Option<Timestamp> {
        let text: [u8; LEN] = text.try_into().ok()?;
        let number = |from: usize, to: usize| {
            text[from..to].iter().try_fold(0_u16, |number, digit| {
                let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
                Some(number * 10 + u16::from(digit))
            })
        };
        let small = |from: usize| u8::try_from(number(from, from + 2)?).ok();
        if text[8] != b'T' || text[15] != b'Z' {
            return None;
        }
        let month = Month::try_from(small(4)?).ok()?;
        let date = Date::from_calendar_date(number(0, 4)?.into(), month, small(6)?).ok()?;
        let time = date.with_hms(small(9)?, small(11)?, small(13)?).ok()?;
        let secs = u64::try_from(time.assume_utc().unix_timestamp()).ok()?;
        Some(Timestamp {
            text,
            time: UNIX_EPOCH + Duration::from_secs(secs),
        })
    }

    /// Reads the formats of `Date` and `x-amz-date`: ISO 8601, or those of RFC 9110 §5.6.7.
    pub(super) fn parse_header(text: &[u8]) -> Option<Timestamp> {
        let text = text.trim_ascii();
        Timestamp::parse(text).or_else(|| {
            let text = std::str::from_utf8(text).ok()?;
            Timestamp::at(httpdate::parse_http_date(text).ok()?)
        })
    }

    fn at(time: SystemTime) -> Option<Timestamp> {
        let secs = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
        let date = OffsetDateTime::from_unix_timestamp(i64::try_from(secs).ok()?).ok()?;
        let text = format!(
            "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            date.hour(),
            date.minute(),
            date.second()
        );
        Timestamp::parse(text.as_bytes())
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// The day: `20130524`.
    pub(super) fn day(&self) -> [u8; 8] {
        let mut day = [0; 8];
        day.copy_from_slice(&self.text[..8]);
        day
    }

    pub(super) fn time(&self) -> SystemTime {
        self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let expected = UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        for text in [
            "20130524T000000Z",
            " 20130524T000000Z ",
            "Fri, 24 May 2013 00:00:00 GMT",
            "Friday, 24-May-13 00:00:00 GMT",
        ] {
            let read = Timestamp::parse_header(text.as_bytes()).expect(text);
            assert_eq!(read.time(), expected, "{text}");
            assert_eq!(read.text(), b"20130524T000000Z", "{text}");
            assert_eq!(&read.day(), b"20130524");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "20130524T000000",
            "20130524 000000Z",
            "20130524T000000z",
            "2013-05-24T00:00:00Z",
            "20130229T000000Z",
            "20131324T000000Z",
            "20130524T240000Z",
            "20130524T006000Z",
            "20130524T000060Z",
            "+0130524T000000Z",
            "19690524T000000Z",
            "2013052éT00000Z",
            "1369353600",
            "Fri, 24 May 2013 00:00:00 CET",
        ] {
            assert_eq!(Timestamp::parse_header(text.as_bytes()), None, "{text}");
        }
    }
}
