//! What only the kernel or the C library can do: the one module of the house with `unsafe` in it.
//!
//! Every function has a safe signature; each `unsafe` block says why it holds.

#![expect(
    unsafe_code,
    reason = "the one module that may; each block has its SAFETY comment"
)]

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;
use rustix::mm::Advice;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use rustix::process::Signal;

unsafe extern "C" {
    #[cfg(target_env = "gnu")]
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
    fn sigemptyset(set: *mut SignalSet) -> c_int;
    fn sigaddset(set: *mut SignalSet, number: c_int) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, before: *mut SignalSet) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn getsockopt(
        socket: c_int,
        level: c_int,
        name: c_int,
        value: *mut c_void,
        length: *mut u32,
    ) -> c_int;
    fn ioctl(descriptor: c_int, request: c_ulong, ...) -> c_int;
    /// Not functions but marks of the linker: where this program begins in memory, and where its code ends.
    static __executable_start: u8;
    static etext: u8;
}

/// `sigset_t` of every C library on Linux.
#[repr(C)]
struct SignalSet([c_ulong; 1024 / c_ulong::BITS as usize]);

/// Pins the C library's name service to files and DNS.
///
/// A static binary still loads the host's name-service plug-ins when `nsswitch.conf` names one, and
/// a plug-in built for another C library can crash the process. Call it first, before threads.
pub fn pin_name_service() {
    #[cfg(target_env = "gnu")]
    for (database, services) in [
        (c"hosts", c"files dns"),
        (c"passwd", c"files"),
        (c"group", c"files"),
        (c"shadow", c"files"),
        (c"initgroups", c"files"),
        (c"services", c"files"),
        (c"protocols", c"files"),
        (c"networks", c"files"),
    ] {
        configure_lookup(database, services);
    }
}

#[cfg(target_env = "gnu")]
fn configure_lookup(database: &CStr, services: &CStr) {
    // SAFETY: both strings end with a zero and outlive the call; glibc copies what it keeps and
    // takes its own lock.
    let failed = unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) } != 0;
    if failed {
        tracing::warn!(?database, "cannot pin the name service");
    }
}

/// Keeps the process's memory from other processes of its user; the kernel writes no core file of
/// it either. A program it starts is not affected.
pub fn forbid_inspection() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(
        DumpableBehavior::NotDumpable,
    )?)
}

/// Forbids core files of this process; what it starts by way of [`allow_core_files`] may have them as far as this process could. To be called
/// once.
pub fn forbid_core_files() -> io::Result<()> {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Core);
    // A second call would find what the first has set.
    let _ = CORE_FILES.set(current);
    let none = Rlimit {
        current: Some(0),
        maximum,
    };
    Ok(rustix::process::setrlimit(Resource::Core, none)?)
}

/// Lets a program that is not Fender's leave core files, if it could before [`forbid_core_files`].
pub fn allow_core_files(command: &mut Command) {
    let Some(current) = CORE_FILES.get().copied() else {
        return;
    };
    let allow = move || {
        let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Core);
        let limit = Rlimit { current, maximum };
        Ok(rustix::process::setrlimit(Resource::Core, limit)?)
    };
    // SAFETY: the closure runs between fork and exec, or before an exec without a fork; it makes two system calls, and neither allocates nor
    // locks.
    unsafe { command.pre_exec(allow) };
}

/// How large a core file of this process might have become; no limit if it is none.
static CORE_FILES: OnceLock<Option<u64>> = OnceLock::new();

/// The same as [`forbid_inspection`], with core files forbidden to everything it starts as well.
pub fn harden_process() -> io::Result<()> {
    forbid_inspection()?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    Ok(())
}

/// Takes a variable out of this process's environment, and so out of that of everything it starts. What the kernel shows
/// of the environment a process began with (`/proc/PID/environ`) stays, for root and this user only.
///
/// Nothing else may read or change the environment meanwhile: call it from `main`, before threads.
pub fn take_variable(name: &str) -> Option<std::ffi::OsString> {
    let value = std::env::var_os(name);
    if value.is_some() {
        // SAFETY: called before any other thread exists, as said above; the name came from a lookup that succeeded, so it
        // holds neither `=` nor a zero.
        unsafe { std::env::remove_var(name) };
    }
    value
}

