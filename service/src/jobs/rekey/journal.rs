//! What the work notes on its way, so that it can be ended, or undone, whenever it stops.

use std::cell::RefCell;

use tokio::runtime::Handle;

use super::Payload;
use crate::error::{Result, ServiceError};
use crate::jobs::JobContext;
use crate::store::jobs::JournalEntry;

/// The notes of the job, from the thread that does the work.
pub(super) struct Journal {
    context: JobContext,
    runtime: Handle,
    entry: RefCell<JournalEntry>,
}

impl Journal {
    /// With what the attempt before this one noted.
    pub(super) async fn of(context: &JobContext) -> Result<Self> {
        Ok(Self {
            entry: RefCell::new(context.journal().await?),
            context: context.clone(),
            runtime: Handle::current(),
        })
    }

    pub(super) fn step(&self, text: &str) -> Result<()> {
        self.runtime.block_on(self.context.step(text))
    }

    fn note(&self, change: impl FnOnce(&mut JournalEntry)) -> Result<()> {
        let mut entry = self.entry.borrow().clone();
        change(&mut entry);
        self.runtime.block_on(self.context.keep(&entry))?;
        self.entry.replace(entry);
        Ok(())
    }

    /// Notes the slots in use before a key is added. What an earlier attempt noted stands.
    pub(super) fn note_slots(&self, occupied: &[u32]) -> Result<()> {
        if self.entry.borrow().slots_before.is_some() {
            return Ok(());
        }
        self.note(|entry| entry.slots_before = Some(occupied.to_vec()))
    }

    /// The slots that an earlier attempt had begun to erase.
    pub(super) fn doomed(&self) -> Option<Vec<u32>> {
        self.entry.borrow().erasing.clone()
    }

    /// Whether the job is still ours and still wanted: from here on it is not cancelled any more.
    pub(super) fn last_question(&self) -> Result<()> {
        self.runtime.block_on(self.context.require_lease())
    }

    /// Notes the slots that will be erased: from here on there is no way back.
    pub(super) fn doom(&self, slots: &[u32]) -> Result<()> {
        self.note(|entry| entry.erasing = Some(slots.to_vec()))
    }

    pub(super) fn rename(&self, payload: &Payload) -> Result<()> {
        let (Some(old), Some(new)) = (payload.old, payload.request.new_secret) else {
            return Ok(());
        };
        self.runtime
            .block_on(self.context.name_secret(payload.image, &payload.role, old, new))
    }

    /// The slots in use before this job added a key, if that can still be undone: not once the image names the new secret, or slots are
    /// being erased.
    ///
    /// # Errors
    /// `lease_lost`: another attempt goes on from here.
    pub(super) fn undo(&self, payload: &Payload) -> Result<Option<Vec<u32>>> {
        let entry = self.entry.borrow();
        let Some(before) = entry.slots_before.clone().filter(|_| entry.erasing.is_none()) else {
            return Ok(None);
        };
        self.step("taking the new key away again")?;
        let layers = self.runtime.block_on(self.context.layers(payload.image))?;
        let top = layers.first().ok_or_else(|| ServiceError::internal("no image"))?;
        let named = top.record.image.secrets.get(&payload.role).copied();
        Ok((named != payload.request.new_secret).then_some(before))
    }
}
