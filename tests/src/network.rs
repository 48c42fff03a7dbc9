//! Hosts in miniature: each with a network of its own, joined by one bridge whose wires can be cut, and, if that is wanted, each
//! with a wall clock of its own.
//!
//! A cut is silent, as a broken network is: packets are lost on the bridge, nothing is reset and nobody is told. Each host is a
//! network namespace, held by a descriptor of this process and by what runs in it: when both have ended, however they ended,
//! nothing is left. The network of the machine is never touched. Making namespaces needs root.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::clock::Clock;
use crate::process::installed;

/// Which pairs of addresses lose what the first sends to the second.
const RULES: &str = "table bridge wires {
    set lost { type ipv4_addr . ipv4_addr; }
    chain pass {
        type filter hook forward priority filter;
        ip saddr . ip daddr @lost drop
    }
}";

#[derive(Debug)]
pub struct Network {
    bridge: Namespace,
    hosts: Vec<Host>,
}

#[derive(Debug)]
pub struct Host {
    pub name: String,
    pub address: Ipv4Addr,
    namespace: Namespace,
    clock: Option<Clock>,
}

impl Network {
    /// Hosts that reach each other, by the machine's clock.
    pub fn new(names: &[&str]) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "networks of our own need root: run the tests as root"
        );
        let bridge = Namespace::new();
        bridge.ip("link add bridge type bridge");
        bridge.ip("link set bridge up");
        bridge.nft(RULES);
        let hosts = names.iter().zip(1..);
        let hosts = hosts.map(|(name, number)| Host::join(&bridge, name, number));
        Self {
            hosts: hosts.collect(),
            bridge,
        }
    }

    /// Gives each host a clock, right as yet, for what is started from now on.
    pub fn with_clocks(mut self, directory: &Path) -> Self {
        for host in &mut self.hosts {
            host.clock = Some(Clock::right(directory, &host.name));
        }
        self
    }

    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|host| host.name == name)
            .unwrap_or_else(|| panic!("no host is called `{name}`"))
    }

    /// Between one host and others nothing passes any more.
    pub fn cut(&self, one: &str, others: &[&str]) {
        for other in others {
            self.deafen(one, other);
            self.deafen(other, one);
        }
    }

    /// What `speaker` sends does not reach `listener` any more; the other way all is well.
    pub fn deafen(&self, listener: &str, speaker: &str) {
        let (from, to) = (self.host(speaker).address, self.host(listener).address);
        self.bridge.nft(&format!(
            "add element bridge wires lost {{ {from} . {to} }}"
        ));
    }

    /// Takes down the link of a host, which is alone then.
    pub fn unplug(&self, name: &str) {
        let name = &self.host(name).name;
        self.bridge.ip(&format!("link set {name} down"));
    }

    /// All is well again, everywhere.
    pub fn mend(&self) {
        self.bridge.nft("flush set bridge wires lost");
        for host in &self.hosts {
            self.bridge.ip(&format!("link set {} up", host.name));
        }
    }
}

impl Host {
    /// A namespace with loopback and one end of a wire to the bridge.
    fn join(bridge: &Namespace, name: &str, number: u8) -> Self {
        // TEST-NET-1: addresses that exist in documents only.
        let address = Ipv4Addr::new(192, 0, 2, number);
        let namespace = Namespace::new();
        namespace.ip("link set lo up");
        let other_end = bridge.path();
        namespace.ip(&format!(
            "link add wire type veth peer name {name} netns {other_end}"
        ));
        namespace.ip(&format!("address add {address}/24 dev wire"));
        namespace.ip("link set wire up");
        bridge.ip(&format!("link set {name} master bridge up"));
        Self {
            name: name.to_owned(),
            address,
            namespace,
            clock: None,
        }
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }

    /// Does something as on that host: sockets are made in its network, and so are those of the processes and threads that
    /// are started.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    /// A command by the host's clock, if it has one. To be started by [`run`](Self::run).
    pub fn command(&self, program: &Path) -> Command {
        match &self.clock {
            Some(clock) => clock.command(program),
            None => Command::new(program),
        }
    }

    /// Sets its clock so many seconds ahead of the machine's, or behind it.
    pub fn set_clock_wrong_by(&self, seconds: i64) {
        let clock = self.clock.as_ref().expect("the hosts have clocks");
        clock.set_wrong_by(seconds);
    }
}

/// A network namespace, there as long as this is.
#[derive(Debug)]
struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let mut maker = Command::new(installed("unshare"))
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run unshare");
        let (mut to, mut from) = (
            maker.stdin.take().expect("a pipe to it"),
            maker.stdout.take().expect("a pipe from it"),
        );
        // What comes back was read in the new namespace.
        to.write_all(b"?")
            .and_then(|()| from.read_exact(&mut [0]))
            .expect("make a network namespace");
        let namespace = File::open(format!("/proc/{}/ns/net", maker.id()));
        drop(to);
        maker.wait().expect("wait for unshare");
        Self(namespace.expect("hold the network namespace"))
    }

    /// By what another program finds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// In a thread of its own, because a thread that has moved would have to move back.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let moved = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter a network namespace");
                work()
            });
            moved.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn ip(&self, arguments: &str) {
        self.ran("ip", &arguments.split(' ').collect::<Vec<_>>());
    }

    fn nft(&self, rules: &str) {
        self.ran("nft", &[rules]);
    }

    fn ran(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(installed(program));
        command.args(arguments).stdin(Stdio::null());
        let output = self.run(|| command.output().expect("run a command"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
    }
}
