//! Resource limits of a container's process, by their POSIX names.

use nix::sys::resource::{Resource, setrlimit};

use crate::container::spec::Rlimit;
use crate::error::Error;

/// The resource of a name like `RLIMIT_NOFILE`.
pub(crate) fn resource(name: &str) -> Result<Resource, Error> {
    Ok(match name {
        "RLIMIT_AS" => Resource::RLIMIT_AS,
        "RLIMIT_CORE" => Resource::RLIMIT_CORE,
        "RLIMIT_CPU" => Resource::RLIMIT_CPU,
        "RLIMIT_DATA" => Resource::RLIMIT_DATA,
        "RLIMIT_FSIZE" => Resource::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => Resource::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => Resource::RLIMIT_NICE,
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        "RLIMIT_RSS" => Resource::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => Resource::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => Resource::RLIMIT_STACK,
        _ => return Err(Error::invalid("process.rlimits", format!("{name:?} is no resource limit"))),
    })
}

/// Sets the limits on the calling process.
pub(crate) fn apply(limits: &[Rlimit]) -> Result<(), Error> {
    for limit in limits {
        setrlimit(resource(&limit.kind)?, limit.soft, limit.hard)
            .map_err(|error| Error::io("set resource limit", &limit.kind, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_posix() {
        assert!(matches!(resource("RLIMIT_NOFILE"), Ok(Resource::RLIMIT_NOFILE)));
        assert!(resource("nofile").is_err());
    }

    #[test]
    fn a_soft_limit_can_be_lowered_to_itself() {
        let (soft, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        apply(&[Rlimit { kind: "RLIMIT_NOFILE".into(), soft, hard }]).unwrap();
    }
}
