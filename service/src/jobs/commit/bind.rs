//! Formats that record an identity of the base which changes with its content (VHDX, VMDK): when a commit ended on the way, the layer over
//! the base does not know it any more.

use vdisk_engine::{Control, Limits};

use crate::disk::{Layer, OpenSecrets, Opening};
use crate::error::Result;
use crate::jobs::JobContext;
use crate::jobs::context::open_patiently;

/// Lets the layer over the base at a depth take the base for what it is now. The job holds both, and what the layer shows does not change:
/// the base has what stands above it, or what it had.
///
/// # Errors
/// What the files say.
pub async fn bind_again(context: &JobContext, layers: Vec<Layer>, depth: usize) -> Result<()> {
    let limits = context.inner.limits.clone();
    context
        .blocking(move |control| bind(&layers, depth, &limits, control))
        .await
}

fn bind(layers: &[Layer], depth: usize, limits: &Limits, control: &Control) -> Result<()> {
    let secrets = OpenSecrets::default();
    let looking = Opening {
        top_only: true,
        metadata_only: true,
        ..Opening::read(limits, &secrets)
    };
    let from = |depth: usize| layers.get(depth..).unwrap_or_default();
    let (over, base) = (
        from(depth.saturating_sub(1)),
        open_patiently(from(depth), &looking, control)?,
    );
    let layer = open_patiently(over, &looking, control)?;
    let Some(named) = layer
        .top()
        .backing()
        .filter(|_| layer.top().check_below(base.top()).is_err())
    else {
        return Ok(());
    };
    drop(layer);
    let writing = Opening {
        top_only: true,
        writable: &[0],
        ..Opening::read(limits, &secrets)
    };
    let layer = open_patiently(over, &writing, control)?;
    let bound = layer.top().set_backing_over(Some(&named), Some(base.top()));
    let closed = layer.top().close();
    Ok(bound.and(closed)?)
}
