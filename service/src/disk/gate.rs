//! The service's open gate: a backing name inside an image is what the inventory says it is, or nothing.

use std::sync::Arc;

use vdisk_engine::gate::{BackingChoice, DenyAll, Gate, Node, Reference, Role};
use vdisk_engine::storage::{FileOptions, FileStorage, LockMode};
use vdisk_engine::{Error, ErrorKind, Result, StorageRef};

use super::OpenSecrets;
use super::changed::was_changed_by_others;
use super::error::{FileGone, refused};
use super::facts::open_file;
use super::first_write::Told;
use super::open::Layer;
use crate::error::ErrorCode;
use crate::fault::watched;
use crate::pool::Access;

/// Resolves the backing name of a layer to the layer that the inventory has below it. Everything else is denied.
pub(super) struct InventoryGate<'a> {
    pub(super) layers: &'a [Layer],
    /// Depths that are opened for writing.
    pub(super) writable: &'a [usize],
    /// Keys that the request named.
    pub(super) secrets: &'a OpenSecrets,
    pub(super) lock: LockMode,
}

impl Gate for InventoryGate<'_> {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let name = reference.name.escape_debug();
        let denied = |why: &str| {
            Err(Error::denied(format!("the image names a file \"{name}\", which {why}")).at(reference.from.name()))
        };
        if reference.role != Role::Backing {
            return denied("may not be opened: images of the service are one file each");
        }
        let depth = self
            .layers
            .iter()
            .position(|layer| layer.record.file == reference.from.name());
        let pair = depth.and_then(|depth| Some((self.layers.get(depth)?, self.layers.get(depth + 1)?, depth + 1)));
        let Some((overlay, base, depth)) = pair else {
            return denied("the inventory does not know as its base");
        };
        if overlay.record.backing_name.as_deref() != Some(reference.name) {
            return denied("is not the base that the inventory has on record");
        }
        let format = &base.record.image.format;
        if reference.format.is_some_and(|claimed| claimed != format) {
            return denied(&format!(
                "is of format '{format}', not of the one that the image claims"
            ));
        }
        let storage = open_layer(base, self.writable.contains(&depth), self.lock)?;
        Ok(Node::new(storage, format).with_options(base.key_options(self.secrets)))
    }

    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        let name = reference.name.escape_debug();
        Err(Error::denied(format!(
            "the image needs a second file \"{name}\"; images of the service are one file each"
        )))
    }
}

/// For an image that is being made: opens the layer below it, which some formats take the identity of, and nothing else.
pub(super) struct NewOverlayGate<'a> {
    pub(super) base: Option<&'a Layer>,
}

impl Gate for NewOverlayGate<'_> {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        match self.base {
            Some(base) if reference.role == Role::Backing && reference.name == base.record.file => {
                let storage = open_layer(base, false, LockMode::Inspect)?;
                Ok(Node::new(storage, &base.record.image.format))
            }
            _ => DenyAll.open(reference),
        }
    }

    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        DenyAll.create(reference)
    }
}

/// Opens the file of a layer under its name in the pool.
pub(super) fn open_layer(layer: &Layer, writable: bool, lock: LockMode) -> Result<StorageRef> {
    let access = if writable { Access::Write } else { Access::Read };
    let file = open_file(&layer.pool, &layer.record.file, access).map_err(|error| match error.code {
        ErrorCode::Denied => Error::denied(error.public),
        ErrorCode::ImageNotReady => Error::new(ErrorKind::Io, "cannot open an image").because(FileGone(error.public)),
        _ => Error::new(ErrorKind::Io, error.public),
    })?;
    let options = if writable {
        FileOptions::write()
    } else {
        FileOptions {
            lock,
            ..FileOptions::read()
        }
    };
    let storage = Arc::new(FileStorage::from_file(file, &layer.record.file, options)?);
    if !writable {
        return Ok(storage);
    }
    let storage = watched(storage);
    let Some(first_write) = layer.first_write.clone() else {
        return Ok(storage);
    };
    // Nobody else can write to it from here on.
    if was_changed_by_others(layer).map_err(refused)? {
        first_write.is_another().map_err(refused)?;
    }
    Ok(Arc::new(Told { storage, first_write }))
}

/// A chain as the inventory has it, told layer by layer: for a new overlay whose header is not on record yet.
pub fn explicit_node(layers: &[Layer]) -> crate::Result<Node> {
    let mut below: Option<Node> = None;
    for layer in layers.iter().rev() {
        let storage = open_layer(layer, false, LockMode::Read)?;
        let options = layer.key_options(&OpenSecrets::default());
        let mut node = Node::new(storage, &layer.record.image.format).with_options(options);
        node.backing = match below.take() {
            Some(base) => BackingChoice::Explicit(Box::new(base)),
            None => BackingChoice::None,
        };
        below = Some(node);
    }
    below.ok_or_else(|| crate::ServiceError::internal("a chain has at least one layer"))
}
