//! Length-limited prefix codes (RFC 1951, sections 3.2.1, 3.2.2).

/// Longest code of literals, lengths and distances that is made: one bit shorter than RFC 1951 allows (section 3.2.7), so that more pairs of
/// items fit one flush of the writer of bits.
pub const MAX_BITS: usize = 14;
/// Longest code of the code-length alphabet (RFC 1951, section 3.2.7).
pub const MAX_CL_BITS: usize = 7;
/// The largest alphabet (literals and lengths).
const SYMBOLS: usize = 288;

/// Lengths of a code of at most `max_bits` for the symbols with the counts `freq`, optimal where that bound does not matter; a symbol that
/// never occurs gets length 0. At least two symbols get a code, so that it is complete: RFC 1951, section 3.2.7, allows a lone distance code,
/// but some decoders do not.
pub fn code_lengths(freq: &[u32], max_bits: usize, lens: &mut [u8]) {
    lens.fill(0);
    let mut sorted = [0u32; SYMBOLS];
    let n = sort_by_count(freq, &mut sorted);
    if n < 2 {
        let only = if n == 1 { (sorted[0] & 0x1FF) as usize } else { 0 };
        lens[only] = 1;
        lens[if only == 0 { 1 } else { 0 }] = 1;
        return;
    }
    // The rarest symbols get the longest codes.
    let mut rarest = sorted[..n].iter();
    for (bits, &count) in count_lengths(&sorted[..n], max_bits).iter().enumerate().rev() {
        for &e in rarest.by_ref().take(count as usize) {
            lens[(e & 0x1FF) as usize] = bits as u8;
        }
    }
}

/// Lists the used symbols as `count << 9 | symbol`, in rising order of the count: a radix sort of two passes. Returns how many there are.
fn sort_by_count(freq: &[u32], sorted: &mut [u32; SYMBOLS]) -> usize {
    let mut low = [0u16; 256];
    let mut high = [0u16; 256];
    let mut used = [0u32; SYMBOLS];
    let mut n = 0;
    for (s, &f) in freq.iter().enumerate().take(SYMBOLS) {
        if f != 0 {
            let f = f.min(0xFFFF);
            used[n] = f << 9 | s as u32;
            n += 1;
            low[(f & 255) as usize] += 1;
            high[(f >> 8) as usize] += 1;
        }
    }
    let mut half = [0u32; SYMBOLS];
    scatter(&used[..n], &mut half, &mut low, 9);
    scatter(&half[..n], sorted, &mut high, 17);
    n
}

/// One pass of the radix sort, by the byte at bit `shift`; `counts` says how often each byte occurs.
fn scatter(from: &[u32], to: &mut [u32; SYMBOLS], counts: &mut [u16; 256], shift: u32) {
    let mut at = 0;
    for c in counts.iter_mut() {
        at += std::mem::replace(c, at);
    }
    for &e in from {
        let slot = &mut counts[(e >> shift & 255) as usize];
        if let Some(place) = to.get_mut(*slot as usize) {
            *place = e;
        }
        *slot += 1;
    }
}

/// How many codes of each length an optimal code has for `sorted` counts, made to obey `max_bits`.
fn count_lengths(sorted: &[u32], max_bits: usize) -> [u16; 16] {
    let n = sorted.len();
    // Huffman's algorithm with two queues: leaves are sorted, inner nodes come out sorted.
    let mut weight = [u32::MAX; SYMBOLS];
    let mut leaf_parent = [0u16; SYMBOLS];
    let mut parent = [0u16; SYMBOLS];
    let (mut leaf, mut inner) = (0, 0);
    for node in 0..n - 1 {
        let mut sum = 0;
        for _ in 0..2 {
            let l = if leaf < n { sorted[leaf] >> 9 } else { u32::MAX };
            if l <= weight[inner] {
                sum += l;
                leaf_parent[leaf] = node as u16;
                leaf += 1;
            } else {
                sum += weight[inner];
                parent[inner] = node as u16;
                inner += 1;
            }
        }
        weight[node] = sum;
    }
    // Depths from the root down.
    let mut depth = [0u8; SYMBOLS];
    for node in (0..n - 2).rev() {
        depth[node] = depth[parent[node] as usize] + 1;
    }
    let mut count = [0u16; 16];
    for &p in &leaf_parent[..n] {
        count[(depth[p as usize] as usize + 1).min(max_bits)] += 1;
    }
    // Codes cut to `max_bits` make the code over-full: lengthen the cheapest others.
    let mut kraft: u32 = (1..=max_bits).map(|b| (count[b] as u32) << (max_bits - b)).sum();
    while kraft > 1 << max_bits {
        let mut b = max_bits - 1;
        while count[b] == 0 {
            b -= 1;
        }
        count[b] -= 1;
        count[b + 1] += 2;
        count[max_bits] -= 1;
        kraft -= 1;
    }
    count
}

/// Assigns the canonical codes to the lengths (RFC 1951, section 3.2.2), each with its bits reversed, as Huffman codes are packed from their
/// most significant bit (section 3.1.1).
pub fn codes(lens: &[u8], codes: &mut [u16]) {
    let mut next = [0u16; 17];
    for &l in lens {
        next[(l & 15) as usize + 1] += 1;
    }
    next[1] = 0;
    for b in 1..16 {
        next[b + 1] = (next[b] + next[b + 1]) << 1;
    }
    // next[b] is now twice the first code of b - 1 bits, which is the first code of b bits.
    for (c, &l) in codes.iter_mut().zip(lens) {
        let slot = &mut next[(l & 15) as usize];
        *c = slot.reverse_bits() >> ((16 - l as u32) & 15);
        *slot += (l != 0) as u16;
    }
}
