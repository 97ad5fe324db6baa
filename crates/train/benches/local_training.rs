//! What a step of local training costs, and what models compute: the half of `benches/local-training` that is Undertone.
//!
//! `local_training time THREADS` reads lines `name steps` from standard input and answers each with the seconds that a step
//! took; `local_training export FOLDER` writes each kind of model with examples and what it puts out for them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::Instant;
use tch::Device;
use undertone_core::layout::{ModelLayout, TensorSpec};
use undertone_core::model::ModelSpec;
use undertone_core::plan::TrainPlan;
use undertone_core::shape::{Input, Shape, Target};
use undertone_train::rehearsal::Rehearsal;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Name, model, shape and examples in a batch.
type Case = (&'static str, ModelSpec, Shape, usize);

/// Examples that batches are drawn from, for each in a batch.
const EPOCH_BATCHES: usize = 8;

/// The models that are timed.
fn timed() -> Result<Vec<Case>> {
    let digits = Input::Image { channels: 1, height: 28, width: 28 };
    let ten = Target::Class { classes: 10 };
    Ok(vec![
        (
            "mlp",
            toml::from_str("kind = \"mlp\"\nhidden = [256]")?,
            Shape { input: Input::features(784), target: ten },
            256,
        ),
        (
            "cnn",
            toml::from_str(
                "kind = \"cnn\"\nactivation = \"tanh\"\nhidden = [32]\nblocks = [\
                 { channels = 16, kernel = 8, stride = 2, padding = 2, pool = { kernel = 2, stride = 1 } },\
                 { channels = 32, kernel = 4, stride = 2, pool = { kernel = 2, stride = 1 } }]",
            )?,
            Shape { input: digits, target: ten },
            256,
        ),
        (
            "transformer",
            toml::from_str("kind = \"transformer\"\nwidth = 256\nheads = 4\nlayers = 4")?,
            Shape { input: Input::Tokens { length: 64, vocabulary: 1000 }, target: ten },
            32,
        ),
    ])
}

/// The models that PyTorch has to read by name.
fn exported() -> Result<Vec<Case>> {
    let (texts, series) =
        (Input::Tokens { length: 12, vocabulary: 30 }, Input::Series { steps: 9, features: 4 });
    let columns = Input::Features { columns: vec![1, 3, 2, 1] };
    let picture = |size| Input::Image { channels: 3, height: size, width: size };
    let (three, number) = (Target::Class { classes: 3 }, Target::Number);
    let cases = [
        ("logistic", "kind = \"logistic\"", columns.clone(), three),
        ("linear", "kind = \"linear\"", columns.clone(), number),
        ("mlp", "kind = \"mlp\"\nhidden = [20, 10]\nactivation = \"gelu\"", columns.clone(), three),
        (
            "cnn",
            "kind = \"cnn\"\nactivation = \"tanh\"\nnorm = \"group\"\ngroups = 4\nhidden = [16]\nblocks = [\
             { channels = 8, kernel = 5, stride = 2, padding = 2, pool = { kernel = 2, stride = 1 } },\
             { channels = 12, kernel = 3, pool = { kind = \"average\", kernel = 2 } }]",
            picture(20),
            three,
        ),
        ("resnet18-small", "kind = \"resnet18\"\nwidth = 16\ngroups = 8", picture(16), three),
        ("resnet18-large", "kind = \"resnet18\"\nstem = \"large\"", picture(64), three),
        ("lstm-texts", "kind = \"lstm\"\nhidden = 16\nlayers = 2\nembedding = 8", texts.clone(), three),
        ("lstm-series", "kind = \"lstm\"\nhidden = 16", series.clone(), number),
        ("gru-texts", "kind = \"gru\"\nhidden = 16", texts.clone(), three),
        ("gru-series", "kind = \"gru\"\nhidden = 16\nlayers = 2", series.clone(), number),
        (
            "transformer-texts",
            "kind = \"transformer\"\nwidth = 16\nheads = 4\nlayers = 2",
            texts.clone(),
            three,
        ),
        (
            "transformer-texts-class",
            "kind = \"transformer\"\nwidth = 16\nheads = 2\nlayers = 2\npooling = \"class\"\nactivation = \"gelu\"",
            texts,
            three,
        ),
        (
            "transformer-series",
            "kind = \"transformer\"\nwidth = 16\nheads = 4\nlayers = 1\nfeed_forward = 20",
            series,
            number,
        ),
        (
            "transformer-rows",
            "kind = \"transformer\"\nwidth = 16\nheads = 4\nlayers = 2\npooling = \"class\"",
            columns,
            three,
        ),
    ];
    cases
        .into_iter()
        .map(|(name, model, input, target)| Ok((name, toml::from_str(model)?, Shape { input, target }, 6)))
        .collect()
}

fn main() -> Result<()> {
    // `cargo bench` says so; what it runs without arguments of ours has nothing to do.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["time", threads] => time(threads.parse()?),
        ["export", folder] => export(Path::new(folder)),
        _ => {
            println!("see benches/local-training/README.md");
            Ok(())
        }
    }
}

