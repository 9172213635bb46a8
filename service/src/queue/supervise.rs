//! Beside each running job: renews its lease, writes its progress, passes on what the user wants.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::{JobControl, StopReason};
use crate::config::ServiceConfig;
use crate::error::{ErrorCode, Result};
use crate::model::JobProgress;
use crate::store::Store;
use crate::store::jobs::Fence;

/// Runs until it is dropped, or until the lease is lost.
pub async fn supervise(store: &Store, config: &ServiceConfig, fence: Fence, control: &Arc<JobControl>, poked: &Notify) {
    let mut renewed = Instant::now();
    let mut shown = JobProgress::default();
    let mut ticks = tokio::time::interval(config.progress_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            _ = ticks.tick() => false,
            () = poked.notified() => true,
        };
        let progress = control.progress();
        let moved = (progress.done_bytes, progress.total_bytes) != (shown.done_bytes, shown.total_bytes);
        if !(asked || moved || renewed.elapsed() >= config.heartbeat) {
            continue;
        }
        let asked_at = Instant::now();
        match report(store, config, fence, control, moved.then_some(&progress)).await {
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
        if renewed.elapsed() >= config.lease {
            return control.stop(StopReason::LeaseLost);
        }
    }
}

async fn report(
    store: &Store,
    config: &ServiceConfig,
    fence: Fence,
    control: &JobControl,
    progress: Option<&JobProgress>,
) -> Result<()> {
    let mut tx = store.begin().await?;
    let wishes = tx.renew(fence, config.lease).await?;
    if let Some(progress) = progress {
        tx.record_progress(fence, progress).await?;
    }
    tx.commit().await?;
    control.wish(wishes);
    Ok(())
}
