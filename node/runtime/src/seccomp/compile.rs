//! From a profile to programs for the kernel.
//!
//! A program of the library knows one action for what its rules match and one for the rest. So a profile becomes:
//! one program for each action beside "allow" and the default, which lets everything else pass; and last the one
//! that allows what has a rule and does the default to the rest. Of what several programs say of a call, the
//! kernel takes the strictest (`seccomp(2)`).

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use syscalls::Sysno;

use super::profile::{Action, Arg, Conditions, Operator, Profile, Rule};
use crate::capabilities::{self, Set};
use crate::error::Error;

/// A BPF program.
pub(crate) type Program = BpfProgram;

/// Rules by the number of the call; a call without conditions has an empty list.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Load a word of `struct seccomp_data` (`BPF_LD | BPF_W | BPF_ABS`); the call's number is its first.
const LOAD_WORD: u16 = 0x20;
/// Go on here when it is greater (`BPF_JMP | BPF_JGT | BPF_K`).
const JUMP_IF_GREATER: u16 = 0x25;
/// End with this verdict (`BPF_RET | BPF_K`).
const RETURN: u16 = 0x06;

/// The architecture by the name of Go, which profiles use.
const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    std::env::consts::ARCH
};

/// The programs that carry a profile out, in the order in which they are to be installed.
pub(crate) fn filters(profile: &Profile, capabilities: Set) -> Result<Vec<Program>, Error> {
    let default = action(profile.default_action, profile.default_errno_ret)?;
    let mut ruled = Rules::new();
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    for rule in &profile.syscalls {
        if !counts(rule, capabilities) {
            continue;
        }
        let asked = action(rule.action, rule.errno_ret)?;
        if asked == default {
            continue;
        }
        add(&mut ruled, rule)?;
        if asked != SeccompAction::Allow {
            let known = by_action.iter().position(|(action, _)| *action == asked);
            let at = known.unwrap_or_else(|| {
                by_action.push((asked, Rules::new()));
                by_action.len() - 1
            });
            add(&mut by_action[at].1, rule)?;
        }
    }
    let mut programs = Vec::with_capacity(by_action.len() + 1);
    for (action, rules) in by_action {
        programs.push(program(rules, SeccompAction::Allow, action)?);
    }
    if default != SeccompAction::Allow {
        let base = program(ruled, default, SeccompAction::Allow)?;
        programs.push(unknown_calls_are_not_there().into_iter().chain(base).collect());
    }
    Ok(programs)
}

fn program(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<Program, Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| refused(&error))?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(|error| refused(&error))?;
    Program::try_from(filter).map_err(|error| refused(&error))
}

/// The beginning of a program: calls beyond those that are known here answer ENOSYS.
fn unknown_calls_are_not_there() -> [sock_filter; 3] {
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    [
        instruction(LOAD_WORD, 0, 0, 0),
        instruction(JUMP_IF_GREATER, 0, 1, Sysno::last().id().unsigned_abs()),
        instruction(RETURN, 0, 0, u32::from(SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))),
    ]
}

fn action(action: Action, errno: Option<u32>) -> Result<SeccompAction, Error> {
    Ok(match action {
        Action::Allow => SeccompAction::Allow,
        Action::Errno => SeccompAction::Errno(errno.unwrap_or(libc::EPERM.unsigned_abs())),
        Action::KillThread => SeccompAction::KillThread,
        Action::KillProcess => SeccompAction::KillProcess,
        Action::Trap => SeccompAction::Trap,
        Action::Log => SeccompAction::Log,
        Action::Trace => {
            let reason = "SCMP_ACT_TRACE needs a tracer, which containers have not: use SCMP_ACT_ERRNO";
            return Err(Error::invalid("seccomp profile", reason));
        }
    })
}

fn counts(rule: &Rule, capabilities: Set) -> bool {
    let included = &rule.includes;
    let excluded = &rule.excludes;
    let has = |name: &String| capabilities::named(name).is_some_and(|set| capabilities.and(set) == set);
    let runs_on = |conditions: &Conditions| conditions.arches.iter().any(|arch| arch == ARCHITECTURE);
    included.caps.iter().all(has)
        && (included.arches.is_empty() || runs_on(included))
        && kernel_is_at_least(&included.min_kernel)
        && !excluded.caps.iter().any(has)
        && !runs_on(excluded)
        && (excluded.min_kernel.is_empty() || !kernel_is_at_least(&excluded.min_kernel))
}

fn kernel_is_at_least(wanted: &str) -> bool {
    if wanted.is_empty() {
        return true;
    }
    let Ok(name) = nix::sys::utsname::uname() else { return true };
    version(&name.release().to_string_lossy()) >= version(wanted)
}

