//! Reading columns and turning numbers over: the database knows 64-bit signed integers and text.

use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::error::{Result, ServiceError};

/// Columns by name, as what the service calls them. A value that does not fit is a broken database.
pub trait Columns {
    fn text(&self, column: &str) -> Result<String>;
    fn text_or_null(&self, column: &str) -> Result<Option<String>>;
    fn number(&self, column: &str) -> Result<i64>;
    fn number_or_null(&self, column: &str) -> Result<Option<i64>>;

    fn size(&self, column: &str) -> Result<u64> {
        u64::try_from(self.number(column)?).map_err(|_| broken(column))
    }

    fn size_or_null(&self, column: &str) -> Result<Option<u64>> {
        self.number_or_null(column)?
            .map(|value| u64::try_from(value).map_err(|_| broken(column)))
            .transpose()
    }

    fn flag(&self, column: &str) -> Result<bool> {
        Ok(self.number(column)? != 0)
    }

    fn time(&self, column: &str) -> Result<Timestamp> {
        self.number(column).map(Timestamp)
    }

    fn time_or_null(&self, column: &str) -> Result<Option<Timestamp>> {
        Ok(self.number_or_null(column)?.map(Timestamp))
    }

    fn id(&self, column: &str) -> Result<Uuid> {
        self.text(column)?.parse().map_err(|_| broken(column))
    }

    fn id_or_null(&self, column: &str) -> Result<Option<Uuid>> {
        self.text_or_null(column)?
            .map(|text| text.parse().map_err(|_| broken(column)))
            .transpose()
    }

    fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T> {
        serde_json::from_str(&self.text(column)?).map_err(|_| broken(column))
    }

    fn json_or_null<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>> {
        self.text_or_null(column)?
            .map(|text| serde_json::from_str(&text).map_err(|_| broken(column)))
            .transpose()
    }
}

impl Columns for AnyRow {
    fn text(&self, column: &str) -> Result<String> {
        Ok(self.try_get(column)?)
    }

    fn text_or_null(&self, column: &str) -> Result<Option<String>> {
        Ok(self.try_get(column)?)
    }

    fn number(&self, column: &str) -> Result<i64> {
        Ok(self.try_get(column)?)
    }

    fn number_or_null(&self, column: &str) -> Result<Option<i64>> {
        Ok(self.try_get(column)?)
    }
}

fn broken(column: &str) -> ServiceError {
    ServiceError::internal(format!("database: column {column} holds a value that does not fit"))
}

/// A size as the database stores it.
pub fn stored(value: u64) -> Result<i64> {
    stored_field("size", value)
}

/// An optional number as the database stores it; `field` is what clients call it.
pub fn stored_or_null(field: &str, value: Option<u64>) -> Result<Option<i64>> {
    value.map(|value| stored_field(field, value)).transpose()
}

fn stored_field(field: &str, value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| ServiceError::invalid(field, format!("{value} is too large; at most 2^63-1")))
}

/// A value as JSON text.
pub fn json_text(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(ServiceError::internal)
}
