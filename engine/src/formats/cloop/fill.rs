//! Filling a new image: blocks are placed in rising order, blocks left out become zeroes.
//!
//! The table of offsets is written by the flush, after all data is stable: until then the file is one that was never finished.

use std::sync::Mutex;

use libdeflater::{CompressionLvl, Compressor};

use super::layout::{HEADER_LEN, Header};
use super::open::CloopImage;
use crate::formats::common::lock;
use crate::image::{BulkWrite, HostPlace, Image, Placement, Scratch};
use crate::{Error, Result};

const LEVEL: i32 = 6;

/// What was placed so far.
pub(super) struct Filling {
    state: Mutex<State>,
}

struct State {
    /// Where each placed block starts; one more than blocks placed.
    offsets: Vec<u64>,
    /// Places of blocks that were left out.
    gaps: Vec<u64>,
    /// The stored form of a block of zeroes.
    zeroes: Option<Vec<u8>>,
}

impl Filling {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            state: Mutex::new(State {
                offsets: vec![header.data_at()],
                gaps: Vec::new(),
                zeroes: None,
            }),
        }
    }

    /// Whether anything was placed.
    pub(super) fn is_started(&self) -> bool {
        lock(&self.state).offsets.len() > 1
    }

    /// Writes what was left out, then the table. May be called again after more blocks were placed.
    pub(super) fn finish(&self, image: &CloopImage) -> Result<()> {
        let mut state = lock(&self.state);
        let zeroes = state.zeroes(&image.header)?;
        for at in &state.gaps {
            image.file.write_at(*at, &zeroes)?;
        }
        let mut offsets = state.offsets.clone();
        let wanted = usize::try_from(image.header.blocks + 1).unwrap_or(usize::MAX);
        let mut end = offsets.last().copied().unwrap_or_default();
        while offsets.len() < wanted {
            image.file.write_at(end, &zeroes)?;
            end += zeroes.len() as u64;
            offsets.push(end);
        }
        image.file.set_len(end)?;
        image.file.flush()?;
        let table: Vec<u8> = offsets.iter().flat_map(|o| o.to_be_bytes()).collect();
        image.file.write_at(HEADER_LEN as u64, &table)?;
        image.file.flush()
    }
}

impl State {
    fn zeroes(&mut self, header: &Header) -> Result<Vec<u8>> {
        if self.zeroes.is_none() {
            let block = vec![0; usize::try_from(header.block).unwrap_or(0)];
            self.zeroes = Some(pack(&block, &mut Scratch::default())?);
        }
        Ok(self.zeroes.clone().unwrap_or_default())
    }

    fn place(&mut self, header: &Header, block: u64, bytes: u64) -> Result<u64> {
        let placed = self.offsets.len() as u64 - 1;
        if block < placed {
            return Err(Error::unsupported(format!(
                "a cloop image is filled from its start to its end: block {block} comes after block {}",
                placed - 1
            )));
        }
        let mut end = self.offsets.last().copied().unwrap_or_default();
        if block > placed {
            let zeroes = self.zeroes(header)?.len() as u64;
            for _ in placed..block {
                self.gaps.push(end);
                end += zeroes;
                self.offsets.push(end);
            }
        }
        let next = end
            .checked_add(bytes)
            .ok_or_else(|| Error::limit("the file would become too large"))?;
        self.offsets.push(next);
        Ok(end)
    }
}

fn pack(data: &[u8], scratch: &mut Scratch) -> Result<Vec<u8>> {
    let wanted = scratch.level().unwrap_or(LEVEL);
    let level = || CompressionLvl::new(wanted).map_err(|_| Error::invalid(format!("no compression level {wanted}")));
    let compressor: &mut Compressor = scratch.get(|| Ok(Compressor::new(level()?)))?;
    let mut packed = vec![0; compressor.zlib_compress_bound(data.len())];
    let len = compressor
        .zlib_compress(data, &mut packed)
        .map_err(|_| Error::invalid("the block does not fit its buffer"))?;
    packed.truncate(len);
    Ok(packed)
}

impl BulkWrite for CloopImage {
    fn unit(&self) -> u64 {
        self.header.block
    }
    fn encodes(&self) -> bool {
        true
    }
    fn encode(&self, data: &[u8], scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        let block = usize::try_from(self.header.block).unwrap_or(0);
        if data.len() == block {
            return pack(data, scratch).map(Some);
        }
        let rest = block
            .checked_sub(data.len())
            .ok_or_else(|| Error::invalid(format!("{} bytes are more than one block", data.len())))?;
        pack(&[data, &vec![0; rest]].concat(), scratch).map(Some)
    }
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement> {
        let (Some(filling), Some(bytes)) = (&self.filling, encoded) else {
            return Err(self.cannot("write"));
        };
        crate::formats::common::check_range(offset, len, self.virtual_size())?;
        if !offset.is_multiple_of(self.header.block) {
            return Err(Error::invalid(format!("{offset:#x} is not the start of a block")));
        }
        let at = lock(&filling.state).place(&self.header, offset / self.header.block, bytes)?;
        Ok(Placement {
            guest: offset,
            at: HostPlace { file: 0, offset: at },
            len: bytes,
            encoded: true,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.file.write_at(placement.at.offset, bytes)
    }
}
