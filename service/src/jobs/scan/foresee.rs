//! What a scan job would do.

use serde_json::Value;

use super::{Payload, is_candidate};
use crate::error::Result;
use crate::jobs::context::pool_of;
use crate::jobs::foresee::{Foreseen, Foresight};
use crate::jobs::parse;
use crate::model::Amount;

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let payload: Payload = parse(payload)?;
    let pool = pool_of(&foresight.inner, &payload.pool)?;
    let records = foresight.inner.store.pool_records(&payload.pool).await?;
    let mut bytes = 0_u64;
    for file in pool.file_names()?.iter().filter(|file| is_candidate(file, &records)) {
        let length = pool
            .stat(file)?
            .map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        bytes = bytes.saturating_add(length);
    }
    Ok(Foreseen {
        read: Some(Amount::at_most(bytes)),
        write: Some(Amount::exact(0)),
        target_size: None,
        space_needed: Some(Amount::exact(0)),
        losses: Vec::new(),
    })
}
