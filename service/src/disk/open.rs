use std::sync::Arc;

use vdisk_engine::env::Secrets;
use vdisk_engine::gate::Node;
use vdisk_engine::image::BackingReference;
use vdisk_engine::options::Options;
use vdisk_engine::storage::LockMode;
use vdisk_engine::{Chain, Limits, OpenEnv};

use super::changed::require_as_bound;
use super::gate::{InventoryGate, open_layer};
use super::{FirstWrite, OpenSecrets};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::pool::PoolFolder;
use crate::store::images::ImageRecord;

/// How the header of an overlay names a base: the name of its file, since both lie in one pool, and its format.
pub fn reference_to(base: &ImageRecord) -> BackingReference {
    BackingReference {
        name: base.file.clone(),
        format: Some(base.image.format.clone()),
    }
}

/// A record with the folder that holds its file.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The record.
    pub record: ImageRecord,
    /// The folder.
    pub pool: Arc<PoolFolder>,
    /// The secrets that the record names, by role.
    pub keys: OpenSecrets,
    /// Who is told before the file changes: everybody who opens it for writing has to set it.
    pub first_write: Option<FirstWrite>,
}

impl Layer {
    /// Open options that name the layer's own keys, or else those of the request.
    pub(super) fn key_options(&self, asked: &OpenSecrets) -> Options {
        let format = &self.record.image.format;
        let own = self.keys.open_options(format);
        if own.is_empty() {
            return asked.open_options(format);
        }
        own.iter()
            .fold(Options::new(), |all, (role, name)| all.with(role, self.key_name(name)))
    }

    /// Before the file is changed or replaced, under its lock.
    ///
    /// # Errors
    /// What whoever changes it says.
    pub fn begin_change(&self) -> Result<()> {
        self.first_write.as_ref().map_or(Ok(()), FirstWrite::begin)
    }

    fn key_name(&self, role: &str) -> String {
        format!("{}/{role}", self.record.image.id)
    }
}

/// The secrets of a request together with those that the layers name.
pub fn keyring(layers: &[Layer], asked: &OpenSecrets) -> OpenSecrets {
    let mut ring = asked.clone();
    for layer in layers {
        for (role, value) in &layer.keys.values {
            ring.values.insert(layer.key_name(role), value.clone());
        }
    }
    ring
}

/// Data of an encrypted layer needs a key.
fn require_keys(layers: &[Layer], asked: &OpenSecrets) -> Result<()> {
    let locked = |layer: &&Layer| layer.record.image.encrypted && layer.key_options(asked).is_empty();
    match layers.iter().find(locked) {
        None => Ok(()),
        Some(layer) => {
            let public = format!(
                "image {} is encrypted; name the secret that opens it, in its 'secrets'",
                layer.record.image.id
            );
            Err(ServiceError::new(ErrorCode::SecretRequired, public).with_field("secrets"))
        }
    }
}

/// How to open a chain.
#[derive(Clone)]
pub struct Opening<'a> {
    /// Depths to open for writing.
    pub writable: &'a [usize],
    /// Stop after the top layer: what is below does not matter.
    pub top_only: bool,
    /// Damage is what we are looking for.
    pub for_check: bool,
    /// Only metadata is wanted.
    pub metadata_only: bool,
    /// Who asks holds the lock already, by another opening.
    pub unlocked: bool,
    /// Bounds.
    pub limits: &'a Limits,
    /// Keys.
    pub secrets: &'a OpenSecrets,
}

impl<'a> Opening<'a> {
    /// For reading everything.
    pub fn read(limits: &'a Limits, secrets: &'a OpenSecrets) -> Self {
        Self {
            writable: &[],
            top_only: false,
            for_check: false,
            metadata_only: false,
            unlocked: false,
            limits,
            secrets,
        }
    }
}

/// Opens the layers of a chain, top first, as the inventory has them.
///
/// # Errors
/// `base_changed` when a base is not the file it was when its overlay was bound to it, or when headers and inventory
/// disagree; `image_not_ready` when a file is gone; `image_busy` when somebody writes to one; what the drivers say.
pub fn open_chain(layers: &[Layer], opening: &Opening<'_>) -> Result<Chain> {
    let Some(top) = layers.first() else {
        return Err(ServiceError::internal("a chain has at least one layer"));
    };
    let layers = if opening.top_only {
        layers.get(..1).unwrap_or_default()
    } else {
        layers
    };
    require_as_bound(layers)?;
    if !opening.metadata_only {
        require_keys(layers, opening.secrets)?;
    }
    let lock = match opening {
        Opening { unlocked: true, .. } => LockMode::None,
        Opening {
            metadata_only: true, ..
        } => LockMode::Inspect,
        _ => LockMode::Read,
    };
    let gate = InventoryGate {
        layers,
        writable: opening.writable,
        secrets: opening.secrets,
        lock,
    };
    let storage = open_layer(top, opening.writable.contains(&0), lock)?;
    let format = &top.record.image.format;
    let mut node = Node::new(storage, format).with_options(top.key_options(opening.secrets));
    if opening.top_only {
        node = node.without_backing();
    }
    let ring = keyring(layers, opening.secrets);
    let secrets: &dyn Secrets = &ring;
    let mut env = OpenEnv::closed(opening.limits).with_gate(&gate).with_secrets(secrets);
    env.writable = !opening.writable.is_empty();
    env.for_check = opening.for_check;
    env.metadata_only = opening.metadata_only;
    let chain = Chain::open_writable(node, &env, opening.writable)?;
    check_depth(&chain, layers)?;
    Ok(chain)
}

/// A header that lost its backing reference would silently show zeros instead of the base.
fn check_depth(chain: &Chain, layers: &[Layer]) -> Result<()> {
    if chain.layers().len() == layers.len() {
        return Ok(());
    }
    let public = format!(
        "the files make a chain of {} layers, the inventory has {}: somebody changed a backing reference",
        chain.layers().len(),
        layers.len()
    );
    Err(ServiceError::new(ErrorCode::BaseChanged, public))
}
