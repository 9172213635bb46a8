//! The alphabets (RFC 1951, section 3.2.5) and the form of an item.
//!
//! An item is a literal or a match in 32 bits: bits 0..9 a literal byte or 253 + a match's length; bits 9..14 the distance symbol (`NO_DIST`
//! for a literal); from bit 14 its extra bits.

/// Histograms have literals and lengths from 0, and distances from here.
pub const DIST_AT: usize = 288;
/// Size of a histogram.
pub const HIST: usize = 320;
/// Literal and length symbols in use.
pub const LITLEN_SYMBOLS: usize = 286;
/// Distance symbols in use.
pub const DIST_SYMBOLS: usize = 30;
/// The symbol that ends a block.
pub const END: usize = 256;
/// Distance symbol of a literal: its code has no bits.
const NO_DIST: u32 = 31;
/// The item of the literal 0.
pub const LITERAL: u32 = NO_DIST << 9;

/// The item of a match.
#[inline(always)]
pub fn match_item(len: u32, slot: u32, extra: u32) -> u32 {
    (253 + len) | slot << 9 | extra << 14
}

const fn length_tables() -> ([u16; 256], [u8; 256], [u8; 256]) {
    let (mut symbol, mut bits, mut extra) = ([0; 256], [0; 256], [0; 256]);
    let mut len = 3usize;
    while len <= 258 {
        let l = len - 3;
        let (s, b, e) = if len == 258 {
            (285, 0, 0)
        } else if l < 8 {
            (257 + l, 0, 0)
        } else {
            let b = l.ilog2() as usize - 2;
            (257 + 4 * b + (l >> b), b, l & ((1 << b) - 1))
        };
        symbol[len & 255] = s as u16;
        bits[len & 255] = b as u8;
        extra[len & 255] = e as u8;
        len += 1;
    }
    (symbol, bits, extra)
}
const LENGTHS: ([u16; 256], [u8; 256], [u8; 256]) = length_tables();
/// Symbol of a match length, by the length's low byte (lengths are 3..=258).
pub static LEN_SYMBOL: [u16; 256] = LENGTHS.0;
/// How many extra bits a match length has, by its low byte.
pub static LEN_BITS: [u8; 256] = LENGTHS.1;
/// The extra bits of a match length, by its low byte.
pub static LEN_EXTRA: [u8; 256] = LENGTHS.2;

/// Symbol and extra bits of a distance (1..=32768).
#[inline(always)]
pub fn dist_slot(dist: u32) -> (u32, u32) {
    let d = dist - 1;
    if d < 2 {
        return (d, 0);
    }
    let log = d.ilog2();
    (2 * log + (d >> (log - 1) & 1), d & ((1 << (log - 1)) - 1))
}

/// How many extra bits a distance symbol has.
pub fn dist_bits(symbol: usize) -> u32 {
    (symbol as u32 / 2).saturating_sub(1)
}

/// How many extra bits a length symbol has.
pub fn len_bits(symbol: usize) -> u32 {
    if symbol < 265 || symbol == 285 {
        0
    } else {
        (symbol as u32 - 261) / 4
    }
}
