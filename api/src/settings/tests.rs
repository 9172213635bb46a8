use clap::Parser;

use super::*;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    options: Options,
}

#[test]
fn every_option_has_a_variable_and_a_key_of_the_same_name() {
    let command = <Program as clap::CommandFactory>::command();
    let options: Vec<_> = command
        .get_arguments()
        .filter(|arg| !["help"].contains(&arg.get_id().as_str()))
        .collect();
    assert_eq!(options.len(), 27);
    for option in options {
        let key = option.get_id().as_str();
        let variable = option.get_env().and_then(|name| name.to_str()).map(str::to_owned);
        assert_eq!(variable, Some(format!("VDISKD_{}", key.to_uppercase())));
        // A value of a wrong type is fine here: it shows that the key is known.
        let unknown = toml::from_str::<Options>(&format!("{key} = [[]]"))
            .map(|_| ())
            .map_err(|e| e.to_string());
        assert!(!unknown.unwrap_err().contains("unknown field"), "{key}");
    }
}

#[test]
fn flags_win_over_the_file() {
    let flags = Program::try_parse_from(["vdiskd", "--workers", "1", "--pool", "a=/a"])
        .unwrap()
        .options;
    let file: Options = toml::from_str("workers = 7\nlog = 'debug'\n[pool]\nb = '/b'").unwrap();
    let settings = flags.over(file).decide().unwrap();
    assert_eq!(settings.service.workers, 1);
    assert_eq!(settings.log, "debug");
    assert_eq!(settings.service.default_pool, "a");
    assert_eq!(settings.service.pools.keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_pool_has_one_folder() {
    let parsed = Program::try_parse_from(["vdiskd", "--pool", "a=/x,b=/z", "--pool", "a=/y"]).unwrap();
    assert_eq!(parsed.options.decide().unwrap_err(), "pool 'a' is given two folders");
}

#[test]
fn an_empty_variable_says_nothing() {
    let command = <Program as clap::CommandFactory>::command();
    let set = |name: &std::ffi::OsStr| match name.to_str() {
        Some("VDISKD_LISTEN" | "VDISKD_WORKERS") => Some("".into()),
        Some("VDISKD_LOG") => Some("debug".into()),
        _ => None,
    };
    let command = without_empty_variables(command, &set);
    let variable = |id: &str| {
        command
            .get_arguments()
            .find(|arg| arg.get_id() == id)
            .unwrap()
            .get_env()
    };
    assert_eq!((variable("listen"), variable("workers")), (None, None));
    assert!(variable("log").is_some() && variable("host").is_some());
}

#[test]
fn the_files_of_tls_go_together() {
    let decided = |arguments: &[&str]| {
        let arguments = ["vdiskd"].iter().chain(arguments);
        Program::try_parse_from(arguments)
            .unwrap()
            .options
            .decide()
            .map(|settings| settings.tls)
    };
    assert_eq!(decided(&[]), Ok(None));
    let tls = decided(&[
        "--tls-cert",
        "c",
        "--tls-key",
        "k",
        "--client-ca",
        "a",
        "--client-cert-role",
        "reader",
    ]);
    assert_eq!(tls.unwrap().unwrap().client_ca, Some("a".into()));
    for broken in [
        &["--tls-cert", "c"][..],
        &["--tls-key", "k"],
        &["--client-ca", "a"],
        &["--client-cert-role", "admin"],
    ] {
        assert!(decided(broken).is_err(), "{broken:?}");
    }
}

#[test]
fn reachable_addresses_take_a_token_unless_the_operator_chose_otherwise() {
    let decided = |listen: &str, allow, require| {
        let options = Options {
            listen: Some(listen.parse().unwrap()),
            allow_unauthenticated: allow,
            require_token: require,
            ..Options::default()
        };
        options.decide().map(|settings| settings.policy.authentication)
    };
    for address in ["127.0.0.1:1", "[::1]:1"] {
        assert_eq!(decided(address, None, None), Ok(Authentication::Open));
        assert_eq!(decided(address, None, Some(true)), Ok(Authentication::Required));
    }
    for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(decided(address, None, None), Ok(Authentication::Required), "{address}");
        assert_eq!(
            decided(address, Some(false), Some(false)),
            Ok(Authentication::Required),
            "{address}"
        );
        assert_eq!(
            decided(address, Some(true), None),
            Ok(Authentication::Open),
            "{address}"
        );
    }
    assert!(decided("0.0.0.0:1", Some(true), Some(true)).is_err());
}

#[test]
fn an_error_in_a_file_says_where_it_is_and_not_what_stands_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vdiskd.toml");
    for (text, place) in [
        ("workers = 2\ndatabase = 'postgres://u:sesame@db/v", "line 2, column "),
        ("database = postgres://u:sesame@db/v\n", "line 1, column 12"),
        (
            "# \u{fc}\nworkers = 'postgres://u:sesame@db/v'\n",
            "line 2, column 11: invalid type: string, expected ",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let told = Options::from_file(&path).unwrap_err();
        assert!(told.contains(place) && !told.contains("sesame"), "{told}");
        assert!(told.starts_with(path.to_str().unwrap()), "{told}");
    }
}
