use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use vdisk_engine::Control;
use vdisk_engine::storage::{FileOptions, FileStorage, Storage};

use super::Service;
use super::background::blocking;
use super::locks::RequestLocks;
use super::look::Wanted;
use super::stream::{Hold, Piece, pieces, place};
use crate::Bytes;
use crate::disk::{Layer, OpenSecrets, Opening, open_chain, open_file, version};
use crate::error::{Result, ServiceError};
use crate::fault::Step;
use crate::jobs::require_ready;
use crate::model::{Image, ImageId};
use crate::pool::Access;
use crate::request::ByteRange;
use crate::store::locks::LockMode;

/// Bytes read at once. One piece waits for a slow client, and one is on its way to it.
const PIECE: u64 = 256 << 10;

/// Content that is open for reading. The images read are locked against change until it and all that was made of it
/// are dropped or read to their end.
pub struct Content {
    /// Changes whenever the content does (without quotes); for `ETag` and conditions.
    pub etag: String,
    /// Bytes of the whole.
    pub total: u64,
    /// A file name to propose to the client.
    pub filename: String,
    source: Source,
    hold: Hold,
}

/// Reads bytes at an offset.
type Source = Arc<dyn Fn(u64, &mut [u8]) -> Result<()> + Send + Sync>;

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
    /// `not_found`, `image_not_ready`, `image_busy`; `unavailable` when too many read.
    pub async fn open_file(&self, id: ImageId) -> Result<Content> {
        let name = |image: &Image| format!("{}.{}", image.name, image.format);
        self.open_content(id, true, name, move |layers, _| {
            let layer = layers.first().ok_or_else(|| ServiceError::not_found("image", id))?;
            let file = open_file(&layer.pool, &layer.record.file, Access::Read)?;
            let storage = FileStorage::from_file(file, &layer.record.file, FileOptions::read())?;
            let total = storage.len()?;
            Ok((total, source(move |offset, buf| Ok(storage.read_at(offset, buf)?))))
        })
        .await
    }

    /// The bytes that a guest sees, through the whole chain.
    ///
    /// # Errors
    /// As [`Service::open_file`]; `corrupt_image`, `secret_required`.
    pub async fn open_data(&self, id: ImageId) -> Result<Content> {
        let limits = self.inner.limits.clone();
        let name = |image: &Image| format!("{}.raw", image.name);
        self.open_content(id, false, name, move |layers, control| {
            let chain = open_chain(layers, &Opening::read(&limits, &OpenSecrets::none_until(control)))?;
            let total = chain.virtual_size();
            Ok((total, source(move |offset, buf| Ok(chain.read(offset, buf)?))))
        })
        .await
    }

    /// A range of [`Service::open_file`], or all of it.
    ///
    /// # Errors
    /// As there; `range_not_satisfiable`.
    pub async fn read_file(&self, id: ImageId, range: Option<ByteRange>) -> Result<Download> {
        self.open_file(id).await?.only(range).await
    }

    /// A range of [`Service::open_data`], or all of it.
    ///
    /// # Errors
    /// As there; `range_not_satisfiable`.
    pub async fn read_data(&self, id: ImageId, range: Option<ByteRange>) -> Result<Download> {
        self.open_data(id).await?.only(range).await
    }

    async fn open_content(
        &self,
        id: ImageId,
        top_only: bool,
        name: impl Fn(&Image) -> String,
        open: impl FnOnce(&[Layer], &Control) -> Result<(u64, Source)> + Send + 'static,
    ) -> Result<Content> {
        let place = place(&self.inner.places)?;
        let (locks, layers) = self.hold(id, top_only).await?;
        let image = layers.first().map(|layer| layer.record.image.clone());
        let wanted = Wanted::new();
        let control = wanted.control();
        let opened = blocking(move || {
            let (total, source) = open(&layers, &control)?;
            // Nobody writes any more: what the files are now is what is read. The generation alone would not do: it
            // stays when a file changes and the guest sees the same.
            Ok((total, source, version(&layers)?))
        });
        let opened = opened.await.and_then(|(total, source, version)| {
            let image = image.ok_or_else(|| ServiceError::not_found("image", id))?;
            Ok((image, total, source, version))
        });
        let (locks, (image, total, source, version)) = locks.with(opened).await?;
        Ok(Content {
            etag: format!("{id}-{}-{version:016x}", image.generation),
            total,
            filename: name(&image),
            source,
            hold: Hold::new(place, Some(locks)),
        })
    }

    /// The chain of an image that is read, or its top alone, held against change. Read and locked in one transaction:
    /// what is on record then is what the files hold until the locks are let go.
    async fn hold(&self, id: ImageId, top_only: bool) -> Result<(RequestLocks, Vec<Layer>)> {
        let inner = &self.inner;
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

fn source(read: impl Fn(u64, &mut [u8]) -> Result<()> + Send + Sync + 'static) -> Source {
    Arc::new(read)
}

impl Content {
    /// A range of it, or all. Nothing is read before its body is asked for.
    ///
    /// # Errors
    /// `range_not_satisfiable`.
    pub fn part(&self, range: Option<ByteRange>) -> Result<Download> {
        let (offset, length) = range.map_or(Ok((0, self.total)), |range| range.resolve(self.total))?;
        Ok(Download {
            offset,
            length,
            total: self.total,
            etag: self.etag.clone(),
            filename: self.filename.clone(),
            body: self.bytes(offset, length),
        })
    }

    /// Lets go of it, unless there are parts.
    pub async fn close(self) {
        drop(self.source);
        self.hold.release().await;
    }

    async fn only(self, range: Option<ByteRange>) -> Result<Download> {
        let part = self.part(range);
        self.close().await;
        part
    }

    fn bytes(&self, mut offset: u64, length: u64) -> BoxStream<'static, Result<Bytes>> {
        let end = offset.saturating_add(length);
        if offset == end {
            return stream::empty().boxed();
        }
        let source = self.source.clone();
        pieces(self.hold.clone(), move || {
            let step = (end - offset).min(PIECE);
            let mut bytes = vec![0; usize::try_from(step).unwrap_or(0)];
            source(offset, &mut bytes)?;
            offset += step;
            let bytes = Bytes::from(bytes);
            Ok(if offset < end {
                Piece::Next(bytes)
            } else {
                Piece::Last(bytes)
            })
        })
    }
}
