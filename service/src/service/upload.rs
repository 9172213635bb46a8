//! Files on their way in: parts are appended to a hidden file, which is looked at and shown when it is complete.

use std::io::Read;
use std::sync::Arc;

use futures::Stream;
use sha2::{Digest, Sha256};
use vdisk_engine::{CancelToken, Control};

use super::background::blocking;
use super::locks::RequestLocks;
use super::receive::{Feed, Receiver, feed, too_long, write_failed};
use super::{Inner, Service};
use crate::Bytes;
use crate::disk::was_changed_by_others;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Step, around};
use crate::jobs::take_in;
use crate::model::{ImageId, ImageState};
use crate::pool::{Access, Alone, FileName, PoolFolder};
use crate::request::{Checksum, UploadPart, UploadStatus};
use crate::secrets::hex;
use crate::store::Tx;
use crate::store::images::{Announced, Backing, ImageRecord};
use crate::store::locks::LockMode;

const BUFFER: usize = 1 << 20;

impl Service {
    /// Takes a part of an image's file in. What arrived before the client went away is kept.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready` (not uploading), `image_busy` (another upload of it runs),
    /// `upload_offset_mismatch`, `upload_interrupted`, `limit_exceeded`, `insufficient_storage` (the part is dropped),
    /// and when the file is complete `checksum_mismatch` (the upload is at its start again), `format_mismatch`, `corrupt_image`,
    /// `denied` (it refers to other files), `unsupported`. After the last four the file is gone and the image is in state `failed`.
    pub async fn upload<S, E>(&self, id: ImageId, mut part: UploadPart, body: S) -> Result<UploadStatus>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display + Send,
    {
        let (locks, record, digest) = self.begin_part(id, &mut part).await?;
        let pool = self.inner.pool(&record.image.pool)?;
        let opened = self.open_part(&locks, &pool, id, &part).await;
        let (locks, opened) = locks.with(opened).await?;
        let (feeder, feed) = feed();
        let inner = self.inner.clone();
        // On a task of its own: a transport may drop this future when the client goes away, and what arrived counts.
        let work = self.to_the_end(async move { take_part(&inner, locks, (record, digest), opened, part, feed).await });
        let (outcome, ()) = tokio::join!(work, feeder.forward(body));
        outcome
    }

