//! What the container engine says of a caller's container. It is only asked, never told to do anything.
//!
//! Which container a process is in comes from its cgroup, and is believed only if the engine's own process of that
//! container is in the same one: whoever may make cgroups may call one as they like. The engine is asked twice, before and
//! after that process is looked at: it must have run all the while, and its number been nobody else's.

use std::collections::HashMap;
use std::path::Path;

use bollard::Docker;
use fender_api::facts::ContainerFacts;
use fender_config::Image;

use crate::process::{Process, Unattested};

/// What one question may take.
const ASK_SECONDS: u64 = 10;
const ID: usize = 64;

/// The engine of this host.
#[derive(Clone, Debug)]
pub struct Engine(Docker);

impl Engine {
    /// Finds out which version of its interface it speaks.
    pub async fn connect(socket: &Path) -> Result<Self, EngineError> {
        let path = socket.to_str().ok_or_else(|| EngineError {
            socket: socket.display().to_string(),
            why: "the path is not UTF-8".to_owned(),
        })?;
        let failed = |error: bollard::errors::Error| EngineError {
            socket: path.to_owned(),
            why: error.to_string(),
        };
        let docker = Docker::connect_with_unix(path, ASK_SECONDS, bollard::API_DEFAULT_VERSION)
            .map_err(failed)?;
        docker.negotiate_version().await.map(Self).map_err(failed)
    }

    /// None if the process is in no container.
    pub(crate) async fn facts(
        &self,
        process: &Process,
    ) -> Result<Option<ContainerFacts>, Unattested> {
        let cgroup = process.cgroup()?;
        let Some(id) = container_of(&cgroup) else {
            return Ok(None);
        };
        let container = self.running(id).await?;
        let first = Process::numbered(container.first)?.cgroup()?;
        // Before this line the number of its first process may have had another owner.
        if self.running(id).await?.life() != container.life() {
            return Err(Unattested::Restarted(id.to_owned()));
        }
        if !is_within(&cgroup, &first, id) {
            return Err(Unattested::NotInContainer(id.to_owned()));
        }
        let image = self.0.inspect_image(&container.image).await;
        let digests = image.map_err(failed)?.repo_digests.unwrap_or_default();
        Ok(Some(ContainerFacts {
            id: id.to_owned(),
            image: container
                .image
                .parse()
                .map_err(|error: fender_config::InvalidDigest| {
                    Unattested::Engine(error.to_string())
                })?,
            digests: digests
                .iter()
                .filter_map(|text| text.parse::<Image>().ok())
                .collect(),
            labels: container.labels.into_iter().collect(),
        }))
    }

    async fn running(&self, id: &str) -> Result<Running, Unattested> {
        let gone = || Unattested::NoContainer(id.to_owned());
        let container = match self.0.inspect_container(id, None).await {
            Ok(container) => container,
            Err(bollard::errors::Error::DockerResponseServerError {
                status_code: 404, ..
            }) => return Err(gone()),
            Err(error) => return Err(failed(error)),
        };
        let state = container
            .state
            .filter(|state| state.running == Some(true))
            .ok_or_else(gone)?;
        Ok(Running {
            first: state
                .pid
                .and_then(|pid| u32::try_from(pid).ok())
                .filter(|pid| *pid != 0)
                .ok_or_else(gone)?,
            since: state.started_at.ok_or_else(gone)?,
            image: container.image.unwrap_or_default(),
            labels: container
                .config
                .and_then(|config| config.labels)
                .unwrap_or_default(),
        })
    }
}

/// A container that runs, as the engine says.
struct Running {
    /// The number of its first process.
    first: u32,
    since: String,
    image: String,
    labels: HashMap<String, String>,
}

impl Running {
    /// Differs if it was started anew.
    fn life(&self) -> (u32, &str) {
        (self.first, &self.since)
    }
}

fn failed(error: bollard::errors::Error) -> Unattested {
    Unattested::Engine(error.to_string())
}

/// The outermost container named in the lines of `/proc/PID/cgroup`: `/docker/ID`, `/system.slice/docker-ID.scope`, and what
/// other engines make of it. Further in, names are whatever the container likes.
fn container_of(cgroup: &str) -> Option<&str> {
    cgroup
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find_map(|path| path.split('/').find_map(id_in))
}

pub(crate) fn id_in(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (before, id) = name.rsplit_once(['-', ':']).unwrap_or(("", name));
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    // Podman and CRI-O put a helper beside each container, which is a process of the host.
    let is_helper = before == "conmon" || before.ends_with("-conmon");
    (id.len() == ID && id.bytes().all(hex) && !is_helper).then_some(id)
}

