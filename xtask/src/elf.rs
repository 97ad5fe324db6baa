//! Which shared libraries a program or library asks for.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::output;

/// The libraries that an ELF file names, in its order. `readelf` comes with the linker.
pub(crate) fn needed(file: &Path) -> Result<Vec<String>> {
    Ok(parse_needed(&output(Command::new("readelf").arg("-d").arg(file))?))
}

fn parse_needed(dynamic: &str) -> Vec<String> {
    let lines = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_needed_lines_count() {
        let dynamic = " 0x0000000000000001 (NEEDED)             Shared library: [libc10.so]\n \
                       0x0000000000000001 (NEEDED)             Shared library: [libcudart.so.13]\n \
                       0x000000000000000f (RPATH)              Library rpath: [$ORIGIN]\n";
        assert_eq!(parse_needed(dynamic), ["libc10.so", "libcudart.so.13"]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_very_program_needs_the_c_library() {
        let ours = std::env::current_exe().expect("a test is a program");
        let libraries = needed(&ours).expect("readelf reads it");
        assert!(libraries.iter().any(|name| name.starts_with("libc.so")), "{libraries:?}");
    }
}
