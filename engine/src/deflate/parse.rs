//! String matching: turns an input into literals and matches (RFC 1951, sections 2 and 4).
//!
//! Lazy matching by one position. The table entries of the position after next are read before the match at this one is judged, so that
//! a mispredicted branch does not have to wait for them.

use super::search::{Buffer, MAX_INPUT, MAX_MATCH, PAD, Tables, boxed, load8};
use super::tables::{DIST_AT, HIST, LEN_SYMBOL, LITERAL, dist_slot, match_item};

/// Statistics are kept for each stretch of so many input bytes; blocks are made of them.
const SEGMENT: usize = 4096;
/// A match is judged by its key, `length << 16 | 0x10000 - distance`: this is the least one of
/// use, of three bytes no further than 8,192 away.
const LEAST: u32 = 3 << 16 | 0xE000;
/// A key from which the match may be longer than the first look says; it is taken at once.
const LONG: u32 = 8 << 16;
/// What a match must beat the one a byte before it by: one byte, or two if it is 256 or more farther.
const BETTER: u32 = 0xFF00;
/// Most bytes skipped at once where nothing matches.
const MAX_SKIP: u32 = 32;

/// What is known of a stretch of input.
#[derive(Clone, Copy)]
pub struct Segment {
    /// How often each symbol occurs, as laid out in `tables`.
    pub hist: [u32; HIST],
    /// Where its items end.
    pub items_end: usize,
    /// Where its bytes end.
    pub bytes_end: usize,
}

/// Finds matches; keeps its tables for the next input.
pub struct Parser {
    buf: Box<Buffer>,
    tables: Tables,
    items: Box<[u32; MAX_INPUT]>,
    segments: Box<[Segment; MAX_INPUT / SEGMENT]>,
    used: usize,
}

impl Parser {
    /// A parser with empty tables.
    pub fn new() -> Self {
        Self {
            buf: boxed(0),
            tables: Tables::new(),
            items: boxed(0),
            segments: boxed(Segment {
                hist: [0; HIST],
                items_end: 0,
                bytes_end: 0,
            }),
            used: 0,
        }
    }

    /// The literals and matches found, in the form of `tables`.
    pub fn items(&self) -> &[u32] {
        &self.items[..]
    }

    /// The statistics of the input's segments.
    pub fn segments(&self) -> &[Segment] {
        self.segments.get(..self.used).unwrap_or_default()
    }

    /// Splits `input` into literals and matches (RFC 1951, section 4), and counts them in segments. What is longer than [`MAX_INPUT`] is left off.
    pub fn parse(&mut self, input: &[u8]) {
        let input = &input[..input.len().min(MAX_INPUT)];
        let (front, padding) = self.buf.split_at_mut(input.len());
        front.copy_from_slice(input);
        padding[..PAD].fill(0);
        self.tables.clear();
        let Self {
            buf,
            tables,
            items,
            segments,
            ..
        } = self;
        let n = input.len() as u32;
        let (mut cur, mut count, mut used) = (0u32, 0usize, 0);
        let mut run = 0u32;
        let mut this = tables.enter(buf, 0);
        let mut next = tables.enter(buf, 1);
        let mut k = this.best(buf, 0);
        while cur < n {
            let Some(segment) = segments.get_mut(used) else { break };
            used += 1;
            let hist = &mut segment.hist;
            hist.fill(0);
            let end = n.min((used * SEGMENT) as u32);
            macro_rules! literal {
                () => {
                    let byte = buf[cur as u16 as usize];
                    hist[byte as usize] += 1;
                    items[count & (MAX_INPUT - 1)] = LITERAL | byte as u32;
                    count += 1;
                    cur += 1;
                };
            }
            while cur < end {
                // `k` is the match at `cur`. This position and the next are entered.
                let third = tables.enter(buf, cur + 2);
                if k >= LONG {
                    k = this.longest(buf, cur, MAX_MATCH.min(n - cur));
                } else {
                    let k2 = next.best(buf, cur + 1);
                    if k < LEAST || k2 > k + BETTER {
                        literal!();
                        (this, next, k) = (next, third, k2);
                        run += 1;
                        if run >= 64 && k < LEAST {
                            // Nothing here matches: skip, the faster the longer it lasts, by uneven
                            // steps, lest what is entered here be passed by when it comes again.
                            for _ in 0..(run / 64).min(MAX_SKIP - run % 8).min(end - cur) {
                                literal!();
                            }
                            this = tables.enter(buf, cur);
                            next = tables.enter(buf, cur + 1);
                            k = this.best(buf, cur);
                        }
                        continue;
                    }
                }
                run = 0;
                let len = (k >> 16).min(n - cur);
                if len < 3 {
                    // The last bytes of the input.
                    while cur < n {
                        literal!();
                    }
                    break;
                }
                let (slot, extra) = dist_slot(0x10000 - (k & 0xFFFF));
                hist[LEN_SYMBOL[len as u8 as usize] as usize] += 1;
                hist[DIST_AT + slot as usize] += 1;
                items[count & (MAX_INPUT - 1)] = match_item(len, slot, extra);
                count += 1;
                for at in cur + 3..cur + len {
                    tables.enter_four(load8(buf, at as u16), at);
                }
                cur += len;
                this = tables.enter(buf, cur);
                next = tables.enter(buf, cur + 1);
                k = this.best(buf, cur);
            }
            segment.items_end = count;
            segment.bytes_end = cur as usize;
        }
        self.used = used;
    }
}
