use std::sync::Arc;

use futures::stream::BoxStream;
use vdisk_engine::storage::{FileOptions, FileStorage, Storage};

use super::background::blocking;
use super::locks::RequestLocks;
use super::stream::{Outlet, produced};
use super::{Inner, Service};
use crate::Bytes;
use crate::disk::{Layer, OpenSecrets, Opening, open_chain, open_file, version};
use crate::error::{Result, ServiceError};
use crate::fault::Step;
use crate::jobs::require_ready;
use crate::model::ImageId;
use crate::pool::Access;
use crate::request::ByteRange;
use crate::store::locks::LockMode;

/// Bytes read at once, and pieces that wait for a slow client.
const PIECE: u64 = 1 << 20;
const WAITING: usize = 2;

/// Bytes on their way out.
pub struct Download {
    /// Where `body` starts in the whole.
    pub offset: u64,
    /// Bytes of `body`.
    pub length: u64,
    /// Bytes of the whole.
    pub total: u64,
    /// Changes whenever the content does (without quotes); for `ETag` and `If-Range`.
    pub etag: String,
    /// A file name to propose to the client.
    pub filename: String,
    /// The bytes. Dropping it ends the read. The images read are locked against change until then.
    pub body: BoxStream<'static, Result<Bytes>>,
}

impl Service {
    /// The stored file of an image.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `range_not_satisfiable`.
    pub async fn read_file(&self, id: ImageId, range: Option<ByteRange>) -> Result<Download> {
        let (locks, layers) = self.hold(id, true).await?;
        let Some(layer) = layers.into_iter().next() else {
            return Err(ServiceError::not_found("image", id));
        };
        let image = layer.record.image.clone();
        let opened = blocking(move || {
            let file = open_file(&layer.pool, &layer.record.file, Access::Read)?;
            let storage = FileStorage::from_file(file, &layer.record.file, FileOptions::read())?;
            // Nobody writes from here on: what the file is now is what is read.
            let etag = etag(std::slice::from_ref(&layer))?;
            let total = storage.len()?;
            Ok((storage, etag, total, part_of(range, total)?))
        });
        let (locks, (storage, etag, total, part)) = locks.with(opened.await).await?;
        let filename = format!("{}.{}", image.name, image.format);
        Ok(download(etag, part, total, filename, locks, move |offset, buf| {
            Ok(storage.read_at(offset, buf)?)
        }))
    }

    /// The bytes that a guest sees, through the whole chain.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `range_not_satisfiable`, `corrupt_image`, `secret_required`.
    pub async fn read_data(&self, id: ImageId, range: Option<ByteRange>) -> Result<Download> {
        let (locks, layers) = self.hold(id, false).await?;
        let image = layers.first().map(|layer| layer.record.image.clone());
        let image = image.ok_or_else(|| ServiceError::not_found("image", id))?;
        let limits = self.inner.limits.clone();
        let opened = blocking(move || {
            let chain = open_chain(&layers, &Opening::read(&limits, &OpenSecrets::default()))?;
            let part = part_of(range, chain.virtual_size())?;
            Ok((chain, etag(&layers)?, part))
        });
        let (locks, (chain, etag, part)) = locks.with(opened.await).await?;
        let total = chain.virtual_size();
        let filename = format!("{}.raw", image.name);
        Ok(download(etag, part, total, filename, locks, move |offset, buf| {
            Ok(chain.read(offset, buf)?)
        }))
    }

    /// The chain of an image that is read, or its top alone, held against change. Read and locked in one transaction:
    /// what is on record then is what the files hold until the locks are let go.
    async fn hold(&self, id: ImageId, top_only: bool) -> Result<(RequestLocks, Vec<Layer>)> {
        let inner: &Arc<Inner> = &self.inner;
        let locks = RequestLocks::new(inner);
        let mut tx = inner.store.begin().await?;
        let chain = match top_only {
            true => vec![tx.image(id).await?],
            false => tx.chain(id, inner.config.limits.chain_depth).await?,
        };
        chain.iter().try_for_each(require_ready)?;
        let wanted: Vec<_> = chain.iter().map(|layer| (layer.image.id, LockMode::Shared)).collect();
        locks.take(&mut tx, &wanted).await?;
        tx.commit_as(Step::TakeLocks).await?;
        let layers = inner.with_folders(chain).await;
        locks.with(layers).await
    }
}

fn download(
    etag: String,
    (offset, length): (u64, u64),
    total: u64,
    filename: String,
    locks: RequestLocks,
    read: impl Fn(u64, &mut [u8]) -> Result<()> + Send + 'static,
) -> Download {
    let body = produced(WAITING, Some(locks), move |outlet| {
        send_range(outlet, offset, length, &read)
    });
    Download {
        offset,
        length,
        total,
        etag,
        filename,
        body,
    }
}

/// Not the generation alone: that one stays when a file changes and the guest sees the same.
fn etag(layers: &[Layer]) -> Result<String> {
    let top = layers.first().map(|layer| &layer.record.image);
    let (id, generation) = top.map(|image| (image.id, image.generation)).unwrap_or_default();
    Ok(format!("{id}-{generation}-{:016x}", version(layers)?))
}

/// Offset and length of what is wanted.
fn part_of(range: Option<ByteRange>, total: u64) -> Result<(u64, u64)> {
    range.map_or(Ok((0, total)), |range| range.resolve(total))
}

fn send_range(
    outlet: &Outlet<Bytes>,
    mut offset: u64,
    length: u64,
    read: &impl Fn(u64, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let end = offset.saturating_add(length);
    while offset < end {
        let step = (end - offset).min(PIECE);
        let mut piece = vec![0; usize::try_from(step).unwrap_or(0)];
        read(offset, &mut piece)?;
        if !outlet.send(piece.into()) {
            return Ok(());
        }
        offset += step;
    }
    Ok(())
}
