//! What a compress job would do.

use serde_json::Value;

use super::{Payload, options_of_new};
use crate::error::Result;
use crate::jobs::foresee::{Foreseen, Foresight, data, file_size, open, top, total};
use crate::jobs::parse;
use crate::jobs::sources::TopLayer;
use crate::model::Amount;

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let Payload {
        image,
        algorithm,
        verify,
        ..
    } = parse(payload)?;
    let layers = foresight.layers(image).await?;
    let work = move |limits: &_, control: &_| {
        let chain = open(&layers, limits)?;
        let options = options_of_new(&chain, algorithm)?;
        let ranges = data(&TopLayer(&chain), control)?;
        let (bytes, format) = (total(&ranges), &top(&layers)?.record.image.format);
        // What does not compress is stored as it is.
        let size = file_size(format, chain.virtual_size(), &ranges, &options, layers.len() > 1);
        Ok(Foreseen {
            read: Some(if verify {
                Amount::at_most(bytes.saturating_mul(3))
            } else {
                Amount::exact(bytes)
            }),
            write: Some(Amount::at_most(bytes)),
            target_size: size.map(Amount::at_most),
            // Old and new file are there together for a moment.
            space_needed: size.map(Amount::at_most),
            losses: Vec::new(),
        })
    };
    foresight.look(work).await
}
