//! A model's values as tensors.

use super::Parameter;
use tch::{TchError, Tensor};
use undertone_core::layout::ModelLayout;
use undertone_core::part::Part;
use undertone_core::plan::Precision;

/// The tensors of a model: windows on flat values, in the layout's order. What is written to the flat values is seen
/// through the windows, so an optimiser steps over all parameters in one stroke.
#[derive(Debug)]
pub(crate) struct Weights {
    windows: Vec<Tensor>,
    /// Which of them are trained.
    trained: Vec<bool>,
    /// What products with them are computed in.
    precision: Precision,
}

impl Weights {
    /// `trained` holds the values of `part`; those that are not in it are in `whole`, which is as long as the model.
    pub(crate) fn of(
        layout: &ModelLayout,
        part: &Part,
        trained: &Tensor,
        whole: &Tensor,
    ) -> Result<Self, TchError> {
        let mut weights = Self { windows: Vec::new(), trained: Vec::new(), precision: Precision::F32 };
        for (tensor, range) in layout.ranges() {
            let shape: Vec<i64> = tensor.shape.iter().map(|&n| n as i64).collect();
            let place = part.place(range.start);
            let (values, start) = match place {
                Some(place) => (trained, place),
                None => (whole, range.start),
            };
            // A window is a leaf of its own: autograd neither reaches the flat values, nor pads gradients to their length.
            let window =
                values.f_detach()?.f_narrow(0, start as i64, range.len() as i64)?.f_view(&shape[..])?;
            weights.windows.push(window);
            weights.trained.push(place.is_some());
        }
        Ok(weights)
    }

    /// All of a model, all of it trained.
    pub(crate) fn whole(layout: &ModelLayout, flat: &Tensor) -> Result<Self, TchError> {
        Self::of(layout, &layout.whole(), flat, flat)
    }

    /// The same values in a module that is not ours: `parameters`, in the layout's order, become the windows.
    pub(crate) fn of_module(mut self, parameters: &[Tensor]) -> Result<Self, TchError> {
        for (window, parameter) in self.windows.iter_mut().zip(parameters) {
            let mut parameter = parameter.shallow_clone().f_requires_grad_(false)?;
            parameter.f_set_data(window)?;
            *window = parameter;
        }
        Ok(self)
    }

    /// With products computed in this precision.
    pub(crate) fn computed_in(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// What products with them are computed in.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Lets autograd follow what is trained; see [`gradient`](Self::gradient).
    pub(crate) fn followed(mut self) -> Result<Self, TchError> {
        for (window, trained) in self.windows.iter_mut().zip(&self.trained) {
            if *trained {
                *window = window.f_requires_grad_(true)?;
            }
        }
        Ok(self)
    }

    /// The gradient of a scalar, flat over what is trained; only after [`followed`](Self::followed).
    pub(crate) fn gradient(&self, of: &Tensor) -> Result<Tensor, TchError> {
        let trained: Vec<&Tensor> =
            self.windows.iter().zip(&self.trained).filter(|(_, trained)| **trained).map(|(w, _)| w).collect();
        let gradients = Tensor::f_run_backward(&[of], &trained, false, false)?;
        // What the loss did not come by has no gradient: a module may leave out a layer for some examples.
        let flat = gradients.iter().zip(&trained).map(|(gradient, window)| match gradient.defined() {
            true => gradient.f_reshape(-1),
            false => window.f_detach()?.f_zeros_like()?.f_reshape(-1),
        });
        let flat: Result<Vec<Tensor>, TchError> = flat.collect();
        Tensor::f_cat(&flat?, 0)
    }

    /// The values of one parameter.
    pub(crate) fn get(&self, parameter: Parameter) -> &Tensor {
        &self.windows[parameter.0]
    }

    /// Whether it is trained.
    pub(crate) fn trains(&self, parameter: Parameter) -> bool {
        self.trained[parameter.0]
    }

    /// The parameters that are trained, in the layout's order.
    pub(crate) fn trained(&self) -> impl Iterator<Item = Parameter> {
        self.trained.iter().enumerate().filter(|(_, trained)| **trained).map(|(i, _)| Parameter(i))
    }
}
