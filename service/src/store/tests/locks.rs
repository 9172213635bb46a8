//! Locks on images, of jobs and of requests.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{LEASE, add_image, add_job, code, new_job, write};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::error::{ErrorCode, Result};
use crate::model::{ImageId, ImageState};
use crate::store::Store;
use crate::store::locks::{Holder, LockMode};
use crate::store::testing::{Postgres, TestStore, on_both_databases};

on_both_databases! {
    an_exclusive_lock_makes_the_image_busy,
    a_lapsed_lock_is_held_until_somebody_wants_the_image,
    a_lock_without_an_end_does_not_lapse,
    locks_that_nobody_prolongs_are_swept,
}

async fn an_exclusive_lock_makes_the_image_busy(TestStore { store, .. }: TestStore) {
    let image = add_image(&store, "a", None).await;
    let reader = add_job(&store, &new_job(0, &[(image, LockMode::Shared)])).await;
    add_job(&store, &new_job(0, &[(image, LockMode::Shared)])).await;
    let writer = new_job(0, &[(image, LockMode::Shared), (image, LockMode::Exclusive)]);
    assert_eq!(
        code(write(&store, async |tx| tx.enqueue(&writer, 100).await).await),
        ErrorCode::ImageBusy
    );
    for job in store.open_jobs().await.unwrap() {
        write(&store, async |tx| tx.cancel_job(job).await).await.unwrap();
    }
    assert_eq!(store.job(reader).await.unwrap().image_ids, [image]);
    let writer = add_job(&store, &writer).await;
    assert_eq!(store.image(image).await.unwrap().image.state, ImageState::Busy);
    let late = new_job(0, &[(image, LockMode::Shared)]);
    assert_eq!(
        code(write(&store, async |tx| tx.enqueue(&late, 100).await).await),
        ErrorCode::ImageBusy
    );
    assert_eq!(code(store.job(late.id).await), ErrorCode::NotFound);
    write(&store, async |tx| tx.cancel_job(writer).await).await.unwrap();
    assert_eq!(store.image(image).await.unwrap().image.state, ImageState::Ready);
}

/// Takes a lock for a request of a process.
async fn lock(
    store: &Store,
    process: Uuid,
    image: ImageId,
    mode: LockMode,
    expires: Option<Timestamp>,
) -> Result<Uuid> {
    let id = Uuid::now_v7();
    let holder = Holder::Request { id, process, expires };
    write(store, async |tx| tx.lock_images(holder, &[(image, mode)]).await).await?;
    Ok(id)
}

async fn is_held(store: &Store, holder: Uuid) -> bool {
    write(store, async |tx| tx.holds_lock(holder).await).await.unwrap()
}

async fn renew(store: &Store, process: Uuid) {
    let until = store.now().after(LEASE);
    write(store, async |tx| tx.renew_request_locks(process, until).await)
        .await
        .unwrap();
}

async fn a_lapsed_lock_is_held_until_somebody_wants_the_image(TestStore { store, clock }: TestStore) {
    let image = add_image(&store, "a", None).await;
    let process = Uuid::now_v7();
    let wanted = async |mode| lock(&store, Uuid::now_v7(), image, mode, Some(store.now().after(LEASE))).await;
    let first = lock(
        &store,
        process,
        image,
        LockMode::Exclusive,
        Some(store.now().after(LEASE)),
    )
    .await
    .unwrap();
    assert_eq!(code(wanted(LockMode::Shared).await), ErrorCode::ImageBusy);
    // Its process stood still, and goes on before anybody else came.
    clock.advance(60_000);
    assert!(is_held(&store, first).await);
    renew(&store, process).await;
    assert_eq!(code(wanted(LockMode::Shared).await), ErrorCode::ImageBusy);
    // It stands still again, and somebody comes.
    clock.advance(60_000);
    let second = wanted(LockMode::Exclusive).await.unwrap();
    renew(&store, process).await;
    assert!(!is_held(&store, first).await, "two hold the image");
    assert!(is_held(&store, second).await);
}

async fn a_lock_without_an_end_does_not_lapse(TestStore { store, clock }: TestStore) {
    let image = add_image(&store, "a", None).await;
    let process = Uuid::now_v7();
    let first = lock(&store, process, image, LockMode::Exclusive, None).await.unwrap();
    for step in [3_600_000, -7_200_000, 86_400_000] {
        clock.advance(step);
        renew(&store, process).await;
        clock.advance(60_000);
        assert!(!write(&store, async |tx| tx.sweep_request_locks().await).await.unwrap());
        let other = lock(&store, process, image, LockMode::Shared, None).await;
        assert_eq!(code(other), ErrorCode::ImageBusy);
        assert!(is_held(&store, first).await);
    }
}

async fn locks_that_nobody_prolongs_are_swept(TestStore { store, clock }: TestStore) {
    let image = add_image(&store, "a", None).await;
    let (alive, dead) = (Uuid::now_v7(), Uuid::now_v7());
    let until = Some(store.now().after(LEASE));
    let kept = lock(&store, alive, image, LockMode::Shared, until).await.unwrap();
    let lost = lock(&store, dead, image, LockMode::Shared, until).await.unwrap();
    let sweep = async || write(&store, async |tx| tx.sweep_request_locks().await).await.unwrap();
    assert!(!sweep().await);
    clock.advance(60_000);
    renew(&store, alive).await;
    assert!(sweep().await);
    assert_eq!(
        (is_held(&store, kept).await, is_held(&store, lost).await),
        (true, false)
    );
}

/// The clock of a machine that is a minute ahead.
struct Ahead;

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now().after(Duration::from_secs(60))
    }
}

/// Leases of processes whose clocks differ count by the clock of the database that they share.
#[tokio::test]
async fn a_process_with_another_time_takes_nothing_away() {
    let Some(server) = Postgres::start() else { return };
    let url = server.new_database("clocks");
    let here = Store::open(&url, Arc::new(SystemClock)).await.unwrap();
    let ahead = Store::open(&url, Arc::new(Ahead)).await.unwrap();
    let image = add_image(&here, "a", None).await;
    add_job(&here, &new_job(0, &[])).await;
    let fence = write(&here, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
        .await
        .unwrap()
        .unwrap()
        .fence;
    let until = here.begin().await.unwrap().now.after(LEASE);
    let held = lock(&here, Uuid::now_v7(), image, LockMode::Exclusive, Some(until))
        .await
        .unwrap();

    let taken = write(&ahead, async |tx| tx.claim(Uuid::now_v7(), LEASE).await);
    assert!(taken.await.unwrap().is_none(), "a job that runs was taken over");
    let other = lock(&ahead, Uuid::now_v7(), image, LockMode::Shared, Some(until)).await;
    assert_eq!(code(other), ErrorCode::ImageBusy);
    assert!(!write(&ahead, async |tx| tx.sweep_request_locks().await).await.unwrap());
    assert!(is_held(&here, held).await);
    write(&here, async |tx| tx.renew(fence, LEASE).await).await.unwrap();
    for store in [here, ahead] {
        store.close().await;
    }
}
