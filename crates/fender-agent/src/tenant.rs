//! Whose share of the agent a caller uses up: that of its user, in its container.
//!
//! Most containers run as root, and a bound on root alone would let any of them use up what is there for all, and for the
//! host itself. So those of one user are told apart by their cgroups, which are read when they connect and without the
//! engine. This says what a caller may use up and never who it is: nothing is attested by it.
//!
//! Whoever could make as many names of containers as they like is not told apart: inside a container only the outermost
//! name counts, and no name below a cgroup that a user may have been given.

use std::fmt;
use std::sync::Arc;

use crate::container::id_in;
use crate::process::Process;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tenant {
    uid: u32,
    container: Option<Arc<str>>,
}

impl Tenant {
    /// Of a process that lives; whoever calls makes sure of that afterwards. Where its cgroup is hidden, its user alone.
    pub(crate) fn of(uid: u32, pid: u32) -> Self {
        let cgroup = Process::numbered(pid).and_then(|process| process.cgroup());
        Self::in_cgroup(uid, cgroup.as_deref().unwrap_or_default())
    }

    /// By the lines of `/proc/PID/cgroup`.
    pub(crate) fn in_cgroup(uid: u32, cgroup: &str) -> Self {
        let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let container = paths.filter_map(|path| container_of(uid, path)).next();
        Self {
            uid,
            container: container.map(Arc::from),
        }
    }
}

fn container_of(uid: u32, path: &str) -> Option<&str> {
    let mut above = path.split('/');
    let id = above.by_ref().find_map(|part| match id_in(part) {
        Some(id) => Some(Some(id)),
        None => may_be_delegated(uid, part).then_some(None),
    });
    id.flatten()
}

/// systemd gives a user what is below its own slice, and a service's user what is below the service. Of what root may be
/// given, root is the owner anyhow.
fn may_be_delegated(uid: u32, part: &str) -> bool {
    uid != 0 && (part == "user.slice" || part.ends_with(".service"))
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.container {
            Some(container) => write!(f, "user {} in the container `{container}`", self.uid),
            None => write!(f, "user {}", self.uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> String {
        digit.repeat(64)
    }

    #[test]
    fn attack_root_in_one_container_is_not_root_in_another_nor_on_the_host() {
        let host = Tenant::in_cgroup(0, "0::/system.slice/ssh.service\n");
        let one = Tenant::in_cgroup(0, &format!("0::/system.slice/docker-{}.scope\n", id("a")));
        let other = Tenant::in_cgroup(0, &format!("5:pids:/docker/{}\n0::/\n", id("b")));
        let pod = format!(
            "0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{}\n",
            id("c")
        );
        let pod = Tenant::in_cgroup(0, &pod);
        let all = [host, one, other, pod];
        for (place, tenant) in all.iter().enumerate() {
            assert!(!all.iter().skip(place + 1).any(|other| other == tenant));
        }
        let below = format!("0::/system.slice/docker-{}.scope/init\n", id("a"));
        let user = Tenant::in_cgroup(1000, &below);
        assert!(user != all[1], "another user is another");
        assert_eq!(Tenant::in_cgroup(0, &below), all[1]);
        assert_eq!(Tenant::in_cgroup(0, ""), all[0], "hidden: no container");
    }

    #[test]
    fn attack_cgroups_made_by_the_caller_bring_no_further_share() {
        let own = format!("0::/docker/{}\n", id("a"));
        for made in 0..3 {
            let made = id(&made.to_string());
            let inside = format!("0::/docker/{}/docker/{made}\n", id("a"));
            assert_eq!(Tenant::in_cgroup(0, &inside), Tenant::in_cgroup(0, &own));
            let nobody = Tenant::in_cgroup(1000, "0::/\n");
            for given in [
                format!("0::/user.slice/user-1000.slice/user@1000.service/docker-{made}.scope\n"),
                format!("0::/system.slice/shop.service/docker-{made}.scope\n"),
                format!("1:name=systemd:/user.slice/user-1000.slice/{made}\n0::/\n"),
            ] {
                assert_eq!(Tenant::in_cgroup(1000, &given), nobody, "{given}");
            }
        }
    }
}
