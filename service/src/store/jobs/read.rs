use std::collections::HashMap;

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Executor};
use uuid::Uuid;

use super::{event_data, job, job_columns, not_found};
use crate::error::Result;
use crate::model::{EventKind, Job, JobId, JobKind, JobState, JobStep};
use crate::request::JobFilter;
use crate::store::row::Columns;
use crate::store::{Store, Tx};

/// Which jobs a page of the list holds; [`bind_page`] gives the parameters.
macro_rules! page_of_jobs {
    () => {
        " WHERE ($1 = '' OR id < $1) AND ($2 = '' OR $2 = CASE WHEN wish = 'pause' AND \
         state IN ('queued', 'running') THEN 'paused' ELSE state END) AND ($3 = '' OR kind = $3) \
         AND ($4 = '' OR pool = $4) AND ($5 = '' OR EXISTS (SELECT 1 FROM job_images m \
         WHERE m.job_id = jobs.id AND m.image_id = $5)) ORDER BY id DESC LIMIT $6"
    };
}

type Statement<'q> = Query<'q, Any, AnyArguments>;

fn bind_page<'q>(query: Statement<'q>, filter: &JobFilter, before: Option<Uuid>, limit: u32) -> Statement<'q> {
    query
        .bind(before.map_or(String::new(), |id| id.to_string()))
        .bind(filter.state.map_or("", JobState::as_str))
        .bind(filter.kind.map_or("", JobKind::as_str))
        .bind(filter.pool.clone().unwrap_or_default())
        .bind(filter.image.map_or(String::new(), |id| id.to_string()))
        .bind(i64::from(limit))
}

fn step(row: &AnyRow) -> Result<JobStep> {
    Ok(JobStep {
        at: row.time("at")?,
        text: row.text("text")?,
    })
}

impl Store {
    /// One job with its steps.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn job(&self, id: JobId) -> Result<Job> {
        let job = self.job_alone(id).await?;
        self.with_steps(job).await
    }

    /// One job, its steps left out.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn job_alone(&self, id: JobId) -> Result<Job> {
        find(&self.readers, id).await?.ok_or_else(|| not_found(id))
    }

    /// The job with its steps.
    pub async fn with_steps(&self, mut job: Job) -> Result<Job> {
        let sql = "SELECT at, text FROM job_steps WHERE job_id = $1 ORDER BY position";
        let rows = sqlx::query(sql)
            .bind(job.id.to_string())
            .fetch_all(&self.readers)
            .await?;
        job.steps = rows.iter().map(step).collect::<Result<_>>()?;
        Ok(job)
    }

    /// Up to `limit` jobs older than an id, newest first, with their steps.
    pub async fn list_jobs(&self, filter: &JobFilter, before: Option<Uuid>, limit: u32) -> Result<Vec<Job>> {
        let sql = concat!("SELECT ", job_columns!(), " FROM jobs", page_of_jobs!());
        let rows = bind_page(sqlx::query(sql), filter, before, limit);
        let rows = rows.fetch_all(&self.readers).await?;
        let mut jobs: Vec<Job> = rows.iter().map(job).collect::<Result<_>>()?;
        let sql = concat!(
            "SELECT s.job_id, s.at, s.text FROM job_steps s WHERE s.job_id IN (SELECT id FROM jobs",
            page_of_jobs!(),
            ") ORDER BY s.job_id, s.position"
        );
        let rows = bind_page(sqlx::query(sql), filter, before, limit);
        let mut steps = HashMap::<JobId, Vec<JobStep>>::new();
        for row in rows.fetch_all(&self.readers).await? {
            steps.entry(row.id("job_id")?).or_default().push(step(&row)?);
        }
        for job in &mut jobs {
            job.steps = steps.remove(&job.id).unwrap_or_default();
        }
        Ok(jobs)
    }

    /// Ids of the jobs that have not ended.
    pub async fn open_jobs(&self) -> Result<Vec<JobId>> {
        let sql = "SELECT id FROM jobs WHERE state IN ('queued', 'running')";
        sqlx::query(sql)
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(|row| row.id("id"))
            .collect()
    }

    /// Jobs by state as it is shown.
    pub async fn count_jobs(&self) -> Result<Vec<(JobState, u64)>> {
        let sql = "SELECT CASE WHEN wish = 'pause' AND state IN ('queued', 'running') THEN 'paused' ELSE state END \
             AS shown, COUNT(*) AS jobs FROM jobs GROUP BY 1";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| Ok((row.text("shown")?.parse()?, row.size("jobs")?)))
            .collect()
    }
}

impl Tx {
    /// One job, as this transaction sees it.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn job(&mut self, id: JobId) -> Result<Job> {
        find(&mut *self.inner, id).await?.ok_or_else(|| not_found(id))
    }

    /// Whether there is such a job, and it has not ended.
    pub async fn is_open_job(&mut self, id: JobId) -> Result<bool> {
        let sql = "SELECT id FROM jobs WHERE id = $1 AND state IN ('queued', 'running')";
        let open = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&mut *self.inner)
            .await?;
        Ok(open.is_some())
    }

    /// Appends an event with the job as it is now, and returns the job.
    pub(super) async fn job_event(&mut self, kind: EventKind, id: JobId) -> Result<Job> {
        let job = self.job(id).await?;
        self.event_of(kind, job).await
    }

    /// Appends an event with the job as it was just read, and returns the job.
    pub(super) async fn event_of(&mut self, kind: EventKind, job: Job) -> Result<Job> {
        self.append_event(kind, Some(job.id), None, &event_data(&job)).await?;
        Ok(job)
    }
}

async fn find(executor: impl Executor<'_, Database = Any>, id: JobId) -> Result<Option<Job>> {
    let sql = concat!("SELECT ", job_columns!(), " FROM jobs WHERE id = $1");
    let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(executor).await?;
    row.as_ref().map(job).transpose()
}
