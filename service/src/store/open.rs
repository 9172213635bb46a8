//! Connecting, settings and migrations.

use std::path::Path;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use sqlx::any::AnyPoolOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyPool, ConnectOptions, Connection, Executor, Row};
use uuid::Uuid;

use super::row::Columns;
use super::{Database, PATIENCE, Store};
use crate::clock::Clock;
use crate::error::{ErrorCode, Result, ServiceError};

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");
static DRIVERS: Once = Once::new();

/// Older SQLite can lose acknowledged writes (<https://www.sqlite.org/wal.html#walresetbug>).
const SQLITE_OLDEST: (u32, u32, u32) = (3, 51, 3);
const READERS: u32 = 4;
/// How long the check at the start may take.
const QUICK_CHECK: Duration = Duration::from_secs(10);
/// Steps of SQLite's machine between two looks at the clock.
const STEPS_UNWATCHED: i32 = 1000;
/// SQLITE_INTERRUPT.
const INTERRUPTED: &str = "9";

/// Settings of every SQLite connection. FULL: what was acknowledged survives a power cut.
const SQLITE_SETTINGS: &str = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
     PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA secure_delete = ON;";
/// A node that hangs inside a transaction loses it before those that wait for it lose patience, or a heartbeat its lease.
const POSTGRES_SETTINGS: &str = "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '20s';";

impl Store {
    /// Connects to `sqlite:<path>`, `sqlite::memory:` or `postgres://...` and brings the tables up to date.
    pub async fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Self> {
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let database = database_of(url)?;
        let url = &made_when_absent(url, database);
        let (writer, readers) = match database {
            Database::Sqlite if url.contains(":memory:") => {
                let only = connect(url, database, 1).await?;
                (only.clone(), only)
            }
            Database::Sqlite => (connect(url, database, 1).await?, connect(url, database, READERS).await?),
            Database::Postgres => (connect(url, database, 2).await?, connect(url, database, READERS).await?),
        };
        if database == Database::Sqlite {
            check_sqlite_version(&writer).await?;
            quick_check(url, QUICK_CHECK).await?;
        }
        MIGRATOR
            .run(&writer)
            .await
            .map_err(|error| unusable(format!("migrating the database: {error}")))?;
        Ok(Self {
            id: identify(&writer).await?,
            readers,
            writer,
            database,
            clock,
            news: Arc::default(),
            url: url.as_str().into(),
            turns: Arc::default(),
            ballast: None,
        })
    }

    /// The same database over one connection of its own, which belongs to the runtime of the caller.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn beside(&self) -> Result<Self> {
        if self.url.contains(":memory:") {
            return Ok(self.clone());
        }
        let only = connect(&self.url, self.database, 1).await?;
        Ok(Self {
            writer: only.clone(),
            readers: only,
            ..self.clone()
        })
    }
}

/// The URL of an SQLite file, with the characters of the path that mean something in a URL escaped.
pub fn sqlite_url(path: &Path) -> String {
    let mut url = String::from("sqlite://");
    for &byte in std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()) {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url.push_str("?mode=rwc");
    url
}

/// An SQLite file is made when it is not there, unless the URL says how to open it.
fn made_when_absent(url: &str, database: Database) -> String {
    let query = url.split_once('?').map(|(_, query)| query);
    let says_how = query.is_some_and(|query| query.split('&').any(|part| part.starts_with("mode=")));
    if database == Database::Postgres || url.contains(":memory:") || says_how {
        return url.to_owned();
    }
    let join = if query.is_some() { '&' } else { '?' };
    format!("{url}{join}mode=rwc")
}

fn database_of(url: &str) -> Result<Database> {
    if url.starts_with("sqlite:") {
        return Ok(Database::Sqlite);
    }
    if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        return Ok(Database::Postgres);
    }
    Err(ServiceError::invalid(
        "database_url",
        "the database URL must start with sqlite: or postgres:",
    ))
}