fn time(threads: i32) -> Result<()> {
    tch::set_num_threads(threads);
    tch::set_num_interop_threads(threads);
    let mut models = BTreeMap::new();
    for (name, spec, shape, batch) in timed()? {
        let rehearsal = Rehearsal::new(&spec, &shape, EPOCH_BATCHES * batch, 1, Device::Cpu)?;
        models.insert(name, (rehearsal, batch));
    }
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (name, steps) = line.split_once(' ').ok_or("name and steps")?;
        let (rehearsal, batch) = models.get(name).ok_or("a model that is timed")?;
        let steps: u32 = steps.parse()?;
        let plan: TrainPlan = toml::from_str(&format!(
            "learning_rate = 0.01\nmomentum = 0.9\nlocal_steps = {steps}\nbatch_size = {batch}"
        ))?;
        let start = Instant::now();
        rehearsal.train(&plan, Some(1))?;
        println!("{}", start.elapsed().as_secs_f64() / f64::from(steps));
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn export(folder: &Path) -> Result<()> {
    for (name, spec, shape, examples) in exported()? {
        let rehearsal = Rehearsal::new(&spec, &shape, examples, 2, Device::Cpu)?;
        let about = |text: String| BTreeMap::from([("model".to_owned(), text)]);
        let mut table = serde_json::to_value(&spec)?;
        table["outputs"] = shape.outputs().into();
        table["input"] = match &shape.input {
            Input::Features { columns } => serde_json::json!({ "columns": columns }),
            Input::Image { channels, height, width } => {
                serde_json::json!({ "image": [channels, height, width] })
            }
            Input::Series { steps, features } => serde_json::json!({ "series": [steps, features] }),
            Input::Tokens { length, vocabulary } => serde_json::json!({ "tokens": [length, vocabulary] }),
        };
        let model = rehearsal.layout().to_safetensors(rehearsal.weights(), about(table.to_string()));
        std::fs::write(folder.join(format!("{name}.safetensors")), model)?;
        let (x, logits) = (rehearsal.examples()?, rehearsal.logits()?);
        let dimensions: Vec<usize> = [examples].into_iter().chain(shape.input.dimensions()).collect();
        let tensor = |name: &str, shape: Vec<usize>| TensorSpec { name: name.into(), shape };
        let pair = ModelLayout::new(vec![
            tensor("x", dimensions),
            tensor("logits", vec![examples, shape.outputs()]),
        ])?;
        let values: Vec<f32> = x.into_iter().chain(logits).collect();
        std::fs::write(
            folder.join(format!("{name}.examples")),
            pair.to_safetensors(&values, BTreeMap::new()),
        )?;
    }
    Ok(())
}
