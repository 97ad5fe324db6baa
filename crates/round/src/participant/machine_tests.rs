//! Each transition of the participant, one at a time.

mod uploads;

use super::sample::{
    CLIENT, LOCAL, NONE, RECORD, external_job, fit, job, job_limited, job_of_part, job_sent, job_with, key,
    offer, torchscript_job, unfit,
};
use super::*;
use crate::job::Job;
use std::sync::Arc;
use undertone_core::digest::Digest;
use undertone_core::fixed::FixedVector;
use undertone_core::trainer::TrainerError;
use undertone_privacy::contract::Unit;

fn policy() -> Policy {
    Policy { declared_rows: Some(200), ..Policy::default() }
}

fn client() -> Participant {
    Participant::new(policy(), [])
}

fn update(job: &Job) -> Parcel {
    Parcel::of(job, FixedVector::from_units(job.grid(), vec![1; job.part().len()]).unwrap())
}

fn sealed(text: &str) -> Sealed {
    Sealed { update: Digest::of(text.as_bytes()), bytes: 8, weight: 1, within: None, number: None }
}

fn offered(key: &AttemptKey, job: &Arc<Job>) -> Input {
    Input::Offered(Box::new(offer(key.clone(), job)))
}

fn transient() -> Failure {
    Failure::Transient("gone".into())
}

fn last(reason: &str) -> Failure {
    Failure::Final(reason.into())
}

/// Effects as short words, to compare with.
fn words(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        .map(|e| match e {
            Effect::Record(d) => {
                format!("record {}", if matches!(d.verdict, Verdict::Accept(_)) { "yes" } else { "no" })
            }
            Effect::Accept(k) => format!("accept {}", short(k)),
            Effect::Decline(k, _) => format!("decline {}", short(k)),
            Effect::Inspect(k, _) => format!("inspect {}", short(k)),
            Effect::Fetch(k, ..) => format!("fetch {}", short(k)),
            Effect::Train(a) => format!("train {}", short(a.key())),
            Effect::Abandon(k) => format!("abandon {}", short(k)),
            Effect::Store { account, .. } => format!("store {}", short(&account.last())),
            Effect::Upload { key, tries, .. } => format!("upload {} try {tries}", short(key)),
            Effect::Settle { key, tries, .. } => format!("settle {} try {tries}", short(key)),
            Effect::Discard { account, .. } => format!("discard {}", short(&account.last())),
            Effect::ReportFailure(k, _) => format!("fail {}", short(k)),
        })
        .collect()
}

fn short(k: &AttemptKey) -> String {
    format!("{}/{}/{}", k.job, k.round, k.attempt)
}

fn told(effects: &[Effect]) -> String {
    effects
        .iter()
        .find_map(|e| match e {
            Effect::Decline(_, refusal) => Some(refusal.told.clone()),
            Effect::ReportFailure(_, reason) => Some(reason.clone()),
            _ => None,
        })
        .expect("something was told")
}

#[track_caller]
fn expect(effects: Vec<Effect>, wanted: &[&str]) -> Vec<Effect> {
    assert_eq!(words(&effects), wanted);
    effects
}

/// One of [`At`]'s functions.
type Bring = fn(&mut Participant, &AttemptKey, &Arc<Job>);

/// Brings a client to the state that the name says, for attempt `k`.
struct At;

impl At {
    fn inspecting(p: &mut Participant, k: &AttemptKey, job: &Arc<Job>) {
        let name = format!("inspect {}", short(k));
        let effects = words(&p.step(offered(k, job)));
        assert_eq!(effects.last(), Some(&name));
    }
    fn fetching(p: &mut Participant, k: &AttemptKey, job: &Arc<Job>) {
        Self::inspecting(p, k, job);
        let (accept, fetch) = (format!("accept {}", short(k)), format!("fetch {}", short(k)));
        expect(p.step(Input::Inspected(k.clone(), Ok(fit()))), &["record yes", &accept, &fetch]);
    }
    fn training(p: &mut Participant, k: &AttemptKey, job: &Arc<Job>) {
        Self::fetching(p, k, job);
        expect(p.step(Input::ModelReady(k.clone())), &[&format!("train {}", short(k))]);
    }
    fn storing(p: &mut Participant, k: &AttemptKey, job: &Arc<Job>) {
        Self::training(p, k, job);
        expect(p.step(Input::Trained(k.clone(), update(job))), &[&format!("store {}", short(k))]);
    }
    fn uploading(p: &mut Participant, k: &AttemptKey, job: &Arc<Job>) {
        Self::storing(p, k, job);
        let upload = format!("upload {} try 0", short(k));
        expect(p.step(Input::Stored(k.clone(), sealed("bytes"))), &[&upload]);
    }
    fn delivered(p: &mut Participant, k: &AttemptKey, job: &Arc<Job>) {
        Self::uploading(p, k, job);
        expect(p.step(Input::Uploaded(k.clone())), &[&format!("discard {}", short(k))]);
    }
}

