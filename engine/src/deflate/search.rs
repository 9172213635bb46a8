//! Earlier places of the bytes at a position, and how long their matches are.
//!
//! A hash table has the last three places of each four-byte string, another the last place of each three-byte string. What makes it fast:
//!
//! * The places of a string lie in one word, and all candidates of a position are compared without branches, eight bytes at once.
//! * Positions are `u16`, which index the padded buffer without a bounds check.

/// The longest input.
pub const MAX_INPUT: usize = 1 << 16;
/// Longest match (RFC 1951, section 3.2.5).
pub const MAX_MATCH: u32 = 258;
/// Zeroes after the input, for reads past its end.
pub const PAD: usize = 272;
const FOUR_BITS: u32 = 14;
const THREE_BITS: u32 = 12;
/// Places looked at for each four-byte string.
const WAYS: u32 = 3;
/// A match of so many bytes ends the search for longer ones.
const NICE: u32 = 16;

/// The input with its padding.
pub type Buffer = [u8; MAX_INPUT + PAD];

/// Where strings were last seen.
pub struct Tables {
    /// The last four places of a string, the latest in the low bits.
    four: Box<[u64; 1 << FOUR_BITS]>,
    /// The last place of a string.
    three: Box<[u16; 1 << THREE_BITS]>,
}

/// A position's eight bytes, and earlier places that may equal them.
#[derive(Clone, Copy)]
pub struct Seen {
    word: u64,
    four: u64,
    three: u16,
}

/// Memory for a table, made where it stays.
pub fn boxed<T: Copy, const N: usize>(value: T) -> Box<[T; N]> {
    vec![value; N].try_into().unwrap_or_else(|_| Box::new([value; N]))
}

/// The eight bytes at a position; the padding has always enough.
#[inline(always)]
pub fn load8(buf: &Buffer, at: u16) -> u64 {
    match buf[at as usize..].first_chunk() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => 0,
    }
}

/// `0x10000 - distance` with all higher bits set if the distance is 1..=32768, else a number
/// less than 0x8000.
#[inline(always)]
fn near(place: u16, cur: u32) -> u32 {
    place.wrapping_sub(cur as u16) as i16 as i32 as u32
}

/// The key of the match of `word`, at `cur`, with `place`; less than 1 << 16 if there is none.
#[inline(always)]
fn key(buf: &Buffer, place: u16, cur: u32, word: u64, stop: u64) -> u32 {
    let bits = ((load8(buf, place) ^ word) | stop).trailing_zeros();
    (bits << 13 | 0xFFFF) & near(place, cur)
}

/// Length of the match of two places which share eight bytes, at most `max`.
#[inline(always)]
fn common(buf: &Buffer, a: u16, b: u16, max: u32) -> u32 {
    let a = &buf[a as usize..][..MAX_MATCH as usize + 6];
    let b = &buf[b as usize..][..MAX_MATCH as usize + 6];
    let mut n = 8;
    while n < max {
        let word = |s: &[u8]| s.get(n as usize..)?.first_chunk().map(|w| u64::from_le_bytes(*w));
        let (Some(x), Some(y)) = (word(a), word(b)) else { break };
        if x != y {
            return (n + (x ^ y).trailing_zeros() / 8).min(max);
        }
        n += 8;
    }
    max
}

impl Seen {
    /// The key of the best match at `cur`, as far as eight bytes tell: `length << 16 | 0x10000 - distance`.
    #[inline(always)]
    pub fn best(self, buf: &Buffer, cur: u32) -> u32 {
        let a = key(buf, self.four as u16, cur, self.word, 0);
        let b = key(buf, (self.four >> 16) as u16, cur, self.word, 0);
        let c = key(buf, (self.four >> 32) as u16, cur, self.word, 0);
        let d = key(buf, self.three, cur, self.word, 1 << 55);
        a.max(b).max(c.max(d))
    }

    /// The key of the longest match at `cur`, of at most `max` bytes, if there is one of eight.
    #[inline(always)]
    pub fn longest(self, buf: &Buffer, cur: u32, max: u32) -> u32 {
        let mut best = 0;
        for way in 0..WAYS {
            let place = (self.four >> (16 * way)) as u16;
            let near = near(place, cur);
            if near >= 0x8000 && load8(buf, place) == self.word {
                let len = common(buf, place, cur as u16, max);
                best = best.max((len << 16 | 0xFFFF) & near);
                if len >= NICE {
                    break;
                }
            }
        }
        best
    }
}

impl Tables {
    /// Empty tables.
    pub fn new() -> Self {
        Self {
            four: boxed(0),
            three: boxed(0),
        }
    }

    /// Forgets all places.
    pub fn clear(&mut self) {
        self.four.fill(0);
        self.three.fill(0);
    }

    /// Enters a position; returns what the tables had for it.
    #[inline(always)]
    pub fn enter(&mut self, buf: &Buffer, cur: u32) -> Seen {
        let word = load8(buf, cur as u16);
        let hash = ((word as u32) << 8).wrapping_mul(0x9E37_79B1) >> (32 - THREE_BITS);
        let three = std::mem::replace(&mut self.three[hash as usize], cur as u16);
        let four = self.enter_four(word, cur);
        Seen { word, four, three }
    }

    /// Enters a position whose first bytes are `word` under its four-byte string alone; returns the places before it.
    #[inline(always)]
    pub fn enter_four(&mut self, word: u64, cur: u32) -> u64 {
        let hash = (word as u32).wrapping_mul(0x9E37_79B1) >> (32 - FOUR_BITS);
        let slot = &mut self.four[hash as usize];
        let four = *slot;
        *slot = four << 16 | cur as u16 as u64;
        four
    }
}