/// Gives up, for this process and its descendants, every privilege a set-user-id file could give.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Makes orphaned descendants children of this process, so that it can reap them.
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(
        rustix::process::getpid(),
    ))?)
}

/// Has the kernel send `signal` to this process when the thread that started it ends.
///
/// A parent that is gone already sends nothing: check that it is still there afterwards.
pub fn die_with_parent(signal: Signal) -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(
        signal,
    ))?)
}

/// Gives back the pages of this program's file that were touched so far: its start needed many that its work does not.
/// Where they are needed again they come from the kernel's cache of the file, sixteen at a time.
///
/// Nothing is lost: only code and constants lie there, which nobody writes.
pub fn release_code() -> io::Result<()> {
    let (start, end) = code();
    // SAFETY: from the program's head to the end of its code everything is mapped from its file, privately and not
    // writable; what was relocated lies behind it. A page that is dropped is read from the file as it was, so no reference
    // into it changes its value.
    unsafe {
        rustix::mm::madvise(
            start.cast_mut().cast(),
            end.addr() - start.addr(),
            Advice::LinuxDontNeed,
        )
    }?;
    Ok(())
}

/// Head, constants and code of this program, in whole pages of any size.
fn code() -> (*const u8, *const u8) {
    const LARGEST_PAGE: usize = 64 * 1024;
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let start = start.map_addr(|address| address.next_multiple_of(LARGEST_PAGE));
    let end = end.map_addr(|address| address / LARGEST_PAGE * LARGEST_PAGE);
    (start, end)
}

/// Raises the limit on open descriptors as far as it goes, and returns it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// How many descriptors this process may have open.
pub fn descriptor_limit() -> u64 {
    let Rlimit { current, .. } = rustix::process::getrlimit(Resource::Nofile);
    current.unwrap_or(u64::MAX)
}

