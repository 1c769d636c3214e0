//! Error documents of S3, read for the log only ("Error responses", Amazon S3 API Reference).

use std::borrow::Cow;

/// The longest code or region.
const MAX_LEN: usize = 64;

/// The beginning of an error document.
pub struct Fault<'a>(Cow<'a, str>);

// === impl Fault ===

impl<'a> Fault<'a> {
    /// Reads the beginning of a document; `None`: it is not an error document.
    pub fn read(document: &'a [u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(document);
        let mut rest = text.trim_start_matches('\u{feff}').trim_start();
        if let Some(declaration) = rest.strip_prefix("<?xml") {
            let (_, after) = declaration.split_once("?>")?;
            rest = after.trim_start();
        }
        let after = rest.strip_prefix("<Error")?;
        let is_tag = after.starts_with(|c: char| c == '>' || c == '/' || c.is_whitespace());
        is_tag.then_some(Fault(text))
    }

    /// The code of the error, such as `AuthorizationHeaderMalformed`.
    pub fn code(&self) -> Option<&str> {
        self.element("Code")
    }

    /// The region that the service expects.
    pub fn region(&self) -> Option<&str> {
        self.element("Region")
    }

    /// The text of an element, if it is a plain name: the origin is not trusted.
    fn element(&self, name: &str) -> Option<&str> {
        let (_, after) = self.0.split_once(&format!("<{name}>"))?;
        let (text, _) = after.split_once('<')?;
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let fits = (1..=MAX_LEN).contains(&text.len()) && text.bytes().all(is_plain);
        fits.then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_code_and_the_right_region() {
        let document = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>\
            <Code>AuthorizationHeaderMalformed</Code><Message>The region 'us-east-1' is wrong; \
            expecting 'eu-west-1'</Message><Region>eu-west-1</Region></Error>";
        let fault = Fault::read(document.as_bytes()).expect("an error");
        assert_eq!(fault.code(), Some("AuthorizationHeaderMalformed"));
        assert_eq!(fault.region(), Some("eu-west-1"));
    }

    #[test]
    fn what_only_looks_like_an_error_is_none() {
        for document in [
            "",
            "Error",
            "<Errors><Code>a</Code></Errors>",
            "<ListBucketResult/>",
            "<?xml version=\"1.0\"?>",
            "<?xml version=\"1.0\"",
            "text <Error>",
            "<html><Error></html>",
        ] {
            assert!(Fault::read(document.as_bytes()).is_none(), "{document}");
        }
        for document in [
            "<Error/>",
            "\u{feff} <Error>",
            "<Error xmlns='a'>",
            "<?xml?><Error>",
        ] {
            assert!(Fault::read(document.as_bytes()).is_some(), "{document}");
        }
    }

    #[test]
    fn names_that_are_no_names_are_passed_over() {
        let long = "a".repeat(65);
        for region in ["", "a b", "eu\r\nx", "<b>", "é", &long] {
            let document = format!("<Error><Region>{region}</Region>");
            let fault = Fault::read(document.as_bytes()).expect("an error");
            assert_eq!(fault.region(), None, "{region}");
        }
    }
}
