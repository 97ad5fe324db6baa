//! The shipped examples hold together: the data contract of each job fits the data that it is for.

use std::path::{Path, PathBuf};
use undertone_core::schema::DataContract;
use undertone_data::partition::iid_csv;
use undertone_data::split::split_csv;
use undertone_data::synthetic::Classification;
use undertone_data::{inspect, load};

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(path)
}

/// The `[data]` table of a job file.
fn contract(job: &str) -> DataContract {
    let text = std::fs::read_to_string(example(job)).unwrap();
    let job: toml::Table = text.parse().unwrap();
    job["data"].clone().try_into().unwrap()
}

#[test]
fn every_hospital_meets_the_contract() {
    let contract = contract("hospitals/job.toml");
    assert_eq!((contract.inputs(), contract.shape().outputs()), (35, 1));
    let mut classes = [0, 0];
    for (file, rows) in [
        ("cleveland/heart.csv", 243),
        ("hungary/heart.csv", 234),
        ("long-beach/heart.csv", 160),
        ("switzerland/heart.csv", 98),
        ("evaluator/heldout.csv", 185),
    ] {
        let report = inspect(example("hospitals").join(file), &contract).unwrap();
        assert_eq!(report.problems, Vec::<String>::new(), "{file}");
        assert_eq!(report.rows, rows, "{file}");
        classes[0] += report.class_rows[0];
        classes[1] += report.class_rows[1];
    }
    // Of 920 patients 411 are healthy, as the source has it.
    assert_eq!(classes, [411, 509]);
}

#[test]
fn a_zero_cholesterol_is_missing() {
    let contract = contract("hospitals/job.toml");
    let set = load(example("hospitals/switzerland/heart.csv"), &contract).unwrap();
    let names = contract.feature_names();
    let at = |name: &str| names.iter().position(|n| n == name).unwrap();
    // Switzerland measured none: each row says so, and says nothing else about it.
    for i in 0..set.rows {
        assert_eq!((set.row(i)[at("chol")], set.row(i)[at("chol is missing")]), (0.0, 1.0));
    }
}

#[test]
fn neither_id_nor_hospital_nor_diagnosis_is_a_feature() {
    let contract = contract("hospitals/job.toml");
    for column in contract.columns() {
        assert!(!["id", "dataset", "num"].contains(&column.name.as_str()), "{}", column.name);
    }
}

#[test]
fn the_quickstart_set_meets_its_contract() {
    let contract = contract("quickstart/job.toml");
    assert_eq!((contract.inputs(), contract.shape().outputs()), (20, 1));
    let csv = Classification::default().generate().unwrap().to_csv();
    let (train, held_out) = split_csv(&csv, 0.2, 1).unwrap();
    let mut files = iid_csv(&train, 4, 1).unwrap();
    files.push(held_out);
    let folder = tempfile::tempdir().unwrap();
    for (i, text) in files.iter().enumerate() {
        let path = folder.path().join(format!("{i}.csv"));
        std::fs::write(&path, text).unwrap();
        let set = load(path, &contract).unwrap();
        assert_eq!((set.rows, set.inputs), (200, 20));
        let positive = set.classes().iter().filter(|&&l| l == 1).count();
        assert!((60..=140).contains(&positive), "{positive} of 200");
        // The range is generous: hardly a value sits at an end of it.
        let at_an_end = (0..200).flat_map(|i| set.row(i)).filter(|x| x.abs() == 1.0).count();
        assert!(at_an_end < 10, "{at_an_end} of 4000");
    }
}

/// Every `toml` block of the README is a contract, a client's `[data]`, or lines to alter in the job of pictures.
#[test]
fn what_the_readme_of_the_kinds_shows_is_valid() {
    let text = std::fs::read_to_string(example("data/README.md")).unwrap();
    let blocks = text.split("```toml\n").skip(1).map(|b| b.split("```").next().unwrap().parse().unwrap());
    let [series, texts, client, scattering]: [toml::Table; 4] =
        blocks.collect::<Vec<_>>().try_into().unwrap();
    let shape = |table: &toml::Table| {
        let contract: DataContract = table["data"].clone().try_into().unwrap();
        contract.shape().input.to_string()
    };
    assert_eq!(shape(&series), "series of 48 steps of 4 features");
    assert_eq!(shape(&texts), "texts of 64 tokens out of 6");
    let files: Vec<&str> = client["data"].as_table().unwrap().keys().map(String::as_str).collect();
    assert_eq!(files, ["labels", "path"]);
    let mut job: toml::Table =
        std::fs::read_to_string(example("data/pictures.toml")).unwrap().parse().unwrap();
    job["data"]["picture"] = scattering["data"]["picture"].clone();
    assert_eq!(shape(&job), "pictures of 81x7x7");
    assert_eq!(scattering["model"]["kind"].as_str(), Some("logistic"));
}

#[test]
fn pictures_and_numbers_have_the_shape_that_their_jobs_say() {
    let pictures = contract("data/pictures.toml").shape();
    assert_eq!((pictures.input.dimensions(), pictures.outputs()), (vec![1, 28, 28], 10));
    let flats = contract("data/regression.toml");
    assert_eq!((flats.inputs(), flats.shape().target), (7, undertone_core::shape::Target::Number));
}