#[test]
fn a_round_goes_from_offer_to_receipt() {
    let (mut p, job, k) = (client(), job(RECORD), key("j", 1, 1));
    At::delivered(&mut p, &k, &job);
    assert!(p.is_idle());
    At::delivered(&mut p, &key("j", 2, 1), &job);
    assert!(p.is_idle());
}

#[test]
fn unfit_or_unreadable_data_is_declined_and_only_the_own_log_says_why() {
    let (mut p, job, k) = (client(), job(RECORD), key("j", 1, 1));
    At::inspecting(&mut p, &k, &job);
    let out = expect(p.step(Input::Inspected(k.clone(), Ok(unfit()))), &["record no", "decline j/1/1"]);
    assert_eq!(told(&out), DATA_UNFIT);
    let Effect::Record(decision) = &out[0] else { unreachable!() };
    let Verdict::Decline(refusal) = &decision.verdict else { unreachable!() };
    assert_eq!(refusal.details, unfit().problems);
    assert!(p.is_idle());

    At::inspecting(&mut p, &k, &job);
    let broken = TrainerError::Broken("exit 3 at row 17".into());
    let out = expect(p.step(Input::Inspected(k, Err(broken))), &["record no", "decline j/1/1"]);
    assert!(!told(&out).contains("17"));
}

/// With local trust at client level a "no" because of the data would be an answer without noise.
#[test]
fn unfit_data_is_kept_from_everyone_where_the_client_adds_the_noise() {
    let (mut p, job, k) = (client(), job(LOCAL), key("j", 1, 1));
    for data in [Ok(unfit()), Err(TrainerError::Broken("exit 3".into()))] {
        At::inspecting(&mut p, &k, &job);
        let out =
            expect(p.step(Input::Inspected(k.clone(), data)), &["record yes", "accept j/1/1", "fetch j/1/1"]);
        let Effect::Record(decision) = &out[0] else { unreachable!() };
        let Verdict::Accept(acceptance) = &decision.verdict else { unreachable!() };
        assert_eq!(acceptance.withheld().len(), 2, "for the own log: {:?}", acceptance.withheld());
        p.step(Input::Withdrawn(k.clone()));
    }
    At::inspecting(&mut p, &k, &job);
    let out = p.step(Input::Inspected(k, Ok(fit())));
    let Effect::Record(decision) = &out[0] else { unreachable!() };
    assert!(matches!(&decision.verdict, Verdict::Accept(a) if a.withheld().is_empty()));
}

/// The client keeps its own count, on its disk: a coordinator that asks too often or too early is told no.
#[test]
fn a_client_takes_part_no_more_often_than_the_job_says() {
    let (mut p, job) = (client(), job_limited(RECORD, 2, 3));
    let mut account = None;
    for (round, attempt, says) in [
        (4, 1, None),
        (4, 2, None),
        (6, 1, Some("in round 4: by the contract it may do so again from round 7 on")),
        (7, 1, None),
        (20, 1, Some("2 times, as often as the contract allows")),
    ] {
        let k = key("j", round, attempt);
        match says {
            None => {
                At::training(&mut p, &k, &job);
                let out = p.step(Input::Trained(k.clone(), update(&job)));
                let Some(Effect::Store { account: stored, .. }) = out.first() else {
                    panic!("{:?}", words(&out))
                };
                account = Some(stored.clone());
                p.step(Input::Stored(k.clone(), sealed("u")));
                p.step(Input::Uploaded(k));
            }
            Some(says) => {
                let out = p.step(offered(&k, &job));
                assert!(told(&out).contains(says), "{}", told(&out));
                assert!(p.is_idle());
            }
        }
        // As after a restart: what is on the disk decides.
        let text = serde_json::to_string(&account).unwrap();
        p = Participant::new(policy(), serde_json::from_str::<Option<Account>>(&text).unwrap());
    }
    assert_eq!(account.unwrap().taken_part().joined(), 2);
}

