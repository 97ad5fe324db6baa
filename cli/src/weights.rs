//! A file of somebody else's weights on its way to be a job's first model: read in pieces, mapped by name, sent once.

use crate::hand_in::hand_in;
use crate::profile::Connection;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use undertone_core::digest::Digester;
use undertone_core::initial::{FileRef, Initial, InitialError, Mapping, Origin, Source};
use undertone_core::layout::{LayoutError, ModelLayout};
use undertone_round::job::JobSpec;

/// A file that holds a model's values under some names, ready to be written in the model's own order.
#[derive(Debug)]
pub(crate) struct Weights {
    path: PathBuf,
    mapping: Mapping,
    /// Of what is sent.
    file: FileRef,
}

/// Why a file is not a model's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WeightsError {
    #[error("cannot be read: {0}")]
    Disk(#[from] io::Error),
    #[error("{0}")]
    Content(#[from] InitialError),
    #[error("it is no safetensors file: {0}")]
    Header(#[from] LayoutError),
    #[error(
        "seeded: the model has no seed to draw values from; leave seeded out, and name a file that has all tensors"
    )]
    Seedless,
    #[error("the model: {0}")]
    Model(LayoutError),
}

impl Weights {
    /// Reads the file that a job names, once, and puts its digest in the name's place; `None` if the job names none. A
    /// relative path starts at `folder`.
    ///
    /// # Errors
    /// Which file it is and what is wrong with it.
    pub(crate) fn of(spec: &mut JobSpec, folder: &Path) -> Result<Option<Self>, (PathBuf, WeightsError)> {
        let Some(Initial::Written(source)) = &spec.initial else { return Ok(None) };
        let path = folder.join(&source.weights);
        let weights = Self::read(spec, source, &path).map_err(|e| (path, e))?;
        spec.initial = Some(Initial::File(weights.file));
        Ok(Some(weights))
    }

    fn read(spec: &JobSpec, source: &Source, path: &Path) -> Result<Self, WeightsError> {
        let layout = spec.model.layout(&spec.data.shape()).map_err(WeightsError::Model)?;
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut start = vec![0; 8];
        file.read_exact(&mut start)?;
        start.resize(ModelLayout::header_len(start[..].try_into().expect("eight bytes"))?, 0);
        file.read_exact(&mut start[8..])?;
        let mapping = source.map(&layout, &start, bytes)?;
        if mapping.needs_seed() && spec.model.needs_initial() {
            return Err(WeightsError::Seedless);
        }
        let (mut digester, mut length) = (Digester::new(), 0);
        write(&mapping, spec, &layout, &file, &mut |block| {
            digester.update(block);
            length += block.len() as u64;
            true
        })?;
        let file = FileRef { digest: digester.finish(), bytes: length };
        Ok(Self { path: path.to_owned(), mapping, file })
    }

    /// Sends what the coordinator does not have yet.
    ///
    /// # Errors
    /// If the file is another one now, or the coordinator cannot take it.
    pub(crate) async fn send(&self, spec: &JobSpec, connection: &mut Connection) -> Result<()> {
        let layout = spec.model.layout(&spec.data.shape()).context("the model")?;
        let (mapping, spec, path) = (self.mapping.clone(), spec.clone(), self.path.clone());
        hand_in(self.file, &self.path, connection, move |sink| {
            write(&mapping, &spec, &layout, &File::open(path)?, sink)
        })
        .await
    }
}

/// Gives a model's file in blocks, as long as `sink` wants more: one tensor at a time is in memory.
fn write(
    mapping: &Mapping,
    spec: &JobSpec,
    layout: &ModelLayout,
    file: &File,
    sink: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<(), WeightsError> {
    let mut go_on = sink(&layout.header(&BTreeMap::new()));
    // What the seed gives is drawn in order, also where it is not wanted.
    let mut seeded = mapping.needs_seed().then(|| spec.model.initial_stream(&spec.data.shape()));
    for (origin, (_, range)) in mapping.origins().iter().zip(layout.ranges()) {
        let drawn: Option<Vec<f32>> = seeded.as_mut().map(|values| values.take(range.len()).collect());
        let values = match (origin, drawn) {
            (Origin::File(piece), _) => {
                let mut bytes = vec![0; (piece.bytes.end - piece.bytes.start) as usize];
                file.read_exact_at(&mut bytes, piece.bytes.start)?;
                piece.values(&bytes)?
            }
            (Origin::Seed, Some(drawn)) => drawn,
            (Origin::Seed, None) => unreachable!("the mapping needs the seed"),
        };
        if !go_on {
            return Ok(());
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        go_on = sink(&bytes);
    }
    Ok(())
}
