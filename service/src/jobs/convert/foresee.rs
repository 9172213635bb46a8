//! What a convert job would do.

use serde_json::Value;
use vdisk_engine::formats;

use super::{Payload, at_snapshot};
use crate::error::Result;
use crate::jobs::fill::space_for;
use crate::jobs::foresee::{Foreseen, Foresight, data, file_size, losses, open, total};
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
        let measure = |ranges: &[_]| file_size(&request.format, chain.virtual_size(), ranges, &options, onto_base);
        let size = measure(&ranges);
        let can = formats::by_name(&request.format)?.capabilities();
        // A format whose file is as long as the disk, whatever is in it.
        let fixed = !request.compress && size == measure(&[]);
        let space = match onto_base {
            true => size,
            false => size.and(Some(space_for(&chain, &request.format, &options, false, control)?)),
        };
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
                Amount::at_most(chain.virtual_size())
            }),
            target_size: size.map(if fixed { Amount::exact } else { Amount::at_most }),
            space_needed: space.map(Amount::at_most),
            losses,
        })
    };
    foresight.look(work).await
}