/// Lets a child start with every signal at its default, also those this process was told to ignore, but for one that is `kept` as it is.
///
/// Signals that are handled return to their default by themselves when a program is executed, and
/// the standard library empties the mask; ignored ones would stay ignored (a shell under `nohup`).
pub fn default_signals(command: &mut Command, kept: Option<Signal>) {
    const DEFAULT: usize = 0;
    const LAST: c_int = 64;
    let kept = kept.map(Signal::as_raw);
    let reset = move || {
        for number in (1..=LAST).filter(|number| kept != Some(*number)) {
            // SAFETY: `signal` is async-signal-safe and takes no pointer here. Numbers that cannot
            // be set (KILL, STOP, the C library's own) are refused with an error, which changes
            // nothing.
            unsafe { signal(number, DEFAULT) };
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it calls only an async-signal-safe function
    // and neither allocates nor locks.
    unsafe { command.pre_exec(reset) };
}

/// Lets this thread write to a terminal in the background also where whoever does is stopped (`stty tostop`): SIGTTOU is blocked for it,
/// and for no other. A program that it starts is not affected.
pub fn write_in_background() -> io::Result<()> {
    const SIG_BLOCK: c_int = 0;
    let mut set = SignalSet([0; _]);
    // SAFETY: the set is as large as the C library's and outlives the calls; nothing is asked about the mask before.
    let error = unsafe {
        sigemptyset(&raw mut set);
        sigaddset(&raw mut set, Signal::TTOU.as_raw());
        pthread_sigmask(SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Lets a child start with as little of this process as there can be: every descriptor from 3 on is closed, no set-user-id
/// file gives it a privilege, it leaves no core file, and it is killed when the thread that starts it ends.
///
/// Needs Linux 5.11; earlier ones fail to start the child.
pub fn isolate(command: &mut Command) {
    let isolate = || {
        /// The same number on every architecture.
        const CLOSE_RANGE: c_long = 436;
        const FIRST: c_long = 3;
        const LAST: c_long = u32::MAX as c_long;
        /// Not at once: the standard library tells by one of them what kept the program from starting.
        const ON_EXEC: c_long = 4;
        // SAFETY: `close_range` takes three integers and no pointer, and changes nothing but a flag of this child's own
        // descriptors.
        if unsafe { syscall(CLOSE_RANGE, FIRST, LAST, ON_EXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::thread::set_no_new_privs(true)?;
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        rustix::process::setrlimit(Resource::Core, none)?;
        die_with_parent(Signal::KILL)
    };
    // SAFETY: the closure runs between fork and exec; it makes system calls only, and neither allocates nor locks.
    unsafe { command.pre_exec(isolate) };
}

/// The signal of a number, real-time signals included; nothing for numbers the kernel does not know
/// or the C library keeps for itself.
pub fn signal_numbered(number: i32) -> Option<Signal> {
    const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
    if REAL_TIME.contains(&number) {
        // SAFETY: a number that `kill` takes, and none of the two (32, 33) that the C library uses.
        return Some(unsafe { Signal::from_raw_unchecked(number) });
    }
    Signal::from_named_raw(number)
}

/// Takes the descriptors 3, 4, … that the parent left open for us, as by `sd_listen_fds(3)`.
///
/// Fails when one of them is not open, and at the second call: they have an owner then.
pub(crate) fn inherited_descriptors(count: u16) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::other("inherited descriptors were taken already"));
    }
    let numbers = 3..3 + RawFd::from(count);
    // All of them are looked at before one is taken: a wrong count must not close what is not ours.
    numbers.clone().try_for_each(adopt)?;
    // SAFETY: each is open, and the parent left it for this process to own; the flag above lets
    // nobody take it twice.
    Ok(numbers
        .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect())
}

/// Keeps the descriptors 3, 4, … that were left open for this process from its children, save those
/// that [`pass_descriptors`] gives them to.
pub fn withhold_descriptors(count: u16) -> io::Result<()> {
    (3..3 + RawFd::from(count)).try_for_each(adopt)
}

/// Lets a child inherit the descriptors 3, 4, … under their numbers.
pub fn pass_descriptors(command: &mut Command, count: u16) {
    let pass = move || {
        for number in 3..3 + RawFd::from(count) {
            // SAFETY: borrowed for this call only, which is defined for any number. It is not -1.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; `fcntl` is async-signal-safe, and it neither
    // allocates nor locks.
    unsafe { command.pre_exec(pass) };
}

/// The very process at the other end of a Unix socket, as it connected: its number may have another owner by now.
///
/// Linux 6.5 and later; earlier ones answer with `ErrorKind::Unsupported`.
pub fn peer_process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SOL_SOCKET: c_int = 1;
    const SO_PEERPIDFD: c_int = 77;
    const ENOPROTOOPT: i32 = 92;
    let mut process: RawFd = -1;
    let mut length = size_of::<RawFd>() as u32;
    // SAFETY: the descriptor is open while it is borrowed; the kernel writes at most `length` bytes to `process`, which
    // is as long as that and outlives the call.
    let failed = unsafe {
        getsockopt(
            socket.as_raw_fd(),
            SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut process).cast(),
            &raw mut length,
        )
    } != 0;
    if failed {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(ENOPROTOOPT) => io::ErrorKind::Unsupported.into(),
            Some(_) | None => error,
        });
    }
    if process < 0 {
        return Err(io::Error::other("the kernel named no process"));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(process) })
}

/// What was sent over a Unix socket and waits at the other end, with what the kernel needs to keep it: not 0 for as long as
/// anything does, descriptors included.
pub fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    const SIOCOUTQ: c_ulong = 0x5411;
    let mut waiting: c_int = 0;
    // SAFETY: the descriptor is open while it is borrowed. The request writes one `int`, to `waiting`, which outlives the
    // call; what is no socket answers it with an error or, as a terminal, with an `int` as well.
    let failed = unsafe { ioctl(socket.as_raw_fd(), SIOCOUTQ, &raw mut waiting) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(waiting).map_err(io::Error::other)
}

/// Resolves when the process is over. Must be called inside a tokio runtime.
pub async fn ended(process: OwnedFd) -> io::Result<()> {
    // SAFETY: an `OwnedFd` has one number for all of its life, and the descriptor is open for as long; the registration
    // owns it, and drops itself before it.
    let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }?;
    process.readable().await.map(drop)
}

/// Marks an inherited descriptor as one that our own children do not inherit.
fn adopt(number: RawFd) -> io::Result<()> {
    // SAFETY: borrowed for this call only, which is defined for any number: the kernel answers
    // EBADF for one that is not open. It is not -1.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC).map_err(|error| {
        let message = format!("inherited descriptor {number} is not open");
        io::Error::new(io::Error::from(error).kind(), message)
    })
}

#[cfg(test)]
mod tests;
