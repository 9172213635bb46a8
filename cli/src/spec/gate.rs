//! The command line's open gate: names inside images are opened as QEMU opens them, relative to the folder of the image that holds
//! them. That of the layer below may be a URL or `json:`; the files that an image consists of are files, whatever their names look like.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use vdisk_engine::gate::{BackingChoice, Gate, Reference, Role};
use vdisk_engine::{Error, ErrorKind, Node, Result, StorageRef};

use super::new_file::{Hints, create_file};
use super::{Access, Keys, Made, Opener, name, protocol};
use crate::app::Failure;

/// What the gate opened for one chain, so that errors and listings can name it.
#[derive(Debug, Default)]
pub struct Trail {
    /// Names of the layers below the top, in order.
    layers: Mutex<Vec<Layer>>,
    names: Mutex<HashMap<String, String>>,
    /// Formats of the images, by their storages.
    formats: Mutex<HashMap<String, String>>,
    /// Options for the layers that images name themselves, by the storage of the image.
    below: Mutex<HashMap<String, Keys>>,
    /// Files that were made for a new image.
    made: Mutex<Made>,
}

#[derive(Debug, Clone)]
struct Layer {
    storage: String,
    shown: String,
}

impl Trail {
    /// How deep below the top a storage of this name lies; 0 for the top itself.
    pub fn depth(&self, storage: &str) -> usize {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.iter().position(|l| l.storage == storage).map_or(0, |i| i + 1)
    }
    /// The layers' names as QEMU shows them.
    pub fn shown(&self) -> Vec<String> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.iter().map(|l| l.shown.clone()).collect()
    }
    /// Records a layer.
    pub fn add(&self, storage: &str, shown: &str) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.push(Layer {
            storage: storage.to_owned(),
            shown: shown.to_owned(),
        });
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(storage.to_owned(), shown.to_owned());
    }
    /// Notes the format of an image, and of those below it as far as they were said.
    pub fn note_format(&self, node: &Node) {
        let mut formats = self.formats.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Some(node);
        while let Some(node) = next {
            formats.insert(node.storage.name().to_owned(), node.format.clone().unwrap_or_default());
            next = match &node.backing {
                BackingChoice::Explicit(below) => Some(below),
                BackingChoice::FromImage | BackingChoice::None => None,
            };
        }
    }
    fn format(&self, storage: &str) -> String {
        let formats = self.formats.lock().unwrap_or_else(PoisonError::into_inner);
        formats.get(storage).cloned().unwrap_or_default()
    }
    /// Notes options for layers that images name themselves.
    pub fn note_below(&self, options: Vec<(String, Keys)>) {
        let mut below = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        below.extend(options);
    }
    fn take_below(&self, storage: &str) -> Option<Keys> {
        let mut below = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        below.remove(storage)
    }
    /// Options for a layer below that its image does not name, the depth of the image and its format.
    pub fn unused(&self) -> Option<(usize, String, Keys)> {
        let below = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        let (storage, keys) = below.iter().min_by_key(|(storage, _)| *storage)?;
        Some((self.depth(storage), self.format(storage), keys.clone()))
    }
    /// For a new image, with the files that were made for it so far.
    pub fn of_new(made: Made) -> Self {
        Self {
            made: Mutex::new(made),
            ..Self::default()
        }
    }
    /// The files that were made for a new image.
    pub fn into_made(self) -> Made {
        self.made.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
    fn count(&self) -> usize {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A gate for one open.
pub struct CliGate<'a> {
    /// Opens.
    pub opener: &'a Opener,
    /// How the top was opened.
    pub access: Access,
    /// Where to note what was opened.
    pub trail: &'a Trail,
    /// The storage whose data file or detached header the caller named, and how.
    pub beside: Option<(String, Keys)>,
}

impl Gate for CliGate<'_> {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let depth = self.trail.count() + 1;
        let opened = match reference.role {
            Role::Backing => {
                // Where the name starts from is told by the image that has it.
                let from = reference.from.name();
                let full = name::of_backing(&self.trail.format(from), from, reference.name);
                let full = full.map_err(|f| below(depth - 1, &f))?;
                self.backing(reference, &full)
            }
            Role::DataFile | Role::Extent => self.part(reference),
        };
        opened.map_err(|failure| match reference.role {
            Role::Backing => below(depth, &failure),
            Role::DataFile | Role::Extent => engine_error(failure.message()),
        })
    }

    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        let path = path_of(reference).map_err(|f| engine_error(f.message()))?;
        let mut made = self.trail.made.lock().unwrap_or_else(PoisonError::into_inner);
        create_file(&path, &mut made, Hints::default()).map_err(|e| match e.io_error() {
            Some(_) => Error::new(ErrorKind::Io, format!("could not create '{path}'")).because(e),
            None => e,
        })
    }
}

impl CliGate<'_> {
    fn backing(&self, reference: &Reference<'_>, full: &str) -> std::result::Result<Node, Failure> {
        let access = Access {
            writable: reference.writable,
            inspect: false,
            ..self.access
        };
        let from = reference.from.name();
        let given = self.trail.take_below(from).unwrap_or_default();
        let resolved = self.opener.resolve_over(full, given.clone(), reference.format, &access);
        // The layer may have other names: its options are for the one that is there.
        let mut resolved = resolved.inspect_err(|_| self.trail.note_below(vec![(from.to_owned(), given)]))?;
        self.trail.note_below(std::mem::take(&mut resolved.below));
        self.trail.add(resolved.node.storage.name(), &resolved.shown.name());
        self.trail.note_format(&resolved.node);
        Ok(resolved.node)
    }

    fn part(&self, reference: &Reference<'_>) -> std::result::Result<Node, Failure> {
        let access = Access {
            writable: reference.writable,
            ..self.access
        };
        let named = self.beside.as_ref().filter(|(of, _)| of == reference.from.name());
        let opened = match named {
            Some((_, keys)) => protocol::open(self.opener, keys.clone(), &access)?,
            None => protocol::open_path(&path_of(reference)?, &access)?,
        };
        Ok(Node::new(opened.storage, reference.format.unwrap_or("raw")))
    }
}

/// Names of parts are relative to the image, but QEMU takes the name of a data file as it stands.
fn path_of(reference: &Reference<'_>) -> std::result::Result<String, Failure> {
    match reference.role {
        Role::DataFile => Ok(reference.name.to_owned()),
        Role::Backing | Role::Extent => name::of_part(reference.from.name(), reference.name),
    }
}

/// What went wrong so many layers down.
fn below(depth: usize, failure: &Failure) -> Error {
    let prefix = "Could not open backing file: ".repeat(depth);
    engine_error(&format!("{prefix}{}", failure.message()))
}

fn engine_error(message: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}
