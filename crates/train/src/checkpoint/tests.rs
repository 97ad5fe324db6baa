use super::*;
use rand_chacha::rand_core::Rng as _;
use undertone_core::model::ModelSpec;
use undertone_core::plan::{LocalWork, TrainPlan};

fn task(path: &Path) -> TrainTask {
    let data = toml::from_str(
        "label = { column = \"y\", classes = [{ name = \"a\", values = [\"0\"] }, { name = \"b\", values = [\"1\"] }] }\n\
         columns = [{ name = \"x\", kind = \"number\", range = [0, 1] }]",
    );
    let place = CheckpointPlace { path: path.into(), attempt: "heart/1/1".into(), every_s: 0 };
    TrainTask {
        checkpoint: Some(place),
        ..TrainTask::new(ModelSpec::Logistic {}, data.unwrap(), TrainPlan::sgd(0.1, LocalWork::Steps(9)))
    }
}

fn state() -> State {
    let mut rng = ChaCha20Rng::from_seed([7; 32]);
    (0..5).for_each(|_| _ = rng.next_u32());
    State {
        step: 3,
        sampler: Some(SamplerState::of(&rng, 12)),
        weights: vec![1.5, -0.0, f32::MIN_POSITIVE],
        optimizer: (3, vec![1.0; 6]),
        best: Some(Best { loss: 0.1 + 0.2, step: 2, weights: vec![3.0; 3] }),
        without_progress: 1,
    }
}

#[test]
fn a_state_survives_and_a_generator_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("heart.checkpoint");
    let task = task(&path);
    let mut keeper = Keeper::new(&task, &[1.0; 3]);
    assert_eq!(keeper.load(), None);
    keeper.keep(|| Ok(state())).unwrap();
    assert_eq!(keeper.load(), Some(state()));
    let later = State { step: 4, best: None, sampler: None, ..state() };
    keeper.keep(|| Ok(later.clone())).unwrap();
    assert_eq!(keeper.load(), Some(later));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    let mut rng = ChaCha20Rng::from_seed([7; 32]);
    (0..5).for_each(|_| _ = rng.next_u32());
    let mut again = state().sampler.unwrap().rng();
    assert_eq!([rng.next_u64(), rng.next_u64()], [again.next_u64(), again.next_u64()]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn it_is_of_one_attempt_one_task_and_one_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("heart.checkpoint");
    let mine = task(&path);
    Keeper::new(&mine, &[1.0; 3]).keep(|| Ok(state())).unwrap();
    let mut next_attempt = mine.clone();
    next_attempt.checkpoint.as_mut().unwrap().attempt = "heart/1/2".into();
    let mut other_plan = mine.clone();
    other_plan.plan.learning_rate = 0.2;
    let other_seed = TrainTask { sampling_seed: Some(1), ..mine.clone() };
    for other in [next_attempt, other_plan, other_seed] {
        assert_eq!(Keeper::new(&other, &[1.0; 3]).load(), None);
    }
    assert_eq!(Keeper::new(&mine, &[1.0, 1.0, 1.5]).load(), None);
    // Where it lies, and how often it is written, is not what it is.
    let moved = dir.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    let mut elsewhere = mine;
    elsewhere.checkpoint =
        Some(CheckpointPlace { path: moved, every_s: 77, ..elsewhere.checkpoint.clone().unwrap() });
    assert!(Keeper::new(&elsewhere, &[1.0; 3]).load().is_some());
}

#[test]
fn what_is_damaged_is_done_without() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("heart.checkpoint");
    let task = task(&path);
    Keeper::new(&task, &[1.0; 3]).keep(|| Ok(state())).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for bytes in [&whole[..whole.len() - 1], &whole[..10], b"", b"no checkpoint at all", &flipped] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(Keeper::new(&task, &[1.0; 3]).load(), None);
    }
    fs::write(&path, &whole).unwrap();
    assert!(Keeper::new(&task, &[1.0; 3]).load().is_some());
}

#[test]
fn a_place_that_cannot_be_written_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let task = task(&dir.path().join("no/such/folder/heart.checkpoint"));
    Keeper::new(&task, &[1.0; 3]).keep(|| Ok(state())).unwrap();
    let mut slow = task;
    let path = dir.path().join("heart.checkpoint");
    slow.checkpoint = Some(CheckpointPlace { path: path.clone(), every_s: 3600, ..slow.checkpoint.unwrap() });
    Keeper::new(&slow, &[1.0; 3]).keep(|| panic!("it is not time")).unwrap();
    assert!(!path.exists());
}
