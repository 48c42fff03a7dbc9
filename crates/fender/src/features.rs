//! What this build has and what it leaves out: a sidecar on a small machine needs no control plane in it.
//!
//! Nothing that is left out is offered. Who asks for it all the same, on the command line or in a document, is told what it is and
//! which build has it; it is never taken for something else.

use std::sync::LazyLock;

/// A part that can be left out.
struct Feature {
    name: &'static str,
    is_here: bool,
    /// The commands that come with it.
    commands: &'static [&'static str],
}

macro_rules! features {
    ($($name:tt: [$($command:literal),*],)*) => {
        /// Each as `Cargo.toml` calls it.
        const FEATURES: &[Feature] = &[$(Feature {
            name: $name,
            is_here: cfg!(feature = $name),
            commands: &[$($command),*],
        }),*];
    };
}

features! {
    "control-plane": ["control", "demo"],
    "agent": ["agent"],
    "administration": [
        "apply", "revisions", "diff", "token", "svid", "ca", "revoke", "revocations", "crl", "audit-log"
    ],
    "standalone": ["schema"],
    "stores": [],
    "acme": [],
}

/// What `fender --version` says: the version, and on a line of its own what this build has.
pub(crate) static VERSION: LazyLock<String> = LazyLock::new(|| {
    let here = FEATURES.iter().filter(|feature| feature.is_here);
    let here: Vec<_> = here.map(|feature| feature.name).collect();
    let here = match here.is_empty() {
        true => "none, a sidecar alone".to_owned(),
        false => here.join(", "),
    };
    format!("{}\nfeatures: {here}", env!("CARGO_PKG_VERSION"))
});

/// Why a command is unknown, if it is one of those that this build leaves out.
pub(crate) fn left_out_command(command: &str) -> Option<String> {
    let without = FEATURES.iter().filter(|feature| !feature.is_here);
    let feature = { without }.find(|feature| feature.commands.contains(&command))?;
    Some(format!("`fender {command}`: {}", left_out(feature.name)))
}

/// What is said of everything that needs a feature which is not here.
pub(crate) fn left_out(feature: &str) -> String {
    format!(
        "this build of Fender leaves it out, because it is without the feature `{feature}`: use one that lists it in \
         `fender --version`; the whole program has every feature"
    )
}

/// The values of arguments that cannot be given: there are none.
#[cfg(not(all(feature = "standalone", feature = "stores", feature = "agent")))]
mod absent {
    macro_rules! absent {
        ($name:ident, $feature:literal) => {
            #[cfg(not(feature = $feature))]
            #[derive(Clone, Debug)]
            pub(crate) enum $name {}

            #[cfg(not(feature = $feature))]
            impl std::str::FromStr for $name {
                type Err = String;

                fn from_str(_: &str) -> Result<Self, String> {
                    Err(super::left_out($feature))
                }
            }
        };
    }

    absent!(ConfigFile, "standalone");
    absent!(AwsPattern, "stores");
    absent!(WorkloadApiSocket, "agent");

    #[cfg(not(feature = "standalone"))]
    impl std::ops::Deref for ConfigFile {
        type Target = std::path::Path;

        fn deref(&self) -> &Self::Target {
            match *self {}
        }
    }
}

