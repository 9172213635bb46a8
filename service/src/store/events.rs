//! What happened, numbered in commit order.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::row::{Columns, json_text, stored};
use super::{Store, Tx};
use crate::error::Result;
use crate::model::{Event, EventKind};

/// The number of the newest event, also of one that is forgotten: the counter keeps that one's.
macro_rules! last_number {
    () => {
        "(SELECT MAX(number) FROM (SELECT MAX(seq) AS number FROM events UNION ALL \
         SELECT value FROM counters WHERE name = 'event') AS numbers)"
    };
}
pub(super) use last_number;

impl Tx {
    /// Appends an event and returns its number.
    pub async fn append_event(
        &mut self,
        kind: EventKind,
        job: Option<Uuid>,
        image: Option<Uuid>,
        data: &Value,
    ) -> Result<u64> {
        let sql = concat!(
            "INSERT INTO events (seq, kind, job_id, image_id, at, data) VALUES (",
            last_number!(),
            " + 1, $1, $2, $3, $4, $5) RETURNING seq"
        );
        let row = sqlx::query(sql)
            .bind(kind.as_str())
            .bind(job.map(|id| id.to_string()))
            .bind(image.map(|id| id.to_string()))
            .bind(self.now.0)
            .bind(json_text(data)?)
            .fetch_one(&mut *self.inner)
            .await?;
        self.touched.events = true;
        self.touched.jobs.extend(job);
        self.touched.states.extend(job.filter(|_| kind == EventKind::JobState));
        row.size("seq")
    }

    /// Forgets events older than `retention`.
    pub async fn prune_events(&mut self, retention: Duration) -> Result<u64> {
        let keep = concat!("UPDATE counters SET value = ", last_number!(), " WHERE name = 'event'");
        sqlx::query(keep).execute(&mut *self.inner).await?;
        let before = self.now.before(retention).0;
        let deleted = sqlx::query("DELETE FROM events WHERE at < $1")
            .bind(before)
            .execute(&mut *self.inner)
            .await?;
        Ok(deleted.rows_affected())
    }
}

/// Events behind a number that fulfil a condition.
macro_rules! event_query {
    ($condition:literal) => {
        concat!(
            "SELECT seq, kind, job_id, image_id, at, data FROM events WHERE seq > $1 ",
            $condition,
            " ORDER BY seq LIMIT $2"
        )
    };
}

impl Store {
    /// The number of the newest event, 0 before the first.
    pub async fn last_event(&self) -> Result<u64> {
        let sql = concat!("SELECT ", last_number!(), " AS last");
        sqlx::query(sql).fetch_one(&self.readers).await?.size("last")
    }

    /// Up to `limit` events behind a number, oldest first, of one job or image when given.
    pub async fn events_after(
        &self,
        seq: u64,
        job: Option<Uuid>,
        image: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<Event>> {
        // One statement for each case: one for all would read every event behind the number.
        let sql = match (job, image) {
            (None, None) => event_query!(""),
            (Some(_), None) => event_query!("AND job_id = $3"),
            (None, Some(_)) => event_query!("AND image_id = $3"),
            (Some(_), Some(_)) => event_query!("AND job_id = $3 AND image_id = $4"),
        };
        let mut query = sqlx::query(sql).bind(stored(seq)?).bind(i64::from(limit));
        for id in [job, image].into_iter().flatten() {
            query = query.bind(id.to_string());
        }
        let rows = query.fetch_all(&self.readers).await?;
        rows.iter().map(event).collect()
    }
}

fn event(row: &sqlx::any::AnyRow) -> Result<Event> {
    Ok(Event {
        seq: row.size("seq")?,
        kind: row.text("kind")?.parse()?,
        job_id: row.id_or_null("job_id")?,
        image_id: row.id_or_null("image_id")?,
        at: row.time("at")?,
        data: row.json("data")?,
    })
}
