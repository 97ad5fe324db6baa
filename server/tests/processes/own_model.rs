//! Models that jobs bring as TorchScript files: handed in with the operator's tool, trained in `undertone-trainer`.

use std::path::{Path, PathBuf};
use undertone_core::digest::Digest;
use undertone_harness::{Process, Processes, python_with};
use undertone_round::event::{JobEvent, Outcome};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/torchscript").join(name)
}

/// The example's job with another file.
fn job(module: &str, values: &str) -> String {
    let job = std::fs::read_to_string(repository().join("examples/bring-your-own/own-model.toml")).unwrap();
    let named = |job: String, from: &str, to: &str| {
        assert!(job.contains(&format!("\"{from}\"")), "{from}");
        job.replace(&format!("\"{from}\""), &format!("\"{}\"", fixture(to).display()))
    };
    named(named(job, "model.pt", module), "model.safetensors", values)
}

/// A client on the example's data; `allowed` goes into its limits.
fn client(d: &Processes, name: &str, role: &str, data: &str, allowed: &str) -> Process {
    let csv = repository().join("examples/bring-your-own-training").join(data);
    let output = d.enrol(name, role, &std::fs::read_to_string(csv).unwrap(), 60);
    assert!(output.status.success(), "{output:?}");
    let config = d.client_folder(name).join("client.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("allow_no_privacy = false", "allow_no_privacy = true");
    std::fs::write(&config, text.replace("[limits]\n", &format!("[limits]\n{allowed}\n"))).unwrap();
    d.run_client(name)
}

/// Hands a job in as an operator does; gives its id.
fn submit(d: &Processes, job: &str) -> String {
    let file = d.path().join("job.toml");
    std::fs::write(&file, job).unwrap();
    let output = d.undertone(&["job", "submit", file.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    json["job"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_from_pytorch_learns_without_python() {
    let d = Processes::start();
    let digest = Digest::of(&std::fs::read(fixture("mlp.pt")).unwrap());
    let this = format!("allow_torchscript = [\"{digest}\"]");
    let clients = [
        client(&d, "north", "trainer", "north.csv", &this),
        client(&d, "south", "trainer", "south.csv", "allow_torchscript = true"),
        client(&d, "refusing", "trainer", "south.csv", ""),
        client(&d, "judge", "evaluator", "north.csv", &this),
    ];
    let mut operator = d.operator().await;
    let job = job("mlp.pt", "mlp.safetensors").replace("size = 2", "size = 3");
    let id = submit(&d, &job);
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}\n{}", events.text(), clients[0].log());
    assert_eq!(events.released(), 10);
    // Each time one process has looked at the data, and another one has tried the module before it opened any.
    assert!(clients[0].log().matches("the trainer is ready").count() >= 20, "{}", clients[0].log());
    assert!(events.text().contains(&format!("allow_torchscript = [\\\"{digest}\\\"]")), "{}", events.text());
    let last = events.0.iter().rev().find_map(|e| match e {
        JobEvent::Evaluated { metrics, .. } => Some(*metrics),
        _ => None,
    });
    let last = last.expect("a measurement");
    assert!(last.accuracy.unwrap() > 0.8, "{last:?}");
    // PyTorch's names, for load_state_dict.
    let file = operator.release(&id, 10).await;
    let start = String::from_utf8_lossy(&file[..600.min(file.len())]).into_owned();
    for name in ["0.weight", "0.bias", "2.weight", "2.bias"] {
        assert!(start.contains(&format!("\"{name}\"")), "{start}");
    }
}

/// Whatever a file turns out to be when it runs, its author reads why, and the coordinator goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_does_not_train_is_refused_in_the_round_with_the_reason() {
    let d = Processes::start();
    let client = client(&d, "north", "trainer", "north.csv", "allow_torchscript = true");
    let mut operator = d.operator().await;
    for (module, says) in [
        ("counting.pt", "training_step changes the buffer \\\"seen\\\""),
        ("pushing.pt", "training_step changes a parameter by itself"),
        ("apart.pt", "the loss does not depend on any parameter"),
        ("unused.pt", "\\\"spare.weight\\\""),
        ("mean.pt", "one loss for each example"),
        ("double.pt", "is Double"),
        ("nan.pt", "training diverged at step 1 of 20: the loss is NaN"),
        ("picture.pt", "training_step fails on 3 made-up examples of shape [3, 2]"),
        ("narrow.pt", "Target 1 is out of bounds"),
        // Not on made-up examples: the data owner alone reads more.
        ("beyond.pt", "the client's trainer cannot do what this job asks"),
    ] {
        // A double's and a picture's values do not matter here: they are of the right sizes.
        let job = job(module, "fc.safetensors")
            .replace("rounds = 10", "rounds = 1")
            .replace("size = 2", "size = 1");
        let job = job.replace("min_clients = 2", "min_clients = 1\n[evaluation]\nevery = 0");
        let job = job.replace("[deadlines]\n", "[deadlines]\nmax_attempts = 1\n");
        let layout = undertone_core::torchscript::Archive::read(std::io::Cursor::new(
            std::fs::read(fixture(module)).unwrap(),
        ));
        let layout = undertone_core::layout::ModelLayout::new(layout.unwrap().tensors().to_vec()).unwrap();
        let values = d.path().join("values.safetensors");
        std::fs::write(&values, layout.to_safetensors(&vec![0.5; layout.len()], Default::default())).unwrap();
        let job = job.replace(fixture("fc.safetensors").to_str().unwrap(), values.to_str().unwrap());
        let id = submit(&d, &job);
        let events = operator.watch_to_end(&id).await;
        assert!(matches!(events.outcome(), Outcome::Failed { .. }), "{module}: {}", events.text());
        assert!(events.text().contains(says), "{module}: {}", events.text());
        assert!(!events.text().contains("fails on this data"), "{module}: {}", events.text());
    }
    let log = client.log();
    assert!(log.contains("fails on this data: RuntimeError: index out of range"), "{log}");
}

/// What cannot be trained is refused by export.py, in its own words. Only where there is a PyTorch.
#[test]
fn export_refuses_what_cannot_be_trained() {
    let Some(python) = python_with("torch") else { return };
    let output = std::process::Command::new(python).arg(fixture("refusals.py")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The example's commands, with PyTorch at both ends. Only where there is one.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_goes_from_pytorch_to_pytorch() {
    let Some(python) = python_with("torch") else { return };
    let d = Processes::start();
    let folder = d.path().join("bring-your-own");
    std::fs::create_dir(&folder).unwrap();
    for file in ["export.py", "model.py", "load.py", "own-model.toml"] {
        std::fs::copy(repository().join("examples/bring-your-own").join(file), folder.join(file)).unwrap();
    }
    let run = |arguments: &[&str]| {
        let output =
            std::process::Command::new(&python).args(arguments).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = run(&["model.py"]);
    assert!(said.contains("model.pt: 114 parameters"), "{said}");
    let clients = ["north", "south"]
        .map(|name| client(&d, name, "trainer", &format!("{name}.csv"), "allow_torchscript = true"));
    let output = d.undertone(&["job", "submit", folder.join("own-model.toml").to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = json["job"].as_str().unwrap();
    let events = d.operator().await.watch_to_end(id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}\n{}", events.text(), clients[0].log());
    let trained = folder.join("trained.safetensors");
    let output = d.undertone(&["model", "download", "bring-your-own", "--out", trained.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let said = run(&["load.py", "trained.safetensors"]);
    let numbers: Vec<f64> =
        said.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(numbers[0] > 0.6 && numbers[1] < 0.4, "{said}");
}
