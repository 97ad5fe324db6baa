//! One bad client costs one client: the round goes on, and both sides read why.

use crate::job;
use std::time::Duration;
use tonic::Code;
use undertone::v1::{Chunk, UploadHeader, client_message, upload_message};
use undertone_core::digest::Digest;
use undertone_core::id::ClientRole;
use undertone_core::trainer::TrainerError;
use undertone_harness::{Deployment, FnTrainer, RawClient, SAMPLE_JOB, receipt};
use undertone_round::event::Outcome;

/// A deployment with one honest client and one that the test speaks for, both asked in round 1.
async fn with_bad_client(job: &str) -> (Deployment, String, RawClient, undertone::v1::Offer) {
    beside(FnTrainer::constant(1.0), job).await
}

/// The same, beside an honest client that trains like this.
async fn beside(honest: FnTrainer, job: &str) -> (Deployment, String, RawClient, undertone::v1::Offer) {
    let mut d = Deployment::start().await;
    d.trainer("honest", honest).await;
    let mut bad = d.raw("bad", ClientRole::Trainer).await;
    bad.hello(1, 1).await.unwrap();
    d.wait_connected(2).await;
    let id = d.operator().await.submit(job).await.unwrap();
    let offer = bad.offer().await;
    (d, id, bad, offer)
}

fn one_round() -> String {
    job("rounds = 2", "rounds = 1")
}

