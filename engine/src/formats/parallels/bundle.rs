//! A bundle: `DiskDescriptor.xml` with the files that it names, read through its chain of snapshots.
//!
//! Read-only: what a bundle shows is its current state. Everything it names is opened by the gate.

use serde_json::{Map, Value};

use super::descriptor::{Descriptor, ImageFile, Kind, MAX_LEN};
use super::open::ParallelsImage;
use crate::formats::common::check_range;
use crate::gate::{Reference, Role};
use crate::image::{BackingReference, CheckReport, Extent, ExtentKind, HostPlace, ImageInfo, Repair};
use crate::storage::read_vec;
use crate::{Control, Error, Image, OpenEnv, Result, StorageRef};

/// Sentences that a report holds at most.
const MAX_MESSAGES: usize = 100;

/// The file of one state of one part.
struct Layer {
    /// Index into the storages.
    file: usize,
    body: Body,
}

enum Body {
    Plain(StorageRef),
    Expandable(Box<ParallelsImage>),
}

impl Layer {
    /// What this layer alone has of a range of its part; past its end it has nothing.
    fn extent(&self, at: u64, len: u64) -> Result<Extent> {
        let image = match &self.body {
            Body::Expandable(image) => image,
            Body::Plain(_) => {
                return Ok(Extent {
                    len,
                    kind: data(self.file, at),
                });
            }
        };
        let Some(left) = image.size().checked_sub(at).filter(|left| *left > 0) else {
            let kind = ExtentKind::Unallocated;
            return Ok(Extent { len, kind });
        };
        let found = image.extent_at(at, len.min(left))?;
        let kind = match found.kind {
            ExtentKind::Data { at: Some(place), .. } => data(self.file, place.offset),
            other => other,
        };
        Ok(Extent { kind, ..found })
    }
}

fn data(file: usize, offset: u64) -> ExtentKind {
    let at = Some(HostPlace { file, offset });
    ExtentKind::Data { at, direct: true }
}

struct Part {
    start: u64,
    len: u64,
    /// The current state's file first.
    layers: Vec<Layer>,
}

/// An open bundle.
pub(super) struct Bundle {
    /// The descriptor, then the files.
    storages: Vec<StorageRef>,
    size: u64,
    parts: Vec<Part>,
    states: Vec<String>,
}

impl Bundle {
    pub(super) fn open(main: StorageRef, env: &OpenEnv<'_>) -> Result<Self> {
        if env.writable {
            return Err(Error::unsupported(
                "a Parallels bundle can only be read; convert it to change it",
            ));
        }
        let len = main.len()?;
        if len > MAX_LEN {
            return Err(Error::limit(format!(
                "a disk descriptor of {len} bytes; at most {MAX_LEN} are read"
            )));
        }
        let text = read_vec(main.as_ref(), 0, usize::try_from(len).unwrap_or(usize::MAX))?;
        let found = Descriptor::parse(&text, env.limits)?;
        if found.size > env.limits.virtual_size {
            let (size, limit) = (found.size, env.limits.virtual_size);
            return Err(Error::limit(format!(
                "the virtual size {size} exceeds the limit of {limit} bytes"
            )));
        }
        let mut bundle = Self {
            storages: vec![main],
            size: found.size,
            parts: Vec::new(),
            states: found.states,
        };
        for part in &found.parts {
            let layers = part.layers.iter().map(|file| bundle.layer(file, part.len, env));
            let layers = layers.collect::<Result<Vec<_>>>()?;
            let (start, len) = (part.start, part.len);
            bundle.parts.push(Part { start, len, layers });
        }
        Ok(bundle)
    }

