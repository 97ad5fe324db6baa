//! What happens where memory ends.

use super::*;

/// A limit on the address space stands in for a small machine.
fn within(kib: u64, data: &Path) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -v "$1"; shift; exec "$@""#, "sh", &kib.to_string(), PROGRAM]);
    command.args(["--device", "cpu", "--data"]).arg(data).env_remove("LD_LIBRARY_PATH");
    Process::start(&mut command)
}

/// Of a process that has computed something small.
fn peak_kib(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmPeak:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[track_caller]
fn assert_same(whole: &[f32], parts: &[f32]) {
    let longest = whole.iter().fold(0f32, |most, d| most.max(d.abs()));
    let away = whole.iter().zip(parts).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(longest > 1e-4 && away < 1e-3 * longest, "{away} of {longest}");
}

/// The batch is computed in parts, to the same update.
#[test]
fn a_batch_too_big_for_memory_is_computed_in_parts() {
    let (file, task) = wide(20_000, 4000);
    let mut free = Process::spawn(&["--data", file.path().to_str().unwrap(), "--device", "cpu"]);
    let mut trainer = free.connect().unwrap();
    let small = TrainTask {
        plan: TrainPlan { batch_size: Some(4), ..TrainPlan::sgd(0.05, LocalWork::Steps(1)) },
        ..task.clone()
    };
    trainer.train(&small, &start(&small)).unwrap();
    let peak = peak_kib(&free);
    let whole = trainer.train(&task, &start(&task)).unwrap();

    let mut bound = within(peak + (400 << 10), file.path());
    let mut trainer = bound.connect().unwrap();
    let parts = trainer.train(&task, &start(&task)).unwrap();
    assert_same(&whole.delta, &parts.delta);
    trainer.quit().unwrap();
    let (status, log) = bound.ended();
    assert!(status.success() && log.contains("out of memory with 4000 examples at once"), "{status} {log}");
}

/// So is the sum of a private step, before any noise. What a process has free when it begins is not known to some MiB: the room
/// is made smaller until it does not hold so many examples at once that their gradients, of 80 001 parameters each, are 15 MiB.
#[test]
fn a_private_batch_too_big_for_memory_is_summed_in_parts() {
    let (file, mut task) = wide(20_000, 400);
    task.record_privacy = Some(RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier: 2e-4,
        sampling_rate: 0.5,
        expected_batch: 200.0,
        mechanism: Default::default(),
    });
    task.sampling_seed = Some(3);
    let mut free = Process::spawn(&["--data", file.path().to_str().unwrap(), "--device", "cpu"]);
    let mut trainer = free.connect().unwrap();
    let whole = trainer.train(&task, &start(&task)).unwrap();
    let peak = peak_kib(&free);
    let halved = (1..32).find_map(|step: u64| {
        let mut bound = within(peak - step * (8 << 10), file.path());
        let mut trainer = bound.connect().unwrap();
        let parts = trainer.train(&task, &start(&task)).unwrap();
        trainer.quit().unwrap();
        let (status, log) = bound.ended();
        assert!(status.success(), "{status} {log}");
        log.contains("out of memory with ").then_some(parts)
    });
    assert_same(&whole.delta, &halved.expect("no room was too small").delta);
}

/// Nor does it end by a model that cannot even be read: it says why, and goes on with what fits.
#[test]
fn a_model_bigger_than_memory_is_refused_and_the_process_goes_on() {
    let file = data();
    let mut free = Process::spawn(&["--data", file.path().to_str().unwrap(), "--device", "cpu"]);
    let mut trainer = free.connect().unwrap();
    let small = trainer.train(&task(2), &[0.0; 3]).unwrap();
    let peak = peak_kib(&free);

    let model = ModelSpec::Mlp { hidden: vec![65_536, 1024], activation: Activation::Relu, seed: 1 };
    let big = TrainTask { model, ..task(2) };
    let weights = vec![0.0; big.model.layout(&contract().shape()).unwrap().len()];
    let mut bound = within(peak + (32 << 10), file.path());
    let mut trainer = bound.connect().unwrap();
    for _ in 0..2 {
        let e = trainer.train(&big, &weights).unwrap_err();
        assert!(matches!(&e, TrainerError::Memory(text) if text.contains("smaller model")), "{e:?}");
        assert_eq!(trainer.train(&task(2), &[0.0; 3]).unwrap(), small);
    }
    trainer.quit().unwrap();
    let (status, log) = bound.ended();
    assert!(status.success(), "{status} {log}");
}
