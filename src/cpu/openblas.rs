//! Matrix products by the system's OpenBLAS.

#![forbid(unsafe_code)]

// The crate links the library; nothing of it is named.
use openblas_src as _;

use std::sync::Arc;

use super::Engine;
use super::kernels::rows::Finish;
use crate::backend::{Epilogue, Layout, Linear, LinearWeights};
use crate::tensor::Tensor;

/// A linear map with its weights as float32, `[outputs, inputs]`.
#[derive(Debug)]
pub struct Blas {
    engine: Arc<Engine>,
    weights: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

impl Blas {
    /// Widens the parts of a map.
    pub fn new(engine: Arc<Engine>, map: &LinearWeights<'_>) -> Blas {
        let (mut weights, mut inputs) = (Vec::new(), 0);
        for part in &map.parts {
            let [rows, cols] = *part.weight.shape() else { panic!("a linear weight has two axes") };
            let stored = part.weight.to_f32();
            let (outputs, (out_step, in_step)) = match part.layout {
                Layout::OutIn => (rows, (cols, 1)),
                Layout::InOut => (cols, (1, cols)),
            };
            inputs = rows * cols / outputs;
            let taken = part.outputs.map_or_else(
                || (0..outputs).collect(),
                |order| order.iter().map(|o| *o as usize).collect::<Vec<_>>(),
            );
            for o in taken {
                weights.extend((0..inputs).map(|i| stored[o * out_step + i * in_step]));
            }
            part.weight.release_storage();
        }
        Blas { engine, outputs: weights.len() / inputs.max(1), weights, inputs }
    }
}

impl Linear for Blas {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn bytes(&self) -> u64 {
        4 * self.weights.len() as u64
    }

    fn apply(&self, x: &Tensor, epilogue: &Epilogue<'_>, out: &mut Tensor) {
        let mut product = Tensor::zeros(x.rows(), self.outputs);
        crate::cpu::kernels::blas::sgemm(x, &self.weights, self.inputs, &mut product);
        self.engine.run(Finish { product: &mut product, epilogue, out });
    }
}
