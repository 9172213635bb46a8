//! Workers: claim jobs, run them, settle them.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::settle::{end, succeed};
use super::slots::{Slot, Slots};
use super::supervise::Supervised;
use super::{Done, JobControl, StopReason};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::jobs::{self, JobContext};
use crate::model::JobProgress;
use crate::service::Inner;
use crate::store::jobs::{Claimed, Ending, Wish};

/// A job that runs in this process.
#[derive(Clone)]
pub struct Running {
    /// Its steering wheel.
    pub control: Arc<JobControl>,
    /// Wakes its supervisor.
    pub poked: Arc<Notify>,
}

/// Claims jobs and runs them side by side until the service stops.
pub async fn workers(inner: Arc<Inner>) {
    let slots = Slots::new(inner.config.workers);
    let mut work = inner.store.new_work();
    let mut running = JoinSet::new();
    while !inner.stop.is_cancelled() {
        let slot = tokio::select! {
            () = inner.stop.cancelled() => break,
            slot = slots.take() => slot,
        };
        while running.try_join_next().is_some() {}
        work.mark_unchanged();
        match claim(&inner).await {
            Ok(Some(claimed)) => {
                running.spawn(run(inner.clone(), claimed, slots.clone(), slot));
                continue;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "cannot look for jobs"),
        }
        // A job that goes on may have it.
        drop(slot);
        tokio::select! {
            () = inner.stop.cancelled() => {}
            _ = work.changed() => {}
            () = tokio::time::sleep(inner.config.poll_interval) => {}
        }
    }
    while running.join_next().await.is_some() {}
}

async fn claim(inner: &Inner) -> Result<Option<Claimed>> {
    let mut tx = inner.store.begin().await?;
    let claimed = tx.claim(inner.process, inner.config.lease).await?;
    if claimed.is_some() {
        tx.commit_as(Step::ClaimJob).await?;
    }
    Ok(claimed)
}

async fn run(inner: Arc<Inner>, claimed: Claimed, slots: Slots, slot: Slot) {
    let (inner, mut slot) = (&inner, Some(slot));
    let fence = claimed.fence;
    let control = JobControl::new(claimed.wishes);
    let running = Running {
        control: control.clone(),
        poked: Arc::new(Notify::new()),
    };
    inner.running().insert(fence.job, running.clone());
    if inner.stop.is_cancelled() {
        control.stop(StopReason::Shutdown);
    }
    tracing::info!(job = %fence.job, kind = %claimed.kind, attempt = claimed.attempt, "job started");
    let heartbeat = inner
        .pulse
        .keep(Supervised::new(&inner.config, fence, &control, &running.poked));
    let attempt = std::panic::AssertUnwindSafe(attempt(inner, &claimed, &control)).catch_unwind();
    // When the lease is lost the work is told to stop; the slot is given away when it has stopped.
    let outcome = tokio::select! {
        outcome = attempt => outcome,
        never = slots.lend(&control, &mut slot) => match never {},
    };
    heartbeat.end().await;
    let outcome = outcome.unwrap_or_else(|_| Err(ServiceError::internal("the job panicked")));
    match settle(inner, &claimed, &control, outcome).await {
        // What a first attempt made became an image or went with the attempt.
        Ok(Settled::Well) if fence.is_first() => {}
        Ok(_) => clear_away(inner, fence.job).await,
        Err(error) => tracing::warn!(job = %fence.job, %error, "the job could not be settled; it will be taken over"),
    }
    inner.running().remove(&fence.job);
    drop(slot);
}

/// What attempts kept for a next one, which there will not be when the job has ended.
async fn clear_away(inner: &Inner, job: crate::model::JobId) {
    let cleared = async {
        if inner.store.job(job).await?.is_finished() {
            jobs::sweep(inner, job).await?;
        }
        Ok::<_, ServiceError>(())
    };
    if let Err(error) = cleared.await {
        tracing::warn!(%job, %error, "leftovers of an ended job were not cleared away; the next start does it");
    }
}

