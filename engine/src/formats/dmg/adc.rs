//! Apple Data Compression: literals and matches of up to 64 KiB back. Source: libmodi's description.

use std::io::{Error, ErrorKind, Read, Result};

/// Bytes that a match can reach back, and as many again before the window is moved.
const WINDOW: usize = 64 << 10;

/// Inflates a stream.
pub(super) struct AdcReader<R> {
    inner: R,
    /// What was inflated: the window, then what was not yet read.
    out: Vec<u8>,
    read: usize,
}

impl<R: Read> AdcReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            out: Vec::with_capacity(2 * WINDOW + 256),
            read: 0,
        }
    }

    fn byte(&mut self) -> Result<Option<u8>> {
        let mut byte = [0];
        match self.inner.read(&mut byte)? {
            0 => Ok(None),
            _ => Ok(byte.first().copied()),
        }
    }

    fn need(&mut self) -> Result<usize> {
        self.byte()?
            .map(usize::from)
            .ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))
    }

    /// Inflates one literal or match; false at the end of the stream.
    fn step(&mut self) -> Result<bool> {
        let Some(code) = self.byte()?.map(usize::from) else {
            return Ok(false);
        };
        if code & 0x80 != 0 {
            let start = self.out.len();
            self.out.resize(start + (code & 0x7f) + 1, 0);
            self.inner.read_exact(self.out.get_mut(start..).unwrap_or_default())?;
            return Ok(true);
        }
        let (len, back) = if code & 0x40 != 0 {
            ((code & 0x3f) + 4, self.need()? << 8 | self.need()?)
        } else {
            ((code >> 2 & 0xf) + 3, (code & 3) << 8 | self.need()?)
        };
        let from = self
            .out
            .len()
            .checked_sub(back + 1)
            .ok_or_else(|| Error::new(ErrorKind::InvalidData, "a match reaches back past the start"))?;
        for n in from..from + len {
            let byte = self.out.get(n).copied().unwrap_or(0);
            self.out.push(byte);
        }
        Ok(true)
    }
}

impl<R: Read> Read for AdcReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        while self.out.len() == self.read {
            if self.read > 2 * WINDOW {
                self.out.drain(..self.read - WINDOW);
                self.read = WINDOW;
            }
            if !self.step()? {
                return Ok(0);
            }
        }
        let ready = self.out.get(self.read..).unwrap_or_default();
        let n = ready.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), ready.get(..n)) {
            to.copy_from_slice(from);
        }
        self.read += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflate(packed: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        AdcReader::new(packed).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn literals_and_both_kinds_of_matches() {
        assert_eq!(inflate(&[0x82, b'a', b'b', b'c', 0x00, 2]).unwrap(), b"abcabc");
        assert_eq!(inflate(&[0x80, b'x', 0x41, 0, 0]).unwrap(), b"xxxxxx");
    }

    #[test]
    fn a_match_before_the_start_or_a_cut_stream_is_an_error() {
        assert!(inflate(&[0x80, b'x', 0x00, 1]).is_err());
        assert!(inflate(&[0x83, b'x']).is_err());
        assert!(inflate(&[0x80, b'x', 0x41, 0]).is_err());
    }
}
