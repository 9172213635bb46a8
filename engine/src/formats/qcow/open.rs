//! An open image.

use libdeflater::{CompressionLvl, Compressor, Decompressor};

use super::layout::{self, HEADER_LEN, Header, SECTOR};
use crate::crypto::{Secret, SectorCipher, legacy_qcow_cipher};
use crate::formats::common::text;
use crate::formats::two_level::{Codec, Shape, Slot, TwoLevel};
use crate::image::{BackingReference, Below, BulkWrite, CheckReport, Extent, ImageInfo, Placement, Repair, Scratch};
use crate::options::Options;
use crate::storage::{read_padded, read_vec};
use crate::{Control, Error, ErrorKind, Image, OpenEnv, Result, StorageRef};

/// zlib's default, as QEMU has it.
const LEVEL: i32 = 6;

/// L2 entries: 0 is unallocated; with bit 63 the rest is length and offset of a compressed cluster, else an offset.
pub(super) struct Entries {
    cluster_bits: u32,
    encryption: Encryption,
}

/// How guest data is stored.
enum Encryption {
    None,
    /// AES, and its key was not given.
    Locked,
    Aes(SectorCipher),
}

impl Entries {
    /// Bits of the offset of a compressed cluster; its length stands above them.
    fn offset_bits(&self) -> u32 {
        63 - self.cluster_bits
    }
}

impl Codec for Entries {
    fn decode(&self, entry: u64) -> Result<Slot> {
        if entry == 0 {
            return Ok(Slot::Unallocated);
        }
        if entry >> 63 == 0 {
            return Ok(Slot::Data(entry));
        }
        Ok(Slot::Compressed {
            at: entry & ((1 << self.offset_bits()) - 1),
            len: entry >> self.offset_bits() & ((1 << self.cluster_bits) - 1),
        })
    }
    fn encode(&self, slot: Slot) -> Option<u64> {
        match slot {
            Slot::Unallocated => Some(0),
            Slot::Zero => None,
            Slot::Data(at) => (at >> 63 == 0).then_some(at),
            Slot::Compressed { at, len } => (at >> self.offset_bits() == 0 && len >> self.cluster_bits == 0)
                .then_some(1 << 63 | len << self.offset_bits() | at),
        }
    }
    fn encrypted(&self) -> bool {
        !matches!(self.encryption, Encryption::None)
    }
    fn cipher(&self) -> Result<Option<&SectorCipher>> {
        match &self.encryption {
            Encryption::None => Ok(None),
            Encryption::Locked => Err(locked()),
            Encryption::Aes(cipher) => Ok(Some(cipher)),
        }
    }
    fn inflate(&self, packed: &[u8], out: &mut [u8]) -> Result<()> {
        match Decompressor::new().deflate_decompress(packed, out) {
            Ok(n) if n == out.len() => Ok(()),
            Ok(n) => Err(Error::corrupt(format!(
                "compressed cluster inflates to {n} bytes instead of {}",
                out.len()
            ))),
            Err(e) => Err(Error::corrupt("compressed cluster cannot be inflated").because(e)),
        }
    }
}

fn locked() -> Error {
    let text = "the image is encrypted: name its passphrase with option 'encrypt.key-secret'";
    Error::new(ErrorKind::WrongKey, text)
}

/// What the header says, with the key where it was given.
fn encryption(encrypted: bool, options: &Options, env: &OpenEnv<'_>) -> Result<Encryption> {
    match (options.get("encrypt.format"), encrypted) {
        (Some(wanted), false) => {
            return Err(Error::invalid(format!(
                "the image is not encrypted, the options say format '{}'",
                wanted.escape_debug()
            )));
        }
        (Some(wanted), true) if wanted != "aes" => {
            return Err(Error::invalid(format!(
                "the header says 'aes' encryption, the options '{}'",
                wanted.escape_debug()
            )));
        }
        _ => {}
    }
    match options.get("encrypt.key-secret") {
        _ if !encrypted => Ok(Encryption::None),
        Some(id) if !env.metadata_only => {
            let secret = Secret::new(env.secrets.get(id)?.to_vec());
            legacy_qcow_cipher(&secret).map(Encryption::Aes)
        }
        _ => Ok(Encryption::Locked),
    }
}

/// An open layer.
pub(super) struct QcowImage {
    map: TwoLevel<Entries>,
    header: Header,
    backing: Option<BackingReference>,
    locked: bool,
}

