//! `Accept-Encoding` (RFC 9110 §12.5.3).

use std::cmp::Reverse;

use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue};

/// The most elements that are read.
const MAX_ELEMENTS: usize = 32;

/// The weight of a coding that is accepted without a weight.
const FULL: u16 = 1000;

/// A content coding that clients of today know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// Brotli (RFC 7932).
    Brotli,
    /// Zstandard (RFC 8878).
    Zstd,
    /// The format of gzip (RFC 1952).
    Gzip,
}

/// The codings that a client accepts, with weights from 0 to 1000. Any two fields that mean the same are
/// equal here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedCodings {
    brotli: u16,
    zstd: u16,
    gzip: u16,
    identity: u16,
}

// === impl Coding ===

impl Coding {
    /// The name in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
            Coding::Gzip => "gzip",
        }
    }
}

// === impl AcceptedCodings ===

impl AcceptedCodings {
    /// The codings that a request accepts. Without the field, a client may not know any.
    pub fn of(headers: &HeaderMap) -> AcceptedCodings {
        let mut found: [Option<u16>; 5] = [None; 5];
        let values = headers.get_all(ACCEPT_ENCODING).iter();
        let elements = values
            .map(HeaderValue::as_bytes)
            .flat_map(|value| value.split(|byte| *byte == b','));
        for element in elements.take(MAX_ELEMENTS) {
            let mut parts = element.split(|byte| *byte == b';');
            let name = parts.next().unwrap_or_default().trim_ascii();
            const NAMES: [(&[u8], usize); 6] = [
                (b"br", 0),
                (b"zstd", 1),
                (b"gzip", 2),
                (b"x-gzip", 2),
                (b"identity", 3),
                (b"*", 4),
            ];
            let mut names = NAMES.iter();
            if let Some((_, at)) = names.find(|(known, _)| name.eq_ignore_ascii_case(known)) {
                // The first one counts.
                found[*at].get_or_insert(weight(parts));
            }
        }
        let [brotli, zstd, gzip, identity, others] = found;
        let or_others = |weight: Option<u16>| weight.or(others).unwrap_or(0);
        AcceptedCodings {
            brotli: or_others(brotli),
            zstd: or_others(zstd),
            gzip: or_others(gzip),
            // It is acceptable unless the client excludes it, and less than what the client names.
            identity: match (identity, others) {
                (Some(weight), _) => weight,
                (None, Some(0)) => 0,
                (None, _) => 1,
            },
        }
    }

    /// The acceptable ones of some codings, the best first, without those that are worse than none.
    /// Among equals, their order stays.
    pub fn best_of<'c>(&self, codings: &'c [Coding]) -> impl Iterator<Item = Coding> + 'c {
        let weights = *self;
        let mut left: u8 = 0;
        for (at, coding) in codings.iter().enumerate().take(8) {
            let weight = weights.of_coding(*coding);
            if weight > 0 && weight >= weights.identity {
                left |= 1 << at;
            }
        }
        std::iter::from_fn(move || {
            let candidates = codings.iter().copied().enumerate().take(8);
            let candidates = candidates.filter(|(at, _)| left & (1 << at) != 0);
            let by_weight = |(_, coding): &(usize, Coding)| Reverse(weights.of_coding(*coding));
            let (at, coding) = candidates.min_by_key(by_weight)?;
            left &= !(1 << at);
            Some(coding)
        })
    }

    fn of_coding(&self, coding: Coding) -> u16 {
        match coding {
            Coding::Brotli => self.brotli,
            Coding::Zstd => self.zstd,
            Coding::Gzip => self.gzip,
        }
    }
}

/// The weight among the parameters of an element, in thousandths (RFC 9110 §12.4.2). One that is not
/// valid excludes the element.
fn weight<'p>(mut parameters: impl Iterator<Item = &'p [u8]>) -> u16 {
    let weight = parameters.find_map(|parameter| {
        let parameter = parameter.trim_ascii();
        let value = parameter.strip_prefix(b"q=");
        value.or_else(|| parameter.strip_prefix(b"Q="))
    });
    let Some(weight) = weight else {
        return FULL;
    };
    let (whole, decimals) = match weight {
        [whole, b'.', decimals @ ..] if decimals.len() <= 3 => (*whole, decimals),
        [whole] => (*whole, &[][..]),
        _ => return 0,
    };
    let mut thousandths = match whole {
        b'0' => 0,
        b'1' => FULL,
        _ => return 0,
    };
    let mut place = 100;
    for digit in decimals {
        if !digit.is_ascii_digit() {
            return 0;
        }
        thousandths += u16::from(digit - b'0') * place;
        place /= 10;
    }
    match thousandths <= FULL {
        true => thousandths,
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Gzip];

    fn accepted(fields: &[&str]) -> AcceptedCodings {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(ACCEPT_ENCODING, field.parse().unwrap());
        }
        AcceptedCodings::of(&headers)
    }

    fn best(fields: &[&str]) -> String {
        let codings = accepted(fields).best_of(&ALL).map(Coding::name);
        codings.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_best_coding_comes_first() {
        for (field, expected) in [
            ("gzip, deflate, br, zstd", "br zstd gzip"),
            ("gzip", "gzip"),
            ("x-gzip, BR", "br gzip"),
            ("gzip;q=1.0, br;q=0.5", "gzip br"),
            ("gzip ; q=0.8 , br ;Q=0.9", "br gzip"),
            ("br;q=0, *", "zstd gzip"),
            ("*;q=0.5, gzip", "gzip br zstd"),
            ("*;q=0, br", "br"),
            ("identity", ""),
            ("identity, gzip", "gzip"),
            ("identity;q=0.5, gzip;q=0.2, br;q=0.7", "br"),
            ("identity;q=0, gzip;q=0.001", "gzip"),
            ("", ""),
            ("gzip;q=2", ""),
            ("gzip;q=1.001", ""),
            ("gzip;q=0.0001", ""),
            ("gzip;q=", ""),
            ("gzip;q=x", ""),
            ("gzip;q=0, gzip", ""),
            ("compress, deflate", ""),
        ] {
            assert_eq!(best(&[field]), expected, "{field}");
        }
        assert_eq!(best(&[]), "");
        assert_eq!(best(&["gzip", "br"]), "br gzip");
        let many = "a,".repeat(MAX_ELEMENTS) + "gzip";
        assert_eq!(best(&[&many]), "");
    }

    #[test]
    fn fields_that_mean_the_same_are_equal() {
        let same = accepted(&["gzip, br"]);
        for field in ["br,gzip", "BR ;q=1.0, x-gzip;q=1", "br, deflate, gzip"] {
            assert_eq!(accepted(&[field]), same, "{field}");
        }
        assert_eq!(accepted(&["br", "gzip"]), same);
    }
}
