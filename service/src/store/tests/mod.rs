//! What the store promises, on both databases.

mod events;
mod images;
mod locks;
mod names;
mod queue;

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::images::{Backing, FileFacts, NewImage, Origin};
use super::jobs::NewJob;
use super::locks::LockMode;
use super::secrets::SealedSecret;
use super::testing::TestStore;
use super::{Store, Tx};
use crate::error::{ErrorCode, Result};
use crate::model::{ImageId, JobId, JobKind, Labels};

const LEASE: Duration = Duration::from_secs(30);

/// As on a full disk, where SQLite ends the transaction and the connection pool does not learn of it.
#[tokio::test]
async fn a_transaction_that_sqlite_ended_does_not_wedge_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let TestStore { store, .. } = super::testing::open(&super::sqlite_url(&dir.path().join("db"))).await;
    for _ in 0..3 {
        let mut tx = store.begin().await.unwrap();
        sqlx::query("ROLLBACK").execute(&mut *tx.inner).await.unwrap();
        drop(tx);
        add_job(&store, &new_job(0, &[])).await;
    }
    assert_eq!(store.open_jobs().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_secret_that_is_deleted_leaves_nothing_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let sealed = "c2VhbGVkIHZhbHVl".repeat(20);
    let holds = || {
        let bytes = std::fs::read(&path).unwrap();
        bytes.windows(sealed.len()).any(|window| window == sealed.as_bytes())
    };
    let id = Uuid::now_v7();
    let TestStore { store, .. } = super::testing::open(&super::sqlite_url(&path)).await;
    let value = SealedSecret {
        sealed: sealed.clone(),
        key_id: "k".to_owned(),
    };
    write(&store, async |tx| tx.insert_secret(id, "one", &value).await)
        .await
        .unwrap();
    store.close().await;
    assert!(holds());
    let TestStore { store, .. } = super::testing::open(&super::sqlite_url(&path)).await;
    write(&store, async |tx| tx.delete_secret(id).await).await.unwrap();
    store.close().await;
    assert!(!holds());
}

/// As when a node is stopped in the middle of a transaction: the database takes the transaction from it before the
/// others lose patience, and what it still says is heard no more.
#[tokio::test]
async fn a_node_that_hangs_inside_a_transaction_holds_up_nobody_for_long() {
    let Some(server) = super::testing::Postgres::start() else {
        return;
    };
    let url = server.new_database("hangs");
    let TestStore { store: hung, .. } = super::testing::open(&url).await;
    let TestStore { store: other, .. } = super::testing::open(&url).await;
    let mut half_done = hung.begin().await.unwrap();
    half_done.enqueue(&new_job(0, &[]), 100).await.unwrap();
    let theirs = add_job(&other, &new_job(0, &[])).await;
    assert_eq!(code(half_done.commit().await), ErrorCode::Unavailable);
    assert_eq!(other.open_jobs().await.unwrap(), [theirs]);
    add_job(&hung, &new_job(0, &[])).await;
}

async fn write<T>(store: &Store, work: impl AsyncFnOnce(&mut Tx) -> Result<T>) -> Result<T> {
    let mut tx = store.begin().await?;
    let done = work(&mut tx).await?;
    tx.commit().await?;
    Ok(done)
}

fn code<T: std::fmt::Debug>(outcome: Result<T>) -> ErrorCode {
    outcome.unwrap_err().code
}

fn facts() -> FileFacts {
    FileFacts {
        format: "raw".to_owned(),
        virtual_size: 1 << 20,
        allocated_size: 4096,
        file_size: 1 << 20,
        encrypted: false,
        stamp: "1:2:3".to_owned(),
    }
}

fn new_image(name: &str, holder: Uuid) -> NewImage {
    let id = Uuid::now_v7();
    NewImage {
        id,
        name: name.to_owned(),
        pool: "default".to_owned(),
        file: id.to_string(),
        format: "raw".to_owned(),
        labels: Labels::new(),
        secrets: Default::default(),
        backing: None,
        origin: Origin::ReservedBy(holder),
    }
}

async fn add_image(store: &Store, name: &str, base: Option<ImageId>) -> ImageId {
    let holder = Uuid::now_v7();
    let mut image = new_image(name, holder);
    image.backing = base.map(|id| Backing {
        id,
        generation: 1,
        name: id.to_string(),
    });
    image.labels.insert("made-by".to_owned(), name.to_owned());
    let published = write(store, async |tx| {
        tx.insert_image(&image).await?;
        tx.publish_image(image.id, holder, &image.file, &facts()).await
    });
    published.await.unwrap();
    image.id
}

fn new_job(priority: i32, locks: &[(ImageId, LockMode)]) -> NewJob {
    NewJob {
        id: Uuid::now_v7(),
        kind: JobKind::Check,
        pool: Some("default".to_owned()),
        request: json!({"repair": null}),
        payload: json!({"n": 1}),
        images: locks.iter().map(|(image, _)| *image).collect(),
        locks: locks.to_vec(),
        makes: None,
        priority,
        rate_limit: None,
    }
}

async fn add_job(store: &Store, job: &NewJob) -> JobId {
    write(store, async |tx| tx.enqueue(job, 100).await).await.unwrap().id
}