#[test]
fn a_job_beyond_the_policy_never_opens_the_data() {
    let declined = |policy: Policy, job: &Arc<Job>, says: &str| {
        let mut p = Participant::new(policy, []);
        let out = expect(p.step(offered(&key("j", 1, 1), job)), &["record no", "decline j/1/1"]);
        assert!(told(&out).contains(says), "{}", told(&out));
        assert!(p.is_idle());
    };
    declined(policy(), &job(NONE), "allow_no_privacy");
    declined(Policy { max_epsilon: Some(1.0), ..policy() }, &job(RECORD), "limit is 1");
    declined(Policy::default(), &job(RECORD), "declared_rows");
    declined(Policy { own_program: true, ..policy() }, &job(RECORD), "takes no record-level contract");
    declined(policy(), &external_job(CLIENT), "a training program of its own");
    // Whatever the contract hides of the data, this is not of it.
    let least = 8 * job(CLIENT).layout().len() as u64;
    declined(
        Policy { memory_bytes: Some(least - 1), ..policy() },
        &job(CLIENT),
        "MiB of memory at the least",
    );
    At::training(
        &mut Participant::new(Policy { memory_bytes: Some(least), ..policy() }, []),
        &key("j", 1, 1),
        &job(CLIENT),
    );
}

#[test]
fn a_torchscript_file_runs_only_where_its_owner_lets_it() {
    let module = torchscript_job(CLIENT);
    let digest = module.module_file().unwrap().digest;
    let with = |torchscript| Policy { torchscript, ..policy() };
    let other = AllowedModules::Only([Digest::of(b"another")].into());
    for refusing in [AllowedModules::None, other] {
        let mut p = Participant::new(with(refusing), []);
        let out = expect(p.step(offered(&key("j", 1, 1), &module)), &["record no", "decline j/1/1"]);
        assert!(told(&out).contains(&format!("allow_torchscript = [\"{digest}\"]")), "{}", told(&out));
    }
    for allowing in [AllowedModules::All, AllowedModules::Only([digest].into())] {
        At::training(&mut Participant::new(with(allowing), []), &key("j", 1, 1), &module);
    }
    // A program of the owner's runs in its place.
    let own = Policy { own_program: true, ..policy() };
    At::training(&mut Participant::new(own, []), &key("j", 1, 1), &torchscript_job(CLIENT));
}

/// Evaluators hold the same against a job, before they look at the data or fetch anything.
#[test]
fn what_a_model_needs_of_a_client_is_told() {
    let own = Policy { own_program: true, ..policy() };
    for (job, needs) in [
        (external_job(NONE), "a training program of its own ([trainer] command)"),
        (torchscript_job(NONE), "[limits] allow_torchscript"),
    ] {
        let refusal = policy().check_model(&job).unwrap_err();
        assert!(refusal.told.contains(needs), "{}", refusal.told);
        assert_eq!(own.check_model(&job), Ok(()));
    }
    assert_eq!(policy().check_model(&job(NONE)), Ok(()));
}

/// The words are the module's: in full only where nothing is promised.
#[test]
fn what_is_wrong_with_a_torchscript_file_is_told_in_full_where_nothing_is_promised() {
    let why = TrainerError::Module("training_step changes the buffer \"seen\"".into());
    let full = "the job's TorchScript file: training_step changes the buffer \"seen\"";
    assert!(super::told(&why, Unit::None).contains(full));
    for unit in [Unit::Client, Unit::Record] {
        let told = super::told(&why, unit);
        assert!(told.contains("does not train as it is") && !told.contains("seen"), "{told}");
    }
    assert!(super::told(&TrainerError::Module("x".repeat(99_999)), Unit::None).len() < 5000);
}

#[test]
fn an_owners_program_takes_client_level_contracts_and_external_models() {
    let own = Policy { own_program: true, allow_no_privacy: true, ..policy() };
    for job in [job(CLIENT), job(LOCAL), job(NONE), external_job(CLIENT)] {
        At::training(&mut Participant::new(own.clone(), []), &key("j", 1, 1), &job);
    }
}

