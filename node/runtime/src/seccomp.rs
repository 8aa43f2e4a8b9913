//! Where a system call filter comes into force: after capabilities are set (installing one without
//! `no_new_privs` needs the privilege that they may take away, so with such a filter this has to move
//! before them), as the last thing before the program is looked up. No filter is installed yet: every
//! container runs *Unconfined*, in Kubernetes' word.

/// The filter in force for containers, as it is to be reported.
pub const PROFILE: &str = "Unconfined";
