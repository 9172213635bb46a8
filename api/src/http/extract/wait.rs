use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A time as a query gives it: `30s`, `500ms`, `2m`, or a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(pub Duration);

impl Wait {
    /// Longer waits are cut to this, so that proxies do not cut the connection.
    pub const MAX: Duration = Duration::from_secs(60);
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| serde::de::Error::custom(format!("'{text}' is no time such as 30s, 500ms or 2m")))
    }
}

fn parse(text: &str) -> Option<Wait> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let wait = match unit {
        "ms" => Duration::from_millis(number),
        "s" | "" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        _ => return None,
    };
    Some(Wait(wait.min(Wait::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_cut() {
        let cases = [
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("5", Some(5_000)),
            ("1m", Some(60_000)),
            ("99999999999m", Some(60_000)),
            ("", None),
            ("-1s", None),
            ("1h", None),
            ("99999999999999999999s", None),
        ];
        for (text, expected) in cases {
            assert_eq!(
                parse(text),
                expected.map(|ms| Wait(Duration::from_millis(ms))),
                "{text}"
            );
        }
    }
}
