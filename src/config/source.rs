//! Where settings come from, laid one over the other, and what is wrong with them.

use std::{collections::BTreeMap, fmt};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Config,
    keys::{self, KEYS, Key},
};

/// Why a configuration cannot be used, and what to do about it. Exit code 2.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem(String);

impl Problem {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Problem {}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// `path:line`
    File(String),
    /// The variable's name.
    Variable(String),
    /// The flag, with its hyphens.
    Flag(String),
}

/// Each setting and where its value came from, in the table's order.
pub type Origins = Vec<(&'static Key, Origin)>;

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(place) => f.write_str(place),
            Self::Variable(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A configuration being put together. Call the sources from the weakest to the strongest: file, environment, flags.
#[derive(Default)]
pub struct Settings {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

impl Settings {
    /// Takes the text of a TOML file; `path` is only named in messages.
    pub fn file(mut self, path: &str, text: &str) -> Result<Self, Problem> {
        let at = |offset: usize| format!("{path}:{}", line_column(text, offset));
        let table = DeTable::parse(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            Problem::new(format!("{}: {}", at(offset), error.message()))
        })?;
        let mut found = Vec::new();
        collect("", table.get_ref(), &mut found);
        for (name, value, offset) in found {
            let key = keys::find(&name).map_err(|near| {
                Problem::new(format!("{}: unknown setting \"{name}\"; did you mean \"{near}\"?", at(offset)))
            })?;
            let text = written(key, value).map_err(|why| Problem::new(format!("{}: {name}: {why}", at(offset))))?;
            let place = at(value.span().start);
            keys::set(&mut self.config, key, &text, &format!("{place}: {name}"))?;
            self.origins.insert(key.name, Origin::File(place));
        }
        Ok(self)
    }

    /// Takes what of the environment is meant for us. An empty variable is one that is not set: what composes environments
    /// often cannot leave one out.
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Problem> {
        for (name, text) in variables.into_iter().filter(|(name, _)| is_setting(name)) {
            let key = KEYS.iter().find(|key| key.variable() == name).ok_or_else(|| {
                let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
                let near = keys::nearest(&name, known.iter().map(String::as_str));
                Problem::new(format!("unknown variable {name} in the environment; did you mean {near}? Else unset it"))
            })?;
            if !text.is_empty() {
                keys::set(&mut self.config, key, &text, &name)?;
                self.origins.insert(key.name, Origin::Variable(name));
            }
        }
        Ok(self)
    }

    /// Takes what the command line gave.
    pub fn flags(mut self, given: impl IntoIterator<Item = (&'static Key, String)>) -> Result<Self, Problem> {
        for (key, text) in given {
            let flag = format!("--{}", key.flag());
            keys::set(&mut self.config, key, &text, &flag)?;
            self.origins.insert(key.name, Origin::Flag(flag));
        }
        Ok(self)
    }

    /// The whole configuration, checked.
    pub fn finish(self) -> Result<Config, Problem> {
        self.explain().map(|(config, _)| config)
    }

    /// The same, with where each value came from.
    pub fn explain(mut self) -> Result<(Config, Origins), Problem> {
        self.joins_somebody()?;
        self.config.complete()?;
        self.config.check()?;
        let origin = |key: &Key| self.origins.get(key.name).cloned().unwrap_or(Origin::Default);
        Ok((self.config, KEYS.iter().map(|key| (key, origin(key))).collect()))
    }

    /// `--join "$PEERS"` with an unset variable would make a cluster of its own out of a node that was to join one.
    fn joins_somebody(&self) -> Result<(), Problem> {
        match self.origins.get("join") {
            Some(origin @ (Origin::Flag(_) | Origin::Variable(_))) if self.config.join.is_empty() => {
                Err(Problem::new(format!(
                    "{origin} names nobody to join: give the peer addresses of the cluster's nodes, or leave it out for a node \
                     that is a cluster by itself"
                )))
            }
            _ => Ok(()),
        }
    }
}

type Value<'i> = Spanned<DeValue<'i>>;

/// All values of a file with their full names and where the names stand, sections opened.
fn collect<'a, 'i>(section: &str, table: &'a DeTable<'i>, found: &mut Vec<(String, &'a Value<'i>, usize)>) {
    for (name, value) in table {
        let full =
            if section.is_empty() { name.get_ref().to_string() } else { format!("{section}.{}", name.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) => collect(&full, inner, found),
            _ => found.push((full, value, name.span().start)),
        }
    }
}

/// A file's value as it would stand behind a flag.
fn written(key: &Key, value: &Value<'_>) -> Result<String, String> {
    match value.get_ref() {
        DeValue::Array(items) if key.many => {
            let words: Result<Vec<_>, _> = items.iter().map(|item| written(key, item)).collect();
            Ok(words?.join(","))
        }
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().replace('_', "")),
        other => Err(format!("expected {}, found {}", key.kind, other.type_str())),
    }
}

/// `line:column` of a byte offset, both from 1, columns in characters.
fn line_column(text: &str, offset: usize) -> String {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{line}:{column}")
}

/// Whether a variable is meant as a setting. `MOIM_CONFIG` names the file and `MOIM_BIN` is our scripts'; and Kubernetes
/// gives each pod variables such as `MOIM_SERVICE_HOST` and `MOIM_PORT_3000_TCP` for a service called moim, which are
/// nobody's mistake.
fn is_setting(name: &str) -> bool {
    let kubernetes = || {
        ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"].iter().any(|part| name.contains(part)) || name.ends_with("_PORT")
    };
    name.starts_with("MOIM_")
        && !["MOIM_CONFIG", "MOIM_BIN"].contains(&name)
        && !name.starts_with("MOIM_TEST_")
        && !kubernetes()
}
