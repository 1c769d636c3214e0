//! Compressed forms that the proxy makes of small texts, stores, and keeps in memory.
//!
//! A form is made of a stored response, off the worker threads, and is valid for as long as that response
//! is fresh. It is used again once the response is validated, also after a restart if it could be stored.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use flate2::write::GzEncoder;
use flate2::Compression;
use http::header::{
    HeaderName, HeaderValue, ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG,
    VARY,
};
use http::{HeaderMap, StatusCode};
use log::debug;
use parking_lot::Mutex;
use pingora_cache::key::{CacheHashKey, HashBinary};
use pingora_cache::trace::Span;
use pingora_cache::{CacheKey, CacheMeta, HitHandler, Storage, VarianceBuilder};
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;
use quick_cache::sync::Cache;
use quick_cache::Weighter;
use tokio::sync::Semaphore;

use super::fields::guess_type;
use crate::cache::{DiskCache, YieldsRoom};
use crate::config;
use crate::http::rules::accept_encoding::Coding;
use crate::http::rules::cache_control::ResponseDirectives;
use crate::http::rules::etag::EntityTag;

/// The most forms of a bucket that are made at a time.
const MAX_JOBS: usize = 2;

/// The size of a form without its body, in bytes.
const OVERHEAD: usize = 2048;

/// The expected number of forms.
const EXPECTED: usize = 4096;

/// Stands for the name of a request header field in the variance of a form. No field has such a name.
const VARIES_BY: &str = "made form:";

/// Levels that take about a second for 10 MB. A form is made once and sent often.
const BROTLI_QUALITY: u32 = 6;
const BROTLI_WINDOW: u32 = 22;
const ZSTD_LEVEL: i32 = 9;
const GZIP_LEVEL: u32 = 7;

/// Makes and keeps the forms of a bucket's objects.
pub(in crate::proxy) struct Compressor {
    /// The codings, in the order of preference.
    pub(in crate::proxy) codings: Vec<Coding>,
    min_bytes: usize,
    max_bytes: usize,
    forms: Cache<(HashBinary, Coding), Arc<Form>, ByLen>,
    /// The forms that are being made.
    running: Mutex<HashSet<(HashBinary, Coding)>>,
    jobs: Arc<Semaphore>,
    cache: &'static DiskCache,
}

/// A form of a response.
pub(in crate::proxy) struct Form {
    /// The time that the response was stored, which validation does not change.
    created: SystemTime,
    /// The `ETag` of the response; `None`: there can be no form of it.
    etag: Option<HeaderValue>,
    /// `None`: compression does not make it smaller, or there can be no form.
    made: Option<Made>,
    pub(in crate::proxy) fresh_until: SystemTime,
    pub(in crate::proxy) epoch: SystemTime,
    /// The number of purges when the response was read.
    purges: u64,
}

/// A form that is smaller than the object.
#[derive(Clone)]
pub(in crate::proxy) struct Made {
    pub(in crate::proxy) header: Arc<ResponseHeader>,
    pub(in crate::proxy) body: Bytes,
}

/// The state of a form.
pub(in crate::proxy) enum Known {
    /// It can be sent.
    Made(Arc<Form>),
    /// There is none.
    Useless,
    /// It has not been made of the response that is stored now.
    Missing,
}

#[derive(Clone)]
struct ByLen;

impl Weighter<(HashBinary, Coding), Arc<Form>> for ByLen {
    fn weight(&self, _: &(HashBinary, Coding), form: &Arc<Form>) -> u64 {
        let body = form.made.as_ref().map_or(0, |made| made.body.len());
        (OVERHEAD + body) as u64
    }
}

/// Where a form comes from.
enum Source {
    /// It is new.
    Compressed,
    /// It is in memory or on the disk, or there is none.
    Known,
}

/// Ends a job when it is dropped.
struct Running {
    of: Arc<Compressor>,
    key: (HashBinary, Coding),
}

// === impl Compressor ===

