//! The page and the plot of the study.

use crate::runs::Run;
use std::fmt::Write as _;

/// What became of one case.
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) source: String,
    /// In per cent, like all accuracies here.
    pub(crate) published: f64,
    pub(crate) batch: u32,
    pub(crate) epochs: u32,
    /// A contract's word.
    pub(crate) mechanism: &'static str,
    pub(crate) noise_multiplier: f64,
    pub(crate) epsilon: f64,
    pub(crate) ceiling: f64,
    pub(crate) runs: Vec<Run>,
}

impl Outcome {
    /// Mean and standard deviation (n - 1) of the accuracies.
    fn mean_and_deviation(&self) -> (f64, f64) {
        let n = self.runs.len() as f64;
        let mean = self.runs.iter().map(|r| r.accuracy).sum::<f64>() / n;
        let squares = self.runs.iter().map(|r| (r.accuracy - mean).powi(2)).sum::<f64>();
        (mean, (squares / (n - 1.0).max(1.0)).sqrt())
    }
}

/// The page, in Markdown.
pub(crate) fn page(outcomes: &[Outcome], epsilon: f64, delta: f64) -> String {
    let mut text = format!(
        "# Fashion-MNIST with each picture protected\n\nWritten by `cargo xtask study fashion-mnist`.\n\n\
         DP-SGD on the 60 000 training pictures to (ε, δ) = ({epsilon}, {delta:e}) for each picture, add-remove neighbours, Poisson \
         batches, ε as an upper bound from privacy loss distributions; what the mechanisms are: ../PRIVACY.md. Accuracy of the last \
         model on the 10 000 test pictures, mean ± standard deviation over the runs. The choice of hyperparameters is that of the \
         source and is not charged.\n\n\
         | case | mechanism | batch | epochs | noise multiplier | ε | accuracy | runs | published | without privacy |\n\
         |---|---|---|---|---|---|---|---|---|---|\n"
    );
    for o in outcomes {
        let (mean, deviation) = o.mean_and_deviation();
        let _ = writeln!(
            text,
            "| {} | `{}` | {} | {} | {:.4} | {:.3} | **{mean:.2} ± {deviation:.2} %** | {} | {:.1} % ({}) | {:.2} % |",
            o.name,
            o.mechanism,
            o.batch,
            o.epochs,
            o.noise_multiplier,
            o.epsilon,
            o.runs.len(),
            o.published,
            o.source,
            o.ceiling
        );
    }
    text + "\n![Accuracy of each run, the published figure and the ceiling](fashion-mnist.svg)\n"
}

const WIDTH: f64 = 640.0;
const LINE: f64 = 70.0;
const LEFT: f64 = 170.0;

/// The plot: a line a case, a dot a run, a tick for the published figure, one for the model without privacy.
pub(crate) fn plot(outcomes: &[Outcome]) -> String {
    let all =
        |o: &Outcome| o.runs.iter().map(|r| r.accuracy).chain([o.published, o.ceiling]).collect::<Vec<_>>();
    let values: Vec<f64> = outcomes.iter().flat_map(all).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min).floor();
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil().max(low + 1.0);
    let x = |accuracy: f64| LEFT + (accuracy - low) / (high - low) * (WIDTH - LEFT - 30.0);
    let height = LINE * outcomes.len() as f64 + 70.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let axis = height - 50.0;
    let mut tick = low;
    while tick <= high {
        let at = x(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"20\" x2=\"{at:.1}\" y2=\"{axis}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{tick} %</text>",
            axis + 16.0
        );
        tick += 1.0;
    }
    for (i, o) in outcomes.iter().enumerate() {
        let y = 20.0 + LINE * (i as f64 + 0.5);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 14.0,
            y + 4.0,
            escaped(&o.name)
        );
        for (value, colour) in [(o.published, "#d95f02"), (o.ceiling, "#7570b3")] {
            let at = x(value);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{}\" x2=\"{at:.1}\" y2=\"{}\" stroke=\"{colour}\" stroke-width=\"3\"/>",
                y - 16.0,
                y + 16.0
            );
        }
        for run in &o.runs {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{y}\" r=\"4\" fill=\"#1b9e77\" fill-opacity=\"0.7\"/>",
                x(run.accuracy)
            );
        }
    }
    let legend = height - 12.0;
    for (at, colour, words) in [
        (LEFT, "#1b9e77", "a run"),
        (LEFT + 90.0, "#d95f02", "published"),
        (LEFT + 200.0, "#7570b3", "without privacy"),
    ] {
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"{legend}\">{words}</text>",
            legend - 9.0,
            at + 15.0
        );
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
