//! `undertone-client` as a process.

use std::process::{Command, Output};
use undertone_harness::{Process, Processes, SAMPLE_JOB, binary};

const CSV: &str = "x,y\n-0.5,0\n0.5,1\n0.25,1\n-0.75,0\n";

fn client(args: &[&str]) -> Output {
    Command::new(binary("undertone-client")).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn write(folder: &std::path::Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn check_names_what_is_wrong_with_the_data() {
    let d = Processes::start();
    assert!(d.enrol("a", "trainer", CSV, 4).status.success());
    let folder = d.client_folder("a");
    let job = write(&folder, "job.toml", SAMPLE_JOB);
    let check = || client(&["check", "--dir", folder.to_str().unwrap(), "--job", &job]);
    let good = check();
    assert!(good.status.success(), "{}", text(&good));
    for (bad, words) in [
        ("x,y\nhigh,0\n0.5,1\n", "high"),
        ("z,y\n0.5,0\n", "\"x\""),
        ("", "empty"),
        ("x,y\n0.5,maybe\n", "maybe"),
        ("x,y\n7,0\n0.5,1\n", "7"),
    ] {
        write(&folder, "data.csv", bad);
        let output = check();
        assert!(!output.status.success() && text(&output).contains(words), "{bad:?}: {}", text(&output));
    }
}

#[test]
fn dry_run_says_what_would_leave_and_what_would_not() {
    let d = Processes::start();
    assert!(d.enrol("a", "trainer", CSV, 40).status.success());
    let folder = d.client_folder("a");
    let private = SAMPLE_JOB.replace(
        "unit = \"none\"",
        "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.5\nnoise_multiplier = 2.0\n\
         delta = 1e-3\nbudget_epsilon = 10.0",
    );
    let job = write(&folder, "job.toml", &private);
    let output = client(&["run", "--dir", folder.to_str().unwrap(), "--dry-run", "--job", &job]);
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    // Two values of four bytes each round, 40 declared rows, and an epsilon.
    for words in ["8 bytes", "40", "clip", "noise", "ε"] {
        assert!(shown.contains(words), "no \"{words}\" in:\n{shown}");
    }
    // It did not connect.
    let list = String::from_utf8(d.undertone(&["client", "list", "--json"]).stdout).unwrap();
    assert!(!list.contains("\"connected\":true") && !list.contains("\"connected\": true"), "{list}");
}

#[test]
fn unknown_keys_and_missing_folders_are_named() {
    let d = Processes::start();
    assert!(d.enrol("a", "trainer", CSV, 40).status.success());
    let folder = d.client_folder("a");
    let config = std::fs::read_to_string(folder.join("client.toml")).unwrap();
    std::fs::write(folder.join("client.toml"), config.replace("path =", "pth =")).unwrap();
    let output = client(&["run", "--dir", folder.to_str().unwrap()]);
    assert!(
        !output.status.success() && text(&output).contains("did you mean \"path\"?"),
        "{}",
        text(&output)
    );
    let output = client(&["run", "--dir", "/nonexistent/folder"]);
    assert!(!output.status.success() && text(&output).contains("enrol"), "{}", text(&output));
}

#[test]
fn a_used_token_and_a_damaged_one_are_told_apart() {
    let d = Processes::start();
    assert!(d.enrol("a", "trainer", CSV, 40).status.success());
    let token = d.client_folder("a").join("token");
    let other = d.path().join("other");
    let (other, token_text) = (other.to_str().unwrap(), token.to_str().unwrap());
    let used = client(&["enrol", "--dir", other, "--token-file", token_text]);
    assert!(!used.status.success() && text(&used).contains("used already"), "{}", text(&used));
    let whole = std::fs::read_to_string(&token).unwrap();
    let cut = &whole.trim()[..whole.trim().len() - 9];
    let damaged = client(&["enrol", "--dir", other, "--token", cut]);
    assert!(!damaged.status.success() && text(&damaged).contains("damaged"), "{}", text(&damaged));
}

#[test]
fn baseline_trains_on_local_files_alone() {
    let folder = tempfile::tempdir().unwrap();
    let job =
        write(folder.path(), "job.toml", &SAMPLE_JOB.replace("learning_rate = 0.1", "learning_rate = 2.0"));
    let data = write(folder.path(), "a.csv", CSV);
    let output = client(&["baseline", "--job", &job, "--train", &data, "--test", &data, "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let line = String::from_utf8(output.stdout).unwrap();
    let json: serde_json::Value = serde_json::from_str(line.trim().lines().last().unwrap()).unwrap();
    assert_eq!(json["accuracy"], 1.0, "{json}");
    assert_eq!(json["rows"], 4);
}

/// `client.toml` of a client, with `[trainer]` keys more.
fn set_trainer(folder: &std::path::Path, keys: &str) {
    let path = folder.join("client.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    let changed = config
        .replacen("[trainer]\n", &format!("[trainer]\n{keys}\n"), 1)
        .replace("allow_no_privacy = false", "allow_no_privacy = true");
    assert_ne!(changed, config);
    std::fs::write(path, changed).unwrap();
}

const ONE_ROUND: (&str, &str) = ("rounds = 2", "rounds = 1");

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_program_trains_and_only_the_owner_reads_what_it_says() {
    let d = Processes::start();
    assert!(d.enrol("a", "trainer", CSV, 40).status.success());
    let folder = d.client_folder("a");
    // As the issue has it: a program and a file beside client.toml.
    set_trainer(&folder, "command = [\"sh\", \"train.sh\"]\nniceness = 11\n");
    let script = "nice; echo \"ten rows look odd\" >&2; echo 'undertone: step 1 of 2'; sed -n '/\"do\"/p' task.json\n\
                  cp weights.safetensors update.safetensors; echo '{\"steps\": 2}' > result.json";
    write(&folder, "train.sh", script);
    let mut process = d.run_client("a");
    process.wait_for("owner's own program");
    let mut operator = d.operator().await;
    let job = SAMPLE_JOB.replace(ONE_ROUND.0, ONE_ROUND.1).replace("size = 2", "size = 1");
    let id = operator.submit(&job).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(events.released(), 1, "{}\n{}", events.text(), process.log());
    let log = process.log();
    for line in ["program: ten rows look odd", "program: 11", "program:   \"do\": \"train\"", "steps=2"] {
        assert!(log.contains(line), "{line}:\n{log}");
    }
    assert!(!log.contains("program: undertone: step"), "{log}");
    assert!(!events.text().contains("odd") && !folder.join("work").exists());
    assert!(process.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_of_a_json_log_is_json_the_trainers_too() {
    let d = Processes::start();
    assert!(d.enrol("a", "trainer", CSV, 4).status.success());
    let folder = d.client_folder("a");
    let mut command = Command::new(binary("undertone-client"));
    command.args(["--log-format", "json", "run", "--dir"]).arg(&folder).env("RUST_LOG", "debug");
    let mut process = Process::start(command, folder.join("log"));
    let mut operator = d.operator().await;
    // Of steps no more than five a second are heard of, so there must be some.
    let job = SAMPLE_JOB
        .replace(ONE_ROUND.0, ONE_ROUND.1)
        .replace("size = 2", "size = 1")
        .replace("local_steps = 1\n", "local_steps = 3000\n")
        .replace(
            "unit = \"none\"",
            "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.5\nnoise_multiplier = 30.0\n\
             delta = 1e-3\nbudget_epsilon = 10.0",
        );
    let id = operator.submit(&job).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(events.released(), 1, "{}\n{}", events.text(), process.log());
    assert!(process.terminate().success());
    let log = process.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let of_job = |message: &str| {
        let found = lines
            .iter()
            .find(|line| line["fields"]["message"].as_str().is_some_and(|found| found.starts_with(message)));
        let line = found.unwrap_or_else(|| panic!("no \"{message}\" in:\n{log}"));
        assert_eq!(line["span"]["job"], id.as_str(), "{line}");
        line
    };
    of_job("trainer: engine = ");
    assert_eq!(of_job("training")["fields"]["steps"], 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_is_declined_while_the_owner_has_training_wait() {
    let d = Processes::start();
    assert!(d.enrol("a", "trainer", CSV, 40).status.success());
    let folder = d.client_folder("a");
    let busy = write(&folder, "busy", "");
    set_trainer(&folder, &format!("pause = {{ command = [\"test\", \"-e\", \"{busy}\"] }}"));
    let process = d.run_client("a");
    let mut operator = d.operator().await;
    let job = SAMPLE_JOB.replace(ONE_ROUND.0, ONE_ROUND.1).replace("size = 2", "size = 1");
    let id = operator.submit(&job).await.unwrap();
    let declined = |e: &undertone_round::event::JobEvent| format!("{e:?}").contains("Declined");
    let events = operator.watch_until(&id, declined).await;
    assert!(events.text().contains("has training wait for now"), "{}", events.text());
    process.wait_for("says so ([trainer] pause)");
    assert!(!events.text().contains("busy"), "the condition is the owner's affair");
    std::fs::remove_file(busy).unwrap();
    let events = operator.watch_to_end(&id).await;
    if events.released() == 0 {
        let again = operator.submit(&job).await.unwrap();
        let events = operator.watch_to_end(&again).await;
        assert_eq!(events.released(), 1, "{}\n{}", events.text(), process.log());
    }
}

#[test]
fn an_idle_client_is_small_and_waits_for_its_coordinator() {
    let mut d = Processes::start();
    assert!(d.enrol("a", "trainer", CSV, 40).status.success());
    d.server().kill();
    let mut process = d.run_client("a");
    std::thread::sleep(std::time::Duration::from_secs(2));
    d.start_server();
    let deadline = std::time::Instant::now() + undertone_harness::PATIENCE;
    loop {
        let list = String::from_utf8(d.undertone(&["client", "list", "--json"]).stdout).unwrap();
        if list.replace(' ', "").contains("\"connected\":true") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it does not come back:\n{}", process.log());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        let kb: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(kb < 40_000, "an idle client holds {kb} kB");
    }
    assert!(process.terminate().success());
}
