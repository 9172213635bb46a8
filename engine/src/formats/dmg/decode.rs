//! Inflating chunks. Chunks of usual size are inflated whole; larger ones are streamed through a decoder that stays open, so that a
//! sequential reader inflates each byte once and memory stays bounded whatever size a chunk claims.

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

/// A decoder in the middle of a large chunk.
pub(super) struct Cursor {
    /// First guest byte of the chunk.
    chunk: u64,
    /// Guest bytes of the chunk that were inflated so far.
    done: u64,
    reader: Box<dyn Read + Send>,
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
    let usable = cursor.take().filter(|c| c.chunk == chunk.start && c.done <= inside);
    let mut at = match usable {
        Some(cursor) => cursor,
        None => match open(file, chunk, codec) {
            Some(reader) => Cursor {
                chunk: chunk.start,
                done: 0,
                reader,
            },
            None => {
                let mut decoder = LzfseRingDecoder::default();
                return skip_and_read(&mut decoder.reader(stored(file, chunk)), inside, out)
                    .map_err(|e| broken(chunk, e));
            }
        },
    };
    skip_and_read(&mut at.reader, inside - at.done, out).map_err(|e| broken(chunk, e))?;
    at.done = inside + out.len() as u64;
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
