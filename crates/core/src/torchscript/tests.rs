use super::archive::rewritten;
use super::*;
use proptest::prelude::*;
use std::io::{Cursor, Read as _, Write as _};
use std::path::Path;
use zip::write::FileOptions;
use zip::{ZipArchive, ZipWriter};

fn file(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/torchscript");
    std::fs::read(folder.join(name)).unwrap()
}

fn read(bytes: &[u8]) -> Result<Archive, ModuleError> {
    Archive::read(Cursor::new(bytes))
}

/// The file with one entry's text changed.
fn changed(name: &str, entry: &str, change: impl Fn(String) -> String) -> Vec<u8> {
    let mut zip = ZipArchive::new(Cursor::new(file(name))).unwrap();
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    for i in 0..zip.len() {
        let mut from = zip.by_index(i).unwrap();
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        if from.name().split_once('/').unwrap().1 == entry {
            bytes = change(String::from_utf8(bytes).unwrap()).into_bytes();
        }
        out.start_file(from.name(), FileOptions::default()).unwrap();
        out.write_all(&bytes).unwrap();
    }
    out.finish().unwrap().into_inner()
}

#[test]
fn an_exported_file_says_what_it_trains_and_keeps() {
    let archive = read(&file("picture.pt")).unwrap();
    let names: Vec<&str> = archive.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names,
        ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "head.1.weight", "head.1.bias"]
    );
    assert_eq!(archive.tensors()[0].shape, [4, 1, 3, 3]);
    assert_eq!(archive.buffers(), ["scale"]);
    for (name, tensors) in [("mlp.pt", 4), ("number.pt", 2), ("tokens.pt", 3), ("mixing.pt", 4)] {
        let archive = read(&file(name)).unwrap();
        assert_eq!((archive.tensors().len(), archive.buffers().len()), (tensors, 0), "{name}");
    }
}

#[test]
fn what_must_not_be_trained_with_is_refused_with_the_reason() {
    for (name, says) in [
        ("traced.pt", "dropout in __torch__.torch.nn.modules.dropout.___torch_mangle"),
        ("traced_alone.pt", "has no"),
        ("scripted.pt", "has no method training_step"),
        ("batch_norm.pt", "take nn.GroupNorm"),
        ("remembering.pt", "assigns to self.last"),
        ("listing.pt", "the attribute seen of type List[float]"),
        ("recurrent.pt", "write the layer with nn.LSTMCell"),
        ("reading.pt", "from_file in __torch__ is not allowed"),
        ("behind.pt", "data in __torch__ is not allowed"),
        ("nothing.pt", "needs 1 to 65536 parameters to train, not 0"),
    ] {
        let e = read(&file(name)).unwrap_err().to_string();
        assert!(e.contains(says), "{name}: {e}");
    }
    // What only running it shows.
    for name in ["counting.pt", "pushing.pt", "apart.pt", "unused.pt", "mean.pt", "nan.pt", "double.pt"] {
        read(&file(name)).unwrap();
    }
}

#[test]
fn a_traced_file_is_told_so() {
    assert!(matches!(read(&file("traced.pt")), Err(ModuleError::Traced(_))));
}

#[test]
fn a_file_that_is_cut_or_something_else_is_told_so() {
    let whole = file("picture.pt");
    for length in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
        let e = read(&whole[..length]).unwrap_err();
        assert!(matches!(e, ModuleError::NotAnArchive(_)), "{length}: {e}");
    }
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    out.start_file("model/weights.bin", FileOptions::default()).unwrap();
    out.write_all(b"no code").unwrap();
    let e = read(&out.finish().unwrap().into_inner()).unwrap_err();
    assert!(e.to_string().contains("no code in it") && e.to_string().contains("export.py"), "{e}");
    let values = file("mlp.safetensors");
    assert!(matches!(read(&values), Err(ModuleError::NotAnArchive(_))));
}

