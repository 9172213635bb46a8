//! The bytes of a LUKS1 header (LUKS On-Disk Format Specification 1.2.3, figures 1 and 2). All numbers are big-endian.

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::big_endian::{U16, U32},
};

/// `LUKS` and two bytes that no text has.
pub(crate) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// Key slots of every header.
pub(crate) const SLOTS: usize = 8;
/// Stripes of the anti-forensic splitter; the specification's constant, the only value QEMU takes.
pub(crate) const STRIPES: u32 = 4000;
/// State of a slot that holds a key.
pub(crate) const ACTIVE: u32 = 0x00ac_71f3;
/// State of an empty slot.
pub(crate) const INACTIVE: u32 = 0x0000_dead;
/// Offsets in the header count sectors of 512 bytes.
pub(crate) const SECTOR: u64 = 512;

/// The header as it stands at offset 0.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawHeader {
    /// [`MAGIC`].
    pub magic: [u8; 6],
    /// 1.
    pub version: U16,
    /// Cipher, such as `aes`; ends with a NUL, which the specification leaves open and QEMU demands.
    pub cipher_name: [u8; 32],
    /// Mode and IV generator, such as `cbc-essiv:sha256`; ends with a NUL.
    pub cipher_mode: [u8; 32],
    /// Hash of PBKDF2 and of the anti-forensic splitter; ends with a NUL.
    pub hash_spec: [u8; 32],
    /// First sector of the encrypted data; 0 when the header is detached.
    pub payload_offset: U32,
    /// Bytes of the volume key.
    pub key_bytes: U32,
    /// PBKDF2 of the volume key, to tell a right one.
    pub key_digest: [u8; 20],
    /// Salt of that.
    pub key_digest_salt: [u8; 32],
    /// Iterations of that; 0 makes no sense.
    pub key_digest_iterations: U32,
    /// Text of a UUID with a NUL.
    pub uuid: [u8; 40],
    /// The key slots.
    pub slots: [RawSlot; SLOTS],
}

/// A key slot as it stands in the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawSlot {
    /// [`ACTIVE`] or [`INACTIVE`].
    pub state: U32,
    /// PBKDF2 iterations of the passphrase; not 0 in an active slot.
    pub iterations: U32,
    /// Salt of that.
    pub salt: [u8; 32],
    /// First sector of the key material, which lies behind the header and before the payload.
    pub key_offset: U32,
    /// [`STRIPES`].
    pub stripes: U32,
}

const _: () = assert!(size_of::<RawHeader>() == 592 && size_of::<RawSlot>() == 48);

impl RawHeader {
    /// All zero.
    pub(crate) fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

/// The text of a field up to its NUL; `None` without a NUL, and for bytes that are not printable ASCII.
pub(crate) fn text_of(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0)?;
    let text = field.get(..end)?;
    let printable = text.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    printable.then(|| std::str::from_utf8(text).ok())?
}

/// A field with a text and NULs behind it; `None` when the text leaves no room for one.
pub(crate) fn field_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut field = [0; N];
    field
        .get_mut(..N.checked_sub(1)?)?
        .get_mut(..text.len())?
        .copy_from_slice(text.as_bytes());
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_need_their_nul_and_printable_bytes() {
        assert_eq!(text_of(b"aes\0junk"), Some("aes"));
        assert_eq!(text_of(b"aes"), None);
        assert_eq!(text_of(b"a\x1b[0m\0"), None);
        assert_eq!(text_of("ä\0".as_bytes()), None);
        assert_eq!(field_of::<4>("aes"), Some(*b"aes\0"));
        assert_eq!(field_of::<4>("aes2"), None);
    }
}
