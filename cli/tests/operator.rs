//! The real binary against a scripted coordinator: what operators see, and the exit codes that scripts rely on.

mod fake;

use fake::{Fake, Script, undertone, write_profile};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use undertone::v1;
use undertone_core::digest::Digest;
use undertone_core::layout::{ModelLayout, TensorSpec};
use undertone_round::job::JobSpec;

fn job(id: &str, status: &str) -> v1::JobSummary {
    v1::JobSummary {
        job: id.into(),
        status: status.into(),
        rounds_released: 2,
        rounds_planned: 2,
        created_unix_s: 1_700_000_000,
        epsilon_spent: Some(1.25),
        epsilon_budget: Some(10.0),
        problem: String::new(),
        delta: Some(1e-3),
    }
}

const RELEASED: &str = r#"{"kind":"released","round":1,"attempt":1,"model":"0000000000000000000000000000000000000000000000000000000000000000","clients":3,"asked":4,"epsilon":0.5}"#;
const EVENTS: [&str; 6] = [
    r#"{"kind":"waiting","round":1,"present":2,"needed":3}"#,
    r#"{"kind":"lost","round":1,"client":"va","reason":"its session broke"}"#,
    RELEASED,
    r#"{"kind":"evaluated","round":1,"evaluator":"judge","metrics":{"loss":0.5,"accuracy":0.75,"rows":10}}"#,
    r#"{"kind":"danced","round":1}"#,
    r#"{"kind":"ended","outcome":{"outcome":"completed"}}"#,
];

fn script() -> Script {
    let jobs = vec![job("heart-abc", "completed"), job("heart-xyz", "failed")];
    Script { jobs, events: EVENTS.to_vec(), model: (0..2500).map(|i| i as u8).collect(), ..Script::default() }
}

fn out(o: &Output) -> String {
    String::from_utf8(o.stdout.clone()).unwrap()
}

fn err(o: &Output) -> String {
    String::from_utf8(o.stderr.clone()).unwrap()
}

/// Checks the exit code; gives standard output and standard error.
fn ends(o: &Output, code: i32) -> (String, String) {
    assert_eq!(o.status.code(), Some(code), "{}\n{}", out(o), err(o));
    (out(o), err(o))
}

#[test]
fn lists_are_tables_for_people_and_json_for_programs() {
    let fake = Fake::start(script());
    let (text, _) = ends(&fake.undertone(&["job", "list"]), 0);
    assert_eq!(
        text,
        "JOB        STATUS     ROUNDS  ε SPENT  BUDGET      δ  SUBMITTED\n\
         heart-abc  completed     2/2     1.25      10  0.001  2023-11-14 22:13:20Z\n\
         heart-xyz  failed        2/2     1.25      10  0.001  2023-11-14 22:13:20Z\n"
    );
    let (text, _) = ends(&fake.undertone(&["--json", "job", "list"]), 0);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json[1]["job"], &json[0]["epsilon_spent"]), (&"heart-xyz".into(), &1.25.into()));

    let (text, _) = ends(&fake.undertone(&["client", "list"]), 0);
    assert!(text.contains("va      trainer    yes        never"), "{text}");
    let refused =
        "va: 1 upload refused since the coordinator started, the last one: chunk at 5, expected one at 4";
    assert!(text.contains(refused) && !text.contains("judge: "), "{text}");
    let json: Value =
        serde_json::from_str(&ends(&fake.undertone(&["client", "list", "--json"]), 0).0).unwrap();
    assert_eq!((&json[0]["uploads_refused"], &json[1]["last_refusal"]), (&1.into(), &Value::Null));
    assert!(!text.contains('\x1b'), "{text}");
    let (text, _) = ends(&fake.undertone(&["token", "list"]), 0);
    assert!(text.contains("undertone token create"), "{text}");
    assert_eq!(ends(&fake.undertone(&["token", "list", "--json"]), 0).0, "[]\n");
}

#[test]
fn a_job_is_shown_by_any_unambiguous_beginning() {
    let fake = Fake::start(script());
    let (text, _) = ends(&fake.undertone(&["job", "show", "heart-a"]), 0);
    for part in ["heart-abc", "2 of 2 released", "epsilon", "1.25", "collecting", "missing", "va"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let (text, _) = ends(&fake.undertone(&["job", "show", "heart-a", "--json"]), 0);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["privacy"]["epsilon"], 1.25);
    assert_eq!(json["document"]["name"], "toy");
    let (_, said) = ends(&fake.undertone(&["job", "show", "heart"]), 2);
    assert!(said.contains("2 jobs begin with \"heart\": heart-abc, heart-xyz"), "{said}");
}

