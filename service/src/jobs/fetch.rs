//! The part of an import that makes a new file: from a URL as it is, or in another format.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;
use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::Node;
use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, Segments, convert_in_segments};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage, HttpOptions, HttpStorage, NewFile, is_public_web, web_url};
use vdisk_engine::{CancelToken, Chain, Control, Limits, OpenEnv, Storage, StorageRef};

use super::JobContext;
use super::context::pool_of;
use super::fill::{Fill, Filling, space_for};
use crate::clock::Timestamp;
use crate::disk::{Look, Looked, NewDisk, OpenSecrets, content, create_disk, file_facts, look, publish, stage};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::ImageId;
use crate::pool::{Access, PoolFolder, check_file_name};
use crate::queue::{Done, Effect};
use crate::sandbox::inspect;
use crate::service::Inner;
use crate::store::images::FileFacts;

/// Bytes copied at once.
const STEP: u64 = 1 << 20;

/// Where the bytes of an import lie.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// In the pool's folder under this name.
    PoolFile(String),
    /// On a web server.
    Url(String),
}

impl Source {
    /// Says at once what is wrong with it as far as that can be seen from here; the job opens it again.
    ///
    /// # Errors
    /// `invalid_argument`, `invalid_name`, `not_found`, `denied`.
    pub fn check(&self, inner: &Inner, pool: &str) -> Result<()> {
        match self {
            Self::PoolFile(file) => {
                check_file_name(file)?;
                pool_of(inner, pool)?.open_file(file, Access::Read).map(drop)
            }
            Self::Url(url) => match web_url(url) {
                Ok(_) => Ok(()),
                Err(error) => Err(ServiceError::invalid("source", error.to_string())),
            },
        }
    }

    fn open(&self, pool: &PoolFolder, private: bool, limits: &Limits, cancel: &CancelToken) -> Result<StorageRef> {
        match self {
            Self::PoolFile(file) => {
                let handle = pool.open_file(file, Access::Read)?;
                Ok(Arc::new(FileStorage::from_file(handle, file, FileOptions::read())?))
            }
            Self::Url(url) => {
                let allow = Arc::new(move |address| private || is_public_web(address));
                let options = HttpOptions {
                    max_len: limits.virtual_size,
                    cancel: cancel.clone(),
                    ..HttpOptions::new(url, allow)
                };
                Ok(Arc::new(HttpStorage::open(&options)?))
            }
        }
    }
}

/// What is to be made of which source.
pub struct Fetch {
    pub image: ImageId,
    pub pool: String,
    pub source: Source,
    pub format: Option<String>,
    pub target_format: Option<String>,
}

/// Makes the file and publishes it.
pub async fn run(context: JobContext, fetch: Fetch) -> Result<Done> {
    let pool = pool_of(&context.inner, &fetch.pool)?;
    let file = context.new_file_name(fetch.image);
    let options = json!({"source": fetch.source, "format": fetch.format, "target": fetch.target_format}).to_string();
    let filling = Filling::new(&context, "copying", &pool, &file, &[], &options).await?;
    let image = fetch.image;
    let work = Opener {
        pool: pool.clone(),
        file: file.clone(),
        job: context.job(),
        now: context.inner.store.now(),
        limits: context.inner.limits.clone(),
        threads: context.inner.config.threads_per_job,
        private: context.inner.config.import_from_private,
        inspector: context.inner.config.inspector.clone(),
        fetch,
    };
    context.step("looking at the file").await?;
    let lease = context.clone();
    let runtime = tokio::runtime::Handle::current();
    let facts = context
        .blocking(move |control| work.run(&filling, control, &|| runtime.block_on(lease.require_lease())))
        .await?;
    Ok(Done {
        result: json!({"image_id": image, "format": facts.format, "virtual_size": facts.virtual_size}),
        effects: vec![Effect::Published {
            image,
            file: file.clone(),
            facts,
        }],
        published: vec![(pool, file)],
        ..Done::default()
    })
}

struct Opener {
    fetch: Fetch,
    pool: Arc<PoolFolder>,
    file: String,
    job: Uuid,
    now: Timestamp,
    limits: Limits,
    threads: usize,
    private: bool,
    inspector: Option<PathBuf>,
}

