//! Packed weights.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use zerocopy::{FromBytes, Immutable};

use super::Engine;
use super::kernels::matmul::{LINE, Panels, Product};
use super::kernels::pairs::RoundToPairs;
use super::kernels::quantised::{Bits, QuantiseRows, QuantisedProduct};
use super::kernels::simd::Weight;
use super::memory::Memory;
use super::pack::Sources;
use crate::backend::{Compute, Epilogue, Linear, LinearWeights, Pair, WeightType};
use crate::tensor::{Tensor, at_least};

/// A linear map with its weights in panels: `[outputs / width][inputs][width]`.
#[derive(Debug)]
pub struct Packed {
    engine: Arc<Engine>,
    /// Panels of this map, and of others.
    memory: Arc<Memory>,
    place: Range<usize>,
    format: Format,
    inputs: usize,
    outputs: usize,
}

/// What panels consist of.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// bfloat16 that is multiplied with bfloat16.
    Pairs,
    Quantised(Bits),
}

impl Format {
    pub fn of(kept: WeightType, compute: Compute) -> Self {
        match kept {
            WeightType::F32 => Format::F32,
            WeightType::F16 => Format::F16,
            WeightType::Bf16 if compute == Compute::Bf16 => Format::Pairs,
            WeightType::Bf16 => Format::Bf16,
            WeightType::Q8 => Format::Quantised(Bits::Eight),
            WeightType::Q4 => Format::Quantised(Bits::Four),
        }
    }

    /// Bytes of the panels of a map, `width` outputs each.
    pub fn bytes(self, inputs: usize, outputs: usize, width: usize) -> u64 {
        let panel = match self {
            Format::F32 => 4 * inputs * width,
            Format::F16 | Format::Bf16 => 2 * inputs * width,
            Format::Pairs => 4 * inputs.div_ceil(2) * width,
            Format::Quantised(bits) => bits.panel_bytes(inputs, width),
        };
        outputs.div_ceil(width) as u64 * panel as u64
    }
}

impl Packed {
    /// Packs maps one behind another, on all threads, and lets go of what was stored.
    pub fn all(engine: &Arc<Engine>, maps: &[LinearWeights<'_>], compute: Compute) -> Vec<Packed> {
        let (pool, width, groups) = (&engine.pool, engine.panel_width(), engine.groups());
        let sources: Vec<Sources<'_>> = maps.iter().map(|map| Sources::new(&map.parts)).collect();
        let mut end = 0usize;
        let places: Vec<(Format, Range<usize>)> = maps
            .iter()
            .zip(&sources)
            .map(|(map, sources)| {
                let format = Format::of(map.kept, compute);
                let bytes = format.bytes(sources.inputs, sources.outputs, width) as usize;
                let place = end..end + bytes;
                end = place.end.next_multiple_of(LINE);
                (format, place)
            })
            .collect();
        let mut memory = Memory::new(end);
        for (sources, (format, place)) in sources.iter().zip(&places) {
            let panels = &mut memory.bytes_mut()[place.clone()];
            match format {
                Format::F32 => sources.pack(pool, width, panels, |x| x),
                Format::F16 => sources.pack(pool, width, panels, f16::from_f32),
                Format::Bf16 => sources.pack(pool, width, panels, bf16::from_f32),
                Format::Pairs => sources.pack_pairs(pool, width, panels),
                Format::Quantised(bits) => sources.quantise(pool, width, groups, *bits, panels),
            }
            sources.release_storage();
        }
        let memory = Arc::new(memory);
        let packed = |(Sources { inputs, outputs, .. }, (format, place))| Packed {
            engine: engine.clone(),
            memory: memory.clone(),
            place,
            format,
            inputs,
            outputs,
        };
        sources.into_iter().zip(places).map(packed).collect()
    }

    fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[self.place.clone()]
    }

    fn panels<T: Weight + FromBytes + Immutable>(&self, k: usize) -> Panels<'_, T> {
        // Places begin at a line of the cache, so numbers are aligned.
        let data = <[T]>::ref_from_bytes(self.bytes()).unwrap_or_default();
        Panels { data, k, n: self.outputs }
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
        self.place.len() as u64
    }

    fn apply(&self, x: &Tensor, epilogue: &Epilogue<'_>, out: &mut Tensor) {
        let (k, n, pool) = (self.inputs, self.outputs, &self.engine.pool);
        match self.format {
            Format::F32 => {
                let weights = self.panels::<f32>(k);
                self.engine.run(Product { pool, x: x.data(), weights, epilogue, out });
            }
            Format::F16 => {
                let weights = self.panels::<f16>(k);
                self.engine.run(Product { pool, x: x.data(), weights, epilogue, out });
            }
            Format::Bf16 => {
                let weights = self.panels::<bf16>(k);
                self.engine.run(Product { pool, x: x.data(), weights, epilogue, out });
            }
            Format::Pairs => {
                let weights = self.panels::<Pair>(k.div_ceil(2));
                let mut memory = self.engine.pairs.take();
                let pairs = at_least(&mut memory, x.rows() * weights.k);
                self.engine.run_products(RoundToPairs { pool, x, pairs });
                self.engine.run_products(Product { pool, x: pairs, weights, epilogue, out });
                self.engine.pairs.give(memory);
            }
            Format::Quantised(bits) => {
                let quantised = self.engine.quantised.take();
                let quantised = self.engine.run_products(QuantiseRows { pool, x, bits, quantised });
                self.engine.run_products(QuantisedProduct {
                    pool,
                    x: &quantised,
                    panels: self.bytes(),
                    bits,
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
