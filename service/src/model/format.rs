use serde::Serialize;
use utoipa::ToSchema;

use super::text_enum;

/// A format driver: what it is called, what it can do, which options an image of it can be created with.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FormatInfo {
    /// Name as requests give it (`qcow2`).
    pub name: String,
    /// One line on what it is.
    pub description: String,
    /// Abilities by name (`create`, `write`, `backing`, `compress`, `snapshots`, ...), those it has.
    pub capabilities: Vec<String>,
    /// Options of `create` and `convert`.
    pub create_options: Vec<CreateOptionInfo>,
}

/// An option of `create` and `convert`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CreateOptionInfo {
    /// Name, as qemu-img spells it (`cluster_size`).
    pub name: String,
    /// How its value reads.
    #[serde(rename = "type")]
    pub value_type: OptionType,
    /// Value when it is not given.
    pub default: Option<String>,
    /// The values it may have, when they are few.
    pub choices: Vec<String>,
    /// One line on its effect.
    pub help: String,
}

text_enum! {
    /// How an option's value reads.
    OptionType, "option type" {
        /// Any text.
        Text = "string",
        /// `on` or `off`.
        Bool = "bool",
        /// A whole number.
        Number = "number",
        /// Bytes, with an optional suffix (`64k`).
        Size = "size",
        /// One of `choices`.
        Choice = "choice",
    }
}
