//! The program as a process: what a client sees of it, good days and bad.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use undertone_core::digest::Digest;
use undertone_core::initial::FileRef;
use undertone_core::layout::TensorSpec;
use undertone_core::model::{Activation, ModelSpec};
use undertone_core::plan::{LocalWork, TrainPlan};
use undertone_core::schema::DataContract;
use undertone_core::torchscript::{Exported, TorchScript};
use undertone_core::trainer::{CheckpointPlace, RecordPrivacy, TrainTask, Trainer as _, TrainerError};
use undertone_core::trainer_protocol::{
    BaselineTask, PROTOCOL_VERSION, PipeTrainer, Request, Response, read_frame, write_frame,
};
use undertone_train::TorchTrainer;

mod gpu;
#[cfg(target_os = "linux")]
mod memory;

const PROGRAM: &str = env!("CARGO_BIN_EXE_undertone-trainer");
const LONG: Duration = Duration::from_secs(60);

#[test]
fn where_it_would_compute_is_said_with_the_reason() {
    let shown = |device: &str| {
        let mut process = Process::spawn(&["--show-device", "--device", device]);
        let mut text = String::new();
        process.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let (status, log) = process.ended();
        (status.success(), text + &log)
    };
    let (fine, auto) = shown("auto");
    assert!(fine && (auto.starts_with("cuda:0") || auto.starts_with("cpu: ")), "{auto}");
    let (fine, text) = shown("cuda:200");
    assert!(!fine && text.contains("cuda:200 is not there"), "{text}");
}

/// A trainer process without `LD_LIBRARY_PATH`; killed if a test fails.
struct Process(Child);

impl Process {
    fn spawn(args: &[&str]) -> Self {
        Self::start(Command::new(PROGRAM).args(args).env_remove("LD_LIBRARY_PATH"))
    }

    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn on(data: &Path) -> Self {
        Self::spawn(&["--data", data.to_str().unwrap()])
    }

    fn connect(&mut self) -> Result<PipeTrainer<ChildStdout, ChildStdin>, TrainerError> {
        PipeTrainer::connect(self.0.stdout.take().unwrap(), self.0.stdin.take().unwrap())
    }

    /// Waits for the end; gives the log too.
    fn ended(&mut self) -> (ExitStatus, String) {
        let status = wait_for(|| self.0.try_wait().unwrap());
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status, log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LONG, "waited in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn contract() -> DataContract {
    toml::from_str(
        r#"
        label = { column = "y", classes = [{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }] }
        columns = [{ name = "a", kind = "number", range = [-1, 1] }, { name = "b", kind = "number", range = [-1, 1] }]
        "#,
    )
    .unwrap()
}

fn data() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut text = String::from("a,b,y\n");
    for i in 0..80 {
        let (a, b) = (f64::from(i * 7 % 41) / 20.5 - 1.0, f64::from(i * 13 % 43) / 21.5 - 1.0);
        text += &format!("{a},{b},{}\n", i32::from(a + b > 0.0));
    }
    fs::write(file.path(), text).unwrap();
    file
}

fn task(steps: u32) -> TrainTask {
    let plan = TrainPlan { batch_size: Some(16), ..TrainPlan::sgd(1.0, LocalWork::Steps(steps)) };
    TrainTask { sampling_seed: Some(1), ..TrainTask::new(ModelSpec::Logistic {}, contract(), plan) }
}

