//! Data owners who train with programs of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;
use undertone_client::{CommandSettings, CommandTrainer, Mode};
use undertone_core::id::ClientRole;
use undertone_core::trainer::ProgramFault;
use undertone_harness::{Deployment, FnTrainer, SAMPLE_JOB, python_with};
use undertone_round::event::{JobEvent, Outcome};

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bring-your-own-training").join(file)
}

/// Enrols a client that trains with `command` and runs it.
async fn run(
    d: &mut Deployment,
    name: &str,
    role: ClientRole,
    data: &Path,
    change: impl FnOnce(&mut CommandSettings),
) {
    let mut config = d.enrol(name, role).await;
    config.policy.own_program = true;
    let mut command = CommandSettings::new(vec![]);
    change(&mut command);
    config.trainer.command = Some(command.clone());
    let trainer = CommandTrainer::new(config.trainer.clone(), command, config.folder.clone(), data);
    d.run(config, trainer);
}

fn with(command: &[&str]) -> impl FnOnce(&mut CommandSettings) {
    let command = command.iter().map(ToString::to_string).collect();
    move |settings| settings.command = command
}

fn rows(file: &Path) -> Vec<[f64; 3]> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines()
        .skip(1)
        .map(|line| {
            let mut fields = line.split(',').map(|field| field.parse().unwrap());
            [0; 3].map(|_| fields.next().unwrap())
        })
        .collect()
}

/// What the example's programs compute, written once more.
fn train(mut model: [f64; 3], rows: &[[f64; 3]]) -> [f64; 3] {
    for _ in 0..20 {
        let mut slope = [0.0; 3];
        for [x1, x2, y] in rows {
            let error = 1.0 / (1.0 + (-(model[0] * x1 + model[1] * x2 + model[2])).exp()) - y;
            slope[0] += error * x1;
            slope[1] += error * x2;
            slope[2] += error;
        }
        for (value, slope) in model.iter_mut().zip(slope) {
            *value -= 0.5 * slope / rows.len() as f64;
        }
    }
    model
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_trains_in_python_and_in_a_shell_alike() {
    they_train_alike(&["python3", example("train.py").to_str().unwrap()]).await;
}

/// Where there is a Python that has what it needs.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_trains_in_pytorch_as_well() {
    let Some(python) = python_with("torch, safetensors") else { return };
    they_train_alike(&[&python, example("train_torch.py").to_str().unwrap()]).await;
}

