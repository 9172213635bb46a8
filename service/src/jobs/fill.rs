//! Filling a new file, so that the attempt after this one can go on with it.
//!
//! The engine flushes the file at the end of each segment, and only then the journal says that it is there. The journal names what the
//! file is filled from, by content; an attempt that finds anything else starts anew, and so does one that cannot have the file to
//! itself: its lock lives as long as any thread of an earlier attempt can write to it. A file that was gone on with is read back and
//! compared with its source before it counts.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use vdisk_engine::ops::convert::{Mark, Segments};
use vdisk_engine::storage::NewFile;
use vdisk_engine::{Chain, Control, Error};

use super::JobContext;
use super::verify::compare;
use crate::disk::{Layer, fingerprint};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::pool::PoolFolder;
use crate::store::jobs::{FillingEntry, JournalEntry};

/// Bytes of data in a segment. It ends with a batch of the engine, which makes it 4 MiB longer at most.
const SEGMENT: u64 = 60 << 20;
/// How often a mark is tried to be written.
const TRIES: u32 = 5;

/// What is particular to a kind of job.
pub trait Fill {
    /// Bytes that it will take on disk, as far as that can be known before.
    fn needs(&self, control: &Control) -> Result<u64>;
    /// Makes the empty file.
    fn create(&self) -> Result<NewFile>;
    /// Fills it, or goes on filling it.
    fn copy(&self, file: &NewFile, segments: &Segments<'_>, control: &Control) -> Result<()>;
    /// What the guest is to see.
    fn source(&self) -> &Chain;
    /// What it will see: the file, opened anew.
    fn result(&self, file: &NewFile) -> Result<Chain>;
}

/// A file that is complete and not published yet.
pub struct Filled {
    /// The file.
    pub file: NewFile,
    /// Digest of what the guest sees in source and file alike, when they were compared.
    pub digest: Option<String>,
}

/// The filling of one file by one attempt.
pub struct Filling {
    context: JobContext,
    runtime: Handle,
    doing: &'static str,
    pool: Arc<PoolFolder>,
    /// The name it will have.
    name: String,
    binding: String,
    entry: Mutex<JournalEntry>,
    lease_lost: AtomicBool,
}

impl Filling {
    /// Looks for what an earlier attempt kept. `doing` is what the job's log will say, `sources` are all images whose content goes into
    /// the file, and `options` what is done with it.
    pub async fn new(
        context: &JobContext,
        doing: &'static str,
        pool: &Arc<PoolFolder>,
        name: &str,
        sources: &[&[Layer]],
        options: &str,
    ) -> Result<Self> {
        let mut binding = format!("{} {options} ", env!("CARGO_PKG_VERSION"));
        for layers in sources {
            binding.push_str(&fingerprint(layers)?);
            binding.push('/');
        }
        Ok(Self {
            context: context.clone(),
            runtime: Handle::current(),
            doing,
            pool: pool.clone(),
            name: name.to_owned(),
            binding,
            entry: Mutex::new(context.journal().await?),
            lease_lost: AtomicBool::new(false),
        })
    }

    /// Fills the file; reads it back when `verify` says so, or an earlier attempt had begun it. Belongs on a blocking thread.
    ///
    /// # Errors
    /// What the copy says; `corrupt_image` when the file does not show what its source shows.
    pub fn run(&self, work: &dyn Fill, verify: bool, control: &Control) -> Result<Filled> {
        if let Some((file, mark)) = self.adopt()? {
            self.step(&format!("going on at byte {}", mark.done))?;
            match self.complete(work, &file, Some(mark), true, control) {
                Ok(digest) => return Ok(Filled { file, digest }),
                Err(error) if !is_about_the_file(&error) => return Err(self.put_down(file, error)),
                Err(error) => {
                    drop(file);
                    self.step(&format!("starting anew: {}", error.public))?;
                }
            }
        }
        self.note(None)?;
        let bytes = work.needs(&control.uncounted())?;
        self.runtime
            .block_on(self.context.reserve(&self.pool, bytes, self.doing))?;
        let file = work.create()?;
        match self.complete(work, &file, None, verify, control) {
            Ok(digest) => Ok(Filled { file, digest }),
            Err(error) => Err(self.put_down(file, error)),
        }
    }

