//! How many jobs work at once. One that is held on its way lends its slot to others, and needs one again to go on.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::JobControl;

/// How many jobs for each worker may be held with their slots lent: each keeps its threads, its memory and its files.
const HELD: usize = 4;

/// The right to work.
pub type Slot = OwnedSemaphorePermit;

/// The slots of a process.
#[derive(Clone)]
pub struct Slots {
    free: Arc<Semaphore>,
    may_be_lent: Arc<Semaphore>,
}

impl Slots {
    /// So many jobs at once.
    pub fn new(workers: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(workers)),
            may_be_lent: Arc::new(Semaphore::new(workers.saturating_mul(HELD))),
        }
    }

    /// The next slot that is free.
    pub async fn take(&self) -> Slot {
        take(&self.free).await
    }

    /// Lends the slot of a job whenever it is held. Does not end by itself.
    pub async fn lend(&self, control: &JobControl, slot: &mut Option<Slot>) -> Infallible {
        loop {
            control.until_held().await;
            let lent = tokio::select! {
                lent = take(&self.may_be_lent) => lent,
                () = control.until_wanted() => continue,
            };
            control.lend();
            *slot = None;
            control.until_wanted().await;
            *slot = Some(self.take().await);
            drop(lent);
            control.admit();
        }
    }
}

async fn take(slots: &Arc<Semaphore>) -> Slot {
    match slots.clone().acquire_owned().await {
        Ok(slot) => slot,
        // Nobody closes them.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vdisk_engine::Progress;

    use super::*;
    use crate::store::jobs::{Wish, Wishes};

    fn wishes(wish: Wish) -> Wishes {
        Wishes { wish, rate_limit: None }
    }

    async fn soon<T>(what: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(Duration::from_millis(200), what).await.ok()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_held_job_lends_its_slot_and_waits_for_one_to_go_on() {
        let slots = Slots::new(1);
        let control = JobControl::new(wishes(Wish::Pause));
        let mut slot = Some(slots.take().await);
        let (lender, lending) = (slots.clone(), control.clone());
        let lending = tokio::spawn(async move { lender.lend(&lending, &mut slot).await });
        assert!(soon(slots.take()).await.is_none(), "nothing of it waits yet");
        let worker = control.clone();
        let thread = tokio::task::spawn_blocking(move || worker.pace(1));
        let others = soon(slots.take()).await.unwrap();
        control.wish(wishes(Wish::Run));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!thread.is_finished(), "it goes on without a slot");
        drop(others);
        thread.await.unwrap();
        assert!(soon(slots.take()).await.is_none());
        lending.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_so_many_slots_are_lent() {
        let slots = Slots::new(1);
        let mut held = Vec::new();
        for number in 0..=HELD {
            let mut slot = soon(slots.take()).await;
            assert!(slot.is_some(), "slot {number} was not lent");
            let control = JobControl::new(wishes(Wish::Pause));
            let (lender, lending, worker) = (slots.clone(), control.clone(), control.clone());
            held.push(control);
            tokio::task::spawn_blocking(move || worker.pace(1));
            tokio::spawn(async move { lender.lend(&lending, &mut slot).await });
        }
        assert!(soon(slots.take()).await.is_none());
        for control in held {
            control.wish(wishes(Wish::Cancel));
        }
    }
}
