use super::*;
use proptest::prelude::*;
use safetensors::tensor::{TensorView, serialize};

fn layout() -> ModelLayout {
    let t = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
    ModelLayout::new(vec![t("body.weight", &[2, 3]), t("body.bias", &[2]), t("head.weight", &[1, 2])])
        .unwrap()
}

fn source() -> Source {
    Source { weights: "w".into(), rename: BTreeMap::new(), ignore: vec![], seeded: vec![] }
}

fn file(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let views: Vec<(String, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            ((*name).to_owned(), TensorView::new(*dtype, shape.to_vec(), data).unwrap())
        })
        .collect();
    serialize(views, None).unwrap()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn good() -> Vec<(&'static str, Dtype, &'static [usize], Vec<u8>)> {
    vec![
        ("head.weight", Dtype::F64, &[1, 2], [0.5f64, -1.5].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("body.weight", Dtype::F32, &[2, 3], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        (
            "body.bias",
            Dtype::F16,
            &[2],
            [f16::from_f32(0.25), f16::from_f32(-2.0)].map(f16::to_le_bytes).concat(),
        ),
    ]
}

fn map(source: &Source, file: &[u8]) -> Result<Mapping, InitialError> {
    let len = ModelLayout::header_len(file[..8].try_into().unwrap()).unwrap();
    source.map(&layout(), &file[..len], file.len() as u64)
}

/// All values, what is seeded as 9.
fn values(source: &Source, file: &[u8]) -> Result<Vec<f32>, InitialError> {
    let mut all = vec![];
    for (origin, t) in map(source, file)?.origins().iter().zip(layout().tensors()) {
        match origin {
            Origin::Seed => all.extend(std::iter::repeat_n(9.0, t.checked_len().unwrap())),
            Origin::File(p) => all.extend(p.values(&file[p.bytes.start as usize..p.bytes.end as usize])?),
        }
    }
    Ok(all)
}

#[test]
fn tensors_are_found_by_name_whatever_their_order_and_kind() {
    let found = values(&source(), &file(&good())).unwrap();
    assert_eq!(found, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.25, -2.0, 0.5, -1.5]);
    let mut tensors = good();
    tensors[2].1 = Dtype::BF16;
    tensors[2].3 = [bf16::from_f32(3.0), bf16::from_f32(-8.0)].map(bf16::to_le_bytes).concat();
    assert_eq!(values(&source(), &file(&tensors)).unwrap()[6..8], [3.0, -8.0]);
}

#[test]
fn names_are_renamed_ignored_and_drawn() {
    let mut tensors = good();
    tensors[0] = ("lm_head.weight", Dtype::F32, &[7], f32s(&[0.0; 7]));
    tensors[1].0 = "model.encoder.weight";
    tensors[2].0 = "model.encoder.bias";
    let file = file(&tensors);
    let source = Source {
        rename: [("model.", "x."), ("model.encoder.", "body.")].map(|(a, b)| (a.into(), b.into())).into(),
        ignore: vec!["lm_head.*".into()],
        seeded: vec!["head.*".into()],
        ..source()
    };
    assert!(map(&source, &file).unwrap().needs_seed());
    assert_eq!(values(&source, &file).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.25, -2.0, 9.0, 9.0]);
    let both =
        Source { rename: [("body.weight".into(), "body.bias".into())].into(), ..super::tests::source() };
    let e = map(&both, &super::tests::file(&good())).unwrap_err();
    assert!(matches!(&e, InitialError::Twice { name, .. } if name == "body.bias"), "{e}");
}

