//! HTTP-date in its three forms, as a recipient has to read it.
//!
//! The `httpdate` crate writes dates here, but does not read them. It refuses, or reads
//! differently, what RFC 9110 §5.6.7 and RFC 9111 §4.2 ask recipients to accept:
//!
//! - names in any case (RFC 9111 §4.2)
//! - a weekday that does not fit the date: the weekday adds nothing (RFC 9111 §4.2 leaves lenient
//!   parsing to the recipient)
//! - two-digit years relative to the current date; `httpdate` pivots at 1970 (§5.6.7)
//! - the leap second 60, which the grammar has (§5.6.7)
//! - years before 1970: a year is any four digits (§5.6.7)
//!
//! In the tests, all that both read is the same date.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::fields::trim_ows;

const WEEKDAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

const SECONDS_A_DAY: i64 = 86_400;

/// Read an HTTP-date: IMF-fixdate, or one of the obsolete forms of RFC 850 and asctime (RFC 9110
/// §5.6.7). None for anything else.
///
/// White space around the date and the case of letters are ignored. Otherwise the grammar decides;
/// in particular, GMT is the only zone. A two-digit year stands for the last such year that is not
/// more than 50 years after `now`. A leap second is the first second of the next minute.
pub fn parse_http_date(value: &[u8], now: SystemTime) -> Option<SystemTime> {
    let value = trim_ows(value);
    let seconds = [imf_fixdate, rfc850_date, asctime_date]
        .iter()
        .find_map(|form| {
            let mut text = Text(value);
            let date = form(&mut text, now)?;
            text.0.is_empty().then_some(date)
        })?
        .seconds()?;
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    }
}

fn imf_fixdate(text: &mut Text, _: SystemTime) -> Option<Date> {
    text.one_of(WEEKDAYS.map(|name| &name[..3]))?;
    text.literal(", ")?;
    let day = text.digits(2)?;
    text.literal(" ")?;
    let month = text.month()?;
    text.literal(" ")?;
    let year = text.digits(4)?;
    text.literal(" ")?;
    let second = text.time_of_day()?;
    text.literal(" GMT")?;
    Some(Date {
        year,
        month,
        day,
        second,
    })
}

fn rfc850_date(text: &mut Text, now: SystemTime) -> Option<Date> {
    text.one_of(WEEKDAYS)?;
    text.literal(", ")?;
    let day = text.digits(2)?;
    text.literal("-")?;
    let month = text.month()?;
    text.literal("-")?;
    let two_digits = text.digits(2)?;
    text.literal(" ")?;
    let second = text.time_of_day()?;
    text.literal(" GMT")?;

    let date = Date {
        year: two_digits,
        month,
        day,
        second,
    };
    Some(date.in_last_century(now))
}

fn asctime_date(text: &mut Text, _: SystemTime) -> Option<Date> {
    text.one_of(WEEKDAYS.map(|name| &name[..3]))?;
    text.literal(" ")?;
    let month = text.month()?;
    text.literal(" ")?;
    let day = match text.literal(" ") {
        Some(()) => text.digits(1)?,
        None => text.digits(2)?,
    };
    text.literal(" ")?;
    let second = text.time_of_day()?;
    text.literal(" ")?;
    let year = text.digits(4)?;
    Some(Date {
        year,
        month,
        day,
        second,
    })
}

/// The text that has not been read yet.
struct Text<'a>(&'a [u8]);

