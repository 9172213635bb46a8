//! Scan: files found in a pool become images, with their chains.

mod foresee;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;
use vdisk_engine::{Control, Limits};

use super::context::pool_of;
use super::{Foreseen, Foresight, JobContext, JobRunner, parse, plan};
use crate::disk::{Layer, Look, OpenSecrets, look_at_base};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{JobKind, Labels};
use crate::pool::{Access, FileName, PoolFolder, check_file_length, check_image_name};
use crate::queue::{ChangedBase, Done, Effect, NamedBase, skipped};
use crate::sandbox::inspect;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::{FileFacts, ImageRecord, NewImage, Origin};
use crate::store::jobs::NewJob;

/// Runs scan jobs.
pub struct Scan;

#[derive(Serialize, Deserialize)]
struct Payload {
    pool: String,
}

/// Makes a job of a request to scan a pool.
pub async fn plan(_tx: &mut Tx, inner: &Inner, pool: &str) -> Result<NewJob> {
    pool_of(inner, pool)?;
    let payload = Payload { pool: pool.to_owned() };
    let mut job = plan::new_job(JobKind::Scan, &json!({"pool": pool}), &payload)?;
    job.pool = Some(pool.to_owned());
    Ok(job)
}

impl JobRunner for Scan {
    fn kind(&self) -> JobKind {
        JobKind::Scan
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    let pool = pool_of(&context.inner, &payload.pool)?;
    let records = context.inner.store.pool_records(&payload.pool).await?;
    context.step("looking for files").await?;
    let scanner = Scanner::new(pool, records, &context.inner);
    context.blocking(move |control| scanner.run(control)).await
}

/// Whether a file may become an image: it is shown, and none yet, nor about to be one.
fn is_candidate(file: &str, records: &[ImageRecord]) -> bool {
    let made = match FileName::parse(file) {
        FileName::Foreign => None,
        FileName::Published(image) => Some(image),
        _ => return false,
    };
    let known = |record: &ImageRecord| record.file == file || Some(record.image.id) == made;
    !records.iter().any(known)
}

struct Scanner {
    pool: Arc<PoolFolder>,
    records: Vec<ImageRecord>,
    limits: Limits,
    inspector: Option<PathBuf>,
    found: BTreeMap<String, Found>,
    registered: Vec<Value>,
    skipped: Vec<Value>,
    effects: Vec<Effect>,
    /// Formats of bases by file: those on record and those registered in this run.
    bases: BTreeMap<String, String>,
}

struct Found {
    /// The base that its header names, with the format claimed for it.
    backing: Option<(String, Option<String>)>,
    facts: FileFacts,
}

impl Scanner {
    fn new(pool: Arc<PoolFolder>, records: Vec<ImageRecord>, inner: &Inner) -> Self {
        let known = records.iter().filter(|record| record.reserved_by.is_none());
        let bases = known.map(|r| (r.file.clone(), r.image.format.clone())).collect();
        let (found, registered, skipped, effects) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
        Self {
            pool,
            records,
            limits: inner.limits.clone(),
            inspector: inner.config.inspector.clone(),
            found,
            registered,
            skipped,
            effects,
            bases,
        }
    }

    fn run(mut self, control: &Control) -> Result<Done> {
        for file in self.pool.file_names()? {
            control.check_cancelled()?;
            if !is_candidate(&file, &self.records) {
                continue;
            }
            match self.look_at(&file, control) {
                Ok(found) => drop(self.found.insert(file, found)),
                Err(error) => self.skip(&file, &error),
            }
        }
        self.register_in_order();
        for (name, why) in self.pool.others()? {
            self.skip(&name, &why);
        }
        let result = json!({"registered": self.registered, "skipped": self.skipped});
        Ok(Done {
            result,
            effects: self.effects,
            ..Done::default()
        })
    }

    fn look_at(&self, file: &str, control: &Control) -> Result<Found> {
        check_file_length(file)?;
        let handle = self.pool.open_file(file, Access::Read)?;
        let wanted = Look {
            claimed: None,
            check: false,
            strict: true,
        };
        let inspector = self.inspector.as_deref();
        let looked = inspect(inspector, handle, file, &wanted, &self.limits, control)?.accepted()?;
        let facts = looked.facts(&self.pool, file)?;
        Ok(Found {
            backing: looked.backing,
            facts,
        })
    }

