//! Option lists: `key=value,key=value`, where `,,` stands for a comma inside a value.

use crate::app::Failure;

/// The pairs of an option list in their order. A word without `=` means `on`, or `off` when it starts with `no`; the first one is the
/// value of `first` where that is given.
pub fn parse(text: &str, first: Option<&str>) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        if rest[end..].starts_with('=') {
            let (value, after) = take_value(&rest[end + 1..]);
            pairs.push((rest[..end].to_owned(), value));
            rest = after;
            continue;
        }
        let (word, after) = take_value(rest);
        pairs.push(match first {
            Some(first) if pairs.is_empty() => (first.to_owned(), word),
            _ => flag(&word),
        });
        rest = after;
    }
    pairs
}

fn flag(word: &str) -> (String, String) {
    match word.strip_prefix("no") {
        Some(name) if !name.is_empty() => (name.to_owned(), "off".to_owned()),
        _ => (word.to_owned(), "on".to_owned()),
    }
}

/// A value up to the next single comma, and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some(comma) = rest.find(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(&rest[..comma]);
        rest = &rest[comma + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, rest),
        }
    }
}

/// Puts repeated `-o` lists together.
///
/// # Errors
/// A list that starts or ends with a comma, or is empty: it would run into its neighbours.
pub fn join(lists: &[String]) -> Result<Option<String>, Failure> {
    for list in lists {
        let trailing = list.len() - list.trim_end_matches(',').len();
        if list.is_empty() || list.starts_with(',') || trailing % 2 == 1 {
            return Err(Failure::new(format!("Invalid option list: {list}")));
        }
    }
    Ok((!lists.is_empty()).then(|| lists.join(",")))
}

/// Whether a list asks for help: an element `help` or `?`.
pub fn asks_for_help(list: &str) -> bool {
    let mut rest = list;
    while !rest.is_empty() {
        let (word, after) = take_value(rest);
        if word == "help" || word == "?" {
            return true;
        }
        rest = after;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str, first: Option<&str>) -> Vec<(String, String)> {
        parse(text, first)
    }
    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_doubled_comma_is_part_of_the_value() {
        assert_eq!(
            pairs("a=x,,y,b=,c=1=2", None),
            owned(&[("a", "x,y"), ("b", ""), ("c", "1=2")])
        );
    }

    #[test]
    fn words_without_a_value_are_switches() {
        assert_eq!(
            pairs("snap,readonly,nolock", Some("file")),
            owned(&[("file", "snap"), ("readonly", "on"), ("lock", "off")])
        );
    }

    #[test]
    fn lists_that_would_run_together_are_refused() {
        for bad in ["", ",a", ",,a", ",,", "a,", "a,,,"] {
            assert!(join(&[bad.to_owned()]).is_err(), "{bad}");
        }
        let lists = ["a=1,,".to_owned(), "b=2".to_owned()];
        assert_eq!(join(&lists).unwrap().as_deref(), Some("a=1,,,b=2"));
    }

    #[test]
    fn help_is_an_element_of_its_own() {
        assert!(asks_for_help("a=1,help"));
        assert!(asks_for_help("?"));
        assert!(!asks_for_help("a=help"));
        assert!(!asks_for_help("a=1,,help"));
    }
}