impl Compressor {
    pub(super) fn new(config: &config::Compress, cache: &'static DiskCache) -> Arc<Compressor> {
        Arc::new(Compressor {
            codings: config
                .codings
                .iter()
                .map(|coding| coding.coding())
                .collect(),
            min_bytes: *config.min_bytes as usize,
            max_bytes: (*config.max_kib as usize) << 10,
            forms: Cache::with_weighter(EXPECTED, config.memory_mb.bytes(), ByLen),
            running: Mutex::default(),
            jobs: Arc::new(Semaphore::new(MAX_JOBS)),
            cache,
        })
    }

    /// The state of the form of a response.
    pub(in crate::proxy) fn known(&self, key: &CacheKey, coding: Coding) -> Known {
        let Some(form) = self.forms.get(&(key.combined_bin(), coding)) else {
            return Known::Missing;
        };
        let is_valid = form.purges == self.cache.purges() && SystemTime::now() <= form.fresh_until;
        match (is_valid, &form.made) {
            (false, _) => Known::Missing,
            (true, None) => Known::Useless,
            (true, Some(_)) => Known::Made(form),
        }
    }

    /// Begin to make the form of a response, unless it is being made, or enough others are. `name` is the
    /// key of the object.
    pub(in crate::proxy) fn start(self: &Arc<Self>, key: CacheKey, name: String, coding: Coding) {
        let Ok(job) = self.jobs.clone().try_acquire_owned() else {
            return;
        };
        let id = (key.combined_bin(), coding);
        if !self.running.lock().insert(id) {
            return;
        }
        let running = Running {
            of: self.clone(),
            key: id,
        };
        tokio::spawn(async move {
            let of = &running.of;
            match of.make(&key, &name, coding).await {
                Ok(Some((form, source))) => {
                    let form = Arc::new(form);
                    of.forms.insert(id, form.clone());
                    if let Source::Compressed = source {
                        if let Err(e) = of.store(&key, coding, &form).await {
                            debug!("the compressed form of {name:?} is not stored: {e}");
                        }
                    }
                }
                Ok(None) => {}
                Err(e) => debug!("{name:?} is not compressed: {e}"),
            }
            drop(job);
        });
    }

    /// Make the form of a response. `None`: it is not stored, or no longer fresh.
    async fn make(
        &self,
        key: &CacheKey,
        name: &str,
        coding: Coding,
    ) -> Result<Option<(Form, Source)>> {
        let purges = self.cache.purges();
        let span = Span::inactive().handle();
        let Some((meta, mut hit)) = self.cache.lookup(key, &span).await? else {
            return Ok(None);
        };
        if !meta.is_fresh(SystemTime::now()) {
            return Ok(None);
        }
        let header = meta.response_header();
        let form = |etag, made, meta: &CacheMeta| Form {
            created: meta.created(),
            etag,
            made,
            fresh_until: meta.fresh_until(),
            epoch: meta.epoch(),
            purges,
        };
        let (Some(etag), Some(len)) = (usable_etag(header), length(&header.headers)) else {
            // Kept, so that not each request for it looks again.
            return Ok(Some((form(None, None, &meta), Source::Known)));
        };
        let before = self.forms.get(&(key.combined_bin(), coding));
        // The next version may have the same tag.
        let is_of_it = |before: &Arc<Form>| {
            before.etag.as_ref() == Some(&etag) && before.created == meta.created()
        };
        if let Some(before) = before.filter(is_of_it) {
            let form = form(Some(etag), before.made.clone(), &meta);
            return Ok(Some((form, Source::Known)));
        }
        if !(self.min_bytes..=self.max_bytes).contains(&len) {
            return Ok(Some((form(Some(etag), None, &meta), Source::Known)));
        }
        let (made, source) = match self.stored(key, coding, &etag, &meta).await {
            Some(stored) => (stored, Source::Known),
            None => {
                let body = read(&mut hit, len).await?;
                let made = tokio::task::spawn_blocking(move || compress(&body, coding));
                let made = made.await.or_err(ErrorType::InternalError, "compressing")?;
                let made = made.or_err(ErrorType::InternalError, "compressing")?;
                (made, Source::Compressed)
            }
        };
        // Less is not worth the work of the client.
        let made = match made.len() < len - len / 16 {
            true => Some(describe(header, name, &etag, made, coding)?),
            false => None,
        };
        Ok(Some((form(Some(etag), made, &meta), source)))
    }

