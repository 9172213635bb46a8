//! An image with everything below it.

mod cursor;
mod host;

use std::collections::HashSet;

pub use cursor::Cursor;

use crate::gate::{BackingChoice, Node, Reference, Role};
use crate::image::{Below, ExtentKind, HostPlace};
use crate::{Error, Image, OpenEnv, Result, StorageRef, formats};

/// Open layers, top first. Depth 0 is the top.
pub struct Chain {
    layers: Vec<Box<dyn Image>>,
}

/// What a guest range is, seen through the whole chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainExtent {
    /// Bytes from the asked offset on; never 0.
    pub len: u64,
    /// The layer that decides; for a range that no layer has, the deepest one that reaches it.
    pub depth: usize,
    /// Whether any layer has it.
    pub present: bool,
    /// What it is there; `Unallocated` only where no layer has it.
    pub kind: ExtentKind,
    /// Whether it is data over a hole of the layer's storage: space that was only set aside. Only a [`Cursor`] looks.
    pub hole: bool,
}

impl ChainExtent {
    /// Whether the range reads as zeroes for sure.
    pub fn is_zero(&self) -> bool {
        self.hole || matches!(self.kind, ExtentKind::Unallocated | ExtentKind::Zero { .. })
    }
    /// Where its bytes are, if they are anywhere.
    pub fn place(&self) -> Option<HostPlace> {
        match self.kind {
            ExtentKind::Zero { at } | ExtentKind::Data { at, .. } => at,
            ExtentKind::Unallocated | ExtentKind::Compressed => None,
        }
    }
}

impl Chain {
    /// Opens an image and, through the gate, everything below it. Only the top is opened for writing, if `env` says so.
    ///
    /// # Errors
    /// What the drivers and the gate say; `LimitExceeded` for more layers than allowed; `Corrupt` for a chain that comes back to itself.
    pub fn open(node: Node, env: &OpenEnv<'_>) -> Result<Self> {
        Self::open_writable(node, env, &[0])
    }

    /// As [`open`](Self::open), but opens for writing the layers at these depths (a commit writes the top and a base).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_writable(node: Node, env: &OpenEnv<'_>, depths: &[usize]) -> Result<Self> {
        let env_at = |depth| if depths.contains(&depth) { *env } else { env.read_only() };
        let mut layers: Vec<Box<dyn Image>> = Vec::new();
        let mut seen = HashSet::new();
        let mut next = Some(node);
        while let Some(node) = next {
            if layers.len() == env.limits.chain_depth {
                return Err(Error::limit(format!(
                    "the backing chain is deeper than {} layers",
                    env.limits.chain_depth
                )));
            }
            if let Some(id) = node.storage.identity()
                && !seen.insert(id)
            {
                return Err(Error::corrupt("the backing chain comes back to this file").at(node.storage.name()));
            }
            let env = OpenEnv {
                over_base: matches!(node.backing, BackingChoice::Explicit(_)),
                ..env_at(layers.len())
            };
            let image = open_layer(&node, &env)?;
            if let Some(above) = layers.last()
                && !env.metadata_only
                && !env.for_check
            {
                above
                    .check_below(image.as_ref())
                    .map_err(|e| e.at(node.storage.name()))?;
            }
            next = match node.backing {
                BackingChoice::FromImage => backing_node(image.as_ref(), &node.storage, &env_at(layers.len() + 1))?,
                BackingChoice::None => None,
                BackingChoice::Explicit(below) => Some(*below),
            };
            layers.push(image);
        }
        Ok(Self { layers })
    }

    /// A chain of images that are open already, top first.
    pub fn from_layers(layers: Vec<Box<dyn Image>>) -> Result<Self> {
        if layers.is_empty() {
            return Err(Error::invalid("a chain has at least one layer"));
        }
        Ok(Self { layers })
    }

    /// The layers, top first.
    pub fn layers(&self) -> &[Box<dyn Image>] {
        &self.layers
    }
    /// The top layer.
    pub fn top(&self) -> &dyn Image {
        self.layers[0].as_ref()
    }
    /// Takes the layers out.
    pub fn into_layers(self) -> Vec<Box<dyn Image>> {
        self.layers
    }
    /// Bytes the guest sees.
    pub fn virtual_size(&self) -> u64 {
        self.top().virtual_size()
    }
    /// All layers, as what lies below an image on top of them.
    pub fn under(&self) -> LayersBelow<'_> {
        LayersBelow { layers: &self.layers }
    }
    /// What lies below the layer at `depth`.
    pub fn below(&self, depth: usize) -> LayersBelow<'_> {
        LayersBelow {
            layers: self.layers.get(depth + 1..).unwrap_or_default(),
        }
    }

    /// What the range from `offset` begins with, seen through the whole chain.
    pub fn extent(&self, offset: u64, len: u64) -> Result<ChainExtent> {
        extent_through(&self.layers, offset, len)
    }
    /// Reads guest bytes through the whole chain.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|e| e > self.virtual_size()) {
            let size = self.virtual_size();
            return Err(Error::invalid(format!(
                "{} bytes at {offset:#x} end past the virtual size {size}",
                buf.len()
            )));
        }
        read_through(&self.layers, offset, buf)
    }
    /// Reads bytes that are known to be data of the layer at `depth`.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such layer.
    pub fn read_layer(&self, depth: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        read_from(&self.layers, depth, offset, buf)
    }
    /// Writes guest bytes to the top layer.
    ///
    /// # Errors
    /// What the driver says; see [`Image::write`].
    pub fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.top().write(offset, buf, &self.below(0))
    }
    /// Zeroes guest bytes in the top layer.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.top().write_zeroes(offset, len, unmap, &self.below(0))
    }
}

