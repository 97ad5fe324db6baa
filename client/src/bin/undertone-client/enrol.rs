//! `undertone-client enrol`

use crate::args::EnrolArgs;
use crate::output::print;
use anyhow::{Context as _, Result, bail};
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use undertone::join_token::JoinToken;
use undertone_client::{ClientConfig, Enrolment, config_mismatch};
use undertone_core::data_files::DataFiles;

const MAX_TOKEN_BYTES: u64 = 64 << 10;

pub(crate) async fn enrol(args: EnrolArgs) -> Result<ExitCode> {
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => read_token(file)?,
        (None, None) => bail!("give --token or --token-file"),
    };
    let token = JoinToken::decode(&text)?;
    let server = token.server.clone();
    let complete = (args.data.is_some(), args.declared_rows.is_some());
    let enrolled = undertone_client::enrol(Enrolment {
        dir: args.dir.clone(),
        token,
        name: args.name,
        data: args.data.map(|path| DataFiles { path, labels: args.labels }),
        declared_rows: args.declared_rows,
        force: args.force,
    })
    .await?;

    let dir = args.dir.display();
    let mut text = format!("enrolled as {} ({}) at {server}\n", enrolled.client, enrolled.role);
    if enrolled.wrote_config {
        let missing = match (complete.0, complete.1) {
            (true, true) => "",
            (true, false) => " and set declared_rows",
            (false, true) => " and set [data] path",
            (false, false) => " and set [data] path and declared_rows",
        };
        text += &format!("wrote {dir}/client.toml: read it{missing}\n");
    } else if let Some(mismatch) = config_mismatch(&ClientConfig::load(&args.dir)?, &server, &enrolled) {
        text += &format!("{mismatch}\n");
    }
    text += &format!("next: undertone-client run --dir {dir} --dry-run   (what would leave)\n");
    text += &format!("      undertone-client run --dir {dir}\n");
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn read_token(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(MAX_TOKEN_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|f| f.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read the token from {}", file.display()))?;
    Ok(text)
}