#[test]
fn the_account_of_a_file_must_hold() {
    let about = "extra/undertone.json";
    for (from, to, says) in [
        ("\"undertone\": 1", "\"undertone\": 2", "of form 1 (its is 2)"),
        ("\"torch\"", "\"trch\"", "unknown field `trch`"),
        ("\"2.bias\"", "\"2.bais\"", "its code has the parameter \"2.bias\""),
        ("[8, 2]", "[0, 2]", "\"0.weight\" of shape [0, 2]"),
    ] {
        let bytes = changed("mlp.pt", about, |text| {
            assert!(text.contains(from), "{text}");
            text.replacen(from, to, 1)
        });
        let e = read(&bytes).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    }
}

/// Before its code is looked at, which may be of a form that nobody here knows.
#[test]
fn a_file_of_a_version_that_libtorch_does_not_read_is_refused() {
    let of = |version: &str| read(&changed("mlp.pt", "version", |_| version.to_owned())).map(drop);
    for version in ["1", "3\n", "10\n"] {
        assert_eq!(of(version), Ok(()), "{version}");
    }
    for version in [0, 11] {
        let e = of(&format!("{version}\n")).unwrap_err();
        assert_eq!(e, ModuleError::Version(version));
        let says = format!("of file version {version}, and libtorch 2.11 reads versions 1 to 10");
        assert!(e.to_string().contains(&says), "{e}");
    }
    for odd in ["", "three", "-1", "99999999999999999999999"] {
        assert!(matches!(of(odd), Err(ModuleError::NotAnArchive(_))), "{odd}");
    }
    let mut newer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text) in [("m/code/m.py", "no code of today"), ("m/version", "11\n"), ("m/data.pkl", "")] {
        newer.start_file(name, FileOptions::default()).unwrap();
        newer.write_all(text.as_bytes()).unwrap();
    }
    assert_eq!(read(&newer.finish().unwrap().into_inner()).map(drop), Err(ModuleError::Version(11)));
}

/// Ways around the rules, written by hand.
#[test]
fn code_that_python_would_not_write_gets_no_further() {
    let of = |from: &str, to: &str| {
        let entry = "code/__torch__/torch/nn/modules/container.py";
        let bytes = changed("mlp.pt", entry, |text| {
            assert!(text.contains(from), "{text}");
            text.replacen(from, to, 1)
        });
        read(&bytes).map(drop).map_err(|e| e.to_string())
    };
    let line = "    _0 = getattr(self, \"0\")\n";
    let with = |more: &str| of(line, &format!("{line}    {more}\n"));
    assert_eq!(with("pass"), Ok(()));
    assert_eq!(with("_9 : __torch__.torch.nn.modules.linear.Linear = _0"), Ok(()));
    for (more, says) in [
        ("self.n = 1", "assigns to self.n"),
        ("_0.weight = torch.neg(_0.weight)", "assigns to _0.weight"),
        ("(self.n, m) = (1, 2)", "assigns to"),
        ("self.n += 1", "assigns to self.n"),
        ("for self.n in [1]:", "assigns to self.n"),
        ("with input as self.n:", "assigns to self.n"),
        ("pass; self.n = 1", "is nothing that PyTorch writes"),
        ("x = \"\"\"a\"\"\"", "a text over several lines"),
        ("x = ops.mylib.run(input)", "the operator mylib.run"),
        ("x = torch.save(input, \"/tmp/x\")", "save in"),
        ("x = ops.aten.from_file(\"/etc/passwd\")", "from_file in"),
        ("x = torch.dropout(input, 0.5, True)", "dropout in"),
        ("x = torch.lstm(input, [input], [input], True, 1, 0., False, False, True)", "lstm in"),
        ("x = torch.native_batch_norm(input)", "is batch normalisation"),
    ] {
        let e = with(more).unwrap_err();
        assert!(e.contains(says), "{more}: {e}");
    }
    assert_eq!(with("x = torch.dropout(input, 0.5, self.training)"), Ok(()));
    // A tensor that is neither parameter nor buffer, and is read.
    let declared = of("  training : bool\n", "  training : bool\n  kept : Tensor\n");
    assert_eq!(declared, Ok(()), "nobody reads it");
    let entry = "code/__torch__/torch/nn/modules/container.py";
    let bytes = changed("mlp.pt", entry, |text| {
        text.replacen("  training : bool\n", "  training : bool\n  kept : Tensor\n", 1).replacen(
            line,
            &format!("{line}    k = self.kept\n"),
            1,
        )
    });
    assert!(
        matches!(read(&bytes), Err(ModuleError::Keeps(text)) if text.contains("the attribute kept of type Tensor"))
    );
}

