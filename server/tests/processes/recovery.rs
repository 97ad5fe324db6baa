//! How long a coordinator takes to serve again after it was killed in the middle of a large round.
//!
//! `cargo test --workspace --test processes -- --ignored recovery_ --nocapture`

use std::time::{Duration, Instant};
use undertone::v1::{Answer, GetJobRequest, client_message};
use undertone_harness::{Operator, Processes, SAMPLE_JOB};

/// Updates that are there when it is killed; one more client has not delivered.
const SPOOLED: usize = 32;

/// From the start of the process to the first answer to an operator.
async fn serves_after(d: &mut Processes, id: Option<&str>) -> Duration {
    let profile = d.path().join("deployment/operator");
    let begun = Instant::now();
    d.start_server();
    loop {
        if let Ok(mut operator) = Operator::try_connect(d.url(), &profile).await {
            match id {
                None => return begun.elapsed(),
                Some(id) => {
                    if operator.client.get_job(GetJobRequest { job: id.into() }).await.is_ok() {
                        return begun.elapsed();
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, made by hand: see the top"]
async fn recovery_with_a_large_round_in_the_spool() {
    let mut d = Processes::start();
    d.server().kill();
    let mut empty = vec![];
    for _ in 0..5 {
        empty.push(serves_after(&mut d, None).await);
        d.server().kill();
    }
    d.start_server();
    // A perceptron of 25 million values.
    let job = SAMPLE_JOB
        .replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [5000, 5000]")
        .replace("size = 2", &format!("size = {}", SPOOLED + 1))
        .replace("min_clients = 1", &format!("min_clients = {}", SPOOLED + 1))
        .replace("round = \"30s\"", "round = \"3600s\"")
        .replace("reconnect = \"2s\"", "reconnect = \"3600s\"")
        .replace("gather = \"20s\"", "gather = \"3600s\"")
        .replace("transfer_idle = \"2s\"", "transfer_idle = \"60s\"");
    let mut clients = vec![];
    for n in 0..=SPOOLED {
        let mut raw = d.raw(&format!("c{n}")).await;
        raw.hello(1, 1).await.unwrap();
        clients.push(raw);
    }
    let mut operator = d.operator().await;
    let id = operator.submit(&job).await.unwrap();
    let values = (5000 + 5000) + (5000 * 5000 + 5000) + (5000 + 1);
    let units = vec![1i32; values];
    let begun = Instant::now();
    for raw in clients.iter_mut().take(SPOOLED) {
        let attempt = raw.offer().await.attempt.unwrap();
        let yes = Answer { attempt: Some(attempt.clone()), accepts: true, ..Answer::default() };
        raw.say(client_message::Kind::Answer(yes)).await;
        raw.upload(&attempt, &units, 1).await.unwrap();
    }
    println!("{SPOOLED} updates of {values} values were sent in {:.1} s", begun.elapsed().as_secs_f64());
    drop(operator);
    let mut times = vec![];
    for _ in 0..5 {
        d.server().kill();
        times.push(serves_after(&mut d, Some(&id)).await);
    }
    let state = d.operator().await.detail(&id).await;
    let received = state.state.matches("\"received\"").count();
    println!("the job goes on in its round: {} ({received} updates named)", state.summary.unwrap().status);
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    println!(
        "start to first answer, medians of 5: {:.2} s with the round, {:.2} s empty",
        median(times),
        median(empty)
    );
}
