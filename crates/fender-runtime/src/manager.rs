//! What a service manager is told: the protocol of `sd_notify(3)`, which is a datagram to `NOTIFY_SOCKET`.
//!
//! Nothing waits for it and nothing fails by it. The variable is an argument, because the environment is read in one
//! place; without one nobody is told anything.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::time::{ClockId, clock_gettime};

/// Somebody who started this process and asked to hear how it is.
#[derive(Debug, Default)]
pub struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    /// `variable` is what `NOTIFY_SOCKET` says: a path, or an abstract name after `@`.
    pub fn from_variable(variable: Option<&OsStr>) -> Self {
        let Some(variable) = variable.filter(|text| !text.is_empty()) else {
            return Self::default();
        };
        match Self::reach(variable) {
            Ok(reached) => Self(Some(reached)),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET names no socket: the service manager hears nothing");
                Self::default()
            }
        }
    }

    fn reach(variable: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
        let address = match variable.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(variable)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok((socket, address))
    }

    /// Everything needed is there; also the end of a reload.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// Documents are read again. [`Manager::ready`] ends it.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Another process is the service from now on.
    pub fn succeeded_by(&self, pid: u32) {
        self.tell(&format!("MAINPID={pid}"));
    }

    fn tell(&self, state: &str) {
        let Some((socket, address)) = &self.0 else {
            return;
        };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::debug!(%error, state, "the service manager was not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut datagram = [0; 256];
        let length = socket.recv(&mut datagram).unwrap();
        String::from_utf8_lossy(&datagram[..length]).into_owned()
    }

    #[test]
    fn a_manager_hears_at_a_path_and_at_a_name_without_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let at_path = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::from_variable(Some(path.as_os_str()));
        manager.ready();
        assert_eq!(heard(&at_path), "READY=1");
        manager.reloading();
        let reloading = heard(&at_path);
        let micros = reloading
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0);

        let name = format!("fender-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let at_name = UnixDatagram::bind_addr(&address).unwrap();
        let manager = Manager::from_variable(Some(OsStr::new(&format!("@{name}"))));
        manager.succeeded_by(42);
        manager.stopping();
        assert_eq!(
            [heard(&at_name), heard(&at_name)],
            ["MAINPID=42", "STOPPING=1"]
        );
    }

    #[test]
    fn whoever_is_not_there_is_not_waited_for() {
        Manager::from_variable(None).ready();
        Manager::from_variable(Some(OsStr::new(""))).ready();
        Manager::from_variable(Some(OsStr::new("/nowhere/at/all"))).ready();
        Manager::from_variable(Some(OsStr::new(&"x".repeat(300)))).ready();
    }
}
