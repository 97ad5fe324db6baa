//! Either way, and from whatever is here already, the version is the one that was offered.

use crate::folder::ClientFolder;
use crate::models::{Arrived, Kept, ModelError, Models};
use std::collections::BTreeMap;
use undertone_core::digest::Digest;
use undertone_core::encoding::broadcast::{Broadcaster, Pieces, values_digest};
use undertone_core::encoding::frozen::FrozenMaker;
use undertone_core::id::JobId;
use undertone_round::job::{Job, JobSpec};
use undertone_round::participant::{ModelRef, OfferedDelta, OfferedFrozen, OfferedModel};

fn job(transport: &str) -> Job {
    job_of("", transport)
}

/// A job that trains a part.
fn job_of(tensors: &str, transport: &str) -> Job {
    let text = undertone_harness::SAMPLE_JOB
        .replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [3000]")
        .replace("local_steps", &format!("{tensors}\nlocal_steps"))
        .replace("[deadlines]", &format!("[transport]\n{transport}\n\n[deadlines]"));
    JobSpec::from_toml(&text, "job.toml").unwrap().resolve().unwrap()
}

fn file(bytes: &[u8]) -> ModelRef {
    ModelRef { digest: Digest::of(bytes), bytes: bytes.len() as u64 }
}

fn arrive(models: &Models, bytes: &[u8]) {
    let mut partial = models.resume(file(bytes)).unwrap();
    partial.append(0, bytes).unwrap();
    assert_eq!(models.finish(partial, Kept::Message).unwrap(), Ok(()));
}

/// The frozen ones of these values, and their file.
fn frozen(job: &Job, values: &[f32]) -> (OfferedFrozen, Vec<u8>) {
    let mut bytes = vec![];
    let mut maker = FrozenMaker::new(job.part(), Digest::of(b"job"), &mut bytes);
    maker.push(values, &mut bytes);
    (OfferedFrozen { digest: maker.finish(), file: file(&bytes) }, bytes)
}

/// An offer of `values`, with its whole and the difference from `base`.
fn offer(job: &Job, values: &[f32], base: &[f32]) -> (OfferedModel, Vec<u8>, Vec<u8>) {
    let (down, mut out, own) = (job.spec().transport.down(), Pieces::default(), Digest::of(b"job"));
    let mut made = Broadcaster::new(down, job.grid(), job.part(), own, own, true, &mut out).unwrap();
    made.push(values, base, &mut out).unwrap();
    let version = Some(made.finish().unwrap());
    let whole = match down.whole(job.part()) {
        Some(_) => out.whole,
        None => job.layout().to_safetensors(values, BTreeMap::new()),
    };
    let delta = down.deltas.map(|_| OfferedDelta { base: values_digest(base), file: file(&out.delta) });
    let frozen = (!job.part().is_whole()).then(|| frozen(job, values).0);
    (OfferedModel { whole: file(&whole), version, delta, frozen }, whole, out.delta)
}

#[test]
fn either_way_leads_to_the_version_and_a_damaged_base_is_noticed() {
    for transport in ["deltas = true", "deltas = { kind = \"block\", bits = 8 }"] {
        let dir = tempfile::tempdir().unwrap();
        let (job, models) = (job(transport), Models::new(&ClientFolder::new(dir.path())));
        let layout = job.layout();
        let (old, new) =
            (job.initial_values(), job.initial_values().iter().map(|v| v * 1.01).collect::<Vec<_>>());
        let (first, whole, _) = offer(&job, &old, &old);
        assert_eq!(first.version, Some(values_digest(&old)));
        arrive(&models, &whole);
        models.rebuild(first, Arrived::Whole, &job).unwrap();
        assert_eq!(models.read_offered(first, layout).unwrap(), old);
        let (second, whole, delta) = offer(&job, &new, &old);
        arrive(&models, &delta);
        models.rebuild(second, Arrived::Delta, &job).unwrap();
        let by_delta = models.read_offered(second, layout).unwrap();
        assert!(
            models.holds_version(second.digest(), layout) && models.holds_version(first.digest(), layout)
        );

        let path = models.version_path(first.digest());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        arrive(&models, &delta);
        let e = models.rebuild(second, Arrived::Delta, &job).unwrap_err();
        assert!(matches!(e, ModelError::OtherVersion { .. }), "{transport}: {e}");
        assert!(!models.holds_version(first.digest(), layout), "an altered base is removed");
        arrive(&models, &whole);
        models.rebuild(second, Arrived::Whole, &job).unwrap();
        assert_eq!(models.read_offered(second, layout).unwrap(), by_delta, "{transport}");
        let left = std::fs::read_dir(dir.path().join("models")).unwrap().count();
        assert_eq!(left, 1, "{transport}: nothing but the version is left");
    }
}

