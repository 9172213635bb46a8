//! Reads that hold nothing: what they look at may change or go meanwhile.

use std::sync::Arc;

use vdisk_engine::control::NoProgress;
use vdisk_engine::{CancelToken, Control};

use super::Service;
use super::background::blocking;
use crate::disk::Layer;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::jobs::require_ready;
use crate::model::{ImageId, ImageState};

/// How often a chain is looked at that changes each time.
const LOOKS: usize = 5;

/// Tells work on another thread to stop when nobody waits for it any more.
pub(crate) struct Wanted(CancelToken);

impl Wanted {
    pub(crate) fn new() -> Self {
        Self(CancelToken::new())
    }

    /// What the work is to look at as it goes.
    pub(crate) fn control(&self) -> Control {
        Control::new(Arc::new(NoProgress), self.0.clone())
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Service {
    /// Looks at a chain, or its top alone; what others did to the top is noticed with it. What fails may have met a change,
    /// so it is tried again with the records of then, if they are other ones. The work is told to stop when the caller goes
    /// away.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        id: ImageId,
        top_only: bool,
        work: impl Fn(&[Layer], &Control) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let (work, wanted) = (Arc::new(work), Wanted::new());
        let mut layers = self.ready_layers(id, top_only).await?;
        let mut looks = 1;
        loop {
            let (again, seen, control) = (work.clone(), layers.clone(), wanted.control());
            let error = match blocking(move || again(&seen, &control)).await {
                Ok(found) => {
                    if let Some(top) = layers.into_iter().next() {
                        self.inner.as_it_is(top.record).await;
                    }
                    return Ok(found);
                }
                Err(error) => error,
            };
            let now = self.ready_layers(id, top_only).await?;
            if looks == LOOKS || same(&layers, &now) {
                return Err(if_changing(error, &now));
            }
            looks += 1;
            layers = now;
        }
    }

    /// The chain of an image whose content is wanted.
    pub(super) async fn readable(&self, id: ImageId) -> Result<Vec<Layer>> {
        self.ready_layers(id, false).await
    }

    async fn ready_layers(&self, id: ImageId, top_only: bool) -> Result<Vec<Layer>> {
        let layers = match top_only {
            true => self.inner.with_folders(vec![self.inner.store.image(id).await?]).await?,
            false => self.inner.layers(id).await?,
        };
        layers.iter().try_for_each(|layer| require_ready(&layer.record))?;
        Ok(layers)
    }
}

fn same(before: &[Layer], now: &[Layer]) -> bool {
    before
        .iter()
        .map(|layer| &layer.record)
        .eq(now.iter().map(|layer| &layer.record))
}

/// The file of an image that is changed or deleted at this moment may be aside.
fn if_changing(error: ServiceError, layers: &[Layer]) -> ServiceError {
    let busy = |layer: &&Layer| layer.record.image.state == ImageState::Busy;
    match layers.iter().find(busy) {
        Some(layer) if error.code == ErrorCode::ImageNotReady => {
            let public = format!("image {} is being changed; try again", layer.record.image.id);
            ServiceError::new(ErrorCode::ImageBusy, public)
        }
        _ => error,
    }
}
