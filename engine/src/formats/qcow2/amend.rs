//! Changing options of an existing image.

use super::check::Counts;
use super::create::refcount_order;
use super::image::Qcow2;
use super::layout::extensions::{ExtensionKind, feature_names};
use super::layout::refcounts::RefcountWidth;
use super::layout::{Autoclear, Compatible, Compression, Extension, Incompatible, L2Entry, Subclusters};
use super::writer::Writer;
use crate::env::BackingReference;
use crate::image::Resize;
use crate::options::Options;
use crate::{Control, Error, Result};

/// What can be amended.
const AMENDABLE: [&str; 8] = [
    "backing_file",
    "backing_fmt",
    "compat",
    "data_file",
    "data_file_raw",
    "lazy_refcounts",
    "refcount_bits",
    "size",
];

impl Qcow2 {
    /// Amends. Each change is one header write after everything that it needs is stable.
    pub fn change_options(&self, options: &Options, _force: bool, control: &Control) -> Result<()> {
        if let Some((name, _)) = options.iter().find(|(name, _)| !AMENDABLE.contains(name)) {
            return Err(Error::unsupported(format!(
                "option '{name}' of an existing image cannot be changed"
            )));
        }
        let now = self.read_shared().header.version;
        let version = match options.get("compat") {
            None => now,
            Some("0.10" | "v2") => 2,
            Some("1.1" | "v3") => 3,
            Some(other) => return Err(Error::invalid(format!("compatibility level '{other}' is not known"))),
        };
        self.refuse_too_old(options, version)?;
        if version > now {
            self.upgrade()?;
        }
        if options.get("refcount_bits").is_some() {
            let order = refcount_order(options, version)?;
            self.change_refcount_width(order, control)?;
        }
        self.change_flags(options)?;
        self.change_names(options)?;
        if let Some(size) = options.size("size")? {
            self.change_size(&Resize {
                virtual_size: size,
                shrink: false,
                ..Resize::default()
            })?;
        }
        if version < now {
            self.downgrade()?;
        }
        Ok(())
    }

