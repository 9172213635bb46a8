//! What an attempt that died had allocated in images: its data may lie there while no table points to it. The next attempt allocates for itself,
//! so the first one's space would be lost.

use vdisk_engine::image::Repair;
use vdisk_engine::{Control, Limits, formats, ops};

use super::{JobContext, open_patiently};
use crate::disk::{Layer, OpenSecrets, Opening};
use crate::error::{ErrorCode, Result};

impl JobContext {
    /// Gives that space back in every image that the job changes, for this attempt to use. An image that cannot be looked through is left to
    /// the job, which finds out what is wrong with it.
    ///
    /// # Errors
    /// `cancelled`, `lease_lost`.
    pub async fn give_back_leaks(&self) -> Result<()> {
        for record in self.inner.store.records_to_change(self.job()).await? {
            if !formats::by_name(&record.image.format)?.capabilities().repair {
                continue;
            }
            let (image, limits) = (record.image.id, self.inner.limits.clone());
            let layers = self.to_change(vec![self.inner.without_keys(record)?]);
            self.require_lease().await?;
            let given_back = self
                .blocking(move |control| give_back(&layers, &limits, &control.uncounted()))
                .await;
            match given_back {
                Ok(0) => {}
                Ok(leaks) => {
                    let text =
                        format!("gave back {leaks} clusters of image {image} that an attempt before had left unused");
                    self.step(&text).await?;
                }
                Err(error) if error.code == ErrorCode::Cancelled => return Err(error),
                Err(error) => {
                    tracing::warn!(job = %self.job(), %image, %error, "an image was not looked through for space that is lost");
                }
            }
        }
        Ok(())
    }
}

/// How many clusters it was.
fn give_back(layers: &[Layer], limits: &Limits, control: &Control) -> Result<u64> {
    let secrets = OpenSecrets::default();
    let opening = Opening {
        top_only: true,
        for_check: true,
        writable: &[0],
        ..Opening::read(limits, &secrets)
    };
    let chain = open_patiently(layers, &opening, control)?;
    Ok(ops::check::check(chain.top(), Repair::Leaks, control)?.leaks_fixed)
}
