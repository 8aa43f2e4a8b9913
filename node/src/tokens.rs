//! Tokens of service accounts, asked of the leader.
//!
//! Owns the questions that wait for an answer. A question outlives the session that carried it: the next
//! leader is asked again, until whoever asked gives up. Answers are handed to the asker and kept nowhere
//! here; they reach no disk and no log.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use proto::node::{TokenRequest, TokenResponse};
use tokio::sync::{Notify, oneshot};

/// Questions that may wait at most; a further one fails at once.
const WAITING_MAX: usize = 1024;
/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) pod: String,
    pub(crate) pod_uid: String,
    /// Empty: the API's own.
    pub(crate) audience: String,
    pub(crate) expiration_seconds: i64,
}

/// A token and its life.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) issued_at: Timestamp,
    pub(crate) expires_at: Timestamp,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("{0}")]
    Refused(String),
    #[error("no control-plane replica that leads has answered within 10 s")]
    NoAnswer,
    #[error("too many tokens are asked for at once")]
    TooMany,
}

/// The questions.
#[derive(Default)]
pub(crate) struct Tokens {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    sequence: u64,
    waiting: BTreeMap<u64, Question>,
}

struct Question {
    wanted: Wanted,
    answer: oneshot::Sender<Result<Token, TokenError>>,
}

/// Takes the question back when nobody waits for its answer any more.
struct Asked<'a> {
    tokens: &'a Tokens,
    sequence: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.tokens.lock().waiting.remove(&self.sequence);
    }
}

impl Tokens {
    /// Asks the leader for a token.
    pub(crate) async fn request(&self, wanted: Wanted) -> Result<Token, TokenError> {
        let (answer, answered) = oneshot::channel();
        let asked = {
            let mut state = self.lock();
            if state.waiting.len() >= WAITING_MAX {
                return Err(TokenError::TooMany);
            }
            state.sequence += 1;
            let sequence = state.sequence;
            state.waiting.insert(sequence, Question { wanted, answer });
            Asked { tokens: self, sequence }
        };
        self.changed.notify_waiters();
        let answer = tokio::time::timeout(TIMEOUT, answered).await;
        drop(asked);
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(TokenError::NoAnswer),
        }
    }

    /// Questions after this number, for a leader that has heard those before.
    pub(crate) fn take_after(&self, after: u64) -> Vec<TokenRequest> {
        let state = self.lock();
        let due = state.waiting.range(after + 1..);
        due.map(|(sequence, question)| {
            let wanted = question.wanted.clone();
            TokenRequest {
                sequence: *sequence,
                namespace: wanted.namespace,
                service_account: wanted.service_account,
                pod_name: wanted.pod,
                pod_uid: wanted.pod_uid,
                audience: wanted.audience,
                expiration_seconds: wanted.expiration_seconds,
            }
        })
        .collect()
    }

    /// The leader's answer.
    pub(crate) fn answer(&self, response: TokenResponse) {
        let Some(question) = self.lock().waiting.remove(&response.sequence) else { return };
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
        let answer = match response.error.is_empty() {
            true => Ok(Token {
                text: response.token,
                issued_at: at(response.issued_at_s),
                expires_at: at(response.expires_at_s),
            }),
            false => Err(TokenError::Refused(response.error)),
        };
        // Who asked may have given up.
        drop(question.answer.send(answer));
    }

    /// Resolves when something was asked after the call. Take first, then wait, then take again.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the tokens panics")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            namespace: "d".into(),
            service_account: "default".into(),
            pod: "p".into(),
            pod_uid: "u".into(),
            audience: String::new(),
            expiration_seconds: 3600,
        }
    }

    #[tokio::test]
    async fn a_question_waits_for_a_leader_and_is_asked_again_of_the_next() {
        let tokens = Arc::new(Tokens::default());
        let asking = tokio::spawn({
            let tokens = Arc::clone(&tokens);
            async move { tokens.request(wanted()).await }
        });
        while tokens.take_after(0).is_empty() {
            tokio::task::yield_now().await;
        }
        let sequence = tokens.take_after(0)[0].sequence;
        assert!(tokens.take_after(sequence).is_empty(), "this leader has heard it");
        assert_eq!(tokens.take_after(0).len(), 1, "another has not");
        let response = TokenResponse {
            sequence,
            token: "t".into(),
            issued_at_s: 1,
            expires_at_s: 2,
            error: String::new(),
        };
        tokens.answer(response.clone());
        assert_eq!(asking.await.unwrap().unwrap().text, "t");
        tokens.answer(response);
        assert!(tokens.take_after(0).is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing_behind() {
        let tokens = Tokens::default();
        let asking = tokio::time::timeout(Duration::from_millis(5), tokens.request(wanted()));
        assert!(asking.await.is_err());
        assert!(tokens.lock().waiting.is_empty());
    }
}
