//! The part of an import that makes a new file: from a URL as it is, or in another format.
//!
//! What a server sends is stored before anything reads it, and looked at where every file of unknown origin is.

mod store;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;
use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::Node;
use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, Segments, convert_in_segments};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage, HttpFile, HttpOptions, NewFile, is_public_web, web_url};
use vdisk_engine::{Chain, Control, Limits, OpenEnv, StorageRef};

use super::context::pool_of;
use super::fill::{Fill, Filling};
use super::{JobContext, space};
use crate::clock::Timestamp;
use crate::disk::{Look, Looked, NewDisk, OpenSecrets, content, create_disk, publish, stage};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::ImageId;
use crate::pool::{Access, FileName, PoolFolder, check_file_name};
use crate::queue::{Done, Effect};
use crate::sandbox::{inspect, inspect_held};
use crate::service::Inner;
use crate::store::images::FileFacts;

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

    fn first_step(&self) -> &'static str {
        match self {
            Self::PoolFile(_) => "looking at the file",
            Self::Url(_) => "fetching the file",
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
    context.step(work.fetch.source.first_step()).await?;
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
        let source = self.take(control)?;
        let wanted = Look::strict(self.fetch.format.clone(), false);
        let format = self.look_at(&source, &wanted, control)?.inspection.format;
        let target = self.fetch.target_format.clone().unwrap_or_else(|| format.clone());
        let made = match source {
            Taken::Fetched(file) if target == format => file,
            Taken::There(_, storage) if target == format => {
                let staged = stage(&self.pool, &self.file, &self.job.to_string())?;
                store::copy(storage.as_ref(), &content(&staged), control)?;
                staged
            }
            source => {
                let converting = Converting {
                    opener: self,
                    source: self.open(source.storage(), &format, false)?,
                    target: target.clone(),
                };
                filling
                    .run(&converting, false, &control.behind(source.fetched()?))?
                    .file
            }
        };
        let looked = self.look_at_made(&made, &Look::strict(Some(target), true), &control.uncounted())?;
        require_lease()?;
        publish(made, false)?;
        looked.facts(&self.pool, &self.file)
    }

    /// The bytes of the source, as they are.
    fn take(&self, control: &Control) -> Result<Taken> {
        match &self.fetch.source {
            Source::PoolFile(file) => {
                let handle = self.pool.open_file(file, Access::Read)?;
                let storage = FileStorage::from_file(handle, file, FileOptions::read())?;
                Ok(Taken::There(file.clone(), Arc::new(storage)))
            }
            Source::Url(url) => {
                let found = HttpFile::open(&self.web(url, control))?;
                let staged = stage(&self.pool, &self.file, &FileName::source_of(self.job))?;
                match found {
                    HttpFile::Parts(storage) => store::copy(&storage, &content(&staged), control)?,
                    HttpFile::Whole(body) => store::pour(&body, &content(&staged), control)?,
                }
                Ok(Taken::Fetched(staged))
            }
        }
    }

    fn web(&self, url: &str, control: &Control) -> HttpOptions {
        let private = self.private;
        let allow = Arc::new(move |address| private || is_public_web(address));
        HttpOptions {
            max_len: self.limits.virtual_size,
            cancel: control.cancel_token().clone(),
            ..HttpOptions::new(url, allow)
        }
    }

    /// A look apart from this process.
    fn look_at(&self, source: &Taken, wanted: &Look, control: &Control) -> Result<Looked> {
        match source {
            Taken::There(file, _) => {
                let handle = self.pool.open_file(file, Access::Read)?;
                let inspector = self.inspector.as_deref();
                sound(inspect(inspector, handle, file, wanted, &self.limits, control)?)
            }
            Taken::Fetched(file) => self.look_at_made(file, wanted, control),
        }
    }

    /// The same at a file of ours that has no name yet, through a handle for reading alone.
    fn look_at_made(&self, made: &NewFile, wanted: &Look, control: &Control) -> Result<Looked> {
        let name = made.temporary().to_str();
        let name = name.ok_or_else(|| ServiceError::internal("a temporary name that is not text"))?;
        let handle = self.pool.open_file(name, Access::Read)?;
        let inspector = self.inspector.as_deref();
        sound(inspect_held(
            inspector,
            handle,
            &self.file,
            wanted,
            &self.limits,
            control,
        )?)
    }

    fn open(&self, storage: StorageRef, format: &str, writable: bool) -> Result<Chain> {
        let env = OpenEnv {
            writable,
            ..OpenEnv::closed(&self.limits)
        };
        Ok(Chain::open(Node::new(storage, format).without_backing(), &env)?)
    }
}

/// A file whose bytes do not change any more.
enum Taken {
    /// In the pool under this name.
    There(String, StorageRef),
    /// Ours, under a temporary name.
    Fetched(NewFile),
}

impl Taken {
    fn storage(&self) -> StorageRef {
        match self {
            Self::There(_, storage) => storage.clone(),
            Self::Fetched(file) => file.storage(),
        }
    }

    /// Bytes that were copied to get it.
    fn fetched(&self) -> Result<u64> {
        match self {
            Self::There(..) => Ok(0),
            Self::Fetched(file) => Ok(file.storage().len()?),
        }
    }
}

/// A file that nothing speaks against. One that needs another is not an image yet.
fn sound(looked: Looked) -> Result<Looked> {
    let looked = looked.accepted()?;
    let Some((name, _)) = &looked.backing else {
        return Ok(looked);
    };
    let name = name.escape_debug();
    let public = format!("the file is an overlay on \"{name}\"; put both into the pool and scan it");
    Err(ServiceError::new(ErrorCode::Denied, public).with_field("source"))
}

struct Converting<'a> {
    opener: &'a Opener,
    source: Chain,
    target: String,
}

impl Fill for Converting<'_> {
    fn needs(&self, control: &Control) -> Result<u64> {
        space::for_copy(&self.source, &self.target, &Options::new(), false, control)
    }

    fn create(&self) -> Result<NewFile> {
        let spec = CreateSpec {
            virtual_size: self.source.virtual_size(),
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
        let target = self.opener.open(content(file), &self.target, true)?;
        let into = CopyTarget::fresh(target.top(), None)?;
        let options = CopyOptions {
            workers: self.opener.threads,
            ..CopyOptions::default()
        };
        Ok(convert_in_segments(&self.source, &into, &options, segments, control)?)
    }

    fn source(&self) -> &Chain {
        &self.source
    }

    fn result(&self, file: &NewFile) -> Result<Chain> {
        self.opener.open(file.storage(), &self.target, false)
    }
}
