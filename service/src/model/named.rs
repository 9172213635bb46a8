//! Reading enums by the names of their variants.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};

/// Reads one of these by the name that each has.
pub struct Named<T: 'static>(pub &'static [T], pub fn(T) -> &'static str);

impl<T: Copy> Visitor<'_> for Named<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().copied().map(self.1).collect();
        write!(f, "one of `{}`", names.join("`, `"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        let found = self.0.iter().copied().find(|value| (self.1)(*value) == text);
        found.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::model::Role;

    #[test]
    fn what_is_no_name_is_told_the_names() {
        assert_eq!(serde_json::from_value::<Role>(json!("reader")).unwrap(), Role::Reader);
        for (value, found) in [(json!("king"), "string \"king\""), (json!(5), "integer `5`")] {
            let told = serde_json::from_value::<Role>(value).unwrap_err().to_string();
            assert!(
                told.contains(found) && told.ends_with("expected one of `reader`, `operator`, `admin`"),
                "{told}"
            );
        }
    }
}
