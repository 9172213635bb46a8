//! Bytes at any place of a storage through a cipher of whole sectors.

use super::sector::SectorCipher;
use crate::Result;

/// Bytes that are read and decrypted at a time: what stays in a processor's own cache in between.
const READ_PIECE: usize = 256 << 10;
/// Bytes that are encrypted and written at a time: more, since the writes to one file wait for each other.
const WRITE_PIECE: usize = 512 << 10;

/// Reads and writes stored bytes that are encrypted. Positions and places are alike modulo the sector size; positions may wrap, since some
/// headers choose where they begin.
pub(crate) struct EncryptedBytes<'a> {
    pub cipher: &'a SectorCipher,
    /// Reads stored bytes.
    pub read: &'a dyn Fn(u64, &mut [u8]) -> Result<()>,
    /// Writes stored bytes.
    pub write: &'a dyn Fn(u64, &[u8]) -> Result<()>,
}

impl EncryptedBytes<'_> {
    /// Fills `buf` from the place `at`; `position` is what the cipher counts it by.
    pub fn load(&self, mut position: u64, mut at: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let (len, partial) = self.next_part(at, buf.len().min(READ_PIECE));
            let (part, rest) = buf.split_at_mut(len);
            if partial {
                let (sector, inside) = self.sector(position, at)?;
                let wanted = sector.iter().skip(inside);
                part.iter_mut().zip(wanted).for_each(|(to, from)| *to = *from);
            } else {
                (self.read)(at, part)?;
                self.cipher.decrypt(position, part)?;
            }
            (position, at, buf) = (position.wrapping_add(len as u64), at + len as u64, rest);
        }
        Ok(())
    }

    /// Stores `bytes`. A sector that they fill in part is read, changed and written: nobody else may write to it meanwhile.
    pub fn store(&self, mut position: u64, mut at: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (len, partial) = self.next_part(at, bytes.len().min(WRITE_PIECE));
            let (part, rest) = bytes.split_at(len);
            if partial {
                let (mut sector, inside) = self.sector(position, at)?;
                let changed = sector.iter_mut().skip(inside);
                changed.zip(part).for_each(|(to, from)| *to = *from);
                self.cipher.encrypt(position.wrapping_sub(inside as u64), &mut sector)?;
                (self.write)(at - inside as u64, &sector)?;
            } else {
                self.cipher.encrypted(position, part, |data| (self.write)(at, data))?;
            }
            (position, at, bytes) = (position.wrapping_add(len as u64), at + len as u64, rest);
        }
        Ok(())
    }

    /// Whether some sector is touched in part.
    pub fn is_partial(&self, at: u64, len: usize) -> bool {
        let sector = self.cipher.sector_size() as u64;
        !at.is_multiple_of(sector) || !(len as u64).is_multiple_of(sector)
    }

    /// The next part of a range: its length, and whether it is less than a sector.
    fn next_part(&self, at: u64, len: usize) -> (usize, bool) {
        let sector = self.cipher.sector_size();
        let inside = (at % sector as u64) as usize;
        if inside == 0 && len >= sector {
            (len - len % sector, false)
        } else {
            (len.min(sector - inside), true)
        }
    }

    /// The sector that a place is in, and where in it.
    fn sector(&self, position: u64, at: u64) -> Result<(Vec<u8>, usize)> {
        let inside = at % self.cipher.sector_size() as u64;
        let mut sector = vec![0; self.cipher.sector_size()];
        (self.read)(at - inside, &mut sector)?;
        self.cipher.decrypt(position.wrapping_sub(inside), &mut sector)?;
        Ok((sector, inside as usize))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;
    use crate::crypto::{Secret, legacy_qcow_cipher};

    proptest! {
        #[test]
        fn bytes_behave_as_if_they_were_not_encrypted(
            writes in prop::collection::vec((0usize..4000, 1usize..1500, any::<u8>()), 1..12),
            shift in 0u64..4,
        ) {
            let cipher = legacy_qcow_cipher(&Secret::new(b"geheim".to_vec())).unwrap();
            let stored = RefCell::new(vec![0u8; 8192]);
            let io = EncryptedBytes {
                cipher: &cipher,
                read: &|at, buf| {
                    buf.copy_from_slice(&stored.borrow()[at as usize..at as usize + buf.len()]);
                    Ok(())
                },
                write: &|at, bytes| {
                    stored.borrow_mut()[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                    Ok(())
                },
            };
            let base = shift * 512;
            let mut model = vec![0u8; 6144];
            io.store(base, 0, &model).unwrap();
            for (at, len, byte) in writes {
                model[at..at + len].fill(byte);
                io.store(base + at as u64, at as u64, &vec![byte; len]).unwrap();
                let mut seen = vec![0; len + 7];
                io.load(base + at as u64, at as u64, &mut seen).unwrap();
                prop_assert_eq!(&seen, &model[at..at + len + 7]);
            }
            prop_assert!(stored.borrow()[..6144] != model[..]);
        }
    }
}
