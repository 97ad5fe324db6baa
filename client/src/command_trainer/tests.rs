use super::*;
use std::time::Duration;
use tempfile::TempDir;
use undertone_core::model::ModelSpec;
use undertone_core::plan::Loss;
use undertone_core::trainer::RecordPrivacy;

const CONTRACT: &str = r#"{"label": {"column": "y", "classes": [{"name": "a", "values": ["0"]},
    {"name": "b", "values": ["1"]}]}, "columns": [{"name": "x", "kind": "number", "range": [0.0, 1.0]}]}"#;
/// Two tensors of three values.
const MODEL: &str =
    r#"{"kind": "external", "tensors": [{"name": "w", "shape": [1, 2]}, {"name": "b", "shape": [1]}]}"#;
const WEIGHTS: [f32; 3] = [1.0, 2.0, 3.0];
/// Gives the values back as they came.
const GOOD: &str = "cp weights.safetensors update.safetensors; echo '{\"steps\": 3}' > result.json";

fn measured(model: &ModelSpec, data: &DataContract) -> EvaluationTask {
    EvaluationTask { model: model.clone(), data: data.clone(), loss: None, module: None }
}

fn contract() -> DataContract {
    serde_json::from_str(CONTRACT).unwrap()
}

fn task() -> TrainTask {
    serde_json::from_str(&format!(
        r#"{{"model": {MODEL}, "data": {CONTRACT}, "plan": {{"learning_rate": 0.5, "local_steps": 3}},
            "record_privacy": null, "sampling_seed": 7, "first_loss": false,
            "round": {{"round": 2, "rounds": 9}}, "checkpoint": null}}"#
    ))
    .unwrap()
}

/// A client's folder with a shell script as its training program.
struct Owner {
    dir: TempDir,
    command: CommandSettings,
    settings: TrainerSettings,
}

impl Owner {
    fn of(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("train.sh"), script).unwrap();
        std::fs::write(dir.path().join("data.csv"), "x,y\n0.5,1\n0.1,0\n").unwrap();
        let command = CommandSettings::new(vec!["sh".into(), "train.sh".into()]);
        Self { dir, command, settings: TrainerSettings::default() }
    }

    fn trainer(&self) -> CommandTrainer {
        let folder = ClientFolder::new(self.dir.path());
        let data = self.dir.path().join("data.csv");
        CommandTrainer::new(self.settings.clone(), self.command.clone(), folder, data)
    }

    fn train(&self) -> Result<LocalUpdate, TrainerError> {
        let result = self.trainer().train(&task(), &WEIGHTS);
        assert!(!self.dir.path().join("work").exists(), "the folder is gone, whatever happened");
        result
    }
}

