//! LIBTORCH_USE_PYTORCH: the libtorch inside the person's own PyTorch.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::{VERSION, is_our_version};

/// What torch-sys's build script will ask too, `cpp_extension` included, so that it cannot fail later.
const ASK: &str = "import torch, torch.utils.cpp_extension; print(torch.__version__)";

/// Fails unless torch-sys will find what it needs.
pub(super) fn require() -> Result<()> {
    // The interpreter that torch-sys picks.
    let python = if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let ways_out = format!(
        "`{python} -m pip install torch=={VERSION}`, or unset LIBTORCH_USE_PYTORCH to have libtorch fetched"
    );
    let output = match Command::new(python).args(["-c", ASK]).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => {
            bail!("LIBTORCH_USE_PYTORCH is set, but `{python}` cannot be started ({error}); {ways_out}")
        }
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it said nothing");
        bail!("LIBTORCH_USE_PYTORCH is set, but `{python}` cannot import torch ({last}); {ways_out}");
    }
    let version = String::from_utf8_lossy(&output.stdout);
    if !is_our_version(&version) {
        let version = version.trim();
        bail!(
            "LIBTORCH_USE_PYTORCH is set, but `{python}` has PyTorch {version} where {VERSION} is needed; {ways_out}"
        );
    }
    Ok(())
}
