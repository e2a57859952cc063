//! The configuration of a worker: one TOML file, in which nothing is passed over.
//!
//! What the file says of the machine (`[worker]`) are the options of the command line, which go before it. A field that
//! is not known, a value that makes no sense and one that contradicts another are refused with file, line and what is
//! allowed. `reference.toml` documents every field; a test holds it against the types.

mod machine;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use toml::Spanned;

pub use machine::MachineOptions;
pub use values::{Address, InstanceName, Jobs, Name, Size, Span, Values, Variable};

use crate::connect::TlsOptions;

/// Every field with its meaning, as a file that could be used.
pub const REFERENCE: &str = include_str!("reference.toml");

/// A configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The machine, and how actions run on it.
    #[serde(default)]
    pub worker: MachineOptions,
    /// Whom it works for.
    #[serde(default, rename = "scheduler", deserialize_with = "tables")]
    pub schedulers: Vec<SchedulerConfig>,
}

/// A scheduler to work for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Its protocol.
    pub kind: Kind,
    /// Where it is.
    pub endpoint: Spanned<Address>,
    /// The instance that this worker serves.
    #[serde(default)]
    pub instance_name: InstanceName,
    /// How many actions it may give at once; as many as the worker runs, if it is not said.
    pub capacity: Option<Jobs>,
    /// What this worker says that it has.
    #[serde(default)]
    pub platform: BTreeMap<String, Values>,
    /// Who is trusted.
    #[serde(default)]
    pub tls: TlsConfig,
    /// A file with a bearer token.
    #[serde(default, deserialize_with = "file")]
    pub token_file: Option<PathBuf>,
    /// Where its clients read and write blobs, if that is not the endpoint.
    pub cas: Option<CasConfig>,
}

/// The protocols of schedulers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `google.devtools.remoteworkers.v1test2.Bots`, which `BuildGrid` speaks.
    Bots,
    /// `NativeLink`'s `WorkerApi`.
    NativeLink,
    /// `buildbarn.remoteworker.OperationQueue`, which Buildbarn's scheduler speaks.
    Buildbarn,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bots => "bots",
            Self::NativeLink => "nativelink",
            Self::Buildbarn => "buildbarn",
        })
    }
}

/// A CAS and an action cache.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CasConfig {
    /// Where it is.
    pub endpoint: Spanned<Address>,
    /// The instance; the scheduler's, if it is not said.
    pub instance_name: Option<InstanceName>,
    /// Who is trusted.
    #[serde(default)]
    pub tls: TlsConfig,
    /// A file with a bearer token.
    #[serde(default, deserialize_with = "file")]
    pub token_file: Option<PathBuf>,
    /// Whether blobs travel compressed where the server offers it.
    #[serde(default = "yes")]
    pub compression: bool,
}

fn yes() -> bool {
    true
}

/// Reads the path of a file. The empty one would be complained about as nobody's, or as a server's fault.
fn file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.as_os_str().is_empty() {
        return Err(serde::de::Error::custom("expected the path of a file; leave it out if there is none"));
    }
    Ok(Some(path))
}

/// Reads what there may be several of. Whoever writes one as a table of its own is told how it is done.
fn tables<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SchedulerConfig>, D::Error> {
    struct Tables;

    impl<'de> Visitor<'de> for Tables {
        type Value = Vec<SchedulerConfig>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("[[scheduler]], in two brackets: there may be several")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
            let mut tables = Vec::new();
            while let Some(table) = sequence.next_element()? {
                tables.push(table);
            }
            Ok(tables)
        }
    }

    deserializer.deserialize_seq(Tables)
}

/// The files that TLS needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificates of authorities.
    #[serde(deserialize_with = "file")]
    pub authorities: Option<PathBuf>,
    /// Our own certificate chain.
    #[serde(deserialize_with = "file")]
    pub certificate: Option<PathBuf>,
    /// Its key.
    #[serde(deserialize_with = "file")]
    pub key: Option<PathBuf>,
    /// The name in the server's certificate.
    pub server_name: Option<String>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path}{}: {reason}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