#[test]
fn a_watched_job_tells_its_story_and_the_exit_code_its_end() {
    let fake = Fake::start(script());
    let (text, _) = ends(&fake.undertone(&["job", "watch", "heart-abc"]), 0);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "round 1 waits: 2 of 3 trainers are connected",
            "    round 1: va lost: its session broke",
            "round 1/2   3/4 clients   loss 0.5000  accuracy 0.7500   ε 0.500 of 10",
            "    (\"danced\" happened, which this version of undertone does not know: upgrade it)",
            "completed: all rounds are released",
        ]
    );
    let (text, _) = ends(&fake.undertone(&["job", "watch", "heart-abc", "--json"]), 0);
    let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(events.len(), EVENTS.len());
    assert_eq!((&events[2]["kind"], &events[2]["sequence"]), (&"released".into(), &3.into()));
    assert_eq!(events[2]["job"], "heart-abc");

    let ends_as = |last: &'static str, code| {
        let fake = Fake::start(Script { events: vec![last], ..script() });
        ends(&fake.undertone(&["job", "watch", "heart-abc"]), code).0
    };
    let spent = ends_as(r#"{"kind":"ended","outcome":{"outcome":"budget_spent","reason":"10.1 > 10"}}"#, 0);
    assert_eq!(spent, "budget spent: 10.1 > 10\n");
    let failed = ends_as(r#"{"kind":"ended","outcome":{"outcome":"failed","reason":"nobody came"}}"#, 1);
    assert_eq!(failed, "failed: nobody came\n");
    ends_as(r#"{"kind":"ended","outcome":{"outcome":"cancelled","by":"ada","reason":"x"}}"#, 1);
}

#[test]
fn a_broken_stream_is_taken_up_where_it_broke() {
    let fake = Fake::start(Script { breaks: 2, ..script() });
    let (text, said) = ends(&fake.undertone(&["job", "watch", "heart-abc", "--json"]), 0);
    let sequences: Vec<u64> = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5, 6]);
    assert!(said.contains("connection lost"), "{said}");
    assert_eq!(fake.asked(), ["list", "watch after 0", "watch after 2", "watch after 4"]);
}

#[test]
fn a_model_is_saved_complete_and_checked_or_not_at_all() {
    let fake = Fake::start(script());
    std::fs::create_dir(fake.path("models")).unwrap();
    let file = fake.path("models/m.safetensors");
    let download = |fake: &Fake, file: &Path| {
        fake.undertone(&["model", "download", "heart-a", "--round", "3", "--out", file.to_str().unwrap()])
    };
    let (text, _) = ends(&download(&fake, &file), 0);
    assert!(text.contains("round 3") && text.contains(&Digest::of(&script().model).to_string()), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), script().model);
    assert_eq!(fake.asked(), ["list", "download round 3"]);

    let bad = [
        (Script { promised: Some(Digest::of(b"other")), ..script() }, "digest"),
        (Script { promised_bytes: Some(2400), ..script() }, "beyond the promised 2400 bytes"),
        (Script { promised_bytes: Some(2600), ..script() }, "ended after 2500 of 2600 bytes"),
        (Script { promised_bytes: Some(u64::MAX), ..script() }, "beyond every limit"),
    ];
    for (script, reason) in bad {
        let fake = Fake::start(script);
        let folder = fake.path("models");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("m"), "old").unwrap();
        let (_, said) = ends(&download(&fake, &folder.join("m")), 1);
        assert!(said.contains(reason), "{reason} is not in {said}");
        assert_eq!(std::fs::read(folder.join("m")).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "something was left behind");
    }
}

