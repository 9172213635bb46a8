//! The thread that keeps running jobs ours. It has a runtime and database connections of its own: long work on the threads of the rest of
//! the process, or a queue for its connections, does not hold up a heartbeat.

use std::sync::{Mutex, PoisonError};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::supervise::{Supervised, supervise};
use crate::error::{Result, ServiceError};
use crate::store::Store;

type Started = oneshot::Sender<Result<(Handle, Store)>>;

/// The thread. It ends with [`Pulse::end`].
pub struct Pulse {
    runtime: Handle,
    store: Store,
    end: CancellationToken,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

/// The heartbeat of one running job.
pub struct Heartbeat {
    end: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Starts the thread.
    ///
    /// # Errors
    /// `unavailable` when its connections cannot be made.
    pub async fn start(store: &Store) -> Result<Self> {
        let (started, waiting) = oneshot::channel();
        let end = CancellationToken::new();
        let (beside, ending) = (store.clone(), end.clone());
        let thread = thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || run(&beside, &ending, started))
            .map_err(ServiceError::internal)?;
        let (runtime, store) = waiting.await.map_err(ServiceError::internal)??;
        let thread = Mutex::new(Some(thread));
        Ok(Self {
            runtime,
            store,
            end,
            thread,
        })
    }

    /// Renews the lease of a job until the heartbeat is ended.
    pub fn keep(&self, job: Supervised) -> Heartbeat {
        let (store, end) = (self.store.clone(), CancellationToken::new());
        let ended = end.clone();
        let task = self.runtime.spawn(async move { supervise(&store, &job, &ended).await });
        let task = Some(task);
        Heartbeat { end, task }
    }

    /// Ends the thread and closes its connections.
    pub async fn end(&self) {
        self.end.cancel();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = tokio::task::spawn_blocking(move || thread.map(thread::JoinHandle::join)).await;
        if !matches!(ended, Ok(None | Some(Ok(())))) {
            tracing::error!("the thread of the heartbeats ended badly");
        }
    }
}

impl Heartbeat {
    /// Ends it, after the beat that is under way.
    pub async fn end(mut self) {
        self.end.cancel();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "a heartbeat ended badly");
        }
    }
}

/// A worker that is gone keeps no job.
impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

fn run(beside: &Store, end: &CancellationToken, started: Started) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(ServiceError::internal(error)))),
    };
    runtime.block_on(async {
        let connected = beside.beside().await;
        let store = connected.as_ref().ok().cloned();
        // Nobody waits for it when the service was given up meanwhile.
        let _ = started.send(connected.map(|store| (Handle::current(), store)));
        end.cancelled().await;
        if let Some(store) = store {
            store.close().await;
        }
    });
}
