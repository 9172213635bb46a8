//! A rebase that fails after the header named the new base: the header names the one on record again. What was copied into the overlay by then
//! is what the guest saw, so it sees the same on the old base.

use vdisk_engine::{Chain, Control, Limits};

use crate::disk::{Layer, OpenSecrets, Opening, reference_to};
use crate::error::{ErrorCode, Result};
use crate::jobs::JobContext;
use crate::jobs::context::open_patiently;
use crate::model::ImageId;

/// Goes back to the base on record, unless another worker may have the job by now.
///
/// # Errors
/// What the file or the database says.
pub async fn undo(context: &JobContext, image: ImageId) -> Result<()> {
    let ours = context.begin().await;
    if context.is_handed_on() || ours.is_err_and(|error| error.code == ErrorCode::LeaseLost) {
        return Ok(());
    }
    let (recorded, limits) = (context.layers(image).await?, context.inner.limits.clone());
    context
        .blocking(move |control| go_back(&limits, &recorded, control))
        .await
}

fn go_back(limits: &Limits, recorded: &[Layer], control: &Control) -> Result<()> {
    let secrets = OpenSecrets::default();
    let reading = Opening::read(limits, &secrets);
    let Some((top, below)) = recorded.split_first() else {
        return Ok(());
    };
    let only_top = Opening {
        top_only: true,
        ..reading.clone()
    };
    let looking = Opening {
        metadata_only: true,
        ..only_top.clone()
    };
    let writing = Opening {
        writable: &[0],
        ..only_top
    };
    let as_recorded = |chain: &Chain| chain.top().backing().map(|named| named.name) == top.record.backing_name;
    // The key of a stranger may take long, and this is not to be cancelled. Formats with keys have no log that the header may wait in.
    if top.record.image.encrypted && as_recorded(&open_patiently(std::slice::from_ref(top), &looking, control)?) {
        return Ok(());
    }
    let chain = open_patiently(std::slice::from_ref(top), &writing, control)?;
    if as_recorded(&chain) {
        return Ok(());
    }
    let base = match below {
        [] => None,
        below => Some(open_patiently(below, &reading, control)?),
    };
    let old = below.first().map(|base| reference_to(&base.record));
    let below = base.as_ref().map(Chain::top);
    let back = chain.top().set_backing_over(old.as_ref(), below);
    let closed = chain.top().close();
    Ok(back.and(closed)?)
}
