//! Packed weights.

#![forbid(unsafe_code)]

use std::sync::Arc;

use half::{bf16, f16};

use super::Engine;
use super::kernels::matmul::{Panels, Product};
use crate::backend::{Epilogue, Layout, Linear, LinearPart, WeightType};
use crate::tensor::Tensor;

/// A linear map with its weights in panels: `[outputs / width][inputs][width]`.
#[derive(Debug)]
pub struct Packed {
    engine: Arc<Engine>,
    data: Data,
    inputs: usize,
    outputs: usize,
}

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Elements of the panels of a map.
pub fn packed_len(inputs: usize, outputs: usize, width: usize) -> usize {
    outputs.div_ceil(width) * width * inputs
}

impl Packed {
    /// Packs the parts of a map.
    pub fn new(engine: Arc<Engine>, parts: &[LinearPart<'_>], kept: WeightType) -> Packed {
        let width = engine.panel_width();
        let rows: Vec<(usize, usize)> = parts.iter().map(sizes).collect();
        let inputs = rows.first().map_or(0, |(_, inputs)| *inputs);
        let outputs = rows.iter().map(|(outputs, _)| outputs).sum();
        let len = packed_len(inputs, outputs, width);
        let data = match kept {
            WeightType::F16 => Data::F16(pack(parts, inputs, width, vec![f16::ZERO; len], f16::from_f32)),
            WeightType::Bf16 => Data::Bf16(pack(parts, inputs, width, vec![bf16::ZERO; len], bf16::from_f32)),
            _ => Data::F32(pack(parts, inputs, width, vec![0.0; len], |x| x)),
        };
        Packed { engine, data, inputs, outputs }
    }
}

/// Outputs that are taken of a part, and its inputs.
fn sizes(part: &LinearPart<'_>) -> (usize, usize) {
    let [rows, cols] = *part.weight.shape() else { panic!("a linear weight has two axes") };
    let (outputs, inputs) = if part.layout == Layout::OutIn { (rows, cols) } else { (cols, rows) };
    (part.outputs.map_or(outputs, <[u32]>::len), inputs)
}

fn pack<T: Copy>(
    parts: &[LinearPart<'_>],
    inputs: usize,
    width: usize,
    mut data: Vec<T>,
    convert: impl Fn(f32) -> T,
) -> Vec<T> {
    let place = |output: usize, input: usize| (output / width * inputs + input) * width + output % width;
    let mut first = 0;
    for part in parts {
        let (outputs, _) = sizes(part);
        match part.layout {
            Layout::OutIn => {
                let mut row = vec![0.0; inputs];
                for output in 0..outputs {
                    let stored = part.outputs.map_or(output, |order| order[output] as usize);
                    part.weight.read_f32(stored * inputs, &mut row);
                    for (input, x) in row.iter().enumerate() {
                        data[place(first + output, input)] = convert(*x);
                    }
                }
            }
            Layout::InOut => {
                let mut row = vec![0.0; part.weight.shape()[1]];
                for input in 0..inputs {
                    part.weight.read_f32(input * row.len(), &mut row);
                    for output in 0..outputs {
                        let stored = part.outputs.map_or(output, |order| order[output] as usize);
                        data[place(first + output, input)] = convert(row[stored]);
                    }
                }
            }
        }
        first += outputs;
    }
    data
}

impl Linear for Packed {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn bytes(&self) -> u64 {
        match &self.data {
            Data::F32(data) => size_of_val(&data[..]) as u64,
            Data::F16(data) => size_of_val(&data[..]) as u64,
            Data::Bf16(data) => size_of_val(&data[..]) as u64,
        }
    }

    fn apply(&self, x: &Tensor, epilogue: &Epilogue<'_>, out: &mut Tensor) {
        let (k, n, pool) = (self.inputs, self.outputs, &self.engine.pool);
        match &self.data {
            Data::F32(data) => {
                self.engine.run(Product { pool, x, weights: Panels { data, k, n }, epilogue, out });
            }
            Data::F16(data) => {
                self.engine.run(Product { pool, x, weights: Panels { data, k, n }, epilogue, out });
            }
            Data::Bf16(data) => {
                self.engine.run(Product { pool, x, weights: Panels { data, k, n }, epilogue, out });
            }
        }
    }
}
