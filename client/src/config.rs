//! `client.toml`: what the data owner sets.

mod trainer;

pub use trainer::{CommandSettings, Mode, TrainerSettings};

use crate::folder::ClientFolder;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use trainer::TrainerTable;
use undertone_core::config::{ConfigError, parse_toml};
use undertone_core::data_files::DataFiles;
use undertone_core::digest::Digest;
use undertone_core::id::{ClientId, ClientRole};
use undertone_round::participant::{AllowedModules, Policy};

/// Everything that a client is told by its owner, with paths made absolute to the client's folder.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientConfig {
    /// Where the client keeps its things.
    pub folder: ClientFolder,
    /// The coordinator's address, for example `https://fl.example.org:7443`.
    pub server: String,
    /// The client's name, for its own logs; the coordinator goes by the certificate.
    pub name: ClientId,
    /// What the client does. A trainer never evaluates, whatever the coordinator says: measurements leave as they
    /// are.
    pub role: ClientRole,
    /// The CSV file that is trained or measured on, or the IDX files.
    pub data: DataFiles,
    /// How training runs.
    pub trainer: TrainerSettings,
    /// What the owner allows and declares.
    pub policy: Policy,
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: String,
    name: ClientId,
    #[serde(default = "trainer_role")]
    role: ClientRole,
    data: DataTable,
    #[serde(default)]
    trainer: TrainerTable,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    study: StudyTable,
}

