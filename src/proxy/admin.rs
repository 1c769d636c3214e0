//! Removes objects from the cache on request, on a listener of its own.

use async_trait::async_trait;
use http::header::{HeaderValue, ALLOW};
use http::{Response, StatusCode};
use log::{error, info};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;

use super::cache_key::{requested_path, CacheKeys};
use super::errors::text;
use crate::cache::DiskCache;
use crate::config::Config;
use crate::logging;
use crate::s3::{OriginError, RouteError};

/// Serves `PURGE`.
///
/// `PURGE /path` removes the object at that path, as clients name it;
/// `PURGE /path*` voids all objects whose path begins so. An object whose name
/// ends in an asterisk is `PURGE /path%2A`.
///
/// There is no authentication: whoever reaches the listener may empty the cache.
pub struct AdminApp {
    keys: CacheKeys,
    cache: Option<&'static DiskCache>,
}

impl AdminApp {
    /// Purge the objects of the buckets of `config` from this cache, if there is
    /// one.
    ///
    /// # Errors
    /// As [`CacheKeys::new`].
    pub fn new(config: &Config, cache: Option<&'static DiskCache>) -> Result<Self, OriginError> {
        Ok(AdminApp {
            keys: CacheKeys::new(config)?,
            cache,
        })
    }

    async fn purge(&self, path: &str) -> (StatusCode, String) {
        let Some(cache) = self.cache else {
            let why = "there is no cache: cache.disk is not enabled\n";
            return (StatusCode::NOT_FOUND, why.into());
        };
        let purged = match path.strip_suffix('*') {
            Some(beginning) => self.ban(cache, beginning).await,
            None => self.purge_object(cache, path).await,
        };
        purged.unwrap_or_else(|e| {
            let status = match e {
                RouteError::NotFound => StatusCode::NOT_FOUND,
                RouteError::BadKey(_) => StatusCode::BAD_REQUEST,
            };
            (status, format!("{e}\n"))
        })
    }

    async fn purge_object(
        &self,
        cache: &'static DiskCache,
        path: &str,
    ) -> Result<(StatusCode, String), RouteError> {
        let key = self.keys.object(path)?;
        Ok(match cache.purge_key(&key).await {
            Ok(true) => (StatusCode::OK, "purged\n".into()),
            Ok(false) => (StatusCode::NOT_FOUND, "not in the cache\n".into()),
            Err(e) => failed(&format!("{path} cannot be purged: {e}")),
        })
    }

    async fn ban(
        &self,
        cache: &'static DiskCache,
        beginning: &str,
    ) -> Result<(StatusCode, String), RouteError> {
        for prefix in self.keys.beginning_with(beginning)? {
            let banned = cache.ban_prefix(&prefix.user_tag, &prefix.primary).await;
            if let Err(e) = banned {
                return Ok(failed(&format!("{beginning}* cannot be banned: {e}")));
            }
        }
        Ok((StatusCode::OK, "banned\n".into()))
    }
}

fn failed(why: &str) -> (StatusCode, String) {
    error!("{why}");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n"))
}

#[async_trait]
impl ServeHttp for AdminApp {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        if request.method.as_str() != "PURGE" {
            let mut response = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "only PURGE is answered here\n",
            );
            let headers = response.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("PURGE"));
            return response;
        }
        let path = requested_path(request).into_owned();
        let (status, answer) = self.purge(&path).await;
        info!(
            target: logging::OPERATOR,
            "PURGE {path:?}: {} {}",
            status.as_u16(),
            answer.trim_end()
        );
        text(status, answer)
    }
}
