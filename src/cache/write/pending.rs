//! The beginning of a fill: the checks, the reservation and the file that it needs.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::CONTENT_LENGTH;
use pingora_cache::key::CacheHashKey;
use pingora_cache::{CacheKey, CacheMeta};
use pingora_core::{Error, ErrorType, OrErr, Result};

use crate::cache::io::page_cache;
use crate::cache::state::body_file::BodyFile;
use crate::cache::state::fill::NewFill;
use crate::cache::state::fill_extensions::{ForParts, InBackground, Resumable, YieldsRoom};
use crate::cache::state::generations::LookupSnapshot;
use crate::cache::state::quota::Reservation;
use crate::cache::state::stats::Cause;
use crate::cache::state::{Core, NOT_WRITABLE};
use crate::cache::store::entry_id::EntryId;
use crate::cache::store::format::disk_len;
use crate::cache::write::fill;
use crate::cache::write::miss::DiskMiss;
use crate::cache::write::space;

/// The error of a response that is not stored for lack of space. The response
/// comes from the origin as if there were no cache. The error is counted and harmless.
pub const NO_ROOM: ErrorType = ErrorType::new("NoRoomInCache");

/// The error of a response that is not stored because the most fills allowed are in flight, as
/// [`NO_ROOM`].
pub const TOO_MANY_FILLS: ErrorType = ErrorType::new("TooManyCacheFills");

/// Longest body whose space is reserved without checking how much the disk has.
const UNCHECKED_RESERVATION: u64 = 1 << 20;

/// Length, in bytes, that the metadata of most entries does not exceed without Pingora's part
/// and with their keys.
const META_LEN: u64 = 512;

