use std::collections::HashMap;

/// One member of `Cache-Status` (RFC 9211), the one nearest to the client.
#[derive(Clone, Debug, Default)]
pub struct CacheStatus {
    pub cache: String,
    parameters: HashMap<String, String>,
}

// === impl CacheStatus ===

impl CacheStatus {
    /// The last member of all that the field lines hold.
    pub(crate) fn last(all: &str) -> Self {
        let members = split(all, ',');
        Self::parse(members.last().expect("a member"))
    }

    fn parse(member: &str) -> Self {
        let parts = split(member, ';');
        let parameters = parts[1..].iter().map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, "?1"));
            (name.trim().to_owned(), value.trim().to_owned())
        });
        Self {
            cache: parts[0].to_owned(),
            parameters: parameters.collect(),
        }
    }

    /// The value of a parameter, as it stands; `?1` where there is none.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "?0")
    }

    pub fn is_hit(&self) -> bool {
        self.has("hit")
    }
}

/// Splits at a separator that stands outside quotes (RFC 9651, section 3.3.3).
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if c == separator && !quoted => {
                parts.push(text[start..at].trim());
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}
