//! Who waits for changes is woken by the commits that matter to it, and by no others: looking again costs more than the change did.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{Store, Tx};
use crate::model::JobId;

/// What becomes different when a write transaction of this process has ended.
#[derive(Default)]
pub(super) struct News {
    events: watch::Sender<Changes>,
    queue: watch::Sender<Changes>,
    jobs: Mutex<HashMap<JobId, watch::Sender<Changes>>>,
}

/// How often something became different.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Changes {
    all: u64,
    /// Of these, how often a job came into another state.
    pub states: u64,
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
    /// Those of them that came into another state.
    pub(super) states: Vec<JobId>,
}

impl News {
    /// Wakes who waits for any of this.
    pub(super) fn tell(&self, touched: &Touched) {
        if touched.events {
            count_on(&self.events, false);
        }
        if touched.queue {
            count_on(&self.queue, false);
        }
        let jobs = self.jobs();
        for job in &touched.jobs {
            if let Some(waiting) = jobs.get(job) {
                count_on(waiting, touched.states.contains(job));
            }
        }
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<Changes>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count_on(news: &watch::Sender<Changes>, state: bool) {
    news.send_modify(|count| {
        count.all = count.all.wrapping_add(1);
        count.states = count.states.wrapping_add(state.into());
    });
}

impl Store {
    /// Becomes different when events were appended: those of a job, or any.
    pub fn new_events(&self, job: Option<JobId>) -> watch::Receiver<Changes> {
        match job {
            Some(job) => self.changes_of(job),
            None => self.news.events.subscribe(),
        }
    }

    /// Becomes different when a job came that a worker may take.
    pub fn new_work(&self) -> watch::Receiver<Changes> {
        self.news.queue.subscribe()
    }

    /// Becomes different when the job did.
    pub fn changes_of(&self, job: JobId) -> watch::Receiver<Changes> {
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
    async fn another_state_is_told_from_other_changes() {
        use crate::model::EventKind;
        let store = crate::store::testing::sqlite().await.store;
        let job = Uuid::now_v7();
        let news = store.changes_of(job);
        for (kind, states) in [
            (EventKind::JobProgress, 0),
            (EventKind::JobState, 1),
            (EventKind::JobQueued, 1),
        ] {
            let mut tx = store.begin().await.unwrap();
            tx.append_event(kind, Some(job), None, &serde_json::Value::Null)
                .await
                .unwrap();
            let before = *news.borrow();
            tx.commit().await.unwrap();
            assert_ne!(*news.borrow(), before, "{kind:?}");
            assert_eq!(news.borrow().states, states, "{kind:?}");
        }
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
