//! Other data than rows of features and classes: pictures, and labels that are numbers.

use undertone_core::trainer::Metrics;
use undertone_harness::{Process, Processes, SAMPLE_JOB};
use undertone_round::event::{JobEvent, Outcome};

/// The sample job with other tables of these names, each given without its `[name]`.
fn job(model: &str, training: &str, data: &str) -> String {
    let (head, _) = SAMPLE_JOB.split_once("[data.label]").expect("the sample has a label");
    let text = head
        .replace("kind = \"logistic\"", model)
        .replace("learning_rate = 0.1\nlocal_steps = 1", training)
        .replace("rounds = 2", "rounds = 4");
    format!("{text}\n[data]\n{data}\n")
}

/// What the evaluator measured of the last model, of a job that two trainers and an evaluator complete.
async fn last_measurement(d: &Processes, processes: &[Process], job: &str) -> Metrics {
    let mut operator = d.operator().await;
    let id = operator.submit(job).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}\n{}", events.text(), processes[0].log());
    let mut measured = events.0.iter().filter_map(|e| match e {
        JobEvent::Evaluated { metrics, .. } => Some(*metrics),
        _ => None,
    });
    measured.next_back().expect("a measurement")
}

fn allow(d: &Processes, name: &str) {
    let config = d.client_folder(name).join("client.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("allow_no_privacy = false", "allow_no_privacy = true")).unwrap();
}

/// IDX files of pictures of 6x6, and of their labels. Class 0 (written 3) is bright on the left, class 1 (written 9) on the
/// right.
fn pictures(rows: usize, shift: usize) -> (Vec<u8>, Vec<u8>) {
    let mut pictures = [&[0, 0, 8, 3][..], &(rows as u32).to_be_bytes(), &[0, 0, 0, 6, 0, 0, 0, 6]].concat();
    let mut labels = [&[0, 0, 8, 1][..], &(rows as u32).to_be_bytes()].concat();
    for i in 0..rows {
        let right = (i + shift) * 5 / 3 % 2;
        labels.push(if right == 1 { 9 } else { 3 });
        let light =
            |at: usize| ((i * 31 + at * 17 + shift) % 120) as u8 + 120 * u8::from(at % 6 / 3 == right);
        pictures.extend((0..36).map(light));
    }
    (pictures, labels)
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_learnt_and_those_that_do_not_fit_are_refused() {
    let d = Processes::start();
    let mut processes = vec![];
    for (name, role, rows, shift) in
        [("a", "trainer", 120, 0), ("b", "trainer", 90, 7), ("e", "evaluator", 60, 3)]
    {
        let (pictures, labels) = pictures(rows, shift);
        let files = [("--data", "images", &pictures[..]), ("--labels", "labels", &labels[..])];
        let output = d.enrol_with(name, role, &files, rows as u64);
        assert!(output.status.success(), "{output:?}");
        allow(&d, name);
        processes.push(d.run_client(name));
    }
    let spec = |height| {
        job(
            "kind = \"mlp\"\nhidden = [12]\nactivation = \"tanh\"",
            "learning_rate = 0.5\nlocal_steps = 20\nbatch_size = 16",
            &format!(
                "picture = {{ height = {height}, width = 6 }}\n\
                 label = {{ classes = [{{ name = \"left\", values = [\"3\"] }}, {{ name = \"right\", values = [\"9\"] }}] }}"
            ),
        )
    };
    let last = last_measurement(&d, &processes, &spec(6)).await;
    assert!(last.accuracy.unwrap() > 0.95 && last.rows == 60, "{last:?}");
    assert_eq!(last.mean_absolute_error, None);

    let mut operator = d.operator().await;
    let id = operator.submit(&spec(7)).await.unwrap();
    let said = operator.watch_until(&id, |e| matches!(e, JobEvent::Declined { .. })).await;
    // The reason is the data owner's to see.
    assert!(!said.text().contains("6x6"), "{}", said.text());
    let log = processes[0].log() + &processes[1].log();
    assert!(log.contains("the pictures are 6x6, the job asks for 1x7x6"), "{log}");
}

/// y = 300 + 100·x, in euros.
fn prices(rows: usize, shift: f64) -> String {
    let mut text = String::from("x,price\n");
    for i in 0..rows {
        let x = (((i as f64 + 0.5) / rows as f64 * 2.0 - 1.0) * 0.9 + shift).clamp(-1.0, 1.0);
        text += &format!("{x:.4},{:.2}\n", 300.0 + 100.0 * x);
    }
    text
}

const PRICE: &str = "label = { column = \"price\", range = [100, 500] }\n\
                     columns = [{ name = \"x\", kind = \"number\", range = [-1, 1] }]";

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_predicted_and_measured_in_its_own_unit() {
    let d = Processes::start();
    let mut processes = vec![];
    for (name, role, rows, shift) in
        [("a", "trainer", 120, 0.0), ("b", "trainer", 90, 0.05), ("e", "evaluator", 60, 0.0)]
    {
        assert!(d.enrol(name, role, &prices(rows, shift), rows as u64).status.success());
        allow(&d, name);
        processes.push(d.run_client(name));
    }
    let training = "learning_rate = 0.3\nlocal_steps = 20";
    let plain = job("kind = \"linear\"", training, PRICE);
    let last = last_measurement(&d, &processes, &plain).await;
    assert!(last.accuracy.is_none() && last.mean_absolute_error.unwrap() < 1.0, "{last:?}");

    // With noise on what the evaluator measures there is the loss alone.
    let private = plain.replace(
        "unit = \"none\"",
        "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.5\ntarget_epsilon = 20.0\n\
         delta = 1e-3\nbudget_epsilon = 40.0\nmetrics = { epsilon = 2.0, max_loss = 4.0 }",
    );
    let last = last_measurement(&d, &processes, &private).await;
    assert_eq!((last.accuracy, last.mean_absolute_error, last.rows), (None, None, 60));
    assert!(last.loss.is_finite(), "{last:?}");
}