#[test]
fn a_token_goes_to_the_pipe_alone_or_to_a_private_file() {
    let fake = Fake::start(script());
    let o = fake.undertone(&["token", "create", "--role", "trainer", "--name", "va", "--expires", "2h"]);
    let (text, said) = ends(&o, 0);
    assert_eq!(text, "undertone-join-1.secret\n");
    assert!(said.contains("token t1") && said.contains("only this once"), "{said}");
    assert_eq!(fake.asked(), ["token 1 \"va\" 1 7200"]);

    let file = fake.path("token");
    let args = ["token", "create", "--role", "evaluator", "--out", file.to_str().unwrap(), "--json"];
    let (text, _) = ends(&fake.undertone(&args), 0);
    assert!(!text.contains("secret") && text.contains("\"id\":\"t1\""), "{text}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "undertone-join-1.secret\n");

    ends(&fake.undertone(&["token", "revoke", "t1"]), 0);
    let (_, said) = ends(&fake.undertone(&["token", "revoke", "t2"]), 1);
    assert!(said.contains("there is no token \"t2\""), "{said}");
    for nonsense in [["--role", "boss"], ["--expires", "60"], ["--name", "../x"], ["--uses", "0"]] {
        let mut args = vec!["token", "create"];
        if nonsense[0] != "--role" {
            args.extend(["--role", "trainer"]);
        }
        args.extend(nonsense);
        ends(&fake.undertone(&args), 2);
    }
}

const HEART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hospitals/job.toml");

#[test]
fn a_job_is_checked_before_it_is_sent() {
    let fake = Fake::start(script());
    let (text, _) = ends(&fake.undertone(&["job", "submit", HEART]), 0);
    for part in ["job toy-abc", "for each record", "target ε 5", "budget ε 10", "undertone job watch toy-abc"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let (text, _) = ends(&fake.undertone(&["job", "submit", HEART, "--json"]), 0);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["job"], &json["privacy"]["budget_epsilon"]), (&"toy-abc".into(), &10.0.into()));
    assert_eq!(fake.asked(), ["submit", "submit"]);

    let bad = fake.path("bad.toml");
    let heart = std::fs::read_to_string(HEART).unwrap();
    std::fs::write(&bad, heart.replace("target_epsilon", "target_epsilom")).unwrap();
    // No profile is needed to be told that a file makes no sense.
    let (_, said) = ends(&undertone(Path::new("/nonexistent"), &["job", "submit", bad.to_str().unwrap()]), 2);
    assert!(said.contains("bad.toml line") && said.contains("did you mean \"target_epsilon\"?"), "{said}");

    let fake = Fake::start(Script { refusal: Some("too many open jobs"), ..script() });
    let (_, said) = ends(&fake.undertone(&["job", "submit", HEART]), 2);
    assert_eq!(said, "undertone: too many open jobs\n");
}

const INITIAL: &str = r#"
[initial]
weights = "pretrained.safetensors"
rename = { "encoder." = "" }
ignore = ["decoder.*"]
seeded = ["2.*"]
"#;

/// Somebody else's weights are mapped by name here, sent once, and go on where they broke off.
#[test]
fn a_job_may_begin_with_a_file_of_weights() {
    let fake = Fake::start(script());
    let heart = std::fs::read_to_string(HEART).unwrap();
    let heart = heart.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [3000]\nseed = 5");
    let (before, after) = heart.split_once("[training]").unwrap();
    let job = fake.path("job.toml");
    std::fs::write(&job, format!("{before}{INITIAL}[training]{after}")).unwrap();
    let submit = |fake: &Fake| fake.undertone(&["job", "submit", job.to_str().unwrap(), "--json"]);
    let (_, said) = ends(&submit(&fake), 2);
    assert!(said.contains("pretrained.safetensors: cannot be read"), "{said}");

    let spec = |text: &str| JobSpec::from_toml(text, "job.toml").unwrap().resolve().unwrap();
    let (layout, drawn) = (spec(&heart).layout().clone(), spec(&heart).initial_values());
    let named = |names: &[&str], shapes: &[&[usize]]| {
        let tensor =
            |(name, shape): (&&str, &&[usize])| TensorSpec { name: (*name).into(), shape: shape.to_vec() };
        ModelLayout::new(names.iter().zip(shapes).map(tensor).collect()).unwrap()
    };
    let width = layout.tensors()[0].shape[1];
    let shapes: [&[usize]; 3] = [&[7], &[3000], &[3000, width]];
    let theirs = named(&["decoder.x", "encoder.0.bias", "encoder.0.weight"], &shapes);
    let values: Vec<f32> = (0..theirs.len()).map(|i| i as f32 / 8.0).collect();
    let write = |theirs: &ModelLayout| {
        std::fs::write(
            fake.path("pretrained.safetensors"),
            theirs.to_safetensors(&values, Default::default()),
        )
        .unwrap();
    };
    write(&named(&["decoder.x", "encoder.0.bias", "encoder.0.wait"], &shapes));
    let (_, said) = ends(&submit(&fake), 2);
    assert!(said.contains("1 of the model's 4 tensors are not in it: \"0.weight\" (\"0.wait\"?)"), "{said}");

    write(&theirs);
    let wanted: Vec<f32> = [&values[7 + 3000..], &values[7..7 + 3000], &drawn[3000 * (width + 1)..]].concat();
    let wanted = layout.to_safetensors(&wanted, Default::default());
    ends(&submit(&fake), 0);
    assert!(fake.file() == wanted);
    ends(&submit(&fake), 0);
    assert_eq!(fake.asked(), ["resume", "upload", "submit", "resume", "submit"]);
    let fake = Fake::start(Script { file: wanted[..300_001].to_vec(), ..script() });
    ends(&submit(&fake), 0);
    assert!(fake.file() == wanted);
}

