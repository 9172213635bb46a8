//! From what was resolved to an open chain.

use std::sync::atomic::{AtomicUsize, Ordering};

use vdisk_engine::gate::BackingChoice;
use vdisk_engine::{CancelToken, Chain, ErrorKind, Image, Limits, Node, OpenEnv, StorageRef, formats};

use super::format_node::not_supported;
use super::gate::{CliGate, Trail};
use super::{Access, Keys, Resolved, Spec};
use crate::app::{self, Failure};
use crate::output;
use crate::secrets::SecretStore;

/// An open chain with the names of its layers.
pub struct OpenImage {
    /// The layers.
    pub chain: Chain,
    /// The names of the layers, top first.
    pub names: Vec<String>,
    /// The node is a protocol node that is used as an image (`driver=file`).
    pub bare: Option<String>,
    /// The protocol driver below the top.
    pub protocol: String,
    /// The id of the secret that the top was opened with.
    pub key_secret: Option<String>,
}

impl OpenImage {
    /// The name of the file that names in the image start from.
    pub fn place(&self) -> String {
        place(self.chain.top())
    }
}

/// The name of the file that names in a layer start from.
pub fn place(layer: &dyn Image) -> String {
    let storages = layer.storages();
    storages.first().map_or_else(String::new, |file| file.name().to_owned())
}

/// Opens images for one run of the program.
#[derive(Debug, Default)]
pub struct Opener {
    /// Secrets given with `--object`.
    pub secrets: SecretStore,
    /// Bounds.
    pub limits: Limits,
    /// Ends every wait for a server when it is set.
    pub cancel: CancelToken,
    /// Images that were opened to be the files of others.
    inner: AtomicUsize,
}

/// An image's name for the layer below may hold several images, each of which has such a name again: without a bound on their number
/// small files could keep the program busy forever.
const MOST_INNER: usize = 256;

impl Opener {
    /// With these secrets and the usual bounds.
    pub fn new(secrets: SecretStore) -> Self {
        Self {
            secrets,
            ..Self::default()
        }
    }

    /// Counts an image that is to be the file of another.
    ///
    /// # Errors
    /// Too many of them.
    pub fn count_inner(&self, name: &str) -> Result<(), Failure> {
        match self.inner.fetch_add(1, Ordering::Relaxed) < MOST_INNER {
            true => Ok(()),
            false => Err(Failure::new(format!(
                "'{name}' is one image too many in the place of a file: expected at most {MOST_INNER} of them"
            ))),
        }
    }

    /// Opens a chain; failures name the image as qemu-img does.
    pub fn open(&self, spec: Spec<'_>, access: Access) -> Result<OpenImage, Failure> {
        self.try_open(spec, access)
            .map_err(|f| f.context(format!("Could not open '{}'", spec.text)))
    }

    /// Opens a chain; failures are told without the name.
    pub fn try_open(&self, spec: Spec<'_>, access: Access) -> Result<OpenImage, Failure> {
        self.finish(self.resolve(spec, &access)?, access)
    }

    /// Opens a new image by its name, with the secrets (open options) that it was made with.
    pub fn open_new(
        &self,
        name: &str,
        format: &str,
        secrets: Vec<(String, String)>,
        access: Access,
    ) -> Result<OpenImage, Failure> {
        let mut keys = Keys::from_pairs(secrets);
        keys.add("driver", format);
        keys.add("file.filename", name);
        let resolved = self.resolve_keys(keys, &access);
        resolved
            .and_then(|resolved| self.finish(resolved, access))
            .map_err(|f| f.context(format!("Could not open '{name}'")))
    }

