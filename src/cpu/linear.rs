//! Packed weights.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use zerocopy::{FromBytes, Immutable};

use super::Engine;
use super::kernels::coded::{CodedFour, INPUTS};
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
    /// Packs maps one behind another, on all threads, and lets go of what was stored; if `packed` is of that form, and begins at a line of
    /// the cache, it is taken for that.
    pub fn all(
        engine: &Arc<Engine>,
        maps: &[LinearWeights<'_>],
        compute: Compute,
        packed: Option<Array>,
    ) -> LaidOut {
        let sources: Vec<Sources<'_>> = maps.iter().map(|map| Sources::new(&map.parts)).collect();
        let formats = maps.iter().zip(&sources);
        let formats: Vec<Format> =
            formats.map(|(map, sources)| Format::of(engine, map.kept, compute, sources.inputs)).collect();
        let before =
            packed.and_then(|packed| Some((places_of(engine, &sources, &formats, &packed)?, packed)));
        let is_new = before.is_none();
        let (places, memory) = before.unwrap_or_else(|| new_memory(engine, &sources, formats));
        let packed = |(Sources { inputs, outputs, .. }, (format, place))| {
            let memory = memory.clone();
            Box::new(Packed { engine: engine.clone(), memory, place, format, inputs, outputs })
                as Box<dyn Linear>
        };
        let maps = sources.into_iter().zip(places.maps).map(packed).collect();
        LaidOut { maps, packed: is_new.then_some(memory) }
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

/// Where maps are packed.
struct Places {
    maps: Vec<(Format, Range<usize>)>,
    /// Bytes of all of them. As many more bytes follow as there are maps: 1 for a map that could not be coded, else 0.
    end: usize,
}

impl Places {
    fn new(engine: &Engine, sources: &[Sources<'_>], formats: &[Format]) -> Places {
        let mut places = Places { maps: Vec::with_capacity(formats.len()), end: 0 };
        for (format, Sources { inputs, outputs, .. }) in formats.iter().zip(sources) {
            let place =
                places.end..places.end + format.bytes(*inputs, *outputs, engine.panel_width()) as usize;
            places.end = place.end.next_multiple_of(LINE);
            places.maps.push((*format, place));
        }
        places
    }
}

/// Where maps lie in bytes that were packed before, unless these are something else.
fn places_of(engine: &Engine, sources: &[Sources<'_>], formats: &[Format], packed: &Array) -> Option<Places> {
    let bytes = packed.bytes();
    let (_, marks) = bytes.split_at_checked(bytes.len().checked_sub(formats.len())?)?;
    let format = |(format, mark): (&Format, &u8)| match (format, mark) {
        (format, 0) => Some(*format),
        (Format::Coded, 1) => Some(Format::Bf16),
        _ => None,
    };
    let formats = formats.iter().zip(marks).map(format).collect::<Option<Vec<_>>>()?;
    let places = Places::new(engine, sources, &formats);
    (bytes.len() - formats.len() == places.end && bytes.as_ptr().addr().is_multiple_of(LINE))
        .then_some(places)
}

/// Packs maps. Those that cannot be coded are found out by trying.
fn new_memory(engine: &Engine, sources: &[Sources<'_>], mut formats: Vec<Format>) -> (Places, Array) {
    let mut marks = vec![0; formats.len()];
    loop {
        let places = Places::new(engine, sources, &formats);
        let len = places.end + marks.len();
        let mut memory = Memory::new(len);
        let fits: Vec<AtomicBool> = marks.iter().map(|_| AtomicBool::new(true)).collect();
        let (mut tasks, mut rest) = (Vec::new(), &mut memory.bytes_mut()[..len]);
        for ((sources, (format, place)), fits) in sources.iter().zip(&places.maps).zip(&fits) {
            let lines = rest.split_off_mut(..place.len().next_multiple_of(LINE)).unwrap_or_default();
            tasks.extend(sources.tasks(engine, *format, fits, &mut lines[..place.len()]));
        }
        rest.copy_from_slice(&marks);
        pack(engine, tasks);
        if fits.iter().all(|fits| fits.load(Ordering::Relaxed)) {
            let packed = Array::new(DType::U8, vec![len], Arc::new(memory), 0..len);
            return (places, packed.unwrap_or_else(|| unreachable!("memory of so many bytes")));
        }
        for ((format, mark), fits) in formats.iter_mut().zip(&mut marks).zip(fits) {
            if !fits.into_inner() {
                (*format, *mark) = (Format::Bf16, 1);
            }
        }
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
        assert_eq!((x.rows(), x.cols()), (out.rows(), k), "rows and columns of a product");
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
            Format::Coded => {
                let weights = self.panels::<CodedFour>(k / INPUTS);
                let (x, _) = x.data().as_chunks();
                self.engine.run(Product { pool, x, weights, epilogue, out });
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
