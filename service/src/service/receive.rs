//! Parts of an upload on their way to the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use vdisk_engine::storage::WriteOut;

use super::Inner;
use super::background::blocking;
use crate::Bytes;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Step, around};
use crate::model::ImageId;
use crate::pool::{Access, FileName, PoolFolder, is_disk_full};
use crate::request::UploadPart;

/// Bytes that are written at once. No thread waits for those that a slow client still owes.
const BUFFER: usize = 1 << 20;
/// Pieces that wait for the disk.
const WAITING: usize = 8;

/// What comes from the client.
enum Piece {
    Bytes(Bytes),
    Broken(String),
    /// The body is through; without it the client went away.
    End,
}

/// The client's end of an upload.
pub(super) struct Feeder(mpsc::Sender<Piece>);

/// The disk's end of an upload.
pub(super) struct Feed(mpsc::Receiver<Piece>);

/// Both ends.
pub(super) fn feed() -> (Feeder, Feed) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Feeder(sender), Feed(receiver))
}

impl Feeder {
    /// Hands a body over, as long as somebody takes it.
    pub(super) async fn forward<S, E>(self, mut body: S)
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display + Send,
    {
        while let Some(chunk) = body.next().await {
            let (piece, last) = match chunk {
                Ok(bytes) => (Piece::Bytes(bytes), false),
                Err(error) => (Piece::Broken(error.to_string()), true),
            };
            if self.0.send(piece).await.is_err() || last {
                return;
            }
        }
        // Nobody takes it any more: the other end has said why.
        let _ = self.0.send(Piece::End).await;
    }
}

/// The hidden file that parts are appended to.
pub(super) struct Receiver {
    file: Arc<File>,
    /// Has what came written while more comes, so that nobody waits long for the end.
    write_out: Arc<WriteOut>,
    start: u64,
    /// Where the file may end at most.
    limit: u64,
}

impl Receiver {
    pub(super) fn open(inner: &Inner, pool: &PoolFolder, id: ImageId, part: &UploadPart) -> Result<Self> {
        let file = pool.open_file(&FileName::upload(id), Access::Create)?;
        let failed = |error: std::io::Error| write_failed(&error);
        let stored = file.metadata().map_err(failed)?.len();
        if stored < part.offset {
            let public = format!(
                "the part starts at {}, but {stored} bytes are stored; start anew",
                part.offset
            );
            return Err(ServiceError::new(ErrorCode::UploadOffsetMismatch, public).with_range_total(stored));
        }
        // What lies behind was never acknowledged, or the client starts anew.
        around(Step::OpenUpload, || file.set_len(part.offset).map_err(failed))?;
        let end = part.length.and_then(|length| part.offset.checked_add(length));
        let announced = end.unwrap_or(u64::MAX).min(part.total.unwrap_or(u64::MAX));
        let limit = announced.min(inner.config.limits.upload_bytes);
        Ok(Self {
            file: Arc::new(file),
            write_out: Arc::default(),
            start: part.offset,
            limit,
        })
    }

    /// Stores what comes until it ends. Says how many bytes of the file are stable afterwards, and how the part ended.
    pub(super) async fn receive(self, part: UploadPart, mut feed: Feed) -> (u64, Result<()>) {
        let mut end = self.start;
        let mut outcome = self.append(&part, &mut feed, &mut end).await;
        // An interrupted part is kept; one that failed is dropped, to free the room that others need.
        if outcome
            .as_ref()
            .is_err_and(|error| error.code != ErrorCode::UploadInterrupted)
        {
            end = self.start;
        }
        if let Err(error) = self.settle(end).await {
            (end, outcome) = (self.start, Err(error));
        }
        (end, outcome)
    }

    async fn append(&self, part: &UploadPart, feed: &mut Feed, end: &mut u64) -> Result<()> {
        let mut buffer = Vec::with_capacity(BUFFER);
        let why = loop {
            match feed.0.recv().await {
                Some(Piece::Bytes(bytes)) => {
                    let next = end.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                    if next > self.limit {
                        return Err(too_long(self.limit));
                    }
                    *end = next;
                    buffer.extend_from_slice(&bytes);
                    if buffer.len() >= BUFFER {
                        buffer = self.write_before(*end, buffer).await?;
                    }
                }
                Some(Piece::Broken(error)) => break Some(error),
                Some(Piece::End) => break None,
                None => break Some("the client went away".to_owned()),
            }
        };
        self.write_before(*end, buffer).await?;
        let short = part.length.is_some_and(|length| *end - self.start < length);
        match why {
            None if !short => Ok(()),
            why => {
                let public = format!("the upload ended early; {end} bytes are stored, go on from there");
                let error = ServiceError::new(ErrorCode::UploadInterrupted, public).with_range_total(*end);
                Err(error.with_internal(why.unwrap_or_else(|| "the body was too short".to_owned())))
            }
        }
    }

    /// Writes what ends at `end`, and gives the buffer back empty.
    async fn write_before(&self, end: u64, mut buffer: Vec<u8>) -> Result<Vec<u8>> {
        let (file, write_out) = (Arc::clone(&self.file), Arc::clone(&self.write_out));
        blocking(move || {
            let len = buffer.len() as u64;
            file.write_all_at(&buffer, end - len)
                .map_err(|error| write_failed(&error))?;
            write_out.wrote(&file, end - len, len);
            buffer.clear();
            Ok(buffer)
        })
        .await
    }

    /// Cuts the file at `end` and makes it stable.
    async fn settle(&self, end: u64) -> Result<()> {
        let file = Arc::clone(&self.file);
        blocking(move || {
            let settle = || file.set_len(end).and_then(|()| file.sync_all());
            around(Step::SettleUpload, || settle().map_err(|error| write_failed(&error)))
        })
        .await
    }
}

pub(super) fn too_long(limit: u64) -> ServiceError {
    ServiceError::new(
        ErrorCode::LimitExceeded,
        format!("the file is longer than the {limit} bytes allowed or announced"),
    )
}

pub(super) fn write_failed(error: &std::io::Error) -> ServiceError {
    if is_disk_full(error) {
        let public = "there is no room for the file; this part was dropped";
        return ServiceError::new(ErrorCode::InsufficientStorage, public).with_internal(error);
    }
    ServiceError::new(ErrorCode::Io, "the file cannot be stored").with_internal(error)
}
