//! Compressed clusters: raw deflate or one zstd frame, each exactly one cluster when unpacked.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use libdeflater::{CompressionLvl, Compressor, Decompressor};
use zstd::zstd_safe;

use super::layout::Compression;
use crate::storage::PageBuffer;
use crate::{Error, Result};

/// Measured on 64 KiB clusters of a file system: 1 % larger than QEMU's zlib level 6, at about nine times its speed with two cores.
const DEFLATE_LEVEL: i32 = 1;
/// QEMU's zstd level.
const ZSTD_LEVEL: i32 = zstd_safe::CLEVEL_DEFAULT;

/// What one unpacking thread needs.
pub(super) struct Unpacking {
    unpacker: Unpacker,
    /// For packed bytes as the file has them.
    pub packed: PageBuffer,
}

enum Unpacker {
    Deflate(Decompressor),
    Zstd(zstd_safe::DCtx<'static>),
}

/// Contexts of one packing thread.
pub(super) enum Packer {
    Deflate(Compressor),
    Zstd(zstd_safe::CCtx<'static>),
}

/// Contexts and buffers of an image, reused: as many as threads ever read at once.
pub(super) struct Codec {
    compression: Compression,
    idle: Mutex<Vec<Unpacking>>,
}

impl Codec {
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            idle: Mutex::default(),
        }
    }

    /// Contexts for one thread, to be given back.
    ///
    /// # Errors
    /// `LimitExceeded` without memory.
    pub fn take(&self) -> Result<Unpacking> {
        match self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            Some(idle) => Ok(idle),
            None => Ok(Unpacking {
                unpacker: Unpacker::new(self.compression)?,
                packed: PageBuffer::default(),
            }),
        }
    }
    /// Keeps contexts for the next one who takes them.
    pub fn give_back(&self, unpacking: Unpacking) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(unpacking);
    }
}

impl Unpacking {
    /// Unpacks a range of the packed bytes (which may have anything behind the stream) into `out`, which it must fill exactly.
    ///
    /// # Errors
    /// `Corrupt` for damaged, short and long streams.
    pub fn unpack(&mut self, range: Range<usize>, out: &mut [u8]) -> Result<()> {
        let packed = self.packed.get(range).unwrap_or_default();
        match self.unpacker.unpack(packed, out)? {
            n if n == out.len() => Ok(()),
            n => Err(Error::corrupt(format!(
                "expected a compressed cluster of {} bytes, found {n}",
                out.len()
            ))),
        }
    }
}

impl Unpacker {
    fn new(compression: Compression) -> Result<Self> {
        Ok(match compression {
            Compression::Zlib => Self::Deflate(Decompressor::new()),
            Compression::Zstd => Self::Zstd(zstd_safe::DCtx::try_create().ok_or_else(no_memory)?),
        })
    }

    fn unpack(&mut self, packed: &[u8], out: &mut [u8]) -> Result<usize> {
        match self {
            Self::Deflate(context) => context
                .deflate_decompress(packed, out)
                .map_err(|e| Error::corrupt("cannot unpack a compressed cluster").because(e)),
            Self::Zstd(context) => {
                // The frame alone: what follows it in its last sector belongs to somebody else.
                let len = zstd_safe::find_frame_compressed_size(packed).map_err(zstd_error)?;
                let frame = packed.get(..len).unwrap_or(packed);
                context.decompress(out, frame).map_err(zstd_error)
            }
        }
    }
}

impl Packer {
    pub fn new(compression: Compression, level: Option<i32>) -> Result<Self> {
        Ok(match compression {
            Compression::Zlib => {
                let level = deflate_level(level)?;
                Self::Deflate(Compressor::new(level))
            }
            Compression::Zstd => {
                let mut context = zstd_safe::CCtx::try_create().ok_or_else(no_memory)?;
                context
                    .set_parameter(zstd_safe::CParameter::CompressionLevel(level.unwrap_or(ZSTD_LEVEL)))
                    .map_err(zstd_error)?;
                Self::Zstd(context)
            }
        })
    }

    /// Packs one cluster; `None` when that saves nothing.
    pub fn pack(&mut self, data: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut out = vec![0; data.len().saturating_sub(1)];
        let packed = match self {
            Self::Deflate(context) => context.deflate_compress(data, &mut out).ok(),
            Self::Zstd(context) => context.compress2(&mut out[..], data).ok(),
        };
        Ok(packed.map(|len| {
            out.truncate(len);
            out
        }))
    }
}

fn deflate_level(level: Option<i32>) -> Result<CompressionLvl> {
    let level = level.unwrap_or(DEFLATE_LEVEL);
    CompressionLvl::new(level).map_err(|_| Error::invalid(format!("deflate has levels 1 to 12, not {level}")))
}

fn zstd_error(code: usize) -> Error {
    Error::corrupt(format!(
        "cannot unpack a compressed cluster: {}",
        zstd_safe::get_error_name(code)
    ))
}

fn no_memory() -> Error {
    Error::limit("no memory for a zstd context")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        (0..65536u32).map(|i| (i / 7 % 251) as u8).collect()
    }

    #[test]
    fn both_codecs_round_trip_and_ignore_what_follows_the_stream() {
        for compression in [Compression::Zlib, Compression::Zstd] {
            let mut packed = Packer::new(compression, None)
                .unwrap()
                .pack(&sample())
                .unwrap()
                .unwrap();
            packed.extend_from_slice(&[0x55; 300]);
            let mut out = vec![0; 65536];
            let mut codec = Codec::new(compression).take().unwrap();
            codec.packed.set_len(packed.len());
            codec.packed.copy_from_slice(&packed);
            let all = 0..packed.len();
            codec.unpack(all.clone(), &mut out).unwrap();
            assert_eq!(out, sample(), "{compression:?}");
            assert!(
                codec.unpack(all.clone(), &mut out[..512]).is_err(),
                "{compression:?}: long"
            );
            assert!(
                codec.unpack(all, &mut vec![0; 70_000]).is_err(),
                "{compression:?}: short"
            );
            assert!(codec.unpack(0..100, &mut out).is_err(), "{compression:?}: cut");
        }
    }

    #[test]
    fn what_does_not_shrink_is_not_packed() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(4096)
        .collect();
        for compression in [Compression::Zlib, Compression::Zstd] {
            assert_eq!(Packer::new(compression, None).unwrap().pack(&noise).unwrap(), None);
        }
    }
}
