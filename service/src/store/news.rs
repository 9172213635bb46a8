//! Who waits for changes is woken by the commits that matter to it, and by no others: looking again costs more than the change did.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{Store, Tx};
use crate::model::JobId;

/// What becomes different when a write transaction of this process has ended.
#[derive(Default)]
pub(super) struct News {
    events: watch::Sender<u64>,
    queue: watch::Sender<u64>,
    jobs: Mutex<HashMap<JobId, watch::Sender<u64>>>,
}

/// What a transaction will have changed.
#[derive(Default)]
pub(super) struct Touched {
    /// It appended events.
    pub(super) events: bool,
    /// A worker may find something to do.
    pub(super) queue: bool,
    /// Jobs that a client sees as different.
    pub(super) jobs: Vec<JobId>,
}

impl News {
    /// Wakes who waits for any of this.
    pub(super) fn tell(&self, touched: &Touched) {
        if touched.events {
            count_on(&self.events);
        }
        if touched.queue {
            count_on(&self.queue);
        }
        let jobs = self.jobs();
        touched.jobs.iter().filter_map(|job| jobs.get(job)).for_each(count_on);
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<u64>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count_on(news: &watch::Sender<u64>) {
    news.send_modify(|count| *count = count.wrapping_add(1));
}

impl Store {
    /// Becomes different when events were appended: those of a job, or any.
    pub fn new_events(&self, job: Option<JobId>) -> watch::Receiver<u64> {
        match job {
            Some(job) => self.changes_of(job),
            None => self.news.events.subscribe(),
        }
    }

    /// Becomes different when a job came that a worker may take.
    pub fn new_work(&self) -> watch::Receiver<u64> {
        self.news.queue.subscribe()
    }

    /// Becomes different when the job did.
    pub fn changes_of(&self, job: JobId) -> watch::Receiver<u64> {
        let mut jobs = self.news.jobs();
        jobs.retain(|_, waiting| waiting.receiver_count() > 0);
        jobs.entry(job).or_default().subscribe()
    }
}

impl Tx {
    /// Will wake who waits for this job.
    pub(super) fn touch_job(&mut self, job: JobId) {
        self.touched.jobs.push(job);
    }

    /// Will wake the workers.
    pub(super) fn touch_queue(&mut self) {
        self.touched.queue = true;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn only_those_are_woken_whom_a_change_concerns() {
        let store = crate::store::testing::sqlite().await.store;
        let (job, other) = (Uuid::now_v7(), Uuid::now_v7());
        let mut waiting = [
            store.changes_of(job),
            store.changes_of(other),
            store.new_events(None),
            store.new_work(),
        ];
        let mut woken = async |tx: Tx| {
            tx.commit().await.unwrap();
            waiting.each_mut().map(|news| {
                let changed = news.has_changed().unwrap();
                news.mark_unchanged();
                changed
            })
        };
        assert_eq!(woken(store.begin().await.unwrap()).await, [false; 4]);
        let mut tx = store.begin().await.unwrap();
        tx.touch_job(job);
        assert_eq!(woken(tx).await, [true, false, false, false]);
        let mut tx = store.begin().await.unwrap();
        let event = crate::model::EventKind::JobState;
        tx.append_event(event, Some(other), None, &serde_json::Value::Null)
            .await
            .unwrap();
        tx.touch_queue();
        assert_eq!(woken(tx).await, [false, true, true, true]);
    }

    #[tokio::test]
    async fn jobs_that_nobody_waits_for_are_forgotten() {
        let store = crate::store::testing::sqlite().await.store;
        let jobs = [Uuid::now_v7(), Uuid::now_v7()];
        drop(store.changes_of(jobs[0]));
        let _kept = store.changes_of(jobs[1]);
        assert_eq!(store.news.jobs().keys().copied().collect::<Vec<_>>(), [jobs[1]]);
    }
}
