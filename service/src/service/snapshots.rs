use std::sync::Arc;

use serde_json::json;
use vdisk_engine::Image as EngineImage;
use vdisk_engine::image::SnapshotInfo;

use super::background::blocking;
use super::locks::RequestLocks;
use super::{Inner, Service};
use crate::clock::Timestamp;
use crate::disk::{Layer, OpenSecrets, Opening, file_facts, find_snapshot, open_chain};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::jobs::{ChangeRequest, changed_by_then, require_ready, require_unprotected, to_change};
use crate::model::{Image, ImageId, Snapshot};
use crate::pool::check_image_name;
use crate::request::Call;
use crate::store::idempotency::{IdempotentRequest, Outcome};
use crate::store::locks::LockMode;

/// A change of an image's snapshots: the name of a new one, or what a request calls one that is there and, once that is known, its id.
enum Change {
    Create(String),
    Delete(String),
    Apply(String),
}

impl Service {
    /// The image's internal snapshots, oldest first.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `unsupported` (format).
    pub async fn snapshots(&self, id: ImageId) -> Result<Vec<Snapshot>> {
        let layers = self.readable(id).await?;
        let limits = self.inner.limits.clone();
        blocking(move || Ok(table(&layers, &limits)?.into_iter().map(snapshot).collect())).await
    }

    /// One of them: the one of that name or, where none has it, of that id.
    ///
    /// # Errors
    /// As [`Service::snapshots`].
    pub async fn snapshot(&self, id: ImageId, word: &str) -> Result<Snapshot> {
        let layers = self.readable(id).await?;
        let (limits, word) = (self.inner.limits.clone(), word.to_owned());
        blocking(move || {
            let found = find_snapshot(&table(&layers, &limits)?, &word).cloned();
            found.map(snapshot).ok_or_else(|| missing(&word))
        })
        .await
    }

    /// Takes a snapshot of the image's present content.
    ///
    /// # Errors
    /// As [`Service::snapshots`]; `invalid_name`, `name_taken`, `image_protected`, `base_changed`, `insufficient_storage`,
    /// `idempotency_conflict`.
    pub async fn create_snapshot(&self, id: ImageId, name: &str, call: &Call) -> Result<Snapshot> {
        check_image_name(name)?;
        let key = call.bind("create_snapshot", &id.to_string(), &json!({"name": name}))?;
        let change = Change::Create(name.to_owned());
        let snapshots = match self.change_snapshots(id, change, key).await? {
            Some(snapshots) => snapshots,
            None => self.snapshots(id).await?,
        };
        let taken = snapshots.into_iter().rev().find(|snapshot| snapshot.name == name);
        taken.ok_or_else(|| missing(name))
    }

    /// Deletes a snapshot, named by its name or, where none has that name, by its id.
    ///
    /// # Errors
    /// As [`Service::snapshots`]; `image_protected`, `base_changed`.
    pub async fn delete_snapshot(&self, id: ImageId, name: &str) -> Result<()> {
        self.change_snapshots(id, Change::Delete(name.to_owned()), None)
            .await
            .map(drop)
    }

    /// Makes the image's content what the snapshot holds; what was there since is lost. A snapshot is named as in
    /// [`Service::delete_snapshot`].
    ///
    /// # Errors
    /// As [`Service::snapshots`]; `conflict_dependents`, `image_protected`, `idempotency_conflict`.
    pub async fn apply_snapshot(&self, id: ImageId, name: &str, call: &Call) -> Result<Image> {
        let key = call.bind("apply_snapshot", &id.to_string(), &json!({"name": name}))?;
        self.change_snapshots(id, Change::Apply(name.to_owned()), key).await?;
        self.image(id).await
    }

    /// The snapshots afterwards; `None` when the same request was carried out before.
    async fn change_snapshots(
        &self,
        id: ImageId,
        change: Change,
        key: Option<IdempotentRequest>,
    ) -> Result<Option<Vec<Snapshot>>> {
        let inner = self.inner.clone();
        self.to_the_end(async move { run(&inner, id, change, key).await }).await
    }
}