/// What kind of failure a script is, and what its owner reads.
fn fault_of(owner: &Owner) -> (ProgramFault, String) {
    match owner.train() {
        Err(TrainerError::Program { fault, detail }) => (fault, detail),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_finds_its_task_and_gives_new_values() {
    // Adds nothing to the first tensor, and makes the last value 4 (0x40800000).
    let script = r#"
        set -e
        grep -q '"do": "train"' task.json
        grep -q '"learning_rate": 0.5' task.json
        grep -q '"sampling_seed": 7' task.json
        grep -q '"round": 2' task.json
        grep -q '"rounds": 9' task.json
        if grep -q '"loss"' task.json; then exit 8; fi
        grep -q '"name": "w"' task.json
        data=$(sed -n 's/^ *"path": "\(.*\)",*$/\1/p' task.json)
        grep -q '0.5,1' "$data"
        [ "$UNDERTONE_TASK" = "$(pwd)/task.json" ]
        [ "$(stat -c %a .)" = 700 ]
        # Its own folder, a closed input, and none of what the client has in its environment.
        if read -r line; then exit 9; fi
        [ -z "${CARGO_MANIFEST_DIR-}" ]
        [ -n "$PATH" ]
        touch "$TMPDIR/temporary"
        head -c -4 weights.safetensors > update.safetensors
        printf '\000\000\200\100' >> update.safetensors
        echo '{"steps": 3, "anything": "else"}' > result.json"#;
    let update = Owner::of(script).train().unwrap();
    assert_eq!(update, LocalUpdate { delta: vec![0.0, 0.0, 1.0], steps: 3, first_loss: None });
}

#[test]
fn only_the_part_that_is_trained_is_given_back() {
    let mut task = task();
    task.plan.tensors = Some(vec!["b".into()]);
    let header = r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let script = format!(
        "printf '\\{:03o}\\000\\000\\000\\000\\000\\000\\000' > update.safetensors\nprintf '%s' '{header}' >> update.safetensors\n\
         printf '\\000\\000\\200\\100' >> update.safetensors\necho '{{\"steps\": 1}}' > result.json",
        header.len()
    );
    assert_eq!(Owner::of(&script).trainer().train(&task, &WEIGHTS).unwrap().delta, [1.0]);
    let e = Owner::of(GOOD).trainer().train(&task, &WEIGHTS).unwrap_err().to_string();
    assert!(e.contains("\"w\"") && e.contains("\"trained\" of task.json"), "{e}");
}

#[test]
fn each_way_to_fail_is_told_apart() {
    let with_result = |update: &str| format!("echo '{{\"steps\": 1}}' > result.json\n{update}");
    let nan = "head -c -4 weights.safetensors > update.safetensors; printf '\\000\\000\\300\\177' >> update.safetensors";
    for (script, fault, says) in [
        ("exit 1".to_owned(), ProgramFault::Exit, "status 1"),
        ("kill -9 $$".into(), ProgramFault::Killed, "signal 9"),
        ("true".into(), ProgramFault::NoResult, "result.json"),
        (with_result("true"), ProgramFault::NoResult, "update.safetensors"),
        (GOOD.replace("{\"steps\": 3}", "done"), ProgramFault::BadResult, "result.json is not"),
        (GOOD.replace("3}", "-1}"), ProgramFault::BadResult, "result.json is not"),
        (GOOD.replace("{\"steps\": 3}", "{\"steps\": NaN}"), ProgramFault::BadResult, "result.json is not"),
        (
            with_result("head -c 5000 /dev/urandom > update.safetensors"),
            ProgramFault::BadResult,
            "not a safetensors",
        ),
        (
            with_result("head -c -1 weights.safetensors > update.safetensors"),
            ProgramFault::BadResult,
            "not a safetensors",
        ),
        (
            with_result("sed 's/\\[1,2\\]/[2,1]/' weights.safetensors > update.safetensors"),
            ProgramFault::BadResult,
            "\"w\"",
        ),
        (with_result("head -c 3000000 /dev/zero > update.safetensors"), ProgramFault::BadResult, "at most"),
        (with_result("mkfifo update.safetensors"), ProgramFault::BadResult, "no plain file"),
        (with_result("ln -s /dev/zero update.safetensors"), ProgramFault::BadResult, "no plain file"),
    ] {
        let (found, detail) = fault_of(&Owner::of(&script));
        assert_eq!(found, fault, "{script}: {detail}");
        assert!(detail.contains(says), "{script}: {detail}");
    }
    let diverged = Owner::of(&with_result(nan)).train().unwrap_err();
    assert!(matches!(&diverged, TrainerError::Numerical(text) if text.contains("value 2")), "{diverged}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let mut owner = Owner::of("");
    owner.command.command = vec!["no-such-program-anywhere".into()];
    let (fault, detail) = fault_of(&owner);
    assert_eq!(fault, ProgramFault::NotStarted);
    assert!(detail.contains("no-such-program-anywhere"), "{detail}");
}

#[test]
fn one_that_hangs_is_ended_with_all_that_it_started() {
    // A child that leaves the process group, as daemons do.
    let mut owner = Owner::of("setsid sleep 86399.25 & sleep 86399.25");
    owner.command.max_time = Duration::from_millis(300);
    let mut trainer = owner.trainer();
    let e = trainer.train(&task(), &WEIGHTS).unwrap_err();
    assert!(matches!(&e, TrainerError::Program { fault: ProgramFault::Time, .. }), "{e}");
    let alive = || {
        std::fs::read_dir("/proc").into_iter().flatten().flatten().any(|process| {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            line.starts_with(b"sleep\x0086399.25")
        })
    };
    if trainer.no_namespaces.is_none() {
        // The kernel takes them away in its own time.
        while alive() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn what_fills_disk_or_memory_is_ended() {
    let mut owner = Owner::of("i=0; while :; do i=$((i+1)); head -c 200000 /dev/zero > $i; done");
    owner.command.max_disk_bytes = 2 << 20;
    let (fault, detail) = fault_of(&owner);
    assert_eq!(fault, ProgramFault::Disk, "{detail}");
    assert!(detail.contains("max_disk_mib"), "{detail}");

    let mut owner = Owner::of("head -c 20000000 /dev/zero > big");
    owner.command.max_disk_bytes = 1 << 20;
    let (fault, _) = fault_of(&owner);
    assert!(matches!(fault, ProgramFault::Exit | ProgramFault::Killed | ProgramFault::Disk), "{fault:?}");

    // Without the limit this would end well.
    let mut owner = Owner::of(&format!("set -e\npython3 -c 'x = bytes(300_000_000)'\n{GOOD}"));
    owner.settings.max_memory_bytes = Some(64 << 20);
    let (fault, detail) = fault_of(&owner);
    assert!(matches!(fault, ProgramFault::Exit | ProgramFault::Memory), "{detail}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_network_is_cut_where_the_system_lets_it() {
    // In a network of its own there is nothing but the loopback device.
    let script = format!("[ \"$(grep -c : /proc/net/dev)\" = 1 ] || exit 7\n{GOOD}");
    let mut owner = Owner::of(&script);
    let mut trainer = owner.trainer();
    let trained = trainer.train(&task(), &WEIGHTS);
    match &trainer.no_namespaces {
        None => assert!(trained.is_ok(), "{trained:?}"),
        Some(why) => eprintln!("skipped: {why}"),
    }
    owner.command.network = Network::CutOrRefuse;
    let strict = owner.train();
    match &trainer.no_namespaces {
        None => assert!(strict.is_ok(), "{strict:?}"),
        Some(_) => assert!(strict.unwrap_err().to_string().contains("cannot be cut")),
    }
}

#[test]
fn without_namespaces_it_runs_all_the_same() {
    let owner = Owner::of(GOOD);
    let mut trainer = owner.trainer();
    trainer.no_namespaces = Some("a test says so".into());
    assert_eq!(trainer.train(&task(), &WEIGHTS).unwrap().delta, [0.0; 3]);
    let failing = Owner::of("exit 3");
    let mut trainer = failing.trainer();
    trainer.no_namespaces = Some("a test says so".into());
    let e = trainer.train(&task(), &WEIGHTS).unwrap_err();
    assert!(e.to_string().contains("status 3"), "{e}");
    let mut missing = Owner::of("");
    missing.command.command = vec!["./no-such-program".into()];
    let mut trainer = missing.trainer();
    trainer.no_namespaces = Some("a test says so".into());
    let e = trainer.train(&task(), &WEIGHTS).unwrap_err();
    assert!(matches!(&e, TrainerError::Program { fault: ProgramFault::NotStarted, .. }), "{e}");
}

#[test]
fn an_interrupt_ends_it_and_the_next_call_starts_anew() {
    let owner = Owner::of(&format!("if mkdir '{{}}' 2>/dev/null; then exec sleep 86399; fi\n{GOOD}"));
    let mark = owner.dir.path().join("mark");
    let script = std::fs::read_to_string(owner.dir.path().join("train.sh")).unwrap();
    std::fs::write(owner.dir.path().join("train.sh"), script.replace("{}", mark.to_str().unwrap())).unwrap();
    let mut trainer = owner.trainer();
    let interrupt = trainer.interrupt();
    let waiter = std::thread::spawn(move || {
        while !mark.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        interrupt.give_up();
    });
    let e = trainer.train(&task(), &WEIGHTS).unwrap_err();
    assert!(matches!(&e, TrainerError::Broken(text) if text.contains("nobody waits")), "{e}");
    waiter.join().unwrap();
    trainer.interrupt().begin();
    assert!(trainer.train(&task(), &WEIGHTS).is_ok());
}

#[test]
fn what_is_given_up_before_the_program_starts_does_not_run() {
    let owner = Owner::of(&format!("touch \"$(dirname \"$0\")/ran\"\n{GOOD}"));
    let mut trainer = owner.trainer();
    trainer.interrupt().give_up();
    let e = trainer.train(&task(), &WEIGHTS).unwrap_err();
    assert!(matches!(&e, TrainerError::Broken(text) if text.contains("nobody waits")), "{e}");
    assert!(!owner.dir.path().join("ran").exists());
    trainer.interrupt().begin();
    assert!(trainer.train(&task(), &WEIGHTS).is_ok());
    assert!(owner.dir.path().join("ran").exists());
}

#[test]
fn what_cannot_be_promised_is_refused_before_anything_runs() {
    let owner = Owner::of("touch \"$(dirname \"$0\")/ran\"");
    let mut private = task();
    private.record_privacy = Some(RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier: 1.0,
        sampling_rate: 0.5,
        expected_batch: 4.0,
        mechanism: Default::default(),
    });
    let mut trainer = owner.trainer();
    let model: ModelSpec = serde_json::from_str(MODEL).unwrap();
    let refusals = [
        trainer.train(&private, &WEIGHTS).unwrap_err(),
        trainer.evaluate(&measured(&model, &contract()), &WEIGHTS).unwrap_err(),
        trainer.evaluate_bounded(&measured(&model, &contract()), 1.0, &WEIGHTS).unwrap_err(),
    ];
    for (e, says) in refusals.iter().zip(["record-level", "\"evaluate\" to [trainer] does", "metrics"]) {
        assert!(matches!(e, TrainerError::Unsupported(text) if text.contains(says)), "{e}");
    }
    // Looking at a CSV file needs no program.
    assert_eq!(trainer.inspect(&contract()).unwrap().rows, 2);
    assert!(!owner.dir.path().join("ran").exists());
}

#[test]
fn a_program_may_measure_and_look_at_the_data() {
    let script = r#"
        case "$(sed -n 's/^ *"do": "\(.*\)",$/\1/p' task.json)" in
            evaluate) echo '{"loss": 0.25, "accuracy": 0.75, "rows": 8}' > result.json ;;
            inspect) echo '{"rows": 8, "class_rows": [3, 5], "problems": ["a picture is damaged"]}' > result.json ;;
            *) exit 1 ;;
        esac"#;
    let mut owner = Owner::of(script);
    owner.command.does = vec![Mode::Evaluate, Mode::Inspect];
    let mut trainer = owner.trainer();
    let model: ModelSpec = serde_json::from_str(MODEL).unwrap();
    let metrics = trainer.evaluate(&measured(&model, &contract()), &WEIGHTS).unwrap();
    assert_eq!(metrics, Metrics::of_classes(0.25, 0.75, 8));
    // One that states the loss that it is asked for, if it is.
    let states =
        format!("if grep -q '\"kind\": \"bce\"' task.json; then loss=0.5; else loss=0.25; fi\n{script}");
    let states = states.replace("'{\"loss\": 0.25,", "'{\"loss\": '$loss',");
    std::fs::write(owner.dir.path().join("train.sh"), states).unwrap();
    let asked = EvaluationTask { loss: Some(Loss::Bce {}), ..measured(&model, &contract()) };
    assert_eq!(trainer.evaluate(&asked, &WEIGHTS).unwrap().loss, 0.5);
    assert_eq!(trainer.evaluate(&measured(&model, &contract()), &WEIGHTS).unwrap().loss, 0.25);
    let report = trainer.inspect(&contract()).unwrap();
    assert_eq!((report.rows, report.is_fit()), (8, false));
    std::fs::write(owner.dir.path().join("train.sh"), script.replace("0.75", "75")).unwrap();
    let e = trainer.evaluate(&measured(&model, &contract()), &WEIGHTS).unwrap_err();
    assert!(e.to_string().contains("\"accuracy\" 75"), "{e}");
}

#[test]
fn of_numbers_a_program_gives_the_mean_error() {
    let numbers: DataContract = serde_json::from_str(
        r#"{"label": {"column": "y", "range": [0.0, 1.0]}, "columns": [{"name": "x", "kind": "number", "range": [0.0, 1.0]}]}"#,
    )
    .unwrap();
    let model: ModelSpec = serde_json::from_str(MODEL).unwrap();
    let measured = |result: &str| {
        let mut owner = Owner::of(&format!("echo '{result}' > result.json"));
        owner.command.does = vec![Mode::Evaluate];
        owner.trainer().evaluate(&measured(&model, &numbers), &WEIGHTS)
    };
    let metrics =
        measured(r#"{"loss": 0.25, "mean_absolute_error": 3.5, "accuracy": 7, "rows": 8}"#).unwrap();
    assert_eq!((metrics.accuracy, metrics.mean_absolute_error), (None, Some(3.5)));
    let e = measured(r#"{"loss": 0.25, "accuracy": 0.5, "rows": 8}"#).unwrap_err().to_string();
    assert!(e.contains("\"mean_absolute_error\" nothing"), "{e}");
}

#[test]
fn a_program_finds_pictures_and_their_labels() {
    let owner = Owner::of(
        r#"
        set -e
        dir=$(dirname "$0")
        grep -q "\"path\": \"$dir/pictures.gz\"" task.json
        grep -q "\"labels\": \"$dir/labels.gz\"" task.json
        cp weights.safetensors update.safetensors
        echo '{"steps": 3}' > result.json"#,
    );
    let files = DataFiles::pictures("pictures.gz", "labels.gz").map(|path| owner.dir.path().join(path));
    let folder = ClientFolder::new(owner.dir.path());
    let mut trainer = CommandTrainer::new(owner.settings.clone(), owner.command.clone(), folder, files);
    assert_eq!(trainer.train(&task(), &WEIGHTS).unwrap().steps, 3);
}

#[test]
fn the_loss_before_training_is_given_where_it_is_asked_for() {
    let mut task = task();
    task.first_loss = true;
    let e = Owner::of(GOOD).trainer().train(&task, &WEIGHTS).unwrap_err();
    assert!(e.to_string().contains("first_loss"), "{e}");
    let owner = Owner::of(&GOOD.replace("3}", "3, \"first_loss\": 0.5}"));
    assert_eq!(owner.trainer().train(&task, &WEIGHTS).unwrap().first_loss, Some(0.5));
}
