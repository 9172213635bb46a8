//! Blocks with codes, fixed or dynamic (RFC 1951, sections 3.2.3 and 3.2.5 to 3.2.7).

use super::bits::Bits;
use super::huffman::{MAX_BITS, MAX_CL_BITS, code_lengths, codes};
use super::tables::{
    DIST_AT, DIST_SYMBOLS, END, HIST, LEN_BITS, LEN_EXTRA, LEN_SYMBOL, LITLEN_SYMBOLS, dist_bits, len_bits,
};

/// Order in which the lengths of the code-length code are sent (RFC 1951, section 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Extra bits of a code-length symbol.
fn cl_bits(symbol: usize) -> u32 {
    match symbol {
        16 => 2,
        17 => 3,
        18 => 7,
        _ => 0,
    }
}

/// Lengths of the fixed codes (RFC 1951, section 3.2.6).
const FIXED: [u8; HIST] = {
    let mut l = [8; HIST];
    let mut s = 144;
    while s < HIST {
        l[s] = if s < 256 {
            9
        } else if s < 280 {
            7
        } else if s < DIST_AT {
            8
        } else {
            5
        };
        s += 1;
    }
    l
};

/// A block's codes (RFC 1951, sections 3.2.6 and 3.2.7).
pub struct Codes {
    lens: [u8; HIST],
    codes: [u16; HIST],
    dynamic: bool,
    litlens: usize,
    dists: usize,
    /// The code lengths, as symbols of the code-length code with their extra bits.
    header: Vec<(u8, u8)>,
    cl_lens: [u8; 19],
    cl_count: usize,
}

impl Codes {
    /// Codes for no block yet.
    pub fn new() -> Self {
        Codes {
            lens: [0; HIST],
            codes: [0; HIST],
            dynamic: false,
            litlens: 0,
            dists: 0,
            header: Vec::with_capacity(LITLEN_SYMBOLS + DIST_SYMBOLS),
            cl_lens: [0; 19],
            cl_count: 0,
        }
    }

    /// Makes the codes for a block with these counts, fixed or dynamic, whichever are shorter (RFC 1951, sections 3.2.6 and 3.2.7).
    /// Returns how many bits the block then takes.
    pub fn make(&mut self, hist: &[u32; HIST]) -> u32 {
        let (l, d) = self.lens.split_at_mut(DIST_AT);
        code_lengths(&hist[..LITLEN_SYMBOLS], MAX_BITS, &mut l[..LITLEN_SYMBOLS]);
        code_lengths(&hist[DIST_AT..][..DIST_SYMBOLS], MAX_BITS, &mut d[..DIST_SYMBOLS]);
        let body = |lens: &[u8; HIST]| hist.iter().zip(lens).map(|(&h, &l)| h * l as u32).sum::<u32>();
        let extra = (265..285).map(|s| hist[s] * len_bits(s)).sum::<u32>()
            + (4..DIST_SYMBOLS).map(|s| hist[DIST_AT + s] * dist_bits(s)).sum::<u32>();
        let dynamic = self.make_header() + body(&self.lens);
        let fixed = body(&FIXED);
        self.dynamic = dynamic < fixed;
        if !self.dynamic {
            self.lens = FIXED;
        }
        codes(&self.lens[..DIST_AT], &mut self.codes[..DIST_AT]);
        codes(&self.lens[DIST_AT..], &mut self.codes[DIST_AT..]);
        self.lens[LITLEN_SYMBOLS..DIST_AT].fill(0);
        self.lens[DIST_AT + DIST_SYMBOLS..].fill(0);
        3 + extra + dynamic.min(fixed)
    }

