//! From a name or an option list to an open chain.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value};
use vdisk_engine::gate::BackingChoice;
use vdisk_engine::options::Options;
use vdisk_engine::{CancelToken, Chain, ErrorKind, Image, Limits, Node, OpenEnv, StorageRef, formats};

use super::gate::{CliGate, Trail};
use super::protocol::{self, OpenStorage};
use super::shown::Shown;
use super::{Access, Keys, blkdebug, json, keyval};
use crate::app::{self, Failure};
use crate::output;
use crate::secrets::SecretStore;

/// A node with the name it is shown under.
pub struct Resolved {
    /// For the engine.
    pub node: Node,
    /// For people.
    pub shown: Shown,
    /// The protocol driver below (`file`), or the format of an image that serves as storage.
    pub protocol: String,
    /// The node is a protocol node that is used as an image (`driver=file`).
    pub bare: bool,
    /// Options of the file beside the image's own, in place of its name: the external data file, or the detached header.
    pub beside: Option<Keys>,
    /// Options for the layers that images name themselves (`backing.encrypt.key-secret`), by the storage of the image.
    pub below: Vec<(String, Keys)>,
}

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

/// The layer below, its name where options say it, and options for layers that images name themselves (`None`: the image at hand).
type ChosenBacking = (BackingChoice, Option<Shown>, Vec<(Option<String>, Keys)>);

/// How an image is named.
#[derive(Debug, Clone, Copy)]
pub struct Spec<'a> {
    /// A file name, or an option list.
    pub text: &'a str,
    /// The format, where it was said.
    pub format: Option<&'a str>,
    /// Whether `text` is an option list.
    pub image_opts: bool,
}

impl<'a> Spec<'a> {
    /// A name or an option list as the command line has it.
    ///
    /// # Errors
    /// An option list with a format beside it: the list says the format.
    pub fn new(text: &'a str, format: Option<&'a str>, image_opts: bool) -> Result<Self, Failure> {
        if image_opts && format.is_some() {
            return Err(Failure::new("--image-opts and --format are mutually exclusive"));
        }
        Ok(Self {
            text,
            format,
            image_opts,
        })
    }
    /// A file name.
    pub fn name(text: &'a str, format: Option<&'a str>) -> Self {
        Self {
            text,
            format,
            image_opts: false,
        }
    }
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

    /// Finds storage, format and options of an image without opening the image.
    pub fn resolve(&self, spec: Spec<'_>, access: &Access) -> Result<Resolved, Failure> {
        if !spec.image_opts {
            return self.resolve_name(spec.text, spec.format, access);
        }
        let keys = Keys::from_pairs(keyval::parse(spec.text, Some("file")));
        self.resolve_keys(keys, access)
    }

    /// The same for a name.
    pub fn resolve_name(&self, name: &str, format: Option<&str>, access: &Access) -> Result<Resolved, Failure> {
        self.resolve_over(name, Keys::default(), format, access)
    }

    /// The same for a name with options that come before those of the name, and before the format. The format comes before the name's
    /// own: it is what the user, or the header of the image above, says of it.
    pub fn resolve_over(
        &self,
        name: &str,
        mut keys: Keys,
        format: Option<&str>,
        access: &Access,
    ) -> Result<Resolved, Failure> {
        if let Some(format) = format {
            keys.add("driver", format);
        }
        match json::parse(name)? {
            Some(own) => keys.add_all(own),
            None => keys.add("file.filename", name),
        }
        self.resolve_keys(keys, access)
    }

    /// The same for options.
    pub fn resolve_keys(&self, mut keys: Keys, access: &Access) -> Result<Resolved, Failure> {
        let access = &access.deeper()?;
        let driver = keys.take("driver");
        if let Some(driver) = driver.as_deref().filter(|d| protocol::is_protocol(d)) {
            if let Some(image) = blkdebug::image_alone(driver, &keys) {
                return self.resolve_keys(image, access);
            }
            return self.resolve_bare(driver, keys, access);
        }
        let driver = driver.map(|d| known(&d)).transpose()?;
        let access = &access.refined(&mut keys)?;
        if let Some(node) = keys.take("file") {
            return Err(no_node(&node));
        }
        let file = keys.take_below("file");
        if file.is_empty() {
            return Err(Failure::new(match driver {
                Some(_) => "A block device must be specified for \"file\"",
                None => "Must specify either driver or file",
            }));
        }
        let file = protocol::open(self, file, access)?;
        let driver = match driver {
            Some(driver) => driver,
            None => probe(&file, access)?,
        };
        self.format_node(driver, file, keys, access)
    }

    /// A protocol node as an image: its bytes are the disk.
    fn resolve_bare(&self, driver: &str, mut keys: Keys, access: &Access) -> Result<Resolved, Failure> {
        if let Some(name) = keys.take("file.filename") {
            keys.add("filename", name);
        }
        keys.add("driver", driver);
        let opened = protocol::open(self, keys, access)?;
        Ok(Resolved {
            node: Node::new(opened.storage, "raw"),
            shown: opened.shown,
            protocol: opened.driver,
            bare: true,
            beside: None,
            below: Vec::new(),
        })
    }