#[test]
fn an_archive_written_anew_holds_the_same() {
    let bytes = file("picture.pt");
    let anew = rewritten(Cursor::new(&bytes), bytes.len() as u64).unwrap();
    assert_eq!(read(&anew).unwrap().tensors(), read(&bytes).unwrap().tensors());
    // What a bomb unpacks to is bounded by the size of the file.
    let e = rewritten(Cursor::new(&bytes), 0).map(|anew| anew.len());
    assert!(e.is_ok(), "small entries: {e:?}");
    // More than there is memory for is told, and ends nothing.
    let e = rewritten(Cursor::new(&bytes), 1 << 60).map(|anew| anew.len());
    assert_eq!(e, Err(ModuleError::Memory));
    // So are entries of another folder.
    for other in ["n/data.pkl", "data.pkl"] {
        let mut two = ZipWriter::new(Cursor::new(Vec::new()));
        for name in ["m/data.pkl", other] {
            two.start_file(name, FileOptions::default()).unwrap();
        }
        let e = read(&two.finish().unwrap().into_inner()).unwrap_err();
        assert!(e.to_string().contains("one folder"), "{e}");
    }
    // A second entry of the same name is what another reader could find.
    let mut twice = ZipWriter::new(Cursor::new(Vec::new()));
    for _ in 0..2 {
        twice.start_file("m/data.pkl", FileOptions::default()).unwrap();
    }
    let e = read(&twice.finish().unwrap().into_inner()).unwrap_err();
    assert!(matches!(e, ModuleError::NotAnArchive(_)), "{e}");
}

#[test]
fn a_job_names_a_file_or_what_was_found_in_it() {
    let written: TorchScript = toml::from_str("file = \"model.pt\"").unwrap();
    assert!(written.validate().unwrap_err().contains("`undertone job submit`"));
    let exported = TorchScript::Exported(Exported {
        file: FileRef { digest: crate::digest::Digest::of(b"x"), bytes: 9 },
        tensors: vec![TensorSpec { name: "w".into(), shape: vec![2, 3] }],
    });
    assert_eq!(exported.validate(), Ok(()));
    assert_eq!(exported.layout().unwrap().len(), 6);
    let json = serde_json::to_string(&exported).unwrap();
    assert_eq!(serde_json::from_str::<TorchScript>(&json).unwrap(), exported);
    assert!(toml::from_str::<TorchScript>("file = \"model.pt\"\nbytes = 3").is_err());
    assert!(toml::from_str::<TorchScript>("").is_err());
}

proptest! {
    /// Whatever the bytes: a refusal, never a panic.
    #[test]
    fn damaged_files_are_refused_or_read(at in 0usize..15_000, byte: u8, length in 0usize..15_000) {
        let mut bytes = file("mlp.pt");
        let (at, length) = (at % bytes.len(), length % bytes.len());
        bytes[at] = byte;
        let _ = read(&bytes);
        let _ = rewritten(Cursor::new(&bytes), bytes.len() as u64);
        bytes.truncate(length);
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn any_text_is_code_or_is_refused(text in "[ -~\n]{0,200}") {
        let _ = text::SourceFile::read("m", &text);
    }
}
