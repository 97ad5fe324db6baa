use super::*;
use crate::plan::LocalWork;
use crate::trainer::{CheckpointPlace, RecordPrivacy, Trainer};
use proptest::prelude::*;
use std::io::{Cursor, Read};

const CONTRACT: &str = r#"
    label = { column = "y", classes = [{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }] }
    columns = [{ name = "x", kind = "number", range = [0, 1] }]
"#;

fn contract() -> DataContract {
    toml::from_str(CONTRACT).unwrap()
}

fn task() -> TrainTask {
    TrainTask {
        record_privacy: Some(RecordPrivacy {
            clip_norm: 1.0,
            noise_multiplier: 1.1,
            sampling_rate: 0.25,
            expected_batch: 62.5,
            mechanism: Default::default(),
        }),
        sampling_seed: Some(u64::MAX),
        checkpoint: Some(CheckpointPlace {
            path: "checkpoints/heart".into(),
            attempt: "heart/1/1".into(),
            every_s: 30,
        }),
        ..TrainTask::new(
            ModelSpec::Logistic {},
            contract(),
            TrainPlan { momentum: 0.9, ..TrainPlan::sgd(0.1, LocalWork::Steps(2)) },
        )
    }
}

fn frame<T: Serialize>(message: &T, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, message, values).unwrap();
    bytes
}

/// A stream that gives at most `step` bytes a call, as a pipe may.
struct Dripping<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Dripping<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let n = self.step.min(to.len()).min(self.bytes.len());
        to[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes = &self.bytes[n..];
        Ok(n)
    }
}