/// Whatever the contract: it says nothing of the data, and the round goes on with others.
#[test]
fn an_owner_who_has_training_wait_declines() {
    for job in [job(RECORD), job(CLIENT), job(LOCAL)] {
        let mut p = client();
        p.step(offered(&key("j", 1, 1), &job));
        let paused = Err(TrainerError::Paused("the machine runs on its battery (BAT0)".into()));
        let out = expect(p.step(Input::Inspected(key("j", 1, 1), paused)), &["record no", "decline j/1/1"]);
        assert!(told(&out).contains("has training wait") && !told(&out).contains("BAT0"), "{}", told(&out));
    }
}

#[test]
fn declared_rows_are_asked_for_only_where_they_are_used() {
    let open = Policy { allow_no_privacy: true, ..Policy::default() };
    for job in [job(CLIENT), job(NONE)] {
        At::training(&mut Participant::new(open.clone(), []), &key("j", 1, 1), &job);
    }
    let by_rows = job_with(NONE, "weights = \"declared_rows\"\nmax_weight = 150");
    let mut p = Participant::new(open.clone(), []);
    assert!(told(&p.step(offered(&key("j", 1, 1), &by_rows))).contains("declared_rows"));
    let mut p = Participant::new(Policy { declared_rows: Some(200), ..open }, []);
    At::fetching(&mut p, &key("j", 1, 1), &by_rows);
    let out = p.step(Input::ModelReady(key("j", 1, 1)));
    let Effect::Train(acceptance) = &out[0] else { unreachable!() };
    assert_eq!(acceptance.weight(), 150);
}

#[test]
fn the_clients_own_count_ends_what_the_budget_does_not_pay_for() {
    // 20 rounds cost less than the budget of 6, 40 attempts cost more: the client notices by itself.
    let (mut p, job) = (client(), job(RECORD));
    let contract = job.contract();
    assert!(contract.epsilon_after(20).unwrap() < 6.0 && contract.epsilon_after(40).unwrap() > 6.0);
    let paid = (1..).take_while(|&n| contract.epsilon_after(n).unwrap() <= 6.0).count() as u32;
    for attempt in 1..=paid {
        At::delivered(&mut p, &key("j", 1, attempt), &job);
    }
    let out = expect(
        p.step(offered(&key("j", 1, paid + 1), &job)),
        &["record no", &format!("decline j/1/{}", paid + 1)],
    );
    assert!(told(&out).contains("its budget is 6"), "{}", told(&out));
    // The owner's own limit goes by the same count.
    let after = contract.epsilon_after(paid).unwrap();
    assert!(after > contract.epsilon_after(20).unwrap());
}

#[test]
fn another_document_under_the_same_name_is_declined() {
    let mut p = client();
    At::delivered(&mut p, &key("j", 1, 1), &job(RECORD));
    let out = p.step(offered(&key("j", 2, 1), &job(CLIENT)));
    assert!(told(&out).contains("document"), "{}", told(&out));
}

#[test]
fn a_repeated_offer_repeats_the_answer_and_nothing_else() {
    let (job, k) = (job(RECORD), key("j", 1, 1));
    let bring: [Bring; 4] = [At::fetching, At::training, At::storing, At::uploading];
    for bring in bring {
        let mut p = client();
        bring(&mut p, &k, &job);
        expect(p.step(Input::SessionLost), &[]);
        expect(p.step(Input::SessionUp), &[]);
        expect(p.step(offered(&k, &job)), &["accept j/1/1"]);
    }
    let mut p = client();
    At::inspecting(&mut p, &k, &job);
    expect(p.step(offered(&k, &job)), &[]);
}

#[test]
fn a_withdrawn_attempt_is_dropped_in_every_state() {
    let (job, k) = (job(RECORD), key("j", 1, 1));
    let cases: [(Bring, &[&str]); 4] = [
        (At::inspecting, &["abandon j/1/1"]),
        (At::fetching, &["abandon j/1/1"]),
        (At::training, &["abandon j/1/1"]),
        (At::uploading, &["abandon j/1/1", "discard j/1/1"]),
    ];
    for (bring, effects) in cases {
        let mut p = client();
        bring(&mut p, &k, &job);
        expect(p.step(Input::Withdrawn(k.clone())), effects);
        assert!(p.is_idle());
    }
    // Storing finishes first.
    let mut p = client();
    At::storing(&mut p, &k, &job);
    expect(p.step(Input::Withdrawn(k.clone())), &[]);
    assert_eq!(p.in_hand(), Some(&k));
    expect(p.step(Input::Stored(k.clone(), sealed("bytes"))), &["discard j/1/1"]);
    assert!(p.is_idle());
    // And the attempt is spent: offered again, it would need a second draw of noise.
    expect(p.step(offered(&k, &job)), &["record no", "decline j/1/1"]);
}

