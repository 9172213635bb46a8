use vdisk_engine::formats::{Capabilities, DRIVERS, FormatDriver};
use vdisk_engine::options::{OptionKind, OptionSpec};

use super::Service;
use crate::model::{CreateOptionInfo, FormatInfo, OptionType};

impl Service {
    /// The format drivers, in the engine's order.
    pub fn formats(&self) -> Vec<FormatInfo> {
        DRIVERS.iter().map(|driver| format_info(*driver)).collect()
    }
}

fn format_info(driver: &dyn FormatDriver) -> FormatInfo {
    FormatInfo {
        name: driver.name().to_owned(),
        description: driver.description().to_owned(),
        capabilities: capability_names(driver.capabilities()),
        create_options: driver.create_options().iter().map(option_info).collect(),
    }
}

/// The flags that are set, by name. They are data: a new one in the engine shows up here by itself.
fn capability_names(capabilities: &Capabilities) -> Vec<String> {
    let Ok(serde_json::Value::Object(flags)) = serde_json::to_value(capabilities) else {
        return Vec::new();
    };
    let set = flags
        .into_iter()
        .filter(|(_, value)| *value == serde_json::Value::Bool(true));
    set.map(|(name, _)| name).collect()
}

fn option_info(option: &OptionSpec) -> CreateOptionInfo {
    let (value_type, choices) = match option.kind {
        OptionKind::Size => (OptionType::Size, &[][..]),
        OptionKind::Number => (OptionType::Number, &[][..]),
        OptionKind::Bool => (OptionType::Bool, &[][..]),
        OptionKind::Choice(words) => (OptionType::Choice, words),
        OptionKind::Text => (OptionType::Text, &[][..]),
    };
    CreateOptionInfo {
        name: option.name.to_owned(),
        value_type,
        default: option.default.map(str::to_owned),
        choices: choices.iter().map(|word| (*word).to_owned()).collect(),
        help: option.help.to_owned(),
    }
}
