//! PyTorch, for the tests of what its users bring: only where there is one.

use std::process::Command;

/// The variable that names a Python.
const NAMED: &str = "UNDERTONE_TEST_PYTORCH";

/// The Python that `UNDERTONE_TEST_PYTORCH` names, or python3 if it has these modules (`"torch, numpy"`). `None`: the test is to be
/// skipped, which is said here, in one line.
///
/// # Panics
/// If a Python is named and has not all of them.
pub fn python_with(modules: &str) -> Option<String> {
    let has = |python: &str| {
        let found = Command::new(python).args(["-c", &format!("import {modules}")]).output();
        found.is_ok_and(|output| output.status.success())
    };
    if let Ok(named) = std::env::var(NAMED) {
        assert!(has(&named), "{NAMED} names {named}, which has not all of {modules}");
        return Some(named);
    }
    let python = "python3".to_owned();
    if has(&python) {
        return Some(python);
    }
    eprintln!("skipped: python3 has not all of {modules}; name a Python that has in {NAMED}");
    None
}