    /// The body of the form that was stored for the response `of`, with this `ETag`.
    async fn stored(
        &self,
        key: &CacheKey,
        coding: Coding,
        etag: &HeaderValue,
        of: &CacheMeta,
    ) -> Option<Vec<u8>> {
        let span = Span::inactive().handle();
        let found = self.cache.lookup(&stored_under(key, coding)?, &span).await;
        let (meta, mut hit) = found.ok()??;
        let fields = &meta.response_header().headers;
        let is_of_it = fields.get(ETAG) == Some(&suffixed(etag, coding).ok()?)
            && meta.created() == of.created();
        let most = length(&of.response_header().headers)?;
        let len = length(fields).filter(|len| is_of_it && *len < most)?;
        read(&mut hit, len).await.ok()
    }

    /// Store a form, unless there was a purge meanwhile.
    async fn store(&self, key: &CacheKey, coding: Coding, form: &Form) -> Result<()> {
        let Some(made) = form.made() else {
            return Ok(());
        };
        let header = (*made.header).clone();
        let mut meta = CacheMeta::new(form.fresh_until, form.created, 0, 0, header);
        meta.extensions_mut().insert(YieldsRoom);
        let Some(key) = stored_under(key, coding) else {
            return Ok(());
        };
        let span = Span::inactive().handle();
        let mut miss = self.cache.get_miss_handler(&key, &meta, &span).await?;
        // A later purge finds what is being stored.
        if form.purges != self.cache.purges() {
            return Ok(());
        }
        miss.write_body(made.body.clone(), true).await?;
        miss.finish().await?;
        Ok(())
    }
}

// === impl Form ===

impl Form {
    /// The header and the body.
    pub(in crate::proxy) fn made(&self) -> Option<&Made> {
        self.made.as_ref()
    }
}

// === impl Running ===

impl Drop for Running {
    fn drop(&mut self) {
        self.of.running.lock().remove(&self.key);
    }
}

/// The key under which a form is stored: that of a variant of the object, which a purge of the object
/// removes as well.
fn stored_under(key: &CacheKey, coding: Coding) -> Option<CacheKey> {
    let mut variance = VarianceBuilder::new();
    variance.add_value(VARIES_BY, coding.name());
    let mut key = key.clone();
    key.set_variance_key(variance.finalize()?);
    Some(key)
}

/// Read a whole body of this length.
async fn read(hit: &mut HitHandler, len: usize) -> Result<Vec<u8>> {
    let mut body = Vec::with_capacity(len);
    while let Some(piece) = hit.read_body().await? {
        if body.len() + piece.len() > len {
            return Err(Error::explain(
                ErrorType::InternalError,
                "a body is too long",
            ));
        }
        body.extend_from_slice(&piece);
    }
    match body.len() == len {
        true => Ok(body),
        false => Err(Error::explain(
            ErrorType::InternalError,
            "a body is too short",
        )),
    }
}

/// The `ETag` of a response of which there may be a compressed form.
fn usable_etag(header: &ResponseHeader) -> Option<HeaderValue> {
    let fields = &header.headers;
    let is_plain = header.status == StatusCode::OK
        && !fields.contains_key(CONTENT_ENCODING)
        && !fields.contains_key(VARY)
        && !ResponseDirectives::from_cache_control(fields).no_transform;
    let etag = fields.get(ETAG).filter(|_| is_plain)?;
    EntityTag::parse(etag.as_bytes()).map(|_| etag.clone())
}

