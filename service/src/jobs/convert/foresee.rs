//! What a convert job would do.

use serde_json::Value;
use vdisk_engine::formats;

use super::{Payload, at_snapshot};
use crate::error::Result;
use crate::jobs::foresee::{Foreseen, Foresight, data, losses, open, total};
use crate::jobs::space::new_file;
use crate::jobs::{parse, plan};
use crate::model::Amount;

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let Payload { source, request, .. } = parse(payload)?;
    let layers = foresight.layers(source).await?;
    let work = move |limits: &_, control: &_| {
        let top = open(&layers, limits)?;
        let encrypts = request.options.keys().any(|name| name.ends_with("key-secret"));
        let losses = losses(&top, source, encrypts)?;
        let chain = at_snapshot(top, request.snapshot.as_deref())?;
        let (ranges, options) = (data(&chain, control)?, plan::engine_options(&request.options));
        let (bytes, onto_base) = (total(&ranges), request.backing.is_some());
        let size = chain.virtual_size();
        // What is zero in the source may have to be written over a base, in formats that cannot hide it otherwise.
        let stored = if onto_base { vec![(0, size)] } else { ranges };
        let room = new_file(&request.format, size, &stored, &options, onto_base);
        let can = formats::by_name(&request.format)?.capabilities();
        let read_again = if request.verify { 3 } else { 1 };
        Ok(Foreseen {
            // What is the same on a base is read to be compared, and so is what is verified.
            read: Some(match request.verify || onto_base {
                true => Amount::at_most(bytes.saturating_mul(read_again + u64::from(onto_base))),
                false => Amount::exact(bytes),
            }),
            // Zeroes that are found in the data are not written.
            write: Some(if can.zero {
                Amount::at_most(bytes)
            } else {
                Amount::at_most(size)
            }),
            target_size: room.map(|room| match room.fixed {
                true => Amount::exact(room.len),
                false => Amount::at_most(room.len),
            }),
            space_needed: room.map(|room| Amount::at_most(room.space)),
            losses,
        })
    };
    foresight.look(work).await
}
