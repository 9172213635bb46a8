//! What a rekey job would do.

use serde_json::Value;

use super::Payload;
use crate::error::Result;
use crate::jobs::foresee::{Foreseen, Foresight, top};
use crate::jobs::parse;
use crate::model::Amount;

/// Bytes of a LUKS header with all its key material at most (LUKS2: two headers of 4 MiB and the key area; 16 MiB as created).
const HEADER: u64 = 16 << 20;

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let payload: Payload = parse(payload)?;
    let layers = foresight.layers(payload.image).await?;
    let file = top(&layers)?.record.image.file_size;
    let header = Amount::at_most(file.min(HEADER));
    Ok(Foreseen {
        read: Some(header),
        write: Some(header),
        target_size: Some(Amount::exact(file)),
        space_needed: Some(Amount::exact(0)),
        losses: Vec::new(),
    })
}
