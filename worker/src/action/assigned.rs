//! The first phase: an action has arrived; nothing of it has been looked at.

use longshore_proto::reapi;

use super::command::{CheckedAction, CheckedCommand};
use super::journal::Journal;
use super::platform;
use super::prepared::Prepared;
use super::runner::Context;
use super::{ActionRunner, Assignment, Ends};
use crate::materialize::{InputRoot, MaterializeError};
use crate::status::Failure;

pub(super) struct Assigned<'a> {
    context: Context<'a>,
    assignment: Assignment,
}

impl<'a> Assigned<'a> {
    pub(super) fn new(worker: &'a ActionRunner, ends: &'a Ends, assignment: Assignment) -> Self {
        let context = Context {
            worker,
            ends,
            function: assignment.action_digest.function(),
            inline: assignment.inline.clone(),
            cancelled: assignment.cancelled.clone(),
        };
        Self { context, assignment }
    }

    /// Loads and checks the messages, and makes the input root.
    pub(super) async fn prepare(self, journal: &mut Journal) -> Result<Prepared<'a>, Failure> {
        journal.fetching();
        let Self { context, assignment } = self;
        let prepared = context.unless_cancelled(make_root(&context, assignment)).await?;
        journal.fetched();
        let (action, command, root) = prepared;
        journal.may_cache(action.may_cache);
        Ok(Prepared { context, command, timeout: action.timeout, root })
    }
}

type Made = (CheckedAction, CheckedCommand, InputRoot);

async fn make_root(context: &Context<'_>, assignment: Assignment) -> Result<Made, Failure> {
    let Context { worker, ends, .. } = context;
    let action = match assignment.action {
        Some(action) => action,
        None => worker.load::<reapi::Action>("the Action", assignment.action_digest, &*ends.source).await?,
    };
    let of_action = action.platform.clone();
    let action = CheckedAction::parse(context.function, &action, &worker.options)?;

    // Side by side, so that a client hears of everything that is missing at once.
    let command = worker.load::<reapi::Command>("the Command", action.command, &*ends.source);
    let tree = worker.cache.get(action.input_root, &ends.inputs);
    let (command, tree) = futures::join!(command, tree);
    let command = command.and_then(|command| {
        let mut checked = CheckedCommand::parse(&command)?;
        let (message, platform) = platform::choose(of_action, &command);
        if !worker.options.any_platform {
            platform::check(message, &platform)?;
        }
        if let Some(name) = &worker.options.platform_variable {
            checked.tell_platform(name, &platform)?;
        }
        Ok(checked)
    });
    let (command, tree) = match (command, tree.map_err(Failure::from)) {
        (Ok(command), Ok(tree)) => (command, tree),
        (Err(command), Err(tree)) => return Err(command.and(tree)),
        (Err(failure), Ok(_)) | (Ok(_), Err(failure)) => return Err(failure),
    };

    let mut root = worker.materializer.materialize(tree, command.directories()).await;
    if let Err(MaterializeError::Damaged(_)) = &root {
        let tree = worker.cache.get(action.input_root, &ends.inputs).await?;
        root = worker.materializer.materialize(tree, command.directories()).await;
    }
    let root = root.map_err(|error| command.in_its_terms(error))?;
    Ok((action, command, root))
}
