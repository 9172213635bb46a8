//! Events, from the change to who waits for it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use common::{Lab, MIB, NONE, OVERLAY, code, json, sample};
use futures::StreamExt;
use serde_json::json;
use vdisk_service::ErrorCode;
use vdisk_service::model::{Event, EventKind};
use vdisk_service::request::{EventFilter, UpdateImage};

/// Fails unless the last event of each image that is there says what a look at it says.
async fn assert_all_is_told(lab: &Lab, after: &str) {
    let events = lab.service.subscribe(EventFilter::default(), Some(0)).await.unwrap();
    let quiet = Duration::from_millis(300);
    let known = until_quiet(events, quiet).await;
    let images = lab.service.list_images(&Default::default(), &Default::default()).await;
    for image in images.unwrap().items {
        let last = known
            .iter()
            .rev()
            .find(|event| event.image_id == Some(image.id))
            .unwrap();
        let shown = json!({
            "name": image.name, "pool": image.pool, "state": image.state, "generation": image.generation,
            "virtual_size": image.virtual_size, "allocated_size": image.allocated_size, "backing_id": image.backing_id,
        });
        assert_eq!(last.data, shown, "after {after}: {:?}", last.kind);
    }
}

/// The events until there are no more for a while.
async fn until_quiet(
    mut events: impl futures::Stream<Item = vdisk_service::Result<Event>> + Unpin,
    quiet: Duration,
) -> Vec<Event> {
    let mut all = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(quiet, events.next()).await {
        all.push(event.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_event_of_an_image_is_how_it_is() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 20);
    let base = lab.upload("base", Some("raw"), &bytes).await.unwrap().id;
    assert_all_is_told(&lab, "an upload").await;
    let disk = lab.create("disk", OVERLAY, MIB).await.id;
    let (first, second) = (
        lab.overlay("first", base).await.id,
        lab.overlay("second", base).await.id,
    );
    assert_all_is_told(&lab, "creations").await;
    lab.service.create_snapshot(disk, "s", &NONE).await.unwrap();
    lab.service.delete_snapshot(disk, "s").await.unwrap();
    assert_all_is_told(&lab, "snapshots").await;
    let refused = lab.service.apply_snapshot(disk, "s", &NONE).await;
    assert_eq!(code(refused), ErrorCode::NotFound);
    assert_all_is_told(&lab, "a refusal").await;
    let service = &lab.service;
    let job = service.convert_image(base, json(json!({"name": "copy", "format": OVERLAY})), &NONE);
    let copy = lab.succeed(job.await.unwrap()).await.result_image_id().unwrap();
    assert_all_is_told(&lab, "a conversion").await;
    let resize = json(json!({"virtual_size": 2 * MIB}));
    lab.succeed(service.resize_image(disk, resize, &NONE).await.unwrap())
        .await;
    let compress = json(json!({"algorithm": "zlib"}));
    lab.succeed(service.compress_image(copy, compress, &NONE).await.unwrap())
        .await;
    lab.succeed(service.flatten_image(first, json(json!({})), &NONE).await.unwrap())
        .await;
    let rebase = json(json!({"backing": first}));
    lab.succeed(service.rebase_image(second, rebase, &NONE).await.unwrap())
        .await;
    assert_all_is_told(&lab, "changes in place").await;
    let slow = json(json!({"rate_limit": 1}));
    let job = service.commit_image(second, slow, &NONE).await.unwrap();
    lab.until_running(&job).await;
    let rename = UpdateImage {
        name: Some("renamed".to_owned()),
        ..UpdateImage::default()
    };
    service.update_image(first, rename).await.unwrap();
    service.cancel_job(job.id, &NONE).await.unwrap();
    lab.finish(job).await;
    assert_all_is_told(&lab, "a cancelled commit").await;
    let job = service
        .commit_image(second, json(json!({"drop": true})), &NONE)
        .await
        .unwrap();
    lab.succeed(job).await;
    assert_all_is_told(&lab, "a commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_the_story_of_a_job() {
    let lab = Lab::new().await;
    let image = lab.create("disk", "raw", MIB).await;
    let all = lab.service.subscribe(EventFilter::default(), Some(0)).await.unwrap();
    let job = lab
        .service
        .convert_image(image.id, json(json!({"name": "c", "format": "raw"})), &NONE)
        .await
        .unwrap();
    let filter = EventFilter {
        job: Some(job.id),
        image: None,
    };
    let story: Vec<_> = lab
        .service
        .subscribe(filter.clone(), None)
        .await
        .unwrap()
        .map(|e| e.unwrap())
        .collect()
        .await;
    assert_eq!(story.first().unwrap().kind, EventKind::JobQueued);
    assert_eq!(story.last().unwrap().data["state"], "succeeded");
    let middle = story[1].seq;
    let rest: Vec<_> = lab
        .service
        .subscribe(filter, Some(middle))
        .await
        .unwrap()
        .map(|e| e.unwrap().seq)
        .collect()
        .await;
    assert_eq!(rest, story[2..].iter().map(|event| event.seq).collect::<Vec<_>>());
    let last = story.last().unwrap().seq;
    let seqs: Vec<_> = all.map(|e| e.unwrap().seq).take(last as usize).collect().await;
    assert_eq!(seqs, (1..=last).collect::<Vec<_>>());
}
