//! `undertone privacy`, the real binary on the example jobs: no coordinator, no data.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).join("job.toml")
}

fn audit(job: &Path, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_undertone"))
        .args(["privacy", "audit"])
        .arg(job)
        .args(flags)
        .env_remove("UNDERTONE_OPERATOR")
        .output()
        .unwrap()
}

fn ends(output: &Output, code: i32) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    if code == 2 { err.into_owned() } else { out.into_owned() }
}

#[test]
fn the_hospitals_job_keeps_its_claim_and_its_control_is_found_out() {
    let text = ends(&audit(&example("hospitals"), &["--canaries", "50000"]), 0);
    assert!(text.starts_with("audit of heart, all 20 rounds, with its noise\n"), "{text}");
    assert!(text.contains("that is 5.00 at the contract's δ 0.001"), "{text}");
    assert!(text.contains("\nno contradiction: "), "{text}");

    let text = ends(&audit(&example("hospitals"), &["--canaries", "50000", "--without-noise"]), 0);
    assert!(text.starts_with("audit of heart, all 20 rounds, WITHOUT its noise\n"), "{text}");
    assert!(text.contains("\nthe control worked: "), "{text}");
}

#[test]
fn programs_read_both_numbers() {
    let read = |flags: &[&str]| -> Value {
        serde_json::from_str(&ends(&audit(&example("quickstart"), flags), 0)).unwrap()
    };
    let flags = ["--json", "--seed", "7", "--canaries", "50000"];
    let job = read(&flags);
    let control = read(&[&flags[..], &["--without-noise"]].concat());
    for key in ["canaries", "guesses", "rounds", "delta", "confidence", "epsilon_claimed", "contract"] {
        assert_eq!(job[key], control[key], "{key}");
    }
    let number = |v: &Value, key: &str| v[key].as_f64().unwrap();
    // The bound is a real one, below the claim; without noise it is above.
    assert!(number(&job, "epsilon_measured") > 0.3, "{job}");
    assert!(number(&job, "epsilon_measured") <= number(&job, "epsilon_claimed"), "{job}");
    assert!(number(&control, "epsilon_measured") > number(&control, "epsilon_claimed"), "{control}");
    assert_eq!((&job["noise"], &job["contradiction"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!((&control["noise"], &control["contradiction"]), (&Value::Bool(false), &Value::Bool(true)));
    assert!(job["passed"] == true && control["passed"] == true);
}

/// Under local trust messages are attacked, and where clients are drawn the claim is the amplified one.
#[test]
fn drawn_cohorts_and_local_messages_are_audited_by_the_same_command() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(example("quickstart")).unwrap();
    let table = |from: &str, to: &str| &text[text.find(from).unwrap()..text.find(to).unwrap()];
    let (cohort, privacy) = (table("[cohort]", "[aggregation]"), table("[privacy]", "[evaluation]"));
    let client =
        "unit = \"client\"\nclip_norm = 1.0\ntarget_epsilon = 3.0\ndelta = 1e-5\nbudget_epsilon = 9.0\n";
    let job = folder.path().join("job.toml");
    for (trust, drawn, coin) in [
        ("central", true, "each in or out by a coin"),
        ("local", false, "each sends one of two updates by a coin"),
    ] {
        let mut text = text.replace(privacy, &format!("[privacy]\ntrust = \"{trust}\"\n{client}\n"));
        if drawn {
            let draw =
                "[cohort]\nrule = \"poisson\"\nrate = 0.25\npopulation = 400\ncap = 150\nmin_clients = 3\n\n";
            text = text.replace(cohort, draw);
        }
        std::fs::write(&job, text).unwrap();
        let flags = ["--json", "--canaries", "20000"];
        for (flags, beyond) in [(flags.to_vec(), false), ([&flags[..], &["--without-noise"]].concat(), true)]
        {
            let found: Value = serde_json::from_str(&ends(&audit(&job, &flags), 0)).unwrap();
            let number = |key: &str| found[key].as_f64().unwrap();
            assert!((number("epsilon_claimed") - 3.0).abs() < 0.01, "{found}");
            assert!(number("epsilon_measured") > 0.3, "{found}");
            assert_eq!(number("epsilon_measured") > number("epsilon_claimed"), beyond, "{found}");
            assert_eq!((&found["unit"], &found["contradiction"]), (&"client".into(), &Value::Bool(beyond)));
        }
        let text = ends(&audit(&job, &["--canaries", "20000"]), 0);
        assert!(text.contains(&format!("20000 clients, {coin}; ")), "{text}");
    }
}

#[test]
fn what_cannot_be_audited_is_told_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(example("quickstart")).unwrap();
    let privacy = &text[text.find("[privacy]").unwrap()..text.find("[evaluation]").unwrap()];
    let job = folder.path().join("job.toml");
    std::fs::write(&job, text.replace(privacy, "[privacy]\nunit = \"none\"\n\n")).unwrap();
    let e = ends(&audit(&job, &[]), 2);
    assert!(e.contains("the job promises no privacy (unit = \"none\"): there is no claim to audit"), "{e}");

    for (flags, sentence) in [
        (["--canaries", "5"], "100 to 65536 canaries, not 5"),
        (["--guesses", "3"], "this audit would never fail"),
        (["--confidence", "1"], "a confidence is at least 0.5 and below 1, not 1"),
        (["--rounds", "21"], "audit 1 to 20 of them, not 21"),
    ] {
        let e = ends(&audit(&example("quickstart"), &flags), 2);
        assert!(e.contains(sentence) && e.trim_end().lines().count() == 1, "{e}");
    }
    let e = ends(&audit(Path::new("/nonexistent.toml"), &[]), 2);
    assert!(e.contains("cannot read /nonexistent.toml"), "{e}");
}