    fn layer(&mut self, file: &ImageFile, len: u64, env: &OpenEnv<'_>) -> Result<Layer> {
        let main = self.storages.first().cloned();
        let main = main.ok_or_else(|| Error::invalid("a bundle without a descriptor"))?;
        let reference = Reference {
            name: &file.name,
            format: None,
            role: Role::Extent,
            from: &main,
            writable: false,
        };
        let storage = env.gate.open(&reference)?.storage;
        let name = storage.name().to_owned();
        let body = match file.kind {
            Kind::Expandable => Body::Expandable(Box::new(
                ParallelsImage::open(storage.clone(), &env.read_only()).map_err(|e| e.at(&name))?,
            )),
            Kind::Plain => {
                let there = storage.len()?;
                if there < len {
                    let shown = file.name.escape_debug();
                    let what = format!("the Plain file \"{shown}\" has {there} bytes where its Storage has {len}");
                    return Err(Error::corrupt(what).at(name));
                }
                Body::Plain(storage.clone())
            }
        };
        self.storages.push(storage);
        let file = self.storages.len() - 1;
        Ok(Layer { file, body })
    }

    /// The layer that decides what a range begins with (`None`: nobody has it), the place in its part, and how much of the range is alike.
    fn find(&self, offset: u64, len: u64) -> Result<(Option<(&Layer, u64)>, Extent)> {
        check_range(offset, len, self.size)?;
        let index = self.parts.partition_point(|p| p.start + p.len <= offset);
        let part = self.parts.get(index);
        let part = part.ok_or_else(|| Error::invalid(format!("no part has the byte {offset:#x}")))?;
        let at = offset - part.start;
        let mut run = len.min(part.len - at);
        for layer in &part.layers {
            let found = layer.extent(at, run)?;
            run = found.len;
            if found.kind != ExtentKind::Unallocated {
                return Ok((Some((layer, at)), found));
            }
        }
        let kind = ExtentKind::Unallocated;
        Ok((None, Extent { len: run, kind }))
    }

    fn facts(&self) -> Map<String, Value> {
        let part = |part: &Part| -> Value {
            let names = part.layers.iter().filter_map(|l| self.storages.get(l.file));
            let names: Vec<Value> = names.map(|s| s.name().into()).collect();
            let mut facts = Map::new();
            facts.insert("virtual-size".into(), part.len.into());
            facts.insert("filenames".into(), names.into());
            Value::Object(facts)
        };
        let mut facts = Map::new();
        facts.insert("states".into(), self.states.clone().into());
        facts.insert("extents".into(), self.parts.iter().map(part).collect());
        facts
    }
}

impl Image for Bundle {
    fn format(&self) -> &'static str {
        "parallels"
    }
    fn virtual_size(&self) -> u64 {
        self.size
    }
    fn backing(&self) -> Option<BackingReference> {
        None
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            specific: Some(self.facts()),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        self.storages.clone()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        Ok(self.find(offset, len)?.1)
    }
    fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size)?;
        while !buf.is_empty() {
            let (layer, found) = self.find(offset, buf.len() as u64)?;
            let (head, rest) = buf.split_at_mut(usize::try_from(found.len).unwrap_or(usize::MAX).min(buf.len()));
            match layer {
                None => head.fill(0),
                Some((layer, at)) => match &layer.body {
                    Body::Plain(storage) => storage.read_at(at, head)?,
                    Body::Expandable(image) => image.read_range(at, head)?,
                },
            }
            offset += found.len;
            buf = rest;
        }
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    /// The findings of all expandable files.
    fn check(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        if repair != Repair::No {
            return Err(Error::unsupported(
                "a Parallels bundle can only be read; repair its files one by one",
            ));
        }
        let mut sum = CheckReport::default();
        for layer in self.parts.iter().flat_map(|p| &p.layers) {
            let Body::Expandable(image) = &layer.body else { continue };
            let found = image.check(Repair::No, control)?;
            let name = self.storages.get(layer.file).map_or("", |s| s.name());
            sum.corruptions += found.corruptions;
            sum.leaks += found.leaks;
            let room = MAX_MESSAGES.saturating_sub(sum.messages.len());
            sum.messages
                .extend(found.messages.into_iter().take(room).map(|m| format!("{name}: {m}")));
            let add = |to: &mut Option<u64>, more: Option<u64>| *to = Some(to.unwrap_or(0) + more.unwrap_or(0));
            add(&mut sum.total_clusters, found.total_clusters);
            add(&mut sum.allocated_clusters, found.allocated_clusters);
            add(&mut sum.fragmented_clusters, found.fragmented_clusters);
        }
        Ok(sum)
    }
}
