//! Of a model of which a part is trained, that part alone travels, and the rest keeps every bit.

use super::broadcasts::{EXACT, all_of, bits, lossy, make_part, model, part_of, rebuilt, trained};
use super::*;
use crate::digest::Digest;
use crate::encoding::broadcast::{Downlink, values_digest};
use crate::encoding::frozen::{FROZEN_HEAD, FrozenMaker, check_head, frozen_len};
use crate::encoding::rebuild::Rebuild;
use crate::part::Part;
use proptest::prelude::*;

/// All ways down that go together; of a part even the one that says nothing has messages.
fn downlinks() -> Vec<Downlink> {
    let mut all = vec![Downlink::default()];
    all.extend(super::broadcasts::downlinks());
    all
}

fn frozen_of(part: &Part, values: &[f32]) -> Vec<f32> {
    let frozen = part.segments().into_iter().filter(|segment| !segment.is_trained);
    frozen.flat_map(|segment| values[segment.range].to_vec()).collect()
}

fn frozen_file(part: &Part, values: &[f32], cut: usize) -> (Vec<u8>, Digest) {
    let mut out = vec![];
    let mut maker = FrozenMaker::new(part, Digest::of(b"job"), &mut out);
    values.chunks(cut).for_each(|piece| maker.push(piece, &mut out));
    (out, maker.finish())
}

proptest! {
    /// A client that follows, one that comes anew in each round, and the coordinator hold the same bits, and those of frozen
    /// tensors are the first ones for ever; whatever is between them, and wherever streams are cut.
    #[test]
    fn frozen_tensors_keep_every_bit(
        tensors in prop::collection::vec((prop_oneof![0usize..5, 1usize..300, 3000usize..9000], any::<bool>()), 1..7),
        cut in prop_oneof![1usize..50, 1000usize..9000],
        which in any::<prop::sample::Index>(),
        odd in any::<u32>(),
    ) {
        prop_assume!(tensors.iter().any(|(len, trained)| *trained && *len > 0));
        let (part, all) = (part_of(&tensors), downlinks());
        let down = all[which.index(all.len())];
        prop_assume!(!down.is_plain(&part));
        let len = part.whole_len();
        let mut master = model(len, 1);
        // Frozen bits that no encoding but f32 keeps.
        for segment in part.segments().iter().filter(|segment| !segment.is_trained) {
            for (i, value) in master[segment.range.clone()].iter_mut().enumerate() {
                *value = f32::from_bits((odd.wrapping_mul(i as u32 + 1)) & !0x4000_0000);
            }
        }
        let first = frozen_of(&part, &master);
        let (file, name) = frozen_file(&part, &master, cut);
        prop_assert_eq!(name, values_digest(&first));
        prop_assert_eq!(frozen_len(&part).unwrap_or(FROZEN_HEAD as u64), file.len() as u64);
        prop_assert!(check_head(file[..FROZEN_HEAD].try_into().unwrap()).is_ok());
        let values = file[FROZEN_HEAD..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).to_bits());
        prop_assert_eq!(values.collect::<Vec<_>>(), bits(&first));

        let mut held: Option<Vec<f32>> = None;
        for round in 0..5 {
            let (made, name) = make_part(down, &part, &master, held.as_deref(), cut).unwrap();
            let mut version = master.clone();
            if down.whole(&part).is_some() {
                prop_assert!(down.whole_len(&part).unwrap().admits(made.whole.len() as u64));
                let pieces: Vec<&[u8]> = made.whole.chunks(cut).collect();
                let rebuild = Rebuild::whole(down, grid(), &part).unwrap();
                let (values, found) = rebuilt(rebuild, &first, &pieces).unwrap();
                prop_assert_eq!(found, name);
                version = values;
            }
            prop_assert_eq!(values_digest(&version), name);
            prop_assert_eq!(bits(&frozen_of(&part, &version)), bits(&first), "round {}", round);
            if let (Some(base), Some(len)) = (&held, down.delta_len(&part)) {
                prop_assert!(len.admits(made.delta.len() as u64));
                let pieces: Vec<&[u8]> = made.delta.chunks(cut).collect();
                let rebuild = Rebuild::delta(down, grid(), &part).unwrap();
                let (values, found) = rebuilt(rebuild, base, &pieces).unwrap();
                prop_assert_eq!((bits(&values), found), (bits(&version), name));
            }
            held = down.deltas.map(|_| version);
            let moved = trained(&part.gather(&master), 1e-3, 100 + round);
            part.scatter(&moved, &mut master);
        }
    }
}

/// A head of a tenth of the model costs a tenth of the bytes, and a scale or two more for each of its stretches.
#[test]
fn a_part_takes_the_bytes_of_a_part() {
    let tensors = [(40_000, false), (5000, true), (50_000, false), (5000, true)];
    let (part, whole) = (part_of(&tensors), all_of(100_000));
    let (master, mut moved) = (model(100_000, 1), model(100_000, 1));
    part.scatter(&trained(&part.gather(&master), 1e-3, 2), &mut moved);
    for down in downlinks() {
        let (made, _) = make_part(down, &part, &moved, Some(&master), 8192).unwrap();
        let (of_all, _) = make_part(down, &whole, &moved, Some(&master), 8192).unwrap();
        if down.whole(&whole).is_some() {
            assert!(made.whole.len() * 10 < of_all.whole.len() + 800, "{down:?}");
        }
        assert!(made.whole.len() <= 40 + 4 * 10_000, "{down:?}");
        if let Some(deltas) = down.deltas {
            let most = 40 + deltas.encoded_len(10_000).max() as usize + 200;
            assert!(made.delta.len() <= most && most < 42_000, "{down:?}: {}", made.delta.len());
        }
    }
}

/// Wrong frozen values, ends and lengths lead to no version.
#[test]
fn what_is_frozen_is_held_against_the_name_too() {
    let part = part_of(&[(300, false), (700, true), (20, false)]);
    let old = model(1020, 1);
    let mut new = old.clone();
    part.scatter(&model(700, 2), &mut new);
    let first = frozen_of(&part, &old);
    let mut other = first.clone();
    other[310] = f32::from_bits(other[310].to_bits() ^ 1);
    for down in [
        Downlink::default(),
        Downlink { models: Some(Encoding::Bf16), deltas: EXACT },
        Downlink { models: None, deltas: lossy(Encoding::Block { bits: 8, block: 64 }) },
    ] {
        let (made, name) = make_part(down, &part, &new, Some(&old), 100).unwrap();
        let run = |held: &[f32], bytes: &[u8]| {
            rebuilt(Rebuild::whole(down, grid(), &part).unwrap(), held, &[bytes])
                .map(|(_, found)| found == name)
        };
        assert!(run(&first, &made.whole).unwrap());
        assert!(!run(&other, &made.whole).unwrap(), "a wrong bit");
        assert!(run(&first[..319], &made.whole).is_err(), "one that is missing");
        assert!(run(&first, &[&made.whole[..], &[0]].concat()).is_err());
        for end in 0..made.whole.len() {
            assert!(run(&first, &made.whole[..end]).is_err(), "{end} bytes");
        }
    }
    let e = make_part(Downlink::default(), &part, &[&old[..1010], &[f32::NAN; 10]].concat(), None, 7)
        .unwrap_err();
    assert!(matches!(e, EncodeError::NotFinite { index: 1010, .. }), "{e}");
}
