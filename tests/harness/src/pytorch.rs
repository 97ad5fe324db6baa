//! PyTorch, for the tests of what its users bring: only where there is one.

use std::process::Command;

/// The variable that names a Python.
const NAMED: &str = "UNDERTONE_TEST_PYTORCH";

/// The Python that `UNDERTONE_TEST_PYTORCH` names, else python3, if it has these modules (`"torch, numpy"`). `None`: the test is to be
/// skipped, which is said here, in one line.
pub fn python_with(modules: &str) -> Option<String> {
    let has = |python: &String| {
        let found = Command::new(python).args(["-c", &format!("import {modules}")]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let python = std::env::var(NAMED).into_iter().chain(["python3".to_owned()]).find(has);
    if python.is_none() {
        eprintln!("skipped: python3 has not all of {modules}; name a Python that has in {NAMED}");
    }
    python
}
