//! Reading images whose files change, go, or are gone; and clients that ask for bytes and do not take them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use common::{Lab, MIB, NONE, OVERLAY, code, json, sample};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use vdisk_service::model::Extent;
use vdisk_service::request::MapRequest;
use vdisk_service::{ErrorCode, Service};

async fn etag(service: &Service, image: uuid::Uuid) -> String {
    let content = service.open_file(image).await.unwrap();
    let etag = content.etag.clone();
    content.close().await;
    etag
}

async fn compress(lab: &Lab, image: uuid::Uuid) {
    let request = json(json!({"algorithm": "zstd"}));
    let job = lab.service.compress_image(image, request, &NONE).await.unwrap();
    lab.succeed(job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_changed_has_another_etag_although_a_guest_sees_the_same() {
    let lab = Lab::new().await;
    let base = lab.upload("base", Some("raw"), &sample(2 << 20, 1)).await.unwrap();
    let copy = json(json!({"name": "copy", "format": OVERLAY}));
    let copy = lab.service.convert_image(base.id, copy, &NONE).await.unwrap();
    let image = lab.succeed(copy).await.result_image_id().unwrap();
    let first = etag(&lab.service, image).await;
    assert_eq!(etag(&lab.service, image).await, first, "nothing changed");
    lab.service.create_snapshot(image, "one", &NONE).await.unwrap();
    let second = etag(&lab.service, image).await;
    assert_ne!(second, first);
    lab.service.delete_snapshot(image, "one").await.unwrap();
    let third = etag(&lab.service, image).await;
    assert!(third != first && third != second);
    compress(&lab, image).await;
    let fourth = etag(&lab.service, image).await;
    assert!(![first, second, third].contains(&fourth));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_does_not_go_on_in_another_file() {
    let lab = Lab::new().await;
    let base = lab.upload("base", Some("raw"), &sample(2 << 20, 1)).await.unwrap();
    let copy = json(json!({"name": "copy", "format": OVERLAY}));
    let copy = lab.service.convert_image(base.id, copy, &NONE).await.unwrap();
    let image = lab.succeed(copy).await.result_image_id().unwrap();
    let request = |cursor| MapRequest {
        limit: Some(3),
        cursor,
        ..MapRequest::default()
    };
    let cursor = lab.service.image_map(image, &request(None)).await.unwrap().next_cursor;
    assert!(lab.service.image_map(image, &request(cursor.clone())).await.is_ok());
    compress(&lab, image).await;
    let refused = lab.service.image_map(image, &request(cursor)).await;
    assert_eq!(code(refused), ErrorCode::InvalidArgument);
}

/// Neighbours of the same status put together, as a map that was made in one go has them.
fn joined(extents: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
    let mut whole: Vec<Extent> = Vec::new();
    for extent in extents {
        match whole.last_mut() {
            Some(last) if goes_on(last, &extent) => last.length += extent.length,
            _ => whole.push(extent),
        }
    }
    whole
}

fn goes_on(last: &Extent, next: &Extent) -> bool {
    let moved = Extent {
        start: next.start,
        length: next.length,
        offset: last.offset.map(|offset| offset + last.length),
        ..last.clone()
    };
    last.start + last.length == next.start && moved == *next
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_page_that_takes_too_long_ends_where_it_is() {
    let lab = Lab::with(|config| config.limits.map_page_time = Duration::ZERO).await;
    let base = lab.upload("base", Some("raw"), &sample(2 << 20, 1)).await.unwrap();
    let copy = json(json!({"name": "copy", "format": OVERLAY}));
    let copy = lab.service.convert_image(base.id, copy, &NONE).await.unwrap();
    let image = lab.succeed(copy).await.result_image_id().unwrap();
    let all = MapRequest::default();
    let stream = lab.service.image_map_stream(image, &all).await.unwrap();
    let whole: Vec<Extent> = stream.try_collect().await.unwrap();
    assert!(whole.len() > 8, "{whole:?}");
    let (mut found, mut pages, mut cursor) = (Vec::new(), 0, None);
    loop {
        let request = MapRequest {
            cursor,
            ..MapRequest::default()
        };
        let page = lab.service.image_map(image, &request).await.unwrap();
        assert!(!page.extents.is_empty(), "a page that does not go on");
        found.extend(page.extents);
        pages += 1;
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert!(pages > whole.len() / 2, "{pages} pages");
    assert_eq!(joined(found), whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_measurement_that_takes_too_long_is_refused() {
    let lab = Lab::with(|config| config.limits.measure_time = Duration::ZERO).await;
    let image = lab.create("disk", OVERLAY, MIB).await;
    // One that was faster than the clock that ends it is no failure.
    for _ in 0..1000 {
        let measured = lab.service.measure_image(image.id, json(json!({"format": "raw"})));
        if let Err(error) = measured.await {
            return assert_eq!(error.code, ErrorCode::LimitExceeded);
        }
    }
    panic!("every measurement took no time");
}

/// How every way to read an image ends.
async fn ways_to_read(service: &Service, image: uuid::Uuid) -> Vec<(&'static str, Option<ErrorCode>)> {
    let all = MapRequest::default();
    let raw = json(json!({"format": "raw"}));
    let ended = |way, outcome: Result<(), vdisk_service::ServiceError>| (way, outcome.err().map(|error| error.code));
    vec![
        ended("data", service.read_data(image, None).await.map(drop)),
        ended("map", service.image_map(image, &all).await.map(drop)),
        ended("map stream", service.image_map_stream(image, &all).await.map(drop)),
        ended("measure", service.measure_image(image, raw).await.map(drop)),
    ]
}

/// Those that look at its own file alone.
async fn ways_to_look(service: &Service, image: uuid::Uuid) -> Vec<(&'static str, Option<ErrorCode>)> {
    let ended = |way, outcome: Result<(), vdisk_service::ServiceError>| (way, outcome.err().map(|error| error.code));
    vec![
        ended("file", service.read_file(image, None).await.map(drop)),
        ended("info", service.image_info(image).await.map(drop)),
        ended("inspection", service.inspect_image(image).await.map(drop)),
        ended("snapshots", service.snapshots(image).await.map(drop)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_file_is_gone_is_not_ready() {
    let lab = Lab::new().await;
    let base = lab.create("base", OVERLAY, MIB).await;
    let top = lab.overlay("top", base.id).await;
    std::fs::remove_file(lab.pool().join(base.id.to_string())).unwrap();
    for (way, ended) in ways_to_look(&lab.service, base.id).await {
        assert_eq!(ended, Some(ErrorCode::ImageNotReady), "{way} of the base");
    }
    for image in [base.id, top.id] {
        for (way, ended) in ways_to_read(&lab.service, image).await {
            assert_eq!(ended, Some(ErrorCode::ImageNotReady), "{way}");
        }
    }
    let message = lab.service.image_info(base.id).await.err().unwrap().public;
    assert!(message.contains("gone from its pool"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_beside_a_deletion_find_the_image_or_none() {
    let lab = Lab::new().await;
    for round in 0..25 {
        let image = lab.create(&format!("disk{round}"), OVERLAY, MIB).await.id;
        let reader = lab.service.clone();
        let reader = tokio::spawn(async move {
            let mut seen = Vec::new();
            while reader.image(image).await.is_ok() {
                let all = MapRequest::default();
                seen.push(reader.image_info(image).await.err());
                seen.push(reader.image_map(image, &all).await.err());
                seen.push(reader.inspect_image(image).await.err());
                seen.push(reader.read_data(image, None).await.err());
            }
            seen
        });
        while let Err(error) = lab.service.delete_image(image).await {
            assert_eq!(error.code, ErrorCode::ImageBusy, "{error}");
        }
        // While it goes its locks are in the way.
        let expected = [ErrorCode::NotFound, ErrorCode::ImageBusy];
        for error in reader.await.unwrap().into_iter().flatten() {
            assert!(expected.contains(&error.code), "{error}");
        }
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_take_nothing_keep_no_thread_and_are_so_many_at_most() {
    let lab = Lab::new().await;
    let image = lab.upload("disk", Some("raw"), &sample(8 << 20, 1)).await.unwrap().id;
    let before = threads();
    let mut open = Vec::new();
    let refused = loop {
        match lab.service.read_data(image, None).await {
            Ok(download) => open.push(download),
            Err(error) => break error,
        }
        assert!(open.len() <= 512, "there is no bound");
        let first = open.last_mut().unwrap().body.next().await;
        assert!(!first.unwrap().unwrap().is_empty());
    };
    assert_eq!(refused.code, ErrorCode::Unavailable);
    let maps = lab.service.image_map_stream(image, &MapRequest::default()).await;
    assert_eq!(code(maps), ErrorCode::Unavailable);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    lab.service.image_info(image).await.unwrap();
    lab.create("another", "raw", MIB).await;
    let grown = threads().saturating_sub(before);
    assert!(grown < open.len() / 2, "{grown} threads for {} downloads", open.len());
    drop(open.pop());
    lab.service
        .read_data(image, None)
        .await
        .expect("there is a place again");
    let rest: usize = open
        .pop()
        .unwrap()
        .body
        .map(|piece| piece.unwrap().len())
        .fold(0, |sum, length| async move { sum + length })
        .await;
    assert!(rest > 0 && rest < 8 << 20, "{rest}");
}
