//! Static tokens: a file of tokens and whom each names, in Kubernetes' form (`--token-auth-file`): one a line, as
//! `token,user,uid,"group1,group2"`.
//!
//! Read once, when the replica starts. Tokens are kept as hashes: memory holds none of them, and how long a look-up
//! takes says nothing about them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ring::digest;

use crate::auth::{Identity, SYSTEM_AUTHENTICATED};

/// Largest file of tokens.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
const COLUMNS_MIN: usize = 3;

type Hash = [u8; digest::SHA256_OUTPUT_LEN];

/// Why a file of tokens is refused.
#[derive(Debug, thiserror::Error)]
pub enum StaticTokensError {
    /// The file cannot be read.
    #[error("cannot read the file of tokens {path}: {source}; `tokenAuthFile` in the configuration names it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not as it should be. It is never shown.
    #[error("the file of tokens {path}, line {line}: {reason}; a line is token,user,uid,\"group1,group2\"")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Whom the static tokens name.
#[derive(Debug, Default)]
pub struct StaticTokens {
    by_hash: HashMap<Hash, Identity>,
}

impl StaticTokens {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, StaticTokensError> {
        let failed = |source| StaticTokensError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(failed(std::io::Error::other("it is larger than any file of tokens")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|(line, reason)| StaticTokensError::Line {
            path: path.to_owned(),
            line,
            reason,
        })
    }

    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut by_hash = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason| (index + 1, reason);
            let columns = columns(line).ok_or_else(|| wrong("a quote is not closed"))?;
            let [token, user, uid, rest @ ..] = columns.as_slice() else {
                return Err(wrong("it has fewer than three columns"));
            };
            debug_assert!(columns.len() >= COLUMNS_MIN, "the pattern says so");
            if token.is_empty() || user.is_empty() {
                return Err(wrong("token or user is empty"));
            }
            let listed = rest.first().map(String::as_str).unwrap_or_default().split(',');
            let groups = listed.map(str::trim).filter(|group| !group.is_empty());
            let groups = groups.chain([SYSTEM_AUTHENTICATED]).map(str::to_owned).collect();
            let identity = Identity { user: user.clone(), uid: uid.clone(), groups, ..Identity::default() };
            if by_hash.insert(hash(token), identity).is_some() {
                return Err(wrong("the token stands here for the second time"));
            }
        }
        Ok(Self { by_hash })
    }

    /// Whom a token names.
    pub fn identity(&self, token: &str) -> Option<Identity> {
        if self.by_hash.is_empty() {
            return None;
        }
        self.by_hash.get(&hash(token)).cloned()
    }
}

fn hash(token: &str) -> Hash {
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

/// The columns of a line of comma-separated values; a doubled quote inside quotes is one. `None`: a quote is open.
fn columns(line: &str) -> Option<Vec<String>> {
    let mut columns = vec![String::new()];
    let mut quoted = false;
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, quoted) {
            ('"', true) if letters.peek() == Some(&'"') => {
                letters.next();
                columns.last_mut()?.push('"');
            }
            ('"', _) => quoted = !quoted,
            (',', false) => columns.push(String::new()),
            (letter, _) => columns.last_mut()?.push(letter),
        }
    }
    (!quoted).then(|| columns.into_iter().map(|column| column.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_users_and_their_groups() {
        let text = "# people\nabc123,jane,uid-1,\"dev,ops\"\n\nxyz, joe , 7\nq,\"a \"\"b\"\"\",,\n";
        let tokens = StaticTokens::parse(text).unwrap();
        let jane = tokens.identity("abc123").unwrap();
        assert_eq!((jane.user.as_str(), jane.uid.as_str()), ("jane", "uid-1"));
        assert_eq!(jane.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(tokens.identity("xyz").unwrap().groups, ["system:authenticated"]);
        assert_eq!(tokens.identity("q").unwrap().user, "a \"b\"");
        assert!(tokens.identity("abc12").is_none() && tokens.identity("").is_none());
        assert!(!format!("{tokens:?}").contains("abc123"));
    }

    #[test]
    fn what_is_no_line_is_refused_with_its_number_and_without_its_text() {
        for (text, line, reason) in [
            ("secret,jane\n", 1, "three columns"),
            ("a,b,c\n,jane,1\n", 2, "empty"),
            ("a,b,c\na,d,e\n", 2, "second time"),
            ("a,\"b,c\n", 1, "quote"),
        ] {
            let (at, why) = StaticTokens::parse(text).unwrap_err();
            assert!(at == line && why.contains(reason), "{text}: {at} {why}");
        }
        let error = StaticTokens::read(Path::new("/nowhere/tokens.csv")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/tokens.csv"), "{error}");
    }
}
