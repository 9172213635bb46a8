//! What a compress job would do.

use serde_json::Value;

use super::{Payload, options_of_new};
use crate::error::Result;
use crate::jobs::foresee::{Foreseen, Foresight, data, open, top, total};
use crate::jobs::parse;
use crate::jobs::sources::TopLayer;
use crate::jobs::space::new_file;
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
        let room = new_file(format, chain.virtual_size(), &ranges, &options, layers.len() > 1);
        Ok(Foreseen {
            read: Some(if verify {
                Amount::at_most(bytes.saturating_mul(3))
            } else {
                Amount::exact(bytes)
            }),
            write: Some(Amount::at_most(bytes)),
            target_size: room.map(|room| Amount::at_most(room.len)),
            // Old and new file are there together for a moment.
            space_needed: room.map(|room| Amount::at_most(room.space)),
            losses: Vec::new(),
        })
    };
    foresight.look(work).await
}