impl QcowImage {
    pub(super) fn open(file: StorageRef, options: &Options, env: &OpenEnv<'_>) -> Result<Self> {
        let len = usize::try_from(file.len()?).unwrap_or(usize::MAX).min(HEADER_LEN);
        let mut bytes = [0; HEADER_LEN];
        read_padded(file.as_ref(), 0, &mut bytes)?;
        let header = layout::check(bytes.get(..len).unwrap_or_default())?;
        let backing = match header.backing {
            Some((at, len)) => {
                let name = read_vec(file.as_ref(), at, usize::try_from(len).unwrap_or(0))?;
                Some(BackingReference {
                    name: text(&name, "the backing file name")?,
                    format: None,
                })
            }
            None => None,
        };
        let shape = Shape {
            cluster: 1 << header.cluster_bits,
            l2_entries: header.l2_entries,
            l1_offset: header.l1_offset,
            l1_entries: header.l1_entries,
            first_free: header.l1_offset.saturating_add(header.l1_entries * 8),
            little_endian: false,
            alignment: 1 << header.cluster_bits,
            accepted_alignment: SECTOR,
            cache_bytes: env.limits.cache_bytes,
        };
        let codec = Entries {
            cluster_bits: header.cluster_bits,
            encryption: encryption(header.encrypted, options, env)?,
        };
        let locked = matches!(codec.encryption, Encryption::Locked);
        Ok(Self {
            map: TwoLevel::open(file, codec, shape, header.size, env.limits)?,
            header,
            backing,
            locked,
        })
    }

    /// Compressed clusters are never encrypted: they would show what the rest of the image hides.
    fn refuse_packed(&self) -> Result<()> {
        if self.header.encrypted {
            return Err(Error::unsupported(
                "compression and encryption cannot be used at the same time: compressed clusters are stored unencrypted",
            ));
        }
        Ok(())
    }

    /// The deflated form of a cluster, padded with zeroes at the end of the disk; `None` where that is no smaller.
    fn deflate(&self, data: &[u8], scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        let cluster = usize::try_from(self.map.cluster()).unwrap_or(0);
        let padded;
        let data = if data.len() < cluster {
            padded = [data, &vec![0; cluster - data.len()]].concat();
            &padded
        } else {
            data
        };
        let wanted = scratch.level().unwrap_or(LEVEL);
        let level =
            || CompressionLvl::new(wanted).map_err(|_| Error::invalid(format!("no compression level {wanted}")));
        let compressor: &mut Compressor = scratch.get(|| Ok(Compressor::new(level()?)))?;
        let mut packed = vec![0; cluster.saturating_sub(1)];
        Ok(compressor.deflate_compress(data, &mut packed).ok().map(|n| {
            packed.truncate(n);
            packed
        }))
    }

    /// Compressed data is given for one whole cluster; at the end of the disk for what there is of it.
    fn check_unit(&self, offset: u64, len: u64) -> Result<()> {
        let cluster = self.map.cluster();
        let whole = cluster.min(self.map.size().saturating_sub(offset));
        if !offset.is_multiple_of(cluster) || len != whole {
            return Err(Error::invalid(format!(
                "{len} bytes at {offset:#x} are not one cluster of {cluster} bytes"
            )));
        }
        Ok(())
    }
}

impl Image for QcowImage {
    fn format(&self) -> &'static str {
        "qcow"
    }
    fn virtual_size(&self) -> u64 {
        self.map.size()
    }
    fn backing(&self) -> Option<BackingReference> {
        self.backing.clone()
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            cluster_size: Some(self.map.cluster()),
            encrypted: self.header.encrypted,
            dirty: Some(false),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.map.file().clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        self.map.extent(offset, len)
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.map.read(offset, buf)
    }
    fn write(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<()> {
        self.map.write(offset, buf, below)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.map.write_zeroes(offset, len, unmap, below)
    }
    fn write_compressed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.refuse_packed()?;
        self.check_unit(offset, buf.len() as u64)?;
        let packed = self.deflate(buf, &mut Scratch::default())?;
        self.map.write_encoded(offset, buf, packed.as_deref())
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        Some(self)
    }
    fn resumable(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<()> {
        self.map.flush()
    }
    fn missing_key(&self) -> Option<Error> {
        self.locked.then(|| locked().at(self.map.file().name()))
    }
    fn check(&self, _repair: Repair, control: &Control) -> Result<CheckReport> {
        self.map.check(self.header.backing, control)
    }
    fn make_empty(&self) -> Result<()> {
        self.map.clear()
    }
}

impl BulkWrite for QcowImage {
    fn unit(&self) -> u64 {
        self.map.cluster()
    }
    fn encodes(&self) -> bool {
        false
    }
    fn sparse_store(&self) -> bool {
        !self.header.encrypted && self.map.file().can_resize()
    }
    fn encode(&self, data: &[u8], scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        self.refuse_packed()?;
        self.deflate(data, scratch)
    }
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement> {
        self.map.place(offset, len, encoded)
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.map.store(placement, bytes)
    }
}
