use super::Service;
use crate::model::FormatInfo;

impl Service {
    /// The format drivers, in the engine's order.
    pub fn formats(&self) -> Vec<FormatInfo> {
        Vec::new()
    }
}