/// Begin to store a response.
pub(crate) async fn begin(
    core: &'static Core,
    key: &CacheKey,
    meta: &CacheMeta,
) -> Result<DiskMiss> {
    if !core.is_writable() {
        return Error::e_explain(ErrorType::FileCreateError, NOT_WRITABLE);
    }
    let permit = core.fill_permits.fill().await;
    // Until the fill is in the table of fills.
    let pending = core.generations.begin_fill();
    let id = EntryId {
        hash: key.combined_bin(),
        generation: pending.generation(),
    };
    if is_purged_since(core, key) {
        return Error::e_explain(
            ErrorType::FileCreateError,
            "it was purged after the origin was asked for it",
        );
    }
    if core.health.is_down() {
        return refuse(core, key, id, Cause::Io);
    }
    let promised: Option<u64> = meta
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let serialized = meta.serialize()?;
    let uses = core.miss_counts.count(&id.hash);
    let Some(permit) = permit else {
        return refuse(core, key, id, Cause::TooMany);
    };
    let meta_len = META_LEN + (serialized.0.len() + serialized.1.len()) as u64;
    let [body, meta_len] = [promised.unwrap_or(0), meta_len].map(disk_len);
    let yields_room = meta.extensions().get::<YieldsRoom>().is_some();
    let evicts = match yields_room {
        true => uses,
        false => u8::MAX,
    };
    let reserved = space::reserve_for_fill(core, body, meta_len, evicts).await;
    let Some(reservation) = reserved else {
        return refuse(core, key, id, Cause::NoSpace);
    };
    let created = create_detached(core, id, promised, reservation, evicts);
    let created = match core.patiently(core.patience.long(), created).await {
        Err(e) if Cause::of(&e) == Cause::NoSpace => {
            return refuse(core, key, id, Cause::NoSpace);
        }
        created => created
            .inspect_err(|e| core.count_fill_error(Cause::of(e)))
            .or_err_with(ErrorType::FileCreateError, || {
                format!("creating cache entry {id}")
            })?,
    };
    let (file, reservation) = created.into_parts()?;
    page_cache::prepare(&file);
    let new = NewFill {
        id,
        key: key.to_compact(),
        primary_key: key.primary_key().to_vec(),
        promised,
        uses,
        body: Arc::new(BodyFile::in_space(file, core.open_bodies.open(id))),
        in_background: meta.extensions().get::<InBackground>().is_some(),
        is_resumable: promised.is_some() && meta.extensions().get::<Resumable>().is_some(),
        yields_room,
        for_parts: meta.extensions().get::<ForParts>().cloned(),
        created: meta.created(),
        stored_at: now(),
        meta: serialized,
    };
    let (fill, pieces) = fill::begin(core, new, reservation, permit);
    drop(pending);
    // An invalidation meanwhile did not find this fill.
    if core
        .recent_invalidations
        .since(id.generation, &key.primary_bin())
    {
        core.invalidate_fills(|fill| fill.id == id);
    }
    Ok(DiskMiss::new(core, fill, pieces))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// True if a key was purged after its request was made.
pub(crate) fn is_purged_since(core: &Core, key: &CacheKey) -> bool {
    let Some(snapshot) = key.extensions.get::<LookupSnapshot>() else {
        return false;
    };
    let asked = snapshot.generation();
    let key_of = || (&*key.user_tag, key.primary_key());
    let primary = key.primary_bin();
    core.bans.is_banned(asked, &primary, key_of) || core.recent_invalidations.since(asked, &primary)
}

fn refuse(core: &Core, key: &CacheKey, id: EntryId, cause: Cause) -> Result<DiskMiss> {
    core.refused.add(key.primary_bin());
    core.count_fill_error(cause);
    let error = match cause {
        Cause::TooMany => TOO_MANY_FILLS,
        _ => NO_ROOM,
    };
    let cause = cause.label();
    Error::e_explain(error, format!("no room for cache entry {id}: {cause}"))
}

/// Create the body file of a fill, with the space that it will need.
async fn create(
    core: &'static Core,
    id: EntryId,
    promised: Option<u64>,
    evicts: u8,
) -> io::Result<Arc<File>> {
    // A long body takes its space as it arrives, because it may never arrive.
    let reserve = promised.map(|len| len.min(core.quota.step()));
    let free = match promised {
        Some(len) if len > UNCHECKED_RESERVATION => space::free_space(core).await,
        _ => None,
    };
    let free = free.unwrap_or(u64::MAX);
    if free.saturating_add(core.size_bytes()) < promised.unwrap_or(0) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let create = || async move {
        if let Some(len) = reserve.filter(|len| *len > UNCHECKED_RESERVATION) {
            if space::free_space(core).await.unwrap_or(u64::MAX) < len {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let files = core.files(&id);
        match core.backend().create(&files, reserve).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                core.repair_folder(id).await?;
                core.backend().create(&files, reserve).await
            }
            created => created,
        }
    };
    space::with_disk_space(core, reserve.unwrap_or(0), evicts, create).await
}

/// [`create`], which continues if the future is dropped: then the file is removed.
async fn create_detached(
    core: &'static Core,
    id: EntryId,
    promised: Option<u64>,
    reservation: Reservation,
    evicts: u8,
) -> io::Result<Created> {
    let created = core.io.runtime().spawn(async move {
        let file = create(core, id, promised, evicts).await?;
        Ok(Created {
            core,
            id,
            parts: Some((file, reservation)),
        })
    });
    created.await.map_err(io::Error::other)?
}

/// The body file of a fill that has not begun, and its reservation. The file is removed when
/// this is dropped.
struct Created {
    core: &'static Core,
    id: EntryId,
    parts: Option<(Arc<File>, Reservation)>,
}

impl Created {
    fn into_parts(mut self) -> Result<(Arc<File>, Reservation)> {
        let parts = self.parts.take();
        parts.ok_or_else(|| Error::explain(ErrorType::InternalError, "the file was taken"))
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if let Some((file, reservation)) = self.parts.take() {
            drop(file);
            self.core.remove_fill(self.id, Some(reservation));
        }
    }
}