/// The layers below one, as its source for copy on write.
#[derive(Clone, Copy)]
pub struct LayersBelow<'a> {
    layers: &'a [Box<dyn Image>],
}

impl<'a> LayersBelow<'a> {
    /// Reads bytes that are known to be data of a layer below, counted from the first one below.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such layer.
    pub fn read_layer(&self, depth: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        read_from(self.layers, depth, offset, buf)
    }
    /// Walks along what is below. Past its end the cursor must not be asked.
    pub fn cursor(&self) -> Cursor<'a> {
        Cursor::over(self.layers)
    }
    /// Virtual size of what is below; 0 where nothing is.
    pub fn virtual_size(&self) -> u64 {
        self.layers.first().map_or(0, |l| l.virtual_size())
    }
    /// What a range is below; a range past the end of what is below counts as unallocated.
    pub fn extent(&self, offset: u64, len: u64) -> Result<ChainExtent> {
        let nothing = |len| ChainExtent {
            len,
            depth: 0,
            present: false,
            kind: ExtentKind::Unallocated,
            hole: false,
        };
        let size = self.layers.first().map_or(0, |l| l.virtual_size());
        if offset >= size {
            return Ok(nothing(len));
        }
        extent_through(self.layers, offset, len.min(size - offset))
    }
}

impl Below for LayersBelow<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let size = self.layers.first().map_or(0, |l| l.virtual_size());
        let there = usize::try_from(size.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let (head, tail) = buf.split_at_mut(there);
        tail.fill(0);
        // A layer refuses even an empty read past its end.
        if head.is_empty() {
            return Ok(());
        }
        read_through(self.layers, offset, head)
    }
    fn is_zero(&self, mut offset: u64, mut len: u64) -> Result<bool> {
        while len > 0 {
            let extent = self.extent(offset, len)?;
            if !extent.is_zero() {
                return Ok(false);
            }
            offset += extent.len;
            len -= extent.len;
        }
        Ok(true)
    }
}

