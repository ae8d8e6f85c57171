//! From stored weights to panels, on all threads.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use half::{bf16, f16};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Engine;
use super::kernels::coded::{CodePanel, CodedFour};
use super::kernels::panels::{Deal, Transpose};
use super::kernels::quantised::{Bits, QuantisePanel, filled};
use super::kernels::simd::MAX_WIDTH;
use crate::backend::{Compute, Layout, LinearPart, PACKED_AT_ONCE, Pair, WeightType};
use crate::tensor::{Spare, at_least};

/// Number of this layout, to be raised when the same weights become other bytes: files of packed weights that were written before are not
/// used any more.
pub const PACKING: u32 = 2;

/// What panels consist of.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// bfloat16 in 12 bits, which not all weights fit into.
    Coded,
    /// bfloat16 that is multiplied with bfloat16.
    Pairs,
    Quantised(Bits),
}

impl Format {
    /// Of weights of which nothing is known but how they are to be kept, and used.
    pub fn of(engine: &Engine, kept: WeightType, compute: Compute, inputs: usize) -> Self {
        let can_be_coded =
            || engine.codes() && CodedFour::panel_bytes(inputs, engine.panel_width()).is_some();
        match kept {
            WeightType::F32 => Format::F32,
            WeightType::F16 => Format::F16,
            WeightType::Bf16 if compute == Compute::Bf16 => Format::Pairs,
            WeightType::Bf16 if can_be_coded() => Format::Coded,
            WeightType::Bf16 => Format::Bf16,
            WeightType::Q8 => Format::Quantised(Bits::Eight),
            WeightType::Q4 => Format::Quantised(Bits::Four),
        }
    }

    /// Bytes of a panel of `width` outputs, and behind all panels for each of them.
    fn panel_bytes(self, inputs: usize, width: usize) -> [usize; 2] {
        let of_panel = match self {
            Format::F32 => 4 * inputs * width,
            Format::F16 | Format::Bf16 => 2 * inputs * width,
            Format::Coded => return CodedFour::panel_bytes(inputs, width).unwrap_or_default(),
            Format::Pairs => 4 * inputs.div_ceil(2) * width,
            Format::Quantised(bits) => bits.panel_bytes(inputs, width),
        };
        [of_panel, 0]
    }

    /// Bytes of all panels of a map.
    pub fn bytes(self, inputs: usize, outputs: usize, width: usize) -> u64 {
        outputs.div_ceil(width) as u64 * self.panel_bytes(inputs, width).iter().sum::<usize>() as u64
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
    /// Whether all panels of the map so far could have this format.
    fits: &'a AtomicBool,
    outputs: Range<usize>,
    panels: &'a mut [u8],
    /// What there is for these panels behind all of the map.
    behind: &'a mut [u8],
}

/// Elements that are packed together at most where the stored rows are those of inputs: of each row one long run is read, not many short
/// ones. Where they are to be converted, so many lie aside.
const ELEMENTS_AT_ONCE: usize = 1 << 22;

/// Inputs that are transposed together: of each stored row a long run is read, and those of a panel stay in the second cache.
const TRANSPOSE_BLOCK: usize = 1024;

/// Elements between rows that are transposed: not a power of two, for which they would all get into the same places of the first cache.
const ROW_STEP: usize = TRANSPOSE_BLOCK + 16;

/// What tasks work with.
struct Packer<'e> {
    engine: &'e Engine,
    /// Memory for stored rows, as numbers.
    rows: Spare<Vec<f32>>,
    /// Memory for panels that are not yet what they are to be.
    panels: Spare<Vec<f32>>,
}

