//! Bounds that travel with every open.

/// What an image may cost at most. A number from a file is compared with these before anything is sized by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Layers of a backing chain, the top included.
    pub chain_depth: usize,
    /// Bytes of one metadata table held in memory (L1, refcount table, BAT, snapshot table).
    pub table_bytes: u64,
    /// Bytes of the bits of all dirty bitmaps held in memory at once. The bits of 64 TiB in units of 64 KiB have 128 MiB.
    pub bitmap_bytes: u64,
    /// Largest virtual size in bytes.
    pub virtual_size: u64,
    /// Memory for cached metadata per image, in bytes.
    pub cache_bytes: u64,
    /// Bytes that one compressed unit (cluster, grain, chunk) may inflate to.
    pub decompressed_bytes: u64,
    /// Iterations of a password-based key derivation.
    pub kdf_iterations: u64,
    /// Memory of a memory-hard key derivation, in bytes.
    pub kdf_memory: u64,
    /// What one passphrase may cost on all key slots of an image together, in derivations of the greatest cost that the two bounds above allow.
    /// All slots of a LUKS1 header with their digests are 16.
    pub kdf_derivations: u32,
    /// Files one image may consist of (VMDK extents, bundle parts).
    pub files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            chain_depth: 200,
            table_bytes: 256 << 20,
            bitmap_bytes: 1 << 30,
            virtual_size: i64::MAX as u64 & !511,
            cache_bytes: 32 << 20,
            decompressed_bytes: 64 << 20,
            kdf_iterations: 12_000_000,
            kdf_memory: 1 << 30,
            kdf_derivations: 16,
            files: 1024,
        }
    }
}

impl Limits {
    /// For images from strangers: shallow chains, small tables, cheap keys.
    pub fn untrusted() -> Self {
        Self {
            chain_depth: 64,
            table_bytes: 64 << 20,
            bitmap_bytes: 256 << 20,
            virtual_size: 64 << 40,
            ..Self::default()
        }
    }
}
