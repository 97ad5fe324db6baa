//! Whichever way a version of a model came, it has the bits that its name says.

use super::*;
use crate::digest::Digest;
use crate::encoding::broadcast::{Broadcaster, Downlink, Pieces, values_digest};
use crate::encoding::delta::DeltaEncoding;
use crate::encoding::rebuild::{Rebuild, RebuildError, Sink};
use crate::layout::{ModelLayout, TensorSpec};
use crate::part::Part;
use proptest::prelude::*;
use std::io;

pub(super) const EXACT: Option<DeltaEncoding> = Some(DeltaEncoding::Exact);

pub(super) fn lossy(encoding: Encoding) -> Option<DeltaEncoding> {
    Some(DeltaEncoding::Lossy { encoding })
}

/// All ways down that go together and make something.
pub(super) fn downlinks() -> Vec<Downlink> {
    let mut all = vec![
        Downlink { models: None, deltas: EXACT },
        Downlink { models: Some(Encoding::F32), deltas: EXACT },
        Downlink { models: Some(Encoding::Bf16), deltas: EXACT },
    ];
    for encoding in dense() {
        let models = Downlink { models: Some(encoding), deltas: None };
        let deltas = Downlink { models: None, deltas: lossy(encoding) };
        all.extend([models, deltas].into_iter().filter(|down| down.validate().is_ok()));
    }
    all
}

/// A model of tensors of these lengths, of which some are trained.
pub(super) fn part_of(tensors: &[(usize, bool)]) -> Part {
    let spec =
        |(i, &(len, _)): (usize, &(usize, bool))| TensorSpec { name: format!("t{i}."), shape: vec![len] };
    let layout = ModelLayout::new(tensors.iter().enumerate().map(spec).collect()).unwrap();
    let trained = tensors.iter().enumerate().filter(|(_, (_, trained))| *trained);
    layout.part(&trained.map(|(i, _)| format!("t{i}.")).collect::<Vec<_>>()).unwrap()
}

/// All of a model of so many values.
pub(super) fn all_of(len: usize) -> Part {
    ModelLayout::new(vec![TensorSpec { name: "t".into(), shape: vec![len] }]).unwrap().whole()
}

/// A version's messages and name.
fn make(down: Downlink, master: &[f32], base: Option<&[f32]>) -> Result<(Pieces, Digest), EncodeError> {
    make_part(down, &all_of(master.len()), master, base, 8192)
}

/// The same of a part, from pieces of so many values.
pub(super) fn make_part(
    down: Downlink,
    part: &Part,
    master: &[f32],
    base: Option<&[f32]>,
    cut: usize,
) -> Result<(Pieces, Digest), EncodeError> {
    let mut out = Pieces::default();
    let (owner, seed) = (Digest::of(b"job"), values_digest(master));
    let mut maker = Broadcaster::new(down, grid(), part, owner, seed, base.is_some(), &mut out)?;
    for (i, run) in master.chunks(cut).enumerate() {
        let start = i * cut;
        maker.push(run, base.map_or(&[], |base| &base[start..start + run.len()]), &mut out)?;
    }
    Ok((out, maker.finish()?))
}

#[derive(Default)]
struct Memory {
    held: Vec<f32>,
    read: usize,
    values: Vec<f32>,
}

impl Sink for Memory {
    fn held(&mut self, run: &mut [f32]) -> io::Result<()> {
        let next = self.held.get(self.read..self.read + run.len());
        run.copy_from_slice(next.ok_or(io::ErrorKind::UnexpectedEof)?);
        self.read += run.len();
        Ok(())
    }

    fn version(&mut self, run: &[f32]) -> io::Result<()> {
        self.values.extend_from_slice(run);
        Ok(())
    }
}

pub(super) fn rebuilt(
    mut rebuild: Rebuild,
    held: &[f32],
    pieces: &[&[u8]],
) -> Result<(Vec<f32>, Digest), RebuildError> {
    let mut memory = Memory { held: held.to_vec(), ..Memory::default() };
    for piece in pieces {
        rebuild.push(piece, &mut memory)?;
    }
    let digest = rebuild.finish()?;
    assert_eq!(values_digest(&memory.values), digest);
    Ok((memory.values, digest))
}

