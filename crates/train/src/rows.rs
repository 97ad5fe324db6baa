//! A client's records as tensors.

use crate::failure::Failure;
use tch::{Device, Kind, TchError, Tensor};
use undertone_core::data_files::DataFiles;
use undertone_core::schema::DataContract;
use undertone_core::trainer::TrainerError;
use undertone_data::{Dataset, Examples, Labels};

/// Records that meet a data contract, on the device that computes.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Shape (rows, dimensions of a record): f32 features; u8 picture elements, scaled as a batch is taken; i32 tokens,
    /// widened as a batch is taken.
    examples: Tensor,
    /// Shape (rows): classes, i64, or scaled numbers, f32.
    labels: Tensor,
    /// One in scaled labels is this much in their own unit; `None` if they are classes.
    unit: Option<f64>,
    len: usize,
}

impl Rows {
    /// Reads data files and lays their records one behind the other. `files` holds at least one.
    pub(crate) fn load(
        files: &[DataFiles],
        contract: &DataContract,
        device: Device,
    ) -> Result<Self, Failure> {
        let mut pooled: Option<Dataset> = None;
        for files in files {
            let set = undertone_data::load(files.clone(), contract)?;
            match &mut pooled {
                None => pooled = Some(set),
                Some(pooled) => pooled.append(set),
            }
        }
        let pooled = pooled.ok_or_else(|| TrainerError::Data("name at least one data file".into()))?;
        Self::new(&pooled, device)
    }

    /// Copies a data set to the device.
    pub(crate) fn new(set: &Dataset, device: Device) -> Result<Self, Failure> {
        let shape: Vec<i64> =
            std::iter::once(set.rows).chain(set.dimensions.iter().copied()).map(|n| n as i64).collect();
        let examples = match &set.examples {
            Examples::Numbers(numbers) => Tensor::f_from_slice(numbers)?,
            Examples::Bytes(bytes) => Tensor::f_from_slice(bytes)?,
            Examples::Tokens(tokens) => {
                // A contract's vocabulary is far below 2^31.
                let tokens: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
                Tensor::f_from_slice(&tokens)?
            }
        };
        let (labels, unit) = match &set.labels {
            Labels::Classes(classes) => {
                let classes: Vec<i64> = classes.iter().map(|&y| y.into()).collect();
                (Tensor::f_from_slice(&classes)?, None)
            }
            Labels::Numbers { scaled, unit } => (Tensor::f_from_slice(scaled)?, Some(*unit)),
        };
        Ok(Self {
            examples: examples.f_reshape(shape)?.f_to_device(device)?,
            labels: labels.f_to_device(device)?,
            unit,
            len: set.rows,
        })
    }

    /// Of examples and labels (classes) that are tensors already: one of the first dimension to a label.
    pub(crate) fn of(examples: Tensor, labels: Tensor) -> Self {
        let len = labels.size()[0] as usize;
        Self { examples, labels, unit: None, len }
    }

    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where they are.
    pub(crate) fn device(&self) -> Device {
        self.examples.device()
    }

    /// If labels are numbers: what one in them, scaled, is in their own unit.
    pub(crate) fn unit(&self) -> Option<f64> {
        self.unit
    }

    /// `count` records from record `start` on. Features are not copied.
    pub(crate) fn range(&self, start: usize, count: usize) -> Result<(Tensor, Tensor), Failure> {
        let (start, count) = (start as i64, count as i64);
        Ok((seen(&self.examples.f_narrow(0, start, count)?)?, self.labels.f_narrow(0, start, count)?))
    }

    /// The records at these places.
    pub(crate) fn select(&self, places: &[i64]) -> Result<(Tensor, Tensor), Failure> {
        let places = Tensor::f_from_slice(places)?.f_to_device(self.device())?;
        Ok((seen(&self.examples.f_index_select(0, &places)?)?, self.labels.f_index_select(0, &places)?))
    }
}

/// Records as a model sees them: picture elements n/255, tokens as i64, features as they are.
fn seen(records: &Tensor) -> Result<Tensor, TchError> {
    match records.kind() {
        Kind::Uint8 => records.f_to_kind(Kind::Float)?.f_div_scalar_(255.0),
        Kind::Int => records.f_to_kind(Kind::Int64),
        _ => Ok(records.shallow_clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(examples: Examples, labels: Labels, dimensions: &[usize]) -> Dataset {
        let inputs = dimensions.iter().product();
        Dataset { examples, labels, rows: 3, inputs, dimensions: dimensions.into() }
    }

    fn values(x: &Tensor) -> Vec<f64> {
        Vec::try_from(x.to_kind(Kind::Double).flatten(0, -1)).unwrap()
    }

    #[test]
    fn pictures_are_scaled_as_they_are_taken() {
        let bytes = (0..12u8).map(|i| i * 20).collect::<Vec<_>>();
        let classes = Labels::Classes(vec![2, 0, 1]);
        let rows = Rows::new(&set(Examples::Bytes(bytes), classes, &[1, 2, 2]), Device::Cpu).unwrap();
        assert_eq!((rows.len(), rows.unit(), rows.examples.kind()), (3, None, Kind::Uint8));
        let (x, y) = rows.select(&[2, 0]).unwrap();
        assert_eq!((x.size(), x.kind()), (vec![2, 1, 2, 2], Kind::Float));
        let wanted = [160, 180, 200, 220, 0, 20, 40, 60].map(|n| f64::from(n as f32 / 255.0));
        assert_eq!((values(&x), values(&y)), (wanted.to_vec(), vec![1.0, 2.0]));
        let (part, _) = rows.range(1, 2).unwrap();
        assert_eq!(values(&part), values(&rows.range(0, rows.len()).unwrap().0.narrow(0, 1, 2)));
        assert_eq!(
            values(&rows.range(0, rows.len()).unwrap().0),
            values(&rows.range(0, rows.len()).unwrap().0),
            "they are scaled once"
        );
    }

    #[test]
    fn tokens_are_wide_and_numbers_know_their_unit() {
        let numbers = Labels::Numbers { scaled: vec![0.5, -1.0, 0.0], unit: 12.0 };
        let tokens = Examples::Tokens(vec![1, 2, 3, 0, 65_535, 0]);
        let rows = Rows::new(&set(tokens, numbers, &[2]), Device::Cpu).unwrap();
        let (x, y) = rows.select(&[2, 1]).unwrap();
        assert_eq!((x.kind(), y.kind(), rows.unit()), (Kind::Int64, Kind::Float, Some(12.0)));
        assert_eq!((values(&x), values(&y)), (vec![65_535.0, 0.0, 3.0, 0.0], vec![0.0, -1.0]));
    }
}