    fn finish(&self, resolved: Resolved, access: Access) -> Result<OpenImage, Failure> {
        let trail = Trail::default();
        note_explicit(&resolved.node, &trail);
        trail.note_below(resolved.below);
        let top = resolved.shown.name();
        let options = &resolved.node.options;
        let key_secret = ["key-secret", "encrypt.key-secret"]
            .iter()
            .find_map(|name| options.get(name));
        let key_secret = key_secret.map(str::to_owned);
        let chain = self.open_with(resolved.node, resolved.beside, &access, &trail)?;
        let locked = chain.layers().iter().find_map(|layer| layer.missing_key());
        if let Some(error) = locked.filter(|_| !access.keyless) {
            return Err(Failure::new(app::sentence(&error)));
        }
        for notice in chain.layers().iter().flat_map(|layer| layer.notices()) {
            output::say(notice);
        }
        let mut names = vec![top];
        names.extend(trail.shown());
        for layer in chain.layers().iter().skip(names.len()) {
            names.push(layer.storages().first().map_or(String::new(), |s| s.name().to_owned()));
        }
        Ok(OpenImage {
            bare: resolved.bare.then(|| resolved.protocol.clone()),
            protocol: resolved.protocol,
            key_secret,
            chain,
            names,
        })
    }

    /// Opens the layers of what was resolved.
    pub fn open_chain(&self, resolved: Resolved, access: &Access) -> Result<Chain, Failure> {
        let trail = Trail::default();
        trail.note_below(resolved.below);
        self.open_with(resolved.node, resolved.beside, access, &trail)
    }

    fn open_with(&self, node: Node, beside: Option<Keys>, access: &Access, trail: &Trail) -> Result<Chain, Failure> {
        let gate = CliGate {
            opener: self,
            access: *access,
            trail,
            beside: beside.map(|keys| (node.storage.name().to_owned(), keys)),
        };
        trail.note_format(&node);
        let env = OpenEnv {
            writable: access.writable && !node.storage.is_read_only(),
            for_check: access.check,
            metadata_only: access.inspect,
            ..OpenEnv::closed(&self.limits)
                .with_gate(&gate)
                .with_secrets(&self.secrets)
        };
        let top = node.storage.name().to_owned();
        let depths: Vec<usize> = (0..=access.base.unwrap_or(0))
            .filter(|depth| *depth == 0 || access.changes(*depth))
            .collect();
        let format = node.format.clone().unwrap_or_default();
        let opened = Chain::open_writable(node, &env, &depths).map_err(|error| {
            let depth = error.place().filter(|p| *p != top).map_or(0, |p| trail.depth(p));
            let prefix = "Could not open backing file: ".repeat(depth);
            match error.kind() {
                ErrorKind::NotThisFormat => Failure::new(format!("{prefix}Image is not in {format} format")),
                _ => Failure::new(format!("{prefix}{}", app::sentence(&error))),
            }
        })?;
        match trail.unused() {
            Some((depth, format, options)) => Err(no_layer(depth, &format, &options, access)),
            None => Ok(opened),
        }
    }
}

/// There are options for the layer below the one at this depth, and no such layer.
fn no_layer(depth: usize, format: &str, options: &Keys, access: &Access) -> Failure {
    let first = options.iter().map(|(key, _)| key).next().unwrap_or_default();
    if access.no_backing {
        return not_supported(format, &format!("backing.{first}"));
    }
    let missing = match options.iter().any(|(key, _)| key == "driver") {
        true => "A block device must be specified for \"file\"",
        false => "Must specify either driver or file",
    };
    let prefix = "Could not open backing file: ".repeat(depth + 1);
    Failure::new(format!("{prefix}{missing}"))
}

fn note_explicit(node: &Node, trail: &Trail) {
    let mut node = node;
    while let BackingChoice::Explicit(below) = &node.backing {
        trail.add(below.storage.name(), below.storage.name());
        node = below;
    }
}

/// The most likely format of a file.
pub fn detect(storage: &StorageRef) -> Result<&'static str, Failure> {
    let found = formats::detect(storage.as_ref())?;
    Ok(found.first().map_or("raw", |(driver, _)| driver.name()))
}
