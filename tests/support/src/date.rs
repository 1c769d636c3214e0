//! HTTP-date (RFC 9110, section 5.6.7), in its three forms.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A point in time, with the resolution of an HTTP-date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(i64);

struct Civil {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
}

/// `offset` seconds from now, as an IMF-fixdate; negative is the past.
pub fn from_now(offset: i64) -> String {
    Date::from_now(offset).imf()
}

// === impl Date ===

impl Date {
    pub fn from_now(offset: i64) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a clock after 1970");
        Self(now.as_secs() as i64 + offset)
    }

    pub fn plus(self, seconds: i64) -> Self {
        Self(self.0 + seconds)
    }

    /// `Sun, 06 Nov 1994 08:49:37 GMT`
    pub fn imf(self) -> String {
        let at = self.civil();
        format!(
            "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
            &DAYS[at.weekday][..3],
            at.day,
            MONTHS[at.month],
            at.year,
            at.hour,
            at.minute,
            at.second
        )
    }

    /// `Sunday, 06-Nov-94 08:49:37 GMT`
    pub fn rfc850(self) -> String {
        let at = self.civil();
        format!(
            "{}, {:02}-{}-{:02} {:02}:{:02}:{:02} GMT",
            DAYS[at.weekday],
            at.day,
            MONTHS[at.month],
            at.year % 100,
            at.hour,
            at.minute,
            at.second
        )
    }

    /// `Sun Nov  6 08:49:37 1994`
    pub fn asctime(self) -> String {
        let at = self.civil();
        format!(
            "{} {} {:2} {:02}:{:02}:{:02} {:04}",
            &DAYS[at.weekday][..3],
            MONTHS[at.month],
            at.day,
            at.hour,
            at.minute,
            at.second,
            at.year
        )
    }

    // Days to a date of the proleptic Gregorian calendar, years starting in
    // March so that the leap day is their last: 400 years are 146,097 days.
    fn civil(self) -> Civil {
        let (days, seconds) = (self.0.div_euclid(86_400), self.0.rem_euclid(86_400));
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = (from_march + 2) % 12;
        Civil {
            year: era * 400 + year_of_era + i64::from(month < 2),
            month: month as usize,
            day: of_year - (153 * from_march + 2) / 5 + 1,
            weekday: (days + 4).rem_euclid(7) as usize,
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_9110_are_written_as_they_stand() {
        let date = Date(784_111_777);
        assert_eq!(date.imf(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date.rfc850(), "Sunday, 06-Nov-94 08:49:37 GMT");
        assert_eq!(date.asctime(), "Sun Nov  6 08:49:37 1994");
        assert_eq!(Date(951_782_400).imf(), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(Date(-1).imf(), "Wed, 31 Dec 1969 23:59:59 GMT");
    }
}