fn length(fields: &HeaderMap) -> Option<usize> {
    fields.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The header of a form.
fn describe(
    of: &ResponseHeader,
    name: &str,
    etag: &HeaderValue,
    body: Vec<u8>,
    coding: Coding,
) -> Result<Made> {
    let mut header = of.clone();
    // These are of the object's own bytes.
    let is_digest = |name: &&HeaderName| {
        let name = name.as_str();
        name.starts_with("x-amz-checksum-")
            || ["content-md5", "digest", "repr-digest"].contains(&name)
    };
    let digests: Vec<_> = header.headers.keys().filter(is_digest).cloned().collect();
    for name in digests {
        header.remove_header(&name);
    }
    header.remove_header(&ACCEPT_RANGES);
    if !header.headers.contains_key(CONTENT_TYPE) {
        guess_type(name, &mut header)?;
    }
    header.insert_header(CONTENT_ENCODING, coding.name())?;
    header.insert_header(CONTENT_LENGTH, body.len())?;
    header.insert_header(ETAG, suffixed(etag, coding)?)?;
    Ok(Made {
        header: Arc::new(header),
        body: body.into(),
    })
}

/// The entity tag of a form: that of the object with the name of the coding, strong or weak as before.
/// The same form is made of the same bytes.
fn suffixed(etag: &HeaderValue, coding: Coding) -> Result<HeaderValue> {
    let etag = etag.as_bytes();
    let inner = etag.strip_suffix(b"\"").unwrap_or(etag);
    let suffixed = [inner, b"-", coding.name().as_bytes(), b"\""].concat();
    HeaderValue::from_bytes(&suffixed).or_err(ErrorType::InternalError, "an entity tag")
}

fn compress(body: &[u8], coding: Coding) -> io::Result<Vec<u8>> {
    match coding {
        Coding::Brotli => {
            let mut to =
                brotli::CompressorWriter::new(Vec::new(), 4096, BROTLI_QUALITY, BROTLI_WINDOW);
            to.write_all(body)?;
            Ok(to.into_inner())
        }
        Coding::Zstd => zstd::bulk::compress(body, ZSTD_LEVEL),
        Coding::Gzip => {
            let mut to = GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL));
            to.write_all(body)?;
            to.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_a_tag_of_its_own_as_strong_as_before() {
        for (etag, expected) in [
            ("\"a\"", "\"a-br\""),
            ("W/\"a\"", "W/\"a-br\""),
            ("\"\"", "\"-br\""),
        ] {
            let etag = HeaderValue::from_static(etag);
            assert_eq!(suffixed(&etag, Coding::Brotli).unwrap(), expected);
        }
    }

    #[test]
    fn only_a_plain_response_has_forms() {
        let header = |status: u16, fields: &[(&'static str, &'static str)]| {
            let mut header = ResponseHeader::build(status, None).unwrap();
            for (name, value) in fields {
                header.append_header(*name, *value).unwrap();
            }
            header
        };
        let tag = ("etag", "\"a\"");
        for (status, fields, usable) in [
            (200, &[tag][..], true),
            (200, &[], false),
            (200, &[("etag", "a")], false),
            (200, &[tag, ("content-encoding", "gzip")], false),
            (200, &[tag, ("cache-control", "no-transform")], false),
            (200, &[tag, ("vary", "accept-language")], false),
            (404, &[tag], false),
        ] {
            let header = header(status, fields);
            assert_eq!(usable_etag(&header).is_some(), usable, "{header:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_response_without_forms_is_looked_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::cache::DiskCacheConfig::new(dir.path(), 1 << 20);
        let cache = DiskCache::open(config).unwrap();
        let compressor = Compressor::new(&config::Compress::default(), cache);
        let key = CacheKey::new("texts", "tag");
        let now = SystemTime::now();
        let fresh_until = now + std::time::Duration::from_secs(3600);
        // It has no entity tag.
        let header = ResponseHeader::build(200, None).unwrap();
        let meta = CacheMeta::new(fresh_until, now, 0, 0, header);
        let span = Span::inactive().handle();
        let mut miss = cache.get_miss_handler(&key, &meta, &span).await.unwrap();
        miss.write_body(vec![b'a'; 5000].into(), true)
            .await
            .unwrap();
        miss.finish().await.unwrap();
        cache.settle().await;

        let known = || compressor.known(&key, Coding::Gzip);
        assert!(matches!(known(), Known::Missing));
        compressor.start(key.clone(), "a.txt".into(), Coding::Gzip);
        let looked_at = async {
            while !matches!(known(), Known::Useless) {
                tokio::task::yield_now().await;
            }
        };
        let patience = std::time::Duration::from_secs(60);
        tokio::time::timeout(patience, looked_at).await.unwrap();
        assert!(cache.purge_key(&key).await.unwrap());
        assert!(matches!(known(), Known::Missing));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_form_that_is_stored_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::cache::DiskCacheConfig::new(dir.path(), 1 << 20);
        let cache = DiskCache::open(config).unwrap();
        let key = CacheKey::new("texts", "tag");
        let now = SystemTime::now();
        let [then, later] = [5, 6].map(|secs| now + std::time::Duration::from_secs(secs));
        let meta = move |etag: &'static str, len: usize, created| {
            let mut header = ResponseHeader::build(200, None).unwrap();
            header.insert_header(ETAG, etag).unwrap();
            header.insert_header(CONTENT_LENGTH, len).unwrap();
            let fresh_until = now + std::time::Duration::from_secs(3600);
            CacheMeta::new(fresh_until, created, 0, 0, header)
        };
        let store = |key: CacheKey, meta: CacheMeta, body: &'static [u8]| async move {
            let span = Span::inactive().handle();
            let mut miss = cache.get_miss_handler(&key, &meta, &span).await.unwrap();
            miss.write_body(body.into(), true).await.unwrap();
            miss.finish().await.unwrap();
            cache.settle().await;
        };
        let made = |compressor: Arc<Compressor>, key: CacheKey| async move {
            compressor.start(key.clone(), "a.txt".into(), Coding::Gzip);
            let patience = std::time::Duration::from_secs(60);
            let made = async {
                loop {
                    if let Known::Made(form) = compressor.known(&key, Coding::Gzip) {
                        return form.made().unwrap().body.clone();
                    }
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(patience, made).await.unwrap()
        };
        let new = || Compressor::new(&config::Compress::default(), cache);

        store(key.clone(), meta("\"a\"", 5000, then), &[b'a'; 5000]).await;
        let under = stored_under(&key, Coding::Gzip).unwrap();
        let earlier = b"a form of an earlier run";
        store(under, meta("\"a-gzip\"", earlier.len(), then), earlier).await;
        assert_eq!(made(new(), key.clone()).await, &earlier[..]);
        // It is of another version, whatever its tag.
        for (etag, created) in [("\"b\"", then), ("\"a\"", later)] {
            let of_it = meta(etag, 5000, created);
            store(key.clone(), of_it, &[b'b'; 5000]).await;
            let compressor = new();
            let form = made(compressor.clone(), key.clone()).await;
            assert_eq!(form, compress(&[b'b'; 5000], Coding::Gzip).unwrap());
            // That one is stored.
            let is_stored = |etag: &'static str, created| {
                let (compressor, key) = (compressor.clone(), key.clone());
                async move {
                    let (tag, of) = (HeaderValue::from_static(etag), meta(etag, 5000, created));
                    compressor.stored(&key, Coding::Gzip, &tag, &of).await
                }
            };
            let stored = async {
                loop {
                    if let Some(stored) = is_stored(etag, created).await {
                        return stored;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let patience = std::time::Duration::from_secs(60);
            assert_eq!(tokio::time::timeout(patience, stored).await.unwrap(), form);
            assert!(is_stored("\"c\"", created).await.is_none());
            assert!(is_stored(etag, now).await.is_none());
        }
        // It is gone with the object.
        assert!(cache.purge_key(&key).await.unwrap());
        let tag = HeaderValue::from_static("\"a\"");
        let of = meta("\"a\"", 5000, later);
        let stored = new().stored(&key, Coding::Gzip, &tag, &of).await;
        assert!(stored.is_none());
    }

    #[test]
    fn a_text_gets_smaller() {
        let text = b"the same line again and again\n".repeat(200);
        for coding in [Coding::Brotli, Coding::Zstd, Coding::Gzip] {
            let made = compress(&text, coding).unwrap();
            assert!(made.len() < 300, "{coding:?}: {}", made.len());
            let mut back = Vec::new();
            match coding {
                Coding::Brotli => {
                    let mut reader = &made[..];
                    brotli::BrotliDecompress(&mut reader, &mut back).unwrap();
                }
                Coding::Zstd => back = zstd::decode_all(&made[..]).unwrap(),
                Coding::Gzip => {
                    let mut from = flate2::read::GzDecoder::new(&made[..]);
                    io::Read::read_to_end(&mut from, &mut back).unwrap();
                }
            }
            assert_eq!(back, text);
        }
    }
}
