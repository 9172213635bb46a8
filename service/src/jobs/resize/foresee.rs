//! What a resize job would do.

use serde_json::Value;
use vdisk_engine::options::Options;

use super::Payload;
use crate::error::Result;
use crate::jobs::foresee::{Foreseen, Foresight, data, file_size, grown, open, top, total};
use crate::jobs::parse;
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
        let format = &layer.record.image.format;
        let measure = |ranges: &[_]| file_size(format, payload.to, ranges, &Options::new(), layers.len() > 1);
        let tables = measure(&[]);
        let fixed = tables.is_some() && tables == measure(&[(0, payload.to)]);
        let more = match payload.to > payload.from && !fixed {
            true => tables.map(|tables| tables.saturating_add(hidden)),
            false => Some(0),
        };
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
            target_size: match tables {
                Some(size) if fixed => Some(Amount::exact(size)),
                _ => grown(layer, more),
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
