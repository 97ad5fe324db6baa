use super::*;
use crate::nn::Network;
use std::io::Write as _;
use std::path::PathBuf;
use undertone_core::layout::TensorSpec;
use undertone_core::model::ModelSpec;
use undertone_core::torchscript::TorchScript;
use zip::write::FileOptions;
use zip::{ZipArchive, ZipWriter};

/// A file of tests/torchscript.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/torchscript").join(name)
}

/// The model that it is. One that is not to be looked into has tensors made up.
pub(crate) fn spec(path: &Path) -> ModelSpec {
    let bytes = std::fs::read(path).unwrap();
    let file = undertone_core::initial::FileRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
    let tensors = match Archive::read(Cursor::new(&bytes)) {
        Ok(archive) => archive.tensors().to_vec(),
        Err(_) => vec![TensorSpec { name: "fc.weight".into(), shape: vec![1, 2] }],
    };
    ModelSpec::Torchscript(TorchScript::Exported(Exported { file, tensors }))
}

/// What a task's model comes to, with its file at `path`.
pub(crate) fn network(path: &Path, shape: &Shape) -> Result<Network, TrainerError> {
    Ok(Network::of_task(&spec(path), shape, Some(path), Device::Cpu)?)
}

fn refusal(path: &Path) -> String {
    match network(path, &Shape::table(2, 2)) {
        Err(TrainerError::Module(text)) => text,
        other => panic!("{}: {other:?}", path.display()),
    }
}

#[test]
fn exported_modules_of_every_input_are_loaded() {
    let picture = Input::Image { channels: 1, height: 6, width: 6 };
    let tokens = Input::Tokens { length: 5, vocabulary: 7 };
    let classes = |classes| Target::Class { classes };
    for (name, input, target) in [
        ("mlp.pt", Input::features(2), classes(2)),
        ("mixing.pt", Input::features(2), classes(2)),
        ("number.pt", Input::features(2), Target::Number),
        ("picture.pt", picture, classes(2)),
        ("tokens.pt", tokens, classes(3)),
    ] {
        let network = network(&file(name), &Shape { input, target }).unwrap();
        assert!(network.is_script() && network.drops() && network.len() > 2, "{name}");
    }
}

#[test]
fn what_does_not_train_is_refused_with_the_reason() {
    for (name, says) in [
        // Seen by running it.
        ("counting.pt", "training_step changes the buffer \"seen\""),
        ("pushing.pt", "training_step changes a parameter by itself"),
        ("apart.pt", "the loss does not depend on any parameter"),
        (
            "unused.pt",
            "does not depend on 2 of 4 parameters, which would never be trained: \"spare.weight\", \"spare.bias\"",
        ),
        ("mean.pt", "one loss for each example"),
        ("narrow.pt", "with labels of shape [3] (classes 0 to 1): RuntimeError: Target 1 is out of bounds."),
        ("double.pt", "\"weight\" is Double"),
        // Seen in its code: the coordinator's word that it was looked at is not relied on.
        ("traced.pt", "the module was traced"),
        ("traced_alone.pt", "export it with export.py"),
        ("scripted.pt", "no method training_step"),
        ("batch_norm.pt", "take nn.GroupNorm"),
        ("remembering.pt", "assigns to self.last"),
        ("listing.pt", "List[float]"),
        ("recurrent.pt", "nn.LSTMCell"),
        ("reading.pt", "from_file"),
        ("behind.pt", "not allowed"),
        ("nothing.pt", "parameters to train, not 0"),
        ("mlp.safetensors", "no TorchScript file"),
    ] {
        let e = refusal(&file(name));
        assert!(e.contains(says), "{name}: {e}");
        assert!(!e.contains('\n'), "{name}: {e}");
    }
}

/// The data of the job is of another shape than the module reads.
#[test]
fn a_module_that_does_not_fit_the_data_is_refused() {
    let of = |name: &str, shape| match network(&file(name), &shape) {
        Err(TrainerError::Module(text)) => text,
        other => panic!("{other:?}"),
    };
    let e = of("mlp.pt", Shape::table(3, 2));
    assert!(
        e.contains("training_step fails on 3 made-up examples of shape [3, 3]")
            && e.contains("cannot be multiplied"),
        "{e}"
    );
    let e = of(
        "mlp.pt",
        Shape { input: Input::Tokens { length: 2, vocabulary: 3 }, target: Target::Class { classes: 2 } },
    );
    assert!(e.contains("training_step fails"), "{e}");
}

