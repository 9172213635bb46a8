//! XML from files that strangers made: no entities, no hidden text, bounded in nodes and depth.

use roxmltree::{Document, Node, ParsingOptions};

use crate::{Error, Result};

/// Nodes of a document at most.
const MAX_NODES: u32 = 1 << 20;
/// Elements inside each other at most: the parser calls itself for each.
const MAX_DEPTH: usize = 64;

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
    check_depth(text, what)?;
    let options = ParsingOptions {
        allow_dtd: true,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(text, options)
        .map_err(|e| Error::corrupt(format!("the {what} cannot be parsed")).because(e))
}

/// Counts how deep elements stand in each other, without a parser.
fn check_depth(text: &str, what: &str) -> Result<()> {
    let mut depth = 0usize;
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('<') {
        match bytes.get(at + 1) {
            Some(b'/') => depth = depth.saturating_sub(1),
            Some(b'!' | b'?') => {}
            _ => {
                let end = text.get(at..).and_then(|t| t.find('>')).unwrap_or(1);
                if bytes.get(at + end - 1) != Some(&b'/') {
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
