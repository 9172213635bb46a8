use vdisk_engine::gate::Node;
use vdisk_engine::image::Repair;
use vdisk_engine::{Chain, Control, Limits, OpenEnv, StorageRef, formats, ops};

use super::OpenSecrets;
use crate::error::{ErrorCode, Result, ServiceError};

/// Opens a file once more and looks for contradictions: the last step before an image is shown.
///
/// # Errors
/// `corrupt_image` with the first finding; what opening says.
pub fn check_structures(
    storage: StorageRef,
    format: &str,
    limits: &Limits,
    secrets: &OpenSecrets,
    control: &Control,
) -> Result<()> {
    let env = OpenEnv::closed(limits).with_secrets(secrets).for_check();
    let node = Node::new(storage, format)
        .with_options(secrets.open_options(format))
        .without_backing();
    let chain = Chain::open(node, &env)?;
    if !formats::by_name(format)?.capabilities().check {
        return Ok(());
    }
    // Not counted: the job's progress is that of its copy.
    let report = ops::check::check(chain.top(), Repair::No, &control.uncounted())?;
    if report.corruptions == 0 && report.check_errors == 0 {
        return Ok(());
    }
    let first = report.messages.first().map_or("", String::as_str);
    let count = report.corruptions + report.check_errors;
    Err(ServiceError::new(
        ErrorCode::CorruptImage,
        format!("the image has {count} error(s): {first}"),
    ))
}
