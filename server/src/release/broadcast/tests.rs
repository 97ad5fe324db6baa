//! Versions in the blob store: the same each time, and whole again at the other end.

use super::*;
use std::collections::BTreeMap;
use std::io;
use undertone_core::encoding::broadcast::values_digest;
use undertone_core::encoding::frozen::FROZEN_HEAD;
use undertone_core::encoding::rebuild::{Rebuild, Sink};
use undertone_round::job::JobSpec;
use undertone_store::MemoryBlobs;

/// 160,001 values: more than a block, and no multiple of anything.
fn job(tensors: &str, transport: &str) -> Arc<Job> {
    let text = format!(
        r#"
name = "t"
rounds = 2
[model]
kind = "mlp"
hidden = [40000]
[training]
learning_rate = 0.1
local_steps = 1
{tensors}
[cohort]
rule = "all"
size = 2
min_clients = 1
[transport]
{transport}
[privacy]
unit = "none"
[data.label]
column = "y"
classes = [{{ name = "no", values = ["0"] }}, {{ name = "yes", values = ["1"] }}]
[[data.columns]]
name = "x"
kind = "number"
range = [0, 1]
[[data.columns]]
name = "z"
kind = "number"
range = [0, 1]
"#
    );
    Arc::new(JobSpec::from_toml(&text, "t.toml").unwrap().resolve().unwrap())
}

struct World {
    job: Arc<Job>,
    id: JobId,
    memory: Arc<MemoryBlobs>,
    blobs: Arc<dyn Blobs>,
    values: Vec<f32>,
}

impl World {
    fn new(transport: &str) -> Self {
        Self::of("", transport)
    }

    /// Of a job that trains a part of the model.
    fn of(tensors: &str, transport: &str) -> Self {
        let (job, memory) = (job(tensors, transport), Arc::new(MemoryBlobs::new()));
        let values = job.initial_values();
        Self { values, blobs: memory.clone(), memory, id: JobId::new("t-1").unwrap(), job }
    }

    /// Moves every value by a part of a thousandth of its size.
    fn train(&mut self) {
        self.job.part().change(&mut self.values, |values| {
            for (i, value) in values.iter_mut().enumerate() {
                *value *= 1.0 + (i % 7) as f32 / 5000.0;
            }
        });
    }

    async fn model(&self) -> ModelRef {
        let file = self.job.layout().to_safetensors(&self.values, BTreeMap::new());
        let (digest, bytes) = self.blobs.put(file.into()).await.unwrap();
        ModelRef { digest, bytes }
    }

    async fn make(&self, model: ModelRef, before: Option<Before>) -> Broadcast {
        make(&self.job, &self.id, model, before, &self.blobs).await.unwrap().unwrap()
    }

    /// What a client makes of the whole, or of the difference from what it holds.
    async fn arrives(&self, model: ModelRef, sent: Broadcast, base: Option<&[f32]>) -> Vec<f32> {
        let (down, grid, part) = (self.job.spec().transport.down(), self.job.grid(), self.job.part());
        let blob = base.map_or(sent.whole.unwrap_or(model), |_| sent.delta.expect("there is one").blob);
        let bytes = self.blobs.get(&blob.digest, blob.bytes).await.unwrap();
        if base.is_none() && sent.whole.is_none() {
            return self.job.layout().from_safetensors(&bytes).unwrap();
        }
        let mut rebuild = match base {
            None => Rebuild::whole(down, grid, part),
            Some(_) => Rebuild::delta(down, grid, part),
        }
        .unwrap();
        let frozen = self.frozen(sent).await;
        let mut client = Client { held: base.unwrap_or(&frozen), values: vec![] };
        rebuild.push(&bytes, &mut client).unwrap();
        assert_eq!(rebuild.finish().unwrap(), sent.version);
        client.values
    }

