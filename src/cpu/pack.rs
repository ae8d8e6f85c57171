//! From stored weights to panels, on all threads.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Engine;
use super::kernels::quantised::{Bits, QuantisePanel, filled};
use super::kernels::simd::MAX_WIDTH;
use crate::backend::{Compute, Layout, LinearPart, PACKED_AT_ONCE, Pair, WeightType};

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

    /// Bytes of a panel of `width` outputs.
    fn panel_bytes(self, inputs: usize, width: usize) -> usize {
        match self {
            Format::F32 => 4 * inputs * width,
            Format::F16 | Format::Bf16 => 2 * inputs * width,
            Format::Pairs => 4 * inputs.div_ceil(2) * width,
            Format::Quantised(bits) => bits.panel_bytes(inputs, width),
        }
    }

    /// Bytes of all panels of a map.
    pub fn bytes(self, inputs: usize, outputs: usize, width: usize) -> u64 {
        outputs.div_ceil(width) as u64 * self.panel_bytes(inputs, width) as u64
    }
}

/// The stored parts of a linear map, whose outputs follow each other.
pub struct Sources<'a> {
    parts: &'a [LinearPart<'a>],
    /// The first output of each part, and the end of the last.
    starts: Vec<usize>,
    pub inputs: usize,
    pub outputs: usize,
}

/// Some panels of a map, to be filled.
pub struct Task<'a> {
    sources: &'a Sources<'a>,
    format: Format,
    outputs: Range<usize>,
    panels: &'a mut [u8],
}

/// Outputs that are packed together where the stored rows are those of inputs: of each row one run is read, not many short ones.
const OUTPUTS_AT_ONCE: usize = 512;

/// Inputs that are transposed together: so many elements of each output of a panel stay in the first cache.
const TRANSPOSE_BLOCK: usize = 64;

/// Fills panels, on all threads, and lets go of what was stored each time that [`PACKED_AT_ONCE`] elements are packed. Another thread
/// may still read: then the system maps that once more.
pub fn pack(engine: &Engine, tasks: Vec<Task<'_>>) {
    let packed = AtomicUsize::new(0);
    engine.pool.run_each(tasks.into_iter(), |task| {
        let (sources, elements) = (task.sources, task.outputs.len() * task.sources.inputs);
        task.fill(engine);
        let before = packed.fetch_add(elements, Ordering::Relaxed);
        if before / PACKED_AT_ONCE < (before + elements) / PACKED_AT_ONCE {
            sources.parts.iter().for_each(|part| part.weight.release_storage());
        }
    });
}

impl<'a> Sources<'a> {
    pub fn new(parts: &'a [LinearPart<'a>]) -> Self {
        let (mut starts, mut inputs) = (vec![0], 0);
        for part in parts {
            let [rows, cols] = *part.weight.shape() else { panic!("a linear weight has two axes") };
            let (outputs, columns) = if part.layout == Layout::OutIn { (rows, cols) } else { (cols, rows) };
            inputs = columns;
            starts.push(starts[starts.len() - 1] + part.outputs.map_or(outputs, <[u32]>::len));
        }
        Sources { parts, outputs: starts[starts.len() - 1], starts, inputs }
    }

    /// How panels `[outputs / width]` are filled.
    pub fn tasks(
        &'a self,
        width: usize,
        format: Format,
        panels: &'a mut [u8],
    ) -> impl Iterator<Item = Task<'a>> {
        let by_rows = self.parts.iter().all(|part| part.layout == Layout::OutIn);
        let outputs = if by_rows { width } else { OUTPUTS_AT_ONCE.next_multiple_of(width) };
        let bytes = outputs / width * format.panel_bytes(self.inputs, width);
        panels.chunks_mut(bytes.max(1)).enumerate().map(move |(i, panels)| {
            let outputs = i * outputs..((i + 1) * outputs).min(self.outputs);
            Task { sources: self, format, outputs, panels }
        })
    }

    /// The elements of a group of panels, which begin `step` elements apart.
    fn gather<T>(
        &self,
        outputs: Range<usize>,
        width: usize,
        panels: &mut [T],
        step: usize,
        convert: &impl Fn(f32) -> T,
    ) {
        for (part, bounds) in self.parts.iter().zip(self.starts.windows(2)) {
            let (start, end) = (outputs.start.max(bounds[0]), outputs.end.min(bounds[1]));
            if start >= end {
                continue;
            }
            let outputs = start - outputs.start..end - outputs.start;
            let piece = Piece { part, first: start - bounds[0], outputs, inputs: self.inputs, width };
            match part.layout {
                Layout::OutIn => piece.transpose(panels, step, convert),
                Layout::InOut => piece.copy(panels, step, convert),
            }
        }
    }
}