/// An output too few, or an embedding too short: it shows on nobody's data.
#[test]
fn a_module_that_is_too_small_for_the_classes_or_tokens_is_refused() {
    let of = |vocabulary, classes| {
        let input = Input::Tokens { length: 5, vocabulary };
        network(&file("tokens.pt"), &Shape { input, target: Target::Class { classes } })
    };
    assert!(of(7, 3).is_ok());
    for (vocabulary, classes, says) in [
        (8, 3, "(tokens 0 to 7) with labels of shape [3] (classes 0 to 2): RuntimeError: index out of range"),
        (7, 4, "(tokens 0 to 6) with labels of shape [3] (classes 0 to 3): RuntimeError: Target 3 is out"),
    ] {
        match of(vocabulary, classes) {
            Err(TrainerError::Module(text)) => assert!(text.contains(says), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

/// What only the data shows: the module's own reason is for the data owner, and no process is started anew for it.
#[test]
fn what_fails_on_the_data_alone_is_told_to_its_owner() {
    let network = network(&file("beyond.pt"), &Shape::table(2, 2)).unwrap();
    let x = Tensor::ones([3, 2], (Kind::Float, Device::Cpu));
    let y = Tensor::zeros([3], (Kind::Int64, Device::Cpu));
    let flat = network.load(&vec![0.0; network.len()], Device::Cpu).unwrap();
    let weights = network.weights(&network.layout().whole(), &flat, &flat).unwrap();
    for failed in [
        network.training_loss(&weights, &x, &y, Reduction::Mean).map(drop),
        network.measure(&weights, &x, &y).map(drop),
        network.measure_each(&weights, &x, &y).map(drop),
    ] {
        let e = TrainerError::from(failed.unwrap_err());
        let TrainerError::Unsupported(text) = &e else { panic!("{e:?}") };
        assert!(text.contains("fails on this data: RuntimeError: index out of range"), "{text}");
    }
}

#[test]
fn a_cut_file_and_one_of_another_version_are_refused() {
    let whole = std::fs::read(file("mlp.pt")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(refusal(&path).contains("no TorchScript file, or a part of one"));

    let rewrite = |entry: &str, change: &dyn Fn(&[u8]) -> Option<Vec<u8>>| {
        let mut zip = ZipArchive::new(Cursor::new(&whole)).unwrap();
        let mut out = ZipWriter::new(File::create(&path).unwrap());
        for i in 0..zip.len() {
            let mut from = zip.by_index(i).unwrap();
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            let bytes = match from.name().ends_with(entry) {
                true => change(&bytes),
                false => Some(bytes),
            };
            if let Some(bytes) = bytes {
                out.start_file(from.name(), FileOptions::default()).unwrap();
                out.write_all(&bytes).unwrap();
            }
        }
        out.finish().unwrap();
    };
    rewrite("/version", &|_| Some(b"99\n".to_vec()));
    let e = refusal(&path);
    assert!(e.contains("of file version 99") && e.contains(undertone_core::torchscript::LIBTORCH), "{e}");
    // What is said of libtorch is said of the one that is here.
    assert!(crate::LIBTORCH_VERSION.starts_with(undertone_core::torchscript::LIBTORCH));
    rewrite("/data/0", &|_| None);
    assert!(refusal(&path).contains("cannot load it"));
    rewrite("/data.pkl", &|bytes| Some(bytes[..bytes.len() / 2].to_vec()));
    assert!(refusal(&path).contains("cannot load it"));
    rewrite("/code/__torch__/torch/nn/modules/container.py", &|bytes| {
        Some(
            String::from_utf8_lossy(bytes).replace("getattr(self, \"0\")", "getattr(self, 0 0)").into_bytes(),
        )
    });
    assert!(refusal(&path).contains("cannot load it"));
    rewrite("", &|bytes| Some(bytes.to_vec()));
    assert!(network(&path, &Shape::table(2, 2)).is_ok());
}

#[test]
fn the_file_is_the_one_that_the_job_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    let good = spec(&file("mlp.pt"));
    let load =
        |spec: &ModelSpec| Network::of_task(spec, &Shape::table(2, 2), Some(&path), Device::Cpu).map(drop);
    let broken =
        |e: Result<(), Failure>| matches!(TrainerError::from(e.unwrap_err()), TrainerError::Broken(_));
    assert!(broken(load(&good)), "it is not there");
    let mut bytes = std::fs::read(file("mlp.pt")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(broken(load(&good)), "it was altered");
    assert!(broken(Network::of_task(&good, &Shape::table(2, 2), None, Device::Cpu).map(drop)));

    std::fs::copy(file("mlp.pt"), &path).unwrap();
    let ModelSpec::Torchscript(TorchScript::Exported(mut other)) = good else { unreachable!() };
    other.tensors[0].name = "0.waight".into();
    let other = ModelSpec::Torchscript(TorchScript::Exported(other));
    let e = TrainerError::from(load(&other).unwrap_err());
    assert!(matches!(&e, TrainerError::Module(text) if text.contains("not those that the job names")), "{e}");
    let vast = undertone_core::initial::FileRef { digest: Digest::of(b""), bytes: 1 << 60 };
    let tensors = vec![TensorSpec { name: "w".into(), shape: vec![1] }];
    let vast = ModelSpec::Torchscript(TorchScript::Exported(Exported { file: vast, tensors }));
    assert!(load(&vast).is_err());
}
