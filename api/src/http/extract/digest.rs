use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};
use vdisk_service::ServiceError;
use vdisk_service::request::Checksum;

use super::range::ContentRange;
use crate::http::problem::Answer;

/// How the digest of a whole file may come: the header, and how its value reads.
const OF_THE_FILE: [(&str, Parse); 3] = [
    ("Repr-Digest", structured),
    ("X-Checksum-Sha256", hexadecimal),
    ("Digest", of_rfc_3230),
];

type Parse = fn(&str) -> Option<[u8; 32]>;

/// The digest of the whole file that an upload announces: `Repr-Digest: sha-256=:BASE64:` (RFC 9530), `Digest: sha-256=BASE64` (RFC 3230), or
/// `X-Checksum-Sha256: HEX` for those who have `sha256sum` at hand. `Content-Digest` (RFC 9530) is that of the body: of the file, when that
/// is all of it.
///
/// # Errors
/// `invalid_argument` for a digest that cannot be read or is not verified here, or two that differ.
pub fn announced_checksum(headers: &HeaderMap, range: ContentRange) -> Answer<Option<Checksum>> {
    refuse_others(headers)?;
    let of_the_body = ("Content-Digest", structured as Parse);
    let mut announced = None;
    for (name, parse) in OF_THE_FILE.into_iter().chain([of_the_body]) {
        let Some(digest) = read(headers, name, parse)? else {
            continue;
        };
        if name == of_the_body.0 && !range.is_whole() {
            let detail = "the digest of a part is not verified; Repr-Digest announces that of the whole file";
            return Err(ServiceError::invalid(name, detail).into());
        }
        if announced.replace(digest).is_some_and(|other| other != digest) {
            return Err(ServiceError::invalid(name, "another header announces another digest").into());
        }
    }
    Ok(announced.map(Checksum::Sha256))
}

/// A digest that nobody looks at would be taken for one that was verified.
fn refuse_others(headers: &HeaderMap) -> Answer<()> {
    let known = |name: &str| OF_THE_FILE.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    let mut names = headers.keys().map(http::HeaderName::as_str);
    let other = names.find(|name| *name == "content-md5" || name.starts_with("x-checksum") && !known(name));
    match other {
        None => Ok(()),
        Some(name) => Err(ServiceError::invalid(name, format!("{name} is not verified; announce the SHA-256")).into()),
    }
}

fn read(headers: &HeaderMap, name: &str, parse: Parse) -> Answer<Option<[u8; 32]>> {
    // Lines of the same name are one list (RFC 9110 section 5.3).
    let lines: Vec<_> = headers.get_all(name).iter().map(HeaderValue::to_str).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let lines: Option<Vec<_>> = lines.into_iter().map(Result::ok).collect();
    let digest = lines.and_then(|lines| parse(&lines.join(",")));
    let unreadable = || ServiceError::invalid(name, format!("{name} does not hold a SHA-256 digest"));
    Ok(Some(digest.ok_or_else(unreadable)?))
}

/// The SHA-256 of a list of digests; those of other algorithms are passed over, and of the same one the last counts.
fn member(value: &str) -> Option<&str> {
    let mut members = value.split(',').filter_map(|member| member.trim().split_once('='));
    let (_, digest) = members.rfind(|(name, _)| name.eq_ignore_ascii_case("sha-256"))?;
    Some(digest.trim())
}

fn structured(value: &str) -> Option<[u8; 32]> {
    decoded(member(value)?.strip_prefix(':')?.strip_suffix(':')?)
}

fn of_rfc_3230(value: &str) -> Option<[u8; 32]> {
    decoded(member(value)?)
}

fn decoded(base64: &str) -> Option<[u8; 32]> {
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

    const PART: ContentRange = ContentRange::Part {
        first: 0,
        length: 10,
        total: Some(20),
    };

    fn announced(pairs: &[(&'static str, String)], range: ContentRange) -> Answer<Option<Checksum>> {
        announced_checksum(&headers(pairs), range)
    }

    #[test]
    fn every_spelling_gives_the_same_digest() {
        let all_of_it = ContentRange::Part {
            first: 0,
            length: 20,
            total: Some(20),
        };
        let hex = announced(&[("x-checksum-sha256", HEX.to_owned())], PART).unwrap();
        assert!(hex.is_some());
        for (name, value) in [
            ("repr-digest", format!("sha-512=:AAAA:, sha-256=:{BASE64}:")),
            ("content-digest", format!("sha-256=:{BASE64}:")),
            ("digest", format!("SHA-256={BASE64},unixsum=30637")),
        ] {
            for range in [ContentRange::Whole, all_of_it] {
                assert_eq!(
                    announced(&[(name, value.clone())], range).unwrap(),
                    hex,
                    "{name} {range:?}"
                );
            }
        }
        let lines = [
            ("digest", "md5=AAAA".to_owned()),
            ("digest", format!("sha-256={BASE64}")),
        ];
        let mut of_lines = HeaderMap::new();
        for (name, value) in lines {
            of_lines.append(name, value.parse().unwrap());
        }
        assert_eq!(announced_checksum(&of_lines, ContentRange::Whole).unwrap(), hex);
        assert_eq!(announced(&[], ContentRange::Whole).unwrap(), None);
    }

    #[test]
    fn digests_that_contradict_or_are_not_verified_are_refused_with_their_header() {
        let other = HEX.replace('e', "0");
        let cases = [
            vec![("x-checksum-sha256", "abc".to_owned())],
            vec![("x-checksum-sha256", HEX.replace('e', "x"))],
            vec![("repr-digest", format!("sha-256={BASE64}"))],
            vec![("repr-digest", "sha-256=:AAAA:".to_owned())],
            vec![("repr-digest", "md5=:AAAA:".to_owned())],
            vec![("content-digest", format!("sha-512=:{BASE64}:"))],
            vec![("content-digest", "sha-256".to_owned())],
            vec![("digest", format!("sha-256=:{BASE64}:"))],
            vec![("digest", "md5=HUXZLQLMuI/KZ5KDcJPcOA==".to_owned())],
            vec![("content-md5", "HUXZLQLMuI/KZ5KDcJPcOA==".to_owned())],
            vec![("x-checksum-sha1", "da39a3ee5e6b4b0d3255bfef95601890afd80709".to_owned())],
            vec![
                ("x-checksum-sha256", other),
                ("repr-digest", format!("sha-256=:{BASE64}:")),
            ],
        ];
        for case in cases {
            let problem = announced(&case, ContentRange::Whole).unwrap_err();
            let field = problem.field.unwrap().to_lowercase();
            assert_eq!((problem.status, &*field), (422, case[0].0), "{case:?}");
        }
        let of_the_part = [("content-digest", format!("sha-256=:{BASE64}:"))];
        let problem = announced(&of_the_part, PART).unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("Content-Digest"));
    }
}
