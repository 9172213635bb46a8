//! Finding the block tables: in the property list (`resource-fork`, `blkx`, `Data`) or in the resource fork.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use roxmltree::Node;

use crate::formats::xml::{self, child, elements};
use crate::{Error, Result};

/// The block tables of a property list.
///
/// # Errors
/// `Corrupt` when it is no property list with block tables.
pub(super) fn tables(xml: &[u8]) -> Result<Vec<Vec<u8>>> {
    let document = xml::parse(xml, "property list")?;
    let root = document.root_element();
    let dict = child(root, "dict").and_then(|d| value(d, "resource-fork"));
    let blkx = dict.and_then(|d| value(d, "blkx"));
    let blkx = blkx.ok_or_else(|| Error::corrupt("the property list has no block tables (resource-fork, blkx)"))?;
    elements(blkx)
        .filter_map(|entry| value(entry, "Data"))
        .map(decode)
        .collect()
}

/// The value of a key in a `dict`.
fn value<'a, 'i>(dict: Node<'a, 'i>, key: &str) -> Option<Node<'a, 'i>> {
    let found = elements(dict).find(|n| n.has_tag_name("key") && n.text() == Some(key))?;
    found.next_sibling_element()
}

fn decode(data: Node<'_, '_>) -> Result<Vec<u8>> {
    let text: Vec<u8> = data
        .text()
        .unwrap_or_default()
        .bytes()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&STANDARD, config)
        .decode(text)
        .map_err(|e| Error::corrupt("a block table of the property list is not base64").because(e))
}

/// The block tables of a resource fork: entries of its data area that begin as tables do.
///
/// # Errors
/// `Corrupt` when lengths lead out of the fork.
pub(super) fn resources(fork: &[u8]) -> Result<Vec<Vec<u8>>> {
    let number = |at: usize| {
        let bytes = fork.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_be_bytes(*bytes)).ok()
    };
    let cut = || Error::corrupt("the resource fork is cut short");
    let start = number(0).ok_or_else(cut)?;
    let len = number(8).ok_or_else(cut)?;
    let end = start.checked_add(len).filter(|e| *e <= fork.len()).ok_or_else(cut)?;
    let mut tables = Vec::new();
    let mut at = start;
    while at < end {
        let len = number(at).ok_or_else(cut)?;
        let from = at.checked_add(4).ok_or_else(cut)?;
        let to = from.checked_add(len).filter(|t| *t <= end).ok_or_else(cut)?;
        let entry = fork.get(from..to).ok_or_else(cut)?;
        if entry.starts_with(b"mish") {
            tables.push(entry.to_vec());
        }
        at = to;
    }
    if tables.is_empty() {
        return Err(Error::corrupt("the resource fork has no block tables"));
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plist(data: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
             \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n<plist version=\"1.0\"><dict><key>resource-fork</key><dict>\
             <key>blkx</key><array><dict><key>Data</key><data>{data}</data></dict></array></dict></dict></plist>"
        )
    }

    #[test]
    fn tables_are_found_and_decoded() {
        assert_eq!(tables(plist("\n\tbWlz\n\taA==\n").as_bytes()).unwrap(), [b"mish"]);
    }

    #[test]
    fn bombs_and_nonsense_are_refused() {
        let deep = format!("{}{}", "<dict>".repeat(100_000), "</dict>".repeat(100_000));
        let laughs = "<!DOCTYPE plist [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;\">]><plist>&b;</plist>";
        for xml in [
            "",
            "<plist/>",
            "<plist><dict><key>resource-fork</key></dict></plist>",
            &deep,
            laughs,
            &plist("!"),
            &plist("<data>aaaa</data>")[..100],
        ] {
            let error = tables(xml.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt, "{error}");
        }
    }

    #[test]
    fn a_resource_fork_stays_inside_its_bounds() {
        let fork = |len: u32, entry: u32| {
            [
                &16u32.to_be_bytes()[..],
                &0u32.to_be_bytes(),
                &len.to_be_bytes(),
                &[0; 4],
                &entry.to_be_bytes(),
                b"mish",
            ]
            .concat()
        };
        assert_eq!(resources(&fork(8, 4)).unwrap(), [b"mish"]);
        for bad in [fork(8, 5), fork(9, 4), fork(u32::MAX, 4), fork(8, u32::MAX), Vec::new()] {
            assert!(resources(&bad).is_err());
        }
    }
}
