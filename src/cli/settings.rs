//! The table of settings as flags, and the file and environment below them.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, parser::ValueSource};
use moim::config::{
    Problem, Settings,
    keys::{KEYS, Key},
};

/// `--config` and one flag for each setting.
pub struct SettingsArgs {
    file: Option<PathBuf>,
    given: Vec<(&'static Key, String)>,
}

impl SettingsArgs {
    /// File, environment and flags laid over each other.
    pub fn read(self) -> Result<Settings, Problem> {
        let mut settings = Settings::default();
        if let Some(path) = self.file {
            let shown = path.display().to_string();
            let text = std::fs::read_to_string(&path)
                .map_err(|error| Problem::new(format!("cannot read the configuration {shown}: {error}")))?;
            settings = settings.file(&shown, &text)?;
        }
        // A name or value that is no UTF-8 cannot be one of ours.
        let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        settings.environment(variables)?.flags(self.given)
    }
}

impl Args for SettingsArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .env("MOIM_CONFIG")
            .hide_env(true)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file; flags and MOIM_… variables win over it");
        KEYS.iter().fold(command.arg(file), |command, key| command.arg(arg(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A setting's flag. Values are not parsed here but in one place for all sources.
fn arg(key: &'static Key) -> Arg {
    let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
    let heading = match key.name.split_once('.') {
        None => "Who and where",
        Some(_) => "Settings",
    };
    Arg::new(key.name)
        .long(key.flag())
        .value_name(key.kind)
        .action(ArgAction::Set)
        .allow_hyphen_values(true)
        .help_heading(heading)
        .help(format!("{}{default}", key.help))
}

impl FromArgMatches for SettingsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = KEYS
            .iter()
            .filter(|key| matches.value_source(key.name) == Some(ValueSource::CommandLine))
            .filter_map(|key| Some((key, matches.get_one::<String>(key.name)?.clone())))
            .collect();
        Ok(Self { file: matches.get_one::<PathBuf>("config").cloned(), given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
