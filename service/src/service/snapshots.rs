use std::sync::Arc;

use serde_json::json;
use vdisk_engine::image::SnapshotInfo;
use vdisk_engine::{Chain, Image as EngineImage};

use super::background::blocking;
use super::locks::RequestLocks;
use super::{Inner, Service};
use crate::clock::Timestamp;
use crate::disk::{Layer, OpenSecrets, Opening, file_facts, open_chain};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::jobs::{require_ready, require_unprotected};
use crate::model::{Image, ImageId, Snapshot};
use crate::pool::check_image_name;
use crate::request::Call;
use crate::store::locks::LockMode;

/// A change of an image's snapshots.
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
        blocking(move || {
            let secrets = OpenSecrets::default();
            let opening = Opening {
                top_only: true,
                metadata_only: true,
                ..Opening::read(&limits, &secrets)
            };
            list(&open_chain(&layers, &opening)?)
        })
        .await
    }

    /// Takes a snapshot of the image's present content. Without effect on the answer, `call` is there for symmetry: a
    /// second request of the same name is refused with `name_taken`.
    ///
    /// # Errors
    /// As [`Service::snapshots`]; `invalid_name`, `name_taken`, `image_protected`, `insufficient_storage`.
    pub async fn create_snapshot(&self, id: ImageId, name: &str, call: &Call) -> Result<Snapshot> {
        check_image_name(name)?;
        call.bind("create_snapshot", &id.to_string(), &json!({"name": name}))?;
        let snapshots = self.change_snapshots(id, Change::Create(name.to_owned())).await?;
        let taken = snapshots.into_iter().rev().find(|snapshot| snapshot.name == name);
        taken.ok_or_else(|| ServiceError::internal("the new snapshot is not in the image's table"))
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// As [`Service::snapshots`]; `image_protected`.
    pub async fn delete_snapshot(&self, id: ImageId, name: &str) -> Result<()> {
        self.change_snapshots(id, Change::Delete(name.to_owned()))
            .await
            .map(drop)
    }

    /// Makes the image's content what the snapshot holds; what was there since is lost. Doing it again changes nothing.
    ///
    /// # Errors
    /// As [`Service::snapshots`]; `conflict_dependents`, `image_protected`.
    pub async fn apply_snapshot(&self, id: ImageId, name: &str, call: &Call) -> Result<Image> {
        call.bind("apply_snapshot", &id.to_string(), &json!({"name": name}))?;
        self.change_snapshots(id, Change::Apply(name.to_owned())).await?;
        self.image(id).await
    }

    async fn change_snapshots(&self, id: ImageId, change: Change) -> Result<Vec<Snapshot>> {
        let inner = self.inner.clone();
        self.to_the_end(async move { run(&inner, id, change).await }).await
    }
}

async fn run(inner: &Arc<Inner>, id: ImageId, change: Change) -> Result<Vec<Snapshot>> {
    let locks = RequestLocks::new(inner);
    let new_content = matches!(change, Change::Apply(_));
    let mut tx = inner.store.begin().await?;
    let record = tx.image(id).await?;
    require_ready(&record)?;
    require_unprotected(&record)?;
    if new_content {
        tx.require_free_of_dependents(id, &[]).await?;
    }
    locks.take(&mut tx, &[(id, LockMode::Exclusive)]).await?;
    // Between here and the record of what came out, what the file looks like is open.
    tx.forget_stamps(locks.id).await?;
    tx.commit_as(Step::BeginSnapshot).await?;
    let layers = inner.layers(id).await?;
    let (limits, now) = (inner.limits.clone(), inner.store.now());
    let changed = blocking(move || apply(&layers, &change, &limits, now)).await;
    let mut tx = inner.store.begin().await?;
    let snapshots = match changed {
        Ok((snapshots, facts)) => {
            tx.record_change(id, &facts, new_content).await?;
            Ok(snapshots)
        }
        Err(error) => Err(error),
    };
    locks.release_and_commit(tx, Step::RecordSnapshot).await?;
    snapshots
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
    let exists = |name: &str| Ok::<_, ServiceError>(table.list()?.iter().any(|s| s.name == name || s.id == name));
    match change {
        Change::Create(name) => {
            if exists(name)? {
                let public = format!("the image has a snapshot '{name}' already");
                return Err(ServiceError::new(ErrorCode::NameTaken, public).with_field("name"));
            }
            let millis = u64::try_from(now.0).unwrap_or(0);
            let nanos = u32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
            table.create(name, (millis / 1000, nanos))?;
        }
        Change::Delete(name) | Change::Apply(name) if !exists(name)? => {
            return Err(ServiceError::not_found("snapshot", name.escape_debug()));
        }
        Change::Delete(name) => table.delete(name)?,
        Change::Apply(name) => table.apply(name)?,
    }
    image.close()?;
    let facts = file_facts(image, &layer.pool, &layer.record.file)?;
    Ok((list(&chain)?, facts))
}

fn list(chain: &Chain) -> Result<Vec<Snapshot>> {
    let table = chain.top().snapshots().ok_or_else(|| unsupported(chain.top()))?;
    Ok(table.list()?.into_iter().map(snapshot).collect())
}

fn snapshot(found: SnapshotInfo) -> Snapshot {
    let seconds = i64::try_from(found.date_sec).unwrap_or(i64::MAX / 1000);
    Snapshot {
        id: found.id,
        name: found.name,
        created_at: Timestamp(
            seconds
                .saturating_mul(1000)
                .saturating_add(i64::from(found.date_nsec / 1_000_000)),
        ),
        vm_state_size: found.vm_state_size,
        virtual_size: Some(found.virtual_size).filter(|size| *size > 0),
    }
}

fn unsupported(image: &dyn EngineImage) -> ServiceError {
    let public = format!("images of format '{}' have no internal snapshots", image.format());
    ServiceError::new(ErrorCode::Unsupported, public)
}
