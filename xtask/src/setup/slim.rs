//! From PyTorch's wheel to a libtorch that needs no CUDA.
//!
//! The Linux wheel is the CUDA build: its `libtorch.so` only forwards to `libtorch_cpu.so` and `libtorch_cuda.so`
//! (456 MB, which want 2.5 GB more), and `libtorch_cpu.so` names two small NVIDIA libraries that only the profiler
//! calls. So the forwarder is replaced by one without CUDA, and the two are replaced by stubs that know no device.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::elf::needed;
use crate::process::output;

const UNPACK: &str = include_str!("unpack.py");

/// Puts the libraries that CPU work needs into `lib/` and the headers into `include/`, PyTorch's licence beside them.
pub(super) fn unpack(wheel: &Path, folder: &Path) -> Result<()> {
    let mut python = Command::new("python3");
    output(python.arg("-c").arg(UNPACK).arg(wheel).arg(folder)).context("cannot unpack the PyTorch wheel")?;
    Ok(())
}

/// Strips the libraries, then cuts both ties to CUDA.
pub(super) fn slim(folder: &Path, work: &Path) -> Result<()> {
    let lib = folder.join("lib");
    let cpu = lib.join("libtorch_cpu.so");
    output(Command::new("strip").arg("--strip-unneeded").arg(&cpu).arg(lib.join("libc10.so")))?;
    write_forwarder(&lib, work)?;
    for library in needed(&cpu)?.iter().filter(|name| name.starts_with("libcu")) {
        write_stub(library, &cpu, &lib, work)?;
    }
    Ok(())
}

/// Loads it as a program of ours would: a missing library or symbol shows here, not in the middle of a build.
pub(super) fn require_that_it_loads(folder: &Path) -> Result<()> {
    let mut python = Command::new("python3");
    python.args(["-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])"]).arg(folder.join("lib/libtorch.so"));
    output(&mut python).context("libtorch was unpacked, but this machine cannot load it")?;
    Ok(())
}

/// An empty `libtorch.so` that needs `libtorch_cpu.so` and `libc10.so`.
fn write_forwarder(lib: &Path, work: &Path) -> Result<()> {
    let source = work.join("torch.c");
    std::fs::write(&source, "void libtorch_forwarder_without_cuda(void) {}\n")?;
    let target = lib.join("libtorch.so");
    std::fs::remove_file(&target)?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&target).arg(&source).arg("-L").arg(lib);
    cc.args(["-Wl,-soname,libtorch.so", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]);
    cc.args(["-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN"]);
    output(&mut cc)?;
    Ok(())
}

/// A library with every symbol that `cpu` wants from `library`, each answering "there is no device".
fn write_stub(library: &str, cpu: &Path, lib: &Path, work: &Path) -> Result<()> {
    let symbols = output(Command::new("nm").args(["-D", "--undefined-only"]).arg(cpu))?;
    let (source, versions) = (work.join("stub.c"), work.join("stub.map"));
    std::fs::write(&source, stub_source(library, wanted_from(library, &symbols)))?;
    std::fs::write(&versions, format!("{library} {{ global: *; }};\n"))?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-w", "-o"]).arg(lib.join(library)).arg(&source);
    cc.arg(format!("-Wl,-soname,{library}")).arg(format!("-Wl,--version-script={}", versions.display()));
    output(&mut cc)?;
    Ok(())
}

/// The names that `nm` shows as undefined with the version node `library`: lines like "   U cudaX@libcudart.so.13".
fn wanted_from<'a>(library: &'a str, symbols: &'a str) -> impl Iterator<Item = &'a str> {
    symbols.lines().filter_map(move |line| {
        let (name, version) = line.split_whitespace().last()?.split_once('@')?;
        (version.trim_start_matches('@') == library).then_some(name)
    })
}

fn stub_source<'a>(library: &str, symbols: impl Iterator<Item = &'a str>) -> String {
    // 100 is cudaErrorNoDevice, 15 is CUPTI_ERROR_NOT_INITIALIZED.
    let mut source = format!("/* Stands for {library}: there is no CUDA device. */\n");
    for name in symbols {
        let body = match name {
            "cudaGetErrorString" => {
                format!("const char *{name}(int e) {{ return \"no CUDA device (CPU-only libtorch)\"; }}")
            }
            "cudaGetDeviceCount" | "cudaDriverGetVersion" | "cudaRuntimeGetVersion" => {
                format!("int {name}(int *n) {{ if (n) *n = 0; return 100; }}")
            }
            "cuptiGetResultString" => {
                format!(
                    "int {name}(int r, const char **s) {{ if (s) *s = \"no CUPTI (CPU-only libtorch)\"; return 0; }}"
                )
            }
            _ if name.starts_with("cuda") => format!("int {name}(void) {{ return 100; }}"),
            _ => format!("int {name}(void) {{ return 15; }}"),
        };
        writeln!(source, "{body}").expect("a String takes any text");
    }
    source
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_symbols_of_that_library_are_stubbed() {
        let symbols = "                 U cudaGetDeviceCount@libcudart.so.13\n                 U cuptiSubscribe@libcupti.so.13\n                 \
                       U memcpy@GLIBC_2.17\n                 U c10_thing\n";
        let wanted: Vec<&str> = wanted_from("libcudart.so.13", symbols).collect();
        assert_eq!(wanted, ["cudaGetDeviceCount"]);
        let source = stub_source("libcudart.so.13", wanted.into_iter());
        assert!(source.contains("int cudaGetDeviceCount(int *n) { if (n) *n = 0; return 100; }"), "{source}");
        assert!(!source.contains("cuptiSubscribe"), "{source}");
    }
}
