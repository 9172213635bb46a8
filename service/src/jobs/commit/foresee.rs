//! What a commit job would do.

use serde_json::Value;
use vdisk_engine::ops::{GuestSource, SourceKind};
use vdisk_engine::{Chain, Control, Limits};

use super::Payload;
use crate::disk::{Layer, OpenSecrets, Opening};
use crate::error::Result;
use crate::jobs::context::open_patiently;
use crate::jobs::foresee::{Foreseen, Foresight, Ranges, data, grown, losses, open, top, total, without_place};
use crate::jobs::kept::refuse_snapshots;
use crate::jobs::parse;
use crate::jobs::space::growth;
use crate::model::{Amount, Loss, LossKind};

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let payload: Payload = parse(payload)?;
    let layers = foresight.layers(payload.image).await?;
    let work = move |limits: &_, control: &_| {
        let chain = open(&layers, limits)?;
        if !payload.drop {
            refuse_snapshots(chain.top())?;
        }
        let ranges = above(&chain, payload.depth, control)?;
        let (upper, lower) = layers.split_at_checked(payload.depth).unwrap_or_default();
        let base = top(lower)?;
        let below = open(lower, limits)?;
        let new = without_place(&below, &ranges)?;
        let grows = growth(base, below.top(), chain.virtual_size().max(below.virtual_size()), &new)?;
        let again = if payload.verify {
            2 * total(&data(&chain, control)?)
        } else {
            0
        };
        let mut lost = vec![Loss {
            kind: LossKind::Content,
            image_id: base.record.image.id,
            detail: "the base shows what the overlay shows".to_owned(),
        }];
        for (at, layer) in upper.iter().enumerate().filter(|_| payload.drop) {
            let image = layer.record.image.id;
            let detail = format!("image '{}' is deleted", layer.record.image.name);
            lost.push(Loss {
                kind: LossKind::Image,
                image_id: image,
                detail,
            });
            lost.extend(losses(
                &open(layers.get(at..).unwrap_or_default(), limits)?,
                image,
                true,
            )?);
        }
        Ok(Foreseen {
            read: Some(Amount::at_most(total(&ranges).saturating_add(again))),
            write: Some(Amount::at_most(total(&ranges))),
            target_size: grown(base, grows.map(|room| room.len)),
            space_needed: grows.map(|room| Amount::at_most(room.space)),
            losses: lost,
        })
    };
    foresight.look(work).await
}

/// Bytes that the base at a depth grows by at most.
///
/// # Errors
/// What the layers say.
pub fn needs(layers: &[Layer], depth: usize, limits: &Limits, control: &Control) -> Result<u64> {
    let secrets = OpenSecrets::default();
    let looking = Opening {
        metadata_only: true,
        ..Opening::read(limits, &secrets)
    };
    let (chain, lower) = (
        open_patiently(layers, &looking, control)?,
        layers.get(depth..).unwrap_or_default(),
    );
    let below = open_patiently(lower, &looking, control)?;
    let new = without_place(&below, &above(&chain, depth, control)?)?;
    let size = chain.virtual_size().max(below.virtual_size());
    let grows = growth(top(lower)?, below.top(), size, &new)?;
    Ok(grows.map_or(total(&new), |room| room.space))
}

/// Where the layers above a base have data.
fn above(chain: &Chain, base: usize, control: &Control) -> Result<Ranges> {
    let (mut ranges, mut walk, mut offset) = (Ranges::new(), chain.walk(), 0);
    while offset < chain.virtual_size() {
        control.check_cancelled()?;
        let extent = walk.extent(offset, chain.virtual_size() - offset)?;
        if extent.kind == SourceKind::Data && extent.layer.is_some_and(|layer| layer < base) {
            ranges.push((offset, extent.len));
        }
        offset += extent.len;
    }
    Ok(ranges)
}