/// A model from PyTorch is looked into here, sent once, and its tensors become the job's.
#[test]
fn a_job_may_bring_its_model_as_a_torchscript_file() {
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/torchscript").join(name);
    let job = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bring-your-own/own-model.toml");
    let job = std::fs::read_to_string(job).unwrap();
    let fake = Fake::start(script());
    let submit = |module: &str, job: &str| {
        std::fs::write(fake.path("job.toml"), job).unwrap();
        std::fs::copy(fixture(module), fake.path("model.pt")).unwrap();
        fake.undertone(&["job", "submit", fake.path("job.toml").to_str().unwrap()])
    };
    let (_, said) = ends(&submit("mlp.pt", &job), 2);
    assert!(said.contains("model.safetensors: cannot be read"), "{said}");
    std::fs::copy(fixture("mlp.safetensors"), fake.path("model.safetensors")).unwrap();
    let (text, _) = ends(&submit("mlp.pt", &job), 0);
    assert!(text.contains("TorchScript module") && text.contains("33 parameters"), "{text}");
    assert_eq!(fake.asked(), ["resume", "upload", "resume", "upload", "submit"]);

    for (module, says) in [
        ("traced.pt", "the module was traced"),
        ("traced_alone.pt", "export it with export.py"),
        ("batch_norm.pt", "take nn.GroupNorm"),
        ("remembering.pt", "assigns to self.last"),
        ("mlp.safetensors", "it is no TorchScript file, or a part of one"),
    ] {
        let (_, said) = ends(&submit(module, &job), 2);
        assert!(
            said.contains("[model]") && said.contains("model.pt: ") && said.contains(says),
            "{module}: {said}"
        );
    }
    let whole = std::fs::read(fixture("mlp.pt")).unwrap();
    std::fs::write(fake.path("model.pt"), &whole[..whole.len() / 2]).unwrap();
    let (_, said) = ends(&fake.undertone(&["job", "submit", fake.path("job.toml").to_str().unwrap()]), 2);
    assert!(said.contains("a part of one"), "{said}");
    let seeded = job.replace("weights = ", "seeded = [\"2.*\"]\nweights = ");
    std::fs::copy(fixture("number.safetensors"), fake.path("model.safetensors")).unwrap();
    let (_, said) = ends(&submit("mlp.pt", &seeded), 2);
    assert!(said.contains("tensors are not in it"), "{said}");
    let (_, said) = ends(&submit("mlp.pt", &seeded.replace("2.*", "*\", \"x")), 2);
    assert!(said.contains("it holds 2 tensors") || said.contains("no seed"), "{said}");
    // The values of another model.
    let (_, said) = ends(
        &submit("mlp.pt", &job.replace("[initial]", "[initial]\nignore = [\"*\"]\nseeded = [\"*\"]")),
        2,
    );
    assert!(said.contains("the model has no seed to draw values from"), "{said}");
    assert_eq!(fake.asked().len(), 5, "nothing more was asked");
}

#[test]
fn cancelling_needs_a_reason() {
    let fake = Fake::start(script());
    ends(&fake.undertone(&["job", "cancel", "heart-x"]), 2);
    ends(&fake.undertone(&["job", "cancel", "heart-x", "--reason", " "]), 2);
    ends(&fake.undertone(&["job", "cancel", "heart-x", "--reason", "wrong data"]), 0);
    assert_eq!(fake.asked(), ["list", "cancel heart-xyz: wrong data"]);
}

#[test]
fn who_cannot_be_reached_is_told_apart() {
    let (_, said) = ends(&undertone(Path::new("/nonexistent"), &["job", "list"]), 2);
    assert!(said.contains("undertone-server init"), "{said}");

    let fake = Fake::start(script());
    // Another deployment's operator: trusts another CA.
    let other = tempfile::tempdir().unwrap();
    let address = std::fs::read_to_string(fake.profile().join("operator.toml")).unwrap();
    write_profile(other.path(), "https://localhost:1");
    let profile = other.path().join("operator");
    std::fs::write(profile.join("operator.toml"), &address).unwrap();
    let (_, said) = ends(&undertone(&profile, &["job", "list"]), 1);
    assert!(said.contains("is not the coordinator of this profile"), "{said}");

    // The right CA, but a certificate that it did not issue.
    std::fs::copy(fake.profile().join("ca.crt"), profile.join("ca.crt")).unwrap();
    let (_, said) = ends(&undertone(&profile, &["job", "list"]), 1);
    assert!(said.contains("does not accept the certificate of this profile"), "{said}");

    // A name that the server's certificate does not carry.
    std::fs::write(fake.profile().join("operator.toml"), address.replace("localhost", "127.0.0.1")).unwrap();
    let (_, said) = ends(&fake.undertone(&["job", "list"]), 1);
    assert!(said.contains("--host"), "{said}");

    std::fs::write(fake.profile().join("operator.toml"), address).unwrap();
    let folder = fake.stop();
    let (_, said) = ends(&undertone(&folder.path().join("operator"), &["job", "list"]), 1);
    assert!(said.contains("nothing listens at https://localhost:"), "{said}");
}

