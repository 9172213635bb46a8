//! What a rebase or flatten job would do.

use serde_json::Value;
use vdisk_engine::ops::GuestSource;
use vdisk_engine::{Control, Limits};

use super::Payload;
use crate::disk::{Layer, OpenSecrets, Opening};
use crate::error::Result;
use crate::jobs::context::open_patiently;
use crate::jobs::foresee::{Foreseen, Foresight, data, grown, missing, open, top, total};
use crate::jobs::kept::refuse_snapshots;
use crate::jobs::parse;
use crate::jobs::space::growth;
use crate::model::{Amount, ImageId, Loss, LossKind};
use crate::request::RebaseMode;

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let payload: Payload = parse(payload)?;
    if payload.mode == RebaseMode::Unsafe {
        return Ok(header_only(payload.image));
    }
    let layers = foresight.layers(payload.image).await?;
    let base = match payload.backing {
        Some(base) => foresight.layers(base).await?,
        None => Vec::new(),
    };
    let verify = payload.verify;
    let work = move |limits: &_, control: &_| {
        let chain = open(&layers, limits)?;
        refuse_snapshots(chain.top())?;
        let new = if base.is_empty() {
            None
        } else {
            Some(open(&base, limits)?)
        };
        let sources: Vec<&dyn GuestSource> = std::iter::once(&chain as &dyn GuestSource)
            .chain(new.as_ref().map(|new| new as &dyn GuestSource))
            .collect();
        let ranges = missing(&chain, &sources, control)?;
        let (bytes, layer) = (total(&ranges), top(&layers)?);
        let grows = growth(layer, chain.top(), chain.virtual_size(), &ranges)?;
        let again = if verify { 2 * total(&data(&chain, control)?) } else { 0 };
        Ok(Foreseen {
            read: Some(Amount::at_most(
                bytes.saturating_mul(sources.len() as u64).saturating_add(again),
            )),
            // What both bases show alike stays in them.
            write: Some(Amount::at_most(bytes)),
            target_size: grown(layer, grows.map(|room| room.len)),
            space_needed: grows.map(|room| Amount::at_most(room.space)),
            losses: Vec::new(),
        })
    };
    foresight.look(work).await
}

/// Bytes that an overlay grows by at most when it comes to stand alone.
///
/// # Errors
/// What the layers say.
pub fn needs_alone(layers: &[Layer], limits: &Limits, control: &Control) -> Result<u64> {
    let secrets = OpenSecrets::default();
    let looking = Opening {
        metadata_only: true,
        ..Opening::read(limits, &secrets)
    };
    let chain = open_patiently(layers, &looking, control)?;
    let ranges = missing(&chain, &[&chain], control)?;
    let grows = growth(top(layers)?, chain.top(), chain.virtual_size(), &ranges)?;
    Ok(grows.map_or(total(&ranges), |room| room.space))
}

fn header_only(image: ImageId) -> Foreseen {
    Foreseen {
        read: Some(Amount::exact(0)),
        write: Some(Amount::exact(0)),
        target_size: None,
        space_needed: Some(Amount::exact(0)),
        losses: vec![Loss {
            kind: LossKind::Content,
            image_id: image,
            detail: "what the image takes from its base becomes what the new base says".to_owned(),
        }],
    }
}