    /// Run-length codes the code lengths (RFC 1951, section 3.2.7); returns the bits they take.
    fn make_header(&mut self) -> u32 {
        let used = |lens: &[u8], least: usize| lens.iter().rposition(|&l| l != 0).map_or(least, |p| least.max(p + 1));
        self.litlens = used(&self.lens[..LITLEN_SYMBOLS], 257);
        self.dists = used(&self.lens[DIST_AT..][..DIST_SYMBOLS], 1);
        let mut all = [0u8; LITLEN_SYMBOLS + DIST_SYMBOLS];
        let n = self.litlens + self.dists;
        all[..self.litlens].copy_from_slice(&self.lens[..self.litlens]);
        all[self.litlens..n].copy_from_slice(&self.lens[DIST_AT..][..self.dists]);
        self.header.clear();
        let mut freq = [0u32; 19];
        let header = &mut self.header;
        let mut push = |symbol: u8, extra: usize| {
            header.push((symbol, extra as u8));
            freq[symbol as usize] += 1;
        };
        for same in all[..n].chunk_by(|a, b| a == b) {
            let len = same[0];
            let mut run = same.len();
            if len != 0 {
                push(len, 0);
                run -= 1;
            }
            while run >= 3 {
                let (symbol, least, most) = match len {
                    0 if run >= 11 => (18, 11, 138),
                    0 => (17, 3, 10),
                    _ => (16, 3, 6),
                };
                push(symbol, run.min(most) - least);
                run -= run.min(most);
            }
            (0..run).for_each(|_| push(len, 0));
        }
        code_lengths(&freq, MAX_CL_BITS, &mut self.cl_lens);
        self.cl_count = ORDER
            .iter()
            .rposition(|&s| self.cl_lens[s] != 0)
            .map_or(4, |p| 4.max(p + 1));
        let bits = (0..19)
            .map(|s| freq[s] * (self.cl_lens[s] as u32 + cl_bits(s)))
            .sum::<u32>();
        14 + 3 * self.cl_count as u32 + bits
    }

    /// Writes a block of the items, with the codes made for it (RFC 1951, section 3.2.3).
    pub fn write(&self, w: &mut Bits, items: &[u32], last: bool) {
        w.put(last as u64 | if self.dynamic { 4 } else { 2 }, 3);
        if self.dynamic {
            self.write_header(w);
        }
        let (litlen, dist) = self.item_tables();
        let word = |item: u32| {
            let a = litlen[(item & 511) as usize];
            let b = dist[(item >> 9 & 31) as usize];
            let extra = ((item >> 14) as u64) << (b >> 16 & 63);
            let n = a >> 24;
            (
                (a & 0xFF_FFFF) as u64 | ((b & 0xFFFF) as u64 | extra) << (n & 63),
                n + (b >> 24),
            )
        };
        w.apart(|bits| {
            let (pairs, odd) = items.as_chunks::<2>();
            for &[first, second] in pairs {
                let ((x, n), (y, m)) = (word(first), word(second));
                if n + m <= 56 {
                    bits.put(x | y << (n & 63), n + m);
                } else {
                    bits.put(x, n);
                    bits.put(y, m);
                }
            }
            for &item in odd {
                let (x, n) = word(item);
                bits.put(x, n);
            }
            bits.put(self.codes[END] as u64, self.lens[END] as u32);
        });
    }

    fn write_header(&self, w: &mut Bits) {
        let (l, d, c) = (
            self.litlens as u64 - 257,
            self.dists as u64 - 1,
            self.cl_count as u64 - 4,
        );
        w.put(l | d << 5 | c << 10, 14);
        for &s in &ORDER[..self.cl_count] {
            w.put(self.cl_lens[s] as u64, 3);
        }
        let mut cl_codes = [0u16; 19];
        codes(&self.cl_lens, &mut cl_codes);
        for &(s, extra) in &self.header {
            let s = s as usize;
            let l = self.cl_lens[s] as u32;
            w.put(cl_codes[s] as u64 | (extra as u64) << l, l + cl_bits(s));
        }
    }

    /// Codes by the two parts of an item: literals and lengths with their extra bits, and the
    /// count of bits from bit 24; distances, the count from bit 16, and that with extra bits from 24.
    fn item_tables(&self) -> ([u32; 512], [u32; 32]) {
        let mut litlen = [0u32; 512];
        for (s, e) in litlen[..256].iter_mut().enumerate() {
            *e = self.codes[s] as u32 | (self.lens[s] as u32) << 24;
        }
        for (i, e) in litlen[256..].iter_mut().enumerate() {
            let len = (i + 3) & 255;
            let s = LEN_SYMBOL[len] as usize;
            let n = self.lens[s] as u32;
            *e = self.codes[s] as u32 | (LEN_EXTRA[len] as u32) << n | (n + LEN_BITS[len] as u32) << 24;
        }
        let mut dist = [0u32; 32];
        for (s, e) in dist[..DIST_SYMBOLS].iter_mut().enumerate() {
            let n = self.lens[DIST_AT + s] as u32;
            *e = self.codes[DIST_AT + s] as u32 | n << 16 | (n + dist_bits(s)) << 24;
        }
        (litlen, dist)
    }
}
