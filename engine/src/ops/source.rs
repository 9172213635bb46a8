//! What the copy pipeline reads from.

use crate::chain::{Chain, ChainExtent, LayersBelow};
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
}

/// Guest bytes to copy: a chain, a part of one, several one after the other.
pub trait GuestSource: Sync {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there is nothing to copy.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What the range from `offset` begins with.
    fn extent(&self, offset: u64, len: u64) -> Result<SourceExtent>;
    /// Reads guest bytes, of whatever kind.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
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
    fn extent(&self, offset: u64, len: u64) -> Result<SourceExtent> {
        let extent = Chain::extent(self, offset, len)?;
        Ok(SourceExtent {
            len: extent.len,
            kind: kind_of(&extent),
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Chain::read(self, offset, buf)
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
}

impl GuestSource for AboveBase<'_> {
    fn len(&self) -> u64 {
        self.chain.virtual_size()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<SourceExtent> {
        let extent = self.chain.extent(offset, len)?;
        let below = !extent.present || extent.depth >= self.base;
        // What no layer above has, but lies past the end of a shorter layer in between, reads as zeroes, not as the base.
        let hidden = below
            && self.chain.layers()[1..=self.base]
                .iter()
                .any(|l| l.virtual_size() <= offset);
        let kind = if hidden {
            SourceKind::Zero
        } else if below {
            SourceKind::Absent
        } else {
            kind_of(&extent)
        };
        Ok(SourceExtent { len: extent.len, kind })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.chain.read(offset, buf)
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
    fn extent(&self, offset: u64, len: u64) -> Result<SourceExtent> {
        let extent = self.below.extent(offset, len)?;
        Ok(SourceExtent {
            len: extent.len,
            kind: kind_of(&extent),
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read(offset, buf)
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
}

impl GuestSource for Concatenation<'_> {
    fn len(&self) -> u64 {
        self.len
    }
    fn extent(&self, offset: u64, len: u64) -> Result<SourceExtent> {
        let (start, source) = self.part(offset)?;
        source.extent(offset - start, len.min(source.len() - (offset - start)))
    }
    fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
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
            source.read(offset - start, head)?;
            offset += n as u64;
            buf = rest;
        }
        Ok(())
    }
}
