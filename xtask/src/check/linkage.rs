//! Only the trainer loads libtorch. The graph says what is compiled in; this looks at what came out.

use anyhow::{Context, Result};

use crate::cargo::Workspace;
use crate::elf;
use crate::report::say;

const WITHOUT_LIBTORCH: [&str; 3] = ["undertone-server", "undertone-client", "undertone"];

const LIBTORCH: [&str; 2] = ["libtorch", "libc10"];

/// The binaries that load libtorch and should not. Those that are not built yet are passed over, with a line.
pub(super) fn problems(workspace: &Workspace) -> Result<Vec<String>> {
    if std::env::consts::OS != "linux" {
        say("what the binaries load is looked at on Linux only");
        return Ok(Vec::new());
    }
    let mut problems = Vec::new();
    for name in WITHOUT_LIBTORCH {
        let path = workspace.binary(name);
        if !path.is_file() {
            say(&format!(
                "{name} is not built yet, so what it loads was not looked at (`cargo xtask test` builds it)"
            ));
            continue;
        }
        let needed =
            elf::needed(&path).with_context(|| format!("cannot tell what {} loads", path.display()))?;
        let torch: Vec<String> = needed.into_iter().filter(|library| is_libtorch(library)).collect();
        if torch.is_empty() {
            say(&format!("{name} does not load libtorch"));
        } else {
            problems.push(format!("{name} loads {}: only the trainer may", torch.join(", ")));
        }
    }
    Ok(problems)
}

fn is_libtorch(library: &str) -> bool {
    LIBTORCH.iter().any(|prefix| library.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_is_known_by_its_names() {
        for library in ["libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so"] {
            assert!(is_libtorch(library), "{library}");
        }
        for library in ["libc.so.6", "libgcc_s.so.1", "libm.so.6"] {
            assert!(!is_libtorch(library), "{library}");
        }
    }
}
