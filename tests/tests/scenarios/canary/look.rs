//! Whoever runs as the sidecar's own user cannot look into it, and it leaves no core file.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary, installed};
use fender_tests::wait_until;
use rustix::process::{Pid, Signal};

use super::CANARY;
use super::search::{descendants, files};
use crate::standalone::ORDERS;

/// Whose sidecar it is, and who attacks: the same user, and not root.
const USER: u32 = 4410;

/// Tries everything by which a process looks into another of its user; says what of it was possible.
const LOOK: &str = r#"
import ctypes, os, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
def attempt(name, action):
    try:
        action()
        print(name)
    except OSError:
        pass
def seize():
    if libc.ptrace(PTRACE_SEIZE, ctypes.c_long(pid), None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
def pidfd():
    # pidfd_getfd: a descriptor of it, a socket to a store for instance.
    fd = os.pidfd_open(pid)
    if libc.syscall(438, fd, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
def vm():
    class iovec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
    buffer = ctypes.create_string_buffer(8)
    mine, its = iovec(ctypes.addressof(buffer), 8), iovec(0x1000, 8)
    # What is not allowed is refused before the address is looked at (EPERM, not EFAULT).
    if libc.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(its), 1, 0) < 0 and ctypes.get_errno() != 14:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
attempt("ptrace", seize)
attempt("mem", lambda: open(f"/proc/{pid}/mem", "rb"))
attempt("environ", lambda: open(f"/proc/{pid}/environ", "rb").read())
attempt("maps", lambda: open(f"/proc/{pid}/maps", "rb").read())
attempt("fd", lambda: os.listdir(f"/proc/{pid}/fd"))
attempt("root", lambda: os.listdir(f"/proc/{pid}/root"))
attempt("descriptor", pidfd)
attempt("memory", vm)
"#;

fn as_user(program: &Path) -> Command {
    let mut command = Command::new(installed("setpriv"));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .current_dir("/")
        .args([format!("--reuid={USER}"), format!("--regid={USER}")])
        .args(["--clear-groups", "--inh-caps=-all", "--"])
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// What the same user can do to a process.
fn looked_into(pid: u32) -> String {
    let mut command = as_user(&installed("python3"));
    let ended = command
        .args(["-c", LOOK, &pid.to_string()])
        .output()
        .unwrap();
    assert!(ended.status.success(), "{ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

/// How large a core file may become, soft and hard.
fn core_limit(pid: u32) -> [String; 2] {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"));
    let mut words = line.unwrap().split_whitespace().map(ToOwned::to_owned);
    [words.next().unwrap(), words.next().unwrap()]
}

#[test]
fn attack_nobody_of_its_user_looks_into_a_sidecar_and_it_leaves_no_core_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(directory.path(), 0o755);
    fender_tests::process::put_program(&binary(), &path("fender"));
    let authority = Authority::new("example.org");
    authority
        .issue(&Template::svid(ORDERS))
        .write(&path("identity"));
    authority.write_bundle(&path("identity"));
    fs::create_dir(path("run")).unwrap();
    fs::write(path("source"), CANARY).unwrap();
    fs::write(path("plugin"), "#!/bin/sh\nexit 1\n").unwrap();
    mode(&path("plugin"), 0o755);
    let own = directory.path().display();
    // With a plug-in, so that there is a helper for them as well.
    let text = format!(
        r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec:
  identity: {{ files: {{ certificate: {own}/identity/certificate.pem, key: {own}/identity/key.pem, bundle: {own}/identity/bundle.pem }} }}
  credentials: [ smtp ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: smtp }}
spec:
  source: {{ file: {{ path: {own}/source }} }}
  deliver: [ {{ file: {{ path: {own}/run/smtp, storage: disk }} }} ]
  notify: [ {{ command: {{ program: {own}/plugin }} }} ]
"#
    );
    fs::write(path("sidecar.yaml"), text).unwrap();
    for entry in files(directory.path()) {
        chown(entry, Some(USER), Some(USER)).unwrap();
    }
    for own in ["identity", "run"] {
        chown(path(own), Some(USER), Some(USER)).unwrap();
    }

    // What is possible where nobody minds, so that "nothing" below means something.
    let mut other = Process::start(
        "other",
        as_user(&installed("sleep")).arg("100000"),
        &path("other.log"),
    );
    wait_until("the other one runs", PATIENCE, || {
        fs::read(format!("/proc/{}/cmdline", other.pid()))
            .unwrap()
            .starts_with(b"/usr/bin/sleep")
            || fs::read(format!("/proc/{}/cmdline", other.pid()))
                .unwrap()
                .starts_with(b"/bin/sleep")
    });
    let possible = looked_into(other.pid());
    println!(
        "of a process that does not mind: {}",
        possible.replace('\n', " ")
    );
    for what in ["environ", "maps", "fd"] {
        assert!(possible.contains(what), "{possible}");
    }
    other.kill();

    // As on a machine where core files are wanted.
    let mut command = as_user(Path::new("/bin/sh"));
    command
        .args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\""])
        .arg(path("fender"))
        .args(["sidecar", "--config"])
        .arg(path("sidecar.yaml"))
        .arg("--admin-socket")
        .arg(path("run/admin.sock"))
        .args(["--", "/bin/sleep", "100000"]);
    let mut sidecar = Process::start("sidecar", &mut command, &path("run/log"));
    sidecar.wait_ready(&path("run/admin.sock"));

    let (mut of_fender, mut application) = (0, None);
    for pid in descendants(sidecar.pid()) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        if line.starts_with(b"/bin/sleep") {
            application = Pid::from_raw(pid as i32);
            assert_eq!(core_limit(pid), ["unlimited", "unlimited"]);
            continue;
        }
        of_fender += 1;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert_eq!(looked_into(pid), "", "{line}");
        // The supervisor could take it back, and does, for its application.
        let hard = if pid == sidecar.pid() {
            "unlimited"
        } else {
            "0"
        };
        assert_eq!(core_limit(pid), ["0", hard], "{line}");
    }
    assert_eq!(
        of_fender, 4,
        "supervisor, proxy and the two of the helper were looked at"
    );

    // The proxy would be started again, so it is the supervisor that dies: even where somebody has given it a limit that allows core files.
    let mut command = as_user(&installed("prlimit"));
    let supervisor = sidecar.pid().to_string();
    let ended = command
        .args(["--core=unlimited", "--pid", &supervisor])
        .status();
    assert!(ended.unwrap().success());
    assert_eq!(core_limit(sidecar.pid()), ["unlimited", "unlimited"]);
    // Rust's own handler lets the first one pass, for the instruction to be tried again.
    wait_until("the supervisor dies", PATIENCE, || {
        if sidecar.is_running() {
            sidecar.signal(Signal::SEGV);
        }
        !sidecar.is_running()
    });
    let status = sidecar.wait(PATIENCE);
    println!("{status}");
    assert!(!status.core_dumped(), "{status}");
    // It outlives a supervisor that dies so.
    rustix::process::kill_process(application.unwrap(), Signal::KILL).unwrap();
    for place in [directory.path(), &path("run"), Path::new("/")] {
        for entry in fs::read_dir(place).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(!name.to_string_lossy().starts_with("core"), "{name:?}");
        }
    }
}
