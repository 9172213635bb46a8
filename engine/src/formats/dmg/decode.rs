//! Inflating chunks. Chunks of usual size are inflated whole; larger ones are streamed through a decoder that stays open, and keeps
//! what it inflated last, so that readers that go through the image side by side inflate each byte once, and memory stays bounded whatever size a
//! chunk claims.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read};

use libdeflater::Decompressor;
use lzfse_rust::LzfseRingDecoder;

use super::adc::AdcReader;
use super::layout::Codec;
use super::table::Chunk;
use crate::{Error, Result, StorageRef};

/// Stored bytes read at once.
const BUFFER: usize = 64 << 10;

/// The stored bytes of a chunk as a stream.
pub(super) struct Stored {
    file: StorageRef,
    at: u64,
    end: u64,
}

impl Read for Stored {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let n = rest.min(buf.len());
        let part = buf.get_mut(..n).unwrap_or_default();
        self.file.read_at(self.at, part).map_err(io::Error::other)?;
        self.at += n as u64;
        Ok(n)
    }
}

fn stored(file: &StorageRef, chunk: &Chunk) -> BufReader<Stored> {
    let stored = Stored {
        file: file.clone(),
        at: chunk.at,
        end: chunk.at + chunk.stored,
    };
    BufReader::with_capacity(BUFFER, stored)
}

fn broken(chunk: &Chunk, source: io::Error) -> Error {
    Error::corrupt(format!("the chunk at {:#x} cannot be inflated", chunk.start)).because(source)
}

/// A decoder that stays open between reads; `None` for LZFSE, whose decoder cannot.
fn open(file: &StorageRef, chunk: &Chunk, codec: Codec) -> Option<Box<dyn Read + Send>> {
    let stored = stored(file, chunk);
    Some(match codec {
        Codec::Adc => Box::new(AdcReader::new(stored)),
        Codec::Zlib => Box::new(flate2::read::ZlibDecoder::new(stored)),
        Codec::Bzip2 => Box::new(bzip2::read::BzDecoder::new(stored)),
        Codec::Lzma => Box::new(liblzma::read::XzDecoder::new(stored)),
        Codec::Lzfse => return None,
    })
}

/// Inflates a whole chunk into `out`, which has the chunk's length.
///
/// # Errors
/// `Corrupt` when the stream is broken, or shorter or longer than the chunk.
pub(super) fn whole(file: &StorageRef, chunk: &Chunk, codec: Codec, out: &mut [u8]) -> Result<()> {
    if codec == Codec::Zlib && chunk.stored <= chunk.len + (chunk.len >> 8) + 1024 {
        let len = usize::try_from(chunk.stored).map_err(|_| Error::limit("the chunk is too large"))?;
        let packed = crate::storage::read_vec(file.as_ref(), chunk.at, len)?;
        return match Decompressor::new().zlib_decompress(&packed, out) {
            Ok(n) if n == out.len() => Ok(()),
            Ok(n) => Err(broken(
                chunk,
                io::Error::other(format!("{n} bytes instead of {}", out.len())),
            )),
            Err(e) => Err(broken(chunk, io::Error::other(e))),
        };
    }
    let check = |reader: &mut dyn Read, out: &mut [u8]| {
        reader.read_exact(out).map_err(|e| broken(chunk, e))?;
        match reader.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(broken(chunk, io::Error::other("it inflates to more than its sectors"))),
            Err(e) => Err(broken(chunk, e)),
        }
    };
    match open(file, chunk, codec) {
        Some(mut reader) => check(&mut reader, out),
        None => {
            let mut decoder = LzfseRingDecoder::default();
            check(&mut decoder.reader(stored(file, chunk)), out)
        }
    }
}

/// Inflated bytes that a cursor keeps: as many as the workers of a copy, which read a MiB each, can be apart.
const KEPT: u64 = 16 << 20;

/// Bytes inflated at once.
const PIECE: u64 = 256 << 10;

/// A decoder in the middle of a large chunk, and the bytes that it gave last.
pub(super) struct Cursor {
    /// First guest byte of the chunk.
    chunk: u64,
    /// Guest bytes of the chunk that were inflated so far.
    done: u64,
    /// The last of these.
    kept: VecDeque<Vec<u8>>,
    /// Where in the chunk the kept ones start.
    kept_from: u64,
    reader: Box<dyn Read + Send>,
}

