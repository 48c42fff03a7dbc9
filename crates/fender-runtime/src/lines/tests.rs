use std::sync::mpsc;

use super::*;

fn put(lines: &Lines, text: &str) {
    lines.write(|out| out.extend_from_slice(format!("{text}\n").as_bytes()));
}

/// Each batch waits to be let through; the test sees what was written.
struct Gate {
    batches: mpsc::Sender<Vec<u8>>,
    open: mpsc::Receiver<()>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.batches.send(bytes.to_vec());
        match self.open.recv() {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gated() -> (Lines, Writer, mpsc::Receiver<Vec<u8>>, mpsc::Sender<()>) {
    let (batches, seen) = mpsc::channel();
    let (let_through, open) = mpsc::channel();
    let (lines, writer) = start(Gate { batches, open }).unwrap();
    (lines, writer, seen, let_through)
}

#[test]
fn many_lines_are_one_write_and_none_is_lost_or_cut_at_the_end() {
    let (lines, writer, seen, let_through) = gated();
    put(&lines, "first");
    // While it is being written, others gather.
    assert_eq!(seen.recv().unwrap(), b"first\n");
    for number in 0..100 {
        put(&lines, &number.to_string());
    }
    let_through.send(()).unwrap();
    let_through.send(()).unwrap();
    drop(writer);
    let batch = String::from_utf8(seen.recv().unwrap()).unwrap();
    assert_eq!(batch.lines().count(), 100);
    assert!(batch.starts_with("0\n1\n") && batch.ends_with("99\n"));
    assert_eq!(lines.dropped(), 0);
}

#[test]
fn a_destination_that_takes_nothing_costs_lines_and_never_time_or_memory() {
    let (lines, writer, seen, let_through) = gated();
    let line = "x".repeat(1023);
    put(&lines, &line);
    seen.recv().unwrap();
    // Nobody lets the first batch through: what comes now fills the buffer, and no more than that.
    for _ in 0..WAITING / 1024 + 7 {
        put(&lines, &line);
    }
    assert_eq!(lines.dropped(), 7);
    let_through.send(()).unwrap();
    let_through.send(()).unwrap();
    drop(writer);
    assert_eq!(seen.recv().unwrap().len(), WAITING);
    put(&lines, "too late");
    assert_eq!(lines.dropped(), 8);
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let (lines, writer, seen, let_through) = gated();
    put(&lines, "one");
    seen.recv().unwrap();
    put(&lines, "two");
    put(&lines, "three");
    drop(let_through);
    drop(writer);
    assert_eq!(lines.dropped(), 3);
}

#[test]
fn nothing_is_put_together_when_nobody_reads_it() {
    let (lines, _writer) = open(&Destination::Nowhere).unwrap();
    lines.write(|_| panic!("nobody reads this"));
    assert_eq!(lines.dropped(), 0);
}

#[test]
fn a_file_that_was_renamed_or_removed_is_made_anew_and_one_that_was_there_is_appended_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    std::fs::write(&path, "before\n").unwrap();
    let written = |text: &str| {
        let (lines, writer) = open(&Destination::File(path.clone())).unwrap();
        put(&lines, text);
        drop(writer);
    };
    written("after");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");

    let mut file = Appended::open(path.clone()).unwrap();
    file.write_all(b"old\n").unwrap();
    let rotated = directory.path().join("access.log.1");
    std::fs::rename(&path, &rotated).unwrap();
    file.write_all(b"new\n").unwrap();
    assert!(
        std::fs::read_to_string(&rotated)
            .unwrap()
            .ends_with("old\n")
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
    std::fs::remove_file(&path).unwrap();
    file.write_all(b"newer\n").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "newer\n");
    let mode = std::fs::metadata(&path).unwrap().mode();
    assert_eq!(mode & 0o777 & !MODE, 0, "{mode:o}");

    // Cut to nothing in place, as `copytruncate` does: the next line is the first again.
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    file.write_all(b"newest\n").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "newest\n");
}

#[test]
fn a_name_that_cannot_be_opened_again_keeps_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let (path, moved) = (directory.path().join("log"), directory.path().join("moved"));
    let mut file = Appended::open(path.clone()).unwrap();
    std::fs::rename(&path, &moved).unwrap();
    std::fs::create_dir(&path).unwrap();
    file.write_all(b"still here\n").unwrap();
    assert_eq!(std::fs::read_to_string(&moved).unwrap(), "still here\n");
}

#[test]
fn a_pipe_is_refused_instead_of_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
    let error = open(&Destination::File(path)).unwrap_err().to_string();
    assert!(error.contains("pipe"), "{error}");
}

#[test]
fn a_destination_is_a_stream_or_a_path_and_no_other_word() {
    for (text, destination) in [
        ("stderr", Destination::StandardError),
        ("stdout", Destination::StandardOutput),
        ("off", Destination::Nowhere),
        ("/var/log/a", Destination::File("/var/log/a".into())),
        ("./off", Destination::File("./off".into())),
    ] {
        assert_eq!(text.parse(), Ok(destination));
    }
    let error = "of".parse::<Destination>().unwrap_err().to_string();
    assert!(error.contains("`./of`"), "{error}");
}
