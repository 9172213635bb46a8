//! What a conversion refuses before it copies.

use vdisk_engine::formats::FormatDriver;
use vdisk_engine::options::Options;

use super::job::Job;
use super::opened::Sources;
use crate::app::Failure;
use crate::spec::OpenImage;
use crate::verbs::target;

impl Job<'_> {
    pub fn check_bitmaps(&self, sources: &Sources) -> Result<(), Failure> {
        if !self.args.bitmaps {
            return Ok(());
        }
        if sources.images.len() != 1 {
            return Err(Failure::new("Copying bitmaps only possible with single source"));
        }
        let Some(bitmaps) = sources.bitmaps().filter(|b| b.possible()) else {
            return Err(Failure::new("Source lacks bitmap support"));
        };
        let driver = crate::verbs::driver(self.target_format)?;
        if !driver.capabilities().bitmaps {
            return Err(no_bitmaps(driver.name()));
        }
        if !self.args.skip_broken_bitmaps {
            target::refuse_broken_bitmaps(bitmaps)?;
        }
        Ok(())
    }

    pub fn check_compression(&self, driver: &dyn FormatDriver, given: &Options) -> Result<(), Failure> {
        if !self.args.compress {
            return Ok(());
        }
        if !driver.capabilities().compress {
            return Err(Failure::new("Compression not supported for this file format"));
        }
        if given.get("encrypt.format").is_some() || matches!(given.flag("encryption"), Ok(Some(true))) {
            return Err(Failure::new(
                "Compression and encryption not supported at the same time",
            ));
        }
        if given.get("data_file").is_some() {
            return Err(Failure::new(
                "Compression and an external data file not supported at the same time",
            ));
        }
        if given.get("preallocation").is_some_and(|p| p != "off") {
            return Err(Failure::new(
                "Compression and preallocation not supported at the same time",
            ));
        }
        Ok(())
    }

    pub fn check_target(&self, target: &OpenImage, sources: &Sources) -> Result<(), Failure> {
        let driver = crate::verbs::driver(target.chain.top().format())?;
        self.check_compression(driver, &Options::new())?;
        // Subformats that are a plain run of bytes have no units to compress.
        if self.args.compress && target.chain.top().info()?.cluster_size.is_none() {
            return Err(Failure::new("Compression not supported for this file format"));
        }
        if target.chain.virtual_size() < sources.len() {
            return Err(Failure::new("output file is smaller than input file"));
        }
        if self.args.bitmaps {
            // An old version of the format has none.
            if target.chain.top().bitmaps().is_none_or(|b| !b.possible()) {
                return Err(no_bitmaps(driver.name()));
            }
            refuse_unfit_bitmaps(sources, target)?;
        }
        Ok(())
    }
}

fn no_bitmaps(format: &str) -> Failure {
    Failure::new(format!("Format driver '{format}' does not support bitmaps"))
}

/// Refuses a target of another size than the bitmaps of the source are for, before anything is written to it.
fn refuse_unfit_bitmaps(sources: &Sources, target: &OpenImage) -> Result<(), Failure> {
    let list = sources.bitmaps().map_or(Ok(Vec::new()), |bitmaps| bitmaps.list())?;
    let size = sources
        .active
        .as_ref()
        .map_or(sources.len(), |active| active.virtual_size());
    match list.iter().find(|b| !b.in_use) {
        None => Ok(()),
        Some(bitmap) => target::refuse_other_size(target.chain.virtual_size(), size)
            .map_err(|f| f.context(format!("Failed to populate bitmap {}", bitmap.name))),
    }
}
