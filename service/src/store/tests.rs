//! What the store promises, on both databases.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::idempotency::{IdempotentRequest, Outcome};
use super::images::{Backing, FileFacts, NewImage, Origin};
use super::jobs::{Ending, NewJob, Wish};
use super::locks::{Holder, LockMode};
use super::secrets::SealedSecret;
use super::testing::{TestStore, on_both_databases};
use super::{Store, Tx};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{EventKind, ImageId, ImageState, JobId, JobKind, JobProgress, JobState, Labels};
use crate::request::{ImageFilter, JobFilter, UpdateImage, UpdateJob};

const LEASE: Duration = Duration::from_secs(30);

on_both_databases! {
    a_base_with_overlays_cannot_be_deleted,
    a_name_is_taken_once_in_a_pool,
    reserved_images_are_not_shown,
    images_are_filtered_and_paged,
    an_exclusive_lock_makes_the_image_busy,
    request_locks_lapse,
    jobs_run_by_priority_then_age,
    a_lapsed_lease_is_claimed_with_the_next_token,
    a_stale_worker_cannot_write,
    a_paused_job_is_not_claimed,
    cancelling_a_queued_job_frees_what_it_held,
    cancelling_a_running_job_asks_its_worker,
    a_handed_back_start_does_not_count,
    progress_gives_an_eta,
    an_idempotency_key_stands_for_one_request,
    events_are_numbered_without_gaps,
    secrets_have_unique_names,
    publishing_needs_the_reservation,
    rolled_back_work_leaves_nothing,
}

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

async fn a_base_with_overlays_cannot_be_deleted(TestStore { store, .. }: TestStore) {
    let base = add_image(&store, "base", None).await;
    let overlay = add_image(&store, "overlay", Some(base)).await;
    let refused = write(&store, async |tx| tx.delete_image(base).await).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.dependents),
        (ErrorCode::ConflictDependents, vec![overlay])
    );
    assert_eq!(
        store
            .chain(overlay, 8)
            .await
            .unwrap()
            .iter()
            .map(|l| l.image.id)
            .collect::<Vec<_>>(),
        [overlay, base]
    );
    assert_eq!(code(store.chain(overlay, 1).await), ErrorCode::LimitExceeded);
    write(&store, async |tx| tx.delete_image(overlay).await).await.unwrap();
    write(&store, async |tx| tx.delete_image(base).await).await.unwrap();
    assert_eq!(code(store.image(base).await), ErrorCode::NotFound);
}

async fn a_name_is_taken_once_in_a_pool(TestStore { store, .. }: TestStore) {
    let first = add_image(&store, "a", None).await;
    let second = add_image(&store, "b", None).await;
    let insert = write(&store, async |tx| {
        tx.insert_image(&new_image("a", Uuid::now_v7())).await
    })
    .await;
    assert_eq!(code(insert), ErrorCode::NameTaken);
    let rename = |name: &str| UpdateImage {
        name: Some(name.to_owned()),
        ..UpdateImage::default()
    };
    let renamed = write(&store, async |tx| tx.update_image(second, &rename("a")).await).await;
    assert_eq!(code(renamed), ErrorCode::NameTaken);
    write(&store, async |tx| tx.update_image(first, &rename("a")).await)
        .await
        .unwrap();
    let mut elsewhere = new_image("a", Uuid::now_v7());
    elsewhere.pool = "other".to_owned();
    write(&store, async |tx| tx.insert_image(&elsewhere).await)
        .await
        .unwrap();
}