async fn run(
    inner: &Arc<Inner>,
    id: ImageId,
    change: Change,
    key: Option<IdempotentRequest>,
) -> Result<Option<Vec<Snapshot>>> {
    let locks = RequestLocks::new(inner);
    let new_content = matches!(change, Change::Apply(_));
    let mut tx = inner.store.begin().await?;
    let begun = match tx.recall(key.as_ref()).await? {
        None => None,
        Some(Outcome::Overtaken(..)) if new_content => return Err(ChangeRequest::overtaken()),
        Some(Outcome::Begun(_, at) | Outcome::Overtaken(_, at)) => Some(at),
        Some(_) => return Ok(None),
    };
    let record = tx.image(id).await?;
    require_ready(&record)?;
    require_unprotected(&record)?;
    if new_content {
        tx.require_free_of_dependents(id, &[]).await?;
    }
    locks.take(&mut tx, &[(id, LockMode::Exclusive)]).await?;
    tx.commit_as(Step::BeginSnapshot).await?;
    let (locks, resolved) = locks.with(resolve(inner, id, change, begun).await).await?;
    let Some((layers, change)) = resolved else {
        let mut tx = locks.begin().await?;
        tx.remember_again(key.as_ref(), Outcome::Image(id)).await?;
        locks.release_and_commit(tx, Step::RecordSnapshot).await?;
        return Ok(None);
    };
    let request = ChangeRequest {
        key,
        at: inner.store.now(),
        new_content,
        again: begun.is_some(),
    };
    let layers = to_change(inner, layers, &locks.begins(), Some(&request));
    let (limits, at) = (inner.limits.clone(), request.at);
    let changed = blocking(move || apply(&layers, &change, &limits, at)).await;
    let left = match &changed {
        Ok(_) => Vec::new(),
        Err(_) => changed_by_then(inner, locks.id).await?,
    };
    let mut tx = locks.begin().await?;
    let snapshots = match changed {
        Ok((snapshots, facts)) => {
            // New content came on record with the first write.
            tx.record_change(id, &facts, false).await?;
            tx.remember_again(request.key.as_ref(), Outcome::Image(id)).await?;
            Ok(Some(snapshots))
        }
        Err(error) => {
            for (image, found) in &left {
                tx.close_change(*image, found.as_ref()).await?;
            }
            Err(error)
        }
    };
    locks.release_and_commit(tx, Step::RecordSnapshot).await?;
    snapshots
}

/// What is to be changed, with the id of the snapshot that is meant, before anything is; `None` where the request took the snapshot that it
/// asks for when it was begun.
async fn resolve(
    inner: &Arc<Inner>,
    id: ImageId,
    change: Change,
    begun: Option<Timestamp>,
) -> Result<Option<(Vec<Layer>, Change)>> {
    let layers = inner.layers(id).await?;
    let limits = inner.limits.clone();
    blocking(move || {
        let list = table(&layers, &limits)?;
        let meant = |word: &str| {
            let found = find_snapshot(&list, word).map(|found| found.id.clone());
            found.ok_or_else(|| missing(word))
        };
        let change = match change {
            Change::Create(name) => match find_snapshot(&list, &name) {
                None => Change::Create(name),
                Some(found) if begun.is_some_and(|at| found.name == name && taken_at(found) == at) => return Ok(None),
                Some(_) => {
                    let public = format!("the image has a snapshot '{name}' already");
                    return Err(ServiceError::new(ErrorCode::NameTaken, public).with_field("name"));
                }
            },
            Change::Delete(word) => Change::Delete(meant(&word)?),
            Change::Apply(word) => Change::Apply(meant(&word)?),
        };
        Ok(Some((layers, change)))
    })
    .await
}

fn apply(
    layers: &[Layer],
    change: &Change,
    limits: &vdisk_engine::Limits,
    now: Timestamp,
) -> Result<(Vec<Snapshot>, crate::store::images::FileFacts)> {
    let layer = layers.first().ok_or_else(|| ServiceError::internal("no image"))?;
    let secrets = OpenSecrets::default();
    let opening = Opening {
        top_only: true,
        writable: &[0],
        ..Opening::read(limits, &secrets)
    };
    let chain = open_chain(layers, &opening)?;
    let image: &dyn EngineImage = chain.top();
    let table = image.snapshots().ok_or_else(|| unsupported(image))?;
    match change {
        Change::Create(name) => {
            let millis = u64::try_from(now.0).unwrap_or(0);
            let nanos = u32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
            table.create(name, (millis / 1000, nanos))?;
        }
        Change::Delete(id) => table.delete(id)?,
        Change::Apply(id) => table.apply(id)?,
    }
    image.close()?;
    let facts = file_facts(image, &layer.pool, &layer.record.file)?;
    Ok((table.list()?.into_iter().map(snapshot).collect(), facts))
}

/// The snapshots of the first of these layers.
fn table(layers: &[Layer], limits: &vdisk_engine::Limits) -> Result<Vec<SnapshotInfo>> {
    let secrets = OpenSecrets::default();
    let opening = Opening {
        top_only: true,
        metadata_only: true,
        ..Opening::read(limits, &secrets)
    };
    let chain = open_chain(layers, &opening)?;
    let table = chain.top().snapshots().ok_or_else(|| unsupported(chain.top()))?;
    Ok(table.list()?)
}

fn missing(word: &str) -> ServiceError {
    ServiceError::no_such_name("snapshot", word.escape_debug())
}

fn taken_at(found: &SnapshotInfo) -> Timestamp {
    let seconds = i64::try_from(found.date_sec).unwrap_or(i64::MAX / 1000);
    let millis = i64::from(found.date_nsec / 1_000_000);
    Timestamp(seconds.saturating_mul(1000).saturating_add(millis))
}

fn snapshot(found: SnapshotInfo) -> Snapshot {
    Snapshot {
        created_at: taken_at(&found),
        id: found.id,
        name: found.name,
        vm_state_size: found.vm_state_size,
        virtual_size: Some(found.virtual_size).filter(|size| *size > 0),
    }
}

fn unsupported(image: &dyn EngineImage) -> ServiceError {
    let public = format!("images of format '{}' have no internal snapshots", image.format());
    ServiceError::new(ErrorCode::Unsupported, public)
}