#[test]
fn the_bytes_of_a_frame_are_as_documented() {
    let bytes = frame(&Request::Hello { version: 1 }, &[1.0, -2.0]);
    let header = br#"{"hello":{"version":1}}"#;
    let mut wanted = vec![header.len() as u8, 0, 0, 0];
    wanted.extend_from_slice(header);
    wanted.extend_from_slice(&[8, 0, 0, 0, 0, 0, 0, 0]);
    wanted.extend_from_slice(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
    assert_eq!(bytes, wanted);
}

#[test]
fn every_message_survives() {
    let metrics = crate::trainer::Metrics::of_classes(0.1 + 0.2, 1.0 / 3.0, 9);
    let baseline = BaselineTask {
        model: ModelSpec::Logistic {},
        data: contract(),
        plan: task().plan,
        rounds: 20,
        seed: None,
        train: vec!["a.csv".into(), "b.csv".into()],
        test: DataFiles::pictures("test", "labels"),
    };
    for request in [
        Request::Hello { version: 7 },
        Request::Inspect { data: contract() },
        Request::Train { task: task() },
        Request::Evaluate { task: task().evaluation() },
        Request::Baseline { task: baseline },
        Request::Quit,
    ] {
        let bytes = frame(&request, &[f32::NAN, 0.5]);
        let (got, values) = read_frame::<Request>(&mut &bytes[..], 2).unwrap().unwrap();
        assert_eq!(got, request);
        assert!(values[0].is_nan() && values[1] == 0.5);
    }
    let report =
        DataReport { rows: 1, class_rows: vec![1, 0], problems: vec!["x".into()], ..DataReport::default() };
    for response in [
        Response::Hello { version: 1, device: "cpu".into(), libtorch: "2.11.0".into(), why_no_cuda: None },
        Response::Report(report),
        Response::Trained { steps: 3, first_loss: Some(0.7) },
        Response::Metrics(metrics),
        Response::Metrics(Metrics { accuracy: None, mean_absolute_error: Some(12.5), ..metrics }),
        Response::BoundedSums(BoundedSums { right: None, ..SUMS }),
        Response::Baseline { metrics, rows: 700, steps: 40 },
        Response::Progress(crate::trainer::Progress { step: 3, steps: 40 }),
        Response::Failed(TrainerError::Data("no such file".into())),
        Response::Failed(TrainerError::Broken("dead".into())),
        Response::Failed(TrainerError::Diverged { step: 3, of: 9, what: "the loss is NaN".into() }),
        Response::Failed(TrainerError::Paused("on battery".into())),
        Response::Failed(TrainerError::Program {
            fault: crate::trainer::ProgramFault::Time,
            detail: "an hour".into(),
        }),
    ] {
        let bytes = frame(&response, &[]);
        assert_eq!(read_frame::<Response>(&mut &bytes[..], 0).unwrap(), Some((response, vec![])));
    }
}

#[test]
fn an_end_between_frames_is_no_error_and_any_other_is() {
    let bytes = frame(&Request::Inspect { data: contract() }, &[1.0; 5]);
    assert!(read_frame::<Request>(&mut &b""[..], 9).unwrap().is_none());
    for end in 1..bytes.len() {
        let e = read_frame::<Request>(&mut &bytes[..end], 9).unwrap_err();
        assert!(matches!(e, ProtocolError::Truncated), "{end}: {e}");
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_anything_is_read() {
    let mut long = (MAX_HEADER_BYTES + 1).to_le_bytes().to_vec();
    long.push(b'{');
    let e = read_frame::<Request>(&mut &long[..], 0).unwrap_err();
    assert!(matches!(e, ProtocolError::HeaderTooLong { .. }), "{e}");

    let bytes = frame(&Request::Quit, &[1.0; 5]);
    let e = read_frame::<Request>(&mut &bytes[..], 4).unwrap_err();
    assert!(matches!(e, ProtocolError::PayloadTooLong { bytes: 20, limit: 16 }), "{e}");

    let mut ragged = frame(&Request::Quit, &[]);
    let at = ragged.len() - 8;
    ragged[at] = 3;
    ragged.extend([0; 3]);
    let e = read_frame::<Request>(&mut &ragged[..], 4).unwrap_err();
    assert!(matches!(e, ProtocolError::NotWholeValues(3)), "{e}");

    // Ten gigabytes announced and none sent: an end, not an allocation.
    let mut empty = frame(&Request::Quit, &[]);
    empty.truncate(at);
    empty.extend((10u64 << 30).to_le_bytes());
    let e = read_frame::<Request>(&mut &empty[..], crate::limits::MAX_PARAMETERS).unwrap_err();
    assert!(matches!(e, ProtocolError::Truncated), "{e}");
}

#[test]
fn headers_that_are_no_message_are_refused() {
    for header in ["", "{}", "null", r#"{"hello":{"version":1,"more":2}}"#, r#"{"unknown":{}}"#, "\u{0}\u{0}"]
    {
        let mut bytes = (header.len() as u32).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 8]);
        let e = read_frame::<Request>(&mut &bytes[..], 0).unwrap_err();
        assert!(matches!(e, ProtocolError::BadHeader(_)), "{header}: {e}");
    }
}

/// An answer and its payload.
type Answer = (Response, Vec<f32>);

fn answers(responses: &[Answer]) -> Cursor<Vec<u8>> {
    let hello = Response::Hello {
        version: PROTOCOL_VERSION,
        device: "cpu".into(),
        libtorch: "2.11.0".into(),
        why_no_cuda: None,
    };
    let mut bytes = frame(&hello, &[]);
    responses.iter().for_each(|(r, values)| bytes.extend(frame(r, values)));
    Cursor::new(bytes)
}

const SUMS: crate::trainer::BoundedSums =
    crate::trainer::BoundedSums { rows: 4, right: Some(3), loss_units: 900 };

#[test]
fn the_clients_end_asks_and_answers() {
    let refusal = TrainerError::Data("column \"x\" is missing".into());
    let from = answers(&[
        (Response::Trained { steps: 2, first_loss: None }, vec![0.5, -0.5]),
        (Response::Failed(refusal.clone()), vec![]),
        (Response::Metrics(crate::trainer::Metrics::of_classes(0.7, 0.5, 4)), vec![]),
        (Response::BoundedSums(SUMS), vec![]),
    ]);
    let mut to = Vec::new();
    let mut trainer = PipeTrainer::connect(from, &mut to).unwrap();
    assert_eq!(
        trainer.info(),
        &TrainerInfo { device: "cpu".into(), libtorch: "2.11.0".into(), why_no_cuda: None }
    );
    let update = trainer.train(&task(), &[1.0, 2.0]).unwrap();
    assert_eq!((update.delta, update.steps), (vec![0.5, -0.5], 2));
    // Data that is refused does not break the trainer.
    assert_eq!(trainer.inspect(&contract()), Err(refusal));
    assert_eq!(trainer.evaluate(&task().evaluation(), &[1.0, 2.0]).unwrap().rows, 4);
    let bounded = trainer.evaluate_bounded(&task().evaluation(), 0.1, &[1.0, 2.0]);
    assert_eq!(bounded, Ok(SUMS));
    trainer.quit().unwrap();

    let mut sent = &to[..];
    let mut next = || read_frame::<Request>(&mut sent, 2).unwrap();
    assert_eq!(next(), Some((Request::Hello { version: PROTOCOL_VERSION }, vec![])));
    assert_eq!(next(), Some((Request::Train { task: task() }, vec![1.0, 2.0])));
    assert_eq!(next(), Some((Request::Inspect { data: contract() }, vec![])));
    let evaluate = Request::Evaluate { task: task().evaluation() };
    assert_eq!(next(), Some((evaluate, vec![1.0, 2.0])));
    let bounded = Request::EvaluateBounded { task: task().evaluation(), max_loss: 0.1 };
    assert_eq!(next(), Some((bounded, vec![1.0, 2.0])));
    assert_eq!(next(), Some((Request::Quit, vec![])));
    assert_eq!(next(), None);
}

#[test]
fn progress_is_heard_and_is_no_answer() {
    let at = |step| (Response::Progress(crate::trainer::Progress { step, steps: 9 }), vec![]);
    let trained = (Response::Trained { steps: 9, first_loss: None }, vec![0.5, -0.5]);
    let mut trainer = PipeTrainer::connect(answers(&[at(0), at(4), trained]), Vec::new()).unwrap();
    let (heard, steps) = std::sync::mpsc::channel();
    trainer.on_progress(std::sync::Arc::new(move |progress| heard.send(progress.step).unwrap()));
    assert_eq!(trainer.train(&task(), &[0.0; 2]).unwrap().steps, 9);
    drop(trainer);
    assert_eq!(steps.iter().collect::<Vec<_>>(), [0, 4]);
}

#[test]
fn a_broken_trainer_stays_broken() {
    let spoilt: [(Vec<Answer>, &str); 4] = [
        (vec![], "ended without an answer"),
        (vec![(Response::Trained { steps: 1, first_loss: None }, vec![0.0])], "1 values where 2 are trained"),
        (
            vec![(Response::Trained { steps: 1, first_loss: None }, vec![0.0; 3])],
            "a payload of 12 bytes, at most 8",
        ),
        (
            vec![(
                Response::Hello { version: 1, device: "".into(), libtorch: "".into(), why_no_cuda: None },
                vec![],
            )],
            "hello",
        ),
    ];
    for (responses, wanted) in spoilt {
        let mut sent = Vec::new();
        let mut trainer = PipeTrainer::connect(answers(&responses), &mut sent).unwrap();
        let e = trainer.train(&task(), &[0.0; 2]).unwrap_err();
        assert!(matches!(&e, TrainerError::Broken(text) if text.contains(wanted)), "{e}");
        assert_eq!(trainer.inspect(&contract()), Err(e));
    }
}

#[test]
fn another_version_is_named() {
    let hello =
        Response::Hello { version: 99, device: "cpu".into(), libtorch: "2.11.0".into(), why_no_cuda: None };
    let e = PipeTrainer::connect(Cursor::new(frame(&hello, &[])), Vec::new()).unwrap_err();
    assert!(matches!(&e, TrainerError::Broken(t) if t.contains("version 99")), "{e}");
    assert!(PipeTrainer::connect(Cursor::new(b"GET / HTTP/1.1\r\n\r\n".to_vec()), Vec::new()).is_err());
}

proptest! {
    #[test]
    fn frames_survive_pipes_that_drip(
        values in prop::collection::vec(any::<u32>(), 0..300), step in 1usize..70, rate in 0.0f64..1.0,
    ) {
        let values: Vec<f32> = values.into_iter().map(f32::from_bits).collect();
        let mut wanted = task();
        wanted.record_privacy.as_mut().unwrap().sampling_rate = rate;
        let bytes = frame(&Request::Train { task: wanted.clone() }, &values);
        let (request, got) = read_frame::<Request>(&mut Dripping { bytes: &bytes, step }, 300).unwrap().unwrap();
        prop_assert_eq!(request, Request::Train { task: wanted });
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&got), bits(&values));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_frame::<Request>(&mut &bytes[..], 10);
        let _ = read_frame::<Response>(&mut &bytes[..], 10);
    }
}