/// The job completes on the honest update alone, and its log has the sentence.
async fn the_round_went_on(d: &Deployment, id: &str, sentence: &str) {
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(events.text().contains(sentence), "no \"{sentence}\" in {}", events.text());
    assert_eq!(operator.model(id).await, [1.0, 1.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_the_wrong_shape() {
    let (d, id, mut bad, offer) = with_bad_client(&one_round()).await;
    let refused = bad.upload(&offer.attempt.unwrap(), &[1, 2, 3], 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("12 bytes does not fit the model: 2 values are 8 bytes"), "{refused}");
    the_round_went_on(&d, &id, "does not fit the model").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_goes_on_beyond_the_model() {
    let (d, id, mut bad, offer) = with_bad_client(&one_round()).await;
    let header = UploadHeader {
        attempt: offer.attempt,
        update: Some(undertone::v1::BlobRef::new(Digest::of(&[0; 8]), 8)),
        weight: 1,
        within_clip_norm: None,
        number: None,
    };
    let chunk = |offset, len| upload_message::Kind::Chunk(Chunk { offset, data: vec![0; len].into() });
    let messages = vec![upload_message::Kind::Header(header), chunk(0, 8), chunk(8, 4)];
    let refused = bad.upload_messages(messages).await.unwrap_err();
    assert!(refused.message().contains("longer than it was announced: more than 8 bytes"), "{refused}");
    the_round_went_on(&d, &id, "longer than it was announced").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_is_too_large() {
    let (d, id, mut bad, offer) = with_bad_client(&one_round()).await;
    // 2000 on a grid of 2^-16; the job allows a norm of 1000.
    let refused = bad.upload(&offer.attempt.unwrap(), &[2000 << 16, 0], 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    the_round_went_on(&d, &id, "norm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_beyond_the_wire_format() {
    let (d, id, mut bad, offer) = with_bad_client(&one_round()).await;
    let refused = bad.upload(&offer.attempt.unwrap(), &[0, i32::MIN], 1).await.unwrap_err();
    assert!(refused.message().contains("value 1 is -32768, out of range"), "{refused}");
    the_round_went_on(&d, &id, "out of range").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weight_that_was_not_agreed() {
    let (d, id, mut bad, offer) = with_bad_client(&one_round()).await;
    let refused = bad.upload(&offer.attempt.unwrap(), &[1 << 20, 1 << 20], 1_000_000).await.unwrap_err();
    assert!(refused.message().contains("weight 1000000"), "{refused}");
    the_round_went_on(&d, &id, "weight 1000000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_gappy_upload_can_be_sent_again() {
    let (d, id, mut bad, offer) = with_bad_client(&one_round()).await;
    let attempt = offer.attempt.unwrap();
    let bytes: Vec<u8> = [1i32 << 16, 1 << 16].iter().flat_map(|u| u.to_le_bytes()).collect();
    let header = |digest| {
        upload_message::Kind::Header(UploadHeader {
            attempt: Some(attempt.clone()),
            update: Some(undertone::v1::BlobRef::new(digest, 8)),
            weight: 1,
            within_clip_norm: None,
            number: None,
        })
    };
    let chunk =
        |offset, data: &[u8]| upload_message::Kind::Chunk(Chunk { offset, data: data.to_vec().into() });
    let damaged = vec![header(Digest::of(b"other")), chunk(0, &bytes)];
    let e = bad.upload_messages(damaged).await.unwrap_err();
    assert!(e.message().contains("damaged"), "{e}");
    let gappy = vec![header(Digest::of(&bytes)), chunk(0, &bytes[..4]), chunk(5, &bytes[5..])];
    assert_eq!(bad.upload_messages(gappy).await.unwrap_err().code(), Code::InvalidArgument);
    // What came before the gap is kept.
    let short = vec![header(Digest::of(&bytes)), chunk(4, &bytes[4..6])];
    let e = bad.upload_messages(short).await.unwrap_err();
    assert!(e.message().contains("broke off after 6 of 8"), "{e}");
    // Cut anywhere, whole in the end; and once more is as good as once.
    let rest = vec![header(Digest::of(&bytes)), chunk(6, &bytes[6..7]), chunk(7, &bytes[7..])];
    let receipt = bad.upload_messages(rest).await.unwrap();
    assert!(!receipt.counted_already);
    let receipt = bad.upload_messages(vec![header(Digest::of(&bytes))]).await.unwrap();
    assert!(receipt.counted_already);
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(operator.model(&id).await, [1.0, 1.0], "{}", events.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_with_half_an_upload_sent_leaves_no_half_update() {
    for comes_back in [true, false] {
        let text =
            if comes_back { job("reconnect = \"2s\"", "reconnect = \"20s\"") } else { SAMPLE_JOB.into() };
        let mut d = Deployment::start().await;
        d.trainer("honest", FnTrainer::constant(1.0)).await;
        let config = d.enrol("bad", ClientRole::Trainer).await;
        let mut bad = RawClient::connect(&config).await;
        bad.hello(1, 1).await.unwrap();
        d.wait_connected(2).await;
        let text = text.replace("rounds = 2", "rounds = 1");
        let id = d.operator().await.submit(&text).await.unwrap();
        let attempt = bad.offer().await.attempt.unwrap();
        let upload = bad.upload_half(&attempt, &[3 << 16, 3 << 16]).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!upload.is_finished(), "the upload is under way");
        upload.abort();
        drop(bad);
        if !comes_back {
            the_round_went_on(&d, &id, "did not come back in time").await;
            continue;
        }
        d.wait_connected(1).await;
        let mut back = RawClient::connect(&config).await;
        back.hello(1, 1).await.unwrap();
        let again = back.offer().await.attempt.unwrap();
        assert_eq!(again, attempt, "the same attempt goes on");
        let bytes: Vec<u8> = [3i32 << 16; 2].iter().flat_map(|u| u.to_le_bytes()).collect();
        let header = UploadHeader {
            attempt: Some(again),
            update: Some(undertone::v1::BlobRef::new(Digest::of(&bytes), 8)),
            weight: 1,
            ..UploadHeader::default()
        };
        let (from, _) = back.upload_when_told(header, &bytes).await.unwrap();
        assert_eq!(from, 4, "the half that came is not sent again");
        let mut operator = d.operator().await;
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
        assert_eq!(operator.model(&id).await, [2.0, 2.0], "the mean of 1 and 3");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_stands_still_is_cut() {
    let (d, id, mut bad, offer) =
        with_bad_client(&job("rounds = 2", "rounds = 1").replace("reconnect = \"2s\"", "reconnect = \"1s\""))
            .await;
    let (tx, rx) = tokio::sync::mpsc::channel(4);
    let header = UploadHeader {
        attempt: offer.attempt.clone(),
        update: Some(undertone::v1::BlobRef::new(Digest::of(b""), 8)),
        weight: 1,
        within_clip_norm: None,
        number: None,
    };
    tx.send(undertone::v1::UploadMessage { kind: Some(upload_message::Kind::Header(header)) }).await.unwrap();
    let stalled =
        receipt(&mut bad.client, tokio_stream::wrappers::ReceiverStream::new(rx)).await.unwrap_err();
    assert!(stalled.message().contains("stood still"), "{stalled}");
    drop((tx, bad));
    the_round_went_on(&d, &id, "did not come back in time").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_for_other_attempts_jobs_or_people_are_refused() {
    // The attempt is open as long as the honest one trains.
    let (d, id, mut bad, offer) = beside(FnTrainer::slow(Duration::from_secs(2)), &one_round()).await;
    let attempt = offer.attempt.unwrap();
    let units = [1 << 16, 1 << 16];
    for (change, words) in [
        (undertone::v1::AttemptRef { round: 7, ..attempt.clone() }, "is over"),
        (undertone::v1::AttemptRef { job: "nothing-1".into(), ..attempt.clone() }, "there is no job"),
        (undertone::v1::AttemptRef { job: "../x".into(), ..attempt.clone() }, "not a valid job name"),
        (undertone::v1::AttemptRef { round: 0, ..attempt.clone() }, "counted from 1"),
    ] {
        let e = bad.upload(&change, &units, 1).await.unwrap_err();
        assert!(e.message().contains(words), "{e}");
    }
    let mut evaluator = d.raw("e", ClientRole::Evaluator).await;
    assert_eq!(evaluator.upload(&attempt, &units, 1).await.unwrap_err().code(), Code::PermissionDenied);
    let mut late = d.raw("late", ClientRole::Trainer).await;
    assert!(late.upload(&attempt, &units, 1).await.unwrap_err().message().contains("was not asked"));
    bad.upload(&attempt, &units, 1).await.unwrap();
    let other = bad.upload(&attempt, &[5, 5], 1).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition, "{other}");
    assert_eq!(*d.operator().await.watch_to_end(&id).await.outcome(), Outcome::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_with_another_weight_do_not_harm_the_update_that_counts() {
    let text = one_round().replace("[cohort]", "[aggregation]\nweights = \"declared_rows\"\n\n[cohort]");
    let mut d = Deployment::start().await;
    d.trainer("honest", FnTrainer::slow(Duration::from_secs(1))).await;
    let mut bad = d.raw("bad", ClientRole::Trainer).await;
    bad.hello(1, 1).await.unwrap();
    d.wait_connected(2).await;
    let id = d.operator().await.submit(&text).await.unwrap();
    let attempt = bad.offer().await.attempt.unwrap();
    bad.upload(&attempt, &[3 << 16, 3 << 16], 100).await.unwrap();
    for weight in [1, 2, 99] {
        let e = bad.upload(&attempt, &[3 << 16, 3 << 16], weight).await.unwrap_err();
        assert_eq!(e.code(), Code::FailedPrecondition, "{e}");
    }
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(!events.text().contains("aborted"), "{}", events.text());
    assert_eq!(operator.model(&id).await, [2.0, 2.0], "100 times 3 and 100 times 1");
}

/// The client had accepted and then said that it cannot deliver.
const LOST: &str = "\"kind\":\"lost\",\"round\":1,\"client\":\"bad\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_that_diverges_or_breaks_sends_nothing() {
    for (trainer, sentence) in [
        (FnTrainer::constant(f32::NAN), LOST),
        (FnTrainer::constant(f32::INFINITY), LOST),
        (FnTrainer::constant(2000.0), LOST),
        (FnTrainer::new(|_, _| Ok(vec![1.0; 5])), LOST),
        (FnTrainer::failing(TrainerError::Broken("the process died".into())), LOST),
        (FnTrainer::constant(1.0).unfit("row 7: age is 400"), "data contract"),
    ] {
        let mut d = Deployment::start().await;
        d.trainer("honest", FnTrainer::constant(1.0)).await;
        d.trainer("bad", trainer).await;
        d.wait_connected(2).await;
        let id = d.operator().await.submit(&one_round()).await.unwrap();
        the_round_went_on(&d, &id, sentence).await;
        let text = d.operator().await.watch_to_end(&id).await.text();
        assert!(!text.contains("age is 400"), "a value of the data left the client: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_minimum_the_job_ends_with_the_reason() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::failing(TrainerError::Broken("no torch".into()))).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(SAMPLE_JOB).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    let Outcome::Failed { reason } = events.outcome() else { panic!("{}", events.text()) };
    assert!(reason.contains("failed 3 times") && reason.contains("1 needed"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_vanishes_in_mid_round_is_waited_for_and_then_not() {
    let mut d = Deployment::start().await;
    d.trainer("honest", FnTrainer::constant(1.0)).await;
    let slow = d.trainer("slow", FnTrainer::slow(Duration::from_secs(4))).await;
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&one_round()).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, undertone_round::event::JobEvent::Received { .. })).await;
    drop(d.take(slow));
    the_round_went_on(&d, &id, "did not come back in time").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decline_is_recorded_with_its_reason() {
    let (d, id, bad, offer) = with_bad_client(&one_round()).await;
    let answer = undertone::v1::Answer {
        attempt: offer.attempt,
        accepts: false,
        reason: "epsilon 9 is above our limit of 2".into(),
    };
    bad.say(client_message::Kind::Answer(answer)).await;
    the_round_went_on(&d, &id, "epsilon 9 is above our limit of 2").await;
}