/// In every hierarchy in which the container's first process is in the container's group, so is this one, or below.
fn is_within(cgroup: &str, first: &str, id: &str) -> bool {
    let parts = |line: &str| {
        let (hierarchy, rest) = line.split_once(':')?;
        let (_, path) = rest.split_once(':')?;
        Some((hierarchy.to_owned(), path.to_owned()))
    };
    let mut named = first
        .lines()
        .filter_map(parts)
        .filter(|(_, path)| path.split('/').any(|name| id_in(name) == Some(id)))
        .peekable();
    named.peek().is_some()
        && named.all(|(hierarchy, path)| {
            let below = format!("{path}/");
            cgroup
                .lines()
                .filter_map(parts)
                .any(|(of, found)| of == hierarchy && (found == path || found.starts_with(&below)))
        })
}

#[derive(Debug, thiserror::Error)]
#[error("the container engine at `{socket}` cannot be asked: {why}")]
pub struct EngineError {
    socket: String,
    why: String,
}

#[cfg(test)]
mod tests {
    use fender_runtime::drain::Drain;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn id() -> String {
        "0123456789abcdef".repeat(4)
    }

    #[test]
    fn a_container_is_named_by_its_cgroup_of_either_version() {
        let id = id();
        for (engine, cgroup) in [
            (
                "Docker, v1, cgroupfs",
                format!(
                    "11:name=systemd:/docker/{id}\n10:pids:/docker/{id}\n4:memory:/docker/{id}\n2:cpu,cpuacct:/docker/{id}\n\
                     0::/docker/{id}\n"
                ),
            ),
            (
                "Docker, v1, systemd",
                format!(
                    "12:pids:/system.slice/docker-{id}.scope\n1:name=systemd:/system.slice/docker-{id}.scope\n\
                     0::/system.slice/docker-{id}.scope\n"
                ),
            ),
            (
                "Docker, v1, whose second version knows only the engine",
                format!("5:devices:/docker/{id}\n0::/system.slice/containerd.service\n"),
            ),
            ("Docker, v2, cgroupfs", format!("0::/docker/{id}\n")),
            (
                "Docker, v2, systemd",
                format!("0::/system.slice/docker-{id}.scope\n"),
            ),
            (
                "Docker without root",
                format!(
                    "0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{id}.scope\n"
                ),
            ),
            ("seen from a container beside it", format!("0::/../{id}\n")),
            (
                "the same, by systemd",
                format!("0::/../docker-{id}.scope\n"),
            ),
            (
                "Docker, whose first process made groups of its own",
                format!("0::/system.slice/docker-{id}.scope/init.scope\n"),
            ),
            (
                "Podman",
                format!("0::/machine.slice/libpod-{id}.scope/container\n"),
            ),
            (
                "Podman without root",
                format!(
                    "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{id}.scope/container\n"
                ),
            ),
            (
                "containerd under Kubernetes, systemd",
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2f4a1c1e_7f0b_4b5e_9d59_27a6c8d0a1b2.slice/\
                     cri-containerd-{id}.scope\n"
                ),
            ),
            (
                "the same, where engine and kubelet have different drivers",
                format!(
                    "4:pids:/system.slice/containerd.service/kubepods-besteffort-pod2f4a1c1e.slice:cri-containerd:{id}\n"
                ),
            ),
            (
                "containerd under Kubernetes, cgroupfs",
                format!(
                    "1:name=systemd:/\n2:cpu:/kubepods/besteffort/pod2f4a1c1e-7f0b-4b5e-9d59-27a6c8d0a1b2/{id}\n"
                ),
            ),
            (
                "CRI-O",
                format!(
                    "0::/kubepods.slice/kubepods-pod2f4a1c1e.slice/crio-{id}.scope/container\n"
                ),
            ),
            ("nerdctl", format!("0::/default/{id}\n")),
        ] {
            assert_eq!(container_of(&cgroup), Some(id.as_str()), "{engine}");
            assert!(is_within(&cgroup, &cgroup, &id), "{engine}");
        }
        let helper = format!("0::/machine.slice/libpod-conmon-{id}.scope\n");
        for cgroup in [
            "0::/\n",
            "0::/user.slice/user-1000.slice\n",
            "0::/system.slice/ssh.service\n",
            "0::/docker/abc\n",
            "0::/docker/buildkit/qx0w3y5b1l8m6n4p2r7t9v1z3\n",
            &helper,
            "",
        ] {
            assert_eq!(container_of(cgroup), None, "{cgroup}");
        }
    }

    #[test]
    fn attack_a_cgroup_made_inside_a_container_names_no_other_one() {
        let (own, other) = (id(), "f".repeat(64));
        assert_eq!(
            container_of(&format!("0::/docker/{own}/docker/{other}\n")),
            Some(own.as_str())
        );
    }

    #[test]
    fn attack_a_cgroup_with_a_container_s_name_elsewhere_is_not_the_container() {
        let id = id();
        let first = format!("0::/system.slice/docker-{id}.scope\n");
        assert!(is_within(&first, &first, &id));
        assert!(is_within(
            &format!("0::/system.slice/docker-{id}.scope/below\n"),
            &first,
            &id
        ));
        let squatted = format!("0::/user.slice/user-1000.slice/docker-{id}.scope\n");
        assert!(!is_within(&squatted, &first, &id));
        let near = format!("0::/system.slice/docker-{id}.scope2\n");
        assert!(!is_within(&near, &first, &id));
        // The engine's process has moved away: nothing can be compared.
        assert!(!is_within(&first, "0::/\n", &id));
    }

    #[test]
    fn with_several_hierarchies_it_must_be_in_all_of_them() {
        let id = id();
        let first = format!("2:pids:/docker/{id}\n1:memory:/docker/{id}\n0::/\n");
        assert!(is_within(&first, &first, &id));
        let half = format!("2:pids:/docker/{id}\n1:memory:/\n0::/\n");
        assert!(!is_within(&half, &first, &id));
    }

    /// An engine that says of one container what it is given to say, question by question, and then the last thing again.
    async fn engine(states: Vec<String>) -> (Engine, Drain, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let drain = Drain::new();
        let stop = drain.clone();
        drain.spawn(async move {
            let mut states = states.into_iter();
            let mut last = String::new();
            loop {
                let (mut socket, _) = tokio::select! {
                    () = stop.stopping() => return,
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let body = match head.split(' ').nth(1).unwrap() {
                    path if path.ends_with("/version") => r#"{"ApiVersion":"1.41"}"#.to_owned(),
                    path if path.contains("/containers/") => {
                        last = states.next().unwrap_or(last);
                        last.clone()
                    }
                    path => {
                        assert!(path.contains("/images/"), "{path}");
                        r#"{"RepoDigests":[]}"#.to_owned()
                    }
                };
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (Engine::connect(&path).await.unwrap(), drain, directory)
    }

    fn state(pid: u32, since: &str, running: bool) -> String {
        let image = format!("sha256:{}", "1".repeat(64));
        format!(
            r#"{{"Image":"{image}","State":{{"Running":{running},"Pid":{pid},"StartedAt":"{since}"}},"Config":{{"Labels":{{}}}}}}"#
        )
    }

    /// A process whose cgroup is called like a container's.
    struct Contained {
        child: std::process::Child,
        group: std::path::PathBuf,
    }

    impl Contained {
        fn start(id: &str) -> Self {
            let root = Path::new("/sys/fs/cgroup");
            let root = match root.join("cgroup.procs").exists() {
                true => root.to_owned(),
                false => root.join("pids"),
            };
            let group = root.join(format!("docker-{id}.scope"));
            std::fs::create_dir(&group).expect("make a cgroup: run the tests as root");
            let child = std::process::Command::new("sleep")
                .arg("600")
                .spawn()
                .unwrap();
            std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
            Self { child, group }
        }

        fn process(&self) -> Process {
            Process::numbered(self.child.id()).unwrap()
        }
    }

    impl Drop for Contained {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = std::fs::remove_dir(&self.group);
        }
    }

    #[tokio::test]
    async fn attack_a_container_that_was_started_anew_meanwhile_lends_its_number_to_nobody() {
        let id = "ab".repeat(32);
        let contained = Contained::start(&id);
        let pid = contained.child.id();
        let then = "2026-01-01T00:00:00Z";
        let asked = async |states: Vec<String>| {
            let (engine, drain, _directory) = engine(states).await;
            let facts = engine.facts(&contained.process()).await;
            drain.stop();
            drain.drained().await;
            facts
        };
        // The same engine and the same process, were it the container's all the while.
        let facts = asked(vec![state(pid, then, true)]).await.unwrap().unwrap();
        assert_eq!(facts.id, id);
        for second in [
            state(pid, "2026-01-01T00:00:09Z", true),
            state(pid + 1, then, true),
        ] {
            let refused = asked(vec![state(pid, then, true), second])
                .await
                .unwrap_err();
            assert!(matches!(refused, Unattested::Restarted(_)), "{refused}");
        }
        let ended = asked(vec![state(pid, then, true), state(pid, then, false)]).await;
        assert!(matches!(ended, Err(Unattested::NoContainer(_))));
    }
}