impl Opener {
    fn run(&self, filling: &Filling, control: &Control, require_lease: &dyn Fn() -> Result<()>) -> Result<FileFacts> {
        let (source, cancel) = (&self.fetch.source, control.cancel_token());
        let storage = source.open(&self.pool, self.private, &self.limits, cancel)?;
        let format = self.look_at_source(&storage, control)?;
        let target = self.fetch.target_format.clone().unwrap_or_else(|| format.clone());
        let staged = if target == format {
            self.copy_file(storage.as_ref(), control)?
        } else {
            let converting = Converting {
                opener: self,
                storage,
                format,
                target: target.clone(),
            };
            filling.run(&converting, false, control)?.file
        };
        // What was fetched is looked at again: a server can tell something else each time.
        let wanted = wanted(Some(target.clone()), true);
        let found = look(&staged.storage(), &wanted, &self.limits, &control.uncounted())?;
        refuse_overlay(&found.accepted()?)?;
        require_lease()?;
        let storage = staged.storage();
        publish(staged, false)?;
        let chain = self.open(storage, &target, false)?;
        file_facts(chain.top(), &self.pool, &self.file)
    }

    /// The format of the source, if nothing speaks against taking it in. A file that lies in the pool is parsed apart from this process.
    fn look_at_source(&self, storage: &StorageRef, control: &Control) -> Result<String> {
        let wanted = wanted(self.fetch.format.clone(), false);
        let looked = match &self.fetch.source {
            Source::PoolFile(file) => {
                let handle = self.pool.open_file(file, Access::Read)?;
                inspect(self.inspector.as_deref(), handle, file, &wanted, &self.limits, control)?
            }
            Source::Url(_) => look(storage, &wanted, &self.limits, control)?,
        };
        let looked = looked.accepted()?;
        refuse_overlay(&looked)?;
        Ok(looked.inspection.format)
    }

    fn open(&self, storage: StorageRef, format: &str, writable: bool) -> Result<Chain> {
        let env = OpenEnv {
            writable,
            ..OpenEnv::closed(&self.limits)
        };
        Ok(Chain::open(Node::new(storage, format).without_backing(), &env)?)
    }

    /// The same bytes under a temporary name.
    fn copy_file(&self, source: &dyn Storage, control: &Control) -> Result<NewFile> {
        let (name, token) = (self.file.as_str(), self.job.to_string());
        let staged = stage(&self.pool, name, &token)?;
        let (target, len) = (content(&staged), source.len()?);
        control.set_total(len);
        target.set_len(len)?;
        let mut buffer = vec![0; usize::try_from(STEP.min(len)).unwrap_or(0)];
        let mut offset = 0;
        while offset < len {
            let step = STEP.min(len - offset);
            control.checkpoint(step)?;
            let piece = buffer.get_mut(..usize::try_from(step).unwrap_or(0)).unwrap_or_default();
            source.read_at(offset, piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                target.write_at(offset, piece)?;
            }
            control.advance(step);
            offset += step;
        }
        Ok(staged)
    }
}

fn wanted(claimed: Option<String>, check: bool) -> Look {
    let strict = true;
    Look { claimed, check, strict }
}

/// A file that needs another one is not an image yet.
fn refuse_overlay(looked: &Looked) -> Result<()> {
    let Some((name, _)) = &looked.backing else {
        return Ok(());
    };
    let name = name.escape_debug();
    let public = format!("the file is an overlay on \"{name}\"; put both into the pool and scan it");
    Err(ServiceError::new(ErrorCode::Denied, public).with_field("source"))
}

struct Converting<'a> {
    opener: &'a Opener,
    storage: StorageRef,
    format: String,
    target: String,
}

impl Converting<'_> {
    fn source(&self) -> Result<Chain> {
        self.opener.open(self.storage.clone(), &self.format, false)
    }
}

impl Fill for Converting<'_> {
    fn needs(&self, control: &Control) -> Result<u64> {
        space_for(&self.source()?, &self.target, &Options::new(), false, control)
    }

    fn create(&self) -> Result<NewFile> {
        let spec = CreateSpec {
            virtual_size: self.source()?.virtual_size(),
            options: Options::new(),
            backing: None,
        };
        create_disk(&NewDisk {
            pool: &self.opener.pool,
            file: &self.opener.file,
            maker: self.opener.job,
            format: &self.target,
            spec: &spec,
            base: None,
            limits: &self.opener.limits,
            secrets: &OpenSecrets::default(),
            now: self.opener.now,
        })
    }

    fn copy(&self, file: &NewFile, segments: &Segments<'_>, control: &Control) -> Result<()> {
        let (source, target) = (self.source()?, self.opener.open(content(file), &self.target, true)?);
        let into = CopyTarget::fresh(target.top(), None)?;
        let options = CopyOptions {
            workers: self.opener.threads,
            ..CopyOptions::default()
        };
        Ok(convert_in_segments(&source, &into, &options, segments, control)?)
    }

    fn both(&self, file: &NewFile) -> Result<(Chain, Chain)> {
        Ok((self.source()?, self.opener.open(file.storage(), &self.target, false)?))
    }
}
