//! System calls that no container without special rights may make, with arguments that do no harm.
#![expect(unsafe_code, reason = "calls without a wrapper; every argument is zero, so nothing is pointed to")]

use nix::errno::Errno;
use syscalls::Sysno;

const CALLS: &[Sysno] = &[
    Sysno::acct,
    Sysno::add_key,
    Sysno::bpf,
    Sysno::delete_module,
    Sysno::finit_module,
    Sysno::fsopen,
    Sysno::init_module,
    Sysno::kexec_load,
    Sysno::keyctl,
    Sysno::mount,
    Sysno::move_mount,
    Sysno::open_by_handle_at,
    Sysno::open_tree,
    Sysno::perf_event_open,
    Sysno::pivot_root,
    Sysno::quotactl,
    Sysno::reboot,
    Sysno::request_key,
    Sysno::setns,
    Sysno::settimeofday,
    Sysno::swapon,
    Sysno::umount2,
    Sysno::userfaultfd,
];

/// Makes each and says how the kernel answers.
pub(crate) fn try_all() {
    for call in CALLS {
        // SAFETY: all arguments are zero: null pointers, which the kernel refuses, and the descriptor of an empty
        // standard input.
        let answer = unsafe { libc::syscall(libc::c_long::from(call.id()), 0, 0, 0, 0, 0, 0) };
        let told = Errno::result(answer).map_or_else(|error| format!("{error:?}"), |_| "ok".to_owned());
        println!("{}={told}", call.name());
    }
}
