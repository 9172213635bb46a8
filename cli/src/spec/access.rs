//! What an image is opened for, and the options that QEMU has for every node.

use vdisk_engine::storage::{CacheMode, LockMode};

use super::Keys;
use crate::app::Failure;

/// What an image is opened for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Access {
    /// It will be changed.
    pub writable: bool,
    /// Its metadata alone is wanted.
    pub inspect: bool,
    /// Others may write meanwhile; take no locks.
    pub force_share: bool,
    /// It is opened to be checked.
    pub check: bool,
    /// Nothing below it is wanted.
    pub no_backing: bool,
    /// The layer at this depth will be changed as well.
    pub base: Option<usize>,
    /// And so will the one over it, which may lie below the top.
    pub over_base: bool,
    /// The guest's data is not wanted: an encrypted image may stay locked.
    pub keyless: bool,
    /// When writes are stable.
    pub cache: CacheMode,
    /// How many nodes, and names in images, this one lies in.
    pub nesting: usize,
}

/// Nodes that may lie in each other. An image that names itself as the file of the layer below would lie in itself without an end.
const MOST_NESTED: usize = 64;

impl Access {
    /// Reading, locked against writers unless `force_share`.
    pub fn read(force_share: bool) -> Self {
        Self {
            force_share,
            ..Self::default()
        }
    }
    /// Reading and writing.
    pub fn write() -> Self {
        Self {
            writable: true,
            ..Self::default()
        }
    }
    /// The same with a cache mode.
    #[must_use]
    pub fn cached(mut self, cache: CacheMode) -> Self {
        self.cache = cache;
        self
    }
    /// The same without what is below.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.no_backing = true;
        self
    }
    /// The same for those who do without the guest's data.
    #[must_use]
    pub fn keyless(mut self) -> Self {
        self.keyless = true;
        self
    }
    /// The same for a node inside of the one at hand.
    ///
    /// # Errors
    /// One that lies in too many.
    pub fn deeper(&self) -> Result<Self, Failure> {
        match self.nesting < MOST_NESTED {
            true => Ok(Self {
                nesting: self.nesting + 1,
                ..*self
            }),
            false => Err(Failure::new(format!(
                "Expected at most {MOST_NESTED} images and files inside of each other, found more: an image may name itself"
            ))),
        }
    }
    /// Whether the layer at a depth below the top will be changed.
    pub fn changes(&self, depth: usize) -> bool {
        self.base
            .is_some_and(|base| base == depth || self.over_base && base == depth + 1)
    }
    /// The lock that fits.
    pub fn lock(&self) -> LockMode {
        match self {
            Self { force_share: true, .. } => LockMode::None,
            Self { writable: true, .. } => LockMode::Write,
            Self { inspect: true, .. } => LockMode::Inspect,
            _ => LockMode::Read,
        }
    }
    /// The same after the options that QEMU has for every node.
    pub fn refined(self, keys: &mut Keys) -> Result<Self, Failure> {
        let mut access = self;
        if let Some(share) = keys.take_flag("force-share")? {
            access.force_share |= share;
        }
        if keys.take_flag("read-only")? == Some(true) {
            access.writable = false;
        }
        // A writable open of a read-only file fails all the same; a node name has no meaning without a monitor.
        keys.take_flag("auto-read-only")?;
        keys.take("node-name");
        if let Some(mode) = keys
            .take("discard")
            .filter(|m| !["ignore", "unmap", "off", "on"].contains(&m.as_str()))
        {
            return Err(Failure::new(format!("Invalid discard option '{mode}'")));
        }
        if let Some(mode) = keys.take("detect-zeroes").filter(|m| m != "off") {
            return Err(Failure::new(format!("detect-zeroes={mode} is not supported")));
        }
        let direct = keys.take_flag("cache.direct")?;
        if keys.take_flag("cache.no-flush")? == Some(true) {
            access.cache = CacheMode::Unsafe;
        }
        if let Some(direct) = direct {
            access.cache = access.cache.with_direct(direct);
        }
        if access.force_share && access.writable {
            return Err(Failure::new("force-share=on can only be used with read-only images"));
        }
        Ok(access)
    }
}
