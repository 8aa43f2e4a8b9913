//! Tokens: what a user shows after it has given its password once.
//!
//! Two kinds, as in etcd. **Simple** tokens are opaque; ours are sealed with a secret that lies in the
//! replicated state, made anew whenever authentication is enabled. So every member can check a token that
//! another gave, without asking it or writing anything down. A token lives for its time to live after it was
//! given, and longer at each member where it is used (etcd's members count the same way, each for itself).
//! Members' clocks may differ by [`CLOCK_SKEW_MAX`]. It ends at once with its user, a new password, or
//! disabled authentication. **JWT**: see [`jwt`](super::jwt).
//!
//! ```text
//! token   = "s1." base64url(payload seal)
//! payload = issued_unix_seconds:u64 nonce:u64 auth_revision:u64 user           (big-endian)
//! seal    = HMAC-SHA256(secret, payload)
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::hmac;
use state_machine::{Auth, Author};
use tokio::sync::Semaphore;

use super::jwt::{self, Jwt};

const PREFIX: &str = "s1.";
const PAYLOAD_HEAD_BYTES: usize = 24;
const SEAL_BYTES: usize = 32;

/// etcd's time to live of a simple token.
const SIMPLE_TTL: Duration = Duration::from_secs(300);
/// How far members' clocks may lie apart.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);
/// Tokens whose last use is remembered; further ones end with the time to live they were given with.
const USED_MAX: usize = 65_536;
/// Passwords that are hashed or checked at once; others wait.
const HASHING_MAX: usize = 2;

/// Which tokens the members give and take.
#[derive(Clone)]
pub enum AuthToken {
    /// Opaque ones.
    Simple {
        /// How long a token lives without being used.
        ttl: Duration,
    },
    /// Signed JSON.
    Jwt(Arc<Jwt>),
}

impl Default for AuthToken {
    fn default() -> Self {
        Self::Simple { ttl: SIMPLE_TTL }
    }
}

/// Why an `--auth-token` is not one.
#[derive(Debug, thiserror::Error)]
pub enum AuthTokenError {
    /// Neither `simple` nor `jwt`.
    #[error("auth token type {0:?} is not known: simple, or jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…")]
    Kind(String),
    /// An option of `jwt` that is missing or makes no sense.
    #[error(transparent)]
    Jwt(#[from] jwt::JwtError),
}

impl AuthToken {
    /// Reads etcd's `--auth-token`: `simple`, or `jwt` with options; key files are read now.
    ///
    /// # Errors
    /// When it is not one, or a key file cannot be read.
    pub fn parse(text: &str) -> Result<Self, AuthTokenError> {
        let (kind, options) = text.split_once(',').unwrap_or((text, ""));
        match kind {
            "" | "simple" => Ok(Self::default()),
            "jwt" => Ok(Self::Jwt(Arc::new(Jwt::parse(options)?))),
            other => Err(AuthTokenError::Kind(other.to_owned())),
        }
    }
}

/// One member's side of tokens.
pub(crate) struct Tokens {
    kind: AuthToken,
    /// When each token was last used here.
    used: Mutex<HashMap<u64, Instant>>,
    /// bcrypt is slow on purpose: it must not take all of the processor.
    pub(crate) hashing: Semaphore,
}

impl Tokens {
    pub(crate) fn new(kind: &AuthToken) -> Self {
        Self { kind: kind.clone(), used: Mutex::default(), hashing: Semaphore::new(HASHING_MAX) }
    }

    /// A new token of the user; `None` when this member cannot give any (it has a public key only).
    pub(crate) fn give(&self, auth: &Auth, user: &str) -> Option<String> {
        let now = unix_now();
        match &self.kind {
            AuthToken::Simple { .. } => Some(seal(auth, user, now, rand::random())),
            AuthToken::Jwt(jwt) => jwt.sign(user, auth.revision(), now),
        }
    }

    /// Who shows the token; `None` when it is not a token, or none any more.
    pub(crate) fn author(&self, auth: &Auth, token: &str) -> Option<Author> {
        match &self.kind {
            AuthToken::Simple { ttl } => {
                let opened = open(auth, token)?;
                self.is_alive(&opened, *ttl, unix_now(), Instant::now())
                    .then(|| Author { user: opened.user, auth_revision: auth.revision() })
            }
            AuthToken::Jwt(jwt) => jwt.verify(token, unix_now()),
        }
    }

    fn is_alive(&self, token: &Opened, ttl: Duration, unix_now: u64, now: Instant) -> bool {
        let mut used = self.used.lock().expect("no code panics while it holds this lock");
        let used_lately = used.get(&token.nonce).is_some_and(|last| now.duration_since(*last) < ttl);
        let age = Duration::from_secs(unix_now.saturating_sub(token.issued));
        let from_the_future = token.issued > unix_now + CLOCK_SKEW_MAX.as_secs();
        if from_the_future || (!used_lately && age >= ttl) {
            used.remove(&token.nonce);
            return false;
        }
        if used.len() >= USED_MAX {
            used.retain(|_, last| now.duration_since(*last) < ttl);
        }
        if used.len() < USED_MAX || used_lately {
            used.insert(token.nonce, now);
        }
        true
    }
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

struct Opened {
    issued: u64,
    nonce: u64,
    user: String,
}

fn key(auth: &Auth) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, auth.token_secret().expose())
}