/// Of a job that trains a head the body is kept once: whole versions and differences hold the head alone.
#[test]
fn frozen_values_are_kept_and_a_damaged_one_is_noticed() {
    for transport in ["", "models = { kind = \"bf16\" }", "deltas = { kind = \"block\", bits = 8 }"] {
        let dir = tempfile::tempdir().unwrap();
        let (job, models) =
            (job_of("tensors = [\"2.*\"]", transport), Models::new(&ClientFolder::new(dir.path())));
        let (layout, part) = (job.layout(), job.part());
        let old = job.initial_values();
        let mut new = old.clone();
        part.change(&mut new, |head| head.iter_mut().for_each(|v| *v += 0.01));
        let (first, whole, _) = offer(&job, &old, &old);
        let (of_body, body) = frozen(&job, &old);
        assert_eq!(body.len(), 40 + 4 * part.frozen_len());
        assert!(whole.len() <= 40 + 4 * part.len(), "{transport}: {}", whole.len());

        // Nothing is here: the whole alone leads nowhere.
        assert!(!models.holds_frozen(of_body.digest, part).unwrap());
        arrive(&models, &whole);
        assert!(
            matches!(models.rebuild(first, Arrived::Whole, &job), Err(ModelError::Disk(_))),
            "{transport}"
        );
        // Other values under that name.
        let mut other = body.clone();
        other[41] ^= 1;
        arrive(&models, &other);
        let e = models.keep_frozen(OfferedFrozen { file: file(&other), ..of_body }).unwrap_err();
        assert!(matches!(e, ModelError::OtherFrozen { .. }), "{e}");
        arrive(&models, &body);
        models.keep_frozen(of_body).unwrap();
        assert!(models.holds_frozen(of_body.digest, part).unwrap());
        arrive(&models, &whole);
        models.rebuild(first, Arrived::Whole, &job).unwrap();
        let have = models.read_offered(first, layout).unwrap();

        let (second, whole, delta) = offer(&job, &new, &have);
        if second.delta.is_some() {
            arrive(&models, &delta);
            models.rebuild(second, Arrived::Delta, &job).unwrap();
        } else {
            arrive(&models, &whole);
            models.rebuild(second, Arrived::Whole, &job).unwrap();
        }
        let then = models.read_offered(second, layout).unwrap();
        let mut body_alone = then.clone();
        part.scatter(&part.gather(&old), &mut body_alone);
        assert_eq!(body_alone, old, "{transport}: the body has every bit");
        assert!(part.gather(&then).iter().zip(part.gather(&old)).all(|(a, b)| (a - b - 0.01).abs() < 1e-3));

        let path = models.frozen_path(of_body.digest);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        arrive(&models, &whole);
        let e = models.rebuild(second, Arrived::Whole, &job).unwrap_err();
        assert!(matches!(e, ModelError::OtherVersion { .. }), "{transport}: {e}");
        assert!(!models.holds_frozen(of_body.digest, part).unwrap(), "altered values are removed");
    }
}

/// Versions come and go; the frozen values of a job stay as long as its models do.
#[test]
fn versions_do_not_push_frozen_values_out() {
    let dir = tempfile::tempdir().unwrap();
    let models = Models::new(&ClientFolder::new(dir.path()));
    let job = job_of("tensors = [\"2.*\"]", "models = { kind = \"bf16\" }");
    let id = |n: usize| JobId::new(format!("job-{n}")).unwrap();
    let mut values = job.initial_values();
    let (of_body, body) = frozen(&job, &values);
    let held = || models.holds_frozen(of_body.digest, job.part()).unwrap();
    for round in 0..6 {
        job.part().change(&mut values, |head| head.iter_mut().for_each(|v| *v += 0.01));
        let (offered, whole, _) = offer(&job, &values, &values);
        models.expect(&id(0), offered, None).unwrap();
        if round == 0 {
            arrive(&models, &body);
            models.keep_frozen(of_body).unwrap();
        }
        arrive(&models, &whole);
        models.rebuild(offered, Arrived::Whole, &job).unwrap();
        models.arrived(&id(0), offered.digest()).unwrap();
        assert!(held(), "round {round}");
    }
    let left = || std::fs::read_dir(dir.path().join("models")).unwrap().count();
    assert_eq!(left(), 3, "a version, what is frozen, and what each job needs");
    // Other jobs, none of which shares it.
    for n in 1..20 {
        let other = format!("a model of job {n}");
        let whole = file(other.as_bytes());
        let offered = OfferedModel { whole, version: None, delta: None, frozen: None };
        models.expect(&id(n), offered, None).unwrap();
        models.arrived(&id(n), offered.digest()).unwrap();
    }
    assert!(!held());
    assert_eq!(left(), 1);
}
