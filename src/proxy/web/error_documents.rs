//! Documents in place of the proxy's own errors.
//!
//! A document is an object of the bucket. It is read through the cache, and kept in memory for a second,
//! so that many errors at once read it once.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, StatusCode};
use log::warn;
use parking_lot::Mutex;
use pingora_core::Result;
use pingora_http::ResponseHeader;

use crate::cache::DiskCache;
use crate::proxy::ask::Answered;
use crate::s3::ObjectKey;

/// The largest document, in bytes.
pub(in crate::proxy) const MAX_DOCUMENT: usize = 256 * 1024;

/// The time for which a document is kept, or known to be missing.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// The fields of the object that clients receive. All others describe the object as such, which the
/// client has not asked for.
const FIELDS: [HeaderName; 3] = [CONTENT_TYPE, CONTENT_LANGUAGE, CONTENT_ENCODING];

/// The document for a status.
pub(in crate::proxy) struct ErrorDocument {
    status: StatusCode,
    key: ObjectKey,
    cache: Option<&'static DiskCache>,
    kept: Mutex<Option<Kept>>,
    /// Held by the one request that reads the document.
    reading: tokio::sync::Mutex<()>,
}

struct Kept {
    /// `None`: the document is missing.
    page: Option<Arc<Page>>,
    until: Instant,
    /// The number of purges when it was read.
    purges: u64,
}

/// The document as it is sent.
pub(in crate::proxy) struct Page {
    fields: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

// === impl ErrorDocument ===

impl ErrorDocument {
    pub(super) fn new(
        status: StatusCode,
        key: ObjectKey,
        cache: Option<&'static DiskCache>,
    ) -> ErrorDocument {
        ErrorDocument {
            status,
            key,
            cache,
            kept: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(in crate::proxy) fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The document. `read` gets it; `bucket` is named in the log if that fails. `None`: it is missing.
    pub(in crate::proxy) async fn page<F>(
        &self,
        bucket: &str,
        read: impl FnOnce() -> F,
    ) -> Option<Arc<Page>>
    where
        F: Future<Output = Result<Option<Answered>>>,
    {
        if let Some(page) = self.kept() {
            return page;
        }
        let _reading = self.reading.lock().await;
        // Another request may have read it meanwhile.
        if let Some(page) = self.kept() {
            return page;
        }
        let purges = self.purges();
        let page = match read().await {
            Ok(Some(answered)) if answered.header.status == StatusCode::OK => {
                Some(Arc::new(Page::of(&answered)))
            }
            Ok(Some(answered)) => {
                let status = answered.header.status;
                self.warn(
                    bucket,
                    &format!("the answer to a request for it is {status}"),
                );
                None
            }
            Ok(None) => {
                self.warn(bucket, "it is larger than 256 KiB, or not complete");
                None
            }
            Err(e) => {
                self.warn(bucket, &e.to_string());
                None
            }
        };
        *self.kept.lock() = Some(Kept {
            page: page.clone(),
            until: Instant::now() + KEPT_FOR,
            purges,
        });
        page
    }

    fn warn(&self, bucket: &str, why: &str) {
        warn!(
            "bucket {bucket}: the document {:?} for status {} is not used: {why}; store one, or \
             correct web.error_documents",
            self.key.as_str(),
            self.status.as_u16(),
        );
    }

    /// The result of a read within the last second. `None`: there was no read.
    fn kept(&self) -> Option<Option<Arc<Page>>> {
        let kept = self.kept.lock();
        let kept = kept.as_ref()?;
        let is_usable = Instant::now() < kept.until && kept.purges == self.purges();
        is_usable.then(|| kept.page.clone())
    }

    fn purges(&self) -> u64 {
        self.cache.map_or(0, DiskCache::purges)
    }
}

// === impl Page ===

impl Page {
    fn of(answered: &Answered) -> Page {
        let fields = FIELDS.iter().filter_map(|name| {
            let value = answered.header.headers.get(name)?;
            Some((name.clone(), value.clone()))
        });
        Page {
            fields: fields.collect(),
            body: answered.body.clone(),
        }
    }

    /// Make a header describe the page.
    pub(in crate::proxy) fn describe(&self, header: &mut ResponseHeader) -> Result<Bytes> {
        for (name, value) in &self.fields {
            header.insert_header(name.clone(), value.clone())?;
        }
        header.insert_header(CONTENT_LENGTH, self.body.len())?;
        Ok(self.body.clone())
    }
}