/// Fills panels, on all threads, and lets go of what was stored each time that [`PACKED_AT_ONCE`] elements are packed. Another thread
/// may still read: then the system maps that once more.
pub fn pack(engine: &Engine, tasks: Vec<Task<'_>>) {
    let packed = AtomicUsize::new(0);
    let packer = Packer { engine, rows: Spare::default(), panels: Spare::default() };
    engine.pool.run_each(tasks.into_iter(), |task| {
        let (sources, elements) = (task.sources, task.outputs.len() * task.sources.inputs);
        task.fill(&packer);
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

    /// How panels `[outputs / width]` are filled, and what is behind them.
    pub fn tasks(
        &'a self,
        engine: &Engine,
        format: Format,
        fits: &'a AtomicBool,
        bytes: &'a mut [u8],
    ) -> impl Iterator<Item = Task<'a>> {
        let width = engine.panel_width();
        let by_rows = self.parts.iter().all(|part| part.layout == Layout::OutIn);
        let of_thread = self.outputs.div_ceil(engine.pool.threads());
        let of_thread = of_thread.min(ELEMENTS_AT_ONCE / self.inputs.max(1)).max(1);
        let outputs = if by_rows { width } else { of_thread.next_multiple_of(width) };
        let [of_panel, behind] = format.panel_bytes(self.inputs, width);
        let (panels, rest) = bytes.split_at_mut(self.outputs.div_ceil(width) * of_panel);
        let together = outputs / width;
        let mut rest = rest.chunks_mut((together * behind).max(1));
        panels.chunks_mut((together * of_panel).max(1)).enumerate().map(move |(i, panels)| {
            let behind = rest.next().unwrap_or_default();
            let outputs = i * outputs..((i + 1) * outputs).min(self.outputs);
            Task { sources: self, format, fits, outputs, panels, behind }
        })
    }

    /// The elements of a group of panels, which begin `step` elements apart. Places without an output stay as they are.
    fn gather(&self, packer: &Packer<'_>, outputs: Range<usize>, panels: &mut [f32], step: usize) {
        let width = packer.engine.panel_width();
        for (part, bounds) in self.parts.iter().zip(self.starts.windows(2)) {
            let (start, end) = (outputs.start.max(bounds[0]), outputs.end.min(bounds[1]));
            if start >= end {
                continue;
            }
            let outputs = start - outputs.start..end - outputs.start;
            let piece = Piece { part, first: start - bounds[0], outputs, inputs: self.inputs, width };
            match part.layout {
                Layout::OutIn => piece.transpose(packer, panels, step),
                Layout::InOut => piece.copy(packer, panels, step),
            }
        }
    }
}

impl Task<'_> {
    fn fill(mut self, packer: &Packer<'_>) {
        let (inputs, width) = (self.sources.inputs, packer.engine.panel_width());
        match self.format {
            Format::F32 => self.sources.gather(packer, self.outputs, typed(self.panels), inputs * width),
            Format::F16 => {
                self.convert(packer, inputs, |numbers, panels| convert_each(numbers, panels, f16::from_f32))
            }
            Format::Bf16 => {
                self.convert(packer, inputs, |numbers, panels| convert_each(numbers, panels, bf16::from_f32))
            }
            Format::Coded => {
                let (fits, [_, of_panel]) = (self.fits, self.format.panel_bytes(inputs, width));
                if !fits.load(Ordering::Relaxed) {
                    return; // the map is packed once more, in another way
                }
                let mut behind = std::mem::take(&mut self.behind).chunks_mut(of_panel);
                self.convert(packer, inputs, |panel, bytes| {
                    let behind = behind.next().unwrap_or_default();
                    if !packer.engine.run(CodePanel { panel, bytes, behind }) {
                        fits.store(false, Ordering::Relaxed);
                    }
                });
            }
            Format::Pairs => self.convert(packer, inputs.next_multiple_of(2), |numbers, panels| {
                let pairs: &mut [Pair] = typed(panels);
                for (pairs, two) in pairs.chunks_mut(width).zip(numbers.chunks(2 * width)) {
                    let (first, second) = two.split_at(width);
                    for (pair, (a, b)) in pairs.iter_mut().zip(first.iter().zip(second)) {
                        *pair = Pair::new(*a, *b);
                    }
                }
            }),
            Format::Quantised(bits) => self.convert(packer, filled(inputs), |panel, bytes| {
                packer.engine.run_products(QuantisePanel { bits, panel, bytes });
            }),
        }
    }

    /// Gathers panels `[rows][width]`, with zeros where there is nothing, and converts one after another.
    fn convert(self, packer: &Packer<'_>, rows: usize, mut convert: impl FnMut(&[f32], &mut [u8])) {
        let width = packer.engine.panel_width();
        let (step, [bytes, _]) = (rows * width, self.format.panel_bytes(self.sources.inputs, width));
        let mut memory = packer.panels.take();
        let panels = at_least(&mut memory, self.outputs.len().div_ceil(width) * step);
        if rows > self.sources.inputs || !self.outputs.len().is_multiple_of(width) {
            panels.fill(0.0);
        }
        self.sources.gather(packer, self.outputs, panels, step);
        for (panel, bytes) in panels.chunks(step.max(1)).zip(self.panels.chunks_mut(bytes.max(1))) {
            convert(panel, bytes);
        }
        packer.panels.give(memory);
    }
}

/// Each number in another type.
fn convert_each<T: FromBytes + IntoBytes + Immutable>(
    numbers: &[f32],
    bytes: &mut [u8],
    convert: impl Fn(f32) -> T,
) {
    typed(bytes).iter_mut().zip(numbers).for_each(|(to, x)| *to = convert(*x));
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
    fn transpose(&self, packer: &Packer<'_>, panels: &mut [f32], step: usize) {
        let (inputs, width) = (self.inputs, self.width);
        let mut memory = packer.rows.take();
        let rows = at_least(&mut memory, MAX_WIDTH * ROW_STEP);
        for (panel, outputs) in self.panels() {
            let (panel, lane) = (&mut panels[panel * step..], outputs.start % width);
            for from in (0..inputs).step_by(TRANSPOSE_BLOCK) {
                let n = TRANSPOSE_BLOCK.min(inputs - from);
                for (output, row) in outputs.clone().zip(rows.chunks_mut(ROW_STEP)) {
                    self.part.weight.read_f32(self.stored(output) * inputs + from, &mut row[..n]);
                }
                let (lanes, panel) = (lane..lane + outputs.len(), &mut panel[from * width..][..n * width]);
                packer.engine.run(Transpose { rows, step: ROW_STEP, lanes, panel });
            }
        }
        packer.rows.give(memory);
    }

    /// From rows of inputs.
    fn copy(&self, packer: &Packer<'_>, panels: &mut [f32], step: usize) {
        let (weight, Range { start, end }) = (self.part.weight, self.outputs.clone());
        let stored = weight.shape()[1];
        // What fills up a panel that another part has begun, and the rest, from a panel's first place on.
        let begun = (end - start).min(start.next_multiple_of(self.width) - start);
        let mut memory = packer.rows.take();
        let row = at_least(&mut memory, end - start);
        for input in 0..self.inputs {
            if self.part.outputs.is_none() {
                weight.read_f32(input * stored + self.first, row);
            } else {
                for (output, x) in (start..end).zip(&mut *row) {
                    weight.read_f32(input * stored + self.stored(output), std::slice::from_mut(x));
                }
            }
            let mut deal = |first: usize, row: &[f32]| {
                let at = first / self.width * step + input * self.width + first % self.width;
                packer.engine.run(Deal { row, panels: &mut panels[at..], step });
            };
            let (first, rest) = row.split_at(begun);
            if !first.is_empty() {
                deal(start, first);
            }
            if !rest.is_empty() {
                deal(start + begun, rest);
            }
        }
        packer.rows.give(memory);
    }
}