/// A program of the example and the shell's train a model, which the program measures.
async fn they_train_alike(program: &[&str]) {
    let mut d = Deployment::start().await;
    let (north, south) = (example("north.csv"), example("south.csv"));
    let shell = example("train.sh");
    run(&mut d, "north", ClientRole::Trainer, &north, with(program)).await;
    run(&mut d, "south", ClientRole::Trainer, &south, with(&[shell.to_str().unwrap()])).await;
    run(&mut d, "judge", ClientRole::Evaluator, &north, |command| {
        with(program)(command);
        command.does = vec![Mode::Evaluate];
    })
    .await;
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let job = std::fs::read_to_string(example("own-training.toml")).unwrap();
    let id = operator.submit(&job).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(events.released(), 5);

    let mut wanted = [0.0; 3];
    for _ in 0..5 {
        let (a, b) = (train(wanted, &rows(&north)), train(wanted, &rows(&south)));
        wanted = [0, 1, 2].map(|i| (a[i] + b[i]) / 2.0);
    }
    let model = operator.model(&id).await;
    for (found, wanted) in model.iter().zip(wanted) {
        // Sums are on the job's grid.
        assert!((f64::from(*found) - wanted).abs() < 1e-3, "{model:?}, not {wanted:?}");
    }
    let last = events.0.iter().rev().find_map(|e| match e {
        JobEvent::Evaluated { metrics, .. } => Some(*metrics),
        _ => None,
    });
    let accuracy = last.expect("a measurement").accuracy.expect("a share of right classes");
    assert!(accuracy > 0.9, "{accuracy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_misbehave_are_refused_with_the_reason_and_the_round_goes_on() {
    let mut d = Deployment::start().await;
    let data = d.path().join("data.csv");
    std::fs::write(&data, "x,y\n0.5,1\n-0.5,0\n").unwrap();
    let script = |name: &str, text: &str| {
        let path = d.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let secret = "echo 'a row of the data: 0.5,1'; exit 1";
    let update = "echo '{\"steps\": 1}' > result.json; ";
    let nan = "head -c -4 weights.safetensors > update.safetensors; printf '\\000\\000\\300\\177' >> update.safetensors";
    let scripts = [
        ("hangs", "sleep 86399".to_owned(), ProgramFault::Time.told()),
        ("exits", secret.into(), ProgramFault::Exit.told()),
        ("killed", "kill -9 $$".into(), ProgramFault::Killed.told()),
        ("silent", "true".into(), ProgramFault::NoResult.told()),
        ("garbage", format!("{update}echo rubbish > update.safetensors"), ProgramFault::BadResult.told()),
        ("nan", format!("{update}{nan}"), "are not finite"),
        (
            "fills",
            "i=0; while :; do i=$((i+1)); head -c 200000 /dev/zero > $i; done".into(),
            ProgramFault::Disk.told(),
        ),
    ];
    let files: Vec<String> = scripts.iter().map(|(name, text, _)| script(name, text)).collect();
    for ((name, ..), file) in scripts.iter().zip(&files) {
        run(&mut d, name, ClientRole::Trainer, &data, |command| {
            with(&["sh", file])(command);
            command.max_time = Duration::from_secs(if *name == "hangs" { 1 } else { 600 });
            command.max_disk_bytes = 2 << 20;
        })
        .await;
    }
    d.trainer("good", FnTrainer::constant(1.0)).await;
    d.wait_connected(scripts.len() + 1).await;
    let mut operator = d.operator().await;
    let job = SAMPLE_JOB.replace("rounds = 2", "rounds = 1").replace("size = 2", "size = 8");
    // The round waits for all of them, however slow the machine is.
    let job = job.replace("round = \"30s\"", "round = \"5m\"");
    let id = operator.submit(&job).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(operator.model(&id).await, [1.0, 1.0], "the good update counts, and no other");
    for (name, _, told) in &scripts {
        let said = events.0.iter().any(|e| {
            let text = serde_json::to_string(e).unwrap();
            text.contains(&format!("\"{name}\"")) && text.contains(told)
        });
        assert!(said, "{name}: {told}:\n{}", events.text());
    }
    assert!(!events.text().contains("a row of the data"), "a program's output left the client");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_declines_what_its_program_cannot_promise() {
    let mut d = Deployment::start().await;
    let data = example("north.csv");
    run(&mut d, "own", ClientRole::Trainer, &data, with(&["false"])).await;
    d.trainer("built-in", FnTrainer::constant(1.0)).await;
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let record = "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.5\ntarget_epsilon = 4.0\n\
                  delta = 1e-3\nbudget_epsilon = 8.0";
    let private = SAMPLE_JOB.replace("unit = \"none\"", record).replace("rounds = 2", "rounds = 1");
    let id = operator.submit(&private).await.unwrap();
    let declined = |e: &JobEvent| matches!(e, JobEvent::Declined { .. });
    let events = operator.watch_until(&id, declined).await;
    assert!(events.text().contains("takes no record-level contract"), "{}", events.text());
    operator.watch_to_end(&id).await;

    let external =
        std::fs::read_to_string(example("own-training.toml")).unwrap().replace("rounds = 5", "rounds = 1");
    let external = external.replace("min_clients = 2", "min_clients = 1");
    let id = operator.submit(&external).await.unwrap();
    let events = operator.watch_until(&id, declined).await;
    assert!(events.text().contains("a training program of its own"), "{}", events.text());
}
