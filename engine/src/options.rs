//! Create and open options: `name=value` pairs checked against a driver's table.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// What values an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// A number of bytes, with an optional suffix (`k`, `M`, `G`, `T`, `P`, `E`; powers of 1024).
    Size,
    /// An unsigned number.
    Number,
    /// `on`/`off`, `yes`/`no`, `true`/`false`, `y`/`n`.
    Bool,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
}

/// One option of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// The name, as in qemu-img where qemu-img has it.
    pub name: &'static str,
    /// What it takes.
    pub kind: OptionKind,
    /// The value used when it is not given; `None` where that depends on other things.
    pub default: Option<&'static str>,
    /// One line for people.
    pub help: &'static str,
}

/// Options with values, not yet or already checked against a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// None at all.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds or replaces one.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }
    /// Adds or replaces one.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }
    /// Removes one and returns it.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }
    /// The value as given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// All pairs by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
    /// The pairs below `prefix.`, with the prefix cut off.
    #[must_use]
    pub fn below(&self, prefix: &str) -> Self {
        let cut = |k: &String| k.strip_prefix(prefix)?.strip_prefix('.').map(str::to_owned);
        Self(self.0.iter().filter_map(|(k, v)| Some((cut(k)?, v.clone()))).collect())
    }

    /// Checks every name and value against `table`.
    ///
    /// # Errors
    /// `InvalidArgument` that names the option, what it takes and what was given.
    pub fn check(&self, table: &[OptionSpec], format: &str) -> Result<()> {
        for (name, value) in self.iter() {
            let Some(spec) = table.iter().find(|s| s.name == name) else {
                return Err(Error::invalid(format!("format '{format}' has no option '{name}'")));
            };
            match spec.kind {
                OptionKind::Size => self.size(name).map(|_| ())?,
                OptionKind::Number => self.number(name).map(|_| ())?,
                OptionKind::Bool => self.flag(name).map(|_| ())?,
                OptionKind::Choice(words) if !words.contains(&value) => {
                    return Err(Error::invalid(format!(
                        "option '{name}' takes one of {}, not '{value}'",
                        words.join(", ")
                    )));
                }
                OptionKind::Choice(_) | OptionKind::Text => {}
            }
        }
        Ok(())
    }

    /// A size option in bytes.
    pub fn size(&self, name: &str) -> Result<Option<u64>> {
        self.get(name)
            .map(|v| parse_size(v).ok_or_else(|| Error::invalid(format!("option '{name}' takes a size, not '{v}'"))))
            .transpose()
    }
    /// A number option.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        let number = |v: &str| match v.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => v.parse().ok(),
        };
        self.get(name)
            .map(|v| number(v).ok_or_else(|| Error::invalid(format!("option '{name}' takes a number, not '{v}'"))))
            .transpose()
    }
    /// A yes/no option.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.get(name)
            .map(|v| match v {
                "on" | "yes" | "true" | "y" => Ok(true),
                "off" | "no" | "false" | "n" => Ok(false),
                _ => Err(Error::invalid(format!("option '{name}' takes on or off, not '{v}'"))),
            })
            .transpose()
    }
}

/// Bytes from text such as `512`, `64k`, `1.5G`, `0x1000`; powers of 1024. `None` for anything else.
pub fn parse_size(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    let Some((whole, fraction)) = number.split_once('.') else {
        return number.parse::<u64>().ok()?.checked_mul(1 << shift);
    };
    if shift == 0 || fraction.is_empty() || fraction.len() > 18 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let scaled = u128::from(fraction.parse::<u64>().ok()?) << shift;
    let part = scaled / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1 << shift)?
        .checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes_and_fractions() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64k", Some(65536)),
            ("1.5G", Some(3 << 29)),
            ("0x200", Some(512)),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
        for text in ["", "k", "1.G", "1.5", "-1", "1kk", "16E", "99999999999999999999"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn an_unknown_option_is_named() {
        let error = Options::new().with("colour", "red").check(&[], "raw").unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
    }
}