impl Text<'_> {
    fn literal(&mut self, expected: &str) -> Option<()> {
        let (head, rest) = self.0.split_at_checked(expected.len())?;
        if !head.eq_ignore_ascii_case(expected.as_bytes()) {
            return None;
        }
        self.0 = rest;
        Some(())
    }

    /// The index of the name that comes next.
    fn one_of<const N: usize>(&mut self, names: [&str; N]) -> Option<usize> {
        names.iter().position(|name| self.literal(name).is_some())
    }

    /// 1 is January.
    fn month(&mut self) -> Option<i64> {
        Some(self.one_of(MONTHS)? as i64 + 1)
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let number = digits.iter().try_fold(0, |number, digit| {
            digit
                .is_ascii_digit()
                .then(|| number * 10 + i64::from(digit - b'0'))
        })?;
        self.0 = rest;
        Some(number)
    }

    /// Seconds since midnight.
    fn time_of_day(&mut self) -> Option<i64> {
        let hour = self.digits(2)?;
        self.literal(":")?;
        let minute = self.digits(2)?;
        self.literal(":")?;
        let second = self.digits(2)?;
        (hour < 24 && minute < 60 && second <= 60).then_some((hour * 60 + minute) * 60 + second)
    }
}

/// A second in the Gregorian calendar.
#[derive(Clone, Copy)]
struct Date {
    year: i64,
    month: i64,
    day: i64,
    /// Seconds since midnight.
    second: i64,
}

impl Date {
    /// Seconds since 1970. None if the month has no such day.
    fn seconds(self) -> Option<i64> {
        let is_valid = (1..=days_of_month(self.year, self.month)).contains(&self.day);
        is_valid.then(|| self.unchecked_seconds())
    }

    /// The same without a check. A day that the month does not have is one of the next month.
    fn unchecked_seconds(self) -> i64 {
        // Years begin in March, so that the leap day is the last of its year.
        let year = if self.month > 2 {
            self.year
        } else {
            self.year - 1
        };
        let month = (self.month + 9) % 12;
        let days = year * 365 + year.div_euclid(4) - year.div_euclid(100)
            + year.div_euclid(400)
            + (153 * month + 2) / 5
            + self.day
            - 1
            - DAYS_TO_1970;
        days * SECONDS_A_DAY + self.second
    }

    /// The last date with these two digits of the year that is not more than 50 years after `now`
    /// (RFC 9110 §5.6.7).
    fn in_last_century(mut self, now: SystemTime) -> Date {
        let now = match now.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_secs().min(FAR) as i64,
            Err(e) => -(e.duration().as_secs().min(FAR) as i64),
        };
        // The mean year finds the year of the clock to within one, so `latest` is not too early.
        let latest = 1970 + now.div_euclid(SECONDS_A_YEAR) + 51;
        self.year = latest - (latest - self.year).rem_euclid(100);
        let fifty_years_before = Date {
            year: self.year - 50,
            ..self
        };
        if fifty_years_before.unchecked_seconds() > now {
            self.year -= 100;
        }
        self
    }
}

/// From 1 March of the year 0.
const DAYS_TO_1970: i64 = 719_468;

/// The mean length of a year.
const SECONDS_A_YEAR: i64 = 31_556_952;

/// A clock that is further off, in seconds, counts as this far off.
const FAR: u64 = 1 << 40;

