//! `fender agent`: a process gets its identity because of what it is, on the host it is meant to be on, and by nothing
//! it holds (DESIGN §14).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fender_tests::docker::Engine;
use fender_tests::process::{PATIENCE, Process, binary, installed, output, put_program};
use fender_tests::{Mesh, wait_until};

pub(crate) const REFUSED: i32 = 77;
pub(crate) const ORDERS: u32 = 4301;
pub(crate) const STRANGER: u32 = 4302;

/// A mesh whose one node has an agent, and whose workload is placed there.
pub(crate) struct Host {
    pub(crate) mesh: Mesh,
    pub(crate) agent: Process,
}

pub(crate) fn node(name: &str) -> String {
    format!(
        "---\napiVersion: fender.dev/v1\nkind: Node\nmetadata: {{ name: {name} }}\nspec: {{ attest: [ {{ token: {{}} }} ] }}\n"
    )
}

pub(crate) fn workload(name: &str, attest: &str) -> String {
    format!(
        "---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: {{ namespace: shop, name: {name} }}\nspec: {{ attest: [ {attest} ] }}\n"
    )
}

impl Host {
    pub(crate) fn start(workloads: &str, flags: &[&str]) -> Self {
        Self::start_with("1h", workloads, flags)
    }

    /// With this lifetime of certificates.
    pub(crate) fn start_with(leaf: &str, workloads: &str, flags: &[&str]) -> Self {
        let rest = [node("edge-1"), node("edge-2"), workloads.to_owned()].concat();
        let mesh = Mesh::start(&Mesh::documents(leaf, &rest));
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(mesh.directory.path(), open).unwrap();
        fs::create_dir(mesh.path("run")).unwrap();
        let token = node_token(&mesh, "edge-1");
        let mut command = agent_command(&mesh, "agent", &mesh.path("run/agent.sock"));
        command.arg("--token-file").arg(&token).args(flags);
        let mut agent = Process::start("agent", &mut command, &mesh.path("logs/agent.log"));
        wait_until("the agent is ready", PATIENCE, || {
            agent.assert_running();
            mesh.path("run/agent.sock").exists()
        });
        assert!(!token.exists(), "a used token is deleted");
        Self { mesh, agent }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.mesh.path("run/agent.sock")
    }

    /// `program exec`, as a user, prints what it became; its exit code and all it wrote.
    fn become_somebody(&self, program: &Path, uid: u32, flags: &[&str]) -> (i32, String) {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("FENDER_CONTROL", self.mesh.url())
            .args(["exec", "--start-timeout", "60s", "--agent"])
            .arg(self.socket())
            .args(flags)
            .args(["--", "/bin/true"])
            .uid(uid)
            .gid(uid);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    fn assert_became(&self, program: &Path, uid: u32, id: &str) {
        let (code, text) = self.become_somebody(program, uid, &[]);
        assert_eq!(code, 0, "{text}\n{}", self.agent.log());
        assert!(text.contains("attested") && text.contains(id), "{text}");
    }

    /// The caller learns only that it is nobody; the logs of both say which selector failed.
    fn assert_nobody(&mut self, program: &Path, uid: u32, why: &str) {
        let (code, text) = self.become_somebody(program, uid, &[]);
        assert_eq!(code, REFUSED, "{text}");
        assert!(text.contains("error[not-attestable]"), "{text}");
        assert!(!text.contains(why), "told to the caller: {text}");
        let agent = self.agent.log();
        assert!(agent.contains(why), "{agent}");
        let control = self.mesh.control_process().log();
        assert!(control.contains(why), "{control}");
    }
}

pub(crate) fn node_token(mesh: &Mesh, node: &str) -> PathBuf {
    let file = mesh.path(format!("token-{node}"));
    let out = file.to_string_lossy().into_owned();
    mesh.fender_ok(&["token", "create", "--node", node, "--out", &out]);
    file
}

pub(crate) fn agent_command(mesh: &Mesh, state: &str, socket: &Path) -> Command {
    let mut command = mesh.command();
    command
        .env_remove("FENDER_ADMIN")
        .args(["--log-format", "json", "--log", "debug", "agent", "--state"])
        .arg(mesh.path(state))
        .arg("--socket")
        .arg(socket);
    command
}

/// The program in a place where every user may run it.
pub(crate) fn program(mesh: &Mesh, name: &str) -> PathBuf {
    let path = mesh.path(name);
    put_program(&binary(), &path);
    path
}

pub(crate) fn sha256(path: &Path) -> String {
    let (code, out, err) = output(installed("sha256sum"), &[path]);
    assert_eq!(code, 0, "{err}");
    out[..64].to_owned()
}

#[test]
fn a_process_of_the_right_user_gets_its_identity_and_another_user_gets_none() {
    let orders = workload("orders", "{ unix: { node: edge-1, uid: 4301 } }");
    let elsewhere = workload("inventory", "{ unix: { node: edge-2, uid: 4302 } }");
    let mut host = Host::start(&[orders, elsewhere].concat(), &[]);
    let fender = program(&host.mesh, "fender");
    host.assert_became(&fender, ORDERS, "spiffe://test.internal/ns/shop/sa/orders");
    // Its workload is on another node: there it would be somebody.
    host.assert_nobody(&fender, STRANGER, "its uid is 4302, not 4301");
}

#[test]
fn a_sidecar_serves_under_its_own_user_by_the_agents_word_alone() {
    let host = Host::start(
        &workload("orders", "{ unix: { node: edge-1, uid: 4301 } }"),
        &[],
    );
    let state = host.mesh.state("shop/orders");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(ORDERS), Some(ORDERS)).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = Command::new(program(&host.mesh, "fender"));
    command
        .env_clear()
        .env("FENDER_CONTROL", host.mesh.url())
        .args(["sidecar", "--workload", "shop/orders", "--agent"])
        .arg(host.socket())
        .arg("--state")
        .arg(&state)
        .uid(ORDERS)
        .gid(ORDERS);
    let log = host.mesh.path("logs/orders.log");
    let mut sidecar = Process::start("shop/orders", &mut command, &log);
    host.mesh.wait_ready("shop/orders", &mut sidecar);
    let status = host.mesh.fender_ok(&["status"]);
    assert!(status.contains("shop/orders"), "{status}");
}