    /// Opens the file of an upload and cuts it to where a part starts. The transaction keeps others from taking the locks away until the
    /// file is open for us alone.
    async fn open_part(
        &self,
        locks: &RequestLocks,
        pool: &PoolFolder,
        id: ImageId,
        part: &UploadPart,
    ) -> Result<(Option<Alone>, Receiver)> {
        let held = locks.begin().await?;
        take_back(pool, id)?;
        let alone = pool.open_alone(&FileName::upload(id))?;
        drop(held);
        Ok((alone, Receiver::open(&self.inner, pool, id, part)?))
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

    /// The locks, the image and the digest that was announced for its file. The part has the length of the whole, once one was announced.
    async fn begin_part(
        &self,
        id: ImageId,
        part: &mut UploadPart,
    ) -> Result<(RequestLocks, ImageRecord, Option<String>)> {
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
        let announced = announced_with(&mut tx, id, part).await?;
        part.total = announced.total;
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
        tx.announce(id, &announced).await?;
        tx.commit_as(Step::LockUpload).await?;
        Ok((locks, record, announced.sha256))
    }
}

/// What is announced of a file once this part has said what it knows: the same as earlier parts. A file that starts anew has none yet.
async fn announced_with(tx: &mut Tx, id: ImageId, part: &UploadPart) -> Result<Announced> {
    let known = match part.offset {
        0 => Announced::default(),
        _ => tx.announced(id).await?,
    };
    let digest = part.checksum.map(|Checksum::Sha256(digest)| hex(&digest));
    if let (Some(new), Some(known)) = (&digest, &known.sha256)
        && new != known
    {
        let public = format!("an earlier part announced the SHA-256 {known} for the whole file");
        return Err(ServiceError::invalid("checksum", public));
    }
    if let (Some(new), Some(known)) = (part.total, known.total)
        && new != known
    {
        let public = format!(
            "expected the total {known} that an earlier part announced, found {new}; a file of another length starts anew at 0"
        );
        return Err(ServiceError::invalid("content_range", public));
    }
    Ok(Announced {
        sha256: digest.or(known.sha256),
        total: part.total.or(known.total),
    })
}

/// Stores a part, notes how far the file is, and completes it if that was the last one.
async fn take_part(
    inner: &Arc<Inner>,
    locks: RequestLocks,
    (record, digest): (ImageRecord, Option<String>),
    (alone, receiver): (Option<Alone>, Receiver),
    part: UploadPart,
    feed: Feed,
) -> Result<UploadStatus> {
    let (received, outcome) = receiver.receive(part, feed).await;
    drop(alone);
    let recorded = async {
        let mut tx = locks.begin().await?;
        tx.record_upload(record.image.id, received).await?;
        tx.commit_as(Step::NoteUpload).await
    };
    let recorded = recorded.await.and(outcome);
    let (locks, ()) = locks.with(recorded).await?;
    let complete = match part.total {
        Some(total) => received == total,
        None => !part.more,
    };
    if complete {
        return complete_upload(inner, locks, record, digest).await;
    }
    locks.release().await;
    Ok(UploadStatus::Incomplete { received })
}

/// Looks at a complete file and shows it, or says why not and removes it.
async fn complete_upload(
    inner: &Arc<Inner>,
    locks: RequestLocks,
    record: ImageRecord,
    digest: Option<String>,
) -> Result<UploadStatus> {
    let id = record.image.id;
    let pool = inner.pool(&record.image.pool)?;
    match accept(inner, &locks, &pool, &record, digest).await {
        Ok(()) => {
            locks.release().await;
            let image = inner.store.image(id).await?.image;
            Ok(UploadStatus::Complete(Box::new(image)))
        }
        Err(error) if is_final(error.code) => {
            // The record first: while it says that bytes are stored, they are.
            let mut tx = locks.begin().await?;
            tx.set_image_state(id, ImageState::Failed, Some(&error.public)).await?;
            tx.set_backing(id, None).await?;
            let refused = locks.release_and_commit(tx, Step::RefuseUpload).await;
            // A commit that failed may have been carried out all the same.
            let record = inner.store.image(id).await;
            if refused.is_ok() || record.is_ok_and(|record| record.image.state == ImageState::Failed) {
                drop_refused(&pool, id);
            }
            refused.and(Err(error))
        }
        Err(error) => {
            let ready = match error.code {
                ErrorCode::ChecksumMismatch => start_anew(&locks, &pool, id).await,
                _ => Ok(()),
            };
            locks.release().await;
            ready.and(Err(error))
        }
    }
}

/// Puts an upload whose bytes were damaged on their way back to its start, so that its client can send them once more.
async fn start_anew(locks: &RequestLocks, pool: &PoolFolder, id: ImageId) -> Result<()> {
    // The record first: while it says that bytes are stored, they are.
    let mut tx = locks.begin().await?;
    tx.record_upload(id, 0).await?;
    tx.announce(id, &Announced::default()).await?;
    let recorded = tx.commit_as(Step::RestartUpload).await;
    // Nobody is given our locks while this is open. A commit that failed may have been carried out all the same.
    let mut held = locks.begin().await?;
    if held.image(id).await?.image.uploaded_bytes == Some(0) {
        drop_refused(pool, id);
    }
    recorded
}

fn drop_refused(pool: &PoolFolder, id: ImageId) {
    if let Err(error) = pool.remove(&FileName::upload(id)) {
        tracing::warn!(image = %id, %error, "a refused file could not be removed; the next start or upload tries again");
    }
}

/// Whether another try with the same file would end the same way.
fn is_final(code: ErrorCode) -> bool {
    use ErrorCode::{
        BaseChanged, CorruptImage, Denied, FormatMismatch, InspectionFailed, InvalidArgument, LimitExceeded,
        Unsupported,
    };
    let finals = [
        FormatMismatch,
        InspectionFailed,
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
    locks: &RequestLocks,
    pool: &Arc<PoolFolder>,
    record: &ImageRecord,
    digest: Option<String>,
) -> Result<()> {
    let Err(error) = show_and_record(inner, locks, pool, record, digest).await else {
        return Ok(());
    };
    // Who has the locks now, if we have them no more, puts the file where it belongs.
    let Ok(mut held) = locks.begin().await else {
        return Err(error);
    };
    // A commit that failed may have been carried out all the same: the record says where the file belongs.
    match held.image(record.image.id).await.map(|record| record.image.state) {
        Ok(ImageState::Ready) => return Ok(()),
        Ok(ImageState::Uploading) => {
            if let Err(error) = take_back(pool, record.image.id) {
                tracing::warn!(image = %record.image.id, %error, "an upload keeps its name until its client sends more");
            }
        }
        _ => {}
    }
    Err(error)
}

/// A complete file that has its name, but no record of that, is an upload again, so that its client can go on. The image is locked.
///
/// # Errors
/// What the folder says.
pub fn take_back(pool: &PoolFolder, image: ImageId) -> Result<()> {
    let (shown, upload) = (FileName::published(image, 1), FileName::upload(image));
    if pool.stat(&shown)?.is_none() {
        return Ok(());
    }
    if pool.stat(&upload)?.is_some() {
        return pool.remove(&shown).map(drop);
    }
    around(Step::HideUpload, || pool.rename(&shown, &upload, false))
}

async fn show_and_record(
    inner: &Arc<Inner>,
    locks: &RequestLocks,
    pool: &Arc<PoolFolder>,
    record: &ImageRecord,
    digest: Option<String>,
) -> Result<()> {
    let id = record.image.id;
    let claimed = Some(record.image.format.clone()).filter(|format| !format.is_empty());
    let base = match record.image.backing_id {
        Some(base) => Some(inner.store.image(base).await?),
        None => None,
    };
    let base_format = base.map(|base| base.image.format);
    let (folder, limits, inspector) = (pool.clone(), inner.limits.clone(), inner.config.inspector.clone());
    let taken = blocking(move || {
        let file = FileName::upload(id);
        verify(&folder, &file, digest.as_deref())?;
        let control = Control::new(Arc::new(vdisk_engine::control::NoProgress), CancelToken::new());
        let inspector = inspector.as_deref();
        let taken = take_in(
            inspector,
            &folder,
            &file,
            claimed.as_deref(),
            base_format.as_deref(),
            &limits,
            &control,
        )?;
        around(Step::ShowUpload, || {
            folder.rename(&file, &FileName::published(id, 1), false)
        })?;
        Ok(taken)
    });
    let taken = taken.await?;
    let mut tx = locks.begin().await?;
    tx.finish_upload(id, &FileName::published(id, 1), &taken.facts).await?;
    if let (Some(base), Some(name)) = (record.image.backing_id, taken.backing_name) {
        // The overlay was made on what the base was when its upload began.
        let below = inner.without_keys(tx.image(base).await?)?;
        let generation = below.record.image.generation;
        if record.backing_generation != Some(generation) || was_changed_by_others(&below)? {
            let public = format!("image {base} has changed since the upload of its overlay began");
            return Err(ServiceError::new(ErrorCode::BaseChanged, public));
        }
        let backing = Backing {
            id: base,
            generation,
            name,
        };
        tx.set_backing(id, Some(&backing)).await?;
    }
    locks.release_and_commit(tx, Step::RecordUpload).await
}

fn verify(pool: &PoolFolder, file: &str, expected: Option<&str>) -> Result<()> {
    let Some(expected) = expected else {
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
    if hex(&digest.finalize()) == expected {
        return Ok(());
    }
    let public = "the file does not match the SHA-256 that was announced; upload it again from its start";
    Err(ServiceError::new(ErrorCode::ChecksumMismatch, public))
}

fn not_uploading(why: &str) -> ServiceError {
    ServiceError::new(
        ErrorCode::ImageNotReady,
        format!("the image does not take a file: {why}"),
    )
}
