//! Rekey: the key slots of an encrypted image, in place. The data is not touched.
//!
//! At every moment some key opens the image, and the secret that the image names is one of them: a new key is stable, and proved by
//! opening with it, before the inventory names it, and the inventory names it before the old one is erased. The slots to erase are
//! noted before the first one is emptied; an attempt that finds them noted empties what is left of them. A key that opens already
//! is not added again. The slots in use are noted before a key is added: a job that fails or is cancelled before the inventory names
//! the new key takes it away again. The format sees to it that each slot holds a key or is empty after a crash at any write.

mod foresee;
mod journal;

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vdisk_engine::crypto::luks::{EraseKeys, KdfCost, KeyEnv, KeyWork, NewKey};
use vdisk_engine::env::Secrets;
use vdisk_engine::image::KeySlots;
use vdisk_engine::ops::keys::opened_by;
use vdisk_engine::{Control, ErrorKind, Limits};

use self::journal::Journal;
use super::context::open_patiently;
use super::{Foreseen, Foresight, JobContext, JobRunner, parse, plan, roles};
use crate::disk::{Layer, OpenSecrets, Opening, file_facts, fill_random};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind, SecretId};
use crate::queue::{Done, Effect};
use crate::request::{KeyChange, RekeyRequest, SecretRefs};
use crate::service::Inner;
use crate::store::Tx;
use crate::store::jobs::NewJob;

/// Longest time that deriving a key may be asked to take, in milliseconds.
const MAX_ITER_TIME: u64 = 60_000;
/// The names that the secrets have inside the job.
const NEW: &str = "new";
const OLD: &str = "old";
const OWN: &str = "own";

/// Runs rekey jobs.
pub struct Rekey;

#[derive(Clone, Serialize, Deserialize)]
struct Payload {
    image: ImageId,
    /// Under which the image names its secret.
    role: String,
    /// The passphrase that opens the image now, where the work needs one.
    old: Option<SecretId>,
    request: RekeyRequest,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, id: ImageId, request: RekeyRequest) -> Result<NewJob> {
    check(&request)?;
    let chain = plan::ready_chain(tx, inner, id).await?;
    let top = chain.first().ok_or_else(|| ServiceError::not_found("image", id))?;
    plan::require_unprotected(top)?;
    let role = roles::key_role(&top.image.format)?.filter(|_| top.image.encrypted);
    let Some(role) = role else {
        return Err(ServiceError::new(
            ErrorCode::Unsupported,
            format!("image {id} is not encrypted: it has no keys"),
        ));
    };
    let own = top.image.secrets.get(role.option).copied();
    let old = match request.change {
        KeyChange::Add | KeyChange::Change => Some(request.old_secret.or(own).ok_or_else(|| {
            let public = format!("image {id} names no secret; name the one that opens it now as 'old_secret'");
            ServiceError::new(ErrorCode::SecretRequired, public).with_field("old_secret")
        })?),
        KeyChange::Erase => request.old_secret,
    };
    let named = [("new_secret", request.new_secret), ("old_secret", old)];
    for (field, secret) in named.into_iter().filter_map(|(field, secret)| Some((field, secret?))) {
        let found = inner.store.secret(secret).await;
        found.map_err(|error| error.with_field(field))?;
    }
    let payload = Payload {
        image: id,
        role: role.option.to_owned(),
        old,
        request: request.clone(),
    };
    let mut job = plan::new_job(JobKind::Rekey, &request, &payload)?;
    (job.images, job.locks) = (vec![id], plan::exclusive_top(&chain));
    job.pool = Some(top.image.pool.clone());
    job.priority = plan::priority(request.priority)?;
    Ok(job)
}

/// Refuses what does not belong together.
fn check(request: &RekeyRequest) -> Result<()> {
    let fills = request.change != KeyChange::Erase;
    let refused = |field: &str, public: &str| Err(ServiceError::invalid(field, public));
    if fills && request.new_secret.is_none() {
        return refused("new_secret", "name the secret that is to open the image");
    }
    if !fills && request.new_secret.is_some() {
        return refused("new_secret", "no new secret belongs to an erasure");
    }
    if !fills && (request.iter_time.is_some() || request.iterations.is_some()) {
        return refused("iter_time", "an erasure derives no key");
    }
    if !fills && request.slot.is_none() && request.old_secret.is_none() {
        return refused("slot", "name the key to erase: by 'slot', by 'old_secret' or by both");
    }
    if request.iter_time.is_some() && request.iterations.is_some() {
        return refused("iterations", "give 'iter_time' or 'iterations', not both");
    }
    if request
        .iter_time
        .is_some_and(|time| !(1..=MAX_ITER_TIME).contains(&time))
    {
        return refused("iter_time", "the time lies between 1 and 60000 milliseconds");
    }
    if request.new_secret.is_some() && request.new_secret == request.old_secret {
        return refused("new_secret", "the new secret and the old one are the same");
    }
    Ok(())
}

