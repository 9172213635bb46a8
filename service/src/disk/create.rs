use std::path::PathBuf;

use uuid::Uuid;
use vdisk_engine::env::CreateSpec;
use vdisk_engine::storage::NewFile;
use vdisk_engine::{CreateEnv, Limits, StorageRef, ops};

use super::gate::NewOverlayGate;
use super::{Layer, OpenSecrets};
use crate::clock::Timestamp;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Step, around, watched};
use crate::pool::{NEW_FILE_MODE, PoolFolder};

/// A new image file to start.
pub struct NewDisk<'a> {
    /// Where.
    pub pool: &'a PoolFolder,
    /// Its name once it is finished.
    pub file: &'a str,
    /// The job or request that makes it.
    pub maker: Uuid,
    /// Its format.
    pub format: &'a str,
    /// Size, options, the name of the base.
    pub spec: &'a CreateSpec,
    /// What lies below it.
    pub base: Option<&'a Layer>,
    /// Bounds.
    pub limits: &'a Limits,
    /// Keys that the options refer to.
    pub secrets: &'a OpenSecrets,
    /// For formats that store it.
    pub now: Timestamp,
}

/// Makes an empty image under a temporary name. Dropping what is returned removes it.
///
/// # Errors
/// `insufficient_storage`, `unsupported`, `invalid_argument`.
pub fn create_disk(new: &NewDisk<'_>) -> Result<NewFile> {
    let token = new.maker.to_string();
    let staged = stage(new.pool, new.file, &token)?;
    let env = CreateEnv {
        gate: &NewOverlayGate { base: new.base },
        limits: new.limits,
        secrets: new.secrets,
        random: &fill_random,
        now: u64::try_from(new.now.0 / 1000).unwrap_or(0),
    };
    around(Step::FormatFile, || {
        ops::create::create(content(&staged), new.format, new.spec, &env)
    })?;
    Ok(staged)
}

/// Starts a file under a temporary name. Dropping what is returned removes it.
///
/// # Errors
/// `insufficient_storage`, `io_error`.
pub fn stage(pool: &PoolFolder, file: &str, token: &str) -> Result<NewFile> {
    around(Step::StageFile, || {
        Ok::<_, ServiceError>(NewFile::create_in(
            pool.folder()?,
            file.into(),
            PathBuf::from(file),
            token,
            NEW_FILE_MODE,
        )?)
    })
}

/// The bytes of a new file, to be written.
pub fn content(staged: &NewFile) -> StorageRef {
    watched(staged.storage())
}

/// Fills a buffer with random bytes of the operating system. The service makes sure at its start that there are any.
pub fn fill_random(buffer: &mut [u8]) {
    for chunk in buffer.chunks_mut(256) {
        while try_random(chunk).is_err() {
            std::thread::yield_now();
        }
    }
}

/// Fills at most 256 bytes, all or nothing.
///
/// # Errors
/// What the system call says.
pub fn try_random(chunk: &mut [u8]) -> std::io::Result<()> {
    let got = rustix::rand::getrandom(&mut *chunk, rustix::rand::GetRandomFlags::empty())?;
    if got == chunk.len() {
        Ok(())
    } else {
        Err(std::io::ErrorKind::Interrupted.into())
    }
}

/// Keeps the storage of a finished file for a last look while it gets its name.
pub fn publish(staged: NewFile, replace: bool) -> Result<()> {
    let step = if replace { Step::ReplaceFile } else { Step::PublishFile };
    around(step, || staged.publish(replace).map_err(not_published))
}

fn not_published(error: vdisk_engine::Error) -> ServiceError {
    if error.io_kind() == Some(std::io::ErrorKind::AlreadyExists) {
        return ServiceError::new(ErrorCode::NameTaken, "the pool has a file of that name already");
    }
    error.into()
}
