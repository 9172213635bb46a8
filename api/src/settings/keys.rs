//! Where master keys come from: a file, an environment variable, or a credential that systemd hands over. Never an argument, which
//! everybody on the machine can read.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use vdisk_service::config::MasterKey;
use zeroize::Zeroizing;

/// The places of one key.
pub struct Places {
    /// The option that names a file, as it is shown.
    option: &'static str,
    /// The variable with the key in base64.
    variable: &'static str,
    /// The file in systemd's folder of credentials.
    credential: &'static str,
}

/// The key that seals secrets.
pub const CURRENT: Places = Places {
    option: "--master-key-file",
    variable: "VDISKD_MASTER_KEY",
    credential: "vdiskd.master-key",
};

/// The key to come.
pub const NEW: Places = Places {
    option: "--new-master-key-file",
    variable: "VDISKD_NEW_MASTER_KEY",
    credential: "vdiskd.new-master-key",
};

/// The key, from the file that an option names, from the variable, or else from systemd's credential; `None` when none is there.
///
/// # Errors
/// Both a file and a variable; a key that cannot be read, or has not 32 bytes.
pub fn find(
    places: &Places,
    file: Option<&Path>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<MasterKey>, String> {
    let variable = env(places.variable).filter(|text| !text.is_empty());
    match (file, variable) {
        (Some(_), Some(_)) => Err(format!("give {} or {}, not both", places.option, places.variable)),
        (Some(file), None) => read(file).map(Some),
        (None, Some(text)) => decode(places.variable, text).map(Some),
        (None, None) => {
            let credential = env("CREDENTIALS_DIRECTORY").map(|folder| PathBuf::from(folder).join(places.credential));
            credential
                .filter(|file| file.exists())
                .map(|file| read(&file))
                .transpose()
        }
    }
}

fn read(path: &Path) -> Result<MasterKey, String> {
    let bytes = fs::read(path).map(Zeroizing::new);
    let bytes = bytes.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    exact(&path.display().to_string(), &bytes)
}

fn decode(variable: &str, text: OsString) -> Result<MasterKey, String> {
    let text = Zeroizing::new(text.into_encoded_bytes());
    // What the decoder says may quote the key.
    let bytes = STANDARD.decode(text.trim_ascii()).map(Zeroizing::new);
    exact(variable, &bytes.map_err(|_| format!("{variable} is not base64"))?)
}

fn exact(place: &str, bytes: &[u8]) -> Result<MasterKey, String> {
    let key: [u8; 32] = bytes
        .try_into()
        .map_err(|_| format!("{place}: a master key has 32 bytes, found {}", bytes.len()))?;
    Ok(MasterKey(key.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [9; 32];

    fn found(file: Option<&Path>, variables: &[(&str, &str)]) -> Result<Option<[u8; 32]>, String> {
        let env = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.into())
        };
        Ok(find(&CURRENT, file, &env)?.map(|key| *key.0))
    }

    #[test]
    fn a_key_comes_from_a_file_a_variable_or_a_credential() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vdiskd.master-key");
        fs::write(&file, KEY).unwrap();
        let text = STANDARD.encode(KEY);
        assert_eq!(found(None, &[]), Ok(None));
        assert_eq!(found(Some(&file), &[]), Ok(Some(KEY)));
        assert_eq!(
            found(None, &[("VDISKD_MASTER_KEY", &format!("{text}\n"))]),
            Ok(Some(KEY))
        );
        let folder = dir.path().to_str().unwrap();
        assert_eq!(found(None, &[("CREDENTIALS_DIRECTORY", folder)]), Ok(Some(KEY)));
        assert_eq!(found(None, &[("CREDENTIALS_DIRECTORY", "/nowhere")]), Ok(None));
        assert!(found(Some(&file), &[("VDISKD_MASTER_KEY", &text)]).is_err());
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("short");
        fs::write(&file, [1; 31]).unwrap();
        assert!(
            found(Some(&file), &[])
                .unwrap_err()
                .ends_with("a master key has 32 bytes, found 31")
        );
        let error = found(None, &[("VDISKD_MASTER_KEY", "swordfish!")]).unwrap_err();
        assert!(!error.contains("swordfish"), "{error}");
        assert!(found(Some(&dir.path().join("none")), &[]).is_err());
    }
}
