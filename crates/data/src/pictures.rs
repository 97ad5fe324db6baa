//! IDX files of pictures and labels against the job's data contract.

use crate::check::{MAX_ROWS, MAX_VALUES};
use crate::idx::{IdxError, IdxSource};
use crate::problems::Problems;
use crate::truth::{ByteLabels, Tally, Truth};
use std::path::Path;
use undertone_core::data_files::DataFiles;
use undertone_core::schema::{DataContract, Picture};
use undertone_core::trainer::{DataReport, TrainerError};

/// Checks two files; gives the bytes of the pictures to `take`, piece by piece, and each label to `label`, in order. What
/// they are given counts only if the report has no problem.
pub(crate) fn scan(
    files: &DataFiles,
    contract: &DataContract,
    picture: &Picture,
    take: impl FnMut(&[u8]),
    label: impl FnMut(Truth),
) -> Result<DataReport, TrainerError> {
    let unreadable =
        |path: &Path, e: IdxError| TrainerError::Data(format!("cannot read {}: {e}", path.display()));
    let Some(labels) = &files.labels else {
        return Err(TrainerError::Data(format!(
            "{} needs a second file with the labels of the pictures: labels = \"..\" beside path in client.toml, or \
             --labels",
            files.path.display()
        )));
    };
    let pictures = IdxSource::open(&files.path).map_err(|e| unreadable(&files.path, e))?;
    let truths = IdxSource::open(labels).map_err(|e| unreadable(labels, e))?;
    let mut problems = Problems::default();
    check_sizes(&pictures, &truths, contract, picture, &mut problems);
    if !problems.is_empty() {
        return Ok(Tally::new(contract.label()).report(problems));
    }
    let tally = check_labels(truths, contract, &mut problems, label).map_err(|e| unreadable(labels, e))?;
    pictures.read(take).map_err(|e| unreadable(&files.path, e))?;
    Ok(tally.report(problems))
}

/// Whether the headers are what the contract asks for.
fn check_sizes(
    pictures: &IdxSource<'_>,
    labels: &IdxSource<'_>,
    contract: &DataContract,
    picture: &Picture,
    problems: &mut Problems,
) {
    let Picture { channels, height, width, .. } = *picture;
    let wanted = [channels as u64, height as u64, width as u64];
    let sizes = pictures.dimensions();
    let rows = sizes[0];
    match sizes {
        [_, rest @ ..] if *rest == wanted || (channels == 1 && *rest == wanted[1..]) => {}
        [_] => problems.add(|| "the file of pictures holds single bytes: is it the file of labels?".into()),
        [_, rest @ ..] => {
            let found = rest.iter().map(u64::to_string).collect::<Vec<_>>().join("x");
            problems
                .add(|| format!("the pictures are {found}, the job asks for {channels}x{height}x{width}"));
        }
        [] => unreachable!("a header has a dimension at least"),
    }
    match labels.dimensions() {
        [n] if *n == rows => {}
        [n] => {
            problems.add(|| format!("{rows} pictures, but {n} labels: the two files do not belong together"))
        }
        _ => problems
            .add(|| "the file of labels does not hold a byte a picture: is it the file of pictures?".into()),
    }
    if rows > MAX_ROWS {
        problems.add(|| format!("more than {MAX_ROWS} pictures: split the files"));
    }
    let most = MAX_VALUES / contract.inputs() as u64;
    if picture.scattering.is_some() && rows > most {
        problems.add(|| {
            format!("more than {most} pictures, which as maps are too many numbers: split the files")
        });
    }
    if rows < contract.min_rows() {
        problems
            .add(|| format!("too few pictures: {rows}, the job asks for at least {}", contract.min_rows()));
    }
}

fn check_labels(
    source: IdxSource<'_>,
    contract: &DataContract,
    problems: &mut Problems,
    mut label: impl FnMut(Truth),
) -> Result<Tally, IdxError> {
    let meaning = ByteLabels::new(contract.label());
    let mut tally = Tally::new(contract.label());
    let mut seen = 0u64;
    source.read(|bytes| {
        for &byte in bytes {
            seen += 1;
            match meaning.read(byte) {
                Ok(truth) => {
                    tally.count(truth);
                    label(truth);
                }
                Err(problem) => problems.add(|| format!("label {seen}: {problem}")),
            }
        }
    })?;
    Ok(tally)
}

#[cfg(test)]
#[path = "pictures_tests.rs"]
mod tests;
