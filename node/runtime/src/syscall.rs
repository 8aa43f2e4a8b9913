//! The few system calls for which nix has no safe form, each wrapped once. Everything `unsafe` of the
//! crate is here.
#![expect(unsafe_code, reason = "system calls without a safe wrapper; each block says why it is sound")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::stat::{SFlag, major, minor};
use nix::unistd::Pid;

use crate::capabilities::Set;
use crate::container::spec::TerminalSize;

/// `_LINUX_CAPABILITY_VERSION_3`: two words per set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Signals of the kernel, real-time ones included.
const SIGNALS: usize = 64;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Which side of a fork this is.
pub(crate) enum Forked {
    Parent { child: Pid },
    Child,
}

/// Forks. Only for a process of one thread: there every lock is free and all memory consistent, so the
/// child may do anything. Refused otherwise.
pub(crate) fn fork_single_threaded() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("fork refused: the process has {threads} threads")));
    }
    // SAFETY: there is one thread, so the child cannot find a lock held or a structure half written by
    // a thread that does not exist in it.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Forked::Parent { child }),
        nix::unistd::ForkResult::Child => Ok(Forked::Child),
    }
}

/// The child is born in the control group that `cgroup` names (`clone3(2)`).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The kernel's `struct clone_args`, as of version 2: the first with a group.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into new namespaces and, if it is named by its directory, into a control group of version 2. As
/// [`fork_single_threaded`]; namespaces made together with a user namespace belong to it.
pub(crate) fn fork_into(namespaces: CloneFlags, group: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("fork refused: the process has {threads} threads")));
    }
    // Both are never negative.
    let (flags, signal) = (namespaces.bits().cast_unsigned(), libc::SIGCHLD.cast_unsigned());
    let none: libc::c_ulong = 0;
    let args = CloneArgs {
        flags: u64::from(flags) | CLONE_INTO_CGROUP,
        exit_signal: signal.into(),
        cgroup: group.map_or(0, |group| group.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: without a stack of its own and without shared memory this is a fork: the child goes on here with a
    // copy of everything. There is one thread, so it finds no lock held; the C library learns nothing of the
    // fork, and keeps nothing about processes but the thread's id, which is used for signalling oneself only.
    // The arguments live until the call returns, in either process.
    let child = unsafe {
        match group {
            Some(_) => libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()),
            None => {
                libc::syscall(libc::SYS_clone, libc::c_ulong::from(flags | signal), none, none, none, none)
            }
        }
    };
    match Errno::result(child)? {
        0 => Ok(Forked::Child),
        child => Ok(Forked::Parent { child: Pid::from_raw(child as i32) }),
    }
}

/// Ends the process at once: no exit handlers, nothing flushed.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// `EXT4_IOC_SHUTDOWN` (the same number as XFS's): `_IOR('X', 125, __u32)`.
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;

