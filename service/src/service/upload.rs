//! Files on their way in: parts are appended to a hidden file, which is looked at and shown when it is complete.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter};
use vdisk_engine::{CancelToken, Control};

use super::background::blocking;
use super::locks::RequestLocks;
use super::{Inner, Service};
use crate::Bytes;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::jobs::take_in;
use crate::model::{ImageId, ImageState};
use crate::pool::{Access, FileName, PoolFolder, is_disk_full};
use crate::request::{Checksum, UploadPart, UploadStatus};
use crate::store::images::{Backing, ImageRecord};
use crate::store::locks::LockMode;

const BUFFER: usize = 1 << 20;

impl Service {
    /// Takes a part of an image's file in. What arrived before the client went away is kept.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready` (not uploading), `image_busy` (another upload of it runs),
    /// `upload_offset_mismatch`, `upload_interrupted`, `limit_exceeded`, `insufficient_storage` (the part is dropped),
    /// and when the file is complete `checksum_mismatch`, `format_mismatch`, `corrupt_image`, `denied` (it refers to
    /// other files), `unsupported`. After the last five the file is gone and the image is in state `failed`.
    pub async fn upload<S, E>(&self, id: ImageId, part: UploadPart, body: S) -> Result<UploadStatus>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display + Send,
    {
        let (locks, record) = self.begin_part(id, &part).await?;
        let pool = self.inner.pool(&record.image.pool)?;
        let receiver = Receiver::open(&self.inner, &pool, id, &part);
        let (locks, receiver) = locks.with(receiver).await?;
        let (received, outcome) = receiver.receive(&part, body).await;
        let mut tx = self.inner.store.begin().await?;
        tx.record_upload(id, received).await?;
        tx.commit().await?;
        let (locks, ()) = locks.with(outcome).await?;
        let complete = match part.total {
            Some(total) => received == total,
            None => !part.more,
        };
        if !complete {
            locks.release().await;
            return Ok(UploadStatus::Incomplete { received });
        }
        let inner = self.inner.clone();
        self.to_the_end(async move { complete_upload(&inner, locks, record, part.checksum).await })
            .await
    }

    /// How far an upload is.
    ///
    /// # Errors
    /// `not_found`; `image_not_ready` when it failed.
    pub async fn upload_status(&self, id: ImageId) -> Result<UploadStatus> {
        let image = self.image(id).await?;
        match (image.state, image.uploaded_bytes) {
            (ImageState::Uploading, received) => Ok(UploadStatus::Incomplete {
                received: received.unwrap_or(0),
            }),
            (ImageState::Failed, _) => Err(not_uploading(&image.problem.unwrap_or_default())),
            _ => Ok(UploadStatus::Complete(Box::new(image))),
        }
    }

    async fn begin_part(&self, id: ImageId, part: &UploadPart) -> Result<(RequestLocks, ImageRecord)> {
        let locks = RequestLocks::new(&self.inner);
        let mut tx = self.inner.store.begin().await?;
        let record = tx.image(id).await?;
        if record.image.state != ImageState::Uploading {
            return Err(not_uploading("it is not waiting for its file"));
        }
        let received = record.image.uploaded_bytes.unwrap_or(0);
        if part.offset != 0 && part.offset != received {
            let public = format!(
                "the part starts at {}, but {received} bytes are stored; go on from there",
                part.offset
            );
            return Err(ServiceError::new(ErrorCode::UploadOffsetMismatch, public).with_range_total(received));
        }
        let limit = self.inner.config.limits.upload_bytes;
        let end = part
            .length
            .and_then(|length| part.offset.checked_add(length))
            .unwrap_or(part.offset);
        if part.total.unwrap_or(0) > limit || end > limit {
            return Err(too_long(limit));
        }
        if part.total.is_some_and(|total| end > total) {
            return Err(ServiceError::invalid(
                "content_range",
                "the part ends behind the end of the whole",
            ));
        }
        locks.take(&mut tx, &[(id, LockMode::Exclusive)]).await?;
        tx.commit().await?;
        Ok((locks, record))
    }
}

/// The hidden file that parts are appended to.
struct Receiver {
    file: File,
    start: u64,
    /// Where the file may end at most.
    limit: u64,
}

impl Receiver {
    fn open(inner: &Inner, pool: &PoolFolder, id: ImageId, part: &UploadPart) -> Result<Self> {
        let file = pool.open_file(&FileName::upload(id), Access::Create)?;
        let failed = |error: std::io::Error| write_failed(&error);
        // What lies behind was never acknowledged, or the client starts anew.
        file.set_len(part.offset).map_err(failed)?;
        let limit = part.total.unwrap_or(u64::MAX).min(inner.config.limits.upload_bytes);
        Ok(Self {
            file,
            start: part.offset,
            limit,
        })
    }

    /// How many bytes of the file are stable afterwards, and how the part ended.
    async fn receive<S, E>(self, part: &UploadPart, body: S) -> (u64, Result<()>)
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display + Send,
    {
        let keeper = match self.file.try_clone() {
            Ok(keeper) => keeper,
            Err(error) => return (self.start, Err(write_failed(&error))),
        };
        let outcome = self.append(part, body).await;
        let drop_part = outcome
            .as_ref()
            .is_err_and(|(_, error)| error.code != ErrorCode::UploadInterrupted);
        let (end, outcome) = match outcome {
            Ok(end) => (end, Ok(())),
            Err((_, error)) if drop_part => (self.start, Err(error)),
            Err((end, error)) => (end, Err(error)),
        };
        let settled = blocking(move || {
            keeper
                .set_len(end)
                .and_then(|()| keeper.sync_all())
                .map_err(|error| write_failed(&error))
        });
        match settled.await {
            Ok(()) => (end, outcome),
            Err(error) => (self.start, Err(error)),
        }
    }

