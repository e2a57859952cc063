//! The CASes that the configuration names, as the actions of its schedulers use them.
//!
//! What an action's calls say, and to which instance, is its requester's. An input tree that it has in common with
//! actions of other CASes may come from those, too; they are not asked in its name.

use std::sync::Arc;

use longshore_cas_store::blob::BlobStore;
use longshore_cas_store::io::Environment;
use longshore_cas_store::tree_cache::DirectoryCache;

use super::writes_results;
use crate::action::{Ends, Requester, ResultSink, Storage};
use crate::config::{CasConfig, SchedulerConfig};
use crate::remote::{
    AnySource, Instances, Prefetcher, Remote, RemoteError, RemoteOptions, SpeculationLimits,
};

/// The clients of the CASes that the configuration names, each once.
pub(super) struct Remotes {
    cases: Vec<(CasConfig, Arc<Instances>)>,
    /// All of them, in that order.
    inputs: AnySource,
}

impl Remotes {
    pub(super) fn open(
        schedulers: &[SchedulerConfig],
        store: &Arc<BlobStore>,
        environment: &Environment,
    ) -> Result<Self, RemoteError> {
        let mut cases: Vec<(CasConfig, Arc<Instances>)> = Vec::new();
        for cas in schedulers.iter().map(SchedulerConfig::cas) {
            if cases.iter().any(|(known, _)| *known == cas) {
                continue;
            }
            let options = RemoteOptions {
                instance_name: cas.instance_name.clone().unwrap_or_default().0,
                tls: cas.tls.options(),
                token_file: cas.token_file.clone(),
                compression: cas.compression,
                ..RemoteOptions::new(&cas.endpoint.get_ref().uri)
            };
            let remote = Remote::new(&options, store.clone(), environment.clone())?;
            cases.push((cas, Arc::new(Instances::new(remote))));
        }
        let sources = cases.iter().map(|(_, instances)| Arc::new(instances.prefix().clone()) as _).collect();
        Ok(Self { cases, inputs: AnySource::new(sources, environment.clock.clone()) })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.cases.len()
    }

    /// What the actions of a scheduler use, whose input trees are in `trees`.
    pub(super) fn of(&self, scheduler: &SchedulerConfig, trees: Arc<DirectoryCache>) -> SchedulerStorage {
        let cas = scheduler.cas();
        let place = self.cases.iter().position(|(known, _)| *known == cas).expect("each was opened");
        let instances = self.cases[place].1.clone();
        SchedulerStorage {
            prefetcher: Prefetcher::new(instances.prefix(), trees, SpeculationLimits::default()),
            instances,
            inputs: self.inputs.clone(),
            place,
            writes_results: writes_results(scheduler.kind),
        }
    }
}

/// What the actions of one scheduler use.
pub(super) struct SchedulerStorage {
    instances: Arc<Instances>,
    /// All CASes.
    inputs: AnySource,
    /// Which of those is the one of this scheduler's clients.
    place: usize,
    writes_results: bool,
    prefetcher: Prefetcher,
}

impl Storage for SchedulerStorage {
    fn on_behalf_of(&self, requester: &Requester) -> Ends {
        let Requester { instance_name_suffix, metadata, trace_context } = requester;
        let remote = Arc::new(self.instances.get(instance_name_suffix).on_behalf_of(metadata, trace_context));
        let inputs = Arc::new(self.inputs.beginning_with(self.place, remote.clone()));
        Ends {
            source: remote.clone(),
            inputs: inputs.clone(),
            results: self.writes_results.then(|| remote.clone() as Arc<dyn ResultSink>),
            prefetcher: Some(self.prefetcher.through(&remote, inputs)),
            sink: remote,
        }
    }
}
