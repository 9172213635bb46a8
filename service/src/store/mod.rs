//! The database: inventory, queue, locks, events, secrets. All SQL of the service is in this folder.
//!
//! Writes are serial on both databases: SQLite has one writer connection, and on PostgreSQL every write transaction
//! locks one row first. Rules that span rows (dependents, locks, names) are therefore plain checks in the transaction
//! that acts on them. Every transaction that changes something visible appends its events, so that their sequence
//! numbers are in commit order.

pub mod audit;
mod ballast;
pub mod events;
pub mod idempotency;
pub mod images;
pub mod jobs;
pub mod locks;
#[cfg(test)]
mod model_tests;
mod news;
mod open;
mod row;
pub mod sealing;
pub mod secrets;
pub mod statistics;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod webhooks;

use std::sync::Arc;
use std::time::Duration;

pub use ballast::Ballast;
pub use open::sqlite_url;
use sqlx::{Any, AnyPool, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use crate::clock::{Clock, Timestamp};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Side, Step, reach};
use crate::model::{EventKind, ImageId};

pub use self::news::Changes;
use self::news::{News, Touched};
use self::row::Columns;

/// How long who wants to use the database waits for the others.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which database is behind the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// One file, one process.
    Sqlite,
    /// A server, any number of processes.
    Postgres,
}

/// The open database.
#[derive(Clone)]
pub struct Store {
    readers: AnyPool,
    writer: AnyPool,
    database: Database,
    id: Uuid,
    clock: Arc<dyn Clock>,
    news: Arc<News>,
    /// Where it is, for further connections.
    url: Arc<str>,
    /// Who writes to SQLite next: its own waiting is not fair.
    turns: Arc<Mutex<()>>,
    ballast: Option<Arc<Ballast>>,
}

/// A write transaction. Dropping it without [`Tx::commit`] undoes it.
pub struct Tx {
    inner: Transaction<'static, Any>,
    /// The moment all changes of this transaction happen at.
    pub now: Timestamp,
    news: Arc<News>,
    touched: Touched,
    /// Images that changed, whose events come last.
    untold: Vec<(EventKind, ImageId)>,
    ballast: Option<Arc<Ballast>>,
    /// Given back after the transaction.
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Store {
    /// Which database this is.
    pub fn database(&self) -> Database {
        self.database
    }

    /// Tells this database from all others, and is the same after it was restored from a backup.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The present moment, by the clock of this machine. Who may write is judged by [`Tx::now`].
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Starts a write transaction; waits for the one before it.
    pub async fn begin(&self) -> Result<Tx> {
        let mut turn = None;
        let (inner, now) = match self.database {
            Database::Sqlite => {
                turn = Some(self.turn().await?);
                (self.begin_sqlite().await?, self.clock.now())
            }
            Database::Postgres => self.begin_postgres().await?,
        };
        Ok(Tx {
            inner,
            now,
            news: self.news.clone(),
            touched: Touched::default(),
            untold: Vec::new(),
            ballast: self.ballast.clone(),
            _turn: turn,
        })
    }

    async fn turn(&self) -> Result<OwnedMutexGuard<()>> {
        let waiting = tokio::time::timeout(PATIENCE, self.turns.clone().lock_owned()).await;
        waiting.map_err(|_| ServiceError::new(ErrorCode::Unavailable, "the database does not answer"))
    }

    /// The clock is read when the transactions before this one have ended.
    async fn begin_postgres(&self) -> Result<(Transaction<'static, Any>, Timestamp)> {
        let mut inner = self.writer.begin().await?;
        let sql = "WITH turn AS (SELECT value FROM counters WHERE name = 'writer' FOR UPDATE) \
             SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) AS now FROM turn";
        let row = sqlx::query(sql).fetch_one(&mut *inner).await?;
        Ok((inner, self.clock.shared(row.time("now")?)))
    }

    /// SQLite ends a transaction by itself when the disk is full or fails. The pool does not learn of it and the
    /// connection would refuse every later transaction: such a connection is replaced.
    async fn begin_sqlite(&self) -> Result<Transaction<'static, Any>> {
        match self.writer.begin_with("BEGIN IMMEDIATE").await {
            Err(sqlx::Error::InvalidSavePointStatement) => {
                tracing::warn!("replacing the database connection after a transaction that the database ended itself");
                self.writer.acquire().await?.close().await?;
                Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
            }
            begun => Ok(begun?),
        }
    }

    /// Keeps room for the database on a full disk.
    pub fn with_ballast(self, ballast: Ballast) -> Self {
        ballast.keep();
        Self {
            ballast: Some(Arc::new(ballast)),
            ..self
        }
    }

    /// Sets the room aside again, once there is some.
    pub fn keep_ballast(&self) {
        if let Some(ballast) = &self.ballast {
            ballast.keep();
        }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT value FROM counters WHERE name = 'event'")
            .fetch_one(&self.readers)
            .await?;
        Ok(())
    }

    /// Closes all connections, the last one of SQLite folding the log into the database.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

impl Tx {
    /// From when on something is due after a delay. What is due at once is so at every moment: clocks may be put back.
    pub fn due_after(&self, delay: Duration) -> Timestamp {
        match delay.is_zero() {
            true => Timestamp(0),
            false => self.now.after(delay),
        }
    }

    /// Makes the changes durable as one step, and wakes who waits for them.
    pub async fn commit_as(mut self, step: Step) -> Result<()> {
        self.tell_images().await?;
        reach(step, Side::Before)?;
        if let Err(error) = self.inner.commit().await {
            let error = ServiceError::from(error);
            if let Some(ballast) = self.ballast.filter(|_| error.code == ErrorCode::InsufficientStorage) {
                ballast.give_up();
            }
            return Err(error);
        }
        self.news.tell(&self.touched);
        reach(step, Side::After)
    }

    /// Makes the changes durable: for tests, whose transactions are no step of the service.
    #[cfg(test)]
    pub async fn commit(mut self) -> Result<()> {
        self.tell_images().await?;
        self.inner.commit().await?;
        self.news.tell(&self.touched);
        Ok(())
    }
}

impl From<sqlx::Error> for ServiceError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|database| database.code());
        match code.as_deref() {
            // SQLITE_FULL, and PostgreSQL's disk_full.
            Some("13" | "53100") => {
                let public = "the disk below the database is full; free some space";
                return Self::new(ErrorCode::InsufficientStorage, public).with_internal(error);
            }
            // SQLITE_BUSY, and PostgreSQL's lock_not_available, idle_in_transaction_session_timeout, admin_shutdown.
            Some("5" | "55P03" | "25P03" | "57P01") => return unanswered(error),
            _ => {}
        }
        match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => {
                unanswered(error)
            }
            _ => Self::internal(format!("database: {error}")),
        }
    }
}

fn unanswered(error: sqlx::Error) -> ServiceError {
    ServiceError::new(ErrorCode::Unavailable, "the database does not answer").with_internal(error)
}

/// Whether a statement failed because a unique column has the value already.
fn is_duplicate(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}
