//! `undertone-client enrol`

use crate::args::EnrolArgs;
use anyhow::{Context as _, Result, bail};
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use undertone::join_token::JoinToken;
use undertone_client::{ClientConfig, Enrolment, config_mismatch};

const MAX_TOKEN_BYTES: u64 = 64 << 10;

pub(crate) async fn enrol(args: EnrolArgs) -> Result<ExitCode> {
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => read_token(file)?,
        (None, None) => bail!("give --token or --token-file"),
    };
    let token = JoinToken::decode(&text)?;
    let server = token.server.clone();
    let enrolled = undertone_client::enrol(Enrolment {
        dir: args.dir.clone(),
        token,
        name: args.name,
        data: args.data,
        declared_rows: args.declared_rows,
        force: args.force,
    })
    .await?;

    let dir = args.dir.display();
    println!("enrolled as {} ({}) at {server}", enrolled.client, enrolled.role);
    if enrolled.wrote_config {
        println!("wrote {dir}/client.toml: read it, set [data] path and declared_rows");
    } else if let Some(mismatch) = config_mismatch(&ClientConfig::load(&args.dir)?, &server, &enrolled) {
        println!("{mismatch}");
    }
    println!("next: undertone-client run --dir {dir} --dry-run   (what would leave)");
    println!("      undertone-client run --dir {dir}");
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
