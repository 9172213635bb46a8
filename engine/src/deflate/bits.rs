//! Bits packed into bytes (RFC 1951, section 3.1.1), and stored blocks (section 3.2.4).

/// Most bytes of a stored block.
const MAX_STORED: usize = 0xFFFF;

/// Packs bits into bytes, least significant first (RFC 1951, section 3.1.1).
pub struct Bits<'a> {
    out: &'a mut [u8],
    at: usize,
    acc: u64,
    held: u32,
}

impl<'a> Bits<'a> {
    /// Begins at the front of `out`, which needs eight bytes to spare.
    pub fn new(out: &'a mut [u8]) -> Self {
        Self {
            out,
            at: 0,
            acc: 0,
            held: 0,
        }
    }

    /// Adds `n` bits, at most 56, from the lowest of `bits` on.
    #[inline(always)]
    pub fn put(&mut self, bits: u64, n: u32) {
        self.acc |= bits << (self.held & 63);
        self.held += n;
        // What has no room is lost here, and `finish` tells.
        if let Some(p) = self.out.get_mut(self.at..).and_then(|o| o.first_chunk_mut::<8>()) {
            *p = self.acc.to_le_bytes();
        }
        self.at += (self.held >> 3) as usize;
        self.acc >>= self.held & 56;
        self.held &= 7;
    }

    /// Goes on in a copy that is not shared, whose fields so stay in registers.
    #[inline(always)]
    pub fn apart(&mut self, write: impl FnOnce(&mut Bits<'_>)) {
        let mut bits = Bits {
            out: &mut *self.out,
            ..*self
        };
        write(&mut bits);
        (self.at, self.acc, self.held) = (bits.at, bits.acc, bits.held);
    }

    /// Fills up the byte that is begun.
    fn align(&mut self) {
        self.put(0, self.held.wrapping_neg() & 7);
    }

    /// Fills up the last byte and tells how many there are; `None` where they had no room.
    pub fn finish(mut self) -> Option<usize> {
        self.align();
        (self.at + 8 <= self.out.len()).then_some(self.at)
    }

    /// Bits that stored blocks of `len` bytes take here (RFC 1951, section 3.2.4).
    pub fn stored_bits(&self, len: usize) -> u32 {
        let first = 3 + (5u32.wrapping_sub(self.held) & 7) + 32;
        first + 8 * len as u32 + if len > MAX_STORED { 40 } else { 0 }
    }

    /// Writes `data` in stored blocks (RFC 1951, section 3.2.4), the last of which ends the stream where `last` says so.
    pub fn stored(&mut self, data: &[u8], last: bool) {
        let mut rest = data;
        loop {
            let (now, then) = rest.split_at(rest.len().min(MAX_STORED));
            rest = then;
            self.put(u64::from(last && rest.is_empty()), 3);
            self.align();
            let len = now.len() as u64;
            self.put(len | (len ^ 0xFFFF) << 16, 32);
            if let Some(room) = self.out.get_mut(self.at..self.at + now.len()) {
                room.copy_from_slice(now);
            }
            self.at += now.len();
            if rest.is_empty() {
                return;
            }
        }
    }
}
