//! The one big download: PyTorch's wheel, by pip, so that the person's index, proxy and certificates count.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::VERSION;
use super::pip::Pip;
use crate::process::cannot_start;
use crate::report::Download;

/// The wheel of one platform. Which Python it is for does not matter: only its C++ half is used.
pub(super) struct Wheel {
    platform: &'static str,
    /// Published files never change, so the download is checked against what we tested.
    sha256: &'static str,
    bytes: u64,
}

const X86_64: Wheel = Wheel {
    platform: "manylinux_2_28_x86_64",
    sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    bytes: 530_604_548,
};

const AARCH64: Wheel = Wheel {
    platform: "manylinux_2_28_aarch64",
    sha256: "d91aac77f24082809d2c5a93f52a5f085032740a1ebc9252a7b052ef5a4fddc6",
    bytes: 419_718_178,
};

impl Wheel {
    pub(super) fn for_this_machine() -> Result<Self> {
        match (std::env::consts::OS, std::env::consts::ARCH) {
            ("linux", "x86_64") => Ok(X86_64),
            ("linux", "aarch64") => Ok(AARCH64),
            (os, arch) => bail!(
                "libtorch is fetched by itself on Linux x86_64 and aarch64 only, and this is {os} {arch}: \
                 `python3 -m pip install torch=={VERSION}`, set LIBTORCH_USE_PYTORCH=1 and run this again"
            ),
        }
    }
}

/// Downloads the wheel into `work` and shows how far it is.
pub(super) fn fetch(wheel: &Wheel, pip: &Pip, work: &Path) -> Result<PathBuf> {
    let (temporary, wheels) = (work.join("tmp"), work.join("wheels"));
    let requirement = work.join("torch.txt");
    std::fs::create_dir(&temporary)?;
    std::fs::create_dir(&wheels)?;
    std::fs::write(&requirement, format!("torch=={VERSION} --hash=sha256:{}\n", wheel.sha256))?;

    let mut command = pip.command();
    command.args(["download", "--quiet", "--no-input", "--progress-bar", "off", "--retries", "3"]);
    command.args(["--no-deps", "--no-cache-dir", "--only-binary", ":all:"]);
    command.args(["--python-version", "3.11", "--platform", wheel.platform]);
    command.arg("--require-hashes").arg("--requirement").arg(&requirement).arg("--dest").arg(&wheels);
    // pip downloads into its temporary folder first: ours is on the right disk, and its size can be watched.
    command.env("TMPDIR", &temporary);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());

    let mut child = command.spawn().map_err(|error| cannot_start(&command, &error))?;
    // Kept in memory: on a full disk a log would be lost, and with it the reason.
    let mut complaints = child.stderr.take().context("pip's messages come through a pipe")?;
    let complaints = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        complaints.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
    });
    let mut shown = Download::start("libtorch: downloading the PyTorch wheel", wheel.bytes);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        shown.update(largest_file(work));
        std::thread::sleep(Duration::from_millis(250));
    };
    shown.finish(status.success());
    if !status.success() {
        let said = complaints.join().map_err(|_| anyhow!("reading pip's messages panicked"))??;
        bail!("{}", explain(&said, status));
    }
    let file = std::fs::read_dir(&wheels)?.next().context("pip succeeded but left no wheel")??;
    Ok(file.path())
}

/// The wheel on its way is the largest file under `folder`.
fn largest_file(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => largest_file(&entry.path()),
        _ => entry.metadata().map_or(0, |metadata| metadata.len()),
    };
    entries.flatten().map(size).max().unwrap_or(0)
}

/// pip's complaint as one sentence with the way out.
fn explain(log: &str, status: ExitStatus) -> String {
    let says = |words: &[&str]| words.iter().any(|word| log.contains(word));
    let error = log.lines().rfind(|line| line.starts_with("ERROR:") || line.contains("Error")).unwrap_or("");
    let error = error.trim_start_matches("ERROR:").trim();
    if says(&["DO NOT MATCH THE HASHES", "Hashes are required"]) {
        return format!(
            "the package index offers another torch {VERSION} wheel than the one we tested (its SHA-256 differs): \
             check PIP_INDEX_URL and pip's configuration, or use your own PyTorch with LIBTORCH_USE_PYTORCH=1"
        );
    }
    let network = [
        "NewConnectionError",
        "ConnectTimeout",
        "ReadTimeout",
        "Read timed out",
        "Connection broken",
        "ConnectionError",
        "ConnectionReset",
        "IncompleteRead",
        "Name or service not known",
        "name resolution",
        "ProxyError",
        "SSLError",
        "Max retries exceeded",
        "HTTPError",
    ];
    if says(&network) {
        let cause = log.lines().find_map(cause_of_retry).unwrap_or(error);
        return format!(
            "pip cannot reach the Python package index ({cause}): connect this machine to the network or set \
             HTTPS_PROXY or PIP_INDEX_URL to a mirror, then run this again"
        );
    }
    if says(&["No matching distribution found"]) {
        return format!(
            "the package index has no torch {VERSION} wheel for this platform: set PIP_INDEX_URL to an index that has \
             it, or use your own PyTorch with LIBTORCH_USE_PYTORCH=1"
        );
    }
    format!(
        "pip could not download torch {VERSION} ({status}): {error}; run this again, or use your own PyTorch with LIBTORCH_USE_PYTORCH=1"
    )
}

/// "... [Errno 111] Connection refused')': /torch/" -> "Connection refused"
fn cause_of_retry(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("[Errno ")?;
    let (_, cause) = rest.split_once("] ")?;
    Some(cause.split(['\'', '"', ')']).next().unwrap_or(cause))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn explained(log: &str) -> String {
        explain(log, ExitStatus::from_raw(256))
    }

    #[test]
    fn a_refused_connection_is_a_network_matter_with_its_cause() {
        // Printed by pip 23.0 with PIP_INDEX_URL=http://127.0.0.1:9/.
        let log = "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection \
                   broken by 'NewConnectionError('<pip._vendor.urllib3.connection.HTTPConnection object at 0x7f>: Failed to \
                   establish a new connection: [Errno 111] Connection refused')': /torch/\n\
                   ERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)\n\
                   ERROR: No matching distribution found for torch==2.11.0\n";
        let sentence = explained(log);
        assert!(
            sentence.contains("cannot reach the Python package index (Connection refused)"),
            "{sentence}"
        );
        assert!(sentence.contains("PIP_INDEX_URL"), "{sentence}");
    }

    #[test]
    fn an_index_without_torch_is_not_a_network_matter() {
        let log = "ERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)\n\
                   ERROR: No matching distribution found for torch==2.11.0\n";
        assert!(explained(log).contains("has no torch 2.11.0 wheel"));
    }

    #[test]
    fn a_foreign_wheel_is_told_from_anything_else() {
        assert!(
            explained("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n")
                .contains("SHA-256")
        );
        let other = explained("ERROR: something new\n");
        assert!(other.contains("something new") && other.contains("LIBTORCH_USE_PYTORCH=1"), "{other}");
    }
}
