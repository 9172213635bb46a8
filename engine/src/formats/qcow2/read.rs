//! Reading guest data of this layer.

use std::sync::PoisonError;

use super::image::Qcow2;
use super::locate::Kind;
use crate::storage::{PageBuffer, read_padded};
use crate::{Error, Result};

/// Packed bytes that are read at once.
const PACKED_BATCH: u64 = 1 << 20;

/// A compressed cluster.
#[derive(Debug, Clone, Copy)]
struct Packed {
    at: u64,
    len: u64,
}

impl Qcow2 {
    /// Fills `buf`; what this layer does not have reads as zeroes.
    pub fn read_own(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let run = self.locate(&self.read_shared(), offset, buf.len() as u64)?;
            let len = match run.kind {
                Kind::Packed { at, len } => self.read_packed(offset, Packed { at, len }, buf)?,
                kind => {
                    let len = clamp(run.len, buf.len());
                    let (part, _) = buf.split_at_mut(len);
                    match kind {
                        Kind::Data { at } => self.read_data(offset, at, part)?,
                        _ => part.fill(0),
                    }
                    len
                }
            };
            offset += len as u64;
            buf = buf.split_at_mut(len).1;
        }
        Ok(())
    }

    /// Checks a run of guest data before it is used: not over metadata, not past the end. Gives the bytes before the file's end.
    pub fn check_data(&self, at: u64, len: u64) -> Result<u64> {
        if self.host.data.is_none() {
            self.read_metadata().refuse_data(at, len)?;
        }
        let end = self.host.data_end(at.saturating_add(len))?;
        let last_cluster = self.geometry.cluster_start(at.saturating_add(len - 1));
        if last_cluster >= end {
            return Err(Error::corrupt(format!(
                "guest data at {last_cluster:#x} lies past the end of the file at {end:#x}"
            ))
            .at(self.host.data().name()));
        }
        Ok(end.saturating_sub(at).min(len))
    }

    /// Reads guest data that is not compressed.
    fn read_data(&self, guest: u64, at: u64, buf: &mut [u8]) -> Result<()> {
        match &self.encryption {
            None => self.read_stored(at, buf),
            Some(encryption) => self.read_encrypted(encryption, guest, at, buf),
        }
    }

    /// Reads bytes as the file has them.
    pub fn read_stored(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let inside = clamp(self.check_data(at, buf.len() as u64)?, buf.len());
        let (head, tail) = buf.split_at_mut(inside);
        tail.fill(0);
        if head.is_empty() {
            return Ok(());
        }
        self.host.data().read_guest_at(at, head)
    }

    /// Reads compressed clusters from the one that `offset` is in, as many as are wanted and lie one behind the other.
    fn read_packed(&self, offset: u64, first: Packed, buf: &mut [u8]) -> Result<usize> {
        let size = self.geometry.cluster_len();
        let in_cluster = self.geometry.in_cluster(offset) as usize;
        if in_cluster != 0 || buf.len() < size {
            return self.read_packed_part(first, in_cluster, buf);
        }
        let list = self.packed_batch(offset, first, buf.len() / size);
        let start = first.at;
        let end = list.iter().map(|p| p.at + p.len).max().unwrap_or(start);
        let mut codec = self.codec.take()?;
        self.read_packed_bytes(start, end - start, &mut codec.packed)?;
        for (packed, out) in list.iter().zip(buf.chunks_exact_mut(size)) {
            let from = (packed.at - start) as usize;
            codec.unpack(from..from + packed.len as usize, out)?;
        }
        self.codec.give_back(codec);
        Ok(list.len() * size)
    }

    /// The compressed clusters from `first` on that stand in the file in their order, close together.
    fn packed_batch(&self, offset: u64, first: Packed, most: usize) -> Vec<Packed> {
        let mut list = vec![first];
        let shared = self.read_shared();
        let mut last = first;
        while list.len() < most {
            let guest = offset + list.len() as u64 * self.geometry.cluster_size();
            let Ok(run) = self.locate(&shared, guest, self.geometry.cluster_size()) else {
                break;
            };
            match run.kind {
                Kind::Packed { at, len }
                    if at > last.at && at <= last.at + last.len && at + len - first.at <= PACKED_BATCH =>
                {
                    last = Packed { at, len };
                    list.push(last);
                }
                _ => break,
            }
        }
        list
    }

    fn read_packed_part(&self, packed: Packed, in_cluster: usize, buf: &mut [u8]) -> Result<usize> {
        let size = self.geometry.cluster_len();
        let len = buf.len().min(size - in_cluster);
        let mut last = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(at, _)| *at != packed.at) {
            let mut codec = self.codec.take()?;
            self.read_packed_bytes(packed.at, packed.len, &mut codec.packed)?;
            let mut out = vec![0; size];
            codec.unpack(0..packed.len as usize, &mut out)?;
            self.codec.give_back(codec);
            *last = Some((packed.at, out));
        }
        let bytes = last
            .as_ref()
            .and_then(|(_, bytes)| bytes.get(in_cluster..in_cluster + len));
        if let (Some(bytes), Some(buf)) = (bytes, buf.get_mut(..len)) {
            buf.copy_from_slice(bytes);
        }
        Ok(len)
    }

    /// The bytes of compressed clusters; the last sector may end past the end of the file.
    fn read_packed_bytes(&self, at: u64, len: u64, into: &mut PageBuffer) -> Result<()> {
        let end = self.host.file.len()?;
        if at >= end {
            return Err(Error::corrupt(format!(
                "a compressed cluster at {at:#x} lies past the end of the file at {end:#x}"
            )));
        }
        self.read_metadata().refuse_data(at, len)?;
        into.set_len(len as usize);
        read_padded(self.host.file.as_ref(), at, into)
    }
}

fn clamp(len: u64, most: usize) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX).min(most)
}