async fn reserved_images_are_not_shown(TestStore { store, .. }: TestStore) {
    let holder = Uuid::now_v7();
    let image = new_image("soon", holder);
    write(&store, async |tx| tx.insert_image(&image).await).await.unwrap();
    assert_eq!(code(store.image(image.id).await), ErrorCode::NotFound);
    assert!(
        store
            .list_images(&ImageFilter::default(), None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    write(&store, async |tx| tx.delete_reserved(holder).await)
        .await
        .unwrap();
    add_image(&store, "soon", None).await;
}

async fn images_are_filtered_and_paged(TestStore { store, .. }: TestStore) {
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(add_image(&store, name, None).await);
    }
    let overlay = add_image(&store, "d", Some(ids[0])).await;
    let found = async |filter: ImageFilter| -> Vec<ImageId> {
        let found = store.list_images(&filter, None, 10).await.unwrap();
        found.into_iter().map(|image| image.id).collect()
    };
    let all = ImageFilter::default;
    assert_eq!(
        found(ImageFilter {
            name: Some("b".to_owned()),
            ..all()
        })
        .await,
        [ids[1]]
    );
    assert_eq!(
        found(ImageFilter {
            label: Some("made-by=c".to_owned()),
            ..all()
        })
        .await,
        [ids[2]]
    );
    assert_eq!(
        found(ImageFilter {
            label: Some("made-by".to_owned()),
            ..all()
        })
        .await
        .len(),
        4
    );
    assert_eq!(
        found(ImageFilter {
            backing: Some(ids[0]),
            ..all()
        })
        .await,
        [overlay]
    );
    assert_eq!(
        found(ImageFilter {
            state: Some(ImageState::Busy),
            ..all()
        })
        .await,
        Vec::<ImageId>::new()
    );
    assert_eq!(
        found(ImageFilter {
            format: Some("qcow2".to_owned()),
            ..all()
        })
        .await,
        Vec::<ImageId>::new()
    );
    let page = store.list_images(&all(), Some(ids[0]), 2).await.unwrap();
    assert_eq!(page.iter().map(|image| image.id).collect::<Vec<_>>(), ids[1..]);
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

async fn jobs_run_by_priority_then_age(TestStore { store, .. }: TestStore) {
    let low = add_job(&store, &new_job(0, &[])).await;
    let later = add_job(&store, &new_job(0, &[])).await;
    let high = add_job(&store, &new_job(5, &[])).await;
    let raised = add_job(&store, &new_job(0, &[])).await;
    let update = UpdateJob {
        priority: Some(9),
        rate_limit: Some(1000),
    };
    write(&store, async |tx| tx.update_job(raised, &update).await)
        .await
        .unwrap();
    for expected in [raised, high, low, later] {
        let claimed = write(&store, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(claimed.fence.job, expected);
    }
    assert!(
        write(&store, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
            .await
            .unwrap()
            .is_none()
    );
    let running = JobFilter {
        state: Some(JobState::Running),
        ..JobFilter::default()
    };
    let listed: Vec<_> = store
        .list_jobs(&running, None, 3)
        .await
        .unwrap()
        .into_iter()
        .map(|job| job.id)
        .collect();
    assert_eq!(listed, [raised, high, later]);
}

async fn a_lapsed_lease_is_claimed_with_the_next_token(TestStore { store, clock }: TestStore) {
    add_job(&store, &new_job(0, &[])).await;
    let claim = async || {
        write(&store, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
            .await
            .unwrap()
    };
    let first = claim().await.unwrap();
    clock.advance(20_000);
    let wishes = write(&store, async |tx| tx.renew(first.fence, LEASE).await)
        .await
        .unwrap();
    assert_eq!(wishes.wish, Wish::Run);
    clock.advance(29_999);
    assert!(claim().await.is_none());
    clock.advance(1);
    let second = claim().await.unwrap();
    assert_eq!((second.fence.token, second.attempt), (first.fence.token + 1, 2));
}

async fn a_stale_worker_cannot_write(TestStore { store, clock }: TestStore) {
    let job = add_job(&store, &new_job(0, &[])).await;
    let claim = async || {
        write(&store, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
            .await
            .unwrap()
    };
    let stale = claim().await.unwrap().fence;
    clock.advance(30_000);
    let finish = write(&store, async |tx| tx.finish(stale, &Ending::Cancelled).await).await;
    assert_eq!(
        code(finish),
        ErrorCode::LeaseLost,
        "the lease ran out although nobody took the job over"
    );
    let fresh = claim().await.unwrap().fence;
    let progress = JobProgress {
        done_bytes: 1,
        ..JobProgress::default()
    };
    assert_eq!(
        code(write(&store, async |tx| tx.renew(stale, LEASE).await).await),
        ErrorCode::LeaseLost
    );
    assert_eq!(
        code(write(&store, async |tx| tx.record_progress(stale, &progress).await).await),
        ErrorCode::LeaseLost
    );
    assert_eq!(
        code(write(&store, async |tx| tx.record_step(stale, "x").await).await),
        ErrorCode::LeaseLost
    );
    assert_eq!(
        code(write(&store, async |tx| tx.hand_back(stale, LEASE).await).await),
        ErrorCode::LeaseLost
    );
    let done = Ending::Succeeded(json!({"image_id": job}));
    let ended = write(&store, async |tx| tx.finish(fresh, &done).await).await.unwrap();
    assert_eq!((ended.state, ended.result_image_id()), (JobState::Succeeded, Some(job)));
    assert_eq!(
        code(write(&store, async |tx| tx.finish(fresh, &done).await).await),
        ErrorCode::LeaseLost
    );
}

async fn a_paused_job_is_not_claimed(TestStore { store, clock }: TestStore) {
    let job = add_job(&store, &new_job(0, &[])).await;
    let claim = async || {
        write(&store, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
            .await
            .unwrap()
    };
    let paused = write(&store, async |tx| tx.pause_job(job).await).await.unwrap();
    assert_eq!(paused.state, JobState::Paused);
    assert!(claim().await.is_none());
    write(&store, async |tx| tx.resume_job(job).await).await.unwrap();
    let fence = claim().await.unwrap().fence;
    write(&store, async |tx| tx.pause_job(job).await).await.unwrap();
    let wishes = write(&store, async |tx| tx.renew(fence, LEASE).await).await.unwrap();
    assert_eq!(wishes.wish, Wish::Pause);
    clock.advance(60_000);
    assert!(
        claim().await.is_none(),
        "a dead worker's paused job waits to be resumed"
    );
    write(&store, async |tx| tx.resume_job(job).await).await.unwrap();
    assert!(claim().await.is_some());
}

async fn cancelling_a_queued_job_frees_what_it_held(TestStore { store, .. }: TestStore) {
    let source = add_image(&store, "source", None).await;
    let mut job = new_job(0, &[(source, LockMode::Exclusive)]);
    job.makes = Some(new_image("target", job.id));
    add_job(&store, &job).await;
    let cancelled = write(&store, async |tx| tx.cancel_job(job.id).await).await.unwrap();
    assert_eq!(cancelled.state, JobState::Cancelled);
    assert!(cancelled.finished_at.is_some());
    assert_eq!(store.image(source).await.unwrap().image.state, ImageState::Ready);
    assert_eq!(store.pool_records("default").await.unwrap().len(), 1);
    let again = write(&store, async |tx| tx.cancel_job(job.id).await).await.unwrap();
    assert_eq!(again.version, cancelled.version);
    assert_eq!(
        code(write(&store, async |tx| tx.pause_job(job.id).await).await),
        ErrorCode::JobStateConflict
    );
}

async fn cancelling_a_running_job_asks_its_worker(TestStore { store, clock }: TestStore) {
    let job = add_job(&store, &new_job(0, &[])).await;
    let claim = async || {
        write(&store, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
            .await
            .unwrap()
    };
    claim().await.unwrap();
    let asked = write(&store, async |tx| tx.cancel_job(job).await).await.unwrap();
    assert_eq!((asked.state, asked.cancel_requested), (JobState::Running, true));
    clock.advance(31_000);
    let taken = claim().await.unwrap();
    assert_eq!(taken.wishes.wish, Wish::Cancel, "whoever takes the job over must know");
    let ended = write(&store, async |tx| tx.finish(taken.fence, &Ending::Cancelled).await)
        .await
        .unwrap();
    assert_eq!((ended.state, ended.cancel_requested), (JobState::Cancelled, false));
}

async fn a_handed_back_start_does_not_count(TestStore { store, clock }: TestStore) {
    add_job(&store, &new_job(0, &[])).await;
    let claim = async || {
        write(&store, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
            .await
            .unwrap()
    };
    let first = claim().await.unwrap();
    write(&store, async |tx| {
        tx.hand_back(first.fence, Duration::from_secs(1)).await
    })
    .await
    .unwrap();
    assert!(claim().await.is_none());
    clock.advance(1_000);
    let second = claim().await.unwrap();
    assert_eq!((second.attempt, second.fence.token), (1, first.fence.token + 1));
}

async fn progress_gives_an_eta(TestStore { store, .. }: TestStore) {
    let job = add_job(&store, &new_job(0, &[])).await;
    let fence = write(&store, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
        .await
        .unwrap()
        .unwrap()
        .fence;
    let progress = JobProgress {
        done_bytes: 100,
        total_bytes: Some(1000),
        bytes_per_second: Some(200),
        eta_seconds: None,
    };
    write(&store, async |tx| tx.record_progress(fence, &progress).await)
        .await
        .unwrap();
    write(&store, async |tx| tx.record_step(fence, "copying").await)
        .await
        .unwrap();
    let job = store.job(job).await.unwrap();
    assert_eq!(
        job.progress,
        JobProgress {
            eta_seconds: Some(5),
            ..progress
        }
    );
    assert_eq!(
        job.steps.iter().map(|step| step.text.as_str()).collect::<Vec<_>>(),
        ["copying"]
    );
}

async fn an_idempotency_key_stands_for_one_request(TestStore { store, clock }: TestStore) {
    let same = IdempotentRequest::new("key-1", "convert", "image", &json!({"a": 1})).unwrap();
    let other = IdempotentRequest::new("key-1", "convert", "image", &json!({"a": 2})).unwrap();
    let outcome = Outcome::Job(Uuid::now_v7());
    assert_eq!(
        write(&store, async |tx| tx.recall(Some(&same)).await).await.unwrap(),
        None
    );
    write(&store, async |tx| tx.remember(Some(&same), outcome).await)
        .await
        .unwrap();
    assert_eq!(
        write(&store, async |tx| tx.recall(Some(&same)).await).await.unwrap(),
        Some(outcome)
    );
    assert_eq!(
        code(write(&store, async |tx| tx.recall(Some(&other)).await).await),
        ErrorCode::IdempotencyConflict
    );
    clock.advance(3_600_001);
    write(&store, async |tx| tx.prune_idempotency(Duration::from_secs(3600)).await)
        .await
        .unwrap();
    assert_eq!(
        write(&store, async |tx| tx.recall(Some(&other)).await).await.unwrap(),
        None
    );
    for bad in ["", "two words", &"x".repeat(256)] {
        assert!(IdempotentRequest::new(bad, "", "", &()).is_err(), "{bad}");
    }
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

async fn secrets_have_unique_names(TestStore { store, .. }: TestStore) {
    let sealed = SealedSecret {
        sealed: "AAAA".to_owned(),
        key_id: "k".to_owned(),
    };
    let id = Uuid::now_v7();
    write(&store, async |tx| tx.insert_secret(id, "s", &sealed).await)
        .await
        .unwrap();
    let twice = write(&store, async |tx| tx.insert_secret(Uuid::now_v7(), "s", &sealed).await).await;
    assert_eq!(code(twice), ErrorCode::NameTaken);
    assert_eq!(store.sealed_secret(id).await.unwrap().sealed, "AAAA");
    assert_eq!(
        store.list_secrets(None, 10).await.unwrap(),
        [store.secret(id).await.unwrap()]
    );
    write(&store, async |tx| tx.delete_secret(id).await).await.unwrap();
    assert_eq!(
        code(write(&store, async |tx| tx.delete_secret(id).await).await),
        ErrorCode::NotFound
    );
}

async fn publishing_needs_the_reservation(TestStore { store, .. }: TestStore) {
    let holder = Uuid::now_v7();
    let image = new_image("a", holder);
    write(&store, async |tx| tx.insert_image(&image).await).await.unwrap();
    let publish = async |by| {
        write(&store, async |tx| {
            tx.publish_image(image.id, by, &image.file, &facts()).await
        })
        .await
    };
    assert_eq!(code(publish(Uuid::now_v7()).await), ErrorCode::LeaseLost);
    publish(holder).await.unwrap();
    assert_eq!(code(publish(holder).await), ErrorCode::LeaseLost);
    let found = store.image(image.id).await.unwrap().image;
    assert_eq!(
        (found.state, found.generation, found.virtual_size),
        (ImageState::Ready, 1, 1 << 20)
    );
    write(&store, async |tx| tx.record_change(image.id, &facts(), true).await)
        .await
        .unwrap();
    assert_eq!(store.image(image.id).await.unwrap().image.generation, 2);
}

async fn rolled_back_work_leaves_nothing(TestStore { store, .. }: TestStore) {
    let source = add_image(&store, "source", None).await;
    let mut job = new_job(0, &[(source, LockMode::Exclusive)]);
    job.makes = Some(new_image("source", job.id));
    assert_eq!(
        code(write(&store, async |tx| tx.enqueue(&job, 100).await).await),
        ErrorCode::NameTaken
    );
    assert_eq!(code(store.job(job.id).await), ErrorCode::NotFound);
    assert_eq!(store.image(source).await.unwrap().image.state, ImageState::Ready);
    assert_eq!(
        code(write(&store, async |tx| tx.enqueue(&new_job(0, &[]), 0).await).await),
        ErrorCode::LimitExceeded
    );
}