impl Task<'_> {
    fn fill(self, engine: &Engine) {
        let width = engine.panel_width();
        match self.format {
            Format::F32 => self.numbers(width, |x| x),
            Format::F16 => self.numbers(width, f16::from_f32),
            Format::Bf16 => self.numbers(width, bf16::from_f32),
            Format::Pairs => self.pairs(width),
            Format::Quantised(bits) => self.quantised(engine, bits),
        }
    }

    /// Panels `[inputs][width]`.
    fn numbers<T: FromBytes + IntoBytes + Immutable>(self, width: usize, convert: impl Fn(f32) -> T) {
        let panels = typed(self.panels);
        self.sources.gather(self.outputs, width, panels, self.sources.inputs * width, &convert);
    }

    /// Panels `[inputs / 2][width]`.
    fn pairs(self, width: usize) {
        let pairs: &mut [Pair] = typed(self.panels);
        let mut panels = vec![0.0; 2 * pairs.len()];
        let step = self.sources.inputs.next_multiple_of(2) * width;
        self.sources.gather(self.outputs, width, &mut panels, step, &|x| x);
        for (pairs, two) in pairs.chunks_mut(width).zip(panels.chunks(2 * width)) {
            let (first, second) = two.split_at(width);
            for (pair, (a, b)) in pairs.iter_mut().zip(first.iter().zip(second)) {
                *pair = Pair::new(*a, *b);
            }
        }
    }

    /// Panels of quantised weights.
    fn quantised(self, engine: &Engine, bits: Bits) {
        let (inputs, width) = (self.sources.inputs, engine.panel_width());
        let (bytes, step) = (bits.panel_bytes(inputs, width), filled(inputs) * width);
        let mut panels = vec![0.0; self.panels.len() / bytes * step];
        self.sources.gather(self.outputs, width, &mut panels, step, &|x| x);
        for (panel, bytes) in panels.chunks(step).zip(self.panels.chunks_mut(bytes)) {
            engine.run_products(QuantisePanel { bits, panel, bytes });
        }
    }
}

/// Bytes as the numbers that they are to be.
fn typed<T: FromBytes + IntoBytes + Immutable>(bytes: &mut [u8]) -> &mut [T] {
    // Panels begin at a line of the cache and consist of whole numbers: of others nothing would be written.
    <[T]>::mut_from_bytes(bytes).unwrap_or_else(|_| unreachable!("panels of whole, aligned numbers"))
}

/// Outputs of one part in a group of panels.
struct Piece<'a> {
    part: &'a LinearPart<'a>,
    /// The first of them, counted from the part's.
    first: usize,
    /// Counted from the group's first.
    outputs: Range<usize>,
    inputs: usize,
    width: usize,
}

impl Piece<'_> {
    /// Where an output is stored.
    fn stored(&self, output: usize) -> usize {
        let i = self.first + output - self.outputs.start;
        self.part.outputs.map_or(i, |order| order[i] as usize)
    }

    /// Panels, each with its outputs.
    fn panels(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (width, Range { start, end }) = (self.width, self.outputs.clone());
        let bounds = move |panel: usize| start.max(panel * width)..end.min((panel + 1) * width);
        (start / width..end.div_ceil(width)).map(move |panel| (panel, bounds(panel)))
    }

    /// From rows of outputs.
    fn transpose<T>(&self, panels: &mut [T], step: usize, convert: &impl Fn(f32) -> T) {
        let (inputs, width) = (self.inputs, self.width);
        let mut rows = [0.0; MAX_WIDTH * TRANSPOSE_BLOCK];
        for (panel, outputs) in self.panels() {
            let (panel, lane) = (&mut panels[panel * step..], outputs.start % width);
            for from in (0..inputs).step_by(TRANSPOSE_BLOCK) {
                let n = TRANSPOSE_BLOCK.min(inputs - from);
                for (output, row) in outputs.clone().zip(rows.chunks_mut(TRANSPOSE_BLOCK)) {
                    self.part.weight.read_f32(self.stored(output) * inputs + from, &mut row[..n]);
                }
                for (j, to) in panel[from * width..].chunks_mut(width).take(n).enumerate() {
                    for (i, to) in to[lane..lane + outputs.len()].iter_mut().enumerate() {
                        *to = convert(rows[i * TRANSPOSE_BLOCK + j]);
                    }
                }
            }
        }
    }

    /// From rows of inputs.
    fn copy<T>(&self, panels: &mut [T], step: usize, convert: &impl Fn(f32) -> T) {
        let weight = self.part.weight;
        let stored = weight.shape()[1];
        let mut row = vec![0.0; self.outputs.len()];
        for input in 0..self.inputs {
            if self.part.outputs.is_none() {
                weight.read_f32(input * stored + self.first, &mut row);
            } else {
                for (output, x) in self.outputs.clone().zip(&mut row) {
                    weight.read_f32(input * stored + self.stored(output), std::slice::from_mut(x));
                }
            }
            for (panel, outputs) in self.panels() {
                let to = &mut panels[panel * step + input * self.width + outputs.start % self.width..];
                for (to, x) in to.iter_mut().zip(&row[outputs.start - self.outputs.start..][..outputs.len()])
                {
                    *to = convert(*x);
                }
            }
        }
    }
}
