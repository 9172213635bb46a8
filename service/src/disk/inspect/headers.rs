//! What the headers of a file say, and which other files they name.

use std::sync::{Mutex, PoisonError};

use vdisk_engine::gate::{Gate, Node, Reference, Role};
use vdisk_engine::image::ImageInfo;
use vdisk_engine::ops::info::Description;
use vdisk_engine::{Chain, Error, Limits, OpenEnv, StorageRef, ops};

use super::MOST;
use crate::error::Result;
use crate::model::{FoundReference, Inspection};

impl Inspection {
    /// Opens the layer with a gate that notes every name and opens none, and takes down what it says.
    ///
    /// # Errors
    /// What speaks against opening it; the names that were met until then are taken down.
    pub(super) fn read_headers(&mut self, storage: &StorageRef, limits: &Limits) -> Result<Description> {
        let gate = NotingGate::default();
        let env = OpenEnv {
            metadata_only: true,
            ..OpenEnv::closed(limits).with_gate(&gate)
        };
        let opened = Chain::open(Node::new(storage.clone(), &self.format).without_backing(), &env);
        self.references = gate.noted();
        let description = opened.and_then(|chain| ops::info::describe(chain.top()))?;
        self.virtual_size = Some(description.virtual_size);
        self.encrypted = description.image.encrypted;
        self.features = features(&description.image);
        if let Some(name) = data_file(&description.image) {
            let (role, format) = ("data_file".to_owned(), None);
            self.references.push(FoundReference { role, name, format });
        }
        if let Some(backing) = &description.backing {
            self.references.push(FoundReference {
                role: "backing".to_owned(),
                name: backing.name.escape_debug().to_string(),
                format: backing.format.clone(),
            });
        }
        Ok(description)
    }
}

/// The data file that an image names. It is not opened for metadata alone, so the gate does not hear of it.
pub(super) fn data_file(image: &ImageInfo) -> Option<String> {
    let named = image.specific.as_ref()?.get("data-file")?;
    Some(named.as_str()?.escape_debug().to_string())
}

fn features(image: &ImageInfo) -> Vec<String> {
    let flags = [
        ("encrypted", image.encrypted),
        ("compressed", image.compressed),
        ("dirty", image.dirty == Some(true)),
    ];
    let flags = flags
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| name.to_owned());
    let snapshots = Some(image.snapshots.len()).filter(|count| *count > 0);
    let scalars = image.specific.iter().flatten().filter_map(|(key, value)| match value {
        serde_json::Value::Bool(true) => Some(key.clone()),
        serde_json::Value::String(text) => Some(format!("{key}={}", text.escape_debug())),
        serde_json::Value::Number(number) => Some(format!("{key}={number}")),
        _ => None,
    });
    flags
        .chain(snapshots.map(|count| format!("snapshots={count}")))
        .chain(scalars)
        .take(MOST)
        .collect()
}

/// Notes what an image names, and opens nothing.
#[derive(Default)]
struct NotingGate(Mutex<Vec<FoundReference>>);

impl NotingGate {
    fn noted(&self) -> Vec<FoundReference> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refuse(&self, reference: &Reference<'_>) -> Error {
        let role = match reference.role {
            Role::Backing => "backing",
            Role::DataFile => "data_file",
            Role::Extent => "extent",
        };
        let name = reference.name.escape_debug().to_string();
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = format!("the file names another file \"{name}\" ({role}); images of the service are one file each");
        if noted.len() < MOST {
            noted.push(FoundReference {
                role: role.to_owned(),
                name,
                format: reference.format.map(|format| format.escape_debug().to_string()),
            });
        }
        Error::denied(text)
    }
}

impl Gate for NotingGate {
    fn open(&self, reference: &Reference<'_>) -> vdisk_engine::Result<Node> {
        Err(self.refuse(reference))
    }

    fn create(&self, reference: &Reference<'_>) -> vdisk_engine::Result<StorageRef> {
        Err(self.refuse(reference))
    }
}