#[test]
fn what_is_wrong_is_told_with_the_way_out() {
    let mut tensors = good();
    tensors[1].0 = "encoder.body.weight";
    let text = |tensors: &[_]| map(&source(), &file(tensors)).unwrap_err().to_string();
    let e = text(&tensors);
    assert!(
        e.contains("1 of the model's 3") && e.contains("\"body.weight\" (\"encoder.body.weight\"?)"),
        "{e}"
    );

    let mut tensors = good();
    tensors.push(("rest", Dtype::F32, &[1], f32s(&[0.0])));
    let e = text(&tensors);
    assert!(e.contains("1 tensors that the model does not have: \"rest\"; name them in ignore"), "{e}");

    let mut tensors = good();
    tensors[1].2 = &[3, 2];
    assert!(text(&tensors).contains("\"body.weight\" is F32 [3, 2], the model wants [2, 3]"));
    let mut tensors = good();
    tensors[1] = ("body.weight", Dtype::I32, &[2, 3], vec![0; 24]);
    assert!(text(&tensors).contains("\"body.weight\" is I32 [2, 3]"));

    let mut tensors = good();
    tensors[1].3[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let e = values(&source(), &file(&tensors)).unwrap_err();
    assert!(matches!(&e, InitialError::NotFinite { index: 1, .. }), "{e}");
}

/// One try tells all, in as many words as are read.
#[test]
fn all_that_does_not_fit_is_told_at_once() {
    let mut tensors = good();
    tensors[0].0 = "lm_head.weight";
    tensors[1].2 = &[3, 2];
    let one: &'static [usize] = &[1];
    tensors.extend(["a", "b", "c", "d", "e", "f"].map(|name| (name, Dtype::F32, one, f32s(&[0.0]))));
    let e = map(&source(), &file(&tensors)).unwrap_err();
    assert!(matches!(&e, InitialError::Unfit(clauses) if clauses.len() == 3), "{e}");
    assert_eq!(
        e.to_string(),
        "1 of the model's 3 tensors are not in it: \"head.weight\" (\"lm_head.weight\"?); name them in seeded to draw them from the \
         model's seed, or say in rename how the file calls them; and 1 tensors are of another shape or kind than the model's: \
         \"body.weight\" is F32 [3, 2], the model wants [2, 3]; and it holds 7 tensors that the model does not have: \"a\", \"b\", \
         \"c\", \"d\", \"e\" and 2 more; name them in ignore, or rename them"
    );
}

#[test]
fn a_damaged_file_is_refused() {
    let whole = file(&good());
    let len = ModelLayout::header_len(whole[..8].try_into().unwrap()).unwrap();
    for (start, bytes) in [
        (&whole[..len], whole.len() as u64 - 1),
        (&whole[..len], whole.len() as u64 + 1),
        (&whole[..len - 9], whole.len() as u64),
        (&whole[..4], whole.len() as u64),
        (b"12345678{\"a\": 3}", 16),
    ] {
        let e = source().map(&layout(), start, bytes).unwrap_err();
        assert!(matches!(e, InitialError::NotSafetensors(_)), "{e}");
    }
}

#[test]
fn both_forms_are_read_and_written() {
    let toml = "weights = \"w.safetensors\"\nseeded = [\"head.*\"]\n[rename]\n\"model.\" = \"\"\n";
    let written: Initial = toml::from_str(toml).unwrap();
    let Initial::Written(source) = &written else { panic!("{written:?}") };
    assert_eq!((source.weights.as_str(), source.renamed("model.a")), ("w.safetensors", "a".into()));
    let file = Initial::File(FileRef { digest: Digest::of(b"x"), bytes: 12 });
    for form in [written, file] {
        let json = serde_json::to_string(&form).unwrap();
        assert_eq!(serde_json::from_str::<Initial>(&json).unwrap(), form, "{json}");
    }
    for bad in [
        "",
        "weights = \"w\"\nbytes = 3",
        "seeded = [\"a\"]",
        "weights = \"w\"\nseeded = [\"a*b\"]",
        "weights = \"w\"\nfile = \"x\"",
    ] {
        assert!(toml::from_str::<Initial>(bad).is_err(), "{bad}");
    }
}

proptest! {
    /// No header leads to a panic or to bytes outside of the file.
    #[test]
    fn any_header_is_mapped_or_refused(
        cut in 0usize..400, at in 0usize..400, byte in any::<u8>(),
    ) {
        let mut whole = file(&good());
        let at = at % whole.len();
        whole[at] = byte;
        let bytes = whole.len() as u64;
        if let Ok(mapping) = source().map(&layout(), &whole[..cut.min(whole.len())], bytes) {
            for origin in mapping.origins() {
                if let Origin::File(piece) = origin {
                    prop_assert!(piece.bytes.end <= bytes);
                }
            }
        }
    }
}
