use std::sync::Arc;

use tokio::sync::Semaphore;
use vdisk_engine::Control;

use super::Service;
use crate::disk::{Layer, Look, open_file};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{Finding, ImageId, Inspection, Severity, Verdict};
use crate::pool::Access;
use crate::sandbox;
use crate::store::images::ImageRecord;

/// Each inspection on request has a child process: so many at a time, whoever asks.
static INSPECTIONS: Semaphore = Semaphore::const_new(4);

impl Service {
    /// Looks at an image's file as an import would: its formats, its references, its features, and whether they are what
    /// the inventory has on record.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `inspection_failed`.
    pub async fn inspect_image(&self, id: ImageId) -> Result<Inspection> {
        let (limits, inspector) = (self.inner.limits.clone(), self.inner.config.inspector.clone());
        // The look keeps its place even if the caller goes away.
        let place = Arc::new(INSPECTIONS.acquire().await.map_err(ServiceError::internal)?);
        let look = move |layers: &[Layer], control: &Control| {
            let _place = place.clone();
            let Some(Layer { record, pool, .. }) = layers.first() else {
                return Err(ServiceError::not_found("image", id));
            };
            let look = Look {
                claimed: Some(record.image.format.clone()),
                check: false,
                strict: false,
            };
            let file = open_file(pool, &record.file, Access::Read)?;
            let looked = sandbox::inspect(inspector.as_deref(), file, &record.file, &look, &limits, control)?;
            Ok((looked, record.clone()))
        };
        let (looked, record) = self.look(id, true, look).await?;
        let mut inspection = looked.inspection;
        judge_base(&mut inspection, &record, looked.backing.map(|(name, _)| name));
        Ok(inspection)
    }
}

/// The base that the header names must be the one on record.
fn judge_base(inspection: &mut Inspection, record: &ImageRecord, named: Option<String>) {
    if inspection.virtual_size.is_none() || named == record.backing_name {
        return;
    }
    inspection.verdict = Verdict::Refused;
    inspection.findings.push(Finding {
        severity: Severity::Refusal,
        code: ErrorCode::BaseChanged.as_str().to_owned(),
        text: "the header names another base than the inventory has on record".to_owned(),
    });
}
