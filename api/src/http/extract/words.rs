//! What serde says, without the names of Rust's types.

const WORDS: &[(&str, &str)] = &[
    ("a nonzero u32", "a whole number from 1 to 4294967295"),
    ("u32", "a whole number from 0 to 4294967295"),
    ("u64", "a whole number from 0 to 18446744073709551615"),
    ("i32", "a whole number of 32 bits"),
    ("i64", "a whole number of 64 bits"),
    ("map with a single key", "an object with exactly one field"),
    ("string or map", "an object with exactly one field"),
];

/// The message with what was expected in words that users of any language know, and without what was found: it may be a secret.
pub(super) fn plain(message: &str) -> String {
    let message = &without_value(message);
    let Some((found, expected)) = message.split_once("expected ") else {
        return message.to_owned();
    };
    let is_whole = |rest: &&str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let known = WORDS.iter().find_map(|(name, words)| {
        let rest = expected.strip_prefix(name).filter(is_whole)?;
        Some(format!("{found}expected {words}{rest}"))
    });
    let object = || {
        let rest = expected.strip_prefix("struct ")?;
        let rest = rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        Some(format!("{found}expected an object{rest}"))
    };
    known.or_else(object).unwrap_or_else(|| message.to_owned())
}

/// What serde says of a value of another type, without the value.
pub(crate) fn without_value(message: &str) -> String {
    let told = message
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.rsplit_once(", expected "));
    match told {
        Some((found, expected)) => {
            let kind = found.split(['`', '"']).next().unwrap_or(found).trim_end();
            format!("invalid type: {kind}, expected {expected}")
        }
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_value_of_another_type_is_not_repeated() {
        for (serde, ours) in [
            (
                "invalid type: integer `4711331`, expected a string",
                "invalid type: integer, expected a string",
            ),
            (
                "invalid type: floating point `4.5`, expected a string",
                "invalid type: floating point, expected a string",
            ),
            (
                "invalid type: string \"a, expected `b\\\"\", expected a boolean",
                "invalid type: string, expected a boolean",
            ),
            (
                "invalid type: null, expected a string",
                "invalid type: null, expected a string",
            ),
            (
                "invalid type: map, expected a string at line 1 column 2",
                "invalid type: map, expected a string at line 1 column 2",
            ),
        ] {
            assert_eq!(plain(serde), ours);
        }
    }

    #[test]
    fn types_have_plain_names() {
        for (serde, ours) in [
            (
                "invalid value: integer `0`, expected a nonzero u32",
                "invalid value: integer `0`, expected a whole number from 1 to 4294967295",
            ),
            (
                "invalid value: integer `-5`, expected u64 at line 1 column 46",
                "invalid value: integer `-5`, expected a whole number from 0 to 18446744073709551615 at line 1 column 46",
            ),
            (
                "invalid type: string \"x\", expected struct CreateImage",
                "invalid type: string, expected an object",
            ),
            (
                "invalid type: boolean `true`, expected string or map",
                "invalid type: boolean, expected an object with exactly one field",
            ),
            ("missing field `name`", "missing field `name`"),
            ("expected a string", "expected a string"),
        ] {
            assert_eq!(plain(serde), ours);
        }
    }
}
