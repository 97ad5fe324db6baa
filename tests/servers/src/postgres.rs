//! A PostgreSQL server of a test's own.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a server may take to answer.
const START: Duration = Duration::from_secs(30);
/// What is needed of it.
const PROGRAMS: [&str; 3] = ["initdb", "postgres", "psql"];
/// Where Debian puts the server's programs, which are on no PATH.
const INSTALLED: &str = "/usr/lib/postgresql";

/// A server with an empty data folder, reached by a socket in it. It dies with the value.
#[derive(Debug)]
pub struct PostgresServer {
    folder: TempDir,
    programs: PathBuf,
    /// Who it runs as; it refuses root.
    user: Option<(u32, u32)>,
    child: Option<Child>,
    databases: AtomicU32,
}

impl PostgresServer {
    /// Makes a server and waits until it answers.
    ///
    /// # Panics
    /// If no PostgreSQL server is installed, or it does not start.
    pub fn start() -> Self {
        let folder = TempDir::with_prefix("pg-").expect("a folder for the server");
        let user = rustix::process::geteuid().is_root().then(unprivileged_user);
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).expect("a folder of the server's user");
        }
        let mut server =
            Self { folder, programs: programs(), user, child: None, databases: AtomicU32::new(0) };
        let made = server
            .command("initdb")
            .args(["--username=undertone", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"])
            .arg("--pgdata")
            .arg(server.data())
            .stdout(Stdio::null())
            .status()
            .expect("initdb runs");
        assert!(made.success(), "initdb made no database");
        server.resume();
        server
    }

    /// Starts the server again after [`kill`](Self::kill), and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn resume(&mut self) {
        let begun = Instant::now();
        loop {
            // One that is begun too early ends: those who served connections of the one before have its memory still.
            if self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|ended| ended.is_some())) {
                self.child = Some(self.spawn());
            }
            if self.answers() {
                return;
            }
            assert!(
                begun.elapsed() < START,
                "no server: {}",
                fs::read_to_string(self.log()).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn spawn(&self) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.log()).expect("a log");
        self.command("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path())
            .args(["-c", "listen_addresses=", "-c", "max_connections=200", "-c", "full_page_writes=off"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the server starts")
    }

    /// Kills the server, as a crash would; those that serve its connections end when they see it.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a server that runs");
        child.kill().expect("the server may be killed");
        child.wait().expect("the server ends");
    }

    /// An empty database; returns its URL.
    ///
    /// # Panics
    /// If the server does not make it.
    pub fn new_database(&self) -> String {
        let name = format!("undertone_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run(&format!("CREATE DATABASE {name}"), "postgres");
        self.url(&name)
    }

    /// Runs SQL in the database of a URL, as its superuser; returns what it answers.
    ///
    /// # Panics
    /// If the server refuses it.
    pub fn sql(&self, url: &str, text: &str) -> String {
        let path = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map(|(_, path)| path);
        let name = path.and_then(|path| path.split('?').next()).expect("a URL of this server");
        self.run(text, name)
    }

    fn run(&self, text: &str, database: &str) -> String {
        let output =
            self.psql(database).args(["-v", "ON_ERROR_STOP=1", "-c", text]).output().expect("psql runs");
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://undertone@localhost/{database}?host={}", self.folder.path().display())
    }

    fn answers(&self) -> bool {
        let mut ask = self.psql("postgres");
        ask.args(["-c", "SELECT 1"]).stdout(Stdio::null()).stderr(Stdio::null());
        ask.status().is_ok_and(|status| status.success())
    }

    fn psql(&self, database: &str) -> Command {
        let mut psql = self.command("psql");
        psql.arg("-h").arg(self.folder.path()).args(["-U", "undertone", "-d", database, "-XAtq"]);
        psql
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // At once, but not so that what it shares with its children stays behind.
            let quit = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(quit, rustix::process::Signal::QUIT);
            let _ = child.wait();
        }
    }
}

/// The folder of the programs; of the newest server, if there are several.
fn programs() -> PathBuf {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let installed = versions(Path::new(INSTALLED));
    let mut places = std::env::split_paths(&on_path).chain(installed);
    places.find(|place| PROGRAMS.iter().all(|program| place.join(program).is_file())).expect(
        "a PostgreSQL server, for tests of the state of a fleet: `apt-get install postgresql` brings one on Debian and Ubuntu; elsewhere put its programs on the \
         PATH",
    )
}

fn versions(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut found: Vec<_> = entries.flatten().map(|entry| entry.path().join("bin")).collect();
    found.sort();
    found.reverse();
    found
}

/// The user and group that the server's package made, or nobody.
fn unprivileged_user() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of = |name: &str| {
        let line = users.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":"))?;
        let mut fields = line.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    of("postgres")
        .or_else(|| of("nobody"))
        .expect("a user that is not root, for the PostgreSQL server refuses root")
}
