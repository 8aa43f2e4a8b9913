//! A profile's form: that of the OCI runtime specification (`linux.seccomp`), with the conditions on
//! capabilities, architectures and kernels that Docker added and everybody's profiles use.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Largest profile that is read.
const PROFILE_BYTES_MAX: usize = 1 << 20;

/// The profile of containers that ask for none.
const DEFAULT: &str = include_str!("default.json");

/// Rules for system calls, and what happens to calls without a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    pub(crate) default_action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) default_errno_ret: Option<u32>,
    #[serde(default)]
    pub(crate) syscalls: Vec<Rule>,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
}

/// One action for some calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rule {
    pub(crate) names: Vec<String>,
    pub(crate) action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) args: Vec<Arg>,
    #[serde(default)]
    pub(crate) includes: Conditions,
    #[serde(default)]
    pub(crate) excludes: Conditions,
}

/// A comparison of one argument of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Arg {
    pub(crate) index: u8,
    pub(crate) value: u64,
    #[serde(default)]
    pub(crate) value_two: u64,
    pub(crate) op: Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    Ne,
    #[serde(rename = "SCMP_CMP_LT")]
    Lt,
    #[serde(rename = "SCMP_CMP_LE")]
    Le,
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    #[serde(rename = "SCMP_CMP_GE")]
    Ge,
    #[serde(rename = "SCMP_CMP_GT")]
    Gt,
    /// The argument masked with `value` is `valueTwo`.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

/// When a rule counts (`includes`: all of it must hold; `excludes`: none of it may).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conditions {
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub(crate) caps: Vec<String>,
    /// By Go's names: `amd64`.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub(crate) arches: Vec<String>,
    /// A kernel's version: `4.8`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) min_kernel: String,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Profile {
    /// Reads a profile from its JSON form.
    ///
    /// # Errors
    /// When it is no profile, is larger than 1 MiB, or asks for what the kernel cannot do.
    pub fn parse(json: &[u8]) -> Result<Profile, Error> {
        if json.len() > PROFILE_BYTES_MAX {
            return Err(Error::invalid(
                "seccomp profile",
                format!("it has {} bytes, more than {PROFILE_BYTES_MAX}", json.len()),
            ));
        }
        let profile: Profile = serde_json::from_slice(json)
            .map_err(|error| Error::invalid("seccomp profile", error.to_string()))?;
        super::compile::filters(&profile, crate::capabilities::Set::default())?;
        Ok(profile)
    }
}

impl Default for Profile {
    fn default() -> Self {
        serde_json::from_str(DEFAULT).expect("the file was read by this crate's tests")
    }
}
