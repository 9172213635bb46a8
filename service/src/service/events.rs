use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::watch;

use super::{Inner, Service};
use crate::error::{Result, ServiceError};
use crate::model::Event;
use crate::request::EventFilter;
use crate::store::Changes;

/// Events read from the database at once.
const BATCH: u32 = 256;

impl Service {
    /// Events as they happen. With `after`, those behind that sequence number come first; without, only new ones, but
    /// a subscription to one job starts with all of that job's events and ends after its last. The stream ends when
    /// the service stops.
    ///
    /// # Errors
    /// `not_found` (job of the filter), `invalid_argument` (a number that no event can have).
    pub async fn subscribe(
        &self,
        filter: EventFilter,
        after: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Event>>> {
        if let Some(after) = after.filter(|after| i64::try_from(*after).is_err()) {
            let public = format!("no event has the number {after}; they end at {} at most", i64::MAX);
            return Err(ServiceError::invalid("after", public));
        }
        if let Some(job) = filter.job {
            self.inner.store.job(job).await?;
        }
        let last = match (after, filter.job) {
            (Some(after), _) => after,
            (None, Some(_)) => 0,
            (None, None) => self.inner.store.last_event().await?,
        };
        let changes = self.inner.store.new_events(filter.job);
        let reader = Reader {
            inner: self.inner.clone(),
            filter,
            last,
            changes,
            ready: VecDeque::new(),
            ended: false,
        };
        Ok(stream::unfold(reader, Reader::step).boxed())
    }
}

struct Reader {
    inner: Arc<Inner>,
    filter: EventFilter,
    last: u64,
    changes: watch::Receiver<Changes>,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Reader {
    async fn step(mut self) -> Option<(Result<Event>, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.last = event.seq;
                return Some((Ok(event), self));
            }
            if self.ended {
                return None;
            }
            self.changes.mark_unchanged();
            match self.read().await {
                Ok(true) => {}
                Ok(false) => self.wait().await?,
                Err(error) => {
                    self.ended = true;
                    return Some((Err(error), self));
                }
            }
        }
    }

    /// Whether something came, or the end was reached.
    async fn read(&mut self) -> Result<bool> {
        // Asked first: events of a job that had ended by then are all there.
        let over = match self.filter.job {
            Some(job) => self.inner.store.job(job).await?.is_finished(),
            None => false,
        };
        let events = self
            .inner
            .store
            .events_after(self.last, self.filter.job, self.filter.image, BATCH)
            .await?;
        self.ended = over && events.is_empty();
        self.ready = events.into();
        Ok(self.ended || !self.ready.is_empty())
    }

    /// Waits for the next change; `None` when the service stops.
    async fn wait(&mut self) -> Option<()> {
        tokio::select! {
            () = self.inner.stop.cancelled() => None,
            _ = self.changes.changed() => Some(()),
            () = tokio::time::sleep(self.inner.config.poll_interval) => Some(()),
        }
    }
}
