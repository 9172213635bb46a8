//! Changing options of an existing image.

use super::create::refcount_order;
use super::image::Qcow2;
use super::layout::extensions::{ExtensionKind, feature_names};
use super::layout::refcounts::RefcountWidth;
use super::layout::{Autoclear, Compatible, Extension};
use super::writer::Writer;
use crate::env::BackingReference;
use crate::image::{Repair, Resize};
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
        let width = options.get("refcount_bits").map(|_| refcount_order(options, 3));
        // No size is asked for by 0, as QEMU reads it: a disk of nothing is the work of a resize.
        let size = options.size("size")?.filter(|size| *size != 0);
        let width = width.transpose()?;
        if version < 3 && width.is_some_and(|order| order != 4) {
            return Err(Error::invalid(
                "refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            ));
        }
        if version < now {
            self.refuse_downgrade(width, size)?;
        }
        if version > now {
            self.upgrade()?;
        }
        if let Some(order) = width {
            self.change_refcount_width(order, control)?;
        }
        self.change_flags(options)?;
        self.change_names(options)?;
        if let Some(size) = size {
            self.change_size(&Resize {
                virtual_size: size,
                shrink: true,
                ..Resize::default()
            })?;
        }
        if version < now {
            self.downgrade(control)?;
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
            // Without a name the data file has to be given at each open.
            let name = (!name.is_empty()).then(|| Extension::DataFile(name.to_owned()));
            let writer = self.settled()?;
            self.change_header(&writer, |s| s.extensions.replace(ExtensionKind::DATA_FILE, name))?;
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
    pub fn settled(&self) -> Result<std::sync::MutexGuard<'_, Writer>> {
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

    fn change_refcount_width(&self, order: u32, control: &Control) -> Result<()> {
        if self.read_shared().header.refcount_order == order {
            return Ok(());
        }
        let mut writer = self.lock_writer()?;
        // A cluster with more users than a refcount can say is what wider ones are for; nothing else is written to such an image.
        self.refuse_untrusted()?;
        self.drop_stale_features(&writer)?;
        self.write_back(&mut writer)?;
        let (counts, too_many_users) = self.count_references(control)?;
        self.write_refcounts(&mut writer, &counts, RefcountWidth::new(order))?;
        self.reload(&mut writer)?;
        if too_many_users > 0 {
            // Copied flags claim those clusters for one user.
            self.repair_image(&mut writer, Repair::All, control)?;
        }
        Ok(())
    }
}