fn days_of_month(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 6 November 1994, 08:49:37.
    const RFC_EXAMPLE: i64 = 784_111_777;

    /// 23 November 2026, 06:00:00.
    const NOW: u64 = 1_795_413_600;

    fn at(seconds: i64) -> SystemTime {
        let distance = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 {
            UNIX_EPOCH - distance
        } else {
            UNIX_EPOCH + distance
        }
    }

    fn parse(value: &str) -> Option<SystemTime> {
        parse_http_date(value.as_bytes(), at(NOW as i64))
    }

    #[test]
    fn the_three_forms_are_read() {
        // RFC 9110 §5.6.7
        for value in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun Nov 06 08:49:37 1994",
            " \tSun, 06 Nov 1994 08:49:37 GMT\t ",
        ] {
            assert_eq!(parse(value), Some(at(RFC_EXAMPLE)), "{value}");
        }
    }

    #[test]
    fn case_does_not_matter() {
        // RFC 9111 §4.2
        for value in [
            "sun, 06 nov 1994 08:49:37 gmt",
            "SUN, 06 NOV 1994 08:49:37 GMT",
            "sUNDAY, 06-nOV-94 08:49:37 gMT",
            "sun nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse(value), Some(at(RFC_EXAMPLE)), "{value}");
        }
    }

    #[test]
    fn the_wrong_weekday_is_no_matter() {
        for value in [
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "Saturday, 06-Nov-94 08:49:37 GMT",
            "Tue Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse(value), Some(at(RFC_EXAMPLE)), "{value}");
        }
    }

    #[test]
    fn anything_else_is_no_date() {
        // RFC 9110 §5.6.7
        for value in [
            "",
            "0",
            "-1",
            "now",
            "784111777",
            "1994-11-06T08:49:37Z",
            "06 Nov 1994 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun,06 Nov 1994 08:49:37 GMT",
            "Sun,  06 Nov 1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun,  6 Nov 1994 08:49:37 GMT",
            "Sun, 006 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov 1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 November 1994 08:49:37 GMT",
            "Sun, 06 Xyz 1994 08:49:37 GMT",
            "Xyz, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun, 06 Nov 19940 08:49:37 GMT",
            "Sun, 06 Nov 1994  08:49:37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 08:49:37.0 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 ",
            "Sun, 06 Nov 1994 08:49:37GMT",
            "Sun, 06 Nov 1994 08:49:37  GMT",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 EST",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 06 Nov 1994 08:49:37 GMT+1",
            "Sun, 06 Nov 1994 08:49:37 GMT, x",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sunday, 6-Nov-94 08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sunday, 06 Nov 94 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
            "Sun, Nov  6 08:49:37 1994",
            "Sun Nov  6 08:49:37 94",
            "Sun Nov  6 08:49:37 1994 GMT",
            "Sunday Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse(value), None, "{value}");
        }
        assert_eq!(parse_http_date(b"\xff\xfe", UNIX_EPOCH), None);
    }

    #[test]
    fn fields_that_are_out_of_range_are_no_date() {
        for (value, valid) in [
            ("Sun, 00 Jan 2023 00:00:00 GMT", false),
            ("Sun, 31 Jan 2023 23:59:59 GMT", true),
            ("Sun, 32 Jan 2023 00:00:00 GMT", false),
            ("Sun, 28 Feb 2023 00:00:00 GMT", true),
            ("Sun, 29 Feb 2023 00:00:00 GMT", false),
            ("Sun, 29 Feb 2024 00:00:00 GMT", true),
            ("Sun, 30 Feb 2024 00:00:00 GMT", false),
            ("Sun, 31 Feb 2024 00:00:00 GMT", false),
            ("Sun, 29 Feb 2000 00:00:00 GMT", true),
            ("Sun, 29 Feb 1900 00:00:00 GMT", false),
            ("Sun, 31 Apr 2023 00:00:00 GMT", false),
            ("Sun, 31 Dec 2023 00:00:00 GMT", true),
            ("Sun, 01 Jan 2023 24:00:00 GMT", false),
            ("Sun, 01 Jan 2023 00:60:00 GMT", false),
            ("Sun, 01 Jan 2023 00:00:61 GMT", false),
        ] {
            assert_eq!(parse(value).is_some(), valid, "{value}");
        }
    }

    #[test]
    fn a_leap_second_is_the_first_of_the_next_minute() {
        // RFC 9110 §5.6.7: second is 2DIGIT, 60 the leap second.
        assert_eq!(
            parse("Sat, 31 Dec 2016 23:59:60 GMT"),
            parse("Sun, 01 Jan 2017 00:00:00 GMT"),
        );
    }

    #[test]
    fn years_are_0_to_9999() {
        for (value, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Wed, 31 Dec 1969 23:59:59 GMT", -1),
            ("Mon, 01 Jan 1900 00:00:00 GMT", -2_208_988_800),
            ("Sat, 01 Jan 0000 00:00:00 GMT", -62_167_219_200),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799),
            ("Wed, 01 Mar 2000 00:00:00 GMT", 951_868_800),
            ("Tue, 29 Feb 2000 00:00:00 GMT", 951_782_400),
            ("Tue, 19 Jan 2038 03:14:08 GMT", 1 << 31),
        ] {
            assert_eq!(parse(value), Some(at(seconds)), "{value}");
        }
    }

    #[test]
    fn two_digits_are_the_last_year_not_50_years_ahead() {
        // RFC 9110 §5.6.7
        for (value, year) in [
            ("Monday, 23-Nov-26 06:00:00 GMT", "2026"),
            ("Monday, 23-Nov-75 06:00:00 GMT", "2075"),
            ("Monday, 23-Nov-76 06:00:00 GMT", "2076"),
            ("Monday, 23-Nov-76 06:00:01 GMT", "1976"),
            ("Monday, 24-Nov-76 05:00:00 GMT", "1976"),
            ("Monday, 01-Dec-76 05:00:00 GMT", "1976"),
            ("Monday, 01-Jan-77 06:00:00 GMT", "1977"),
            ("Monday, 31-Dec-99 06:00:00 GMT", "1999"),
            ("Monday, 29-Feb-00 06:00:00 GMT", "2000"),
        ] {
            let (day_and_month, time) = (&value[8..15], &value[18..]);
            let four_digits = format!("Mon, {day_and_month}{year} {time}").replace('-', " ");
            assert_eq!(parse(value), parse(&four_digits), "{value} {four_digits}");
            assert!(parse(value).is_some(), "{value}");
        }
    }

    #[test]
    fn two_digits_follow_the_clock_over_the_century() {
        // RFC 9110 §5.6.7
        for (now, value, expected) in [
            ("1970", "10", "2010"),
            ("1970", "70", "1970"),
            ("1970", "21", "1921"),
            ("1949", "99", "1999"),
            ("2049", "99", "2099"),
            ("2051", "01", "2101"),
            ("2051", "02", "2002"),
            ("2150", "00", "2200"),
        ] {
            let new_year = |year| parse(&format!("Mon, 01 Jan {year} 00:00:00 GMT"));
            let value = format!("Monday, 01-Jan-{value} 00:00:00 GMT");
            let date = parse_http_date(value.as_bytes(), new_year(now).unwrap());
            assert_eq!(date, new_year(expected), "{value} in {now}");
        }
    }

    /// The differences are those that the module names.
    #[test]
    fn what_httpdate_reads_is_read_the_same() {
        let mut read = 0;
        for seconds in (0..253_402_300_800_i64).step_by(12_345_678) {
            let date = httpdate::fmt_http_date(at(seconds));
            assert_eq!(parse(&date), Some(at(seconds)), "{date}");
            read += 1;
        }
        assert!(read > 20_000);
        for (value, same) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", true),
            ("Sunday, 06-Nov-94 08:49:37 GMT", true),
            ("Sun Nov  6 08:49:37 1994", true),
            ("Sun Nov 06 08:49:37 1994", true),
            (" Sun, 06 Nov 1994 08:49:37 GMT\t", true),
            ("Fri, 31 Dec 9999 23:59:59 GMT", true),
            ("Saturday, 26-Feb-00 00:00:00 GMT", true),
            // RFC 9111 §4.2
            ("sun, 06 nov 1994 08:49:37 gmt", false),
            ("Mon, 06 Nov 1994 08:49:37 GMT", false),
            // RFC 9110 §5.6.7
            ("Monday, 23-Nov-76 06:00:00 GMT", false),
            ("Sat, 31 Dec 2016 23:59:60 GMT", false),
            ("Wed, 31 Dec 1969 23:59:59 GMT", false),
        ] {
            let date = parse(value);
            assert!(date.is_some(), "{value}");
            let theirs = httpdate::parse_http_date(value).ok();
            assert_eq!(theirs == date, same, "{value}");
        }
    }
}
