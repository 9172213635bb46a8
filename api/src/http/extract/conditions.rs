//! `If-Match` and `If-None-Match` (RFC 9110 section 13.1).

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};

use crate::errors::TransportCode;
use crate::http::problem::{Answer, Problem};

/// Under which conditions a request is meant.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// The value of a condition.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// `*`: any version.
    Any,
    /// One of these.
    These(Vec<Tag>),
}

#[derive(Debug, PartialEq, Eq)]
struct Tag {
    weak: bool,
    opaque: String,
}

/// What the conditions say of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing stands against the request.
    GoOn,
    /// The client has this version.
    NotModified,
    /// The client wants another version.
    Failed,
}

impl Conditions {
    /// Reads them.
    ///
    /// # Errors
    /// `malformed_request` for what is no list of entity tags.
    pub fn of(headers: &HeaderMap) -> Answer<Self> {
        Ok(Self {
            if_match: tags(headers, &header::IF_MATCH)?,
            if_none_match: tags(headers, &header::IF_NONE_MATCH)?,
        })
    }

    /// What they say of the version with this strong entity tag, for a GET or HEAD.
    pub fn judge(&self, etag: &str) -> Verdict {
        let strongly = |tag: &Tag| !tag.weak && tag.opaque == etag;
        let weakly = |tag: &Tag| tag.opaque == etag;
        if self.if_match.as_ref().is_some_and(|tags| !tags.any(strongly)) {
            return Verdict::Failed;
        }
        match self.if_none_match.as_ref().is_some_and(|tags| tags.any(weakly)) {
            true => Verdict::NotModified,
            false => Verdict::GoOn,
        }
    }

    /// Whether something that exists, but has no entity tag, fulfils them for a change.
    pub fn allow_change(&self) -> bool {
        self.if_match.as_ref().is_none_or(|tags| *tags == Tags::Any) && self.if_none_match != Some(Tags::Any)
    }
}

impl Tags {
    fn any(&self, same: impl Fn(&Tag) -> bool) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags.iter().any(same),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Conditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        Self::of(&parts.headers)
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Answer<Option<Tags>> {
    let expected = || {
        let detail = format!("{name}: expected '*' or entity tags in double quotes, with commas between them");
        Problem::transport(TransportCode::MalformedRequest, detail).with_field(name.as_str())
    };
    // Lines of the same name are one list (RFC 9110 section 5.3).
    let lines: Vec<_> = headers.get_all(name).iter().map(http::HeaderValue::to_str).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let lines: Vec<_> = lines.into_iter().collect::<Result<_, _>>().map_err(|_| expected())?;
    parse(&lines.join(",")).map(Some).ok_or_else(expected)
}

fn parse(value: &str) -> Option<Tags> {
    if value.trim() == "*" {
        return Some(Tags::Any);
    }
    let (mut tags, mut rest) = (Vec::new(), value);
    loop {
        // A list may have empty elements (RFC 9110 section 5.6.1).
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return Some(Tags::These(tags)).filter(|_| value.contains('"'));
        }
        let (weak, quoted) = match rest.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let (opaque, behind) = quoted.strip_prefix('"')?.split_once('"')?;
        rest = behind.trim_start();
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
        tags.push(Tag {
            weak,
            opaque: opaque.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_entity_tags_are_read_as_rfc_9110_writes_them() {
        let tags = |tags: &[(bool, &str)]| {
            let tag = |(weak, opaque): &(bool, &str)| Tag {
                weak: *weak,
                opaque: (*opaque).to_owned(),
            };
            Some(Tags::These(tags.iter().map(tag).collect()))
        };
        for (value, expected) in [
            ("*", Some(Tags::Any)),
            (" * ", Some(Tags::Any)),
            ("\"a\"", tags(&[(false, "a")])),
            ("W/\"a\", \"b\"", tags(&[(true, "a"), (false, "b")])),
            ("\"a,b\" ,, \"\",", tags(&[(false, "a,b"), (false, "")])),
            ("", None),
            (",", None),
            ("a", None),
            ("\"a", None),
            ("w/\"a\"", None),
            ("\"a\" \"b\"", None),
            ("*, \"a\"", None),
        ] {
            assert_eq!(parse(value), expected, "{value}");
        }
    }

    #[test]
    fn if_match_compares_strongly_and_comes_first() {
        let conditions = |names: &[(HeaderName, &str)]| {
            let headers = names.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            Conditions::of(&headers.collect()).unwrap()
        };
        let (present, absent) = (header::IF_MATCH, header::IF_NONE_MATCH);
        for (names, verdict) in [
            (&[][..], Verdict::GoOn),
            (&[(present.clone(), "\"a\"")], Verdict::GoOn),
            (&[(present.clone(), "W/\"a\"")], Verdict::Failed),
            (&[(absent.clone(), "W/\"a\"")], Verdict::NotModified),
            (&[(absent.clone(), "\"b\"")], Verdict::GoOn),
            (
                &[(present.clone(), "\"b\""), (absent.clone(), "\"a\"")],
                Verdict::Failed,
            ),
            (&[(present.clone(), "*"), (absent.clone(), "*")], Verdict::NotModified),
        ] {
            assert_eq!(conditions(names).judge("a"), verdict, "{names:?}");
        }
    }
}