#[test]
fn a_withdrawal_of_something_else_changes_nothing() {
    let (mut p, job, k) = (client(), job(RECORD), key("j", 2, 1));
    At::training(&mut p, &k, &job);
    for other in [key("j", 1, 1), key("j", 2, 2), key("i", 2, 1)] {
        expect(p.step(Input::Withdrawn(other)), &[]);
    }
    assert_eq!(p.in_hand(), Some(&k));
}

#[test]
fn a_newer_attempt_replaces_the_older_and_an_older_one_is_declined() {
    let (job, k) = (job(RECORD), key("j", 3, 1));
    let newer = key("j", 3, 2);
    let cases: [(Bring, &[&str]); 3] = [
        (At::inspecting, &["abandon j/3/1", "inspect j/3/2"]),
        (At::fetching, &["abandon j/3/1", "inspect j/3/2"]),
        (At::training, &["abandon j/3/1", "inspect j/3/2"]),
    ];
    for (bring, effects) in cases {
        let mut p = client();
        bring(&mut p, &k, &job);
        expect(p.step(offered(&key("j", 2, 9), &job)), &["record no", "decline j/2/9"]);
        expect(p.step(offered(&newer, &job)), effects);
        assert_eq!(p.in_hand(), Some(&newer));
        // The older one's results are nobody's business any more.
        expect(p.step(Input::Inspected(k.clone(), Ok(fit()))), &[]);
        expect(p.step(Input::Trained(k.clone(), update(&job))), &[]);
        expect(p.step(Input::Uploaded(k.clone())), &[]);
        expect(p.step(Input::Failed(k.clone(), last("x"))), &[]);
    }
    let mut p = client();
    At::storing(&mut p, &k, &job);
    expect(p.step(offered(&newer, &job)), &[]);
    expect(p.step(Input::Stored(k, sealed("old"))), &["discard j/3/1", "inspect j/3/2"]);
}

#[test]
fn jobs_take_turns_and_a_lost_session_forgets_offers() {
    let (mut p, job) = (client(), job(RECORD));
    At::training(&mut p, &key("a", 1, 1), &job);
    expect(p.step(offered(&key("b", 1, 1), &job)), &[]);
    expect(p.step(offered(&key("c", 1, 1), &job)), &[]);
    expect(p.step(offered(&key("b", 1, 2), &job)), &[]);
    expect(p.step(Input::Withdrawn(key("c", 1, 1))), &[]);
    let out = p.step(Input::Failed(key("a", 1, 1), last("diverged")));
    expect(out, &["fail a/1/1", "inspect b/1/2"]);
    expect(p.step(offered(&key("d", 1, 1), &job)), &[]);
    expect(p.step(Input::SessionLost), &[]);
    expect(p.step(Input::Inspected(key("b", 1, 2), Ok(unfit()))), &["record no", "decline b/1/2"]);
    assert!(p.is_idle());
}

#[test]
fn too_many_waiting_jobs_are_declined() {
    let (mut p, job) = (client(), job(RECORD));
    At::training(&mut p, &key("a", 1, 1), &job);
    let declined =
        (0..80).filter(|i| words(&p.step(offered(&key(&format!("b{i}"), 1, 1), &job))).len() == 2).count();
    assert_eq!(declined, 80 - 64);
}

#[test]
fn offers_that_make_no_sense_are_not_read() {
    let job = job(RECORD);
    let model = ModelRef { digest: Digest::of(b"m"), bytes: job.update_bytes() + 100 };
    let of = |k, model| Offer::of_job(k, Arc::clone(&job), model, None).unwrap_err();
    assert!(matches!(of(key("j", 21, 1), model), UnreadableOffer::NoSuchRound { round: 21, rounds: 20 }));
    for bytes in [0, job.update_bytes(), job.update_bytes() + (1 << 30), u64::MAX] {
        let e = of(key("j", 1, 1), ModelRef { bytes, ..model });
        assert!(matches!(e, UnreadableOffer::ModelSize { .. }), "{bytes}");
    }
    assert!(matches!(Offer::read(key("j", 1, 1), b"{}", model, None), Err(UnreadableOffer::Job(_))));
    let read = Offer::read(key("j", 1, 1), &job.spec().to_document(), model, None).unwrap();
    assert_eq!(read.job().digest(), job.digest());
}

