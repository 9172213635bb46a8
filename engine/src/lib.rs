//! Disk image formats, backing chains and the operations on them.

pub mod crypto;