fn whole(down: Downlink, len: usize, pieces: &[&[u8]]) -> Result<(Vec<f32>, Digest), RebuildError> {
    rebuilt(Rebuild::whole(down, grid(), &all_of(len))?, &[], pieces)
}

fn moved(down: Downlink, base: &[f32], pieces: &[&[u8]]) -> Result<(Vec<f32>, Digest), RebuildError> {
    rebuilt(Rebuild::delta(down, grid(), &all_of(base.len()))?, base, pieces)
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

pub(super) fn model(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = rng(seed);
    (0..len).map(|_| (normal(&mut rng) * 0.05) as f32).collect()
}

/// The model after another step of training.
pub(super) fn trained(model: &[f32], step: f64, seed: u64) -> Vec<f32> {
    let mut rng = rng(seed);
    model.iter().map(|&v| (f64::from(v) + normal(&mut rng) * step) as f32).collect()
}

fn nearest_bf16(values: &[f32]) -> Vec<f32> {
    sent(&Encoding::Bf16, crate::encoding::Values::new(grid()), values, &Rounding::draw(&mut rng(1)))
}

proptest! {
    /// f32 to any f32, bf16 to any bf16, whatever lies between: signs, exponents, zeros.
    #[test]
    fn exact_leads_from_any_value_to_any_value(
        pairs in prop::collection::vec((any::<u32>(), any::<u32>(), 0u8..3), 0..400),
        half in any::<bool>(),
        cut in 0usize..3000,
    ) {
        let finite = |bits: u32| if bits & 0x7f80_0000 == 0x7f80_0000 { bits & !0x4000_0000 } else { bits };
        let value = |bits| f32::from_bits(finite(bits));
        let near = |p: &(u32, u32, u8)| match p.2 {
            0 => p.0,
            1 => p.0.wrapping_add(p.1 % 1000),
            _ => p.1,
        };
        let mut old: Vec<f32> = pairs.iter().map(|p| value(p.0)).collect();
        let mut new: Vec<f32> = pairs.iter().map(|p| value(near(p))).collect();
        if half {
            (old, new) = (nearest_bf16(&old), nearest_bf16(&new));
        }
        let down = Downlink { models: half.then_some(Encoding::Bf16), deltas: EXACT };
        let (made, name) = make(down, &new, Some(&old)).unwrap();
        prop_assert!(down.delta_len(&all_of(old.len())).unwrap().admits(made.delta.len() as u64));
        let (head, tail) = made.delta.split_at(cut.min(made.delta.len()));
        let (values, found) = moved(down, &old, &[head, tail]).unwrap();
        prop_assert_eq!(bits(&values), bits(&new));
        prop_assert_eq!(found, name);
        let single: Vec<&[u8]> = made.delta.chunks(1).collect();
        prop_assert_eq!(bits(&moved(down, &old, &single).unwrap().0), bits(&new));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..34], 0..600),
        len in 0usize..300,
        cut in 0usize..600,
    ) {
        let old = model(len, 1);
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        for down in downlinks() {
            // A right head, so that the rest is looked at.
            let (made, _) = make(down, &old, Some(&old)).unwrap();
            if down.deltas.is_some() {
                let _ = moved(down, &old, &[&made.delta[..40], first, second]);
                prop_assert!(moved(down, &old, &[first, second]).is_err());
            }
            if down.whole(&all_of(len)).is_some() {
                let _ = whole(down, len, &[&made.whole[..40], first, second]);
                prop_assert!(whole(down, len, &[first, second]).is_err());
            }
        }
    }
}