    fn complete(
        &self,
        work: &dyn Fill,
        file: &NewFile,
        from: Option<Mark>,
        verify: bool,
        control: &Control,
    ) -> Result<Option<String>> {
        let save = |mark| self.save(file, mark);
        let segments = Segments {
            bytes: SEGMENT,
            from,
            save: &save,
        };
        work.copy(file, &segments, control)?;
        if !verify {
            return Ok(None);
        }
        self.step("comparing the new image with its source")?;
        compare(work.source(), &work.result(file)?, &control.uncounted()).map(Some)
    }

    /// The file that an earlier attempt left, when it is ours to go on with.
    fn adopt(&self) -> Result<Option<(NewFile, Mark)>> {
        let Some(found) = self.entry().filling else {
            return Ok(None);
        };
        let (done, next) = (found.done, found.next);
        let good = found.binding == self.binding && found.pool == self.pool.name();
        let adopted = NewFile::adopt_in(
            self.pool.folder()?,
            &found.file,
            (&self.name).into(),
            PathBuf::from(&self.name),
        );
        match adopted {
            Ok(file) if good => Ok(Some((file, Mark { done, next }))),
            // Dropping the file removes it.
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::info!(job = %self.context.job(), %error, "what an earlier attempt left cannot be gone on with");
                Ok(None)
            }
        }
    }

    fn save(&self, file: &NewFile, mark: Mark) -> vdisk_engine::Result<()> {
        let filling = FillingEntry {
            pool: self.pool.name().to_owned(),
            file: file.temporary().to_string_lossy().into_owned(),
            binding: self.binding.clone(),
            done: mark.done,
            next: mark.next,
        };
        self.note(Some(filling)).map_err(|error| match error.code {
            ErrorCode::LeaseLost => Error::cancelled(),
            _ => Error::io(
                "cannot note how far the copy is",
                std::io::Error::other(error.to_string()),
            ),
        })
    }

    /// Writes the journal. A mark that is not written must not be passed, so this is tried hard.
    fn note(&self, filling: Option<FillingEntry>) -> Result<()> {
        let mut entry = self.entry();
        if entry.filling == filling {
            return Ok(());
        }
        entry.filling = filling;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.runtime.block_on(self.context.keep(&entry)) {
                Ok(()) => break,
                Err(error) if error.code == ErrorCode::LeaseLost => {
                    self.lease_lost.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                Err(error) if tries == TRIES => return Err(error),
                Err(error) => {
                    tracing::warn!(job = %self.context.job(), %error, "the journal was not written; trying again");
                    std::thread::sleep(Duration::from_millis(500));
                }
            }
        }
        *self.entry.lock().unwrap_or_else(PoisonError::into_inner) = entry;
        Ok(())
    }

    /// Leaves the file to the next attempt where there will be one, and removes it otherwise.
    fn put_down(&self, file: NewFile, error: ServiceError) -> ServiceError {
        let marked = self.entry().filling.is_some();
        if marked && (self.context.is_handed_on() || self.lease_lost.load(Ordering::Relaxed)) {
            file.leave();
        }
        error
    }

    fn step(&self, text: &str) -> Result<()> {
        self.runtime.block_on(self.context.step(text))
    }

    fn entry(&self) -> JournalEntry {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether beginning with an empty file may do better.
fn is_about_the_file(error: &ServiceError) -> bool {
    use ErrorCode::{CorruptImage, Denied, FormatMismatch, InvalidArgument, LimitExceeded, Unsupported, WrongKey};
    let codes = [
        CorruptImage,
        Denied,
        FormatMismatch,
        InvalidArgument,
        LimitExceeded,
        Unsupported,
        WrongKey,
    ];
    codes.contains(&error.code)
}
