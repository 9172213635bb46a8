//! Beside each running job: renews its lease, writes its progress, passes on what the user wants.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{JobControl, StopReason};
use crate::config::ServiceConfig;
use crate::error::{ErrorCode, Result};
use crate::fault::Step;
use crate::model::JobProgress;
use crate::store::Store;
use crate::store::jobs::Fence;

/// How often wishes are looked for at least.
const LISTEN: Duration = Duration::from_millis(400);

/// A running job, as its supervisor knows it.
pub struct Supervised {
    /// What entitles to write.
    pub fence: Fence,
    /// Its steering wheel.
    pub control: Arc<JobControl>,
    /// Wakes the supervisor.
    pub poked: Arc<Notify>,
    /// How often progress is written at most.
    pub interval: Duration,
    /// How often the lease is renewed.
    pub heartbeat: Duration,
    /// How long it lasts.
    pub lease: Duration,
}

impl Supervised {
    /// With the times that are configured.
    pub fn new(config: &ServiceConfig, fence: Fence, control: &Arc<JobControl>, poked: &Arc<Notify>) -> Self {
        Self {
            fence,
            control: control.clone(),
            poked: poked.clone(),
            interval: config.progress_interval,
            heartbeat: config.heartbeat,
            lease: config.lease,
        }
    }
}

/// Runs until it is ended, or until the lease is lost.
pub async fn supervise(store: &Store, job: &Supervised, end: &CancellationToken) {
    let (fence, control) = (job.fence, &job.control);
    let mut renewed = Instant::now();
    let mut looked = renewed;
    let mut shown = JobProgress::default();
    let mut ticks = tokio::time::interval(job.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            () = end.cancelled() => return,
            _ = ticks.tick() => false,
            () = job.poked.notified() => true,
        };
        let progress = control.progress();
        let moved = (progress.done_bytes, progress.total_bytes) != (shown.done_bytes, shown.total_bytes);
        if !(asked || moved || renewed.elapsed() >= job.heartbeat) {
            // Who runs the job is poked by its own users; those of another process are heard of here.
            if looked.elapsed() >= LISTEN {
                looked = Instant::now();
                listen(store, job).await;
            }
            continue;
        }
        looked = Instant::now();
        let asked_at = Instant::now();
        match report(store, job, moved.then_some(&progress)).await {
            Ok(()) => {
                renewed = asked_at;
                shown = progress;
            }
            Err(error) if error.code == ErrorCode::LeaseLost => {
                tracing::warn!(job = %fence.job, token = fence.token, "lost the lease; stopping");
                return control.stop(StopReason::LeaseLost);
            }
            Err(error) => tracing::warn!(job = %fence.job, %error, "could not renew the lease; trying again"),
        }
        // Whatever the database would say: after this long somebody else may have the job.
        if renewed.elapsed() >= job.lease {
            return control.stop(StopReason::LeaseLost);
        }
    }
}

/// Takes over what the user wants, without renewing anything.
async fn listen(store: &Store, job: &Supervised) {
    match store.wishes(job.fence).await {
        Ok(Some(wishes)) => job.control.wish(wishes),
        // The next report finds the lease lost.
        Ok(None) => {}
        Err(error) => tracing::debug!(job = %job.fence.job, %error, "what is wanted of the job could not be read"),
    }
}

async fn report(store: &Store, job: &Supervised, progress: Option<&JobProgress>) -> Result<()> {
    let mut tx = store.begin().await?;
    let wishes = tx.renew(job.fence, job.lease).await?;
    if let Some(progress) = progress {
        tx.record_progress(job.fence, progress).await?;
    }
    tx.commit_as(Step::Heartbeat).await?;
    job.control.wish(wishes);
    Ok(())
}
