//! Log lines on standard error; standard output is for results.

use crate::args::LogFormat;
use crate::progress::LogWriter;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogWriter);
    match format {
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().init(),
    }
}