#[test]
fn a_copy_elsewhere_and_another_program_in_the_same_place_get_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), open).unwrap();
    let meant = directory.path().join("meant");
    put_program(&binary(), &meant);
    let attest = format!(
        "{{ unix: {{ node: edge-1, uid: 4301, path: {}, sha256: {} }} }}",
        meant.display(),
        sha256(&meant)
    );
    let mut host = Host::start(&workload("orders", &attest), &[]);
    host.assert_became(&meant, ORDERS, "spiffe://test.internal/ns/shop/sa/orders");
    let elsewhere = program(&host.mesh, "copied");
    host.assert_nobody(&elsewhere, ORDERS, "its program is `");
    // The same program but for a few bytes that no loader reads.
    let mut changed = fs::read(&meant).unwrap();
    changed.extend(b"changed");
    let fresh = directory.path().join("fresh");
    fs::write(&fresh, changed).unwrap();
    put_program(&fresh, &meant);
    host.assert_nobody(&meant, ORDERS, "the sha256 of its program is ");
}

#[test]
fn attack_a_socket_squatted_by_another_user_is_not_believed() {
    let host = Host::start(
        &workload("orders", "{ unix: { node: edge-1, uid: 4301 } }"),
        &[],
    );
    let place = host.mesh.path("squatted");
    fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(STRANGER), Some(STRANGER)).unwrap();
    let socket = place.join("agent.sock");
    let mut command = Command::new(installed("python3"));
    command
        .args([
            "-c",
            "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666); \
             s.listen(); c, _ = s.accept(); print('heard', len(c.recv(1024)), flush=True); s.accept()",
        ])
        .arg(&socket)
        .uid(STRANGER)
        .gid(STRANGER);
    let log = host.mesh.path("logs/squatter.log");
    let mut squatter = Process::start("squatter", &mut command, &log);
    let open = || fs::metadata(&socket).is_ok_and(|it| it.permissions().mode() & 0o777 == 0o666);
    wait_until("the squatter listens", PATIENCE, || {
        squatter.assert_running();
        open()
    });
    let fender = program(&host.mesh, "fender");
    let flags = ["--agent", &*socket.to_string_lossy()];
    let mut command = Command::new(&fender);
    command
        .env_clear()
        .env("FENDER_CONTROL", host.mesh.url())
        .args(["exec", "--start-timeout", "60s"])
        .args(flags)
        .args(["--", "/bin/true"])
        .uid(ORDERS)
        .gid(ORDERS);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(REFUSED), "{text}");
    assert!(text.contains("somebody else has taken its place"), "{text}");
    wait_until("the squatter hears nothing", PATIENCE, || {
        squatter.log().contains("heard 0")
    });
}

#[test]
fn attack_a_stolen_node_token_is_spent_and_a_workloads_token_makes_no_agent() {
    let attest = "{ unix: { node: edge-1, uid: 4301 } }, { token: {} }";
    let host = Host::start(&workload("orders", attest), &[]);
    let token = node_token(&host.mesh, "edge-2");
    let stolen = host.mesh.path("stolen");
    fs::copy(&token, &stolen).unwrap();
    let start = |state: &str, token: &Path| {
        let socket = host.mesh.path(format!("run/{state}.sock"));
        let mut command = agent_command(&host.mesh, state, &socket);
        command.arg("--token-file").arg(token);
        let log = host.mesh.path(format!("logs/{state}.log"));
        (Process::start(state, &mut command, &log), socket)
    };
    let (mut owner, socket) = start("owner", &token);
    wait_until("the owner's agent is ready", PATIENCE, || {
        owner.assert_running();
        socket.exists()
    });
    let of_workload = host.mesh.token("shop/orders", "5m");
    for (state, token, code) in [
        ("thief", &stolen, "token-spent"),
        ("workload", &of_workload, "token-wrong-identity"),
    ] {
        let (mut refused, socket) = start(state, token);
        let exit = refused.wait(PATIENCE).code();
        assert_eq!(exit, Some(REFUSED), "{}", refused.log());
        let log = refused.log();
        assert!(log.contains(&format!("error[{code}]")), "{log}");
        assert!(!socket.exists());
    }
    assert!(of_workload.exists(), "a token shown to nobody is not spent");
}