impl JobRunner for Rekey {
    fn kind(&self) -> JobKind {
        JobKind::Rekey
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    let layers = context.layers(payload.image).await?;
    let top = layers.first().ok_or_else(|| ServiceError::internal("no image"))?;
    let refs = [
        (NEW, payload.request.new_secret),
        (OLD, payload.old),
        (OWN, top.record.image.secrets.get(&payload.role).copied()),
    ];
    let refs: SecretRefs = refs
        .into_iter()
        .filter_map(|(name, id)| Some((name.to_owned(), id?)))
        .collect();
    let work = Work {
        secrets: context.secrets(&refs).await?,
        limits: context.inner.limits.clone(),
        journal: Journal::of(&context).await?,
        layers,
        payload,
    };
    context.step("opening the key slots").await?;
    context.require_lease().await?;
    // One piece on one thread: the file stays locked from the first look to the last change.
    context.blocking(move |control| work.run(control)).await
}

struct Work {
    layers: Vec<Layer>,
    payload: Payload,
    secrets: OpenSecrets,
    limits: Limits,
    journal: Journal,
}

impl Work {
    fn run(&self, control: &Control) -> Result<Done> {
        let layer = self.layers.first().ok_or_else(|| ServiceError::internal("no image"))?;
        let secrets = OpenSecrets::default();
        let opening = Opening {
            writable: &[0],
            top_only: true,
            metadata_only: true,
            ..Opening::read(&self.limits, &secrets)
        };
        let chain = open_patiently(&self.layers, &opening, control)?;
        let image = chain.top();
        let slots = image.key_slots().ok_or_else(|| image.cannot("change the keys of"))?;
        let (cancelled, elapsed) = (|| control.cancel_token().is_cancelled(), || self.secrets.elapsed());
        let work = KeyWork {
            limits: &self.limits,
            cancelled: &cancelled,
            elapsed: &elapsed,
        };
        let env = KeyEnv {
            work,
            random: &fill_random,
        };
        let to_the_end = KeyEnv {
            work: KeyWork {
                cancelled: &|| false,
                ..env.work
            },
            ..env
        };
        let (filled, doomed) = self.prepare(slots, &env).inspect_err(|_| {
            let undone = self.take_back(slots, &to_the_end);
            if let Err(error) = undone {
                tracing::warn!(image = %self.payload.image, %error, "a key that a failed job added was not taken away again");
            }
        })?;
        if let Some(doomed) = &doomed {
            self.erase(slots, doomed, &to_the_end)?;
        }
        image.close()?;
        let (id, erased) = (self.payload.image, doomed.unwrap_or_default());
        let result = json!({"image_id": id, "slot": filled, "erased": erased, "active_slots": active(slots)?});
        let facts = file_facts(image, &layer.pool, &layer.record.file)?;
        let changed = Effect::Changed {
            image: id,
            facts,
            new_content: false,
        };
        Ok(Done {
            result,
            effects: vec![changed],
            ..Done::default()
        })
    }

    fn secret(&self, name: &str) -> Option<&[u8]> {
        self.secrets.values.get(name).map(|value| value.as_slice())
    }

    /// All that comes before the first slot is erased: the slot that was filled, and the slots to erase, where some are.
    fn prepare(&self, slots: &dyn KeySlots, env: &KeyEnv<'_>) -> Result<(Option<u32>, Option<Vec<u32>>)> {
        let change = self.payload.request.change;
        let filled = match change {
            KeyChange::Erase => None,
            KeyChange::Add | KeyChange::Change => Some(self.fill(slots, env)?),
        };
        if change == KeyChange::Add {
            return Ok((filled, None));
        }
        let doomed = match self.journal.doomed() {
            Some(noted) => noted,
            None => self.choose(slots, &env.work)?,
        };
        self.journal.last_question()?;
        if change == KeyChange::Change {
            self.journal.rename(&self.payload)?;
        }
        Ok((filled, Some(doomed)))
    }

    /// Erases the key that this job added, if that can be undone. Nobody else fills slots meanwhile: the image is locked.
    fn take_back(&self, slots: &dyn KeySlots, env: &KeyEnv<'_>) -> Result<()> {
        let Some(before) = self.journal.undo(&self.payload)? else {
            return Ok(());
        };
        for slot in occupied(slots)?.iter().filter(|slot| !before.contains(slot)) {
            slots.erase(EraseKeys::Slot(*slot), false, env)?;
        }
        Ok(())
    }

