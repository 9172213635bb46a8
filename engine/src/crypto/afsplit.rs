//! The anti-forensic splitter of LUKS (LUKS1 on-disk format specification, section 2.4): key material is spread over many
//! stripes so that losing any of them loses the key.

use zeroize::Zeroizing;

use super::hash::HashAlgorithm;
use crate::{Error, Result};

/// Puts the stripes together again. `split` holds `stripes` pieces of `split.len() / stripes` bytes.
///
/// # Errors
/// `InvalidArgument` when `split` does not divide into that many pieces.
pub fn af_merge(hash: HashAlgorithm, split: &[u8], stripes: u32) -> Result<Zeroizing<Vec<u8>>> {
    let piece = piece_len(split.len(), stripes)?;
    let mut pieces = split.chunks_exact(piece);
    let last = pieces.next_back().unwrap_or_default();
    let mut sum = chain(hash, pieces, piece);
    xor(&mut sum, last);
    Ok(sum)
}

/// Spreads a key over `stripes` pieces. `random` holds the random bytes of all pieces but the last.
///
/// # Errors
/// `InvalidArgument` when `random` is not `(stripes - 1) * key.len()` bytes.
pub fn af_split(
    hash: HashAlgorithm,
    key: &[u8],
    stripes: u32,
    random: Zeroizing<Vec<u8>>,
) -> Result<Zeroizing<Vec<u8>>> {
    let wanted = (stripes as usize)
        .checked_sub(1)
        .and_then(|pieces| pieces.checked_mul(key.len()));
    if key.is_empty() || wanted != Some(random.len()) {
        return Err(Error::invalid(
            "the anti-forensic splitter needs random bytes for all stripes but one",
        ));
    }
    let mut last = chain(hash, random.chunks_exact(key.len()), key.len());
    xor(&mut last, key);
    // One allocation of the final size: growing would leave copies of the pieces behind.
    let mut split = Zeroizing::new(Vec::with_capacity(random.len() + key.len()));
    split.extend_from_slice(&random);
    split.extend_from_slice(&last);
    Ok(split)
}

fn piece_len(len: usize, stripes: u32) -> Result<usize> {
    let stripes = stripes as usize;
    if stripes == 0 || len == 0 || !len.is_multiple_of(stripes) {
        return Err(Error::invalid(format!(
            "{len} bytes do not divide into {stripes} stripes"
        )));
    }
    Ok(len / stripes)
}

/// d(n) = H(d(n-1) xor s(n)) over all pieces given.
fn chain<'a>(hash: HashAlgorithm, pieces: impl Iterator<Item = &'a [u8]>, len: usize) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; len]);
    for piece in pieces {
        xor(&mut sum, piece);
        diffuse(hash, &mut sum);
    }
    sum
}

/// Replaces each digest-sized part by the hash of its number (big-endian) and itself; the last part may be shorter.
fn diffuse(hash: HashAlgorithm, data: &mut [u8]) {
    for (part, number) in data.chunks_mut(hash.digest_len()).zip(0_u32..) {
        let digest = hash.digest(&[&number.to_be_bytes(), part]);
        part.iter_mut().zip(digest.iter()).for_each(|(to, from)| *to = *from);
    }
}

fn xor(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(a, b)| *a ^= b);
}