    async fn append<S, E>(&self, part: &UploadPart, mut body: S) -> Result<u64, (u64, ServiceError)>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display + Send,
    {
        let broken = |error: std::io::Error| (self.start, write_failed(&error));
        let mut file = tokio::fs::File::from_std(self.file.try_clone().map_err(broken)?);
        file.seek(std::io::SeekFrom::Start(self.start)).await.map_err(broken)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        let mut end = self.start;
        let mut interrupted = None;
        while let Some(chunk) = body.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    interrupted = Some(error.to_string());
                    break;
                }
            };
            let next = end.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            if next > self.limit {
                return Err((self.start, too_long(self.limit)));
            }
            file.write_all(&chunk).await.map_err(broken)?;
            end = next;
        }
        file.flush().await.map_err(broken)?;
        let short = part.length.is_some_and(|length| end - self.start < length);
        if interrupted.is_none() && !short {
            return Ok(end);
        }
        let public = format!("the upload ended early; {end} bytes are stored, go on from there");
        let error = ServiceError::new(ErrorCode::UploadInterrupted, public).with_range_total(end);
        Err((
            end,
            error.with_internal(interrupted.unwrap_or_else(|| "the body was too short".to_owned())),
        ))
    }
}

/// Looks at a complete file and shows it, or says why not and removes it.
async fn complete_upload(
    inner: &Arc<Inner>,
    locks: RequestLocks,
    record: ImageRecord,
    checksum: Option<Checksum>,
) -> Result<UploadStatus> {
    let id = record.image.id;
    let pool = inner.pool(&record.image.pool)?;
    let upload = FileName::upload(id);
    match accept(inner, &pool, &record, checksum).await {
        Ok(()) => {
            locks.release().await;
            let image = inner.store.image(id).await?.image;
            Ok(UploadStatus::Complete(Box::new(image)))
        }
        Err(error) if is_final(error.code) => {
            pool.remove(&upload)?;
            let mut tx = inner.store.begin().await?;
            tx.set_image_state(id, ImageState::Failed, Some(&error.public)).await?;
            tx.set_backing(id, None).await?;
            locks.release_and_commit(tx).await?;
            Err(error)
        }
        Err(error) => {
            locks.release().await;
            Err(error)
        }
    }
}

/// Whether another try with the same bytes would end the same way.
fn is_final(code: ErrorCode) -> bool {
    use ErrorCode::{
        BaseChanged, ChecksumMismatch, CorruptImage, Denied, FormatMismatch, InvalidArgument, LimitExceeded,
        Unsupported,
    };
    let finals = [
        ChecksumMismatch,
        FormatMismatch,
        CorruptImage,
        Denied,
        Unsupported,
        InvalidArgument,
        LimitExceeded,
        BaseChanged,
    ];
    finals.contains(&code)
}

async fn accept(
    inner: &Arc<Inner>,
    pool: &Arc<PoolFolder>,
    record: &ImageRecord,
    checksum: Option<Checksum>,
) -> Result<()> {
    let id = record.image.id;
    let claimed = Some(record.image.format.clone()).filter(|format| !format.is_empty());
    let backing = record.image.backing_id;
    let (folder, limits) = (pool.clone(), inner.limits.clone());
    let taken = blocking(move || {
        let file = FileName::upload(id);
        verify(&folder, &file, checksum)?;
        let control = Control::new(Arc::new(vdisk_engine::control::NoProgress), CancelToken::new());
        let taken = take_in(&folder, &file, claimed.as_deref(), backing.is_some(), &limits, &control)?;
        folder.rename(&file, &FileName::published(id, 1), false)?;
        Ok(taken)
    });
    let taken = taken.await?;
    let mut tx = inner.store.begin().await?;
    tx.finish_upload(id, &FileName::published(id, 1), &taken.facts).await?;
    if let (Some(base), Some(name)) = (backing, taken.backing_name) {
        let generation = tx.image(base).await?.image.generation;
        tx.set_backing(
            id,
            Some(&Backing {
                id: base,
                generation,
                name,
            }),
        )
        .await?;
    }
    let committed = tx.commit().await;
    committed.inspect_err(|_| drop(pool.rename(&FileName::published(id, 1), &FileName::upload(id), false)))
}

fn verify(pool: &PoolFolder, file: &str, checksum: Option<Checksum>) -> Result<()> {
    let Some(Checksum::Sha256(expected)) = checksum else {
        return Ok(());
    };
    let mut file = pool.open_file(file, Access::Read)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = file.read(&mut buffer).map_err(|error| write_failed(&error))?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        digest.update(bytes);
    }
    if digest.finalize().as_slice() == expected {
        return Ok(());
    }
    let public = "the file does not match the SHA-256 that was announced; upload it again";
    Err(ServiceError::new(ErrorCode::ChecksumMismatch, public))
}

fn too_long(limit: u64) -> ServiceError {
    ServiceError::new(
        ErrorCode::LimitExceeded,
        format!("the file is longer than the {limit} bytes allowed or announced"),
    )
}

fn not_uploading(why: &str) -> ServiceError {
    ServiceError::new(
        ErrorCode::ImageNotReady,
        format!("the image does not take a file: {why}"),
    )
}

fn write_failed(error: &std::io::Error) -> ServiceError {
    if is_disk_full(error) {
        let public = "there is no room for the file; this part was dropped";
        return ServiceError::new(ErrorCode::InsufficientStorage, public).with_internal(error);
    }
    ServiceError::new(ErrorCode::Io, "the file cannot be stored").with_internal(error)
}