    /// Sees to it that the new passphrase opens the image. Gives its slot.
    fn fill(&self, slots: &dyn KeySlots, env: &KeyEnv<'_>) -> Result<u32> {
        let request = &self.payload.request;
        let missing = || ServiceError::internal("the job has no such secret");
        let new = self.secret(NEW).ok_or_else(missing)?;
        let old = self.secret(OLD).ok_or_else(missing)?;
        if new == old {
            return Err(ServiceError::invalid(
                "new_secret",
                "the new passphrase and the old one are the same",
            ));
        }
        if let Some(slot) = first_opened(slots, new, request.slot, &env.work)? {
            return Ok(slot);
        }
        self.journal.step("adding the new key")?;
        self.journal.note_slots(&occupied(slots)?)?;
        let key = NewKey {
            passphrase: new,
            slot: request.slot,
            cost: cost(request),
            overwrite: false,
        };
        let slot = slots.add(old, &key, env)?;
        Ok(slots.test(new, Some(slot), &env.work)?)
    }

    /// Erases what is to be erased, to the end.
    fn erase(&self, slots: &dyn KeySlots, doomed: &[u32], env: &KeyEnv<'_>) -> Result<()> {
        self.journal.step("erasing the old key")?;
        self.journal.doom(doomed)?;
        for slot in doomed {
            // Forced: it was checked that this is wanted, and a slot that is empty by now was emptied by an earlier attempt.
            slots.erase(EraseKeys::Slot(*slot), true, env)?;
        }
        Ok(())
    }

    /// The slots to erase, by what was asked for.
    fn choose(&self, slots: &dyn KeySlots, work: &KeyWork<'_>) -> Result<Vec<u32>> {
        let request = &self.payload.request;
        let occupied = occupied(slots)?;
        let doomed = match (request.change, request.slot, self.secret(OLD)) {
            (KeyChange::Erase, Some(slot), None) => vec![slot],
            (KeyChange::Erase, Some(slot), Some(old)) => vec![slots.test(old, Some(slot), work)?],
            (_, _, Some(old)) => opened_by(slots, old, work)?,
            (_, _, None) => Vec::new(),
        };
        if let Some(empty) = doomed.iter().find(|slot| !occupied.contains(slot)) {
            return Err(ServiceError::invalid("slot", format!("key slot {empty} holds no key")));
        }
        if request.change == KeyChange::Change {
            return Ok(doomed); // The new key is another one, and stays.
        }
        if doomed.is_empty() {
            return Err(
                ServiceError::new(ErrorCode::WrongKey, "no key slot opens with this secret").with_field("old_secret"),
            );
        }
        if !request.force {
            self.refuse_losses(slots, &doomed, work)?;
        }
        Ok(doomed)
    }

    /// What nobody could undo is not done by mistake.
    fn refuse_losses(&self, slots: &dyn KeySlots, doomed: &[u32], work: &KeyWork<'_>) -> Result<()> {
        let lost = |slots: &[u32]| slots.iter().all(|slot| doomed.contains(slot));
        let active = active(slots)?;
        if lost(&active) {
            let public = "this would erase the last key and with it all data; set 'force' if that is what you want";
            return Err(ServiceError::invalid("force", public));
        }
        let Some(own) = self.secret(OWN) else { return Ok(()) };
        let mut opened = opened_by(slots, own, work)?;
        opened.retain(|slot| active.contains(slot));
        if !opened.is_empty() && lost(&opened) {
            let public = "the secret that the image names would not open it any more: name another one first, change the key, \
                or set 'force'";
            return Err(ServiceError::invalid("force", public));
        }
        Ok(())
    }
}

/// The slots whose key opens the image.
fn active(slots: &dyn KeySlots) -> Result<Vec<u32>> {
    let list = slots.list()?;
    let keys = list.iter().filter(|slot| slot.opens_data);
    Ok(keys.map(|slot| slot.number).collect())
}

/// The slots that something stands in.
fn occupied(slots: &dyn KeySlots) -> Result<Vec<u32>> {
    let list = slots.list()?;
    Ok(list.iter().filter(|slot| slot.active).map(|slot| slot.number).collect())
}

/// A slot that a passphrase opens: this one, or the first.
fn first_opened(slots: &dyn KeySlots, passphrase: &[u8], slot: Option<u32>, work: &KeyWork<'_>) -> Result<Option<u32>> {
    if slot.is_some_and(|slot| !active(slots).is_ok_and(|active| active.contains(&slot))) {
        return Ok(None);
    }
    match slots.test(passphrase, slot, work) {
        Ok(slot) => Ok(Some(slot)),
        Err(error) if error.kind() == ErrorKind::WrongKey => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn cost(request: &RekeyRequest) -> KdfCost {
    match (request.iter_time, request.iterations) {
        (_, Some(count)) => KdfCost::Iterations(count),
        (Some(time), None) => KdfCost::Time(Duration::from_millis(time)),
        (None, None) => KdfCost::default(),
    }
}
