//! What is said of one task over its socket: the task, and what came of it. Both ends are the same program.

use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::{Exit, Finished, LONGEST, MOST, RunError, Task};
use crate::deadline::Deadline;

/// A task weighs at most this.
const HEAVIEST: usize = 256 * 1024;
/// The socket comes with its task.
const PATIENCE: Duration = Duration::from_secs(5);

/// The task was read, and is about to begin.
const TAKEN: u8 = 1;

const FINISHED: u8 = 0;
const NOT_ALLOWED: u8 = 1;
const START: u8 = 2;
const TIMEOUT: u8 = 3;
const TOO_MUCH: u8 = 4;

/// Four bytes of length, then: milliseconds, limit, and each text with its length.
pub(super) fn task(task: &Task) -> Vec<u8> {
    let mut body = Vec::new();
    let millis = u64::try_from(task.timeout.as_millis()).unwrap_or(u64::MAX);
    body.extend(millis.to_le_bytes());
    body.extend(length(task.most));
    let mut put = |bytes: &[u8]| {
        body.extend(length(bytes.len()));
        body.extend(bytes);
    };
    put(&task.input);
    put(task.program.as_os_str().as_bytes());
    for argument in &task.arguments {
        put(argument.as_bytes());
    }
    let mut frame = length(body.len()).to_vec();
    frame.extend(body);
    frame
}

fn length(of: usize) -> [u8; 4] {
    u32::try_from(of).unwrap_or(u32::MAX).to_le_bytes()
}

pub(super) async fn read_task(stream: &mut UnixStream) -> io::Result<Task> {
    let read = async {
        let length = stream.read_u32_le().await? as usize;
        if length > HEAVIEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        parse(&body).ok_or_else(|| io::ErrorKind::InvalidData.into())
    };
    match Deadline::after(PATIENCE).bound(read).await {
        Ok(task) => task,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn parse(mut body: &[u8]) -> Option<Task> {
    let millis = u64::from_le_bytes(*body.split_off(..8)?.first_chunk()?);
    let most = number(&mut body)?;
    let input = text(&mut body)?.to_vec();
    let program = std::ffi::OsString::from_vec(text(&mut body)?.to_vec()).into();
    let mut arguments = Vec::new();
    while !body.is_empty() {
        arguments.push(String::from_utf8(text(&mut body)?.to_vec()).ok()?);
    }
    Some(Task {
        program,
        arguments,
        input,
        most: most.min(MOST),
        timeout: Duration::from_millis(millis).min(LONGEST),
    })
}

fn number(body: &mut &[u8]) -> Option<usize> {
    let bytes = body.split_off(..4)?;
    usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok()
}

fn text<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(body)?;
    body.split_off(..length)
}

/// Says that the task was read.
pub(super) async fn write_taken(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_u8(TAKEN).await
}

/// Waits until somebody has read the task.
pub(super) async fn read_taken(stream: &mut UnixStream) -> io::Result<()> {
    match stream.read_u8().await? {
        TAKEN => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A byte for what came of it, the exit code or minus the signal, the count of complaints, the length, the bytes.
pub(super) async fn write_answer(
    stream: &mut UnixStream,
    answer: Result<Finished, RunError>,
) -> io::Result<()> {
    let (kind, exit, complaints, bytes) = match answer {
        Ok(finished) => {
            let exit = match finished.exit {
                Exit::Code(code) => code,
                Exit::Signal(signal) => -signal,
            };
            (FINISHED, exit, finished.complaints, finished.output)
        }
        Err(error) => {
            let (kind, why) = match error {
                RunError::NotAllowed => (NOT_ALLOWED, String::new()),
                RunError::Start(why) => (START, why),
                RunError::Timeout => (TIMEOUT, String::new()),
                RunError::TooMuch => (TOO_MUCH, String::new()),
                // Then nobody reads it either.
                RunError::Gone => return Ok(()),
            };
            (kind, 0, 0, Zeroizing::new(why.into_bytes()))
        }
    };
    stream.write_u8(kind).await?;
    stream.write_i32_le(exit).await?;
    stream.write_u64_le(complaints).await?;
    stream.write_all(&length(bytes.len())).await?;
    stream.write_all(&bytes).await
}

pub(super) async fn read_answer(stream: &mut UnixStream) -> io::Result<Result<Finished, RunError>> {
    let kind = stream.read_u8().await?;
    let exit = stream.read_i32_le().await?;
    let complaints = stream.read_u64_le().await?;
    let length = stream.read_u32_le().await? as usize;
    if length > MOST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut bytes).await?;
    Ok(match kind {
        FINISHED => Ok(Finished {
            exit: match exit {
                0.. => Exit::Code(exit),
                signal => Exit::Signal(signal.saturating_neg()),
            },
            output: bytes,
            complaints,
        }),
        NOT_ALLOWED => Err(RunError::NotAllowed),
        START => Err(RunError::Start(
            String::from_utf8_lossy(&bytes).into_owned(),
        )),
        TIMEOUT => Err(RunError::Timeout),
        TOO_MUCH => Err(RunError::TooMuch),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    })
}

/// Resolves once nobody is at the other end, or somebody says more than there is to say.
pub(super) async fn closed(stream: &UnixStream) {
    let mut more = [0; 1];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut more) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_read_as_it_was_written_and_nothing_else_is_a_task() {
        let written = Task {
            program: "/usr/lib/app/plug in".into(),
            arguments: vec![String::new(), "--of=ü".to_owned()],
            input: b"{}\n".to_vec(),
            most: 77,
            timeout: Duration::from_millis(1500),
        };
        let frame = task(&written);
        let read = parse(&frame[4..]).unwrap();
        assert_eq!(
            (read.program, read.arguments, read.input),
            (written.program, written.arguments, written.input)
        );
        assert_eq!((read.most, read.timeout), (77, written.timeout));
        let whole = [43, 47];
        for end in 0..frame.len() - 4 {
            // Cut between two arguments it is a task of fewer; that the frame has its length rules that out.
            let cut = parse(&frame[4..4 + end]);
            assert!(cut.is_none() || whole.contains(&end), "{end}");
        }
    }

    #[test]
    fn attack_a_task_cannot_ask_for_more_than_there_is() {
        let greedy = Task {
            program: "/x".into(),
            arguments: Vec::new(),
            input: Vec::new(),
            most: usize::MAX,
            timeout: Duration::MAX,
        };
        let read = parse(&task(&greedy)[4..]).unwrap();
        assert_eq!((read.most, read.timeout), (MOST, LONGEST));
        let mut lies = task(&greedy);
        // The length of the input.
        lies[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&lies[4..]).is_none());
    }
}
