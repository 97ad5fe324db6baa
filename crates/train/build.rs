//! Makes what this package builds find libtorch by itself, without `LD_LIBRARY_PATH`.
//!
//! torch-sys decides where libtorch is: in the user's own PyTorch if `LIBTORCH_USE_PYTORCH` is set, else under
//! `LIBTORCH` (which `.cargo/config.toml` points at this checkout). It hands its answer to the packages that
//! depend on it directly, so nothing is looked for twice and the program runs with what it was linked against.

use std::env;
use std::fs;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let lib = env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("torch-sys says where libtorch is on Linux; elsewhere this crate is not built yet");
    // RUNPATH, in the order searched: the installed layout (bin/ beside lib/), then where it was built. It comes
    // after LD_LIBRARY_PATH, so a CUDA PyTorch of the same version can still be put in front.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{lib}");
    println!("cargo:rustc-env=UNDERTONE_LIBTORCH_VERSION={}", version(Path::new(&lib)));
}

/// The version of the libtorch in `lib`: from `build-version` (a libtorch) or `version.py` (a Python torch).
fn version(lib: &Path) -> String {
    let Some(root) = lib.parent() else { return "unknown".into() };
    // Named to cargo only if they are there: a missing file would count as changed at each build.
    let read = |name: &str| {
        let path = root.join(name);
        let text = fs::read_to_string(&path).ok()?;
        println!("cargo:rerun-if-changed={}", path.display());
        Some(text)
    };
    if let Some(text) = read("build-version") {
        return text.trim().to_owned();
    }
    read("version.py")
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("__version__"))?;
            line.split(['\'', '"']).nth(1).map(str::to_owned)
        })
        .unwrap_or_else(|| "unknown".into())
}
