//! From a name or an option list to storage, format and options of an image, which is not opened yet.

use vdisk_engine::{Node, formats};

use super::open::detect;
use super::protocol::{self, OpenStorage};
use super::shown::Shown;
use super::{Access, Keys, Opener, blkdebug, json, keyval};
use crate::app::Failure;
use crate::output;

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

impl Opener {
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
}

pub(super) fn no_node(name: &str) -> Failure {
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