fn trainer_role() -> ClientRole {
    ClientRole::Trainer
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataTable {
    path: PathBuf,
    labels: Option<PathBuf>,
    declared_rows: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    max_epsilon: Option<f64>,
    #[serde(default)]
    allow_no_privacy: bool,
    #[serde(default)]
    allow_exact_measurements: bool,
    #[serde(default)]
    allow_torchscript: Option<TorchscriptKey>,
}

/// `true`, `false`, or digests.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "allow_torchscript must be true, false, or a list of files' SHA-256 digests")]
enum TorchscriptKey {
    Any(bool),
    Only(BTreeSet<Digest>),
}

impl From<TorchscriptKey> for AllowedModules {
    fn from(key: TorchscriptKey) -> Self {
        match key {
            TorchscriptKey::Any(false) => Self::None,
            TorchscriptKey::Any(true) => Self::All,
            TorchscriptKey::Only(digests) => Self::Only(digests),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StudyTable {
    sampling_seed: Option<u64>,
}

const MAX_CONFIG_BYTES: u64 = 1 << 20;

impl ClientConfig {
    /// A configuration with defaults for all but what has none: for clients that are made in code.
    pub fn new(dir: impl Into<PathBuf>, server: impl Into<String>, name: ClientId, role: ClientRole) -> Self {
        let folder = ClientFolder::new(dir);
        Self {
            data: folder.dir().join("data.csv").into(),
            folder,
            server: server.into(),
            name,
            role,
            trainer: TrainerSettings::default(),
            policy: Policy::default(),
        }
    }

    /// Reads `client.toml` in `dir`.
    ///
    /// # Errors
    /// [`ConfigError`] with file and line, and what to do.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let folder = ClientFolder::new(dir);
        let path = folder.config();
        let place = path.display().to_string();
        let error = |problem: String| ConfigError { place: place.clone(), problem };
        let length = std::fs::metadata(&path).map_err(|e| error(unreadable(&e)))?.len();
        if length > MAX_CONFIG_BYTES {
            return Err(error(format!("{length} bytes, at most {MAX_CONFIG_BYTES}")));
        }
        let text = std::fs::read_to_string(&path).map_err(|e| error(unreadable(&e)))?;
        Self::parse(&text, folder, &place)
    }

    fn parse(text: &str, folder: ClientFolder, place: &str) -> Result<Self, ConfigError> {
        let file: File = parse_toml(text, place)?;
        let error = |problem: String| Err(ConfigError { place: place.to_owned(), problem });
        if !file.server.starts_with("https://") || file.server.len() > 1024 {
            return error(format!(
                "server must be an address like \"https://fl.example.org:7443\", not \"{}\"",
                file.server
            ));
        }
        if let Some(limit) = file.limits.max_epsilon.filter(|l| !(l.is_finite() && *l > 0.0)) {
            return error(format!("[limits] max_epsilon must be a positive number, not {limit}"));
        }
        if file.data.declared_rows == Some(0) {
            return error("[data] declared_rows must be at least 1".into());
        }
        let absolute = |path: PathBuf| folder.dir().join(path);
        let trainer = file
            .trainer
            .settings(absolute)
            .map_err(|problem| ConfigError { place: place.to_owned(), problem })?;
        Ok(Self {
            server: file.server,
            name: file.name,
            role: file.role,
            data: DataFiles { path: file.data.path, labels: file.data.labels }.map(absolute),
            policy: Policy {
                max_epsilon: file.limits.max_epsilon,
                allow_no_privacy: file.limits.allow_no_privacy,
                allow_exact_measurements: file.limits.allow_exact_measurements,
                declared_rows: file.data.declared_rows,
                sampling_seed: file.study.sampling_seed,
                own_program: trainer.command.is_some(),
                // Known when the client starts: the command line may say otherwise.
                memory_bytes: None,
                torchscript: file.limits.allow_torchscript.map(Into::into).unwrap_or_default(),
            },
            trainer,
            folder,
        })
    }
}

fn unreadable(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::NotFound => {
            "there is no such file: enrol first (`undertone-client enrol --dir DIR --token TOKEN`)".into()
        }
        _ => format!("cannot be read: {e}"),
    }
}

/// The commented `client.toml` that enrolment writes.
pub(crate) fn template(
    server: &str,
    name: &ClientId,
    role: ClientRole,
    data: Option<&DataFiles>,
    declared_rows: Option<u64>,
) -> String {
    let quoted = |text: &str| serde_json::to_string(text).expect("a text is JSON");
    let path = match data {
        Some(DataFiles { path, labels }) => {
            let labels = labels.as_ref().map(|l| format!("\nlabels = {}", quoted(&l.display().to_string())));
            format!("path = {}{}", quoted(&path.display().to_string()), labels.unwrap_or_default())
        }
        None => {
            "path = \"data.csv\" # <- the path of your CSV file; relative paths start at this file's folder\n\
                 # For jobs on pictures, path is an IDX file (it may be .gz), and this one has the labels:\n\
                 # labels = \"labels-idx1-ubyte.gz\""
                .into()
        }
    };
    let exact = match role {
        ClientRole::Trainer => "",
        ClientRole::Evaluator => {
            "# Whether loss and accuracy on this data may leave without noise: for data that may be told about, such as a public\n\
             # test set. With false, jobs must put noise on measurements.\nallow_exact_measurements = true\n"
        }
    };
    let rows = match declared_rows {
        Some(rows) => format!("declared_rows = {rows}"),
        None => "# declared_rows = 240".into(),
    };
    format!(
        r#"# Written by `undertone-client enrol`; yours to change. Unknown keys are refused.

# The coordinator. The client opens every connection; nothing listens on this machine.
server = {server}
name = "{name}"
# "trainer": trains on the data below; what leaves is a clipped update with the noise that the job's privacy contract
# states. "evaluator": measures models on the data below; loss and accuracy leave, with noise if the job's contract has
# [privacy] metrics, and as they are if [limits] allow_exact_measurements lets them.
role = "{role}"

[data]
{path}
# The number of rows that you declare: a public figure, near the real one. It leaves the machine (as the weight of
# your updates, if the job weighs by rows) and sets how training divides noised sums. The real number never leaves.
# Jobs with record-level privacy need it.
{rows}

[trainer]
threads = 1
# "auto" takes a CUDA device if there is one. Also "cpu", "cuda:0".
device = "auto"
# The trainer program; without this: undertone-trainer beside undertone-client, else on the search path.
# program = "/opt/undertone/undertone-trainer"
# How often training keeps its state in checkpoints/, so that a killed trainer or client goes on within the round.
checkpoint_every = "60s"
# How much training gives way to other programs: 0 (not at all) to 19 (last).
# niceness = 10
# The most memory that training may take; past it the round is refused. Without this: three quarters of the machine's.
# max_memory_mib = 4096
# When training waits: offers are declined, and training that is under way is held, and given up after give_up_after.
# typed_within sees terminals, not windows. A program of yours may decide too: status 0 has training wait, 1 lets it go on, and
# all else waits: command = ["/usr/local/bin/busy"].
# pause = {{ on_battery = true, load_above = 1.5, typed_within = "5m", check_every = "5s", give_up_after = "15m" }}
# A training program of your own in place of the built-in one, in any language (docs/TRAINERS.md). It runs without network,
# in a folder of its own; clipping, noise and sending stay here.
# command = ["python3", "train.py"]

[limits]
# The largest epsilon that one job may cost. Without it, each job's own budget stands.
# max_epsilon = 8.0
# Whether to take jobs that promise no privacy (privacy.unit = "none").
allow_no_privacy = false
# Whether to run models that jobs bring as TorchScript files, which are programs of somebody else's: false, true, or only
# files that you have looked at, by the SHA-256 digest that the refusal names.
# allow_torchscript = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
{exact}
# Only for studies that must be repeatable: who knows the seed knows which rows are in a batch.
# [study]
# sampling_seed = 1
"#,
        server = quoted(server),
        role = role.as_str(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ClientConfig, ConfigError> {
        ClientConfig::parse(text, ClientFolder::new("/c"), "client.toml")
    }

    #[test]
    fn the_template_is_a_valid_file() {
        let name = ClientId::new("cleveland").unwrap();
        let (csv, idx) = (DataFiles::from("/d/a \"b\".csv"), DataFiles::pictures("/d/p", "/d/l"));
        for (data, rows) in [(None, None), (Some(&csv), Some(240)), (Some(&idx), None)] {
            let text = template("https://localhost:7443", &name, ClientRole::Evaluator, data, rows);
            let config = parse(&text).unwrap();
            assert_eq!(config.role, ClientRole::Evaluator);
            assert_eq!(&config.data, data.unwrap_or(&"/c/data.csv".into()));
            assert_eq!(config.policy.declared_rows, rows);
            let exact = Policy { declared_rows: rows, allow_exact_measurements: true, ..Policy::default() };
            assert_eq!(config.policy, exact, "an evaluator's owner finds the key and may set it to false");
            assert_eq!(config.trainer, TrainerSettings::default());
            let trainer = template("https://localhost:7443", &name, ClientRole::Trainer, data, rows);
            assert!(!trainer.contains("allow_exact_measurements ="));
            assert_eq!(parse(&trainer).unwrap().policy, Policy { declared_rows: rows, ..Policy::default() });
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let good = "server = \"https://h:1\"\nname = \"a\"\n[data]\npath = \"a.csv\"\n";
        assert_eq!(parse(good).unwrap().data, DataFiles::from("/c/a.csv"));
        let pictures = parse(&good.replace("a.csv\"", "a.gz\"\nlabels = \"l.gz\"")).unwrap();
        assert_eq!(pictures.data, DataFiles::pictures("/c/a.gz", "/c/l.gz"));
        for (from, to, says) in [
            ("path", "paht", "line 4: unknown key \"paht\": did you mean \"path\"?"),
            ("https", "http", "\"https://fl.example.org:7443\""),
            ("\"a\"", "\"A\"", "line 2"),
            ("[data]", "[limits]\nmax_epsilon = -1.0\n[data]", "max_epsilon"),
            ("[data]", "[trainer]\nthreads = 0\n[data]", "threads"),
            ("[data]", "[trainer]\ndevice = \"gpu\"\n[data]", "cuda:0"),
            ("[data]", "[data]\ndeclared_rows = 0", "declared_rows"),
            ("[data]", "[trainer]\ncheckpoint_every = \"10ms\"\n[data]", "checkpoint_every"),
            ("[data]", "[trainer]\ncheckpoint_every = 60\n[data]", "line 4"),
            ("[data]", "[study]\nsampling_sed = 1\n[data]", "sampling_seed"),
            (
                "[data]",
                "[limits]\nallow_torchscript = \"yes\"\n[data]",
                "allow_torchscript must be true, false",
            ),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good);
            let e = parse(&text).unwrap_err().to_string();
            assert!(e.contains(says), "{to}: {e}");
        }
    }

    #[test]
    fn torchscript_files_are_refused_unless_they_are_allowed() {
        let allowed = |limits: &str| {
            let text = format!(
                "server = \"https://h:1\"\nname = \"a\"\n[data]\npath = \"a.csv\"\n[limits]\n{limits}"
            );
            parse(&text).unwrap().policy.torchscript
        };
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        for (limits, runs) in [
            (String::new(), [false, false]),
            ("allow_torchscript = false".into(), [false, false]),
            ("allow_torchscript = true".into(), [true, true]),
            (format!("allow_torchscript = [\"{one}\"]"), [true, false]),
        ] {
            assert_eq!([one, other].map(|digest| allowed(&limits).check(&digest).is_ok()), runs, "{limits}");
        }
        let refusal = allowed("").check(&one).unwrap_err();
        assert!(refusal.told.contains(&format!("allow_torchscript = [\"{one}\"]")), "{}", refusal.told);
    }
}
