//! How files and block devices of the host are opened.

use rustix::fs::OFlags;

use super::LockMode;

/// When written data is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// After a flush (QEMU's `writeback`).
    #[default]
    Writeback,
    /// After each write (QEMU's `writethrough`).
    Writethrough,
    /// Whenever the host pleases: flush does nothing (QEMU's `unsafe`). For data that can be made again.
    Unsafe,
    /// After a flush, past the page cache (QEMU's `none`).
    None,
    /// After each write, past the page cache (QEMU's `directsync`).
    Directsync,
}

impl CacheMode {
    /// The mode of QEMU's name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "writeback" => Self::Writeback,
            "writethrough" => Self::Writethrough,
            "unsafe" => Self::Unsafe,
            "none" | "off" => Self::None,
            "directsync" => Self::Directsync,
            _ => return None,
        })
    }
    /// Whether the page cache is passed by.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }
    /// The same with or without the page cache.
    #[must_use]
    pub fn with_direct(self, direct: bool) -> Self {
        match (self, direct) {
            (Self::Writeback, true) => Self::None,
            (Self::Writethrough, true) => Self::Directsync,
            (Self::None, false) => Self::Writeback,
            (Self::Directsync, false) => Self::Writethrough,
            (mode, _) => mode,
        }
    }
    fn is_synchronous(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }
}

/// How to open a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileOptions {
    /// For writing as well.
    pub writable: bool,
    /// Which of QEMU's image locks to take.
    pub lock: LockMode,
    /// When writes are stable.
    pub cache: CacheMode,
    /// Whether a block or character device is welcome; other special files never are.
    pub devices: bool,
}

impl FileOptions {
    /// Read, with a read lock.
    pub fn read() -> Self {
        Self::default()
    }
    /// Read and write, with a write lock.
    pub fn write() -> Self {
        Self {
            writable: true,
            lock: LockMode::Write,
            ..Self::default()
        }
    }
    /// Flags of `open(2)`, but those for reading and writing.
    pub(super) fn open_flags(self) -> i32 {
        let mut flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        if self.cache.is_synchronous() {
            flags |= OFlags::DSYNC;
        }
        if self.cache.is_direct() {
            flags |= OFlags::DIRECT;
        }
        flags.bits() as i32
    }
}