/// Shuts down the file system that an open directory is on; see `power`.
pub(crate) fn shut_down_file_system(directory: RawFd, flags: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one u32 behind the pointer, which lives until the call returns.
    let done = unsafe { libc::ioctl(directory, FS_IOC_SHUTDOWN as _, &raw const flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Installs a system call filter for the calling thread (`seccomp(2)`). Needs `no_new_privs` or the privilege
/// to administer the user namespace.
pub(crate) fn install_filter(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    let len = program.len().try_into().map_err(|_| io::Error::from(Errno::EINVAL))?;
    // The library's instruction has the kernel's layout; the pointer is only read from.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies `len` instructions from behind the pointer, which lives until the call returns.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) };
    Ok(Errno::result(done).map(drop)?)
}

/// Lets go of the memory that shows the program's own file, code and constants, and waits in that state. What is
/// used again is shown again out of the kernel's cache, so `wait` should be a system call and little else.
pub(crate) fn in_few_pages<T>(wait: impl FnOnce() -> T) -> T {
    let segments = read_only_segments();
    for &(start, length) in &segments {
        // SAFETY: the range is a segment of the program that was never writable, so each of its pages is as the
        // file has it, and the file cannot change while it is executed. A page that is needed again, the one
        // executing this among them, is the same page again.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
    // The list is freed afterwards: the allocator's pages are not to come back before the wait.
    wait()
}

/// The program's segments that are not writable: address and length. None when they are not where the kernel says
/// that they are.
fn read_only_segments() -> Vec<(usize, usize)> {
    // SAFETY: getauxval takes a number.
    let value = |kind| unsafe { libc::getauxval(kind) } as usize;
    let (headers, count) = (value(libc::AT_PHDR), value(libc::AT_PHNUM));
    if headers == 0 || value(libc::AT_PHENT) != size_of::<libc::Elf64_Phdr>() {
        return Vec::new();
    }
    // SAFETY: the kernel says that so many headers of this size lie there; they are constants of the program.
    let headers_found = unsafe { std::slice::from_raw_parts(headers as *const libc::Elf64_Phdr, count) };
    let own = headers_found.iter().find(|header| header.p_type == libc::PT_PHDR);
    let base = own.map_or(0, |own| headers.wrapping_sub(own.p_vaddr as usize));
    let page = value(libc::AT_PAGESZ).max(1);
    let fixed = headers_found
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
        .map(|header| {
            let start = base.wrapping_add(header.p_vaddr as usize);
            let end = (start + header.p_memsz as usize).next_multiple_of(page);
            (start - start % page, end - (start - start % page))
        });
    let segments: Vec<(usize, usize)> = fixed.collect();
    let plausible = segments.iter().any(|(start, length)| (*start..start + length).contains(&headers));
    if plausible { segments } else { Vec::new() }
}

/// Marks all descriptors from `first` on to be closed by the next exec.
pub(crate) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: no pointers; only a flag of descriptors changes, none is closed under its owner.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) };
    Ok(Errno::result(done).map(drop)?)
}

/// Closes all descriptors from `first` on and never returns to whoever owned them.
pub(crate) fn close_from_and(first: RawFd, then: fn() -> !) -> ! {
    // SAFETY: no pointers. Owners of the descriptors live in frames that are never returned to, in a
    // process of one thread, so none of them uses or closes a number again.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    then()
}

/// Takes over a descriptor that was inherited under a known number.
///
/// Callers are the entry points of this crate's processes, before anything else could own it.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_DUPFD_CLOEXEC takes no pointers; a bad number is an error.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    let copy = Errno::result(copy)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Takes over a descriptor that has just arrived in a message.
///
/// Only for numbers out of `SCM_RIGHTS`, once each.
pub(crate) fn received(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: the kernel made this descriptor for the receiver of the message, which hands it on here
    // and keeps no other copy of the number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor of a process, readable when it has ended.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal to the process of a descriptor, and to no other that got its pid since.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and asks the kernel to fill in the default.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    Ok(Errno::result(sent).map(drop)?)
}

/// Sends a signal by number, real-time signals included.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    Ok(Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)?)
}

/// The permitted capabilities of the calling thread.
pub(crate) fn permitted_capabilities() -> io::Result<Set> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: both pointers are to live structures of the layout of this version: a header and two
    // data words.
    let got = unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) };
    Errno::result(got)?;
    Ok(Set(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32))
}

/// Makes a set the calling thread's effective and permitted one; inheritable becomes empty.
pub(crate) fn set_capabilities(set: Set) -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let word = |bits: u32| CapabilityData { effective: bits, permitted: bits, inheritable: 0 };
    let data = [word(set.0 as u32), word((set.0 >> 32) as u32)];
    // SAFETY: both pointers are to live structures of the layout of this version; the kernel reads only.
    let done = unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) };
    Ok(Errno::result(done).map(drop)?)
}

/// Drops a capability from the bounding set for good. `false`: the kernel does not know it.
pub(crate) fn drop_bounding_capability(number: u32) -> io::Result<bool> {
    // SAFETY: no pointers.
    match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }) {
        Ok(_) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Empties the ambient set.
pub(crate) fn clear_ambient_capabilities() -> io::Result<()> {
    // SAFETY: no pointers.
    let done = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    Ok(Errno::result(done).map(drop)?)
}

/// Makes a terminal the controlling one of the calling session leader.
pub(crate) fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number, not a pointer.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    Ok(Errno::result(done).map(drop)?)
}

/// Sets the size of a terminal; its foreground processes are told by SIGWINCH.
pub(crate) fn set_terminal_size(terminal: BorrowedFd<'_>, size: TerminalSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one winsize behind the pointer, which lives until the call returns.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Ok(Errno::result(done).map(drop)?)
}

