//! Text as qemu-img reads and prints it.

pub mod date;
pub mod qdict;
pub mod size;
pub mod table;
