//! Trainers that are functions.

use undertone_core::schema::DataContract;
use undertone_core::trainer::{
    BoundedSums, DataReport, EvaluationTask, LOSS_UNITS, LocalUpdate, Metrics, TrainTask, Trainer,
    TrainerError,
};

type Loss = dyn FnMut(&[f32]) -> f64 + Send;
type Train = dyn FnMut(&TrainTask, &[f32]) -> Result<Vec<f32>, TrainerError> + Send;

/// A trainer whose training is a closure from task and weights to a delta; its data always meets the contract,
/// unless [told otherwise](FnTrainer::unfit). The delta is of the whole model, or of the part that the job trains: what a job
/// does not train is left out of a whole one.
pub struct FnTrainer {
    train: Box<Train>,
    problems: Vec<String>,
    steps: u64,
    loss: Option<Box<Loss>>,
}

impl FnTrainer {
    /// Trains with a closure.
    pub fn new(
        train: impl FnMut(&TrainTask, &[f32]) -> Result<Vec<f32>, TrainerError> + Send + 'static,
    ) -> Self {
        Self { train: Box::new(train), problems: vec![], steps: 1, loss: None }
    }

    /// Moves every value by the same amount.
    pub fn constant(step: f32) -> Self {
        Self::new(move |_, weights| Ok(vec![step; weights.len()]))
    }

    /// Fails each time.
    pub fn failing(error: TrainerError) -> Self {
        Self::new(move |_, _| Err(error.clone()))
    }

    /// Takes a while, then moves every value by one.
    pub fn slow(pause: std::time::Duration) -> Self {
        Self::new(move |_, weights| {
            std::thread::sleep(pause);
            Ok(vec![1.0; weights.len()])
        })
    }

    /// Waits each time until it is told to go on (20 s at most), then moves every value by one.
    pub fn told() -> (Self, std::sync::mpsc::Sender<()>) {
        let (go, wait) = std::sync::mpsc::channel();
        let trainer = Self::new(move |_, weights| {
            let _ = wait.recv_timeout(std::time::Duration::from_secs(20));
            Ok(vec![1.0; weights.len()])
        });
        (trainer, go)
    }

    /// Says that it made so many local steps.
    pub fn steps(mut self, steps: u64) -> Self {
        self.steps = steps;
        self
    }

    /// Measures weights with a closure.
    pub fn loss(mut self, loss: impl FnMut(&[f32]) -> f64 + Send + 'static) -> Self {
        self.loss = Some(Box::new(loss));
        self
    }

    /// Has data that does not meet the contract.
    pub fn unfit(mut self, problem: &str) -> Self {
        self.problems.push(problem.into());
        self
    }
}

impl Trainer for FnTrainer {
    fn inspect(&mut self, data: &DataContract) -> Result<DataReport, TrainerError> {
        Ok(DataReport {
            rows: data.min_rows().max(10),
            class_rows: vec![5; data.label().classes().len()],
            problems: self.problems.clone(),
            ..DataReport::default()
        })
    }

    fn train(&mut self, task: &TrainTask, weights: &[f32]) -> Result<LocalUpdate, TrainerError> {
        let first_loss = match task.first_loss {
            true => Some(self.evaluate(&task.evaluation(), weights)?.loss),
            false => None,
        };
        let mut delta = (self.train)(task, weights)?;
        if task.plan.tensors.is_some() && delta.len() == weights.len() {
            delta = task.part()?.gather(&delta);
        }
        Ok(LocalUpdate { delta, steps: self.steps, first_loss })
    }

    /// The loss is the mean of the weights, unless there is a closure for it: enough to see which model was measured.
    fn evaluate(&mut self, _task: &EvaluationTask, weights: &[f32]) -> Result<Metrics, TrainerError> {
        let mean = |weights: &[f32]| {
            weights.iter().map(|w| f64::from(*w)).sum::<f64>() / weights.len().max(1) as f64
        };
        let loss = self.loss.as_mut().map_or_else(|| mean(weights), |loss| loss(weights));
        Ok(Metrics::of_classes(loss, 0.5, 10))
    }

    /// Ten rows, half of them right, each with the mean of the weights as its loss.
    fn evaluate_bounded(
        &mut self,
        task: &EvaluationTask,
        max_loss: f64,
        weights: &[f32],
    ) -> Result<BoundedSums, TrainerError> {
        let loss = self.evaluate(task, weights)?.loss.clamp(0.0, max_loss) / max_loss;
        Ok(BoundedSums {
            rows: 10,
            right: Some(5),
            loss_units: 10 * (loss * LOSS_UNITS as f64).round() as u64,
        })
    }
}
