//! What the plans of the jobs' dry runs have in common. Each kind says in `jobs/KIND/foresee.rs` what it would do; only tables are read
//! for that, and nothing is changed.

use std::sync::Arc;

use vdisk_engine::image::ExtentKind;
use vdisk_engine::ops::{GuestSource, SourceKind, measure};
use vdisk_engine::{Chain, Control, Limits};

use super::sources::TopLayer;
use crate::disk::{Layer, OpenSecrets, Opening, open_chain};
use crate::error::{Result, ServiceError};
use crate::model::{Amount, ImageId, Loss, LossKind};
use crate::service::{Inner, Wanted};

/// What a kind can tell; [`crate::model::JobPlan`] says what the fields mean.
#[derive(Default)]
pub struct Foreseen {
    pub read: Option<Amount>,
    pub write: Option<Amount>,
    pub target_size: Option<Amount>,
    pub space_needed: Option<Amount>,
    pub losses: Vec<Loss>,
}

impl Foreseen {
    /// Of work that touches no image.
    pub fn of_no_image() -> Self {
        Self {
            read: Some(Amount::exact(0)),
            write: Some(Amount::exact(0)),
            space_needed: Some(Amount::exact(0)),
            ..Self::default()
        }
    }
}

/// What a dry run has at hand.
#[derive(Clone)]
pub struct Foresight {
    /// The service.
    pub inner: Arc<Inner>,
}

impl Foresight {
    /// The chain of an image as the inventory has it.
    pub async fn layers(&self, image: ImageId) -> Result<Vec<Layer>> {
        self.inner.layers(image).await
    }

    /// Looks at images on a thread of its own, which is told to stop when the caller goes away.
    ///
    /// # Errors
    /// What looking says.
    pub async fn look(
        &self,
        work: impl FnOnce(&Limits, &Control) -> Result<Foreseen> + Send + 'static,
    ) -> Result<Foreseen> {
        let limits = self.inner.limits.clone();
        let wanted = Wanted::new();
        let control = wanted.control();
        let done = tokio::task::spawn_blocking(move || work(&limits, &control)).await;
        done.map_err(|error| ServiceError::internal(format!("the thread of a dry run ended: {error}")))?
    }
}

/// Opens a chain to see where its data is.
pub fn open(layers: &[Layer], limits: &Limits) -> Result<Chain> {
    let secrets = OpenSecrets::default();
    let opening = Opening {
        metadata_only: true,
        ..Opening::read(limits, &secrets)
    };
    open_chain(layers, &opening)
}

/// The image that a chain is about.
pub fn top(layers: &[Layer]) -> Result<&Layer> {
    layers.first().ok_or_else(|| ServiceError::internal("no image"))
}

/// Ranges of the guest, in order.
pub type Ranges = Vec<(u64, u64)>;

/// Where a source has data.
pub fn data(source: &dyn GuestSource, control: &Control) -> Result<Ranges> {
    Ok(measure::data_ranges(source, control)?)
}

/// Bytes in ranges.
pub fn total(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(_, len)| *len).sum()
}

/// The file of an image after it grew.
pub fn grown(layer: &Layer, growth: Option<u64>) -> Option<Amount> {
    growth.map(|bytes| Amount::at_most(layer.record.image.file_size.saturating_add(bytes)))
}

/// What the top of a chain does not have itself, where one of these sources has data.
pub fn missing(chain: &Chain, sources: &[&dyn GuestSource], control: &Control) -> Result<Ranges> {
    let mut found: Ranges = Vec::new();
    let (own, mut offset, end) = (TopLayer(chain), 0, chain.virtual_size());
    let mut walk = own.walk();
    let mut others: Vec<_> = sources.iter().map(|source| (source.len(), source.walk())).collect();
    while offset < end {
        control.check_cancelled()?;
        let mine = walk.extent(offset, end - offset)?;
        let (mut len, mut wanted) = (mine.len, false);
        if mine.kind == SourceKind::Absent {
            for (size, walk) in others.iter_mut().filter(|(size, _)| *size > offset) {
                let theirs = walk.extent(offset, len.min(*size - offset))?;
                len = len.min(theirs.len);
                wanted |= theirs.kind == SourceKind::Data;
            }
        }
        match found.last_mut() {
            Some((start, known)) if wanted && *start + *known == offset => *known += len,
            _ if wanted => found.push((offset, len)),
            _ => {}
        }
        offset += len;
    }
    Ok(found)
}

/// Of these ranges, what an image has no place for yet, or only one that was set aside.
pub fn without_place(chain: &Chain, ranges: &[(u64, u64)]) -> Result<Ranges> {
    if chain.top().reserves_space() {
        return Ok(ranges.to_vec());
    }
    let mut found = Vec::new();
    for &(start, len) in ranges {
        let end = (start + len).min(chain.top().virtual_size());
        let mut offset = start;
        while offset < end {
            let extent = chain.top().extent(offset, end - offset)?;
            let len = extent.len.min(end - offset);
            if !matches!(extent.kind, ExtentKind::Data { .. }) {
                found.push((offset, len));
            }
            offset += len;
        }
        // Behind the end of the image, which will grow.
        if start + len > offset {
            found.push((offset, start + len - offset));
        }
    }
    Ok(found)
}

/// Snapshots, bitmaps and encryption that the result will not have.
pub fn losses(chain: &Chain, image: ImageId, keeps_encryption: bool) -> Result<Vec<Loss>> {
    let info = chain.top().info()?;
    let bitmaps = chain
        .top()
        .bitmaps()
        .map_or(Ok(0), |bitmaps| bitmaps.list().map(|list| list.len()))?;
    let snapshots = info.snapshots.len();
    let loss = |kind, detail: String| Loss {
        kind,
        image_id: image,
        detail,
    };
    let mut found = Vec::new();
    if snapshots > 0 {
        found.push(loss(LossKind::Snapshots, format!("{snapshots} internal snapshots")));
    }
    if bitmaps > 0 {
        found.push(loss(LossKind::Bitmaps, format!("{bitmaps} persistent bitmaps")));
    }
    if info.encrypted && !keeps_encryption {
        found.push(loss(LossKind::Encryption, "the result is not encrypted".to_owned()));
    }
    Ok(found)
}
