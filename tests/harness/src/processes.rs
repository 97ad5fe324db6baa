//! The real binaries as processes.

use crate::{Operator, PATIENCE};
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

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
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status().expect("kill");
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
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Processes {
    /// Makes a deployment with `undertone-server init` and starts it.
    pub fn start() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let dir = folder.path().join("deployment");
        let output = run(Command::new(binary("undertone-server"))
            .args(["init", "--name", "processes", "--listen", "127.0.0.1:0", "--host", "localhost", "--dir"])
            .arg(&dir));
        assert!(output.status.success(), "{output:?}");
        let text = std::fs::read_to_string(dir.join("server.toml")).expect("server.toml");
        let url = text.split("public_url = \"").nth(1).and_then(|t| t.split('"').next());
        let url = url.expect("a public URL").to_owned();
        let mut deployment = Self { folder, url, server: None };
        deployment.start_server();
        deployment
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

    /// An operator.
    pub async fn operator(&self) -> Operator {
        Operator::connect(&self.url, &self.path().join("deployment/operator")).await
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