async fn attempt(inner: &Arc<Inner>, claimed: &Claimed, control: &Arc<JobControl>) -> Result<Done> {
    let context = JobContext::new(inner.clone(), claimed, control.clone());
    context.sweep().await?;
    let (runner, payload) = (jobs::find(claimed.kind)?, claimed.payload.clone());
    let mut ready = may_run(&context, claimed).await;
    if ready.is_ok() && !claimed.fence.is_first() && runner.grows_images() {
        ready = context.give_back_leaks().await;
    }
    let Err(refused) = ready else {
        return runner.run(context, payload).await;
    };
    if !claimed.fence.is_first()
        && !context.is_handed_on()
        && let Err(error) = runner.abandon(context, payload).await
    {
        tracing::error!(job = %claimed.fence.job, %error, "what an earlier attempt of the job began to change was not put in order");
    }
    Err(refused)
}

async fn may_run(context: &JobContext, claimed: &Claimed) -> Result<()> {
    if claimed.wishes.wish == Wish::Cancel {
        return Err(ServiceError::new(ErrorCode::Cancelled, "cancelled"));
    }
    if claimed.attempt > context.inner.config.max_attempts {
        let public = format!(
            "the job was started {} times and its worker died each time",
            claimed.attempt - 1
        );
        return Err(ServiceError::new(ErrorCode::AttemptsExhausted, public));
    }
    context.require_unchanged().await
}

/// How an attempt was put on record.
enum Settled {
    /// The job succeeded.
    Well,
    /// It ended otherwise, or goes back to the queue.
    Otherwise,
}

async fn settle(inner: &Arc<Inner>, claimed: &Claimed, control: &JobControl, outcome: Result<Done>) -> Result<Settled> {
    let (store, fence) = (&inner.store, claimed.fence);
    let error = match outcome {
        Ok(done) => match succeed(store, fence, done, &last_progress(control)).await {
            Ok(job) => {
                tracing::info!(job = %fence.job, kind = %job.kind, "job succeeded");
                return Ok(Settled::Well);
            }
            Err(error) => error,
        },
        Err(error) => error,
    };
    let ending = match control.stop_reason() {
        _ if error.code == ErrorCode::LeaseLost => return Err(error),
        Some(StopReason::LeaseLost) => return Err(error),
        // What was found out about an image is told, whoever wants the job to end.
        _ if error.code == ErrorCode::CorruptImage => Ending::of_error(error),
        // Anything else may come of the end that was asked for, and nothing is lost by it.
        Some(StopReason::Cancelled) => {
            tracing::info!(job = %fence.job, %error, "job cancelled");
            Ending::Cancelled
        }
        Some(StopReason::Shutdown) => {
            let mut tx = store.begin().await?;
            tx.hand_back(fence, Duration::ZERO).await?;
            tracing::info!(job = %fence.job, %error, "job handed back");
            return tx.commit_as(Step::HandBackJob).await.map(|()| Settled::Otherwise);
        }
        _ => Ending::of_error(error),
    };
    if let Ending::Failed(error) = &ending {
        tracing::warn!(job = %fence.job, kind = %claimed.kind, %error, "job failed");
    }
    jobs::unpublish(inner, fence).await;
    let left = jobs::changed_by_then(inner, fence.job).await?;
    match end(store, fence, &ending, &left).await {
        // The room that was kept for this is free by now.
        Err(error) if error.code == ErrorCode::InsufficientStorage => end(store, fence, &ending, &left).await?,
        ended => ended?,
    };
    Ok(Settled::Otherwise)
}

/// The last word on the progress, so that a job that ended well does not look unfinished.
fn last_progress(control: &JobControl) -> JobProgress {
    let mut progress = control.progress();
    if let Some(total) = progress.total_bytes {
        progress.done_bytes = total;
    }
    progress
}

/// Renews the locks of this process's requests, takes those of dead processes away and forgets what is too old.
pub async fn housekeeping(inner: Arc<Inner>) {
    let mut beats: u32 = 0;
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(inner.config.heartbeat) => {}
        }
        beats = beats.wrapping_add(1);
        if let Err(error) = keep_house(&inner, beats.is_multiple_of(60)).await {
            tracing::warn!(%error, "housekeeping failed; trying again");
        }
    }
}

async fn keep_house(inner: &Inner, prune: bool) -> Result<()> {
    inner.store.keep_ballast();
    let mut tx = inner.store.begin().await?;
    let expires = tx.now.after(inner.config.lease);
    tx.renew_request_locks(inner.process, expires).await?;
    tx.sweep_request_locks().await?;
    if prune {
        tx.prune_events(inner.config.event_retention).await?;
        tx.prune_idempotency(inner.config.idempotency_retention).await?;
    }
    tx.commit_as(Step::KeepHouse).await?;
    jobs::close_abandoned(inner).await
}
