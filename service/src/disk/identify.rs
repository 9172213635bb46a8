use vdisk_engine::gate::Node;
use vdisk_engine::image::BackingReference;
use vdisk_engine::{Chain, Limits, OpenEnv, StorageRef, formats};

use super::file_facts;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::pool::PoolFolder;
use crate::store::images::FileFacts;

/// Confidence from which a driver's word counts against another format.
const SURE: u8 = 50;

/// What a file turned out to be.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its format.
    pub format: String,
    /// The base that its header names.
    pub backing: Option<BackingReference>,
    /// Whether its content is encrypted.
    pub encrypted: bool,
}

impl Identity {
    /// What the inventory keeps of the file.
    pub fn facts(&self, storage: StorageRef, pool: &PoolFolder, file: &str, limits: &Limits) -> Result<FileFacts> {
        let chain = open_alone(storage, &self.format, limits)?;
        file_facts(chain.top(), pool, file)
    }
}

/// Opens one layer for its metadata, with no right to any other file.
fn open_alone(storage: StorageRef, format: &str, limits: &Limits) -> Result<Chain> {
    let env = OpenEnv {
        metadata_only: true,
        ..OpenEnv::closed(limits)
    };
    Ok(Chain::open(Node::new(storage, format).without_backing(), &env)?)
}

/// Says of what format a file is, and that it is of that format alone.
///
/// # Errors
/// `format_mismatch` when the claim and the content disagree or the content speaks for more than one format; `denied`
/// when it needs files besides its base; `corrupt_image`, `unsupported`.
pub fn identify(storage: StorageRef, claimed: Option<&str>, limits: &Limits) -> Result<Identity> {
    let found = formats::detect(storage.as_ref())?;
    let sure: Vec<_> = found
        .iter()
        .filter(|(_, confidence)| *confidence >= SURE)
        .map(|(driver, _)| driver.name())
        .collect();
    if sure.len() > 1 {
        let public = format!(
            "the file is {} at the same time; such a file is refused",
            sure.join(" and ")
        );
        return Err(ServiceError::new(ErrorCode::FormatMismatch, public));
    }
    let detected = sure.first().copied();
    let format = match claimed {
        Some(claimed) => {
            let claimed = formats::by_name(claimed)?.name();
            refuse_contradiction(claimed, detected)?;
            claimed
        }
        None => detected
            .or(found.first().map(|(driver, _)| driver.name()))
            .unwrap_or("raw"),
    };
    let chain = open_alone(storage, format, limits)?;
    Ok(Identity {
        format: chain.top().format().to_owned(),
        backing: chain.top().backing(),
        encrypted: chain.top().info()?.encrypted,
    })
}

fn refuse_contradiction(claimed: &str, detected: Option<&str>) -> Result<()> {
    match detected {
        Some(detected) if detected != claimed => {
            let public = format!("the file was announced as '{claimed}' but is '{detected}'");
            Err(ServiceError::new(ErrorCode::FormatMismatch, public).with_field("format"))
        }
        _ => Ok(()),
    }
}
