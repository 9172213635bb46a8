//! What a check job would do.

use serde_json::Value;

use super::Payload;
use crate::error::Result;
use crate::jobs::foresee::{Foreseen, Foresight, top};
use crate::jobs::parse;
use crate::model::Amount;

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let Payload { image, repair } = parse(payload)?;
    let layers = foresight.layers(image).await?;
    let file = top(&layers)?.record.image.file_size;
    let repaired = Amount::at_most(file);
    Ok(Foreseen {
        read: Some(Amount::at_most(file)),
        // Tables only, and those are a part of the file.
        write: Some(repair.map_or(Amount::exact(0), |_| repaired)),
        target_size: repair.is_none().then(|| Amount::exact(file)),
        space_needed: Some(repair.map_or(Amount::exact(0), |_| repaired)),
        losses: Vec::new(),
    })
}
