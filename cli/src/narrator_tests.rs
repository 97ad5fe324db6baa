use super::*;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, ClientId};

fn client(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

fn released(round: u32, clients: u32, epsilon: Option<f64>) -> JobEvent {
    JobEvent::Released {
        round: Round(round),
        attempt: Attempt(1),
        model: Digest::of(b"model"),
        clients,
        asked: 4,
        epsilon,
        received_bytes: Some(124),
        sent_bytes: Some(900),
    }
}

fn evaluated(round: u32, evaluator: &str) -> JobEvent {
    JobEvent::Evaluated {
        round: Round(round),
        evaluator: client(evaluator),
        metrics: Metrics::of_classes(0.5, 0.78261, 184),
    }
}

fn offered(round: u32, attempt: u32) -> JobEvent {
    JobEvent::Offered {
        round: Round(round),
        attempt: Attempt(attempt),
        cohort: vec![client("a"), client("b")],
        epsilon: Some(1.0),
    }
}

fn story(budget: Option<f64>, events: &[JobEvent]) -> Vec<String> {
    let (mut narrator, now) = (Narrator::new(20, budget, Paint::default()), Instant::now());
    events.iter().flat_map(|e| narrator.tell(e, now)).collect()
}

#[test]
fn a_round_is_one_line() {
    let lines = story(
        Some(10.0),
        &[
            JobEvent::Submitted { by: "ada".into(), job: Digest::of(b"") },
            offered(1, 1),
            JobEvent::Received { round: Round(1), client: client("a"), bytes: 124, staleness: None },
            released(1, 4, Some(0.6123)),
            offered(2, 1),
            evaluated(1, "judge"),
        ],
    );
    assert_eq!(lines, ["round  1/20   4/4 clients   loss 0.5000  accuracy 0.7826   ε 0.612 of 10"]);
}

#[test]
fn trouble_is_told_with_its_reason_and_the_round_goes_on() {
    let lines = story(
        Some(10.0),
        &[
            JobEvent::Waiting { round: Round(1), present: 2, needed: 3 },
            JobEvent::Waiting { round: Round(1), present: 2, needed: 3 },
            offered(1, 1),
            JobEvent::Declined {
                round: Round(1),
                client: client("va"),
                reason: "epsilon 5 is above 3".into(),
            },
            JobEvent::Refused { round: Round(1), client: client("a"), reason: "value 7 is NaN".into() },
            JobEvent::Lost { round: Round(1), client: client("b"), reason: "gone\x1b[2J".into() },
            JobEvent::Aborted { round: Round(1), attempt: Attempt(1), reason: "1 of 3 updates".into() },
            offered(1, 2),
            released(1, 3, Some(1.2)),
            JobEvent::NotEvaluated { round: Round(1), evaluator: client("judge"), reason: "no file".into() },
        ],
    );
    assert_eq!(
        lines,
        [
            "round 1 waits: 2 of 3 trainers are connected",
            "    round 1: va declined: epsilon 5 is above 3",
            "    round 1: a refused: value 7 is NaN",
            "    round 1: b lost: gone\\u{1b}[2J",
            "    round 1: attempt 1 aborted: 1 of 3 updates (its privacy budget is spent)",
            "    round 1: attempt 2 with 2 clients",
            "round  1/20   3/4 clients   loss -       accuracy -        ε 1.20 of 10",
            "    round 1: judge could not measure: no file",
        ]
    );
}

#[test]
fn no_round_is_forgotten_none_told_twice_and_all_in_order() {
    let failed =
        JobEvent::NotEvaluated { round: Round(3), evaluator: client("judge"), reason: "disk".into() };
    let lines = story(
        None,
        &[
            released(1, 4, None),
            released(2, 4, None),
            released(3, 4, None),
            evaluated(2, "judge"),
            failed,
            evaluated(2, "second"),
            evaluated(1, "judge"),
            evaluated(1, "second"),
            released(4, 4, None),
            JobEvent::Ended { outcome: Outcome::Completed },
        ],
    );
    assert_eq!(
        lines,
        [
            "round  1/20   4/4 clients   loss 0.5000  accuracy 0.7826",
            "round  2/20   4/4 clients   loss 0.5000  accuracy 0.7826",
            "    round 2: second measured loss 0.5000, accuracy 0.7826",
            "round  3/20   4/4 clients   loss -       accuracy -",
            "    round 3: judge could not measure: disk",
            "    round 1: second measured loss 0.5000, accuracy 0.7826",
            "round  4/20   4/4 clients   loss -       accuracy -",
            "completed: all rounds are released",
        ]
    );
}

#[test]
fn patience_has_an_end() {
    let (mut narrator, start) = (Narrator::new(20, None, Paint::default()), Instant::now());
    assert!(narrator.tell(&released(1, 4, None), start).is_empty());
    assert!(narrator.ripe(start + PATIENCE / 2).is_empty());
    let told = narrator.ripe(start + PATIENCE);
    assert_eq!(told, ["round  1/20   4/4 clients   loss -       accuracy -"]);
    let late = narrator.tell(&evaluated(1, "judge"), start + PATIENCE);
    assert_eq!(late, ["    round 1: judge measured loss 0.5000, accuracy 0.7826"]);
    assert!(narrator.ripe(start + 2 * PATIENCE).is_empty());
}

#[test]
fn every_ending_gives_its_reason() {
    let ending = |outcome| story(None, &[JobEvent::Ended { outcome }]).remove(0);
    assert_eq!(ending(Outcome::BudgetSpent { reason: "ε 10.2 > 10".into() }), "budget spent: ε 10.2 > 10");
    assert_eq!(
        ending(Outcome::Cancelled { by: "ada".into(), reason: "wrong data".into() }),
        "cancelled by ada: wrong data"
    );
    assert_eq!(ending(Outcome::Failed { reason: "nobody came".into() }), "failed: nobody came");
}

#[test]
fn many_bytes_are_told_and_few_are_not() {
    let heavy = |received_bytes, sent_bytes| match released(1, 4, None) {
        JobEvent::Released { round, attempt, model, clients, asked, epsilon, .. } => {
            JobEvent::Released { round, attempt, model, clients, asked, epsilon, received_bytes, sent_bytes }
        }
        other => other,
    };
    let line = |event| story(None, &[event, evaluated(1, "judge")]).remove(0);
    assert_eq!(
        line(heavy(Some(12 << 20), Some(900))),
        "round  1/20   4/4 clients   loss 0.5000  accuracy 0.7826   12.0 MiB in, 900 bytes out"
    );
    for (received, sent) in [(Some(1000), Some(1000)), (None, None)] {
        assert!(line(heavy(received, sent)).ends_with("accuracy 0.7826"));
    }
}
