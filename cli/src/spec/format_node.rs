//! The options of a format node: its own, those of a file beside it, and those of the layer below.

use serde_json::{Map, Value};
use vdisk_engine::gate::BackingChoice;
use vdisk_engine::options::Options;
use vdisk_engine::{Node, formats};

use super::protocol::{self, OpenStorage};
use super::resolve::no_node;
use super::shown::Shown;
use super::{Access, Keys, Opener, Resolved};
use crate::app::{self, Failure};

/// The layer below, its name where options say it, and options for layers that images name themselves (`None`: the image at hand).
type ChosenBacking = (BackingChoice, Option<Shown>, Vec<(Option<String>, Keys)>);

impl Opener {
    pub(super) fn format_node(
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
}

pub(super) fn not_supported(format: &str, option: &str) -> Failure {
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
