//! XML from files that strangers made: no entities, no hidden text, bounded in nodes and depth.

use roxmltree::{Document, Node, ParsingOptions};

use crate::{Error, Result};

/// Nodes of a document at most.
const MAX_NODES: u32 = 1 << 20;
/// Elements inside each other at most.
const MAX_DEPTH: usize = 64;
/// Bytes of a tag at most.
const MAX_TAG: usize = 1024;

/// Parses a document. `what` names it in messages; NULs at its end are padding.
///
/// # Errors
/// `Corrupt` when it is not UTF-8, declares entities, hides text in CDATA, is nested too deep or cannot be parsed.
pub(super) fn parse<'a>(xml: &'a [u8], what: &str) -> Result<Document<'a>> {
    let end = xml.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
    let text = std::str::from_utf8(xml.get(..end).unwrap_or_default())
        .map_err(|_| Error::corrupt(format!("the {what} is not UTF-8")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.contains("<!ENTITY") || text.contains("<![CDATA[") {
        return Err(Error::corrupt(format!("the {what} declares entities or hides text")));
    }
    check_tags(text, what)?;
    let options = ParsingOptions {
        allow_dtd: true,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(text, options)
        // The parser quotes what it found, whatever that is.
        .map_err(|e| Error::corrupt(format!("the {what} cannot be parsed: {}", e.to_string().escape_debug())))
}

/// Counts how deep elements stand in each other, and refuses long tags: the parser compares each attribute with all before it.
fn check_tags(text: &str, what: &str) -> Result<()> {
    let mut depth = 0usize;
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('<') {
        match bytes.get(at + 1) {
            Some(b'/') => depth = depth.saturating_sub(1),
            Some(b'!' | b'?') => {}
            _ => {
                let tag = bytes.get(at..).unwrap_or_default();
                let end = tag.iter().take(MAX_TAG).position(|b| *b == b'>').ok_or_else(|| {
                    Error::corrupt(format!("the {what} has a tag of more than {MAX_TAG} bytes at {at:#x}"))
                })?;
                if tag.get(end - 1) != Some(&b'/') {
                    depth += 1;
                }
            }
        }
        if depth > MAX_DEPTH {
            return Err(Error::corrupt(format!("the {what} is nested deeper than {MAX_DEPTH}")));
        }
    }
    Ok(())
}

/// The elements directly inside a node.
pub(super) fn elements<'a, 'i>(node: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(Node::is_element)
}

/// The first element of this name directly inside a node.
pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    elements(node).find(|n| n.has_tag_name(name))
}
