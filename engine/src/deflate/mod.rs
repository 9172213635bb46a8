//! A fast encoder of the zlib format (RFC 1950) and its DEFLATE data (RFC 1951), for inputs of at most 64 KiB that are each compressed
//! alone: the grains of streamOptimized VMDK images.
//!
//! Compressed here is what level 4 of libdeflate would compress, to about the same size in less time; other levels and larger inputs are
//! libdeflate's. What comes out depends on the input alone. Decoding is not done here.
//!
//! No index comes from the input unchecked: it is as wide as what it indexes (`u16` for places), masked, or a symbol of the table's alphabet.

mod bits;
mod huffman;
mod output;
mod parse;
mod search;
mod tables;

#[cfg(test)]
mod code_tests;
#[cfg(test)]
mod tests;

use bits::Bits;
use output::Codes;
use parse::{Parser, Segment};
pub use search::MAX_INPUT;
use tables::{DIST_AT, END, HIST};

use crate::{Error, Result};

/// Bits that a block must save to be worth its header.
const BLOCK_BITS: f32 = 1000.0;

/// Room for what stored blocks take beside their data, and for what the writer of bits has to spare. No block is longer than if it were stored.
const SPARE: usize = 512;

/// CMF and FLG of the zlib format: a window of 32 KiB, the fastest algorithm (RFC 1950, section 2.2).
const HEADER: [u8; 2] = [0x78, 0x01];

/// An encoder of the zlib format (RFC 1950), which keeps its tables for the next input: 550 KiB.
pub struct Encoder {
    parser: Parser,
    codes: Codes,
    out: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            parser: Parser::new(),
            codes: Codes::new(),
            out: vec![0; MAX_INPUT + SPARE],
        }
    }
}

impl Encoder {
    /// Appends `input` in the zlib format to `out`: header, DEFLATE data, Adler-32 (RFC 1950, section 2.2).
    ///
    /// # Errors
    ///
    /// `LimitExceeded` where `input` is longer than [`MAX_INPUT`]; `out` is as it was.
    pub fn zlib(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if input.len() > MAX_INPUT {
            return Err(Error::limit(format!(
                "cannot compress {} bytes at once, at most {MAX_INPUT}",
                input.len()
            )));
        }
        let data = self.deflate(input).ok_or_else(|| {
            Error::invalid(format!(
                "cannot compress {} bytes: they do not fit the blocks",
                input.len()
            ))
        })?;
        out.extend_from_slice(&HEADER);
        out.extend_from_slice(data);
        out.extend_from_slice(&libdeflater::adler32(input).to_be_bytes());
        Ok(())
    }

    /// Blocks for the whole input (RFC 1951, section 3.2.3). `None` rather than wrong bytes where a bound above did not hold.
    fn deflate(&mut self, input: &[u8]) -> Option<&[u8]> {
        self.parser.parse(input);
        let mut left = self.parser.segments();
        let mut bits = Bits::new(&mut self.out);
        let (mut item, mut byte) = (0, 0);
        loop {
            let (count, mut hist) = next_block(left);
            let (block, rest) = left.split_at(count);
            left = rest;
            hist[END] += 1;
            let (items_end, bytes_end) = block.last().map_or((item, byte), |s| (s.items_end, s.bytes_end));
            let data = input.get(byte..bytes_end)?;
            if bits.stored_bits(data.len()) <= self.codes.make(&hist) {
                bits.stored(data, left.is_empty());
            } else {
                let items = self.parser.items().get(item..items_end)?;
                self.codes.write(&mut bits, items, left.is_empty());
            }
            (item, byte) = (items_end, bytes_end);
            if left.is_empty() {
                break;
            }
        }
        let len = bits.finish()?;
        if byte != input.len() {
            return None;
        }
        self.out.get(..len)
    }
}

/// The segments of the next block, and their counts: it takes segments in while that costs less than another block.
fn next_block(segments: &[Segment]) -> (usize, [u32; HIST]) {
    let mut hist = [0; HIST];
    let mut cost = None;
    for (n, segment) in segments.iter().enumerate() {
        let mut both = hist;
        both.iter_mut().zip(&segment.hist).for_each(|(a, b)| *a += b);
        let joint = entropy(&both);
        if cost.is_some_and(|c: f32| joint > c + entropy(&segment.hist) + BLOCK_BITS) {
            return (n, hist);
        }
        (hist, cost) = (both, Some(joint));
    }
    (segments.len(), hist)
}

/// Bits that the symbols of a histogram take at their entropy.
fn entropy(hist: &[u32; HIST]) -> f32 {
    let (litlen, dist) = hist.split_at(DIST_AT);
    alphabet_entropy(litlen) + alphabet_entropy(dist)
}

fn alphabet_entropy(counts: &[u32]) -> f32 {
    // Eight sums at once, for the compiler to make vectors of.
    let mut sums = [0f32; 8];
    let mut total = [0u32; 8];
    for eight in counts.as_chunks::<8>().0 {
        let values = eight.map(|count| count as i32 as f32);
        sums = std::array::from_fn(|k| sums[k] + values[k] * log2(values[k]));
        total = std::array::from_fn(|k| total[k] + eight[k]);
    }
    let all = total.iter().sum::<u32>() as f32;
    all * log2(all) - sums.iter().sum::<f32>()
}

/// About the binary logarithm of a number of at least 1; some number for 0.
#[inline(always)]
fn log2(value: f32) -> f32 {
    let bits = value.to_bits() as i32;
    let exponent = ((bits >> 23) - 127) as f32;
    let m = f32::from_bits((bits & 0x7F_FFFF | 0x3F80_0000) as u32) - 1.0;
    exponent + m * (1.0 + (1.0 - m) * (0.4425 - 0.148 * m))
}