    /// What is not trained, as it is sent.
    async fn frozen(&self, sent: Broadcast) -> Vec<f32> {
        let Some(frozen) = sent.frozen else { return vec![] };
        let bytes = self.blobs.get(&frozen.blob.digest, frozen.blob.bytes).await.unwrap();
        assert_eq!(Digest::of(&bytes[FROZEN_HEAD..]), frozen.digest);
        bytes[FROZEN_HEAD..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

struct Client<'a> {
    held: &'a [f32],
    values: Vec<f32>,
}

impl Sink for Client<'_> {
    fn held(&mut self, run: &mut [f32]) -> io::Result<()> {
        let (own, rest) = self.held.split_at(run.len());
        run.copy_from_slice(own);
        self.held = rest;
        Ok(())
    }

    fn version(&mut self, run: &[f32]) -> io::Result<()> {
        self.values.extend_from_slice(run);
        Ok(())
    }
}

const WAYS: [(&str, bool); 6] = [
    ("deltas = true", true),
    ("models = { kind = \"bf16\" }\ndeltas = true", true),
    ("deltas = { kind = \"block\", bits = 8 }", true),
    ("deltas = { kind = \"fixed\", bits = 6 }", true),
    ("models = { kind = \"block\", bits = 4 }", false),
    ("models = { kind = \"fixed\", bits = 10 }", false),
];

#[tokio::test]
async fn versions_follow_each_other_and_are_the_same_each_time() {
    for (transport, has_deltas) in WAYS {
        let mut w = World::new(transport);
        let mut before: Option<(Before, Vec<f32>)> = None;
        for round in 0..3 {
            let model = w.model().await;
            let sent = w.make(model, before.as_ref().map(|(before, _)| *before)).await;
            let blobs = w.memory.list().await.unwrap().len();
            let again = w.make(model, before.as_ref().map(|(before, _)| *before)).await;
            assert_eq!(again, sent, "{transport}: made again after a crash");
            assert_eq!(w.memory.list().await.unwrap().len(), blobs, "{transport}: the same blobs");
            assert_eq!(sent.delta.is_some(), has_deltas && round > 0, "{transport} {round}");
            let values = w.arrives(model, sent, None).await;
            assert_eq!(values_digest(&values), sent.version, "{transport}");
            if let (Some(delta), Some((held, base))) = (sent.delta, &before) {
                assert_eq!(delta.base, held.broadcast.version);
                assert!(delta.blob.bytes < sent.whole.unwrap_or(model).bytes);
                assert_eq!(w.arrives(model, sent, Some(base)).await, values, "{transport}");
            }
            let far = values.iter().zip(&w.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Initial values are within 0.71; four bits say it to a fourteenth.
            assert!(far < 0.06, "{transport}: {far}");
            before = Some((Before { model, broadcast: sent }, values));
            w.train();
        }
    }
}

/// Of two jobs that send equal models neither deletes the other's.
#[tokio::test]
async fn no_two_jobs_share_a_blob() {
    let w = World::new("models = { kind = \"bf16\" }");
    let model = w.model().await;
    let other = JobId::new("t-2").unwrap();
    let theirs = make(&w.job, &other, model, None, &w.blobs).await.unwrap().unwrap();
    let ours = w.make(model, None).await;
    assert_eq!(theirs.version, ours.version);
    assert_ne!(theirs.whole.unwrap().digest, ours.whole.unwrap().digest);
}

/// A version that is gone, or that rotted, ends its line of differences and costs nothing else.
#[tokio::test]
async fn without_a_base_everybody_fetches_the_whole() {
    for transport in
        ["deltas = true", "models = { kind = \"bf16\" }\ndeltas = true", "deltas = { kind = \"bf16\" }"]
    {
        let mut w = World::new(transport);
        let model = w.model().await;
        let good = Before { model, broadcast: w.make(model, None).await };
        w.train();
        let next = w.model().await;
        assert!(w.make(next, Some(good)).await.delta.is_some(), "{transport}");
        let fresh = w.make(next, None).await;
        if good.broadcast.whole.is_some() {
            // Something else lies there. (A model's own file is held against its digest, as in any release.)
            let mut other = good;
            other.broadcast.whole = fresh.whole;
            assert_eq!(w.make(next, Some(other)).await, fresh, "{transport}: damaged");
        }
        w.blobs.delete(&good.broadcast.whole.unwrap_or(model).digest).await.unwrap();
        assert_eq!(w.make(next, Some(good)).await, fresh, "{transport}: gone");
        let values = w.arrives(next, fresh, None).await;
        assert_eq!(values_digest(&values), fresh.version, "{transport}");
    }
}

/// Where everything moved, the difference is no gain: it is not offered, and not kept.
#[tokio::test]
async fn a_difference_that_is_larger_than_the_whole_is_not_offered() {
    let mut w = World::new("models = { kind = \"bf16\" }\ndeltas = true");
    let model = w.model().await;
    let before = Before { model, broadcast: w.make(model, None).await };
    for (i, value) in w.values.iter_mut().enumerate() {
        *value = f32::from_bits((i as u32).wrapping_mul(0x9e37_79b9) & 0xbfff_ffff);
    }
    let next = w.model().await;
    let blobs = w.memory.list().await.unwrap().len();
    let sent = w.make(next, Some(before)).await;
    assert_eq!(sent.delta, None);
    assert_eq!(w.memory.list().await.unwrap().len(), blobs + 1, "the whole alone is new");
}

#[tokio::test]
async fn a_plain_job_has_none_and_a_model_that_is_not_finite_is_not_sent() {
    let w = World::new("");
    let model = w.model().await;
    assert!(make(&w.job, &w.id, model, None, &w.blobs).await.unwrap().is_none());
    let mut w = World::new("models = { kind = \"bf16\" }");
    w.values[65_590] = f32::NAN;
    let model = w.model().await;
    let e = initial(&w.job, &w.id, model, &w.blobs).await.unwrap_err();
    assert!(e.contains("cannot be sent as [transport] says: value 65590 is NaN"), "{e}");
}

/// Of a head that is trained, 40,001 of 160,001 values: it alone goes down, whichever way, and the body is one file for all
/// rounds, which is written again if it is lost.
#[tokio::test]
async fn a_part_goes_down_alone_and_the_rest_once() {
    let ways = [("", false), ("models = { kind = \"f32\" }", false)];
    for (transport, has_deltas) in WAYS.into_iter().chain(ways) {
        let mut w = World::of("tensors = [\"2.*\"]", transport);
        let first = w.values.clone();
        let part = w.job.part().clone();
        let down = w.job.spec().transport.down();
        let mut before: Option<(Before, Vec<f32>)> = None;
        for round in 0..3 {
            let model = w.model().await;
            let sent = w.make(model, before.as_ref().map(|(before, _)| *before)).await;
            let frozen = sent.frozen.unwrap();
            assert_eq!(frozen.blob.bytes, 40 + 4 * 120_000);
            if let Some((before, _)) = &before {
                assert_eq!(before.broadcast.frozen, Some(frozen), "{transport}: one for all");
            }
            let whole = sent.whole.expect("the part").bytes;
            assert!(down.whole_len(&part).unwrap().admits(whole) && whole <= 40 + 4 * 40_001, "{transport}");
            let values = w.arrives(model, sent, None).await;
            assert_eq!(values_digest(&values), sent.version, "{transport}");
            let mut body = values.clone();
            part.scatter(&part.gather(&first), &mut body);
            assert_eq!(body, first, "{transport} {round}: the body has every bit");
            assert_eq!(sent.delta.is_some(), has_deltas && round > 0, "{transport} {round}");
            if let (Some(delta), Some((_, base))) = (sent.delta, &before) {
                assert!(delta.blob.bytes < whole, "{transport}");
                assert_eq!(w.arrives(model, sent, Some(base)).await, values, "{transport}");
            }
            let far = values.iter().zip(&w.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 0.06, "{transport}: {far}");
            if round == 1 {
                w.blobs.delete(&frozen.blob.digest).await.unwrap();
            }
            before = Some((Before { model, broadcast: sent }, values));
            w.train();
        }
    }
}
