//! Packed weights.

#![forbid(unsafe_code)]

use std::sync::Arc;

use half::{bf16, f16};

use super::Engine;
use super::kernels::matmul::{Panels, Product};
use super::kernels::pairs::RoundToPairs;
use super::kernels::quantised::{Bits, QuantiseRows, QuantisedProduct};
use super::memory::Memory;
use super::pack::Sources;
use crate::backend::{Compute, Epilogue, Linear, LinearPart, Pair, WeightType};
use crate::tensor::{Tensor, at_least};

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
    F32(Memory<f32>),
    F16(Memory<f16>),
    Bf16(Memory<bf16>),
    /// bfloat16 that is multiplied with bfloat16.
    Pairs(Memory<Pair>),
    Quantised(Bits, Memory<u8>),
}

/// Bytes of the panels of a map, `width` outputs each.
pub fn packed_bytes(inputs: usize, outputs: usize, width: usize, kept: WeightType, compute: Compute) -> u64 {
    let panel = match kept {
        WeightType::Bf16 if compute == Compute::Bf16 => 4 * inputs.div_ceil(2) * width,
        WeightType::F32 => 4 * inputs * width,
        WeightType::F16 | WeightType::Bf16 => 2 * inputs * width,
        WeightType::Q8 => Bits::Eight.panel_bytes(inputs, width),
        WeightType::Q4 => Bits::Four.panel_bytes(inputs, width),
    };
    outputs.div_ceil(width) as u64 * panel as u64
}

impl Packed {
    /// Packs the parts of a map, on all threads.
    pub fn new(engine: Arc<Engine>, parts: &[LinearPart<'_>], kept: WeightType, compute: Compute) -> Packed {
        let sources = Sources::new(parts);
        let (width, groups) = (engine.panel_width(), engine.groups());
        let data = match kept {
            WeightType::F32 => Data::F32(sources.pack(&engine.pool, width, |x| x)),
            WeightType::F16 => Data::F16(sources.pack(&engine.pool, width, f16::from_f32)),
            WeightType::Bf16 if compute == Compute::Bf16 => {
                Data::Pairs(sources.pack_pairs(&engine.pool, width))
            }
            WeightType::Bf16 => Data::Bf16(sources.pack(&engine.pool, width, bf16::from_f32)),
            WeightType::Q8 => {
                Data::Quantised(Bits::Eight, sources.quantise(&engine.pool, width, groups, Bits::Eight))
            }
            WeightType::Q4 => {
                Data::Quantised(Bits::Four, sources.quantise(&engine.pool, width, groups, Bits::Four))
            }
        };
        let Sources { inputs, outputs, .. } = sources;
        Packed { engine, data, inputs, outputs }
    }
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
            Data::F32(data) => size_of_val(data.as_slice()) as u64,
            Data::F16(data) => size_of_val(data.as_slice()) as u64,
            Data::Bf16(data) => size_of_val(data.as_slice()) as u64,
            Data::Pairs(data) => size_of_val(data.as_slice()) as u64,
            Data::Quantised(_, data) => data.as_slice().len() as u64,
        }
    }

    fn apply(&self, x: &Tensor, epilogue: &Epilogue<'_>, out: &mut Tensor) {
        let (k, n, pool) = (self.inputs, self.outputs, &self.engine.pool);
        match &self.data {
            Data::F32(data) => {
                let weights = Panels { data: data.as_slice(), k, n };
                self.engine.run(Product { pool, x: x.data(), weights, epilogue, out });
            }
            Data::F16(data) => {
                let weights = Panels { data: data.as_slice(), k, n };
                self.engine.run(Product { pool, x: x.data(), weights, epilogue, out });
            }
            Data::Bf16(data) => {
                let weights = Panels { data: data.as_slice(), k, n };
                self.engine.run(Product { pool, x: x.data(), weights, epilogue, out });
            }
            Data::Pairs(data) => {
                let weights = Panels { data: data.as_slice(), k: k.div_ceil(2), n };
                let mut memory = self.engine.pairs.take();
                let pairs = at_least(&mut memory, x.rows() * weights.k);
                self.engine.run_products(RoundToPairs { pool, x, pairs });
                self.engine.run_products(Product { pool, x: pairs, weights, epilogue, out });
                self.engine.pairs.give(memory);
            }
            Data::Quantised(bits, data) => {
                let quantised = self.engine.quantised.take();
                let quantised = self.engine.run_products(QuantiseRows { pool, x, bits: *bits, quantised });
                self.engine.run_products(QuantisedProduct {
                    pool,
                    x: &quantised,
                    panels: data.as_slice(),
                    bits: *bits,
                    inputs: k,
                    outputs: n,
                    epilogue,
                    out,
                });
                self.engine.quantised.give(quantised);
            }
        }
    }
}