#[test]
fn a_job_over_pipes_is_a_job_in_process() {
    let file = data();
    let mut process = Process::on(file.path());
    let mut trainer = process.connect().unwrap();
    assert_eq!(trainer.info().libtorch, undertone_train::LIBTORCH_VERSION);
    assert!(trainer.info().libtorch.starts_with("2.11.0"), "{:?}", trainer.info());
    assert!(["cpu", "cuda:0"].contains(&trainer.info().device.as_str()));

    let report = trainer.inspect(&contract()).unwrap();
    assert_eq!((report.rows, report.is_fit()), (80, true));
    let update = trainer.train(&task(30), &[0.0; 3]).unwrap();
    let local = TorchTrainer::new(file.path()).train(&task(30), &[0.0; 3]).unwrap();
    assert_eq!(update.steps, 30);
    if trainer.info().device == "cpu" {
        assert_eq!(update.delta, local.delta);
    }
    let metrics = trainer.evaluate(&task(1).evaluation(), &update.delta).unwrap();
    assert!(metrics.rows == 80 && metrics.accuracy.unwrap() > 0.9, "{metrics:?}");

    let privacy = RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier: 1.0,
        sampling_rate: 0.5,
        expected_batch: 40.0,
        mechanism: Default::default(),
    };
    let mut private = TrainTask { record_privacy: Some(privacy), ..task(3) };
    private.plan.batch_size = None;
    let update = trainer.train(&private, &[0.0; 3]).unwrap();
    assert!(update.steps == 3 && update.delta.iter().all(|d| d.is_finite() && *d != 0.0), "{update:?}");

    let baseline = trainer
        .baseline(&BaselineTask {
            model: ModelSpec::Logistic {},
            data: contract(),
            plan: task(10).plan,
            rounds: 3,
            seed: None,
            train: vec![file.path().into(), file.path().into()],
            test: file.path().into(),
        })
        .unwrap();
    assert_eq!((baseline.rows, baseline.steps, baseline.weights.len()), (160, 30, 3));
    assert!(baseline.metrics.accuracy.unwrap() > 0.9, "{:?}", baseline.metrics);

    trainer.quit().unwrap();
    let (status, log) = process.ended();
    let engine = "undertone-trainer: engine = \"per-example\", mechanism = \"discrete-gaussian\"\n";
    assert!(status.success() && log == engine, "{status} {log}");
}

#[test]
fn wrong_weights_and_missing_data_are_answered_and_the_trainer_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("heart.csv");
    let mut process = Process::on(&path);
    let mut trainer = process.connect().unwrap();
    for result in [trainer.inspect(&contract()).map(|_| ()), trainer.train(&task(1), &[0.0; 3]).map(|_| ())] {
        let Err(TrainerError::Data(text)) = result else { panic!("{result:?}") };
        assert!(text.contains("heart.csv"), "{text}");
    }
    fs::copy(data().path(), &path).unwrap();
    let e = trainer.train(&task(1), &[0.0; 5]).unwrap_err();
    assert!(matches!(&e, TrainerError::Numerical(t) if t.contains("5 values, the model has 3")), "{e}");
    let e = trainer.train(&task(1), &[0.0, f32::NAN, 0.0]).unwrap_err();
    assert!(matches!(&e, TrainerError::Numerical(t) if t.contains("NaN")), "{e}");
    let mut no_plan = task(1);
    no_plan.plan.local_steps = None;
    assert!(matches!(trainer.train(&no_plan, &[0.0; 3]), Err(TrainerError::Unsupported(_))));
    assert_eq!(trainer.train(&task(2), &[0.0; 3]).unwrap().steps, 2);
}

#[test]
fn garbage_ends_the_process_with_a_reason_on_both_sides() {
    let file = data();
    let mut truncated = Vec::new();
    write_frame(&mut truncated, &Request::Train { task: task(1) }, &[0.0; 3]).unwrap();
    truncated.pop();
    let mut unknown = 2u32.to_le_bytes().to_vec();
    unknown.extend(b"{}");
    unknown.extend([0; 8]);
    for (bytes, reason) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "not this protocol"),
        (truncated, "ended in the middle of a message"),
        (unknown, "not a message of this protocol"),
    ] {
        let mut process = Process::on(file.path());
        // The process may leave before all is written.
        let _ = process.0.stdin.take().unwrap().write_all(&bytes);
        let answer = read_frame::<Response>(process.0.stdout.as_mut().unwrap(), 0).unwrap();
        let Some((Response::Failed(TrainerError::Broken(text)), _)) = answer else { panic!("{answer:?}") };
        assert!(text.contains(reason), "{text}");
        let (status, log) = process.ended();
        assert!(status.code() == Some(1) && log.contains(reason), "{status} {log}");
    }
}