#[test]
fn an_agent_goes_on_as_itself_after_a_restart_and_without_a_token() {
    let mut host = Host::start(
        &workload("orders", "{ unix: { node: edge-1, uid: 4301 } }"),
        &[],
    );
    host.agent.kill();
    fs::remove_file(host.socket()).unwrap();
    let mut command = agent_command(&host.mesh, "agent", &host.socket());
    let log = host.mesh.path("logs/agent.log");
    host.agent = Process::start("agent", &mut command, &log);
    wait_until("the agent is ready again", PATIENCE, || {
        host.agent.assert_running();
        host.socket().exists()
    });
    let fender = program(&host.mesh, "fender");
    host.assert_became(&fender, ORDERS, "spiffe://test.internal/ns/shop/sa/orders");
}

/// An image of the binary and one file more; its id.
pub(crate) fn image(engine: &Engine, mesh: &Mesh, name: &str) -> String {
    let context = mesh.path(format!("image-{name}"));
    fs::create_dir(&context).unwrap();
    fs::copy(binary(), context.join("fender")).unwrap();
    fs::write(context.join("name"), name).unwrap();
    let dockerfile = "FROM scratch\nCOPY fender name /\nENTRYPOINT [\"/fender\"]\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let directory = context.to_string_lossy().into_owned();
    let (code, out, err) = engine.docker(&["build", "--quiet", "--tag", name, &directory]);
    assert_eq!(code, 0, "{out}{err}");
    let (code, id, err) = engine.docker(&["inspect", "--format", "{{.Id}}", name]);
    assert_eq!(code, 0, "{err}");
    id.trim().to_owned()
}

#[test]
fn a_container_of_the_right_image_and_label_gets_its_identity_and_copied_labels_do_not() {
    containers_are_told_apart(&Engine::start());
}

#[test]
fn with_the_second_version_of_cgroups_containers_are_told_apart_as_well() {
    let engine = Engine::start_on_cgroup2();
    let (code, out, err) = engine.docker(&["info", "--format", "{{.CgroupVersion}}"]);
    assert_eq!((code, out.trim()), (0, "2"), "{out}{err}");
    containers_are_told_apart(&engine);
}

fn containers_are_told_apart(engine: &Engine) {
    let flag = format!("unix://{}", engine.socket().display());
    let mut host = Host::start("", &["--docker", &flag]);
    let meant = image(engine, &host.mesh, "meant");
    image(engine, &host.mesh, "other");
    // The second would be any container whose user is root, if a container were a process of the host.
    let documents = [
        Mesh::documents("1h", ""),
        node("edge-1"),
        node("edge-2"),
        workload(
            "orders",
            &format!(
                "{{ docker: {{ node: edge-1, image: '{meant}', labels: {{ service: orders }} }} }}"
            ),
        ),
        workload("root", "{ unix: { node: edge-1, uid: 0 } }"),
    ];
    let (code, out, err) = host.mesh.apply(&documents.concat());
    assert_eq!(code, 0, "{out}{err}");

    let volume = format!("{}:/run/fender", host.mesh.path("run").display());
    let url = host.mesh.url();
    let run = |image: &str, label: &str, flags: &[&str]| {
        let mut arguments = vec!["run", "--rm", "--volume", &volume, "--label", label];
        arguments.extend(flags);
        // The engine's network has no way to the control plane: the agent's word comes by the socket.
        arguments.extend([image, "exec", "--control", &url, "--start-timeout", "8s"]);
        arguments.extend(["--agent", "/run/fender/agent.sock", "--", "/fender"]);
        let (code, out, err) = engine.docker(&arguments);
        (code, out + &err)
    };
    let (_, text) = run("meant", "service=orders", &[]);
    let id = "spiffe://test.internal/ns/shop/sa/orders";
    assert!(
        text.contains("attested") && text.contains(id),
        "{text}\n{}",
        host.agent.log()
    );

    for (image, label, flags, why) in [
        ("other", "service=orders", &[][..], "its image is"),
        (
            "meant",
            "service=billing",
            &[],
            "its label `service` is not",
        ),
        ("other", "a=b", &["--pid", "host"], "it runs in a container"),
    ] {
        let (code, text) = run(image, label, flags);
        assert_eq!(code, REFUSED, "{image} {label}: {text}");
        assert!(
            text.contains("error[not-attestable]") && !text.contains(why),
            "{text}"
        );
        assert!(host.agent.log().contains(why), "{}", host.agent.log());
        let control = host.mesh.control_process().log();
        assert!(control.contains(why), "{control}");
    }
    let agent = host.agent.log();
    assert!(
        !agent.contains("billing"),
        "a label's value is not told: {agent}"
    );
}
