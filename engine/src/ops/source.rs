//! What the copy pipeline reads from.

use crate::chain::{Chain, ChainExtent, Cursor, LayersBelow};
use crate::image::Below;
use crate::{Error, Result};

/// What a source range is for a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// Reads as zeroes.
    Zero,
    /// Has to be read.
    Data,
    /// Not in the part that is copied: the target's own base has it.
    Absent,
}

/// A run of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceExtent {
    /// Bytes from the asked offset on; never 0.
    pub len: u64,
    /// What they are.
    pub kind: SourceKind,
    /// For data: the layer that has it, if one layer does; [`GuestSource::read_data`] wants to know it.
    pub layer: Option<usize>,
}

impl SourceExtent {
    /// A run that no single layer answers for.
    pub fn of(len: u64, kind: SourceKind) -> Self {
        Self { len, kind, layer: None }
    }
}

impl From<ChainExtent> for SourceExtent {
    fn from(extent: ChainExtent) -> Self {
        Self {
            len: extent.len,
            kind: kind_of(&extent),
            layer: Some(extent.depth),
        }
    }
}

/// Guest bytes to copy: a chain, a part of one, several one after the other.
pub trait GuestSource: Sync {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there is nothing to copy.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Walks along the source.
    fn walk(&self) -> Box<dyn Walk + '_>;
    /// Reads guest bytes, of whatever kind.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Reads bytes of which a walk said that they are data of this layer: nothing is looked up again.
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()>;
}

/// Answers what a source's ranges are, for rising offsets.
pub trait Walk: Send {
    /// What the range from `offset` begins with, at most `len` bytes of it.
    fn extent(&mut self, offset: u64, len: u64) -> Result<SourceExtent>;
}

impl<F: FnMut(u64, u64) -> Result<SourceExtent> + Send> Walk for F {
    fn extent(&mut self, offset: u64, len: u64) -> Result<SourceExtent> {
        self(offset, len)
    }
}

fn kind_of(extent: &ChainExtent) -> SourceKind {
    if extent.is_zero() {
        SourceKind::Zero
    } else {
        SourceKind::Data
    }
}

impl GuestSource for Chain {
    fn len(&self) -> u64 {
        self.virtual_size()
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let mut cursor = Cursor::new(self);
        Box::new(move |offset, len| cursor.extent(offset, len).map(SourceExtent::from))
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Chain::read(self, offset, buf)
    }
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_layer(layer, offset, buf)
    }
}

/// The layers above a base: ranges that only the base or what is below it has are [`SourceKind::Absent`].
pub struct AboveBase<'a> {
    chain: &'a Chain,
    base: usize,
}

impl<'a> AboveBase<'a> {
    /// The layers of `chain` at depths below `base_depth`.
    ///
    /// # Errors
    /// `InvalidArgument` when the chain is not that deep.
    pub fn new(chain: &'a Chain, base_depth: usize) -> Result<Self> {
        if base_depth == 0 || base_depth >= chain.layers().len() {
            return Err(Error::invalid(format!(
                "expected a base at depth 1 to {}, got {base_depth}",
                chain.layers().len() - 1
            )));
        }
        Ok(Self {
            chain,
            base: base_depth,
        })
    }

    fn kind_at(&self, offset: u64, extent: &ChainExtent) -> SourceKind {
        if extent.present && extent.depth < self.base {
            return kind_of(extent);
        }
        // What no layer above has, but lies past the end of a shorter layer in between, reads as zeroes, not as the base.
        let hidden = self.chain.layers()[1..=self.base]
            .iter()
            .any(|l| l.virtual_size() <= offset);
        if hidden { SourceKind::Zero } else { SourceKind::Absent }
    }
}

