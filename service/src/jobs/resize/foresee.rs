//! What a resize job would do.

use serde_json::Value;

use super::Payload;
use crate::error::Result;
use crate::jobs::foresee::{Foreseen, Foresight, data, grown, open, top, total};
use crate::jobs::parse;
use crate::jobs::space::{as_made, new_file};
use crate::model::{Amount, Loss, LossKind};

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let payload: Payload = parse(payload)?;
    let layers = foresight.layers(payload.image).await?;
    let work = move |limits: &_, control: &_| {
        let chain = open(&layers, limits)?;
        let layer = top(&layers)?;
        // What a longer base would show in the new part is hidden, at worst by zeroes.
        let longest = chain.below(0).virtual_size();
        let hidden = longest.min(payload.to).saturating_sub(payload.from);
        let behind = data(&chain, control)?
            .into_iter()
            .map(|(start, len)| (start.max(payload.to), start + len))
            .filter(|(start, end)| start < end);
        let lost = total(&behind.map(|(start, end)| (start, end - start)).collect::<Vec<_>>());
        let (image, grows) = (chain.top(), payload.to > payload.from);
        let over = if hidden > 0 {
            vec![(payload.from, hidden)]
        } else {
            Vec::new()
        };
        let tables = new_file(image.format(), payload.to, &over, &as_made(image)?, layers.len() > 1);
        let fixed = tables.filter(|tables| tables.fixed);
        // Tables that take the place of the present ones, which are there until then.
        let anew = image.resize_room(payload.to)?;
        let unit = image.info()?.cluster_size;
        // What the unit that the disk ended in has past the end is zeroed.
        let rest = unit.map_or(0, |unit| payload.from.next_multiple_of(unit.max(1)) - payload.from);
        let more = match (fixed, grows) {
            (Some(_), _) => Some(0),
            (None, true) => tables.map(|tables| tables.space.saturating_add(anew).saturating_add(rest)),
            // What is changed in its place may have been a hole.
            (None, false) if anew == 0 => tables.map(|tables| tables.space),
            (None, false) => Some(anew),
        };
        // Files as long as the disk: of images without units, or with all of them set aside.
        let set_aside = match grows && (unit.is_none() || image.reserves_space()) {
            true => (payload.to - payload.from).saturating_add(unit.unwrap_or(0)),
            false => 0,
        };
        let longer = match grows {
            true => more.map(|more| more.saturating_add(set_aside)),
            false => Some(anew),
        };
        let before = &layer.record.image;
        let detail = format!("{lost} bytes of data behind byte {}", payload.to);
        let loss = Loss {
            kind: LossKind::Data,
            image_id: payload.image,
            detail,
        };
        Ok(Foreseen {
            read: Some(Amount::exact(0)),
            write: Some(if hidden == 0 {
                Amount::exact(0)
            } else {
                Amount::at_most(hidden)
            }),
            target_size: match fixed {
                // Beside the disk it has what it had.
                Some(_) => Some(Amount::exact(
                    payload.to.saturating_add(before.file_size.saturating_sub(payload.from)),
                )),
                None => grown(layer, longer),
            },
            space_needed: more.map(|more| {
                if more == 0 {
                    Amount::exact(0)
                } else {
                    Amount::at_most(more)
                }
            }),
            losses: if lost > 0 { vec![loss] } else { Vec::new() },
        })
    };
    foresight.look(work).await
}
