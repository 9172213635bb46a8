//! What a copy reads beside a plain chain. The bytes are the engine's business; here it is said which of them count.

use vdisk_engine::image::ExtentKind;
use vdisk_engine::ops::{GuestSource, SourceExtent, SourceKind, Walk};
use vdisk_engine::{Chain, Result};

/// Bytes compared at once.
const STEP: u64 = 1 << 20;
/// Bytes that are the same or differ as one.
const UNIT: usize = 64 << 10;

/// What the top layer of a chain holds itself.
pub struct TopLayer<'a>(pub &'a Chain);

impl GuestSource for TopLayer<'_> {
    fn len(&self) -> u64 {
        self.0.virtual_size()
    }

    fn walk(&self) -> Box<dyn Walk + '_> {
        Box::new(|offset, len| {
            let extent = self.0.top().extent(offset, len)?;
            let kind = match extent.kind {
                ExtentKind::Unallocated => SourceKind::Absent,
                ExtentKind::Zero { .. } => SourceKind::Zero,
                ExtentKind::Data { .. } | ExtentKind::Compressed => SourceKind::Data,
            };
            Ok(SourceExtent {
                layer: Some(0),
                ..SourceExtent::of(extent.len.min(len), kind)
            })
        })
    }

    /// Through the whole chain: a unit may hold bytes of this layer beside bytes of its base.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Chain::read(self.0, offset, buf)
    }

    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_data(layer, offset, buf)
    }
}

/// What an image shows differently from a base: what an overlay on that base has to hold.
pub struct DifferenceTo<'a> {
    /// The image.
    pub image: &'a Chain,
    /// The base.
    pub base: &'a Chain,
}

impl DifferenceTo<'_> {
    fn read_base(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let there = self.base.virtual_size().saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
        let (head, tail) = buf.split_at_mut(there);
        tail.fill(0);
        if head.is_empty() {
            Ok(())
        } else {
            self.base.read(offset, head)
        }
    }

    /// The leading run of units that agree, or that differ.
    fn compare(&self, offset: u64, len: u64) -> Result<SourceExtent> {
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        let (mut ours, mut theirs) = (vec![0; size], vec![0; size]);
        Chain::read(self.image, offset, &mut ours)?;
        self.read_base(offset, &mut theirs)?;
        // Units lie on the guest's grid.
        let first = UNIT - usize::try_from(offset % UNIT as u64).unwrap_or(0);
        let mut end = first.min(size);
        let differs = ours.get(..end) != theirs.get(..end);
        while end < size {
            let next = (end + UNIT).min(size);
            if (ours.get(end..next) != theirs.get(end..next)) != differs {
                break;
            }
            end = next;
        }
        let kind = if differs { SourceKind::Data } else { SourceKind::Absent };
        Ok(SourceExtent::of(end as u64, kind))
    }
}

impl GuestSource for DifferenceTo<'_> {
    fn len(&self) -> u64 {
        self.image.virtual_size()
    }

    fn walk(&self) -> Box<dyn Walk + '_> {
        let (mut ours, mut theirs) = (self.image.walk(), self.base.walk());
        let size = self.base.virtual_size();
        Box::new(move |offset, len| {
            let our = ours.extent(offset, len)?;
            let mut len = our.len.min(len);
            let their_zero = if offset < size {
                let their = theirs.extent(offset, len.min(size - offset))?;
                len = len.min(their.len);
                their.kind == SourceKind::Zero
            } else {
                true
            };
            match (our.kind == SourceKind::Zero, their_zero) {
                (true, true) => Ok(SourceExtent::of(len, SourceKind::Absent)),
                (true, false) => Ok(SourceExtent::of(len, SourceKind::Zero)),
                _ => self.compare(offset, len.min(STEP)),
            }
        })
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Chain::read(self.image, offset, buf)
    }

    fn read_data(&self, _layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf)
    }
}
