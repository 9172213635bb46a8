//! Making new images: header in cluster 0, refcount table in 1, its first block in 2, then what growing to the virtual size adds.

use std::sync::atomic::Ordering;

use super::create_crypt::Wanted;
use super::grow::refuse_too_large;
use super::header_io::compose;
use super::image::Qcow2;
use super::layout::extensions::feature_names;
use super::layout::refcounts::RefcountWidth;
use super::layout::{Autoclear, Compatible, Compression, Crypt, Extension, Extensions, Geometry, Header, Incompatible};
use super::open;
use crate::env::CreateSpec;
use crate::gate::{Gate, Node, Reference, Role};
use crate::image::Preallocation;
use crate::options::Options;
use crate::{CreateEnv, Error, Image, OpenEnv, Result, StorageRef};

/// Create options, checked against each other.
pub(super) struct Plan {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub lazy: bool,
    pub extended_l2: bool,
    pub compression: Compression,
    pub data_file: Option<String>,
    pub data_file_raw: bool,
    pub preallocation: Preallocation,
    pub encryption: Option<Wanted>,
}

impl Plan {
    /// Reads the options as qemu-img does.
    ///
    /// # Errors
    /// `InvalidArgument` for values that do not go together.
    pub fn new(options: &Options, backing: bool) -> Result<Self> {
        let flag = |name: &str| options.flag(name).map(|v| v.unwrap_or(false));
        let version = match options.get("compat") {
            Some("0.10" | "v2") => 2,
            _ => 3,
        };
        let extended_l2 = flag("extended_l2")?;
        let plan = Self {
            version,
            cluster_bits: cluster_bits(options, extended_l2)?,
            refcount_order: refcount_order(options, version)?,
            lazy: flag("lazy_refcounts")?,
            extended_l2,
            compression: match options.get("compression_type") {
                Some("zstd") => Compression::Zstd,
                _ => Compression::Zlib,
            },
            data_file: options.get("data_file").map(str::to_owned),
            data_file_raw: flag("data_file_raw")?,
            preallocation: preallocation(options),
            encryption: Wanted::new(options)?,
        };
        plan.check(backing)?;
        Ok(plan)
    }

    fn check(&self, backing: bool) -> Result<()> {
        let newer = [
            (self.lazy, "lazy refcounts"),
            (self.extended_l2, "extended L2 entries are"),
            (self.compression != Compression::Zlib, "non-zlib compression type is"),
            (self.data_file.is_some(), "external data files are"),
        ];
        if let Some((_, what)) = newer.iter().find(|(used, _)| *used && self.version < 3) {
            return Err(Error::invalid(format!(
                "{what} only supported with compatibility level 1.1 and above (use version=v3 or greater)"
            )));
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err(Error::invalid("data-file-raw requires data-file"));
        }
        if self.data_file_raw && backing {
            return Err(Error::invalid(
                "backing file and data-file-raw cannot be used at the same time",
            ));
        }
        if backing && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return Err(Error::invalid(
                "backing file and preallocation can only be used at the same time if extended_l2 is on",
            ));
        }
        Ok(())
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            cluster_bits: self.cluster_bits,
            extended_l2: self.extended_l2,
            compression: self.compression,
            data_file: self.data_file.is_some(),
        }
    }

    fn header(&self) -> Header {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        Header {
            version: self.version,
            cluster_bits: self.cluster_bits,
            reftable_offset: 1 << self.cluster_bits,
            reftable_clusters: 1,
            incompatible: Incompatible(
                bit(self.data_file.is_some(), Incompatible::DATA_FILE)
                    | bit(self.compression != Compression::Zlib, Incompatible::COMPRESSION)
                    | bit(self.extended_l2, Incompatible::EXTENDED_L2),
            ),
            compatible: bit(self.lazy, Compatible::LAZY_REFCOUNTS),
            autoclear: bit(self.data_file_raw, Autoclear::RAW_DATA_FILE),
            refcount_order: self.refcount_order,
            compression: self.compression,
            // A LUKS header is not there yet: the method follows with it.
            crypt: match &self.encryption {
                Some(wanted) if wanted.method == Crypt::Aes => Crypt::Aes,
                _ => Crypt::None,
            },
            ..Header::default()
        }
    }

    fn extensions(&self, backing_format: Option<&str>) -> Extensions {
        let mut list = Vec::new();
        list.extend(backing_format.map(|f| Extension::BackingFormat(f.to_owned())));
        list.extend(self.data_file.clone().map(Extension::DataFile));
        // As QEMU: small clusters have better use for their space.
        if self.version >= 3 && self.cluster_bits > 12 {
            list.push(feature_names());
        }
        Extensions(list)
    }
}

