//! The protocols that hits are raced over.

/// The requests that a connection of HTTP/2 has under way.
const STREAMS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 without TLS.
    Http,
    /// HTTP/1.1 over TLS.
    Https,
    /// HTTP/2 over TLS.
    Http2,
}

// === impl Protocol ===

impl Protocol {
    /// Its name on the command line.
    pub fn key(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Http2 => "http2",
        }
    }

    /// Its name in the report.
    pub fn label(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::Http2 => "HTTP/2",
        }
    }

    /// The file of its plot.
    pub fn plot(self) -> &'static str {
        match self {
            Self::Http => "report.svg",
            Self::Https => "report-https.svg",
            Self::Http2 => "report-http2.svg",
        }
    }

    pub fn is_over_tls(self) -> bool {
        self != Self::Http
    }

    /// The requests that a connection has under way.
    pub fn streams(self) -> usize {
        match self {
            Self::Http | Self::Https => 1,
            Self::Http2 => STREAMS,
        }
    }
}
