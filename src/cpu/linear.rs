//! Packed weights.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use zerocopy::{FromBytes, Immutable};

use super::Engine;
use super::kernels::matmul::{LINE, Panels, Product};
use super::kernels::pairs::RoundToPairs;
use super::kernels::quantised::{QuantiseRows, QuantisedProduct};
use super::kernels::simd::Weight;
use super::memory::Memory;
use super::pack::{Format, Sources, pack};
use crate::backend::{Compute, Epilogue, LaidOut, Linear, LinearWeights, Pair};
use crate::tensor::{Array, DType, Tensor, at_least};

/// A linear map with its weights in panels: `[outputs / width][inputs][width]`.
pub struct Packed {
    engine: Arc<Engine>,
    /// Panels of this map, and of others.
    memory: Array,
    place: Range<usize>,
    format: Format,
    inputs: usize,
    outputs: usize,
}

impl Packed {
    /// Packs maps one behind another, on all threads, and lets go of what was stored; if `packed` has as many bytes, and begins at a line of
    /// the cache, it is taken for that.
    pub fn all(
        engine: &Arc<Engine>,
        maps: &[LinearWeights<'_>],
        compute: Compute,
        packed: Option<Array>,
    ) -> LaidOut {
        let width = engine.panel_width();
        let sources: Vec<Sources<'_>> = maps.iter().map(|map| Sources::new(&map.parts)).collect();
        let (mut places, mut end) = (Vec::with_capacity(maps.len()), 0);
        for (map, sources) in maps.iter().zip(&sources) {
            let format = Format::of(map.kept, compute);
            let place = end..end + format.bytes(sources.inputs, sources.outputs, width) as usize;
            end = place.end.next_multiple_of(LINE);
            places.push((format, place));
        }
        let before = packed.filter(|packed| {
            let bytes = packed.bytes();
            bytes.len() == end && bytes.as_ptr().addr().is_multiple_of(LINE)
        });
        let is_new = before.is_none();
        let memory = before.unwrap_or_else(|| Packed::new_memory(engine, &sources, &places, end));
        let packed = |(Sources { inputs, outputs, .. }, (format, place))| {
            let memory = memory.clone();
            Box::new(Packed { engine: engine.clone(), memory, place, format, inputs, outputs })
                as Box<dyn Linear>
        };
        let maps = sources.into_iter().zip(places).map(packed).collect();
        LaidOut { maps, packed: is_new.then_some(memory) }
    }

    /// Packs maps into their places, of so many bytes in all.
    fn new_memory(
        engine: &Engine,
        sources: &[Sources<'_>],
        places: &[(Format, Range<usize>)],
        len: usize,
    ) -> Array {
        let mut memory = Memory::new(len);
        let (mut tasks, mut rest) = (Vec::new(), memory.bytes_mut());
        for (sources, (format, place)) in sources.iter().zip(places) {
            let lines = rest.split_off_mut(..place.len().next_multiple_of(LINE)).unwrap_or_default();
            tasks.extend(sources.tasks(engine, *format, &mut lines[..place.len()]));
        }
        pack(engine, tasks);
        let packed = Array::new(DType::U8, vec![len], Arc::new(memory), 0..len);
        packed.unwrap_or_else(|| unreachable!("memory of so many bytes"))
    }

    fn weights(&self) -> &[u8] {
        &self.memory.bytes()[self.place.clone()]
    }

    fn panels<T: Weight + FromBytes + Immutable>(&self, k: usize) -> Panels<'_, T> {
        // Places begin at a line of the cache, so numbers are aligned.
        let data = <[T]>::ref_from_bytes(self.weights())
            .unwrap_or_else(|_| unreachable!("panels of whole, aligned numbers"));
        Panels { data, k, n: self.outputs }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({:?}, [{}] -> [{}])", self.format, self.inputs, self.outputs)
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
                    panels: self.weights(),
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