    fn format_node(
        &self,
        driver: &'static str,
        file: OpenStorage,
        mut keys: Keys,
        access: &Access,
    ) -> Result<Resolved, Failure> {
        let (backing, below, merged) = self.backing_choice(driver, &mut keys, access)?;
        let of_image =
            |(of, keys): (Option<String>, Keys)| (of.unwrap_or_else(|| file.storage.name().to_owned()), keys);
        let merged = merged.into_iter().map(of_image).collect();
        let beside = file_beside(driver).map(|key| keys.take_below(key));
        let beside = beside.filter(|keys| !keys.is_empty());
        take_cache_sizes(driver, &mut keys)?;
        let open_options = formats::by_name(driver)?.open_options();
        let (mut options, mut shown) = (Options::new(), Vec::new());
        for (key, value) in keys.iter() {
            if !open_options.iter().any(|o| o.name == key) {
                return Err(not_supported(driver, key));
            }
            options.set(key, super::keys::text(value));
            shown.push((key.to_owned(), value.clone()));
        }
        if let Some(header) = beside.as_ref().filter(|_| driver == "luks") {
            // The driver asks the gate for it, which has the options.
            options.set("header", "header");
            shown.push(("header".to_owned(), node_tree(header)));
        }
        let over_protocol = protocol::is_protocol(&file.driver);
        let mut name = Shown::format(driver, shown, &file.shown, over_protocol);
        if !matches!(backing, BackingChoice::FromImage) && !access.no_backing {
            name = name.with_backing(below.as_ref());
        }
        let mut node = Node::new(file.storage, driver).with_options(options);
        node.backing = match backing {
            BackingChoice::FromImage if access.no_backing => BackingChoice::None,
            other => other,
        };
        Ok(Resolved {
            node,
            shown: name,
            protocol: file.driver,
            bare: false,
            beside,
            below: merged,
        })
    }

    fn backing_choice(&self, driver: &str, keys: &mut Keys, access: &Access) -> Result<ChosenBacking, Failure> {
        let can = formats::by_name(driver)?.opens_over_backing();
        if let Some(first) = keys
            .iter()
            .map(|(k, _)| k)
            .find(|k| *k == "backing" || k.starts_with("backing."))
            && !can
        {
            return Err(not_supported(driver, first));
        }
        match keys.take_value("backing") {
            Some(Value::Null) => return Ok((BackingChoice::None, None, Vec::new())),
            Some(Value::String(s)) if s.is_empty() => {
                app::warning("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
                return Ok((BackingChoice::None, None, Vec::new()));
            }
            Some(node) => return Err(no_node(&super::keys::text(&node))),
            None => {}
        }
        let below = keys.take_below("backing");
        if below.is_empty() {
            return Ok((BackingChoice::FromImage, None, Vec::new()));
        }
        let names_a_file = |key: &str| ["file", "filename"].contains(&key) || key.starts_with("file.");
        if !below.iter().any(|(key, _)| names_a_file(key)) {
            return Ok((BackingChoice::FromImage, None, vec![(None, below)]));
        }
        // The layer that a commit writes to may be named by options as well.
        let access = Access {
            writable: access.changes(1),
            base: access
                .base
                .and_then(|depth| depth.checked_sub(1))
                .filter(|depth| *depth > 0),
            inspect: false,
            check: false,
            ..*access
        };
        let resolved = self
            .resolve_keys(below, &access)
            .map_err(|f| f.context("Could not open backing file"))?;
        let merged = resolved.below.into_iter().map(|(of, keys)| (Some(of), keys)).collect();
        let node = BackingChoice::Explicit(Box::new(resolved.node));
        Ok((node, Some(resolved.shown), merged))
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

fn not_supported(format: &str, option: &str) -> Failure {
    Failure::new(format!(
        "Block format '{format}' does not support the option '{option}'"
    ))
}

/// QEMU's sizes of its own metadata caches; the engine's caches are bounded by its limits instead.
fn take_cache_sizes(driver: &str, keys: &mut Keys) -> Result<(), Failure> {
    const SIZES: &[&str] = &[
        "cache-size",
        "l2-cache-size",
        "l2-cache-entry-size",
        "refcount-cache-size",
        "cache-clean-interval",
    ];
    for name in SIZES.iter().filter(|_| driver == "qcow2") {
        if let Some(text) = keys.take(name) {
            crate::text::size::parse(&text).map_err(|_| crate::options::not_a_size(name))?;
        }
    }
    Ok(())
}

/// The key under which the options of a file beside the image's own stand.
fn file_beside(driver: &str) -> Option<&'static str> {
    match driver {
        "qcow2" => Some("data-file"),
        "luks" => Some("header"),
        _ => None,
    }
}

/// The options of a protocol node as QEMU shows them.
fn node_tree(keys: &Keys) -> Value {
    let mut tree = Map::from_iter([("driver".to_owned(), "file".into())]);
    tree.extend(keys.iter().map(|(key, value)| (key.to_owned(), value.clone())));
    Value::Object(tree)
}

fn note_explicit(node: &Node, trail: &Trail) {
    let mut node = node;
    while let BackingChoice::Explicit(below) = &node.backing {
        trail.add(below.storage.name(), below.storage.name());
        node = below;
    }
}

fn no_node(name: &str) -> Failure {
    Failure::new(format!("Cannot find device='{name}' nor node-name='{name}'"))
}

fn known(driver: &str) -> Result<&'static str, Failure> {
    match formats::by_name(driver) {
        Ok(driver) => Ok(driver.name()),
        Err(_) => Err(Failure::new(format!("Unknown driver '{driver}'"))),
    }
}

/// The format that the content speaks for.
fn probe(file: &OpenStorage, access: &Access) -> Result<&'static str, Failure> {
    let format = detect(&file.storage)?;
    if format == "raw" && access.writable {
        output::say(&format!(
            "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
             restricted.\n         Specify the 'raw' format explicitly to remove the restrictions.",
            file.shown.name()
        ));
    }
    Ok(format)
}

/// The most likely format of a file.
pub fn detect(storage: &StorageRef) -> Result<&'static str, Failure> {
    let found = formats::detect(storage.as_ref())?;
    Ok(found.first().map_or("raw", |(driver, _)| driver.name()))
}