async fn connect(url: &str, database: Database, connections: u32) -> Result<AnyPool> {
    AnyPoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        // A file does not go away, and to ask costs as much as a short statement.
        .test_before_acquire(database == Database::Postgres)
        .acquire_timeout(PATIENCE)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                let settings = match database {
                    Database::Sqlite => SQLITE_SETTINGS,
                    Database::Postgres => POSTGRES_SETTINGS,
                };
                connection.execute(settings).await.map(drop)
            })
        })
        .connect(url)
        .await
        .map_err(|error| unusable(format!("connecting to the database: {error}")))
}

async fn check_sqlite_version(pool: &AnyPool) -> Result<()> {
    let version: String = sqlx::query("SELECT sqlite_version() AS version")
        .fetch_one(pool)
        .await?
        .try_get("version")?;
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    if (next(), next(), next()) < SQLITE_OLDEST {
        return Err(unusable(format!(
            "SQLite {version} is too old, {SQLITE_OLDEST:?} or newer is needed"
        )));
    }
    Ok(())
}

/// Looks for damage at the start, but never for long: a large database is left to a later, full check.
/// Says whether it came to its end.
async fn quick_check(url: &str, limit: Duration) -> Result<bool> {
    if url.contains(":memory:") {
        return Ok(true);
    }
    let mut connection = url.parse::<SqliteConnectOptions>()?.connect().await?;
    let deadline = Instant::now() + limit;
    // The database itself has to be stopped: it would go on, and hold up what follows, if we just waited no longer.
    let mut handle = connection.lock_handle().await?;
    handle.set_progress_handler(STEPS_UNWATCHED, move || Instant::now() < deadline);
    drop(handle);
    let checked = sqlx::query("PRAGMA quick_check(1)").fetch_one(&mut connection).await;
    let verdict: String = match checked {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(INTERRUPTED) => {
            tracing::warn!("the database is too large for a quick check at start; stopped");
            return Ok(false);
        }
        checked => checked?.try_get(0)?,
    };
    connection.close().await?;
    if verdict != "ok" {
        return Err(unusable(format!("the database is damaged: {verdict}")));
    }
    Ok(true)
}

/// The id of the database, made when it is opened first.
async fn identify(pool: &AnyPool) -> Result<Uuid> {
    sqlx::query("INSERT INTO database_id (slot, id) VALUES (1, $1) ON CONFLICT (slot) DO NOTHING")
        .bind(Uuid::now_v7().to_string())
        .execute(pool)
        .await?;
    let row = sqlx::query("SELECT id FROM database_id").fetch_one(pool).await?;
    row.id("id")
}

fn unusable(detail: String) -> ServiceError {
    ServiceError::new(ErrorCode::Unavailable, "the database cannot be used").with_internal(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_check_at_the_start_is_stopped_when_it_takes_too_long() {
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let dir = tempfile::tempdir().unwrap();
        let url = sqlite_url(&dir.path().join("large.db"));
        let pool = connect(&url, Database::Sqlite, 1).await.unwrap();
        let fill = "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT); WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 \
             FROM n WHERE i < 20000) INSERT INTO t SELECT i, 'some text' FROM n";
        sqlx::raw_sql(fill).execute(&pool).await.unwrap();
        assert!(!quick_check(&url, Duration::ZERO).await.unwrap());
        assert!(quick_check(&url, Duration::from_secs(300)).await.unwrap());
        pool.close().await;
    }

    #[tokio::test]
    async fn a_database_is_made_where_its_url_says() {
        let dir = tempfile::tempdir().unwrap();
        let clock = || Arc::new(crate::clock::SystemClock);
        for (number, query) in ["", "?cache=private"].into_iter().enumerate() {
            let file = dir.path().join(format!("{number}.db"));
            for scheme in ["sqlite:", "sqlite://"] {
                let url = format!("{scheme}{}{query}", file.display());
                Store::open(&url, clock()).await.unwrap().close().await;
                assert!(file.exists(), "{url}");
            }
        }
        let url = format!("sqlite:{}?mode=rw", dir.path().join("none.db").display());
        assert_eq!(
            Store::open(&url, clock()).await.err().unwrap().code,
            ErrorCode::Unavailable
        );
    }

    #[test]
    fn paths_are_escaped_in_urls() {
        assert_eq!(
            sqlite_url(Path::new("/a b/%?#.db")),
            "sqlite:///a%20b/%25%3F%23.db?mode=rwc"
        );
    }
}