#[test]
fn a_model_comes_as_the_job_says_or_not_at_all() {
    let digest = Digest::of(b"m");
    let file = |bytes| ModelRef { digest, bytes };
    let plain = job(NONE);
    let sent = job_sent("models = { kind = \"bf16\" }\ndeltas = true");
    let values = sent.layout().len() as u64;
    let delta = |bytes| Some(OfferedDelta { base: digest, file: file(bytes) });
    let of = |job: &Arc<Job>, model: OfferedModel| Offer::of_job(key("j", 1, 1), job.clone(), model, None);
    let good =
        OfferedModel { whole: file(40 + 2 * values), version: Some(digest), delta: None, frozen: None };
    assert_eq!(of(&sent, good).unwrap().model(), good);
    assert!(of(&sent, OfferedModel { delta: delta(40 + values), ..good }).is_ok());
    for (job, bad) in [
        (&sent, OfferedModel { version: None, ..good }),
        (&sent, OfferedModel { whole: file(40 + 2 * values + 1), ..good }),
        (&sent, OfferedModel { delta: delta(1 << 40), ..good }),
        (&plain, OfferedModel { whole: file(plain.update_bytes() + 100), ..good }),
        (
            &plain,
            OfferedModel { version: None, delta: delta(41), whole: file(plain.update_bytes() + 100), ..good },
        ),
        (&sent, OfferedModel { frozen: Some(OfferedFrozen { digest, file: file(40) }), ..good }),
    ] {
        let e = of(job, bad).unwrap_err();
        assert!(matches!(e, UnreadableOffer::Transport(_)), "{bad:?}: {e}");
    }
}

/// A job that trains a part offers it with what stands still beside it, or the file.
#[test]
fn a_part_comes_with_what_is_not_trained() {
    let digest = Digest::of(b"m");
    let file = |bytes| ModelRef { digest, bytes };
    let of = |job: &Arc<Job>, model: OfferedModel| Offer::of_job(key("j", 1, 1), job.clone(), model, None);
    let frozen = |bytes| Some(OfferedFrozen { digest, file: file(bytes) });
    for (transport, bytes_a_value) in [("", 4), ("models = { kind = \"bf16\" }", 2)] {
        let job = job_of_part("*bias", transport);
        let (trained, rest) = (job.part().len() as u64, job.part().frozen_len() as u64);
        assert!(trained > 0 && rest > 0);
        let whole = file(40 + bytes_a_value * trained);
        let good = OfferedModel { whole, version: Some(digest), delta: None, frozen: frozen(40 + 4 * rest) };
        assert_eq!(of(&job, good).unwrap().model(), good);
        let as_file = OfferedModel::from(file(4 * job.layout().len() as u64 + 100));
        assert_eq!(of(&job, as_file).is_ok(), transport.is_empty(), "{transport}");
        for bad in [
            OfferedModel { frozen: None, ..good },
            OfferedModel { frozen: frozen(39 + 4 * rest), ..good },
            OfferedModel { whole: file(40 + bytes_a_value * (trained + rest)), ..good },
            OfferedModel { version: None, ..good },
        ] {
            let e = of(&job, bad).unwrap_err();
            assert!(matches!(e, UnreadableOffer::Transport(_)), "{bad:?}: {e}");
        }
    }
}

#[test]
fn a_study_samples_differently_in_each_attempt_and_the_same_each_time() {
    let seeds = |seed| {
        let policy = Policy { sampling_seed: Some(seed), ..policy() };
        [("a", 1, 1), ("b", 1, 1), ("a", 1, 2), ("a", 2, 1)].map(|(name, round, attempt)| {
            let offer = offer(key(name, round, attempt), &job(RECORD));
            match consider(&offer, None, &policy, Ok(&fit())).verdict {
                Verdict::Accept(a) => a.task().sampling_seed.unwrap(),
                Verdict::Decline(r) => panic!("{r:?}"),
            }
        })
    };
    let [a, b, attempt, round] = seeds(7);
    assert_eq!(a, b);
    assert!(a != attempt && a != round && attempt != round);
    assert_eq!(seeds(7), [a, b, attempt, round]);
    assert_ne!(seeds(8)[0], a);
}
