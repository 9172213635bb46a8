//! Sizes and numbers on the command line, and sizes for people.

use crate::app::Failure;

/// Why a text is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotANumber {
    /// It has another form.
    Syntax,
    /// It has the form but does not fit in 64 bits without a sign.
    Range,
}

/// Bytes from a text such as `512`, ` 64k`, `1.5G`, `.5k` or `0x1000`; suffixes are powers of 1024.
pub fn parse(text: &str) -> Result<u64, NotANumber> {
    let text = text.trim_start_matches([' ', '\t', '\n']);
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(rest) = text.strip_prefix('-') {
        return match parse(rest) {
            Ok(0) => Ok(0),
            Err(NotANumber::Syntax) => Err(NotANumber::Syntax),
            _ => Err(NotANumber::Range),
        };
    }
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return radix(hex, 16);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(end);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        None => ("", rest),
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(NotANumber::Syntax);
    }
    let shift = suffix_shift(suffix).ok_or(NotANumber::Syntax)?;
    scaled(whole, fraction, shift)
}

fn suffix_shift(suffix: &str) -> Option<u32> {
    Some(match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    })
}

fn scaled(whole: &str, fraction: &str, shift: u32) -> Result<u64, NotANumber> {
    let whole = match whole {
        "" => 0,
        digits => radix(digits, 10)?,
    };
    let base = whole.checked_mul(1 << shift).ok_or(NotANumber::Range)?;
    let digits = fraction.trim_end_matches('0');
    if digits.is_empty() {
        return Ok(base);
    }
    if shift == 0 {
        return Err(NotANumber::Syntax);
    }
    let part: f64 = format!("0.{digits}").parse().map_err(|_| NotANumber::Syntax)?;
    let part = (part * (1u64 << shift) as f64 + 0.5) as u64;
    base.checked_add(part).ok_or(NotANumber::Range)
}

fn radix(digits: &str, radix: u32) -> Result<u64, NotANumber> {
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(NotANumber::Syntax);
    }
    u64::from_str_radix(digits, radix).map_err(|_| NotANumber::Range)
}

/// A size option between `min` and `max`; `what` names it in the message.
pub fn size_between(what: &str, text: &str, min: u64, max: u64) -> Result<u64, Failure> {
    checked(what, text, parse(text), min, max)
}

/// A size option below 2^63.
pub fn size(what: &str, text: &str) -> Result<u64, Failure> {
    size_between(what, text, 0, i64::MAX as u64)
}

/// A plain number between `min` and `max`.
pub fn number_between(what: &str, text: &str, min: u64, max: u64) -> Result<u64, Failure> {
    let digits = text.trim_start_matches([' ', '\t', '\n']);
    let (digits, negative) = match digits.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (digits.strip_prefix('+').unwrap_or(digits), false),
    };
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => radix(hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => radix(&digits[1..], 8),
        None => radix(digits, 10),
    };
    let value = match value {
        Ok(n) if negative && n > 0 => Err(NotANumber::Range),
        other => other,
    };
    checked(what, text, value, min, max)
}

fn checked(what: &str, text: &str, value: Result<u64, NotANumber>, min: u64, max: u64) -> Result<u64, Failure> {
    match value {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        Err(NotANumber::Syntax) => Err(Failure::new(format!("Invalid {what} specified: '{text}'."))),
        _ => Err(Failure::new(format!(
            "Invalid {what} specified. Must be between {min} and {max}."
        ))),
    }
}

/// `4 KiB`, `1.5 GiB`, `512 B`: three significant digits.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut unit = 0;
    let mut value = bytes as f64;
    // From 1000 of a unit on the next one is used, so that three digits are enough.
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}B", three_digits(value), UNITS[unit])
}

/// The number as C's `%0.3g` prints it, for values from 0 to below 1000.
fn three_digits(value: f64) -> String {
    if value >= 999.5 {
        return "1e+03".to_owned();
    }
    let text = if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else if value >= 1.0 || value == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    };
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What `qemu-img create -f raw FILE TEXT` made of these.
    #[test]
    fn sizes_are_read_as_qemu_img_reads_them() {
        for (text, bytes) in [
            ("1.0", 1),
            ("1.5k", 1536),
            (".5k", 512),
            ("5.", 5),
            ("0x1000", 4096),
            (" 512", 512),
            ("+512", 512),
            ("1.k", 1024),
            ("512b", 512),
            ("0.1M", 104_858),
            ("1.0000000001k", 1024),
            ("010", 10),
            ("7.9999E", 9_223_256_744_704_315_136),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["1.5", "0x10k", "1e3", "1KiB", "512 ", "", "1kb", "0x", "k"] {
            assert_eq!(parse(text), Err(NotANumber::Syntax), "{text}");
        }
        for text in ["16E", "18446744073709551616", "-5"] {
            assert_eq!(parse(text), Err(NotANumber::Range), "{text}");
        }
    }

    // What `qemu-img info` prints for files of these sizes.
    #[test]
    fn sizes_are_printed_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1 << 20, "1 MiB"),
            (3 << 29, "1.5 GiB"),
            (200_704, "196 KiB"),
            (197_120, "192 KiB"),
            (786_944, "768 KiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
