//! compare: whether two images show the guest the same.

use crate::ops::zeroes;
use crate::{Chain, Control, Result};

/// Guest bytes compared at once.
const STEP: u64 = 2 << 20;

/// The first thing that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Content differs, first at this offset.
    Content(u64),
    /// Strict only: one image has this offset allocated, the other has not.
    Allocation(u64),
    /// Strict only: the virtual sizes differ.
    Size(u64, u64),
}

/// The outcome of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// `None`: identical.
    pub difference: Option<Difference>,
    /// The sizes differ, and the rest of the longer image reads as zeroes.
    pub sizes_differ: bool,
}

/// Compares guest content. The longer image may go on with zeroes, unless `strict`, which also compares what is allocated.
///
/// # Errors
/// What the images say; `Cancelled`.
pub fn compare(a: &Chain, b: &Chain, strict: bool, control: &Control) -> Result<Comparison> {
    let (len_a, len_b) = (a.virtual_size(), b.virtual_size());
    let sizes_differ = len_a != len_b;
    if strict && sizes_differ {
        return Ok(Comparison {
            difference: Some(Difference::Size(len_a, len_b)),
            sizes_differ,
        });
    }
    let common = len_a.min(len_b);
    control.set_total(len_a.max(len_b));
    let mut difference = compare_common(a, b, common, strict, control)?;
    if difference.is_none() && sizes_differ {
        let longer = if len_a > len_b { a } else { b };
        difference = first_data(longer, common, control)?.map(Difference::Content);
    }
    Ok(Comparison {
        difference,
        sizes_differ,
    })
}

fn compare_common(a: &Chain, b: &Chain, len: u64, strict: bool, control: &Control) -> Result<Option<Difference>> {
    let (mut buf_a, mut buf_b) = (Vec::new(), Vec::new());
    let mut offset = 0;
    while offset < len {
        let (x, y) = (a.extent(offset, len - offset)?, b.extent(offset, len - offset)?);
        let mut step = x.len.min(y.len);
        if strict && x.present != y.present {
            return Ok(Some(Difference::Allocation(offset)));
        }
        if !(x.is_zero() && y.is_zero()) {
            step = step.min(STEP);
            control.checkpoint(step)?;
            let n = step as usize;
            buf_a.resize(n, 0);
            buf_b.resize(n, 0);
            let found = match (x.is_zero(), y.is_zero()) {
                (true, _) => read(b, offset, &mut buf_b).map(|()| first_nonzero(&buf_b))?,
                (_, true) => read(a, offset, &mut buf_a).map(|()| first_nonzero(&buf_a))?,
                _ => {
                    read(a, offset, &mut buf_a)?;
                    read(b, offset, &mut buf_b)?;
                    first_difference(&buf_a, &buf_b)
                }
            };
            if let Some(at) = found {
                return Ok(Some(Difference::Content(offset + at as u64)));
            }
        }
        control.advance(step);
        offset += step;
    }
    Ok(None)
}

fn read(chain: &Chain, offset: u64, buf: &mut [u8]) -> Result<()> {
    chain.read(offset, buf)
}

/// The first byte from `offset` on that is not zero.
fn first_data(chain: &Chain, mut offset: u64, control: &Control) -> Result<Option<u64>> {
    let mut buf = Vec::new();
    while offset < chain.virtual_size() {
        let extent = chain.extent(offset, chain.virtual_size() - offset)?;
        let mut step = extent.len;
        if !extent.is_zero() {
            step = step.min(STEP);
            control.checkpoint(step)?;
            buf.resize(step as usize, 0);
            chain.read(offset, &mut buf)?;
            if let Some(at) = first_nonzero(&buf) {
                return Ok(Some(offset + at as u64));
            }
        }
        control.advance(step);
        offset += step;
    }
    Ok(None)
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    let blocks = bytes.chunks(4096).position(|b| !zeroes::is_zero(b))?;
    bytes
        .iter()
        .skip(blocks * 4096)
        .position(|b| *b != 0)
        .map(|i| blocks * 4096 + i)
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let block = a.chunks(4096).zip(b.chunks(4096)).position(|(x, y)| x != y)?;
    let start = block * 4096;
    a.iter().zip(b).skip(start).position(|(x, y)| x != y).map(|i| start + i)
}
