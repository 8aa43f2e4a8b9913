//! Answers why a pod is where it is, from what the core remembers of its last decisions.

use scheduler::Record;
use tokio::sync::{mpsc, oneshot};

use super::Shell;

/// Most questions waiting for an answer; further ones are refused.
const QUESTIONS_MAX: usize = 16;

/// Why there is no explanation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Only the replica that leads decides.
    #[error("this replica does not lead; ask the leader")]
    NotLeader,
    /// The decision was not made by this leader, or is too long ago.
    #[error("no decision about pod {pod:?} is remembered: the leader keeps the last {max}, and only its own")]
    Unknown {
        /// `namespace/name`.
        pod: String,
        /// How many are kept.
        max: usize,
    },
    /// The scheduler has more questions than it can hold, or is stopping.
    #[error("the scheduler is busy; try again")]
    Busy,
}

/// What the scheduler remembers of one decision.
pub type Explanation = Record;

/// A question for the scheduler's task.
#[derive(Debug)]
pub struct Question {
    namespace: String,
    name: String,
    answer: oneshot::Sender<Result<Explanation, ExplainError>>,
}

/// Asks the scheduler's task.
#[derive(Debug, Clone)]
pub struct Explainer {
    questions: mpsc::Sender<Question>,
}

impl Explainer {
    /// The asking end, and the end for the scheduler.
    pub fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, receiver) = mpsc::channel(QUESTIONS_MAX);
        (Self { questions }, receiver)
    }

    /// The newest decision about a pod.
    pub async fn explain(&self, namespace: &str, name: &str) -> Result<Explanation, ExplainError> {
        let (answer, receiver) = oneshot::channel();
        let question = Question { namespace: namespace.to_owned(), name: name.to_owned(), answer };
        self.questions.try_send(question).map_err(|_| ExplainError::Busy)?;
        receiver.await.map_err(|_| ExplainError::Busy)?
    }
}

impl Shell {
    pub(super) fn answer(&self, question: Question) {
        let Question { namespace, name, answer } = question;
        let found = match self.epoch {
            None => Err(ExplainError::NotLeader),
            Some(_) => self.core.explain(&namespace, &name).cloned().ok_or_else(|| ExplainError::Unknown {
                pod: format!("{namespace}/{name}"),
                max: scheduler::RECORDS_MAX,
            }),
        };
        // Who asked may have gone.
        let _ = answer.send(found);
    }
}