/// One client follows the differences, one comes anew each round, one that was away fetches the whole.
#[test]
fn the_bits_are_the_same_whichever_way_they_came() {
    for down in downlinks() {
        let mut master = nearest_bf16(&model(9000, 1));
        let mut held: Option<Vec<f32>> = None;
        for round in 0..4 {
            let (made, name) = make(down, &master, held.as_deref()).unwrap();
            let again = make(down, &master, held.as_deref()).unwrap();
            assert!(
                again.0.whole == made.whole && again.0.delta == made.delta && again.1 == name,
                "{down:?}"
            );
            let by_whole = match down.whole(&all_of(9000)) {
                None => master.clone(),
                Some(_) => {
                    assert!(down.whole_len(&all_of(9000)).unwrap().admits(made.whole.len() as u64));
                    let pieces: Vec<&[u8]> = made.whole.chunks(777).collect();
                    whole(down, 9000, &pieces).unwrap().0
                }
            };
            assert_eq!(values_digest(&by_whole), name, "{down:?}");
            if let (Some(base), Some(len)) = (&held, down.delta_len(&all_of(9000))) {
                assert!(len.admits(made.delta.len() as u64));
                let pieces: Vec<&[u8]> = made.delta.chunks(777).collect();
                let (values, found) = moved(down, base, &pieces).unwrap();
                assert_eq!((bits(&values), found), (bits(&by_whole), name), "{down:?}");
            }
            held = down.deltas.map(|_| by_whole);
            master = trained(&master, 1e-3, 100 + round);
        }
    }
}

/// What one lossy difference rounds away is in the next one.
#[test]
fn errors_of_lossy_differences_do_not_add_up() {
    let down = Downlink { models: None, deltas: lossy(Encoding::Block { bits: 4, block: 64 }) };
    let mut master = model(5000, 1);
    let mut held = master.clone();
    let mut worst = Vec::new();
    for round in 0..40 {
        master = trained(&master, 1e-3, 100 + round);
        let (made, _) = make(down, &master, Some(&held)).unwrap();
        held = moved(down, &held, &[&made.delta]).unwrap().0;
        let distance = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
        worst.push(master.iter().zip(&held).map(distance).fold(0.0, f64::max));
    }
    // Half a step of differences of at most some five standard deviations: 5e-3/14.
    assert!(worst.iter().all(|&w| w < 5e-4), "{worst:?}");
}

#[test]
fn exact_differences_are_small_where_little_moved() {
    let old = model(100_000, 1);
    let down = Downlink { models: None, deltas: EXACT };
    let part = |new: &[f32]| make(down, new, Some(&old)).unwrap().0.delta.len() as f64 / 400_000.0;
    assert!(part(&old) < 0.003, "nothing moved: {}", part(&old));
    let little = part(&trained(&old, 5e-4, 2));
    assert!((0.6..0.75).contains(&little), "a hundredth of the values' size: {little}");
    let less = part(&trained(&old, 5e-6, 2));
    assert!((0.45..0.55).contains(&less), "a ten-thousandth: {less}");
    let mut tenth = old.clone();
    tenth[..10_000].copy_from_slice(&model(10_000, 3));
    assert!(part(&tenth) < 0.11, "a tenth replaced: {}", part(&tenth));
    let other = part(&model(100_000, 9));
    assert!((0.8..1.003).contains(&other), "another model: {other}");

    let half = Downlink { models: Some(Encoding::Bf16), deltas: EXACT };
    let held = nearest_bf16(&old);
    let part =
        |step| make(half, &trained(&old, step, 2), Some(&held)).unwrap().0.delta.len() as f64 / 400_000.0;
    let little = part(5e-4);
    assert!((0.20..0.25).contains(&little), "bf16, a hundredth: {little}");
    let less = part(5e-6);
    assert!((0.02..0.08).contains(&less), "bf16, a ten-thousandth: {less}");
}

#[test]
fn a_wrong_base_and_wrong_bytes_are_noticed() {
    let (old, new) = (nearest_bf16(&model(1000, 1)), nearest_bf16(&model(1000, 2)));
    for down in downlinks() {
        let (made, name) = make(down, &new, Some(&old)).unwrap();
        let leads_there = |got: Result<(Vec<f32>, Digest), RebuildError>| got.is_ok_and(|(_, d)| d == name);
        let long = |bytes: &[u8]| [bytes, &[0]].concat();
        if down.deltas.is_some() {
            let run = |base: &[f32], bytes: &[u8]| moved(down, base, &[bytes]);
            assert!(leads_there(run(&old, &made.delta)), "{down:?}");
            assert!(!leads_there(run(&new, &made.delta)));
            assert!(!leads_there(run(&old[1..], &made.delta)));
            assert!(run(&old, &long(&made.delta)).is_err());
            for end in 0..made.delta.len() {
                assert!(run(&old, &made.delta[..end]).is_err(), "{end} bytes");
            }
        }
        if down.whole(&all_of(1000)).is_some() {
            assert!(leads_there(whole(down, 1000, &[&made.whole])));
            assert!(whole(down, 1000, &[&long(&made.whole)]).is_err());
            assert!(whole(down, 1000, &[&made.whole[..made.whole.len() - 1]]).is_err());
            assert!(whole(down, 1000, &[&made.delta]).is_err(), "a difference is no whole");
        }
    }
}