#[cfg(not(all(feature = "standalone", feature = "stores", feature = "agent")))]
pub(crate) use absent::*;

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_is_there_exactly_where_its_feature_is() {
        let cli = Cli::command();
        for feature in FEATURES {
            for command in feature.commands {
                let found = cli.find_subcommand(command).is_some();
                assert_eq!(found, feature.is_here, "{command}");
                assert_eq!(left_out_command(command).is_some(), !found, "{command}");
            }
        }
        assert_eq!(left_out_command("sidecar"), None);
        assert_eq!(left_out_command("no-such-command"), None);
    }

    /// What is said of this command line, which is refused.
    #[cfg(not(all(feature = "standalone", feature = "stores", feature = "agent")))]
    fn said(arguments: &[&str]) -> String {
        use clap::Parser as _;

        let sidecar = ["fender", "sidecar", "--control", "https://127.0.0.1:7443"];
        assert!(Cli::try_parse_from(sidecar).is_ok());
        let all = sidecar.iter().chain(arguments);
        Cli::try_parse_from(all).unwrap_err().to_string()
    }

    #[test]
    #[cfg(not(feature = "standalone"))]
    fn a_file_to_run_from_is_refused_by_the_name_of_the_feature() {
        use clap::Parser as _;

        let alone = Cli::try_parse_from(["fender", "sidecar", "--config", "sidecar.yaml"]);
        for said in [
            alone.unwrap_err().to_string(),
            said(&["--config", "sidecar.yaml"]),
        ] {
            assert!(said.contains("--config"), "{said}");
            assert!(said.contains("without the feature `standalone`"), "{said}");
        }
    }

    #[test]
    #[cfg(not(feature = "stores"))]
    fn a_secret_of_aws_is_not_allowed_by_a_build_that_would_not_read_it() {
        let said = said(&["--allow-aws", "secretsmanager:shop/*"]);
        assert!(said.contains("--allow-aws"), "{said}");
        assert!(said.contains("without the feature `stores`"), "{said}");
    }

    #[test]
    #[cfg(not(feature = "agent"))]
    fn a_workload_api_is_refused_by_the_name_of_the_feature() {
        let said = said(&["--workload-api", "/run/fender/api.sock"]);
        assert!(said.contains("--workload-api"), "{said}");
        assert!(said.contains("without the feature `agent`"), "{said}");
    }

    #[test]
    fn what_is_left_out_is_not_offered() {
        let mut cli = Cli::command();
        cli.build();
        let sidecar = cli.find_subcommand("sidecar").unwrap();
        for (argument, feature, is_here) in [
            ("config", "standalone", cfg!(feature = "standalone")),
            ("allow_aws", "stores", cfg!(feature = "stores")),
            ("workload_api", "agent", cfg!(feature = "agent")),
            ("workload_api_uid", "agent", cfg!(feature = "agent")),
        ] {
            let found = sidecar.get_arguments().find(|one| one.get_id() == argument);
            assert_eq!(
                !found.unwrap().is_hide_set(),
                is_here,
                "{argument} {feature}"
            );
        }
        let usage = cli.find_subcommand_mut("sidecar").unwrap().render_usage();
        let offered = usage.to_string().contains("--config");
        assert_eq!(offered, cfg!(feature = "standalone"), "{usage}");
    }

    #[tokio::test]
    #[cfg(not(feature = "administration"))]
    async fn what_only_the_control_plane_knows_is_refused_by_the_name_of_the_feature() {
        use clap::Parser as _;

        use crate::cli::Command;
        use crate::exit::Exit;
        use crate::status;

        let id = "0123456789abcdef0123456789abcdef";
        let parsed = |arguments: &[&str]| {
            let all = ["fender"].iter().chain(arguments);
            Cli::try_parse_from(all).unwrap().command
        };
        let (Command::Status(of), Command::Explain(explain)) =
            (parsed(&["status"]), parsed(&["explain", id]))
        else {
            panic!("something else was understood");
        };
        for refused in [
            status::status(of).await.unwrap_err(),
            status::explain(explain).await.unwrap_err(),
        ] {
            assert_eq!(refused.exit, Exit::Usage);
            let said = refused.to_string();
            assert!(said.contains("--sidecar"), "{said}");
            assert!(
                said.contains("without the feature `administration`"),
                "{said}"
            );
        }
    }

    #[test]
    fn the_version_comes_first_and_the_features_have_a_line_of_their_own() {
        let (version, features) = VERSION.split_once('\n').unwrap();
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        for feature in FEATURES {
            let listed = features.split([' ', ',']).any(|word| word == feature.name);
            assert_eq!(listed, feature.is_here, "{features}");
        }
    }
}