impl GuestSource for AboveBase<'_> {
    fn len(&self) -> u64 {
        self.chain.virtual_size()
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let mut cursor = Cursor::new(self.chain);
        Box::new(move |offset, len| {
            let extent = cursor.extent(offset, len)?;
            Ok(SourceExtent {
                kind: self.kind_at(offset, &extent),
                ..extent.into()
            })
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.chain.read(offset, buf)
    }
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.chain.read_layer(layer, offset, buf)
    }
}

/// What lies below an overlay, as long as the overlay.
pub struct BelowOverlay<'a> {
    below: LayersBelow<'a>,
    len: u64,
}

impl<'a> BelowOverlay<'a> {
    /// Everything below the top of `chain`, cut or extended with zeroes to the top's size.
    pub fn new(chain: &'a Chain) -> Self {
        Self {
            below: chain.below(0),
            len: chain.virtual_size(),
        }
    }
}

impl GuestSource for BelowOverlay<'_> {
    fn len(&self) -> u64 {
        self.len
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let (mut cursor, size) = (self.below.cursor(), self.below.virtual_size());
        Box::new(move |offset, len: u64| {
            if offset >= size {
                return Ok(SourceExtent::of(len, SourceKind::Zero));
            }
            cursor.extent(offset, len.min(size - offset)).map(SourceExtent::from)
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read(offset, buf)
    }
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read_layer(layer, offset, buf)
    }
}

/// Several sources one after the other.
pub struct Concatenation<'a> {
    parts: Vec<(u64, &'a dyn GuestSource)>,
    len: u64,
}

impl<'a> Concatenation<'a> {
    /// In this order.
    ///
    /// # Errors
    /// `LimitExceeded` when the lengths add up past 2^64.
    pub fn new(sources: &[&'a dyn GuestSource]) -> Result<Self> {
        let mut len = 0u64;
        let mut parts = Vec::with_capacity(sources.len());
        for source in sources.iter().filter(|s| !s.is_empty()) {
            parts.push((len, *source));
            len = len
                .checked_add(source.len())
                .ok_or_else(|| Error::limit("the sources together are longer than 2^64 bytes"))?;
        }
        Ok(Self { parts, len })
    }

    fn part(&self, offset: u64) -> Result<(u64, &'a dyn GuestSource)> {
        let index = self.parts.partition_point(|(start, _)| *start <= offset);
        let found = index.checked_sub(1).and_then(|i| self.parts.get(i));
        found
            .copied()
            .ok_or_else(|| Error::invalid(format!("offset {offset:#x} lies past the end {:#x}", self.len)))
    }

    /// Does `read` for the parts that a range touches, with offsets in the part.
    fn each_part(
        &self,
        mut offset: u64,
        mut buf: &mut [u8],
        read: impl Fn(&dyn GuestSource, u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        while !buf.is_empty() {
            let (start, source) = self.part(offset)?;
            let there = source.len().saturating_sub(offset - start);
            let n = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
            if n == 0 {
                return Err(Error::invalid(format!(
                    "offset {offset:#x} lies past the end {:#x}",
                    self.len
                )));
            }
            let (head, rest) = buf.split_at_mut(n);
            read(source, offset - start, head)?;
            offset += n as u64;
            buf = rest;
        }
        Ok(())
    }
}

impl GuestSource for Concatenation<'_> {
    fn len(&self) -> u64 {
        self.len
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let mut parts: Vec<_> = self
            .parts
            .iter()
            .map(|(start, source)| (*start, source.len(), source.walk()))
            .collect();
        Box::new(move |offset, len: u64| {
            let index = parts.partition_point(|(start, _, _)| *start <= offset);
            let Some((start, end, walk)) = index.checked_sub(1).and_then(|i| parts.get_mut(i)) else {
                return Err(Error::invalid(format!("offset {offset:#x} lies past the end")));
            };
            walk.extent(offset - *start, len.min(*end - (offset - *start)))
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.each_part(offset, buf, |source, offset, buf| source.read(offset, buf))
    }
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.each_part(offset, buf, |source, offset, buf| source.read_data(layer, offset, buf))
    }
}