pub struct ConfigError {
    path: String,
    line: Option<usize>,
    reason: String,
}

/// What is wrong, and where in the text.
type Fault = (Option<Range<usize>>, String);

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let named = |line, reason| ConfigError { path: path.display().to_string(), line, reason };
        let text = std::fs::read_to_string(path).map_err(|error| named(None, error.to_string()))?;
        Self::parse(&text).map_err(|(at, reason)| {
            let line = at.map(|at| text[..at.start.min(text.len())].matches('\n').count() + 1);
            named(line, reason)
        })
    }

    fn parse(text: &str) -> Result<Self, Fault> {
        let config: Self =
            toml::from_str(text).map_err(|error| (error.span(), error.message().to_owned()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Fault> {
        if self.schedulers.is_empty() {
            return Err((None, "there is no [[scheduler]] to work for".to_owned()));
        }
        let mut known = BTreeSet::new();
        for scheduler in &self.schedulers {
            let SchedulerConfig { kind, endpoint, instance_name, .. } = scheduler;
            check_tls(endpoint, &scheduler.tls)?;
            if let Some(cas) = &scheduler.cas {
                check_tls(&cas.endpoint, &cas.tls)?;
            }
            if !known.insert((kind, &endpoint.get_ref().target, instance_name)) {
                let reason = "the same scheduler and instance come twice; say `capacity` to be given more";
                return Err((Some(endpoint.span()), reason.to_owned()));
            }
            check_platform(&scheduler.platform).map_err(|reason| (Some(endpoint.span()), reason))?;
            let repeated = scheduler.platform.iter().find(|(_, Values(values))| values.len() > 1);
            if let Some((name, _)) = repeated.filter(|_| *kind == Kind::NativeLink) {
                let reason = format!("a {kind} scheduler knows one value a property, and {name} has several");
                return Err((Some(endpoint.span()), reason));
            }
        }
        Ok(())
    }
}

fn check_platform(platform: &BTreeMap<String, Values>) -> Result<(), String> {
    match platform.iter().find(|(name, Values(values))| name.is_empty() || values.is_empty()) {
        None => Ok(()),
        Some((name, _)) if name.is_empty() => Err("a property of the platform has no name".to_owned()),
        Some((name, _)) => Err(format!("the platform's property {name} has no value: leave it out")),
    }
}

fn check_tls(endpoint: &Spanned<Address>, tls: &TlsConfig) -> Result<(), Fault> {
    let wrong = |reason: &str| Err((Some(endpoint.span()), reason.to_owned()));
    if tls.certificate.is_some() != tls.key.is_some() {
        return wrong("tls.certificate and tls.key come together or not at all");
    }
    if !endpoint.get_ref().is_secure && *tls != TlsConfig::default() {
        return wrong("tls says how an endpoint is trusted that does not speak TLS: say grpcs://HOST:PORT");
    }
    Ok(())
}

impl SchedulerConfig {
    /// Where blobs are.
    pub fn cas(&self) -> CasConfig {
        let instance_name = Some(self.instance_name.clone());
        match &self.cas {
            Some(cas) => {
                CasConfig { instance_name: cas.instance_name.clone().or(instance_name), ..cas.clone() }
            }
            None => CasConfig {
                endpoint: self.endpoint.clone(),
                instance_name,
                tls: self.tls.clone(),
                token_file: self.token_file.clone(),
                compression: true,
            },
        }
    }

    /// Properties and their values, each pair once.
    pub fn properties(&self) -> Vec<(String, String)> {
        let pairs = self.platform.iter().flat_map(|(name, Values(values))| {
            let values: BTreeSet<_> = values.iter().collect();
            values.into_iter().map(|value| (name.clone(), value.clone()))
        });
        pairs.collect()
    }
}

impl TlsConfig {
    /// As connections take it.
    pub fn options(&self) -> TlsOptions {
        TlsOptions {
            authorities: self.authorities.clone(),
            identity: self.certificate.clone().zip(self.key.clone()),
            server_name: self.server_name.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
