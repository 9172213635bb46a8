//! Disk image formats, backing chains and the operations on them.