fn cluster_bits(options: &Options, extended_l2: bool) -> Result<u32> {
    let size = options.size("cluster_size")?.unwrap_or(65536);
    if !size.is_power_of_two() || !(512..=2 << 20).contains(&size) {
        return Err(Error::invalid(
            "cluster size must be a power of two between 512 and 2048k",
        ));
    }
    if extended_l2 && size < 16 << 10 {
        return Err(Error::invalid(
            "extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ));
    }
    Ok(size.trailing_zeros())
}

/// log2 of the refcount width that the options ask for.
pub(super) fn refcount_order(options: &Options, version: u32) -> Result<u32> {
    let bits = options.number("refcount_bits")?.unwrap_or(16);
    if !bits.is_power_of_two() || bits > 64 {
        return Err(Error::invalid(
            "refcount width must be a power of two and may not exceed 64 bits",
        ));
    }
    if version < 3 && bits != 16 {
        return Err(Error::invalid(
            "different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
        ));
    }
    Ok(bits.trailing_zeros())
}

fn preallocation(options: &Options) -> Preallocation {
    match options.get("preallocation") {
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        _ => Preallocation::Off,
    }
}

/// Makes a new image.
pub(super) fn create(storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    let plan = Plan::new(&spec.options, spec.backing.is_some())?;
    let size = spec
        .virtual_size
        .checked_next_multiple_of(512)
        .filter(|size| *size <= env.limits.virtual_size)
        .ok_or_else(|| Error::limit(format!("a virtual size of {} bytes is too large", spec.virtual_size)))?;
    refuse_too_large(&plan.geometry(), size, env.limits)?;
    let passphrase = plan.encryption.as_ref().map(|e| e.passphrase(env)).transpose()?;
    if let Some(wanted) = &plan.encryption {
        // Options of LUKS that make no sense are told before anything is there.
        wanted.header_len()?;
    }
    let first = first_cluster(&plan, spec)?;
    let data = plan
        .data_file
        .as_deref()
        .map(|name| create_data_file(&storage, name, size, env));
    // A data file that cannot be had is no reason to change the image's own.
    let gate = Created(data.transpose()?);
    write_skeleton(&storage, &plan, &first)?;
    let open_env = OpenEnv::closed(env.limits)
        .with_gate(&gate)
        .with_secrets(env.secrets)
        .writable();
    let mut image = open::open(storage, &Options::new(), &open_env)?;
    image.host.unordered.store(true, Ordering::Relaxed);
    grow(&image, size)?;
    if let Some((wanted, passphrase)) = plan.encryption.as_ref().zip(passphrase.as_ref()) {
        image.set_up_encryption(wanted, passphrase, env)?;
    }
    preallocate(&image, &plan, size)?;
    image.host.unordered.store(false, Ordering::Relaxed);
    image.close()
}

fn first_cluster(plan: &Plan, spec: &CreateSpec) -> Result<Vec<u8>> {
    let format = spec.backing.as_ref().and_then(|b| b.format.as_deref());
    compose(&mut plan.header(), &mut plan.extensions(format), spec.backing.as_ref())
}

fn write_skeleton(storage: &StorageRef, plan: &Plan, first: &[u8]) -> Result<()> {
    let size = 1u64 << plan.cluster_bits;
    if storage.can_resize() {
        storage.set_len(0)?;
    }
    storage.write_zeroes(0, 3 * size, true)?;
    storage.write_at(0, first)?;
    storage.write_at(size, &(2 * size).to_be_bytes())?;
    let mut counts = vec![0; 64];
    let width = RefcountWidth::new(plan.refcount_order);
    (0..3).for_each(|cluster| width.set(&mut counts, cluster, 1));
    storage.write_at(2 * size, &counts)
}

fn grow(image: &Qcow2, size: u64) -> Result<()> {
    let mut writer = image.lock_writer()?;
    image.prepare(&mut writer)?;
    image.grow_l1(&mut writer, size)?;
    image.change_header(&writer, |s| s.header.virtual_size = size)
}

fn preallocate(image: &Qcow2, plan: &Plan, size: u64) -> Result<()> {
    let mut writer = image.lock_writer()?;
    let how = match plan.preallocation {
        // A raw data file shows zeroes wherever the guest does: its clusters are all there from the start.
        Preallocation::Off if plan.data_file_raw => Preallocation::Metadata,
        how => how,
    };
    image.preallocate(&mut writer, 0, size, how)
}

fn create_data_file(storage: &StorageRef, name: &str, size: u64, env: &CreateEnv<'_>) -> Result<StorageRef> {
    let data = env.gate.create(&Reference {
        name,
        format: Some("raw"),
        role: Role::DataFile,
        from: storage,
        writable: true,
    })?;
    if data.can_resize() {
        data.set_len(0)?;
        data.set_len(size)?;
    }
    refuse_short(&data, size)?;
    Ok(data)
}

/// The guest's data lie in the data file where the guest has them: one that is shorter than the disk and cannot grow has no place for the
/// rest.
pub(super) fn refuse_short(data: &StorageRef, size: u64) -> Result<()> {
    let there = data.len()?;
    if data.can_resize() || there >= size {
        return Ok(());
    }
    let what = format!("the data file cannot grow from {there} to {size} bytes");
    Err(Error::unsupported(what).at(data.name()))
}

/// Hands out the data file that was just made.
struct Created(Option<StorageRef>);

impl Gate for Created {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        match &self.0 {
            Some(storage) if reference.role == Role::DataFile => Ok(Node::new(storage.clone(), "raw")),
            _ => Err(Error::denied("a new image opens nothing else")),
        }
    }
    fn create(&self, _reference: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied("a new image creates nothing else"))
    }
}