    fn refuse_too_old(&self, options: &Options, version: u32) -> Result<()> {
        let wants = |name| options.flag(name).map(|v| v.unwrap_or(false));
        if version < 3 && wants("lazy_refcounts")? {
            return Err(Error::invalid(
                "lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        if wants("data_file_raw")? && self.read_shared().header.autoclear & Autoclear::RAW_DATA_FILE == 0 {
            return Err(Error::unsupported("data-file-raw cannot be set on existing images"));
        }
        if options.get("data_file").is_some() && !self.geometry.data_file {
            return Err(Error::unsupported(
                "data-file can only be set for images that use an external data file",
            ));
        }
        Ok(())
    }

    fn change_flags(&self, options: &Options) -> Result<()> {
        let (lazy, raw) = (options.flag("lazy_refcounts")?, options.flag("data_file_raw")?);
        if lazy.is_none() && raw.is_none() {
            return Ok(());
        }
        let writer = self.settled()?;
        self.change_header(&writer, |shared| {
            let header = &mut shared.header;
            match lazy {
                Some(true) => header.compatible |= Compatible::LAZY_REFCOUNTS,
                Some(false) => header.compatible &= !Compatible::LAZY_REFCOUNTS,
                None => {}
            }
            if raw == Some(false) {
                header.autoclear &= !Autoclear::RAW_DATA_FILE;
            }
        })?;
        self.host.flush()
    }

    fn change_names(&self, options: &Options) -> Result<()> {
        if let Some(name) = options.get("data_file") {
            let name = Extension::DataFile(name.to_owned());
            let writer = self.settled()?;
            self.change_header(&writer, |s| s.extensions.replace(ExtensionKind::DATA_FILE, Some(name)))?;
            self.host.flush()?;
        }
        let (file, format) = (options.get("backing_file"), options.get("backing_fmt"));
        if file.is_none() && format.is_none() {
            return Ok(());
        }
        let old = self.read_shared().backing.clone();
        let name = file.map_or_else(|| old.as_ref().map(|b| b.name.clone()), |f| Some(f.to_owned()));
        let format = format.map_or_else(|| old.and_then(|b| b.format), |f| Some(f.to_owned()));
        let backing = name
            .filter(|n| !n.is_empty())
            .map(|name| BackingReference { name, format });
        self.change_backing(backing.as_ref())
    }

    /// The writer's lock, with nothing left to write.
    fn settled(&self) -> Result<std::sync::MutexGuard<'_, Writer>> {
        let mut writer = self.lock_writer()?;
        self.prepare(&mut writer)?;
        self.write_back(&mut writer)?;
        self.host.flush()?;
        Ok(writer)
    }

    fn upgrade(&self) -> Result<()> {
        let writer = self.settled()?;
        let small = self.geometry.cluster_bits <= 12;
        self.change_header(&writer, |shared| {
            shared.header.version = 3;
            if !small {
                shared
                    .extensions
                    .replace(ExtensionKind::FEATURE_NAMES, Some(feature_names()));
            }
        })?;
        self.host.flush()
    }

    fn downgrade(&self) -> Result<()> {
        self.refuse_downgrade()?;
        let mut writer = self.settled()?;
        self.expand_zeroes(&mut writer)?;
        self.write_back(&mut writer)?;
        self.host.flush()?;
        self.change_header(&writer, |shared| {
            shared.header.version = 2;
            shared.header.compatible = 0;
            shared.header.autoclear = 0;
            shared.header.incompatible = Incompatible::default();
            shared.header.unknown = Vec::new();
            shared.extensions.replace(ExtensionKind::FEATURE_NAMES, None);
        })?;
        self.host.flush()
    }

    fn refuse_downgrade(&self) -> Result<()> {
        let shared = self.read_shared();
        let header = &shared.header;
        let bitmaps = shared.extensions.bitmaps().is_some() && header.autoclear & Autoclear::BITMAPS != 0;
        let hindrance = [
            (self.geometry.data_file, "cannot downgrade an image with a data file"),
            (header.refcount_order != 4, "compat=0.10 requires refcount_bits=16"),
            (
                self.geometry.extended_l2,
                "cannot downgrade an image with incompatible features 0x10 set",
            ),
            (
                header.compression != Compression::Zlib,
                "cannot downgrade an image with zstd compression",
            ),
            (
                !shared.snapshots.is_empty(),
                "cannot downgrade an image with internal snapshots",
            ),
            (bitmaps, "cannot downgrade an image with dirty bitmaps"),
        ];
        match hindrance.iter().find(|(there, _)| *there) {
            Some((_, what)) => Err(Error::unsupported(*what)),
            None => Ok(()),
        }
    }

    /// Replaces zero clusters, which version 2 does not know, by stored zeroes; without a layer below by nothing.
    fn expand_zeroes(&self, writer: &mut Writer) -> Result<()> {
        let size = self.geometry.cluster_size();
        let backed = self.read_shared().backing.is_some();
        let tables = self.read_shared().l1.len() as u64;
        let zeroes = vec![0; size as usize];
        for table in 0..tables {
            let guest = table * self.geometry.l2_span();
            for (n, entry) in (0..).zip(self.entries(guest, self.geometry.l2_entries())?) {
                let L2Entry::Standard { subs, .. } = entry else {
                    continue;
                };
                if subs != Subclusters::ZERO {
                    continue;
                }
                let at = guest + n * size;
                self.ensure_table(writer, self.geometry.l1_index(at))?;
                let new = match self.owns(writer, entry)? {
                    _ if !backed => L2Entry::UNALLOCATED,
                    Some(host) => {
                        self.write_data(at, host, &zeroes)?;
                        L2Entry::data(host)
                    }
                    None => {
                        let (host, _) = self.allocate_data(writer, at, 1)?;
                        writer.refcounts.no_longer_fresh(host + size);
                        self.write_data(at, host, &zeroes)?;
                        L2Entry::data(host)
                    }
                };
                self.replace(writer, at, &[new], true)?;
            }
            self.write_back_if_full(writer)?;
        }
        Ok(())
    }

    fn change_refcount_width(&self, order: u32, control: &Control) -> Result<()> {
        if self.read_shared().header.refcount_order == order {
            return Ok(());
        }
        let mut writer = self.settled()?;
        let counts: Counts = self.count_references(control)?;
        self.write_refcounts(&mut writer, &counts, RefcountWidth::new(order))?;
        self.reload(&mut writer)
    }
}
