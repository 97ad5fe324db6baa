//! From the stored update to its receipt.

use super::*;

#[test]
fn a_stored_update_is_sent_again_and_never_made_again() {
    let (job, k) = (job(RECORD), key("j", 1, 1));
    let account = Account::charge(None, &k, job.digest(), None).unwrap().with_sealed(sealed("first"));
    // After a restart, with or without being asked.
    let mut p = Participant::new(policy(), [account.clone()]);
    let out = expect(p.step(Input::SessionUp), &["upload j/1/1 try 0"]);
    let Effect::Upload { sealed: s, .. } = &out[0] else { unreachable!() };
    assert_eq!(*s, sealed("first"));
    expect(p.step(offered(&k, &job)), &["accept j/1/1"]);
    let mut p = Participant::new(policy(), [account]);
    expect(p.step(offered(&k, &job)), &["accept j/1/1", "upload j/1/1 try 0"]);
    expect(p.step(Input::Uploaded(k.clone())), &["discard j/1/1"]);
    // Delivered: the attempt gets nothing more.
    let out = expect(p.step(offered(&k, &job)), &["record no", "decline j/1/1"]);
    assert!(told(&out).contains("already"));
}

/// Whether the update in the outbox went back to what waits to be sent.
fn taken_back(effects: &[Effect]) -> bool {
    let delivered = effects.iter().find_map(|e| match e {
        Effect::Discard { delivered, .. } => Some(*delivered),
        _ => None,
    });
    !delivered.expect("the outbox is emptied")
}

/// The receipt may be what was lost: only the coordinator's word takes an update back, and the newer offer waits for it.
#[test]
fn an_update_without_a_receipt_is_settled_before_a_newer_offer() {
    let (job, k) = (job(RECORD), key("j", 3, 1));
    let answers: [(Input, bool); 4] = [
        (Input::Uploaded(k.clone()), false),
        (Input::Failed(k.clone(), Failure::Closed("is over".into())), true),
        // Nobody can tell: lost perhaps, but not sent twice.
        (Input::Failed(k.clone(), last("x")), false),
        (Input::Withdrawn(k.clone()), true),
    ];
    for (answer, back) in answers {
        let withdrawn = matches!(answer, Input::Withdrawn(_));
        // Still on its way when the offer comes.
        let mut p = client();
        At::uploading(&mut p, &k, &job);
        expect(p.step(offered(&key("j", 4, 1), &job)), &["abandon j/3/1", "settle j/3/1 try 0"]);
        // A newer one still takes the place of the one that waits; older ones and the settled one are declined.
        expect(p.step(offered(&key("j", 4, 2), &job)), &[]);
        expect(p.step(offered(&key("j", 2, 9), &job)), &["record no", "decline j/2/9"]);
        expect(p.step(offered(&k, &job)), &["record no", "decline j/3/1"]);
        expect(p.step(Input::Failed(k.clone(), transient())), &["settle j/3/1 try 1"]);
        let out = p.step(answer.clone());
        let words = words(&out);
        let words: Vec<_> = words.iter().skip(usize::from(withdrawn)).map(String::as_str).collect();
        assert_eq!((words, taken_back(&out)), (vec!["discard j/3/1", "inspect j/4/2"], back));
        // After a restart, whichever comes first, the session or the offer.
        let account = Account::charge(None, &k, job.digest(), None).unwrap().with_sealed(sealed("u"));
        let mut p = Participant::new(policy(), [account]);
        expect(p.step(offered(&key("j", 4, 1), &job)), &["settle j/3/1 try 0"]);
        expect(p.step(Input::SessionUp), &[]);
        let out = p.step(answer);
        assert_eq!(taken_back(&out), back);
        assert_eq!(p.in_hand(), Some(&key("j", 4, 1)));
    }
}

#[test]
fn a_coordinator_that_never_answers_the_question_holds_nobody_up() {
    let (job, k) = (job(RECORD), key("j", 3, 1));
    let mut p = client();
    At::uploading(&mut p, &k, &job);
    p.step(offered(&key("j", 4, 1), &job));
    for tries in 1..5 {
        expect(p.step(Input::Failed(k.clone(), transient())), &[&format!("settle j/3/1 try {tries}")]);
    }
    let out = expect(p.step(Input::Failed(k, transient())), &["discard j/3/1", "inspect j/4/1"]);
    assert!(!taken_back(&out));
}

#[test]
fn an_offer_that_is_declined_leaves_the_update_before_it_to_be_sent() {
    let (job, k) = (job(RECORD), key("j", 3, 1));
    let account = Account::charge(None, &k, job.digest(), None).unwrap().with_sealed(sealed("u"));
    let mut p = Participant::new(policy(), [account]);
    let out = p.step(offered(&key("j", 4, 1), &self::job(CLIENT)));
    expect(out, &["record no", "decline j/4/1", "upload j/3/1 try 0"]);
}

#[test]
fn an_upload_is_tried_again_a_few_times_and_then_kept() {
    let (mut p, job, k) = (client(), job(RECORD), key("j", 1, 1));
    At::uploading(&mut p, &k, &job);
    for n in 1..5 {
        let again = format!("upload j/1/1 try {n}");
        expect(p.step(Input::Failed(k.clone(), transient())), &[&again]);
    }
    expect(p.step(Input::Failed(k.clone(), transient())), &[]);
    assert!(p.is_idle());
    expect(p.step(Input::SessionUp), &["upload j/1/1 try 0"]);
    // The coordinator says that the attempt is over: nobody is told.
    expect(p.step(Input::Failed(k.clone(), Failure::Closed("over".into()))), &["discard j/1/1"]);
    expect(p.step(Input::SessionUp), &[]);
}

#[test]
fn a_refused_update_is_dropped_and_told() {
    let (mut p, job, k) = (client(), job(RECORD), key("j", 1, 1));
    At::uploading(&mut p, &k, &job);
    let out = p.step(Input::Failed(k.clone(), last("too long")));
    assert_eq!(told(&expect(out, &["discard j/1/1", "fail j/1/1"])), "too long");
    expect(p.step(offered(&k, &job)), &["record no", "decline j/1/1"]);
}

#[test]
fn an_attempt_whose_steps_failed_before_the_outbox_may_be_tried_again() {
    let (mut p, job, k) = (client(), job(RECORD), key("j", 1, 1));
    At::fetching(&mut p, &k, &job);
    expect(p.step(Input::Failed(k.clone(), last("x"))), &["fail j/1/1"]);
    At::training(&mut p, &k, &job);
    expect(p.step(Input::Failed(k.clone(), last("x"))), &["fail j/1/1"]);
    // Failing to store may have left something behind: counted, and over.
    At::storing(&mut p, &k, &job);
    expect(p.step(Input::Failed(k.clone(), last("disk full"))), &["fail j/1/1"]);
    expect(p.step(offered(&k, &job)), &["record no", "decline j/1/1"]);
    At::delivered(&mut p, &key("j", 1, 2), &job);
}
