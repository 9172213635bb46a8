//! Reads and writes past the page cache (`O_DIRECT`): whole aligned blocks through an aligned buffer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

use super::PageBuffer;

/// Memory, offset and length of every request are multiples of this: at least what any disk asks for.
const ALIGN: usize = super::buffer::PAGE;
/// Largest single request.
const CHUNK: usize = 1 << 20;

/// Writes of whole blocks go on side by side; one that changes part of a block reads it, changes it, writes it back and mends the
/// length of the file, and so must be alone.
#[derive(Debug, Default)]
pub(super) struct Direct {
    partial: RwLock<()>,
}

fn blocks(len: usize) -> PageBuffer {
    PageBuffer::new(len.next_multiple_of(ALIGN))
}

impl Direct {
    /// Fills `buf` from `offset`; `UnexpectedEof` past the end.
    pub(super) fn read(&self, file: &File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        let mut bounce = blocks(buf.len().min(CHUNK) + ALIGN);
        while !buf.is_empty() {
            let skip = (offset % ALIGN as u64) as usize;
            let want = (skip + buf.len()).next_multiple_of(ALIGN).min(bounce.len());
            let got = read_some(file, &mut bounce[..want], offset - skip as u64)?;
            let n = got.saturating_sub(skip).min(buf.len());
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (head, rest) = buf.split_at_mut(n);
            head.copy_from_slice(&bounce[skip..skip + n]);
            buf = rest;
            offset += n as u64;
        }
        Ok(())
    }

    /// Writes all of `buf` at `offset`.
    pub(super) fn write(&self, file: &File, mut offset: u64, mut buf: &[u8]) -> io::Result<()> {
        let mut bounce = blocks(buf.len().min(CHUNK));
        while !buf.is_empty() {
            let skip = (offset % ALIGN as u64) as usize;
            let n = if skip > 0 || buf.len() < ALIGN {
                let n = buf.len().min(ALIGN - skip);
                self.write_part(file, offset - skip as u64, skip, &buf[..n])?;
                n
            } else {
                let n = (buf.len() - buf.len() % ALIGN).min(bounce.len());
                let block = &mut bounce[..n];
                block.copy_from_slice(&buf[..n]);
                let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
                file.write_all_at(block, offset)?;
                n
            };
            buf = &buf[n..];
            offset += n as u64;
        }
        Ok(())
    }

    /// Changes part of one block. A file that ended inside it keeps its end, or gets the new one.
    fn write_part(&self, file: &File, block: u64, skip: usize, part: &[u8]) -> io::Result<()> {
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        let mut bounce = blocks(ALIGN);
        read_some(file, &mut bounce, block)?;
        bounce[skip..skip + part.len()].copy_from_slice(part);
        let regular = file.metadata()?.is_file();
        let end = file.metadata()?.len().max(block + (skip + part.len()) as u64);
        file.write_all_at(&bounce, block)?;
        if regular && file.metadata()?.len() == block + ALIGN as u64 && end < block + ALIGN as u64 {
            file.set_len(end)?;
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends; the rest of the buffer is zeroed.
fn read_some(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if done % ALIGN != 0 {
            break; // The end of the file: a further read would not be aligned.
        }
    }
    buf[done..].fill(0);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    /// A file opened with `O_DIRECT`, or `None` where the file system has no such thing.
    fn open() -> Option<(tempfile::NamedTempFile, File)> {
        let plain = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let direct = File::options()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
            .open(plain.path());
        Some((plain, direct.ok()?))
    }

    #[test]
    fn odd_requests_behave_as_on_a_plain_file() {
        let Some((plain, file)) = open() else {
            return println!("skipped: the file system has no O_DIRECT");
        };
        let direct = Direct::default();
        let mut expected = Vec::new();
        for (offset, len) in [
            (0, 5),
            (4090, 20),
            (8192, 4096),
            (3, 3 << 20),
            (5 << 20, 4097),
            (100, 1),
        ] {
            let data: Vec<u8> = (0..len).map(|i| (i * 7 + offset) as u8).collect();
            direct.write(&file, offset as u64, &data).unwrap();
            expected.resize(expected.len().max(offset + len), 0);
            expected[offset..offset + len].copy_from_slice(&data);
            assert!(
                std::fs::read(plain.path()).unwrap() == expected,
                "{len} bytes at {offset}"
            );
        }
        let mut got = vec![0; expected.len() - 7];
        direct.read(&file, 7, &mut got).unwrap();
        assert!(got == expected[7..]);
        assert!(direct.read(&file, 8, &mut got).is_err());
    }
}