/// The size of a terminal.
pub(crate) fn terminal_size(terminal: BorrowedFd<'_>) -> io::Result<TerminalSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one winsize behind the pointer, which lives until the call returns.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    Errno::result(done)?;
    Ok(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// The kernel's form of a signal action on all 64-bit machines; zeros are the default action.
#[repr(C)]
struct DefaultAction([u64; 4]);

/// Puts every signal back to what a fresh program expects: default action, none blocked. (Rust's start
/// code ignores SIGPIPE; the shim blocks the signals that it reads; the caller's parents may have ignored
/// anything.)
pub(crate) fn reset_signals() -> io::Result<()> {
    let action = DefaultAction([0; 4]);
    let old = std::ptr::null_mut::<DefaultAction>();
    for signal in 1..=SIGNALS {
        // SAFETY: the action is a live structure of the kernel's layout, its set 8 bytes; the default
        // action installs no code. The C library refuses to touch its own two signals, the kernel does
        // not; those that cannot be changed (KILL, STOP) fail and stay as they are.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &action, old, SIGNALS / 8) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Sets an extended attribute of an open file, on the file itself.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &std::ffi::CStr, value: &[u8]) -> io::Result<()> {
    // By way of /proc the descriptor may be a path only (`O_PATH`).
    let path = c_string(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    // SAFETY: path and name are C strings and value is as long as is said; all live over the call.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Ok(Errno::result(done).map(drop)?)
}

/// An extended attribute of a file, links not followed. `None`: it has none of that name.
pub(crate) fn get_xattr(path: &Path, name: &std::ffi::CStr) -> io::Result<Option<Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let read = |value: &mut [u8]| {
        // SAFETY: path and name are C strings and value is as long as is said; all live over the call.
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) }
    };
    match read_sized(read) {
        Err(error) if [Errno::ENODATA, Errno::EOPNOTSUPP].iter().any(|none| is_errno(&error, *none)) => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The names of a file's extended attributes, links not followed.
pub(crate) fn list_xattrs(path: &Path) -> io::Result<Vec<CString>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let read = |names: &mut [u8]| {
        // SAFETY: path is a C string and names is as long as is said; both live over the call.
        unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) }
    };
    let names = match read_sized(read) {
        Err(error) if is_errno(&error, Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| Ok(CString::new(name)?)).collect()
}

/// Reads into a buffer that is as large as it has to be; an empty one is only told the size.
fn read_sized(read: impl Fn(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    loop {
        let size = Errno::result(read(&mut []))?;
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(0)];
        if buffer.is_empty() {
            return Ok(buffer);
        }
        match Errno::result(read(&mut buffer)) {
            // It has grown meanwhile.
            Err(Errno::ERANGE) => {}
            length => {
                buffer.truncate(usize::try_from(length?).unwrap_or(0));
                return Ok(buffer);
            }
        }
    }
}

fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// Type, permissions and number of a device node, if the mode says that it is one.
pub(crate) fn device_of(mode: u32, device: u64) -> Option<(SFlag, u64, u64)> {
    let kind = SFlag::from_bits_truncate(mode) & SFlag::S_IFMT;
    matches!(kind, SFlag::S_IFCHR | SFlag::S_IFBLK).then(|| (kind, major(device), minor(device)))
}

/// Text without zero bytes as a C string.
fn c_string(text: String) -> std::ffi::CString {
    std::ffi::CString::new(text).expect("formatted from numbers, so no zero byte")
}

/// A copy of a descriptor that exec closes.
pub(crate) fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// Copies the mount at a path, with what is mounted below it, without attaching it anywhere. The copy shares
/// with the original if that is shared.
pub(crate) fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: the path is a C string that lives until the call returns; the kernel keeps nothing of it.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Shows the files of a copied mount with the ids of a user namespace: what is 0 on disk is that namespace's 0.
/// `EINVAL` from filesystems that cannot.
pub(crate) fn map_ids(copy: &OwnedFd, users: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    set_mount_attributes(copy, &attributes)
}

/// Makes a copied mount one that nothing can be written through.
pub(crate) fn make_mount_read_only(copy: &OwnedFd) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_mount_attributes(copy, &attributes)
}

fn set_mount_attributes(copy: &OwnedFd, attributes: &libc::mount_attr) -> io::Result<()> {
    let size = size_of::<libc::mount_attr>();
    let (fd, flags) = (copy.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: the path is an empty C string, the attributes are a live structure of the size that is said, and
    // the kernel reads only.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const *attributes, size)
    };
    Ok(Errno::result(done).map(drop)?)
}

/// Attaches a copied mount onto an open file or directory.
pub(crate) fn attach_mount(copy: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    const FROM_FD: libc::c_uint = 0x4;
    const TO_FD: libc::c_uint = 0x40;
    // SAFETY: both paths are empty C strings and both descriptors are open for the time of the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            copy.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            FROM_FD | TO_FD,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends one Ethernet frame over a link, by its index, to everybody on the link's network.
pub(crate) fn broadcast_frame(link_index: i32, protocol: u16, frame: &[u8]) -> io::Result<()> {
    // SAFETY: no pointers are handed over.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: link_index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: both pointers are to live values of the lengths that are given with them, and the kernel reads only.
    let sent = unsafe {
        let (bytes, count) = (frame.as_ptr().cast(), frame.len());
        libc::sendto(socket.as_raw_fd(), bytes, count, 0, (&raw const to).cast(), length)
    };
    Ok(Errno::result(sent).map(drop)?)
}
