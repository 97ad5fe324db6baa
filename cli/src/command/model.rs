//! `undertone model`: fetching what was released.

use super::{Operator, find_job};
use crate::output::{printable, size};
use crate::profile::{Connection, call_failed};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Subcommand;
use serde_json::json;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tonic::Streaming;
use undertone::limits::MAX_CHUNK_BYTES;
use undertone::v1;
use undertone::v1::release_message::Kind;
use undertone_core::digest::{Digest, Digester};
use undertone_core::limits::MAX_PARAMETERS;

/// Largest model file: all its values, and a header with the tensors' names.
const MAX_MODEL_BYTES: u64 = MAX_PARAMETERS * 4 + (64 << 20);

/// Fetch released models.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Save a released model as a safetensors file, checked against its digest
    #[command(after_help = "\
Open it in Python:
  from safetensors.torch import load_file
  model.load_state_dict(load_file(\"model.safetensors\"))")]
    Download {
        /// The job
        job: String,
        /// The round whose model is wanted; without it, the newest
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        round: Option<u32>,
        /// Where to save it; a file that is there already is replaced once the new one is complete
        #[arg(long, value_name = "FILE", default_value = "model.safetensors")]
        out: PathBuf,
    },
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses, the bytes are not those promised, or the file cannot be
    /// written.
    pub(crate) async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let Self::Download { job, round, out } = self;
        let mut connection = operator.connect().await?;
        let job = find_job(&mut connection, &job).await?.job;
        let saved = download(&mut connection, &job, round, &out).await?;
        if operator.screen.json {
            operator.screen.json(&json!({
                "job": job,
                "round": saved.round,
                "digest": saved.digest,
                "bytes": saved.bytes,
                "file": out,
            }))?;
        } else {
            operator.screen.line(&format!(
                "saved the model of {} round {} to {} ({}, sha256 {})",
                printable(&job),
                saved.round,
                out.display(),
                size(saved.bytes),
                saved.digest
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A model that was saved.
#[derive(Debug)]
pub(crate) struct Saved {
    /// The round that released it.
    pub(crate) round: u32,
    /// Its digest, checked.
    pub(crate) digest: Digest,
    /// Its size.
    pub(crate) bytes: u64,
}

/// Saves the model of `round` (`None`: the newest) to `out`. The file appears complete and checked, or not at
/// all.
///
/// # Errors
/// If the server refuses, the bytes are not those promised, or the file cannot be written.
pub(crate) async fn download(
    connection: &mut Connection,
    job: &str,
    round: Option<u32>,
    out: &Path,
) -> Result<Saved> {
    let cannot_write = || format!("cannot write {}", out.display());
    let request = v1::DownloadReleaseRequest { job: job.to_owned(), round: round.unwrap_or(0) };
    let mut messages = connection.download_release(request).await.map_err(call_failed)?.into_inner();
    let (round, wanted, bytes) = header(&mut messages).await?;
    // In the same folder, so that the last step is a rename.
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".undertone-model-")
        // Temporary files begin private, but a released model is no secret: as the umask allows.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .with_context(cannot_write)?;
    let mut digester = Digester::new();
    let mut offset = 0;
    while let Some(message) = messages.message().await.map_err(call_failed)? {
        let Some(Kind::Chunk(chunk)) = message.kind else {
            bail!("the coordinator sent something that is not a piece of the model; nothing was saved");
        };
        let len = chunk.data.len();
        ensure!(
            chunk.offset == offset && len <= MAX_CHUNK_BYTES && offset + len as u64 <= bytes,
            "a piece of the model came out of order or beyond the promised {bytes} bytes; nothing was saved"
        );
        digester.update(&chunk.data);
        file.write_all(&chunk.data).with_context(cannot_write)?;
        offset += len as u64;
    }
    ensure!(offset == bytes, "the model ended after {offset} of {bytes} bytes; nothing was saved: try again");
    let digest = digester.finish();
    ensure!(
        digest == wanted,
        "the model's digest is {digest}, promised was {wanted}: damaged on the way or on the coordinator's disk; \
         nothing was saved"
    );
    file.as_file().sync_all().with_context(cannot_write)?;
    file.persist(out).map_err(|e| e.error).with_context(cannot_write)?;
    Ok(Saved { round, digest, bytes })
}

async fn header(messages: &mut Streaming<v1::ReleaseMessage>) -> Result<(u32, Digest, u64)> {
    let first = messages.message().await.map_err(call_failed)?.and_then(|m| m.kind);
    let Some(Kind::Header(v1::ReleaseHeader { round, model: Some(model) })) = first else {
        bail!("the coordinator did not begin with the model's digest; nothing was saved");
    };
    ensure!(model.bytes <= MAX_MODEL_BYTES, "a model of {} is beyond every limit", size(model.bytes));
    let digest =
        model.parsed_digest().map_err(|e| anyhow!("the coordinator's answer makes no sense: {e}"))?;
    Ok((round, digest, model.bytes))
}
