//! The audit log: entries are handed over at once and written in batches, so that no request waits for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use uuid::Uuid;

use super::paging::Window;
use super::{Inner, Service};
use crate::error::Result;
use crate::fault::Step;
use crate::model::{AuditEntry, Page, Role};
use crate::request::PageRequest;

/// Entries that wait for the database. More than that are in the program's log alone.
const WAITING: usize = 4096;
const BATCH: usize = 256;
/// How often a batch is tried. With the pauses between: some four minutes.
const TRIES: u32 = 50;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is known of a request when it was answered.
#[derive(Clone, Debug)]
pub struct Audited {
    /// Name of the token, name of the certificate, or `anonymous`.
    pub caller: String,
    /// The caller's role.
    pub role: Option<Role>,
    /// `http` or `grpc`.
    pub transport: &'static str,
    /// Method and route, or the name of the call.
    pub action: String,
    /// The path.
    pub target: String,
    /// HTTP status or gRPC code.
    pub outcome: String,
    /// `X-Request-Id`.
    pub request_id: Option<String>,
}

impl Service {
    /// Notes who asked for what and how it ended, in the program's log and in the table.
    pub fn audit(&self, entry: Audited) {
        let role = entry.role.map(Role::as_str);
        tracing::info!(target: "vdiskd::audit", caller = entry.caller, role, action = entry.action, path = entry.target,
            outcome = entry.outcome, request_id = entry.request_id, "audit");
        let entry = AuditEntry {
            id: Uuid::now_v7(),
            at: self.inner.store.now(),
            caller: entry.caller,
            role: entry.role,
            transport: entry.transport.to_owned(),
            action: entry.action,
            target: entry.target,
            outcome: entry.outcome,
            request_id: entry.request_id,
        };
        if self.inner.audit.try_send(entry).is_err() {
            tracing::error!("the audit table does not keep up; the entry above is in this log alone");
        }
    }

    /// The audit log, newest entries first.
    ///
    /// # Errors
    /// `invalid_argument` for a page token that is not ours.
    pub async fn list_audit(&self, page: &PageRequest) -> Result<Page<AuditEntry>> {
        let window = Window::new(page, &self.inner.config.limits)?;
        let entries = self.inner.store.list_audit(window.from, window.rows()).await?;
        Ok(window.page(entries, |entry| entry.id))
    }
}

pub(super) fn channel() -> (mpsc::Sender<AuditEntry>, mpsc::Receiver<AuditEntry>) {
    mpsc::channel(WAITING)
}

/// Writes entries until the service stops, then those that still wait.
pub(super) async fn writer(inner: Arc<Inner>, mut entries: mpsc::Receiver<AuditEntry>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            count = entries.recv_many(&mut batch, BATCH) => if count == 0 { return },
            () = inner.stop.cancelled() => return,
        }
        match inner.store.last_audit().await {
            Ok(last) => follow(&mut batch, last),
            Err(error) => tracing::warn!(%error, "the audit table cannot be read; entries may stand before older ones"),
        }
        if let Err(error) = insist(&inner, &batch).await {
            tracing::error!(%error, entries = batch.len(), "the audit table cannot be written; the entries are in this log alone");
        }
        batch.clear();
    }
}

/// Makes entries follow those that are there also where the clock was put back since: the table forgets, and lists, by ids.
fn follow(batch: &mut [AuditEntry], mut last: Option<Uuid>) {
    for entry in batch {
        if let Some(last) = last.filter(|last| entry.id <= *last) {
            entry.id = Uuid::from_u128(last.as_u128().wrapping_add(1));
        }
        last = Some(entry.id);
    }
}

/// Tries again where the table cannot be written, for some minutes. New entries wait meanwhile, as many as there is room for. Whoever stops the
/// service is not kept waiting: then there is one last try.
async fn insist(inner: &Inner, entries: &[AuditEntry]) -> Result<()> {
    for tried in 1..TRIES {
        let Err(error) = write(inner, entries).await else {
            return Ok(());
        };
        tracing::warn!(%error, entries = entries.len(), "the audit table cannot be written; trying again");
        tokio::select! {
            () = tokio::time::sleep(FIRST_PAUSE.saturating_mul(tried * tried).min(LONGEST_PAUSE)) => {}
            () = inner.stop.cancelled() => break,
        }
    }
    write(inner, entries).await
}

async fn write(inner: &Inner, entries: &[AuditEntry]) -> Result<()> {
    let mut tx = inner.store.begin().await?;
    for entry in entries {
        tx.append_audit(entry).await?;
    }
    tx.prune_audit(inner.config.audit_entries).await?;
    tx.commit_as(Step::WriteAudit).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServiceConfig;

    fn asked(target: &str) -> Audited {
        Audited {
            caller: "root".to_owned(),
            role: Some(Role::Admin),
            transport: "http",
            action: "GET".to_owned(),
            target: target.to_owned(),
            outcome: "200".to_owned(),
            request_id: None,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn entries_from_a_clock_that_ran_ahead_go_before_those_that_came_after() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ServiceConfig::new(dir.path());
        (config.ballast_bytes, config.audit_entries) = (0, 3);
        let service = Service::open(config).await.unwrap();
        // The year 2100 in milliseconds.
        let ahead = Uuid::from_u128((4_102_444_800_000 << 80) | (7 << 76) | (2 << 62));
        let mut tx = service.inner.store.begin().await.unwrap();
        for number in 0..3_u128 {
            let entry = AuditEntry {
                id: Uuid::from_u128(ahead.as_u128() + number),
                at: tx.now,
                caller: "root".to_owned(),
                role: None,
                transport: "http".to_owned(),
                action: "GET".to_owned(),
                target: "ahead".to_owned(),
                outcome: "200".to_owned(),
                request_id: None,
            };
            tx.append_audit(&entry).await.unwrap();
        }
        tx.commit_as(Step::WriteAudit).await.unwrap();
        for target in ["first", "second"] {
            service.audit(asked(target));
        }
        let mut targets = Vec::new();
        for _ in 0..2000 {
            let entries = service.list_audit(&PageRequest::default()).await.unwrap().items;
            targets = entries.into_iter().map(|entry| entry.target).collect();
            if targets.first().is_some_and(|target| target == "second") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(targets, ["second", "first", "ahead"]);
        service.shutdown(Duration::from_secs(5)).await;
    }
}
