//! Starting processes, signalling them, and a shell's view of how they ended.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use fender_runtime::sys::{self, Signal};
use rustix::process::{Pid, WaitStatus};

/// A program to run.
#[derive(Clone, Debug)]
pub struct Program {
    pub program: OsString,
    pub arguments: Vec<OsString>,
    /// Its whole environment; this process's own if none is given.
    pub environment: Option<Vec<(OsString, OsString)>>,
    /// How many of the descriptors 3, 4, … it inherits, if they are withheld from others.
    pub descriptors: u16,
}

/// Starts `program` in a process group of its own, with every signal at its default but one that is to stay `ignored`: a key pressed
/// at a terminal reaches it through us only, and it inherits nothing else that we ignore or block.
/// `environment` is the whole of it, instead of what the program says; `output` is where it writes, instead of where we do.
pub(super) fn start(
    program: &Program,
    environment: Option<&[(OsString, OsString)]>,
    input: Stdio,
    output: Option<[Stdio; 2]>,
    ignored: Option<Signal>,
) -> io::Result<Pid> {
    let mut command = Command::new(&program.program);
    command
        .args(&program.arguments)
        .stdin(input)
        .process_group(0);
    if let Some([output, error]) = output {
        command.stdout(output).stderr(error);
    }
    if let Some(environment) = environment.or(program.environment.as_deref()) {
        command
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)));
    }
    sys::default_signals(&mut command, ignored);
    sys::allow_core_files(&mut command);
    sys::pass_descriptors(&mut command, program.descriptors);
    // The handle is dropped: whoever waits for any child waits for this one too.
    let child = command.spawn()?;
    Ok(Pid::from_child(&child))
}

/// Makes the application the terminal's foreground, if there is a terminal: in a group of its own it
/// would be stopped at its first read from it. Nobody takes it back: the shell does when we end.
pub(super) fn hand_over_terminal(app: Pid) {
    let input = io::stdin();
    if !rustix::termios::isatty(&input) {
        return;
    }
    match rustix::termios::tcsetpgrp(&input, app) {
        // It may have read already, and been stopped.
        Ok(()) => send(app, Signal::CONT),
        Err(error) => tracing::debug!(%error, "the terminal stays with somebody else"),
    }
}

pub(super) fn send(pid: Pid, signal: Signal) {
    match rustix::process::kill_process(pid, signal) {
        // It is over and not yet reaped, or was reaped a moment ago.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => tracing::warn!(signal = signal.as_raw(), %error, "cannot forward a signal"),
    }
}

/// A shell's view of how a process ended.
pub(super) fn code(status: WaitStatus) -> u8 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => code_of_signal(signal),
        (None, None) => u8::MAX,
    }
}

pub(super) fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
