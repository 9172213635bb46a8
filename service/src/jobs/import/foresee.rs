//! What an import job would do. A server is not asked, and a file of unknown origin is not parsed, to tell it.

use serde_json::Value;

use super::Payload;
use crate::error::Result;
use crate::jobs::context::pool_of;
use crate::jobs::fetch::Source;
use crate::jobs::foresee::{Foreseen, Foresight};
use crate::jobs::parse;
use crate::model::Amount;

pub async fn foresee(foresight: Foresight, payload: Value) -> Result<Foreseen> {
    let payload: Payload = parse(payload)?;
    let Source::PoolFile(file) = &payload.source else {
        return Ok(Foreseen::default());
    };
    let found = pool_of(&foresight.inner, &payload.pool)?.stat(file)?;
    let length = found.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    if payload.target_format.is_some() {
        // How much data the file holds is known when it is looked at.
        return Ok(Foreseen::default());
    }
    Ok(Foreseen {
        read: Some(Amount::at_most(length)),
        write: Some(Amount::exact(0)),
        target_size: Some(Amount::exact(length)),
        space_needed: Some(Amount::exact(0)),
        losses: Vec::new(),
    })
}
