//! Locks on images, of jobs and of requests.

use uuid::Uuid;

use super::{LEASE, add_image, add_job, code, new_job, write};
use crate::error::ErrorCode;
use crate::model::ImageState;
use crate::store::locks::{Holder, LockMode};
use crate::store::testing::{TestStore, on_both_databases};

on_both_databases! {
    an_exclusive_lock_makes_the_image_busy,
    request_locks_lapse,
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

async fn request_locks_lapse(TestStore { store, clock }: TestStore) {
    let image = add_image(&store, "a", None).await;
    let process = Uuid::now_v7();
    let lock = async |mode| {
        let id = Uuid::now_v7();
        let holder = Holder::Request {
            id,
            process,
            expires: store.now().after(LEASE),
        };
        write(&store, async |tx| tx.lock_images(holder, &[(image, mode)]).await)
            .await
            .map(|()| id)
    };
    let first = lock(LockMode::Exclusive).await.unwrap();
    assert_eq!(code(lock(LockMode::Shared).await), ErrorCode::ImageBusy);
    clock.advance(20_000);
    let renewed = store.now().after(LEASE);
    write(&store, async |tx| tx.renew_request_locks(process, renewed).await)
        .await
        .unwrap();
    clock.advance(20_000);
    assert!(write(&store, async |tx| tx.holds_lock(first).await).await.unwrap());
    assert_eq!(code(lock(LockMode::Shared).await), ErrorCode::ImageBusy);
    clock.advance(20_000);
    assert!(!write(&store, async |tx| tx.holds_lock(first).await).await.unwrap());
    lock(LockMode::Shared).await.unwrap();
}