/// Planning needs no deployment; the JSON is one line, and nonsense is one sentence and exit code 2.
#[test]
fn privacy_is_planned_without_a_deployment() {
    let privacy = |arguments: &str| {
        Command::new(env!("CARGO_BIN_EXE_undertone"))
            .arg("privacy")
            .args(arguments.split_whitespace())
            .env("UNDERTONE_OPERATOR", "/nonexistent")
            .output()
            .unwrap()
    };
    let json = |arguments: &str| -> serde_json::Value {
        let output = privacy(arguments);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    // Google's dp-accounting 0.6.0 says 1.82824 and 0.95910.
    let found = json("epsilon --noise-multiplier 1.0 --sampling-rate 0.01 --rounds 1000 --delta 1e-5 --json");
    let (upper, lower) = (found["epsilon_upper"].as_f64().unwrap(), found["epsilon_lower"].as_f64().unwrap());
    assert!(lower <= 1.828_244 && (upper / 1.828_244 - 1.0).abs() < 1e-3 && lower < upper, "{found}");
    assert_eq!((&found["accountant"], found["delta"].as_f64()), (&"pld".into(), Some(1e-5)));
    let found = json("calibrate --epsilon 2 --sampling-rate 0.01 --rounds 1000 --delta 1e-5 --json");
    assert!((found["noise_multiplier"].as_f64().unwrap() / 0.959_103 - 1.0).abs() < 1e-3, "{found}");
    assert!(found["epsilon_upper"].as_f64().unwrap() <= 2.0, "{found}");
    for mechanism in ["discrete-gaussian --sensitivity 4", "laplace", "blt --participations 3 --separation 2"]
    {
        let found = json(&format!(
            "epsilon --noise-multiplier 3 --rounds 8 --delta 1e-6 --json --mechanism {mechanism}"
        ));
        assert!(found["epsilon_upper"].as_f64().unwrap() > 0.5, "{mechanism}: {found}");
    }
    let job = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hospitals/job.toml");
    let plan = json(&format!("plan {job} --json"));
    assert_eq!((plan["rounds"].as_u64(), plan["after"].as_array().unwrap().len()), (Some(20), 20));
    let epsilon = |n: usize| plan["after"][n]["epsilon"].as_f64().unwrap();
    assert!(
        (1..20).all(|n| epsilon(n) > epsilon(n - 1)) && epsilon(19) <= 5.0 && epsilon(19) > 4.99,
        "{plan}"
    );
    assert!(
        plan["attempts_in_budget"].as_u64().unwrap() > 20
            && plan["alternatives"].as_array().unwrap().len() > 6
    );
    for (nonsense, words) in [
        ("epsilon --noise-multiplier 0 --delta 1e-5", "noise_multiplier from 0.3"),
        ("epsilon --noise-multiplier nan --delta 1e-5", "NaN"),
        ("epsilon --noise-multiplier -1 --delta 1e-5", "-1"),
        ("epsilon --noise-multiplier 1 --sampling-rate 1.5 --delta 1e-5", "sampling_rate"),
        ("epsilon --noise-multiplier 1 --delta 1", "delta must be"),
        ("epsilon --noise-multiplier 1 --delta 1e-5 --rounds 1000000000 --sampling-rate 0.1", "at most"),
        (
            "epsilon --noise-multiplier 1 --delta 1e-5 --mechanism laplace --sampling-rate 0.1",
            "random sample",
        ),
        ("calibrate --epsilon 0 --delta 1e-5", "epsilon"),
        ("calibrate --epsilon 1e-5 --delta 1e-9 --rounds 100000000", "cannot be kept"),
        ("plan /nonexistent/job.toml", "cannot read"),
    ] {
        let output = privacy(nonsense);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{nonsense}: {said}");
        assert!(said.contains(words) && said.trim().lines().count() == 1, "{nonsense}: {said}");
    }
}
