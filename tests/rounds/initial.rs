//! Jobs that begin with a file that an operator hands in.

use undertone::{ApiError, Fault, v1};
use undertone_core::digest::Digest;
use undertone_harness::{Deployment, FnTrainer, Operator, SAMPLE_JOB};
use undertone_round::event::Outcome;
use undertone_round::job::JobSpec;

pub(crate) fn reference(bytes: &[u8]) -> v1::BlobRef {
    v1::BlobRef::new(Digest::of(bytes), bytes.len() as u64)
}

/// Sends `bytes` as what `reference` speaks of, from `offset` on.
pub(crate) async fn hand_in(
    operator: &mut Operator,
    reference: v1::BlobRef,
    bytes: &[u8],
    offset: usize,
) -> Result<v1::FileProgress, ApiError> {
    use v1::file_message::Kind;
    let header = v1::FileHeader { file: Some(reference), offset: offset as u64 };
    let mut messages = vec![Kind::Header(header)];
    for (i, data) in bytes[offset..].chunks(7).enumerate() {
        let offset = (offset + 7 * i) as u64;
        messages.push(Kind::Chunk(v1::Chunk { offset, data: data.to_vec().into() }));
    }
    let messages = messages.into_iter().map(|kind| v1::FileMessage { kind: Some(kind) });
    Ok(operator.client.upload_file(tokio_stream::iter(messages)).await?.into_inner())
}

fn beginning_with(bytes: &[u8]) -> String {
    let initial = format!("[initial]\ndigest = \"{}\"\nbytes = {}\n", Digest::of(bytes), bytes.len());
    SAMPLE_JOB.replace("[training]", &format!("{initial}\n[training]"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_from_the_values_of_a_file() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::constant(0.5)).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let layout = JobSpec::from_toml(SAMPLE_JOB, "job.toml").unwrap().resolve().unwrap().layout().clone();
    let file = layout.to_safetensors(&[3.0, -2.0], Default::default());

    let e = operator.submit(&beginning_with(&file)).await.unwrap_err();
    assert!(e.fault == Fault::BadRequest && e.message.contains("undertone job submit"), "{e}");

    // It breaks off, and goes on where it was.
    let e = hand_in(&mut operator, reference(&file), &file[..file.len() - 3], 0).await.unwrap_err();
    assert!(e.fault == Fault::Unavailable && e.message.contains("broke off"), "{e}");
    let here = operator.client.resume_file(reference(&file)).await.unwrap().into_inner();
    assert_eq!((here.offset as usize, here.complete), (file.len() - 3, false));
    let e = hand_in(&mut operator, reference(&file), &file, 4).await.unwrap_err();
    assert_eq!(e.fault, Fault::Unavailable, "{e}");
    let here = hand_in(&mut operator, reference(&file), &file, here.offset as usize).await.unwrap();
    assert!(here.complete);
    // A second time nothing is sent.
    assert!(hand_in(&mut operator, reference(&file), &file, file.len()).await.unwrap().complete);

    let id = operator.submit(&beginning_with(&file)).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    // Two rounds of half a step each.
    assert_eq!(operator.model(&id).await, [4.0, -1.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_model_of_the_job_is_refused() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    let layout = JobSpec::from_toml(SAMPLE_JOB, "job.toml").unwrap().resolve().unwrap().layout().clone();
    let good = layout.to_safetensors(&[1.0, 2.0], Default::default());

    let mut other = good.clone();
    *other.last_mut().unwrap() ^= 1;
    let e = hand_in(&mut operator, reference(&good), &other, 0).await.unwrap_err();
    assert!(e.fault == Fault::BadRequest && e.message.contains("digest"), "{e}");
    let here = operator.client.resume_file(reference(&good)).await.unwrap().into_inner();
    assert_eq!((here.offset, here.complete), (0, false));
    let longer = [&good[..], b"x"].concat();
    let e = hand_in(&mut operator, reference(&good), &longer, 0).await.unwrap_err();
    assert_eq!(e.fault, Fault::BadRequest, "{e}");
    let vast = v1::BlobRef::new(Digest::of(b""), u64::MAX);
    assert!(operator.client.resume_file(vast).await.is_err());

    let spoilt = layout.to_safetensors(&[1.0, f32::NAN], Default::default());
    let mut misnamed = good.clone();
    let at = misnamed.windows(6).position(|w| w == b"weight").unwrap();
    misnamed[at..at + 6].copy_from_slice(b"waites");
    for (file, reason) in [(spoilt, "value 1 of the file is NaN"), (misnamed, "weight")] {
        hand_in(&mut operator, reference(&file), &file, 0).await.unwrap();
        let e = operator.submit(&beginning_with(&file)).await.unwrap_err();
        assert!(e.fault == Fault::BadRequest && e.message.contains(reason), "{e}");
    }
    let short = beginning_with(b"short");
    let e = operator.submit(&short).await.unwrap_err();
    assert!(e.message.contains("[initial]") && e.message.contains("holds no model of 2 values"), "{e}");
}
