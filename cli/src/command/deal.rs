//! `undertone deal`: one data set dealt out to clients, for studies. Needs no deployment.

use crate::failure::bad_input;
use crate::output::Screen;
use anyhow::{Context as _, Result};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use undertone_data::idx::IdxArray;
use undertone_data::partition::{dirichlet, dirichlet_csv, iid, iid_csv};

/// Most clients that a set is dealt out to.
const MAX_CLIENTS: u32 = 100_000;

/// Deal a data set out to clients, for studies: a CSV file, or IDX pictures with their labels
///
/// Without --alpha every row goes to any client with the same chance, and all get as many. With it, each class's rows go to
/// the clients by shares that are drawn from a Dirichlet distribution: at 100 all are much alike, at 0.1 each has few classes,
/// and some may have no rows at all. The same seed deals the same.
///
/// Writes a folder a client, OUT/client-1 and so on, with data.csv or with images and labels in it (not compressed).
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// The CSV file, with a header line; or the IDX file of pictures
    #[arg(value_name = "FILE")]
    data: PathBuf,
    /// The IDX file with the labels of the pictures
    #[arg(long, conflicts_with = "by")]
    labels: Option<PathBuf>,
    /// How many clients
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CLIENTS)))]
    clients: u32,
    /// How alike the clients are, above 0; without it, all alike
    #[arg(long)]
    alpha: Option<f64>,
    /// The column of the CSV file whose values are the classes, for --alpha
    #[arg(long, requires = "alpha")]
    by: Option<String>,
    /// What the draw follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The folder to write to; made if it is not there
    #[arg(long)]
    out: PathBuf,
}

impl Arguments {
    /// Runs the command.
    ///
    /// # Errors
    /// For input that makes no sense, files that cannot be read, and a disk that refuses.
    pub(crate) fn run(self, screen: Screen) -> Result<ExitCode> {
        if let Some(alpha) = self.alpha.filter(|a| !(a.is_finite() && *a > 0.0)) {
            return Err(bad_input(format!("--alpha must be a positive number, not {alpha}")));
        }
        let rows = match &self.labels {
            Some(labels) => self.deal_pictures(labels)?,
            None => self.deal_csv()?,
        };
        if screen.json {
            let clients: Vec<_> = rows
                .iter()
                .zip(1..)
                .map(|(rows, i)| json!({ "folder": self.folder(i), "rows": rows }))
                .collect();
            screen.json(&json!({ "clients": clients }))?;
        } else {
            for (rows, i) in rows.iter().zip(1..) {
                screen.line(&format!("{}: {rows} rows", self.folder(i).display()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn folder(&self, client: usize) -> PathBuf {
        self.out.join(format!("client-{client}"))
    }

    /// Writes files to a client's folder.
    fn write(&self, client: usize, files: &[(&str, &[u8])]) -> Result<()> {
        let folder = self.folder(client);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (name, bytes) in files {
            let path = folder.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn deal_csv(&self) -> Result<Vec<usize>> {
        let place = || format!("cannot deal {}", self.data.display());
        let text = fs::read_to_string(&self.data).with_context(place)?;
        let clients = self.clients as usize;
        let parts = match (self.alpha, &self.by) {
            (None, _) => iid_csv(&text, clients, self.seed).with_context(place)?,
            (Some(alpha), Some(column)) => {
                dirichlet_csv(&text, column, clients, alpha, self.seed).with_context(place)?
            }
            (Some(_), None) => {
                return Err(bad_input("--alpha needs the classes of a CSV file: --by COLUMN"));
            }
        };
        let mut rows = Vec::with_capacity(parts.len());
        for (part, i) in parts.iter().zip(1..) {
            self.write(i, &[("data.csv", part.as_bytes())])?;
            let csv = undertone_data::CsvText::parse(part).with_context(place)?;
            rows.push(csv.rows.len());
        }
        Ok(rows)
    }

    fn deal_pictures(&self, labels: &Path) -> Result<Vec<usize>> {
        let read =
            |path: &Path| IdxArray::read(path).with_context(|| format!("cannot read {}", path.display()));
        let (pictures, labels) = (read(&self.data)?, read(labels)?);
        if labels.dimensions != [pictures.len()] {
            return Err(bad_input(format!(
                "{} pictures, and labels of the dimensions {:?}: the two files do not belong together",
                pictures.len(),
                labels.dimensions
            )));
        }
        let clients = self.clients as usize;
        let parts = match self.alpha {
            None => iid(pictures.len(), clients, self.seed),
            Some(alpha) => {
                let classes: Vec<u32> = labels.bytes.iter().map(|&b| b.into()).collect();
                dirichlet(&classes, clients, alpha, self.seed)
            }
        };
        for (part, i) in parts.iter().zip(1..) {
            let bytes = |array: &IdxArray| {
                let mut bytes = Vec::new();
                // Smaller than what was read, and a vector takes all.
                array.select(part).write(&mut bytes).map(|()| bytes)
            };
            self.write(i, &[("images", &bytes(&pictures)?), ("labels", &bytes(&labels)?)])?;
        }
        Ok(parts.iter().map(Vec::len).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_data::idx::IdxArray;

    fn arguments(folder: &Path, data: &str, labels: Option<&str>, alpha: Option<f64>) -> Arguments {
        Arguments {
            data: folder.join(data),
            labels: labels.map(|l| folder.join(l)),
            clients: 3,
            alpha,
            by: labels.is_none().then(|| "y".to_owned()),
            seed: 1,
            out: folder.join("out"),
        }
    }

    #[test]
    fn pictures_keep_their_labels() {
        let folder = tempfile::tempdir().unwrap();
        let pictures = IdxArray { dimensions: vec![30, 1, 2], bytes: (0..60).collect() };
        let labels = IdxArray { dimensions: vec![30], bytes: (0..30).map(|i| i % 2).collect() };
        for (array, name) in [(&pictures, "p"), (&labels, "l")] {
            array.write(&mut fs::File::create(folder.path().join(name)).unwrap()).unwrap();
        }
        for alpha in [None, Some(0.5)] {
            let rows = arguments(folder.path(), "p", Some("l"), alpha)
                .deal_pictures(&folder.path().join("l"))
                .unwrap();
            let mut seen = 0;
            for (rows, i) in rows.iter().zip(1..) {
                let read = |name: &str| {
                    IdxArray::read(&folder.path().join(format!("out/client-{i}/{name}"))).unwrap()
                };
                let (pictures, labels) = (read("images"), read("labels"));
                assert_eq!((pictures.len(), labels.len()), (*rows, *rows));
                for (picture, label) in pictures.bytes.chunks(2).zip(&labels.bytes) {
                    assert_eq!((picture[0] / 2 % 2, picture[1]), (*label, picture[0] + 1));
                }
                seen += rows;
            }
            assert_eq!(seen, 30);
        }
    }

    #[test]
    fn a_csv_is_dealt_out_with_its_header() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("d.csv"), "x,y\n1,a\n2,b\n3,a\n4,b\n").unwrap();
        for alpha in [None, Some(1.0)] {
            let rows = arguments(folder.path(), "d.csv", None, alpha).deal_csv().unwrap();
            assert_eq!(rows.iter().sum::<usize>(), 4);
            let first = fs::read_to_string(folder.path().join("out/client-1/data.csv")).unwrap();
            assert!(first.starts_with("x,y\n"));
        }
        let no_column = Arguments { by: None, ..arguments(folder.path(), "d.csv", None, Some(1.0)) };
        assert!(no_column.deal_csv().unwrap_err().to_string().contains("--by"));
    }
}