/// Major and minor number.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Adds a rule. Names that this architecture does not have are passed over, as everybody's profiles need it.
fn add(rules: &mut Rules, rule: &Rule) -> Result<(), Error> {
    let conditions = alternatives(&rule.args)?;
    for call in rule.names.iter().filter_map(|name| Sysno::from_str(name).ok()) {
        match rules.entry(i64::from(call.id())) {
            // No condition beats any.
            std::collections::btree_map::Entry::Occupied(known) if known.get().is_empty() => {}
            entry if conditions.is_empty() => {
                entry.insert_entry(Vec::new());
            }
            entry => entry.or_default().extend(conditions.iter().cloned()),
        }
    }
    Ok(())
}

/// The comparisons of a rule: all must hold; when one argument is named twice, any (as runc reads profiles).
fn alternatives(args: &[Arg]) -> Result<Vec<SeccompRule>, Error> {
    let mut seen = HashSet::new();
    let once = args.iter().all(|arg| seen.insert(arg.index));
    let groups: Vec<&[Arg]> = if once && !args.is_empty() { vec![args] } else { args.chunks(1).collect() };
    let rule = |group: &[Arg]| {
        let conditions = group.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
        SeccompRule::new(conditions).map_err(|error| refused(&error))
    };
    groups.into_iter().map(rule).collect()
}

fn condition(arg: &Arg) -> Result<SeccompCondition, Error> {
    let (operator, value) = match arg.op {
        Operator::Ne => (SeccompCmpOp::Ne, arg.value),
        Operator::Lt => (SeccompCmpOp::Lt, arg.value),
        Operator::Le => (SeccompCmpOp::Le, arg.value),
        Operator::Eq => (SeccompCmpOp::Eq, arg.value),
        Operator::Ge => (SeccompCmpOp::Ge, arg.value),
        Operator::Gt => (SeccompCmpOp::Gt, arg.value),
        Operator::MaskedEq => (SeccompCmpOp::MaskedEq(arg.value), arg.value_two),
    };
    SeccompCondition::new(arg.index, SeccompCmpArgLen::Qword, operator, value)
        .map_err(|error| refused(&error))
}

fn refused(error: &dyn std::fmt::Display) -> Error {
    Error::invalid("seccomp profile", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_compiles_with_and_without_capabilities() {
        for capabilities in [Set::default(), capabilities::named("SYS_ADMIN").expect("known")] {
            let programs = filters(&Profile::default(), capabilities).expect("compiles");
            assert!(programs.iter().all(|program| program.len() < 4096), "the kernel takes no more");
        }
    }

    #[test]
    fn every_name_of_the_default_profile_is_a_call() {
        let profile = Profile::default();
        let elsewhere = ["riscv_flush_icache", "riscv_hwprobe"];
        let names = profile.syscalls.iter().flat_map(|rule| &rule.names);
        let unknown: Vec<_> = names
            .filter(|name| Sysno::from_str(name).is_err() && !elsewhere.contains(&name.as_str()))
            .collect();
        assert!(!cfg!(target_arch = "x86_64") || unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn rules_count_by_capability_architecture_and_kernel() {
        let rule = |includes: Conditions, excludes: Conditions| Rule {
            names: vec!["read".into()],
            action: Action::Allow,
            errno_ret: None,
            args: Vec::new(),
            includes,
            excludes,
        };
        let caps = Conditions { caps: vec!["CAP_SYS_TIME".into()], ..Conditions::default() };
        let time = capabilities::named("SYS_TIME").expect("known");
        let none = Conditions::default;
        assert!(counts(&rule(caps.clone(), none()), time));
        assert!(!counts(&rule(caps.clone(), none()), Set::default()));
        assert!(!counts(&rule(none(), caps.clone()), time));
        assert!(counts(&rule(none(), caps), Set::default()));
        let kernel = |min: &str| Conditions { min_kernel: min.into(), ..Conditions::default() };
        assert!(counts(&rule(kernel("2.6"), none()), Set::default()));
        assert!(!counts(&rule(kernel("999.0"), none()), Set::default()));
        let arch = Conditions { arches: vec!["s390x".into()], ..Conditions::default() };
        assert!(!counts(&rule(arch, none()), Set::default()));
    }

    #[test]
    fn what_is_no_profile_is_refused_with_a_reason() {
        let refused = |json: &str| Profile::parse(json.as_bytes()).expect_err("refused").to_string();
        assert!(refused("{}").contains("defaultAction"), "{}", refused("{}"));
        assert!(refused(r#"{"defaultAction":"SCMP_ACT_FLY"}"#).contains("SCMP_ACT_FLY"));
        let traced = refused(r#"{"defaultAction":"SCMP_ACT_TRACE"}"#);
        assert!(traced.contains("SCMP_ACT_ERRNO"), "{traced}");
        let index = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO",
            "args":[{"index":9,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#;
        refused(index);
    }
}