fn open_layer(node: &Node, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
    let Some(format) = &node.format else {
        return Err(Error::invalid("the format is not given, and opening never guesses it").at(node.storage.name()));
    };
    let driver = formats::by_name(format)?;
    node.options.check(driver.open_options(), driver.name())?;
    let image = driver
        .open(node.storage.clone(), &node.options, env)
        .map_err(|e| e.at(node.storage.name()))?;
    if image.virtual_size() > env.limits.virtual_size {
        let (size, limit) = (image.virtual_size(), env.limits.virtual_size);
        return Err(
            Error::limit(format!("the virtual size {size} exceeds the limit of {limit} bytes")).at(node.storage.name()),
        );
    }
    Ok(image)
}

fn backing_node(image: &dyn Image, storage: &StorageRef, env: &OpenEnv<'_>) -> Result<Option<Node>> {
    let Some(backing) = image.backing() else {
        return Ok(None);
    };
    let open = |name: &str| {
        env.gate.open(&Reference {
            name,
            format: backing.format.as_deref(),
            role: Role::Backing,
            from: storage,
            writable: env.writable,
        })
    };
    let others = image.other_backing_names();
    // What is told is why the first name was not opened.
    let mut node = open(&backing.name).or_else(|e| others.iter().find_map(|name| open(name).ok()).ok_or(e))?;
    if node.format.is_none() {
        node.format = backing.format;
    }
    Ok(Some(node))
}

fn extent_through(layers: &[Box<dyn Image>], offset: u64, len: u64) -> Result<ChainExtent> {
    let mut len = len;
    let mut depth = 0;
    for (d, layer) in layers.iter().enumerate() {
        let size = layer.virtual_size();
        if d > 0 && offset >= size {
            break; // A shorter layer below: the rest reads as zeroes.
        }
        depth = d;
        let reach = if d > 0 { len.min(size - offset) } else { len };
        let extent = layer.extent(offset, reach)?;
        len = extent.len.min(reach);
        if extent.kind != ExtentKind::Unallocated {
            return Ok(ChainExtent {
                len,
                depth,
                present: true,
                kind: extent.kind,
                hole: false,
            });
        }
    }
    Ok(ChainExtent {
        len,
        depth,
        present: false,
        kind: ExtentKind::Unallocated,
        hole: false,
    })
}

fn read_from(layers: &[Box<dyn Image>], depth: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
    let layer = layers
        .get(depth)
        .ok_or_else(|| Error::invalid(format!("there is no layer at depth {depth}")))?;
    layer.read(offset, buf)
}

fn read_through(layers: &[Box<dyn Image>], mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
    if let [only] = layers {
        return only.read(offset, buf); // What it does not have reads as zeroes: nothing to look up.
    }
    while !buf.is_empty() {
        let extent = extent_through(layers, offset, buf.len() as u64)?;
        let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(buf.len());
        let (head, rest) = buf.split_at_mut(len);
        if extent.is_zero() {
            head.fill(0);
        } else if let Some(layer) = layers.get(extent.depth) {
            layer.read(offset, head)?;
        }
        offset += len as u64;
        buf = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::MemoryStorage;
    use crate::{ErrorKind, Limits};

    #[test]
    fn a_chain_without_a_format_is_not_guessed() {
        let storage = Arc::new(MemoryStorage::new("m", b"QFI\xfb".to_vec()));
        let mut node = Node::new(storage, "raw");
        node.format = None;
        let limits = Limits::default();
        let error = Chain::open(node, &OpenEnv::closed(&limits)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_chain_deeper_than_the_limit_is_refused() {
        let limits = Limits {
            chain_depth: 2,
            ..Limits::default()
        };
        let layer = || Node::new(Arc::new(MemoryStorage::new("m", vec![0; 512])), "raw");
        let stack = |below: Node, mut node: Node| {
            node.backing = BackingChoice::Explicit(Box::new(below));
            node
        };
        let two = stack(layer(), layer());
        assert!(Chain::open(two, &OpenEnv::closed(&limits)).is_ok());
        let three = stack(stack(layer(), layer()), layer());
        let error = Chain::open(three, &OpenEnv::closed(&limits)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    }
}
