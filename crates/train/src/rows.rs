//! A client's rows as tensors.

use crate::failure::Failure;
use std::path::Path;
use tch::{Device, Tensor};
use undertone_core::schema::DataContract;
use undertone_core::trainer::TrainerError;
use undertone_data::encode::Dataset;

/// Rows that meet a data contract, on the device that computes.
#[derive(Debug)]
pub(crate) struct Rows {
    /// f32, shape (rows, inputs).
    features: Tensor,
    /// Classes, i64, shape (rows).
    labels: Tensor,
    len: usize,
}

impl Rows {
    /// Reads CSV files and lays their rows one behind the other. `paths` holds at least one.
    pub(crate) fn load<P: AsRef<Path>>(
        paths: &[P],
        contract: &DataContract,
        device: Device,
    ) -> Result<Self, Failure> {
        let mut pooled: Option<Dataset> = None;
        for path in paths {
            let set = undertone_data::encode::load(path.as_ref(), contract)?;
            match &mut pooled {
                None => pooled = Some(set),
                Some(pooled) => {
                    pooled.features.extend(set.features);
                    pooled.labels.extend(set.labels);
                    pooled.rows += set.rows;
                }
            }
        }
        let pooled = pooled.ok_or_else(|| TrainerError::Data("name at least one data file".into()))?;
        Self::new(&pooled, device)
    }

    /// Copies a data set to the device.
    pub(crate) fn new(set: &Dataset, device: Device) -> Result<Self, Failure> {
        let labels: Vec<i64> = set.labels.iter().map(|&y| y.into()).collect();
        let shape = [set.rows as i64, set.inputs as i64];
        Ok(Self {
            features: Tensor::f_from_slice(&set.features)?.f_reshape(shape)?.f_to_device(device)?,
            labels: Tensor::f_from_slice(&labels)?.f_to_device(device)?,
            len: set.rows,
        })
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where they are.
    pub(crate) fn device(&self) -> Device {
        self.features.device()
    }

    /// All rows: features and labels, not copied.
    pub(crate) fn all(&self) -> (Tensor, Tensor) {
        (self.features.shallow_clone(), self.labels.shallow_clone())
    }

    /// `count` rows from row `start` on, not copied.
    pub(crate) fn range(&self, start: usize, count: usize) -> Result<(Tensor, Tensor), Failure> {
        let (start, count) = (start as i64, count as i64);
        Ok((self.features.f_narrow(0, start, count)?, self.labels.f_narrow(0, start, count)?))
    }

    /// The rows at these places.
    pub(crate) fn select(&self, places: &[i64]) -> Result<(Tensor, Tensor), Failure> {
        let places = Tensor::f_from_slice(places)?.f_to_device(self.device())?;
        Ok((self.features.f_index_select(0, &places)?, self.labels.f_index_select(0, &places)?))
    }
}
