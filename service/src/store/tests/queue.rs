//! The queue: who is claimed when, and whose word counts.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::{LEASE, add_image, add_job, code, new_image, new_job, write};
use crate::error::ErrorCode;
use crate::model::{ImageState, JobProgress, JobState};
use crate::request::{JobFilter, UpdateJob};
use crate::store::jobs::{Ending, Wish};
use crate::store::locks::LockMode;
use crate::store::testing::{TestStore, on_both_databases};

on_both_databases! {
    jobs_run_by_priority_then_age,
    a_lapsed_lease_is_claimed_with_the_next_token,
    a_stale_worker_cannot_write,
    a_paused_job_is_not_claimed,
    cancelling_a_queued_job_frees_what_it_held,
    cancelling_a_running_job_asks_its_worker,
    a_handed_back_start_does_not_count,
    what_is_queued_runs_whatever_the_clock_does,
    progress_gives_an_eta,
    rolled_back_work_leaves_nothing,
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

async fn what_is_queued_runs_whatever_the_clock_does(TestStore { store, clock }: TestStore) {
    add_job(&store, &new_job(0, &[])).await;
    let claim = async || {
        write(&store, async |tx| tx.claim(Uuid::now_v7(), LEASE).await)
            .await
            .unwrap()
    };
    let hand_back = async |fence, delay| {
        write(&store, async |tx| tx.hand_back(fence, delay).await)
            .await
            .unwrap();
    };
    clock.advance(-3_600_000);
    let first = claim().await.expect("it was queued before the clock was put back");
    hand_back(first.fence, Duration::ZERO).await;
    clock.advance(-3_600_000);
    let second = claim().await.expect("it was handed back before the clock was put back");
    hand_back(second.fence, Duration::from_secs(3600)).await;
    assert!(claim().await.is_none());
    write(&store, async |tx| tx.end_delays().await).await.unwrap();
    claim().await.expect("at a start everything is due");
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