#[test]
fn a_client_of_another_version_is_told_ours() {
    let mut process = Process::on(data().path());
    let mut stdin = process.0.stdin.take().unwrap();
    write_frame(&mut stdin, &Request::Hello { version: 99 }, &[]).unwrap();
    let answer = read_frame::<Response>(process.0.stdout.as_mut().unwrap(), 0).unwrap();
    assert!(matches!(answer, Some((Response::Hello { version: PROTOCOL_VERSION, .. }, _))), "{answer:?}");
    let (status, log) = process.ended();
    assert!(status.code() == Some(1) && log.contains("version 99"), "{status} {log}");
}

#[test]
fn a_device_that_is_not_there_is_refused_in_the_answer_to_hello() {
    let mut process = Process::spawn(&["--data", "x.csv", "--device", "cuda:99"]);
    let e = process.connect().unwrap_err();
    assert!(matches!(&e, TrainerError::Unsupported(t) if t.contains("cuda:99 is not there")), "{e}");
    let (status, log) = process.ended();
    assert!(status.code() == Some(1) && log.contains("cuda:99"), "{status} {log}");
    let (status, log) = Process::spawn(&["--data", "x.csv", "--device", "gpu"]).ended();
    assert!(status.code() == Some(2) && log.contains("say auto, cpu or cuda:N"), "{status} {log}");
}

#[test]
fn a_killed_trainer_is_an_error_and_not_a_hang() {
    let file = data();
    let mut process = Process::on(file.path());
    let mut trainer = process.connect().unwrap();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        process.0.kill().unwrap();
        process
    });
    let e = trainer.train(&task(1_000_000), &[0.0; 3]).unwrap_err();
    assert!(matches!(&e, TrainerError::Broken(t) if t.contains("ended without an answer")), "{e}");
    assert_eq!(trainer.inspect(&contract()), Err(e));
    killer.join().unwrap();
}

#[test]
fn it_leaves_when_its_input_ends() {
    let file = data();
    let mut process = Process::on(file.path());
    drop(process.connect().unwrap());
    let (status, log) = process.ended();
    assert!(status.success() && log.is_empty(), "{status} {log}");
}

/// The client is killed in the middle of training. Played by a shell that holds the trainer's input open.
#[test]
fn it_does_not_outlive_a_killed_client() {
    let file = data();
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("requests");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let script = r#""$1" --data "$2" < "$3" > /dev/null 2>&1 & exec 9> "$3"; echo $!; read -r never"#;
    let mut client = Command::new("sh")
        .args(["-c", script, "client", PROGRAM])
        .args([file.path(), &fifo])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    // Gone, or a zombie that nobody has collected yet.
    let gone = || fs::read_to_string(&stat).map_or(true, |s| s.rsplit(") ").next().unwrap().starts_with('Z'));
    let cpu_ticks = || -> u64 {
        let stat = fs::read_to_string(&stat).unwrap();
        stat.rsplit(") ").next().unwrap().split(' ').nth(11).unwrap().parse().unwrap()
    };
    {
        let mut requests = OpenOptions::new().write(true).open(&fifo).unwrap();
        write_frame(&mut requests, &Request::Train { task: task(1_000_000) }, &[0.0; 3]).unwrap();
    }
    let before = cpu_ticks();
    wait_for(|| (cpu_ticks() > before + 50).then_some(()));
    assert!(!gone(), "it left while its client was there");
    client.kill().unwrap();
    client.wait().unwrap();
    wait_for(|| gone().then_some(()));
}

#[test]
fn help_teaches_and_usage_errors_are_usage_errors() {
    let help = Command::new(PROGRAM).arg("--help").env_remove("LD_LIBRARY_PATH").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.status.success());
    for word in
        ["--data", "--threads", "--device", "undertone-client", "cuda:N", "It opens no network connection"]
    {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    for args in [&[][..], &["--data", "x.csv", "--threads", "0"]] {
        let (status, log) = Process::spawn(args).ended();
        assert!(status.code() == Some(2) && log.contains("--"), "{status} {log}");
    }
}

