//! What one slot does, as the scheduler is told, and what an answer changes. No I/O, no time of its own.
//!
//! A slot is idle, or executes a task, or has the result of one that the scheduler has not taken yet. Only a call that
//! has succeeded takes the result away; only the scheduler takes a task away.

use longshore_proto::protobuf::Empty;
use longshore_proto::remoteworker::current_state::executing::ExecutionState;
use longshore_proto::remoteworker::{current_state, desired_state};
use longshore_proto::{reapi, remoteworker};

use crate::action::Phase;

/// A slot.
#[derive(Debug, Default)]
pub(super) struct Slot {
    doing: Doing,
}

#[derive(Debug, Default)]
enum Doing {
    #[default]
    Idle,
    Executing {
        task: Box<desired_state::Executing>,
        phase: Phase,
    },
    Completed {
        task: Box<desired_state::Executing>,
        response: Box<reapi::ExecuteResponse>,
    },
}

/// What an answer of the scheduler changes.
#[derive(Debug, PartialEq)]
pub(super) enum Order {
    /// Nothing: what runs goes on.
    GoOn,
    /// What runs is wanted no more.
    Stop,
    /// The result was taken, or there was nothing to do, and there is nothing to do now.
    Rest,
    /// This is to be run, whatever runs now.
    Start(Box<desired_state::Executing>),
}

impl Slot {
    /// Whether nothing is left to do or to report.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.doing, Doing::Idle)
    }

    /// Whether there is a result that the scheduler has not taken.
    pub(super) fn is_completed(&self) -> bool {
        matches!(self.doing, Doing::Completed { .. })
    }

    /// How far the task has come.
    pub(super) fn has_come_to(&mut self, reached: Phase) {
        if let Doing::Executing { phase, .. } = &mut self.doing {
            *phase = reached;
        }
    }

    /// The task has ended with that; it was started and not stopped since.
    pub(super) fn complete(&mut self, response: reapi::ExecuteResponse) {
        self.doing = match std::mem::take(&mut self.doing) {
            Doing::Executing { task, .. } => Doing::Completed { task, response: Box::new(response) },
            other => other,
        };
    }

    /// What is being executed.
    pub(super) fn task(&self) -> Option<&desired_state::Executing> {
        match &self.doing {
            Doing::Executing { task, .. } => Some(task),
            Doing::Idle | Doing::Completed { .. } => None,
        }
    }

    /// What the scheduler is told, beside the slot's name and properties. `takes_work` is whether there may be work
    /// after this.
    pub(super) fn fill(&self, request: &mut remoteworker::SynchronizeRequest, takes_work: bool) {
        let (state, is_completed) = match &self.doing {
            Doing::Idle => (current_state::WorkerState::Idle(Empty {}), false),
            Doing::Executing { task, phase } => (executing(task, state_of(*phase)), false),
            Doing::Completed { task, response } => {
                (executing(task, ExecutionState::Completed((**response).clone())), true)
            }
        };
        request.current_state = Some(remoteworker::CurrentState { worker_state: Some(state) });
        // The answer to a result would wait for the next task, up to minutes: whether it was taken is to be known now.
        request.prefer_being_idle = !takes_work || is_completed;
    }

    /// The call of [`Slot::fill`] has succeeded with that answer.
    pub(super) fn answered(&mut self, desired: Option<remoteworker::DesiredState>) -> Order {
        let desired = desired.and_then(|desired| desired.worker_state);
        match (desired, &self.doing) {
            (Some(desired_state::WorkerState::Executing(task)), _) => {
                self.doing = Doing::Executing { task: Box::new(task.clone()), phase: Phase::Queued };
                Order::Start(Box::new(task))
            }
            (None, Doing::Executing { .. }) => Order::GoOn,
            (Some(desired_state::WorkerState::Idle(Empty {})), Doing::Executing { .. }) => {
                self.doing = Doing::Idle;
                Order::Stop
            }
            (_, Doing::Idle | Doing::Completed { .. }) => {
                self.doing = Doing::Idle;
                Order::Rest
            }
        }
    }
}