impl Cursor {
    fn new(chunk: u64, reader: Box<dyn Read + Send>) -> Self {
        Self {
            chunk,
            done: 0,
            kept: VecDeque::new(),
            kept_from: 0,
            reader,
        }
    }

    /// Reads from `inside` on, which is not before the kept bytes.
    fn read(&mut self, inside: u64, out: &mut [u8]) -> io::Result<()> {
        let end = inside + out.len() as u64;
        let mut at = self.kept_from;
        for piece in &self.kept {
            copy_overlap(piece, at, inside, out);
            at += piece.len() as u64;
        }
        while self.done < end {
            let len = usize::try_from((end - self.done).min(PIECE)).unwrap_or(0);
            let mut piece = vec![0; len];
            self.reader.read_exact(&mut piece)?;
            copy_overlap(&piece, self.done, inside, out);
            self.done += len as u64;
            self.kept.push_back(piece);
            while self.done - self.kept_from > KEPT
                && let Some(oldest) = self.kept.pop_front()
            {
                self.kept_from += oldest.len() as u64;
            }
        }
        Ok(())
    }
}

/// Copies what a piece at `at` has of the bytes from `inside` on.
fn copy_overlap(piece: &[u8], at: u64, inside: u64, out: &mut [u8]) {
    let skipped = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
    let piece = piece.get(skipped(at, inside)..).unwrap_or_default();
    let out = out.get_mut(skipped(inside, at)..).unwrap_or_default();
    out.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
}

/// Inflates part of a large chunk from `inside` on. `cursor` is kept from read to read.
pub(super) fn part(
    file: &StorageRef,
    chunk: &Chunk,
    codec: Codec,
    inside: u64,
    out: &mut [u8],
    cursor: &mut Option<Cursor>,
) -> Result<()> {
    let usable = cursor
        .take()
        .filter(|c| c.chunk == chunk.start && c.kept_from <= inside);
    let mut at = match usable {
        Some(cursor) => cursor,
        None => match open(file, chunk, codec) {
            Some(reader) => Cursor::new(chunk.start, reader),
            None => {
                let mut decoder = LzfseRingDecoder::default();
                return skip_and_read(&mut decoder.reader(stored(file, chunk)), inside, out)
                    .map_err(|e| broken(chunk, e));
            }
        },
    };
    at.read(inside, out).map_err(|e| broken(chunk, e))?;
    *cursor = Some(at);
    Ok(())
}

fn skip_and_read(mut reader: &mut dyn Read, skip: u64, out: &mut [u8]) -> io::Result<()> {
    let skipped = io::copy(&mut (&mut reader).take(skip), &mut io::sink())?;
    if skipped < skip {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    reader.read_exact(out)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Bytes that say where they are, counted.
    struct Counted(Arc<AtomicU64>);

    fn byte(at: u64) -> u8 {
        (at / 4096 % 251) as u8
    }

    impl Read for Counted {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let at = self.0.fetch_add(buf.len() as u64, Ordering::Relaxed);
            (at..).zip(buf.iter_mut()).for_each(|(at, to)| *to = byte(at));
            Ok(buf.len())
        }
    }

    #[test]
    fn readers_side_by_side_inflate_each_byte_once() {
        const MIB: u64 = 1 << 20;
        let count = Arc::new(AtomicU64::new(0));
        let mut cursor = Cursor::new(0, Box::new(Counted(count.clone())));
        let mut out = vec![0; MIB as usize];
        // Groups of eight, each from the last to the first.
        for number in (0..48).map(|n| n / 8 * 8 + 7 - n % 8) {
            let inside = number * MIB;
            assert!(cursor.kept_from <= inside, "the reader of MiB {number} begins anew");
            cursor.read(inside, &mut out).unwrap();
            assert!(
                (inside..).zip(&out).all(|(at, found)| *found == byte(at)),
                "MiB {number}"
            );
            let kept: usize = cursor.kept.iter().map(Vec::len).sum();
            assert!(kept as u64 <= KEPT);
        }
        assert_eq!(count.load(Ordering::Relaxed), 48 * MIB);
    }
}
