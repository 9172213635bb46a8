use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use vdisk_service::ServiceError;
use vdisk_service::request::Checksum;

use crate::http::problem::Answer;

/// The digest of the whole file that an upload announces: `Repr-Digest: sha-256=:BASE64:` (RFC 9530), or
/// `X-Checksum-Sha256: HEX` for those who have `sha256sum` at hand.
///
/// # Errors
/// `invalid_argument` for a digest that cannot be read, or two that differ.
pub fn announced_checksum(headers: &HeaderMap) -> Answer<Option<Checksum>> {
    let standard = read(headers, "repr-digest", structured)?;
    let hex = read(headers, "x-checksum-sha256", hexadecimal)?;
    match (standard, hex) {
        (Some(one), Some(other)) if one != other => {
            Err(ServiceError::invalid("X-Checksum-Sha256", "Repr-Digest announces another digest").into())
        }
        (one, other) => Ok(one.or(other).map(Checksum::Sha256)),
    }
}

fn read(headers: &HeaderMap, name: &str, parse: fn(&str) -> Option<[u8; 32]>) -> Answer<Option<[u8; 32]>> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let digest = value.to_str().ok().and_then(parse);
    let unreadable = || ServiceError::invalid(name, format!("{name} does not hold a SHA-256 digest"));
    Ok(Some(digest.ok_or_else(unreadable)?))
}

/// A dictionary of digests; those of other algorithms are passed over.
fn structured(value: &str) -> Option<[u8; 32]> {
    let members = value.split(',').filter_map(|member| member.trim().split_once('='));
    let (_, digest) = members
        .into_iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("sha-256"))?;
    let base64 = digest.trim().strip_prefix(':')?.strip_suffix(':')?;
    STANDARD.decode(base64).ok()?.try_into().ok()
}

fn hexadecimal(value: &str) -> Option<[u8; 32]> {
    let text = value.trim();
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of nothing, from FIPS 180-4's test vectors.
    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const BASE64: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    fn headers(pairs: &[(&'static str, String)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn both_spellings_give_the_same_digest() {
        let standard = headers(&[("repr-digest", format!("sha-512=:AAAA:, sha-256=:{BASE64}:"))]);
        let hex = headers(&[("x-checksum-sha256", HEX.to_owned())]);
        assert!(announced_checksum(&hex).unwrap().is_some());
        assert_eq!(
            announced_checksum(&standard).unwrap(),
            announced_checksum(&hex).unwrap()
        );
    }

    #[test]
    fn unreadable_or_contradicting_digests_are_refused() {
        let other = HEX.replace('e', "0");
        let cases = [
            vec![("x-checksum-sha256", "abc".to_owned())],
            vec![("x-checksum-sha256", HEX.replace('e', "x"))],
            vec![("repr-digest", format!("sha-256={BASE64}"))],
            vec![("repr-digest", "sha-256=:AAAA:".to_owned())],
            vec![
                ("repr-digest", format!("sha-256=:{BASE64}:")),
                ("x-checksum-sha256", other),
            ],
        ];
        for case in cases {
            assert_eq!(announced_checksum(&headers(&case)).unwrap_err().status, 422, "{case:?}");
        }
    }
}