fn executing(task: &desired_state::Executing, state: ExecutionState) -> current_state::WorkerState {
    current_state::WorkerState::Executing(current_state::Executing {
        // As it came: the scheduler compares it.
        action_digest: task.action_digest.clone(),
        execution_state: Some(state),
    })
}

fn state_of(phase: Phase) -> ExecutionState {
    match phase {
        Phase::Queued => ExecutionState::Started(Empty {}),
        Phase::FetchingInputs => ExecutionState::FetchingInputs(Empty {}),
        Phase::Running => ExecutionState::Running(Empty {}),
        Phase::UploadingOutputs => ExecutionState::UploadingOutputs(Empty {}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(hash: &str) -> desired_state::Executing {
        let action_digest = Some(reapi::Digest { hash: hash.to_owned(), size_bytes: 1 });
        desired_state::Executing { action_digest, ..Default::default() }
    }

    fn start(hash: &str) -> remoteworker::DesiredState {
        remoteworker::DesiredState { worker_state: Some(desired_state::WorkerState::Executing(task(hash))) }
    }

    fn idle() -> remoteworker::DesiredState {
        remoteworker::DesiredState { worker_state: Some(desired_state::WorkerState::Idle(Empty {})) }
    }

    fn told(slot: &Slot, takes_work: bool) -> (current_state::WorkerState, bool) {
        let mut request = remoteworker::SynchronizeRequest::default();
        slot.fill(&mut request, takes_work);
        (request.current_state.unwrap().worker_state.unwrap(), request.prefer_being_idle)
    }

    #[test]
    fn a_task_is_told_of_until_its_result_is_taken() {
        let mut slot = Slot::default();
        assert_eq!(told(&slot, true), (current_state::WorkerState::Idle(Empty {}), false));
        assert_eq!(slot.answered(Some(start("a"))), Order::Start(Box::new(task("a"))));
        assert_eq!(told(&slot, true), (executing(&task("a"), ExecutionState::Started(Empty {})), false));
        slot.has_come_to(Phase::Running);
        assert_eq!(told(&slot, true), (executing(&task("a"), ExecutionState::Running(Empty {})), false));
        assert_eq!(slot.answered(None), Order::GoOn);
        let response = reapi::ExecuteResponse { message: "done".to_owned(), ..Default::default() };
        slot.complete(response.clone());
        let completed = executing(&task("a"), ExecutionState::Completed(response));
        // Again and again, as long as calls fail.
        for _ in 0..3 {
            assert_eq!(told(&slot, true), (completed.clone(), true));
        }
        assert_eq!(slot.answered(Some(idle())), Order::Rest);
        assert!(slot.is_idle());
    }

    #[test]
    fn the_answer_to_a_result_may_be_the_next_task() {
        let mut slot = Slot::default();
        slot.answered(Some(start("a")));
        slot.complete(reapi::ExecuteResponse::default());
        // The same action again is a task of its own.
        assert_eq!(slot.answered(Some(start("a"))), Order::Start(Box::new(task("a"))));
        assert_eq!(told(&slot, true).0, executing(&task("a"), ExecutionState::Started(Empty {})));
    }

    #[test]
    fn the_scheduler_takes_a_task_back_or_puts_another_in_its_place() {
        let mut slot = Slot::default();
        slot.answered(Some(start("a")));
        assert_eq!(slot.answered(Some(start("b"))), Order::Start(Box::new(task("b"))));
        assert_eq!(slot.answered(Some(idle())), Order::Stop);
        // What the stopped one still says reaches nobody.
        slot.complete(reapi::ExecuteResponse::default());
        assert_eq!(told(&slot, true), (current_state::WorkerState::Idle(Empty {}), false));
    }

    #[test]
    fn no_work_is_asked_for_with_a_result_and_while_draining() {
        let mut slot = Slot::default();
        assert!(told(&slot, false).1);
        slot.answered(Some(start("a")));
        assert!(!told(&slot, true).1);
        slot.complete(reapi::ExecuteResponse::default());
        assert!(told(&slot, true).1);
        slot.answered(Some(idle()));
        assert!(!told(&slot, true).1);
    }
}