fn seal(auth: &Auth, user: &str, issued: u64, nonce: u64) -> String {
    let mut payload = Vec::with_capacity(PAYLOAD_HEAD_BYTES + user.len() + SEAL_BYTES);
    for number in [issued, nonce, auth.revision()] {
        payload.extend_from_slice(&number.to_be_bytes());
    }
    payload.extend_from_slice(user.as_bytes());
    let seal = hmac::sign(&key(auth), &payload);
    payload.extend_from_slice(seal.as_ref());
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(payload))
}

/// What a token says, if its seal is whole and its user still the one it was given to.
fn open(auth: &Auth, token: &str) -> Option<Opened> {
    if auth.token_secret().is_empty() {
        return None;
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX)?).ok()?;
    let (payload, seal) = bytes.split_at_checked(bytes.len().checked_sub(SEAL_BYTES)?)?;
    hmac::verify(&key(auth), payload, seal).ok()?;
    let (head, user) = payload.split_at_checked(PAYLOAD_HEAD_BYTES)?;
    let number = |at: usize| head[at..at + 8].try_into().map(u64::from_be_bytes).ok();
    let (issued, nonce, revision) = (number(0)?, number(8)?, number(16)?);
    let user = std::str::from_utf8(user).ok()?.to_owned();
    let known = auth.user(&user)?;
    (revision >= known.credentials_revision).then_some(Opened { issued, nonce, user })
}

#[cfg(test)]
mod tests {
    use state_machine::{AuthCommand, Command, Position, Secret, StateMachine};

    use super::*;

    struct State(StateMachine, u64);

    impl State {
        fn enabled() -> Self {
            let mut state = Self(StateMachine::new(), 0);
            let password = Some(Secret::new("hash"));
            state.apply(AuthCommand::UserAdd { name: "root".into(), password });
            state.apply(AuthCommand::UserGrantRole { user: "root".into(), role: "root".into() });
            state.apply(AuthCommand::Enable { token_secret: Secret::new("secret 1") });
            state
        }

        fn apply(&mut self, command: AuthCommand) {
            self.1 += 1;
            self.0.apply(Position { log_index: self.1, term: 1 }, &Command::Auth(command));
        }
    }

    const TTL: Duration = Duration::from_secs(300);

    #[test]
    fn a_token_is_good_at_every_member_and_bad_when_changed() {
        let state = State::enabled();
        let (one, other) = (Tokens::new(&AuthToken::default()), Tokens::new(&AuthToken::default()));
        let token = one.give(state.0.auth(), "root").expect("simple tokens can always be given");
        assert_eq!(other.author(state.0.auth(), &token).expect("sealed with the same secret").user, "root");
        for at in 0..token.len() {
            let mut damaged = token.clone().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(damaged).expect("ASCII");
            assert!(one.author(state.0.auth(), &damaged).is_none(), "changed at {at}");
            assert!(one.author(state.0.auth(), &token[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn a_token_ends_with_its_time_unless_it_is_used() {
        let state = State::enabled();
        let tokens = Tokens::new(&AuthToken::default());
        let opened = |issued| {
            open(state.0.auth(), &seal(state.0.auth(), "root", issued, issued)).expect("just sealed")
        };
        let start = Instant::now();
        let at = |seconds: u64| (1_000_000 + seconds, start + Duration::from_secs(seconds));
        let alive = |token: &Opened, (unix, instant)| tokens.is_alive(token, TTL, unix, instant);
        let token = opened(1_000_000);
        assert!(alive(&token, at(299)));
        assert!(alive(&token, at(598)), "used at 299");
        assert!(!alive(&token, at(898)), "not used for 300 s");
        assert!(!alive(&token, at(899)));
        assert!(!alive(&opened(1_000_061), at(0)), "from a clock that is far ahead");
        assert!(alive(&opened(1_000_059), at(0)));
    }

    #[test]
    fn a_new_password_or_newly_enabled_authentication_ends_tokens() {
        let mut state = State::enabled();
        let tokens = Tokens::new(&AuthToken::default());
        let token = tokens.give(state.0.auth(), "root").expect("given");
        state.apply(AuthCommand::UserAdd { name: "ann".into(), password: None });
        assert!(tokens.author(state.0.auth(), &token).is_some(), "other changes do not matter");
        let password = Secret::new("hash 2");
        state.apply(AuthCommand::UserChangePassword { name: "root".into(), password });
        assert!(tokens.author(state.0.auth(), &token).is_none());
        let token = tokens.give(state.0.auth(), "root").expect("given");
        state.apply(AuthCommand::Disable);
        state.apply(AuthCommand::Enable { token_secret: Secret::new("secret 2") });
        assert!(tokens.author(state.0.auth(), &token).is_none());
    }

    #[test]
    fn the_option_is_read_as_etcd_does() {
        assert!(matches!(AuthToken::parse("simple"), Ok(AuthToken::Simple { ttl }) if ttl == TTL));
        assert!(matches!(AuthToken::parse("paper"), Err(AuthTokenError::Kind(_))));
        assert!(matches!(AuthToken::parse("jwt,sign-method=HS256"), Err(AuthTokenError::Jwt(_))));
    }
}
