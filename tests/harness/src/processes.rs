//! The real binaries as processes.

use crate::{Events, Operator, PATIENCE, RawClient};
use std::ffi::OsString;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use undertone_client::ClientConfig;
use undertone_round::event::JobEvent;

/// The path of one of our binaries, beside the running test.
///
/// # Panics
/// If it is not built, with the command that builds it.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the running test");
    // target/PROFILE/deps/test-HASH -> target/PROFILE/name
    let folder = test.ancestors().nth(2).expect("a target folder");
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace --bins` first", path.display());
    path
}

/// A deployment made of processes, in a temporary folder.
pub struct Processes {
    folder: TempDir,
    url: String,
    server: Option<Process>,
    /// What the coordinator finds in its environment.
    environment: Vec<(String, String)>,
}

/// A running binary whose output goes to a file. Killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command; its output goes to `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        Self { child, log }
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = std::fs::File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Sends it a signal by its name, such as STOP.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill").success(), "cannot send {name}");
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it at once, as kill -9 does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop, as an operator or a service manager does, and waits.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until its output holds a text.
    pub fn wait_for(&self, text: &str) {
        self.wait_for_any(&[text]);
    }

    /// Waits until its output holds one of the texts.
    pub fn wait_for_any(&self, texts: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while !texts.iter().any(|text| self.log().contains(text)) {
            assert!(Instant::now() < deadline, "none of {texts:?} appears in:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until its output is what it should be.
    pub(crate) fn wait_until(&self, is_so: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.log()) {
            assert!(Instant::now() < deadline, "it does not come in:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Processes {
    /// Makes a deployment with `undertone-server init` and starts it.
    pub fn start() -> Self {
        Self::start_on("", &[])
    }

    /// The same with more lines in the table `[storage]` of server.toml, and in the coordinator's environment.
    pub fn start_on(storage: &str, environment: &[(&str, &str)]) -> Self {
        let mut deployment = Self::prepare(storage, environment);
        deployment.start_server();
        deployment
    }

    /// The same at an address of this machine that is not the loopback's.
    pub fn start_at(address: &str) -> Self {
        let mut deployment = Self::prepare_at(address, address, "", &[]);
        deployment.start_server();
        deployment
    }

    /// The same, not started.
    pub(crate) fn prepare(storage: &str, environment: &[(&str, &str)]) -> Self {
        Self::prepare_at("127.0.0.1", "localhost", storage, environment)
    }

    fn prepare_at(address: &str, host: &str, storage: &str, environment: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let dir = folder.path().join("deployment");
        let output = run(Command::new(binary("undertone-server"))
            .args([
                "init",
                "--name",
                "processes",
                "--listen",
                &format!("{address}:0"),
                "--host",
                host,
                "--dir",
            ])
            .arg(&dir));
        assert!(output.status.success(), "{output:?}");
        let text = std::fs::read_to_string(dir.join("server.toml")).expect("server.toml");
        let url = text.split("public_url = \"").nth(1).and_then(|t| t.split('"').next());
        let url = url.expect("a public URL").to_owned();
        let more = text.replacen("[storage]\n", &format!("[storage]\n{storage}\n"), 1);
        assert!(storage.is_empty() || more != text, "no table of storage: {text}");
        std::fs::write(dir.join("server.toml"), more).expect("server.toml");
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Self { folder, url, server: None, environment }
    }

    /// Where its coordinator listens.
    pub(crate) fn listen(&self) -> SocketAddr {
        let text = std::fs::read_to_string(self.path().join("deployment/server.toml")).expect("server.toml");
        let listen = text.split("listen = \"").nth(1).and_then(|t| t.split('"').next());
        listen.and_then(|listen| listen.parse().ok()).expect("an address")
    }

    /// Makes the folder of another coordinator of the same deployment, which listens at `address`.
    pub(crate) fn copy_coordinator(&self, name: &str, address: SocketAddr) {
        let (from, to) = (self.path().join("deployment"), self.path().join(name));
        std::fs::create_dir_all(to.join("pki")).expect("a folder");
        for file in ["pki/ca.crt", "pki/ca.key", "pki/server.crt", "pki/server.key"] {
            std::fs::copy(from.join(file), to.join(file)).expect("a copy");
        }
        let text = std::fs::read_to_string(from.join("server.toml")).expect("server.toml");
        let listen = |address| format!("listen = \"{address}\"");
        let other = text.replace(&listen(self.listen()), &listen(address));
        assert_ne!(text, other, "it would listen where the first one does");
        std::fs::write(to.join("server.toml"), other).expect("server.toml");
    }

    /// Starts a coordinator whose folder is there.
    pub fn start_coordinator(&self, name: &str) -> Process {
        let dir = self.path().join(name);
        let mut command = Command::new(binary("undertone-server"));
        command.arg("run").arg("--dir").arg(&dir).envs(self.environment.iter().cloned());
        Process::start(command, dir.join("log"))
    }

    /// Starts the coordinator (again).
    pub fn start_server(&mut self) {
        self.start_server_with(None);
    }

    /// Starts the coordinator so that it kills itself with SIGKILL when its privacy ledger comes to a state, for example
    /// `before:committed` or `after:published` (debug builds).
    pub fn start_server_that_dies(&mut self, point: &str) {
        self.start_server_with(Some(point));
    }

    fn start_server_with(&mut self, crash: Option<&str>) {
        let log = self.path().join("server.log");
        let _ = std::fs::remove_file(&log);
        let mut command = Command::new(binary("undertone-server"));
        command.arg("run").arg("--dir").arg(self.path().join("deployment"));
        command.envs(self.environment.iter().cloned());
        if let Some(point) = crash {
            command.env("UNDERTONE_CRASH", point);
        }
        let server = Process::start(command, log);
        // One that is to die while it takes up its jobs never listens.
        server.wait_for_any(&["listening on", "dying, as the test asked"]);
        self.server = Some(server);
    }

    /// The coordinator's process.
    pub fn server(&mut self) -> &mut Process {
        self.server.as_mut().expect("it was started")
    }

    /// The folder; `deployment/` and `clients/NAME/` are in it.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where participants and operators reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// An operator.
    pub async fn operator(&self) -> Operator {
        Operator::connect(&self.url, &self.path().join("deployment/operator")).await
    }

    /// Watches a job to its end, however often whoever tells its events goes away.
    ///
    /// # Panics
    /// If nothing happens for a long time.
    pub async fn watch_to_end(&self, job: &str) -> Events {
        let (mut events, mut last) = (vec![], Instant::now());
        while !matches!(events.last(), Some(JobEvent::Ended { .. })) {
            let before = events.len();
            let profile = self.path().join("deployment/operator");
            let watching = async {
                if let Ok(mut operator) = Operator::try_connect(&self.url, &profile).await {
                    let _ = operator.watch_on(job, &mut events).await;
                }
            };
            let _ = tokio::time::timeout(PATIENCE, watching).await;
            if events.len() > before {
                last = Instant::now();
            }
            assert!(last.elapsed() < 2 * PATIENCE, "nothing more happens after {events:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Events(events)
    }

    /// Runs the operator's tool and returns its output.
    pub fn undertone(&self, args: &[&str]) -> Output {
        run(Command::new(binary("undertone"))
            .arg("--operator")
            .arg(self.path().join("deployment/operator"))
            .args(args))
    }

    /// The folder of a client.
    pub fn client_folder(&self, name: &str) -> PathBuf {
        self.path().join("clients").join(name)
    }

    /// Enrols a client with a CSV file of its own.
    pub fn enrol(&self, name: &str, role: &str, csv: &str, declared_rows: u64) -> Output {
        self.enrol_with(name, role, &[("--data", "data.csv", csv.as_bytes())], declared_rows)
    }

    /// Enrols a client with files of its own: for each the flag that names it, its name and its bytes.
    pub fn enrol_with(
        &self,
        name: &str,
        role: &str,
        files: &[(&str, &str, &[u8])],
        declared_rows: u64,
    ) -> Output {
        let folder = self.client_folder(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let token = folder.join("token");
        let mut arguments: Vec<OsString> = vec![];
        for (flag, file, bytes) in files {
            let path = folder.join(file);
            std::fs::write(&path, bytes).expect("the data");
            arguments.extend([flag.into(), path.into()]);
        }
        let made = self.undertone(&[
            "token",
            "create",
            "--role",
            role,
            "--name",
            name,
            "--out",
            token.to_str().expect("a path"),
        ]);
        assert!(made.status.success(), "{made:?}");
        run(Command::new(binary("undertone-client"))
            .arg("enrol")
            .arg("--dir")
            .arg(&folder)
            .arg("--token-file")
            .arg(&token)
            .args(arguments)
            .args(["--declared-rows", &declared_rows.to_string()]))
    }

    /// Enrols a trainer that the test speaks for.
    pub async fn raw(&self, name: &str) -> RawClient {
        let output = self.enrol(name, "trainer", "x,y\n0.5,1\n", 1);
        assert!(output.status.success(), "{output:?}");
        let config =
            ClientConfig::load(&self.client_folder(name)).expect("the client.toml that enrolment wrote");
        RawClient::connect(&config).await
    }

    /// Starts an enrolled client.
    pub fn run_client(&self, name: &str) -> Process {
        let mut command = Command::new(binary("undertone-client"));
        command.arg("run").arg("--dir").arg(self.client_folder(name));
        Process::start(command, self.client_folder(name).join("log"))
    }
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the binary starts")
}
