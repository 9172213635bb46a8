//! What a commit job would do.

use serde_json::Value;
use vdisk_engine::ops::{GuestSource, SourceKind};
use vdisk_engine::{Chain, Control, Limits};

use super::Payload;
use crate::disk::{Layer, OpenSecrets, Opening};
use crate::error::Result;
use crate::jobs::context::open_patiently;
use crate::jobs::foresee::{
    Foreseen, Foresight, Ranges, data, grown, growth, losses, open, room, top, total, without_place,
};
use crate::jobs::kept::refuse_snapshots;
use crate::jobs::parse;
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
        let (size, new) = (chain.virtual_size(), without_place(&open(lower, limits)?, &ranges)?);
        let grows = growth(base, size, &new);
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
            target_size: grown(base, grows),
            space_needed: grows.and(Some(Amount::at_most(room(base, size, &new)?))),
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
    let new = without_place(
        &open_patiently(lower, &looking, control)?,
        &above(&chain, depth, control)?,
    )?;
    room(top(lower)?, chain.virtual_size(), &new)
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
