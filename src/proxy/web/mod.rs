//! Serving of objects as a website.
//!
//! - this module: the settings of each bucket
//! - `index`: index documents, and redirects to them
//! - `compressor`: compressed forms that the proxy makes
//! - `cors`: permission for scripts of other websites
//! - `fields`: the header of responses
//! - `listing`: lists of objects as pages for browsers
//! - `siblings`: compressed forms of objects
//! - `error_documents`: documents in place of the proxy's own errors

mod compressor;
mod cors;
mod error_documents;
mod fields;
mod index;
pub(super) mod listing;
mod siblings;

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use crate::cache::DiskCache;
use crate::config::{self, Config};
use crate::http::response_fields::ResponseFields;
use crate::http::rules::accept_encoding::Coding;
use compressor::Compressor;
pub(super) use compressor::Known;
pub(super) use cors::Cors;
pub(super) use error_documents::{ErrorDocument, Page, MAX_DOCUMENT};
pub(super) use fields::guess_type;
use fields::Fields;
pub(super) use index::{folder_of, slash_location};
pub(super) use siblings::{is_compressible, sibling_of, Siblings};

/// The settings of all buckets.
pub(super) struct Websites {
    /// By the bucket's place in the configuration.
    by_bucket: Box<[Option<Kept>]>,
    cache: Option<&'static DiskCache>,
}

/// The settings of a bucket, which outlast a reload if the bucket does not change: headers of hits have
/// been prepared by them, and forms made.
struct Kept {
    /// The bucket's part of the configuration, without secrets.
    config: String,
    website: Arc<Website>,
}

/// The settings of a bucket.
pub(super) struct Website {
    /// The name of the document of each folder.
    pub(super) index: Option<String>,
    pub(super) redirects: bool,
    pub(super) lists: bool,
    /// The codings of siblings, in the order of preference.
    pub(super) precompressed: Vec<Coding>,
    pub(super) compressor: Option<Arc<Compressor>>,
    error_documents: Vec<ErrorDocument>,
    pub(super) guesses_types: bool,
    pub(super) cors: Option<Cors>,
    fields: Fields,
}

// === impl Websites ===

impl Websites {
    /// The settings of a configuration. `cache` is that of the proxy. What belongs to buckets that do not
    /// change is that of `former`.
    pub(super) fn new(
        config: &Config,
        cache: Option<&'static DiskCache>,
        former: Option<&Websites>,
    ) -> Websites {
        let cache = former.map_or(cache, |former| former.cache);
        let website = |bucket: &config::Bucket| {
            let is_plain = bucket.web.is_none()
                && bucket.response_headers.is_empty()
                && bucket.cors.is_none()
                && !bucket.security_headers;
            if is_plain {
                return None;
            }
            // The model can be serialized.
            let config = serde_json::to_string(bucket).unwrap_or_default();
            let mut kept = former
                .iter()
                .flat_map(|former| former.by_bucket.iter().flatten());
            if let Some(kept) = kept.find(|kept| kept.config == config && !config.is_empty()) {
                let website = kept.website.clone();
                return Some(Kept { config, website });
            }
            let web = bucket.web.clone().unwrap_or_default();
            let cors = bucket.cors.as_ref().map(Cors::new);
            let documents = web.error_documents.iter();
            let documents =
                documents.map(|(status, key)| ErrorDocument::new(**status, (**key).clone(), cache));
            let compress = web.compress.as_ref().zip(cache);
            let website = Arc::new(Website {
                index: web.index.as_deref().map(str::to_owned),
                redirects: web.slash_redirect,
                lists: web.listing,
                precompressed: web
                    .precompressed
                    .iter()
                    .map(|coding| coding.coding())
                    .collect(),
                error_documents: documents.collect(),
                compressor: compress.map(|(section, cache)| Compressor::new(section, cache)),
                guesses_types: web.content_types,
                fields: Fields::new(bucket, cors.as_ref()),
                cors,
            });
            Some(Kept { config, website })
        };
        Websites {
            by_bucket: config.buckets.iter().map(website).collect(),
            cache,
        }
    }

    /// The settings of a bucket by its place in the configuration, if it has any.
    #[inline]
    pub(super) fn of(&self, bucket: usize) -> Option<&Arc<Website>> {
        let kept = self.by_bucket.get(bucket)?.as_ref()?;
        Some(&kept.website)
    }
}

// === impl Website ===

impl Website {
    /// The document in place of an error with this status.
    pub(super) fn document_of(&self, status: StatusCode) -> Option<&ErrorDocument> {
        let mut documents = self.error_documents.iter();
        documents.find(|document| document.status() == status)
    }

    /// The rules for the header of responses to a request. `key` is empty for the bucket itself.
    pub(super) fn fields_of(&self, key: &str, headers: &HeaderMap) -> ResponseFields {
        let variant = self.cors.as_ref().and_then(|cors| cors.variant(headers));
        self.fields.of(key, variant)
    }
}