#[test]
fn what_cannot_be_sent_is_said_with_its_place() {
    let down = Downlink { models: None, deltas: EXACT };
    let e = make(down, &[1.0, f32::NAN], None).unwrap_err();
    assert!(matches!(e, EncodeError::NotFinite { index: 1, .. }), "{e}");
    let bf16 = Downlink { models: None, deltas: lossy(Encoding::Bf16) };
    let e = make(bf16, &[f32::MAX], Some(&[-f32::MAX])).unwrap_err();
    assert!(matches!(e, EncodeError::NotFinite { index: 0, .. }), "{e}");
    assert!(Rebuild::whole(down, grid(), &all_of(3)).is_err(), "its models are files");
    assert!(Rebuild::delta(Downlink::default(), grid(), &all_of(3)).is_err(), "it has no differences");
}

/// As a job has them.
#[derive(serde::Serialize, serde::Deserialize)]
struct Keys {
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<Encoding>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::encoding::delta::read"
    )]
    deltas: Option<DeltaEncoding>,
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    let of = |keys: Keys| Downlink { models: keys.models, deltas: keys.deltas };
    let read = |text: &str| toml::from_str(text).map(of).map_err(|e| e.to_string());
    let bf16 = "models = { kind = \"bf16\" }\n";
    for (text, wanted) in [
        ("", Downlink::default()),
        ("deltas = false", Downlink::default()),
        ("deltas = true", Downlink { models: None, deltas: EXACT }),
        ("deltas = { kind = \"exact\" }", Downlink { models: None, deltas: EXACT }),
        (&format!("{bf16}deltas = true"), Downlink { models: Some(Encoding::Bf16), deltas: EXACT }),
        (
            "deltas = { kind = \"block\", bits = 4 }",
            Downlink { models: None, deltas: lossy(Encoding::Block { bits: 4, block: 64 }) },
        ),
    ] {
        let down = read(text).unwrap();
        assert_eq!(down, wanted, "{text}");
        assert_eq!(down.validate(), Ok(()));
        let keys = Keys { models: down.models, deltas: down.deltas };
        assert_eq!(read(&toml::to_string(&keys).unwrap()).unwrap(), down);
        let json = serde_json::to_string(&keys).unwrap();
        assert_eq!(of(serde_json::from_str(&json).unwrap()), down, "{json}");
    }
    for (text, words) in [
        ("models = { kind = \"top-k\" }", "all weights but a few would arrive as zero"),
        ("models = { kind = \"fixed32\" }", "its range is that of updates"),
        ("deltas = { kind = \"top-k\" }", "chooses among all values"),
        ("deltas = { kind = \"f32\" }", "as many bytes as the model"),
        ("models = { kind = \"block\" }\ndeltas = true", "no value stays where it was"),
        ("models = { kind = \"fixed\" }\ndeltas = { kind = \"bf16\" }", "no value stays where it was"),
        (&format!("{bf16}deltas = {{ kind = \"fixed\" }}"), "what they lead to is not bf16"),
    ] {
        let e = read(text).unwrap().validate().unwrap_err();
        assert!(e.contains(words), "{text}: {e}");
    }
    for (text, words) in [
        ("deltas = { kind = \"exact\", bits = 3 }", "no key bits"),
        ("deltas = { kind = \"zip\" }", "zip"),
        ("deltas = 3", "true, false, or a table"),
        ("models = { kind = \"exact\" }", "exact is a kind of deltas"),
    ] {
        let e = read(text).unwrap_err();
        assert!(e.contains(words), "{text}: {e}");
    }
}
