//! Rotation of the master key: every sealed value anew under the key to come.
//!
//! The database is told first which key seals from now on, so that what is stored meanwhile needs no second look. Both keys open
//! until the last value is sealed anew; each step can be done again, and an attempt goes on where the one before ended.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Foreseen, Foresight, JobContext, JobRunner, parse, plan};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::model::JobKind;
use crate::queue::Done;
use crate::request::RotateMasterKeyRequest;
use crate::secrets::not_at_hand;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::jobs::NewJob;
use crate::store::sealing::Sealed;

/// Values sealed anew in one transaction.
const BATCH: u32 = 100;

/// Runs rotations of the master key.
pub struct RotateMasterKey;

#[derive(Serialize, Deserialize)]
struct Payload {
    /// The master key to come.
    key_id: String,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, request: RotateMasterKeyRequest) -> Result<NewJob> {
    if let Some(job) = tx.open_job_of(JobKind::RotateMasterKey).await? {
        let public = format!("job {job} rotates the master key already");
        return Err(ServiceError::new(ErrorCode::JobStateConflict, public));
    }
    let payload = Payload {
        key_id: inner.vault.next_key()?,
    };
    let mut job = plan::new_job(JobKind::RotateMasterKey, &request, &payload)?;
    job.priority = plan::priority(request.priority)?;
    Ok(job)
}

impl JobRunner for RotateMasterKey {
    fn kind(&self) -> JobKind {
        JobKind::RotateMasterKey
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    /// The database is changed, no image.
    fn foresee(&self, _foresight: Foresight, _payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        async { Ok(Foreseen::of_no_image()) }.boxed()
    }
}

async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    let key_id = payload.key_id;
    if !context.inner.vault.has(&key_id) {
        return Err(not_at_hand(&key_id));
    }
    context.step(&format!("sealing under master key {key_id}")).await?;
    let mut tx = context.begin().await?;
    tx.set_sealing_key(&key_id).await?;
    tx.commit_as(Step::MakeMasterKey).await?;
    let mut resealed = 0_u64;
    for what in Sealed::ALL {
        let mut after = Uuid::nil();
        while let Some((last, count)) = reseal(&context, what, &key_id, after).await? {
            (after, resealed) = (last, resealed + count);
        }
    }
    context.step("putting the new master key in place").await?;
    context.require_lease().await?;
    let (inner, id) = (context.inner.clone(), key_id.clone());
    context.blocking(move |_| inner.vault.finish_rotation(&id)).await?;
    Ok(Done {
        result: json!({"key_id": key_id, "resealed": resealed}),
        ..Done::default()
    })
}

/// Seals the next values anew. Gives the last one's id and how many there were; `None` when there are none any more.
async fn reseal(context: &JobContext, what: Sealed, key_id: &str, after: Uuid) -> Result<Option<(Uuid, u64)>> {
    context.require_lease().await?;
    let vault = &context.inner.vault;
    let mut tx = context.begin().await?;
    let values = tx.sealed_otherwise(what, key_id, after, BATCH).await?;
    for (id, sealed) in &values {
        let value = vault.open_secret(*id, sealed)?;
        tx.reseal(what, *id, &vault.seal(Some(key_id), *id, &value)?).await?;
    }
    tx.commit_as(Step::CreateSecret).await?;
    let count = u64::try_from(values.len()).unwrap_or(u64::MAX);
    Ok(values.last().map(|(id, _)| (*id, count)))
}
