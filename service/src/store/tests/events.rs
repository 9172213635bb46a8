//! Events and their numbers.

use std::time::Duration;

use serde_json::json;

use super::{add_job, new_job, write};
use crate::error::{Result, ServiceError};
use crate::model::EventKind;
use crate::store::testing::{TestStore, on_both_databases};

on_both_databases! {
    events_are_numbered_without_gaps,
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
