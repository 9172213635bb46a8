//! Real databases for tests: SQLite in memory, and a PostgreSQL server of our own when one is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use super::Store;
use crate::clock::{TestClock, Timestamp};

/// A store with a clock the test moves.
pub struct TestStore {
    pub store: Store,
    pub clock: Arc<TestClock>,
}

/// A store on SQLite in memory.
pub async fn sqlite() -> TestStore {
    open("sqlite::memory:").await
}

/// A store on a database URL.
pub async fn open(url: &str) -> TestStore {
    let clock = Arc::new(TestClock::new(Timestamp(1_800_000_000_000)));
    TestStore {
        store: Store::open(url, clock.clone()).await.unwrap(),
        clock,
    }
}

/// A PostgreSQL server that listens on a socket in a temporary folder.
pub struct Postgres {
    dir: TempDir,
    bin: PathBuf,
}

impl Postgres {
    /// Starts a server; `None` (said on stderr) when none is installed and `VDISK_REQUIRE` is not `all`.
    pub fn start() -> Option<Self> {
        let Some(bin) = find_bin() else {
            assert_ne!(
                std::env::var("VDISK_REQUIRE").as_deref(),
                Ok("all"),
                "PostgreSQL is required but not installed"
            );
            eprintln!("skipped: no PostgreSQL server (initdb, pg_ctl) found");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("vdisk-pg").tempdir().unwrap();
        let server = Self { dir, bin };
        if rustix::process::geteuid().is_root() {
            let owner = format!("postgres:{}", "postgres");
            run(Command::new("chown").arg(owner).arg(server.dir.path()));
        }
        let data = server.dir.path().join("data");
        let data = data.to_str().unwrap();
        server.call("initdb", &["-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]);
        let options = format!("-c listen_addresses= -c fsync=off -k {}", server.dir.path().display());
        let log = server.dir.path().join("log");
        server.call(
            "pg_ctl",
            &["-D", data, "-w", "-l", log.to_str().unwrap(), "-o", &options, "start"],
        );
        Some(server)
    }

    /// The URL of a new, empty database.
    pub fn new_database(&self, name: &str) -> String {
        let socket = self.dir.path().to_str().unwrap();
        self.call("createdb", &["-h", socket, "-U", "postgres", name]);
        format!("postgres:///{name}?host={socket}&user=postgres")
    }

    fn call(&self, program: &str, arguments: &[&str]) {
        let program = self.bin.join(program);
        if rustix::process::geteuid().is_root() {
            // PostgreSQL refuses to run as root.
            let user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
            run(Command::new("setpriv")
                .args(user)
                .arg(program)
                .args(arguments)
                .current_dir(self.dir.path()));
        } else {
            run(Command::new(program).args(arguments));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let data = self.dir.path().join("data");
        self.call("pg_ctl", &["-D", data.to_str().unwrap(), "-m", "immediate", "stop"]);
    }
}

fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status();
    assert!(output.unwrap().success(), "{command:?} failed");
}

fn find_bin() -> Option<PathBuf> {
    let debian = (10..30)
        .rev()
        .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = debian.chain(std::env::split_paths(&path));
    folders.find(|folder: &PathBuf| has(folder, "initdb") && has(folder, "pg_ctl"))
}

fn has(folder: &Path, program: &str) -> bool {
    folder.join(program).is_file()
}

/// Makes of each scenario (an `async fn(TestStore)` of this module) a test on SQLite, and one test that runs them all
/// on PostgreSQL, each in a database of its own.
macro_rules! on_both_databases {
    ($($scenario:ident,)*) => {
        mod on_sqlite {
            $(
                #[tokio::test]
                async fn $scenario() {
                    super::$scenario($crate::store::testing::sqlite().await).await;
                }
            )*
        }

        #[tokio::test]
        async fn all_on_postgres() {
            let Some(server) = $crate::store::testing::Postgres::start() else { return };
            $(
                let url = server.new_database(stringify!($scenario));
                let test = $crate::store::testing::open(&url).await;
                let store = test.store.clone();
                $scenario(test).await;
                store.close().await;
            )*
        }
    };
}
pub(crate) use on_both_databases;
