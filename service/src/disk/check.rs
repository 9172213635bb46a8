use std::sync::Arc;

use vdisk_engine::control::NoProgress;
use vdisk_engine::gate::Node;
use vdisk_engine::image::Repair;
use vdisk_engine::{Chain, Control, Limits, OpenEnv, StorageRef, formats, ops};

use super::OpenSecrets;
use super::inspect::SURE;
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
    require_one_format(&storage, format)?;
    let env = OpenEnv::closed(limits).with_secrets(secrets).for_check();
    let node = Node::new(storage, format)
        .with_options(secrets.open_options(format))
        .without_backing();
    let chain = Chain::open(node, &env)?;
    if !formats::by_name(format)?.capabilities().check {
        return Ok(());
    }
    // Cancelled with the job, but not counted: the job's progress is that of its copy.
    let quiet = Control::new(Arc::new(NoProgress), control.cancel_token().clone());
    let report = ops::check::check(chain.top(), Repair::No, &quiet)?;
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

/// A file that a driver made from a guest's bytes must not be another format as well: whoever guesses would read it as
/// that. Raw files hold what the guest likes, and are never guessed here.
fn require_one_format(storage: &StorageRef, format: &str) -> Result<()> {
    if format == "raw" {
        return Ok(());
    }
    let found = formats::detect(storage.as_ref())?;
    let other = found
        .iter()
        .find(|(driver, confidence)| *confidence >= SURE && driver.name() != format);
    match other {
        None => Ok(()),
        Some((driver, _)) => Err(ServiceError::new(
            ErrorCode::FormatMismatch,
            format!(
                "the content makes the {format} file a {} file at the same time; such a file is refused",
                driver.name()
            ),
        )),
    }
}