    fn skip(&mut self, file: &str, error: &ServiceError) {
        self.skipped.push(skipped(file, error));
    }

    /// Bases first: each round takes what stands alone or on what is registered. What is left hangs in the air.
    fn register_in_order(&mut self) {
        loop {
            let ready = |found: &Found| match &found.backing {
                None => true,
                Some((name, _)) => self.bases.contains_key(self.file_named(name)),
            };
            let files: Vec<String> = self
                .found
                .iter()
                .filter(|(_, f)| ready(f))
                .map(|(file, _)| file.clone())
                .collect();
            if files.is_empty() {
                break;
            }
            for file in files {
                if let Some(found) = self.found.remove(&file) {
                    self.register(file, found);
                }
            }
        }
        let dangling: BTreeSet<String> = self.found.keys().cloned().collect();
        for file in dangling {
            let public = "its base is not in the pool, or the chain comes back to itself";
            self.skip(&file, &ServiceError::new(ErrorCode::Denied, public));
        }
    }

    /// A backing name as a file of this pool: the same folder, said in one of three ways.
    fn file_named<'a>(&self, name: &'a str) -> &'a str {
        let inside = self
            .pool
            .path()
            .to_str()
            .and_then(|path| name.strip_prefix(path)?.strip_prefix('/'));
        inside.or_else(|| name.strip_prefix("./")).unwrap_or(name)
    }

    /// A base on record may be another by now, and one that cannot be read is none.
    fn look_at_base(&self, named: NamedBase) -> Result<NamedBase> {
        let on_record = |found: &dyn Fn(&ImageRecord) -> bool| self.records.iter().find(|record| found(record));
        let Some(base) = on_record(&|record| record.file == named.file) else {
            return Ok(named);
        };
        let below = |above: &&ImageRecord| {
            let base = above.image.backing_id?;
            on_record(&|record| record.image.id == base)
        };
        let layers: Vec<Layer> = std::iter::successors(Some(base), below)
            .map(|record| Layer {
                record: record.clone(),
                pool: self.pool.clone(),
                keys: OpenSecrets::default(),
                first_write: None,
            })
            .collect();
        let known = (base.image.generation, base.file_stamp.clone());
        let facts = look_at_base(&layers, &self.limits)?;
        let changed = facts.map(|facts| ChangedBase { known, facts });
        Ok(NamedBase { changed, ..named })
    }

    fn register(&mut self, file: String, found: Found) {
        let named = found.backing.map(|(name, format)| NamedBase {
            file: self.file_named(&name).to_owned(),
            name,
            format,
            changed: None,
        });
        let base = match named.map(|named| self.look_at_base(named)).transpose() {
            Ok(base) => base,
            Err(error) => return self.skip(&file, &error),
        };
        let known = base
            .as_ref()
            .and_then(|named| Some((named, self.bases.get(&named.file)?)));
        if let Some((named, format)) = known
            && named.format.as_ref().is_some_and(|claimed| claimed != format)
        {
            let public = "the format it claims for its base is not the base's";
            return self.skip(&file, &ServiceError::new(ErrorCode::FormatMismatch, public));
        }
        let id = Uuid::now_v7();
        let name = image_name(&file);
        let format = found.facts.format.clone();
        self.registered
            .push(json!({"image_id": id, "file": file, "format": format}));
        self.bases.insert(file.clone(), format.clone());
        let new = NewImage {
            id,
            name,
            pool: self.pool.name().to_owned(),
            file,
            format,
            labels: Labels::new(),
            secrets: Default::default(),
            backing: None,
            origin: Origin::ReservedBy(id),
        };
        self.effects.push(Effect::Registered {
            pool: self.pool.clone(),
            new: Box::new(new),
            base,
            facts: found.facts,
        });
    }
}

/// A file's name as the name of an image: what is not allowed becomes `_`.
fn image_name(file: &str) -> String {
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = file.chars().map(allowed).take(128).collect();
    if check_image_name(&name).is_ok() {
        name
    } else {
        format!("_{name}").chars().take(128).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_file_name_becomes_an_image_name() {
        for (file, name) in [
            ("a.qcow2", "a.qcow2"),
            ("my disk.raw", "my_disk.raw"),
            ("-x", "_-x"),
            ("日本", "__"),
        ] {
            assert_eq!(image_name(file), name);
            assert!(check_image_name(&image_name(file)).is_ok());
        }
    }
}
