use futures::stream::BoxStream;

use super::{Service, waiting};
use crate::error::Result;
use crate::model::Event;
use crate::request::EventFilter;

impl Service {
    /// Events as they happen. With `after`, those behind that sequence number come first; without, only new ones, but
    /// a subscription to one job starts with all of that job's events.
    ///
    /// # Errors
    /// `not_found` (job or image of the filter).
    pub async fn subscribe(
        &self,
        _filter: EventFilter,
        _after: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Event>>> {
        Err(waiting("events"))
    }
}
