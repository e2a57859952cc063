//! All outcomes of one action: against the recording, and against each other.

use std::collections::BTreeSet;

use tonic::Code;

use super::outcome::Outcome;

/// Outcomes that are kept to be told apart; there are hardly more ways than that in which paths can differ.
const DISTINCT_MAX: usize = 32;

/// The outcomes of one action so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    distinct: Vec<Outcome>,
    /// Whether there were executions without one.
    pub(crate) has_failed: bool,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Paths at which executions differ from each other; where there are some, the recorded one counts with its contents:
    /// such an action may well write the same twice and something else the third time.
    pub(crate) unstable: BTreeSet<String>,
    /// Other paths, at which all executions differ from the recording.
    pub(crate) changed: BTreeSet<String>,
}

/// Whether an execution ended in a way that is no result: a server that fails the same way twice has not done the same
/// twice, and of the ways in which actions end beside `OK`, it is the recorded one that is a result.
pub(crate) fn is_error(outcome: &Outcome, recorded: Option<&Outcome>) -> bool {
    let is_as_recorded = || recorded.is_some_and(|recorded| recorded.status == outcome.status);
    outcome.status != Code::Ok && !(outcome.is_of_the_action() && is_as_recorded())
}

impl Seen {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        if self.distinct.len() < DISTINCT_MAX && !self.distinct.contains(&outcome) {
            self.distinct.push(outcome);
        }
    }

    /// Whether no execution had a result.
    pub(crate) fn is_empty(&self) -> bool {
        self.distinct.is_empty()
    }

    /// The outcomes, each once.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.distinct.iter()
    }

    /// The outcomes, each once, and the recorded one.
    pub(crate) fn outcomes_mut<'a>(
        &'a mut self,
        recorded: &'a mut Option<Outcome>,
    ) -> impl Iterator<Item = &'a mut Outcome> {
        self.distinct.iter_mut().chain(recorded)
    }

    pub(crate) fn findings(&self, recorded: Option<&Outcome>) -> Findings {
        let Some((first, others)) = self.distinct.split_first() else { return Findings::default() };
        let mut unstable: BTreeSet<_> = others.iter().flat_map(|other| first.differences(other)).collect();
        let Some(recorded) = recorded else { return Findings { unstable, ..Findings::default() } };
        let mut changed: BTreeSet<_> = recorded.differences(first).into_iter().collect();
        if !unstable.is_empty() {
            unstable.extend(changed.extract_if(.., |path| recorded.has(path) && first.has(path)));
        }
        changed.retain(|path| !unstable.contains(path));
        Findings { unstable, changed }
    }
}

#[cfg(test)]
mod tests {
    use longshore_cas_store::digest::DigestFunction;

    use super::super::outcome::Output;
    use super::*;

    fn outcome(outputs: &[(&str, &str)]) -> Outcome {
        let output = |(path, content): &(&str, &str)| {
            let digest = DigestFunction::Sha256.digest(content.as_bytes());
            ((*path).to_owned(), Output::File { digest, executable: false })
        };
        Outcome { status: Code::Ok, exit_code: 0, outputs: outputs.iter().map(output).collect() }
    }

    fn find(recorded: Option<&Outcome>, seen: &[Outcome]) -> (Vec<String>, Vec<String>) {
        let mut all = Seen::default();
        for outcome in seen {
            all.add(outcome.clone());
        }
        let Findings { unstable, changed } = all.findings(recorded);
        (unstable.into_iter().collect(), changed.into_iter().collect())
    }

    // An action whose executions differ says nothing about the recording by what it writes, but still by how it ends.
    #[test]
    fn what_changed_is_told_from_what_never_stays_the_same() {
        let recorded = outcome(&[("log", "0"), ("bin", "a"), ("same", "s")]);
        let one = outcome(&[("log", "1"), ("bin", "b"), ("same", "s")]);
        let two = outcome(&[("log", "2"), ("bin", "b"), ("same", "s")]);
        let none: Vec<String> = vec![];
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let find = |recorded, seen: &[&Outcome]| {
            find(recorded, &seen.iter().map(|outcome| (*outcome).clone()).collect::<Vec<_>>())
        };
        assert_eq!(find(Some(&recorded), &[&one, &two, &one]), (names(&["bin", "log"]), none.clone()));
        let ended = |exit_code, outputs| Outcome { exit_code, ..outcome(outputs) };
        let (three, four) =
            (ended(1, &[("log", "1"), ("new", "n")]), ended(1, &[("log", "2"), ("new", "n")]));
        let changed = names(&["<exit code>", "bin", "new", "same"]);
        assert_eq!(find(Some(&recorded), &[&three, &four]), (names(&["log"]), changed));
        assert_eq!(find(Some(&recorded), &[&one, &one]), (none.clone(), names(&["bin", "log"])));
        assert_eq!(find(Some(&recorded), &[&recorded]), (none.clone(), none.clone()));
        assert_eq!(find(None, &[&one, &two]), (names(&["log"]), none.clone()));
        assert_eq!(find(None, &[&one]), (none.clone(), none.clone()));
        assert_eq!(find(Some(&recorded), &[]), (none.clone(), none));
    }

    #[test]
    fn a_recorded_timeout_may_time_out_again() {
        let timeout = Outcome { status: Code::DeadlineExceeded, ..outcome(&[]) };
        let fine = outcome(&[]);
        assert!(is_error(&timeout, None) && is_error(&timeout, Some(&fine)));
        assert!(!is_error(&timeout, Some(&timeout)) && !is_error(&fine, None));
        assert!(!is_error(&fine, Some(&timeout)), "it differs, and is a result");
    }

    #[test]
    fn a_server_that_fails_as_before_has_done_nothing() {
        for code in [
            Code::Internal,
            Code::Unavailable,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::ResourceExhausted,
            Code::FailedPrecondition,
            Code::NotFound,
            Code::Aborted,
            Code::Cancelled,
            Code::Unknown,
            Code::Unimplemented,
            Code::DataLoss,
        ] {
            let failed = Outcome { status: code, ..outcome(&[]) };
            assert!(is_error(&failed, Some(&failed)), "{code:?}");
        }
        let malformed = Outcome { status: Code::InvalidArgument, ..outcome(&[]) };
        assert!(!is_error(&malformed, Some(&malformed)));
    }
}
