//! Events and their numbers.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::{LEASE, add_image, add_job, facts, new_image, new_job, write};
use crate::error::{Result, ServiceError};
use crate::model::{EventKind, ImageId};
use crate::store::Store;
use crate::store::locks::{Holder, LockMode};
use crate::store::testing::{TestStore, on_both_databases};

on_both_databases! {
    events_are_numbered_without_gaps,
    an_image_event_shows_what_the_transaction_leaves,
    who_was_said_to_be_busy_is_said_to_be_free,
}

/// Kind of the last event of an image and the state in it, and how many there are.
async fn last_of(store: &Store, image: ImageId) -> (EventKind, String, usize) {
    let all = store.events_after(0, None, Some(image), 100).await.unwrap();
    let last = all.last().unwrap();
    (last.kind, last.data["state"].as_str().unwrap().to_owned(), all.len())
}

fn request(id: Uuid) -> Holder {
    Holder::Request {
        id,
        process: Uuid::now_v7(),
        expires: None,
    }
}

async fn an_image_event_shows_what_the_transaction_leaves(TestStore { store, .. }: TestStore) {
    let holder = Uuid::now_v7();
    let image = new_image("a", holder);
    write(&store, async |tx| {
        tx.insert_image(&image).await?;
        tx.lock_images(request(holder), &[(image.id, LockMode::Exclusive)])
            .await
    })
    .await
    .unwrap();
    write(&store, async |tx| {
        tx.publish_image(image.id, holder, &image.file, &facts()).await?;
        tx.record_change(image.id, &facts(), false).await?;
        tx.unlock(holder).await
    })
    .await
    .unwrap();
    let told = last_of(&store, image.id).await;
    assert_eq!(told, (EventKind::ImageCreated, "ready".to_owned(), 1));
    write(&store, async |tx| tx.delete_image(image.id).await).await.unwrap();
    let told = last_of(&store, image.id).await;
    assert_eq!((told.0, told.2), (EventKind::ImageDeleted, 2));
}

async fn who_was_said_to_be_busy_is_said_to_be_free(TestStore { store, clock }: TestStore) {
    let image = add_image(&store, "a", None).await;
    let lock = async |holder: Holder| {
        write(&store, async |tx| {
            tx.lock_images(holder, &[(image, LockMode::Exclusive)]).await
        })
        .await
        .unwrap();
    };
    let change = async || {
        write(&store, async |tx| tx.raise_generation(image).await)
            .await
            .unwrap();
        last_of(&store, image).await
    };
    let (busy, free) = ("busy".to_owned(), "ready".to_owned());
    let holder = Uuid::now_v7();
    lock(request(holder)).await;
    write(&store, async |tx| tx.unlock(holder).await).await.unwrap();
    assert_eq!(last_of(&store, image).await.2, 1, "nobody was told that it was busy");
    lock(request(holder)).await;
    assert_eq!(change().await, (EventKind::ImageUpdated, busy.clone(), 2));
    write(&store, async |tx| tx.unlock(holder).await).await.unwrap();
    assert_eq!(last_of(&store, image).await, (EventKind::ImageUpdated, free.clone(), 3));
    // Of a process that died.
    let expires = store.now().after(LEASE);
    lock(Holder::Request {
        id: holder,
        process: Uuid::now_v7(),
        expires: Some(expires),
    })
    .await;
    assert_eq!(change().await.1, busy);
    clock.advance(40_000);
    assert!(write(&store, async |tx| tx.sweep_request_locks().await).await.unwrap());
    assert_eq!(last_of(&store, image).await.1, free);
    let job = add_job(&store, &new_job(0, &[(image, LockMode::Exclusive)])).await;
    assert_eq!(change().await.1, busy);
    write(&store, async |tx| tx.cancel_job(job).await).await.unwrap();
    assert_eq!(last_of(&store, image).await.1, free);
}

async fn events_are_numbered_without_gaps(TestStore { store, clock }: TestStore) {
    let job = add_job(&store, &new_job(0, &[])).await;
    write(&store, async |tx| {
        tx.append_event(EventKind::ImageUpdated, None, None, &json!({})).await
    })
    .await
    .unwrap();
    let failed: Result<()> = write(&store, async |tx| {
        tx.append_event(EventKind::ImageUpdated, None, None, &json!({})).await?;
        Err(ServiceError::internal("undone"))
    })
    .await;
    failed.unwrap_err();
    write(&store, async |tx| tx.cancel_job(job).await).await.unwrap();
    let all = store.events_after(0, None, None, 100).await.unwrap();
    assert_eq!(all.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(store.last_event().await.unwrap(), 3);
    let of_job = store.events_after(0, Some(job), None, 100).await.unwrap();
    assert_eq!(
        of_job.iter().map(|event| event.kind).collect::<Vec<_>>(),
        [EventKind::JobQueued, EventKind::JobState]
    );
    assert_eq!(store.events_after(2, None, None, 1).await.unwrap()[0].seq, 3);
    clock.advance(1001);
    assert_eq!(
        write(&store, async |tx| tx.prune_events(Duration::from_secs(1)).await)
            .await
            .unwrap(),
        3
    );
    assert_eq!(store.last_event().await.unwrap(), 3);
    let next = write(&store, async |tx| {
        tx.append_event(EventKind::ImageUpdated, None, None, &json!({})).await
    });
    assert_eq!(
        next.await.unwrap(),
        4,
        "a number is not given again when its event is forgotten"
    );
}
