//! What a compare job would do.

use serde_json::Value;

use super::Payload;
use crate::error::Result;
use crate::jobs::foresee::{Foreseen, Foresight, data, open, total};
use crate::jobs::parse;
use crate::model::Amount;

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let Payload { image, other, .. } = parse(payload)?;
    let (layers, others) = (foresight.layers(image).await?, foresight.layers(other).await?);
    let work = move |limits: &_, control: &_| {
        let ours = total(&data(&open(&layers, limits)?, control)?);
        let theirs = total(&data(&open(&others, limits)?, control)?);
        Ok(Foreseen {
            // It ends at the first difference.
            read: Some(Amount::at_most(ours.saturating_add(theirs))),
            write: Some(Amount::exact(0)),
            target_size: None,
            space_needed: Some(Amount::exact(0)),
            losses: Vec::new(),
        })
    };
    foresight.look(work).await
}