/// As many values as a full batch of this has are a third of a gigabyte.
fn wide(hidden: usize, rows: u32) -> (tempfile::NamedTempFile, TrainTask) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let row = |i: u32| {
        let (a, b) = (f64::from(i * 7 % 41) / 20.5 - 1.0, f64::from(i * 13 % 43) / 21.5 - 1.0);
        format!("{a},{b},{}\n", i32::from(a + b > 0.0))
    };
    fs::write(file.path(), format!("a,b,y\n{}", (0..rows).map(row).collect::<String>())).unwrap();
    let model = ModelSpec::Mlp { hidden: vec![hidden], activation: Activation::Relu, seed: 1 };
    (file, TrainTask::new(model, contract(), TrainPlan::sgd(0.05, LocalWork::Steps(2))))
}

fn start(task: &TrainTask) -> Vec<f32> {
    task.model.initial_values(&task.data.shape())
}

/// A job's module writes where it likes: the pipe to the client is not that place.
#[test]
fn what_a_module_prints_is_no_answer() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/torchscript/talking.pt");
    let bytes = fs::read(&path).unwrap();
    let exported = Exported {
        file: FileRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 },
        tensors: [("fc.weight", vec![1, 2]), ("fc.bias", vec![1])]
            .map(|(name, shape)| TensorSpec { name: name.into(), shape })
            .to_vec(),
    };
    let model = ModelSpec::Torchscript(TorchScript::Exported(exported));
    let talking = TrainTask { model, module: Some(path), ..task(3) };
    let file = data();
    let mut process = Process::on(file.path());
    let mut trainer = process.connect().unwrap();
    let update = trainer.train(&talking, &[0.0; 3]).unwrap();
    assert!(update.delta.iter().all(|d| d.is_finite() && *d != 0.0), "{update:?}");
    assert_eq!(trainer.evaluate(&talking.evaluation(), &update.delta).unwrap().rows, 80);
    trainer.quit().unwrap();
    let (status, log) = process.ended();
    assert!(status.success() && log.contains("said by the module"), "{status} {log}");
}

/// The trainer is killed with no chance to say anything, and another process goes on: to the same bits.
#[test]
fn a_killed_process_is_gone_on_from() {
    let file = data();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("heart.checkpoint");
    let place = CheckpointPlace { path: path.clone(), attempt: "heart/1/1".into(), every_s: 0 };
    let kept = TrainTask { checkpoint: Some(place), ..task(3000) };
    let mut first = Process::spawn(&["--data", file.path().to_str().unwrap(), "--device", "cpu"]);
    let mut trainer = first.connect().unwrap();
    let pid = first.0.id();
    let watched = path.clone();
    let killer = std::thread::spawn(move || {
        wait_for(|| watched.exists().then_some(()));
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    });
    let e = trainer.train(&kept, &[0.0; 3]).unwrap_err();
    assert!(matches!(e, TrainerError::Broken(_)), "{e}");
    killer.join().unwrap();

    let mut second = Process::spawn(&["--data", file.path().to_str().unwrap(), "--device", "cpu"]);
    let mut trainer = second.connect().unwrap();
    let mut seldom = kept;
    seldom.checkpoint.as_mut().unwrap().every_s = 3600;
    let resumed = trainer.train(&seldom, &[0.0; 3]).unwrap();
    let whole = trainer.train(&task(3000), &[0.0; 3]).unwrap();
    assert_eq!(resumed, whole);
    trainer.quit().unwrap();
    let (status, log) = second.ended();
    assert!(status.success() && log.contains("going on after step"), "{status} {log}");
}

#[test]
fn the_same_seed_and_number_of_threads_give_the_same_bits() {
    let (file, mut task) = wide(300, 500);
    task.sampling_seed = Some(7);
    task.plan =
        TrainPlan { batch_size: Some(64), momentum: 0.9, ..TrainPlan::sgd(0.05, LocalWork::Epochs(3)) };
    let run = || {
        let data = file.path().to_str().unwrap().to_owned();
        let mut process = Process::spawn(&["--data", &data, "--threads", "2", "--device", "cpu"]);
        process.connect().unwrap().train(&task, &start(&task)).unwrap()
    };
    assert_eq!(run(), run());
}
