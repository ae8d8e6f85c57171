//! The fast backend against the plain one, and bit for bit against itself.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use smelt::backend::{
    Activation, AttentionParams, Backend, CausalConv, Compute, DistanceVectors, Epilogue, HeadScan, KvCache,
    Layout, Linear, LinearPart, Norm, PositionBias, Reach, Rotation, Scan, Span, WeightType,
};
use smelt::cpu::{Cpu, SimdLevel};
use smelt::reference::Reference;
use smelt::tensor::{Array, Tensor};

/// Numbers that look random and are the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0
    }

    fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }

    fn tensor(&mut self, rows: usize, cols: usize) -> Tensor {
        Tensor::from_vec(rows, cols, self.vec(rows * cols))
    }
}

fn levels() -> Vec<SimdLevel> {
    SimdLevel::ALL.into_iter().filter(|level| Cpu::with_level(*level, Some(1)).is_some()).collect()
}

fn cpu(level: SimdLevel, threads: usize) -> Cpu {
    Cpu::with_level(level, Some(threads)).unwrap()
}

fn close(found: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    assert_eq!((found.rows(), found.cols()), (expected.rows(), expected.cols()), "{what}");
    for (i, (a, b)) in found.data().iter().zip(expected.data()).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}: element {i}: {a} instead of {b}");
    }
}

/// Rows as quantised products take them where there are sums of products of bytes: runs of 256 numbers of 8 bits, of which with AVX2
/// two neighbours come to 8 bits together unless weights have 4. Elsewhere they have 16 bits.
fn rounded(x: &Tensor, level: SimdLevel, dtype: WeightType) -> Tensor {
    let mut rounded = x.clone();
    if level.multiplies_bytes() {
        for row in 0..x.rows() {
            for block in rounded.row_mut(row).chunks_mut(256) {
                let mut furthest = block.iter().fold(0f32, |a, b| a.max(b.abs()));
                if level == SimdLevel::Avx2 && dtype == WeightType::Q8 {
                    furthest =
                        block.chunks(2).fold(furthest, |a, pair| a.max(pair.iter().sum::<f32>().abs()));
                }
                let whole = |x: f32| (x * (127.0 / furthest)).round_ties_even();
                block.iter_mut().for_each(|x| *x = whole(*x) * (furthest / 127.0));
            }
        }
    }
    rounded
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.data().iter().map(|x| x.to_bits()).collect()
}

const SIZES: [(usize, usize); 12] = [
    (1, 1),
    (3, 7),
    (8, 8),
    (7, 15),
    (16, 16),
    (17, 31),
    (33, 32),
    (40, 33),
    (64, 100),
    (300, 65),
    (257, 130),
    (5, 1000),
];

#[test]
fn products_agree() {
    let mut random = Random(1);
    for (inputs, outputs) in SIZES {
        for layout in [Layout::OutIn, Layout::InOut] {
            let shape = if layout == Layout::OutIn { vec![outputs, inputs] } else { vec![inputs, outputs] };
            let weight = Array::from_f32(shape, &random.vec(inputs * outputs));
            let order: Vec<u32> = (0..outputs as u32).rev().step_by(2).collect();
            let part = |outputs| LinearPart { weight: &weight, layout, outputs };
            let parts = [part(None), part(Some(&order))];
            let n = outputs + order.len();
            let (bias, mul) = (random.vec(n), random.tensor(40, n));
            for dtype in WeightType::ALL {
                let expected = Reference.linear(&parts, dtype);
                for level in levels() {
                    let linear = cpu(level, 2).linear(&parts, dtype);
                    assert_eq!((linear.inputs(), linear.outputs()), (inputs, n));
                    assert_eq!(linear.bytes(), cpu(level, 1).linear_bytes(inputs, n, dtype));
                    for rows in [0, 1, 2, 3, 4, 5, 7, 13, 40] {
                        let x = random.tensor(rows, inputs);
                        let quantised = matches!(dtype, WeightType::Q8 | WeightType::Q4);
                        let taken = if quantised { rounded(&x, level, dtype) } else { x.clone() };
                        let mul = Tensor::from_vec(rows, n, mul.data()[..rows * n].to_vec());
                        let epilogues = [
                            Epilogue::default(),
                            Epilogue {
                                bias: Some(&bias),
                                act: Some(Activation::Gelu),
                                ..Epilogue::default()
                            },
                            Epilogue { mul: Some(&mul), accumulate: true, ..Epilogue::default() },
                        ];
                        for epilogue in epilogues {
                            let before = random.tensor(rows, n);
                            let (mut found, mut truth) = (before.clone(), before);
                            linear.apply(&x, &epilogue, &mut found);
                            expected.apply(&taken, &epilogue, &mut truth);
                            // Sums of up to 300 products of numbers up to 1, in float32; with rows rounded to 16 bits
                            // each product is off by up to 2^-16.
                            let tolerance = if quantised { 1e-3 } else { 2e-5 };
                            close(
                                &found,
                                &truth,
                                tolerance,
                                &format!("{level:?} {dtype} {rows}x{inputs}x{n}"),
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Rows with a single one find every weight where it belongs, however long the stored rows are that it is packed from.
#[test]
fn weights_get_to_their_places() {
    let (inputs, outputs) = (2100, 70);
    let weights = Random(5).vec(inputs * outputs);
    let mut x = Tensor::zeros(inputs, inputs);
    (0..inputs).for_each(|i| x.row_mut(i)[i] = 1.0);
    for layout in [Layout::OutIn, Layout::InOut] {
        let shape = if layout == Layout::OutIn { vec![outputs, inputs] } else { vec![inputs, outputs] };
        let (across, down) = if layout == Layout::OutIn { (1, inputs) } else { (outputs, 1) };
        let weight = Array::from_f32(shape, &weights);
        let order: Vec<u32> = (0..outputs as u32).rev().step_by(2).collect();
        let part = |outputs| LinearPart { weight: &weight, layout, outputs };
        let taken: Vec<usize> = (0..outputs).chain(order.iter().map(|o| *o as usize)).collect();
        for level in levels() {
            let linear = cpu(level, 2).linear(&[part(None), part(Some(&order))], WeightType::F32);
            let mut found = Tensor::zeros(inputs, taken.len());
            linear.apply(&x, &Epilogue::default(), &mut found);
            for i in 0..inputs {
                let expected: Vec<f32> = taken.iter().map(|o| weights[o * down + i * across]).collect();
                assert_eq!(found.row(i), expected, "{level:?} {layout:?}: input {i}");
            }
        }
    }
}

/// The largest weights with the largest rows of either sign: whole numbers may not be cut off anywhere on the way.
#[test]
fn products_of_other_shapes_are_refused() {
    let weight = Array::from_f32(vec![32, 768], &[0.5; 32 * 768]);
    let part = LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None };
    let kept = [WeightType::F32, WeightType::F16, WeightType::Bf16, WeightType::Q8, WeightType::Q4];
    for (level, compute) in levels_and_computes() {
        let cpu = cpu(level, 1).with_compute(compute);
        for (kept, (rows, cols)) in kept
            .into_iter()
            .flat_map(|kept| [(1, 767), (1, 769), (1, 384), (2, 768)].map(|shape| (kept, shape)))
        {
            let linear = cpu.linear(&[part], kept);
            let apply =
                || linear.apply(&Tensor::zeros(rows, cols), &Epilogue::default(), &mut Tensor::zeros(1, 32));
            assert!(
                catch_unwind(AssertUnwindSafe(apply)).is_err(),
                "{level:?} {compute:?} {kept:?} {rows} {cols}"
            );
        }
    }
}

#[test]
fn sums_of_the_largest_numbers_are_whole() {
    let (inputs, outputs) = (300, 20);
    let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    let weights: Vec<f32> = (0..inputs * outputs).map(|i| sign(i / inputs)).collect();
    let weight = Array::from_f32(vec![outputs, inputs], &weights);
    let part = [LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None }];
    let rows: Vec<f32> = (0..3 * inputs).map(|i| [1.0, -1.0, sign(i)][i / inputs]).collect();
    let x = Tensor::from_vec(3, inputs, rows);
    for dtype in [WeightType::Q8, WeightType::Q4] {
        for level in levels() {
            let (mut found, mut truth) = (Tensor::zeros(3, outputs), Tensor::zeros(3, outputs));
            cpu(level, 1).linear(&part, dtype).apply(&x, &Epilogue::default(), &mut found);
            let taken = rounded(&x, level, dtype);
            Reference.linear(&part, dtype).apply(&taken, &Epilogue::default(), &mut truth);
            close(&found, &truth, 1e-3, &format!("{level:?} {dtype}"));
        }
    }
}

#[test]
fn weights_that_are_no_numbers_show() {
    let mut random = Random(11);
    for (dtype, wrong) in
        [(WeightType::Q8, f32::NAN), (WeightType::Q8, f32::INFINITY), (WeightType::Q4, f32::NAN)]
    {
        let mut weights = random.vec(40 * 300);
        weights[3 * 300 + 290] = wrong;
        let weight = Array::from_f32(vec![40, 300], &weights);
        let part = [LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None }];
        let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(Reference)];
        backends.extend(levels().into_iter().map(|level| Box::new(cpu(level, 1)) as Box<dyn Backend>));
        for backend in backends {
            let mut out = Tensor::zeros(1, 40);
            backend.linear(&part, dtype).apply(&random.tensor(1, 300), &Epilogue::default(), &mut out);
            for (i, y) in out.data().iter().enumerate() {
                assert_eq!(y.is_nan(), i == 3, "{}, {dtype}, {wrong}: output {i}", backend.name());
            }
        }
    }
}

#[test]
fn products_of_bf16_agree() {
    let mut random = Random(8);
    for (inputs, outputs) in SIZES {
        let weight = Array::from_f32(vec![outputs, inputs], &random.vec(inputs * outputs));
        let parts = [LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None }];
        let expected = Reference.linear(&parts, WeightType::Bf16);
        for level in levels() {
            let cpu = cpu(level, 2).with_compute(Compute::Bf16);
            let linear = cpu.linear(&parts, WeightType::Bf16);
            assert_eq!(linear.bytes(), cpu.linear_bytes(inputs, outputs, WeightType::Bf16));
            let x = random.tensor(40, inputs);
            let mut found = Tensor::zeros(40, outputs);
            linear.apply(&x, &Epilogue::default(), &mut found);
            let mut rounded = x.clone();
            rounded.data_mut().iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
            let mut truth = Tensor::zeros(40, outputs);
            expected.apply(&rounded, &Epilogue::default(), &mut truth);
            close(&found, &truth, 2e-5, &format!("{level:?} {inputs}x{outputs}"));
            // A row by itself.
            for rows in [1, 2, 5, 13] {
                let part = Tensor::from_vec(rows, inputs, x.data()[7 * inputs..(7 + rows) * inputs].to_vec());
                let mut out = Tensor::zeros(rows, outputs);
                linear.apply(&part, &Epilogue::default(), &mut out);
                let whole = found.data()[7 * outputs..(7 + rows) * outputs].iter();
                assert!(
                    out.data().iter().zip(whole).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{level:?} {rows}"
                );
            }
        }
    }
}

#[test]
fn a_row_of_a_product_has_the_same_bits_alone_and_on_any_number_of_threads() {
    let mut random = Random(2);
    for level in levels() {
        for (inputs, outputs, kept) in [
            (33, 70, WeightType::F32),
            (600, 130, WeightType::F32),
            (600, 130, WeightType::Bf16),
            (1601, 70, WeightType::F16),
            (1604, 130, WeightType::Bf16),
            (70, 130, WeightType::Q8),
            (600, 70, WeightType::Q4),
        ] {
            let weight = Array::from_f32(vec![outputs, inputs], &random.vec(inputs * outputs));
            let parts = [LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None }];
            let x = random.tensor(230, inputs);
            let mut results = Vec::new();
            for threads in [1, 2, 3, 7] {
                let mut out = Tensor::zeros(x.rows(), outputs);
                cpu(level, threads).linear(&parts, kept).apply(&x, &Epilogue::default(), &mut out);
                results.push(out);
            }
            assert!(results.iter().all(|r| bits(r) == bits(&results[0])), "{level:?}: threads");
            let linear = cpu(level, 2).linear(&parts, kept);
            for (start, rows) in [(0, 1), (5, 2), (9, 3), (20, 5), (100, 17), (229, 1)] {
                let part = Tensor::from_vec(
                    rows,
                    inputs,
                    x.data()[start * inputs..(start + rows) * inputs].to_vec(),
                );
                let mut out = Tensor::zeros(rows, outputs);
                linear.apply(&part, &Epilogue::default(), &mut out);
                let whole = &results[0].data()[start * outputs..(start + rows) * outputs];
                assert!(
                    out.data().iter().zip(whole).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{level:?} {rows}"
                );
            }
        }
    }
}

/// Weights of all kinds, of which a third or a `few` are far from the others.
fn uneven(random: &mut Random, outputs: usize, inputs: usize, few: bool) -> Vec<f32> {
    let far = [0.0, -0.0, 1e-40, -1e-38, 3e-20, -7e-6, 1e-4, -300.0, 2e30, -3e38];
    let near = random.vec(outputs * inputs).into_iter().map(|x| 0.02 * x);
    let is_far = |i: usize| if few { i % 997 == 5 } else { i % 3 == 1 };
    let weight = |(i, near)| if is_far(i) { far[i / 7 % far.len()] * (1.0 + near) } else { near };
    near.enumerate().map(weight).collect()
}

/// The weights of some inputs: of each what comes out if it is one, and all others zero.
fn weights_of(linear: &dyn Linear, inputs: Range<usize>) -> Tensor {
    let mut x = Tensor::zeros(inputs.len(), linear.inputs());
    let mut out = Tensor::zeros(inputs.len(), linear.outputs());
    inputs.enumerate().for_each(|(row, input)| x.row_mut(row)[input] = 1.0);
    linear.apply(&x, &Epilogue::default(), &mut out);
    out
}

#[test]
fn weights_in_bfloat16_are_what_they_are_rounded_to() {
    let mut random = Random(5);
    for level in levels() {
        for (inputs, outputs) in [(4, 1), (40, 33), (41, 33), (200, 70), (1604, 64)] {
            for few in [true, false] {
                let numbers = uneven(&mut random, outputs, inputs, few);
                let weight = Array::from_f32(vec![outputs, inputs], &numbers);
                let parts = [LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None }];
                let linear = cpu(level, 2).linear(&parts, WeightType::Bf16);
                for rows in [1, 5, 13, 40, 200] {
                    for first in (0..inputs).step_by(rows * if inputs > 1000 { 29 } else { 1 }) {
                        let some = first..inputs.min(first + rows);
                        let found = weights_of(&*linear, some.clone());
                        for (input, found) in some.zip(found.data().chunks(outputs)) {
                            let stored = numbers[input..].iter().step_by(inputs);
                            let expected = stored.map(|x| half::bf16::from_f32(*x).to_f32());
                            assert!(
                                found.iter().copied().eq(expected),
                                "{level:?}, input {input} of {inputs}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn weights_in_bfloat16_take_12_bits_where_they_fit() {
    let mut random = Random(6);
    let is_avx512 =
        |level| matches!(level, SimdLevel::Avx512Bf16 | SimdLevel::Avx512Vnni | SimdLevel::Avx512);
    for level in levels() {
        for (inputs, few, bits) in [(768, true, 12.3), (768, false, 16.0), (770, true, 16.0)] {
            let weight = Array::from_f32(vec![64, inputs], &uneven(&mut random, 64, inputs, few));
            let parts = [LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None }];
            let bytes = cpu(level, 1).linear(&parts, WeightType::Bf16).bytes();
            let found = 8.0 * bytes as f64 / (64 * inputs) as f64;
            let expected = if is_avx512(level) { bits } else { 16.0 };
            assert!((found - expected).abs() < 0.1, "{level:?}, {inputs}, {few}: {found}");
        }
    }
}

#[test]
fn norms_agree() {
    let mut random = Random(3);
    for cols in [1, 7, 8, 9, 16, 24, 40, 100, 1000] {
        for width in [cols, if cols % 2 == 0 { cols / 2 } else { cols }] {
            let x = random.tensor(9, cols);
            for per_row in [false, true] {
                let n = if per_row { cols } else { width };
                let (weight, bias) = (random.vec(n), random.vec(n));
                let norm = Norm { weight: Some(&weight), bias: Some(&bias), eps: 1e-5, width };
                for norm in [norm, Norm { weight: None, bias: None, ..norm }] {
                    let mut expected = [Tensor::zeros(9, cols), Tensor::zeros(9, cols)];
                    Reference.layer_norm(&x, &norm, &mut expected[0]);
                    Reference.rms_norm(&x, &norm, &mut expected[1]);
                    for level in levels() {
                        let mut found = Tensor::zeros(9, cols);
                        cpu(level, 2).layer_norm(&x, &norm, &mut found);
                        close(&found, &expected[0], 1e-5, &format!("{level:?} layer norm of {width}"));
                        cpu(level, 2).rms_norm(&x, &norm, &mut found);
                        close(&found, &expected[1], 1e-5, &format!("{level:?} rms norm of {width}"));
                        for (centre, expected) in [(true, &expected[0]), (false, &expected[1])] {
                            let what = format!("{level:?} norm of {width} in place");
                            let (mut wide, before) = (Tensor::zeros(9, cols + 5), random.tensor(9, cols + 5));
                            for row in 0..9 {
                                wide.row_mut(row).copy_from_slice(before.row(row));
                                wide.row_mut(row)[3..3 + cols].copy_from_slice(x.row(row));
                            }
                            cpu(level, 2).norm_columns(&mut wide, 3..3 + cols, &norm, centre);
                            close(&wide.columns(3..3 + cols), expected, 1e-5, &what);
                            for beside in [0..3, 3 + cols..5 + cols] {
                                assert_eq!(wide.columns(beside.clone()), before.columns(beside), "{what}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn activations_agree() {
    // Every 4099th float: the errors that `kernels/math.rs` states hold over all of them.
    let all: Vec<f32> = (0..=u32::MAX).step_by(4099).map(f32::from_bits).filter(|x| x.is_finite()).collect();
    for level in levels() {
        for (_, act) in Activation::NAMES {
            let mut found = Tensor::from_vec(1, all.len(), all.clone());
            cpu(level, 1).activate(act, &mut found);
            for (x, y) in all.iter().zip(found.data()) {
                let exact = act.exact(f64::from(*x));
                let error = (f64::from(*y) - exact).abs() / exact.abs().max(1.0);
                let overflows = exact.abs() > f64::from(f32::MAX) && y.is_infinite();
                assert!(error <= 6e-7 || overflows, "{level:?} {act:?}({x}) is {y} instead of {exact}");
            }
        }
    }
}

#[test]
fn infinity_passes_activations_as_in_the_plain_backend() {
    for level in levels() {
        for (_, act) in Activation::NAMES {
            let mut found = Tensor::from_vec(1, 1, vec![f32::INFINITY]);
            cpu(level, 1).activate(act, &mut found);
            assert_eq!(found.data(), [act.exact(f64::INFINITY) as f32], "{level:?} {act:?}");
        }
    }
}

#[test]
fn what_is_no_number_passes_activations() {
    let backends = levels().into_iter().map(|level| Box::new(cpu(level, 1)) as Box<dyn Backend>);
    for backend in backends.chain([Box::new(Reference) as Box<dyn Backend>]) {
        for (_, act) in Activation::NAMES {
            let mut x = Tensor::from_vec(1, 3, vec![f32::NAN, 1.0, f32::NAN]);
            backend.activate(act, &mut x);
            let found: Vec<bool> = x.data().iter().map(|x| x.is_nan()).collect();
            assert_eq!(found, [true, false, true], "{} {act:?}", backend.name());
        }
    }
}

#[test]
fn rotations_agree() {
    let mut random = Random(4);
    for interleaved in [false, true] {
        for (head_dim, pairs) in [(8, 4), (10, 3), (64, 32)] {
            let (cos, sin) = (random.tensor(5, pairs), random.tensor(5, pairs));
            let rotation = Rotation { cos: &cos, sin: &sin, interleaved };
            let x = random.tensor(5, 3 + 2 * head_dim + 1);
            let (mut found, mut expected) = (x.clone(), x);
            cpu(levels()[0], 1).rope(&mut found, 3, 2, head_dim, &rotation);
            Reference.rope(&mut expected, 3, 2, head_dim, &rotation);
            close(&found, &expected, 1e-6, "rotation");
        }
    }
}

/// One of a backend, by the spans of sequences and what they remember.
type Recurrence<'a> = &'a dyn Fn(&dyn Backend, &[Span], &mut [&mut [f32]], &mut Tensor);

/// Runs a recurrence over sequences that have a past, on the plain backend and on each level, where two threads and one row after
/// another have to give the same bits. What it gives and what it remembers are compared.
fn recurrences_agree(what: &str, cols: usize, state: usize, run: Recurrence<'_>) {
    let mut random = Random(7);
    let spans = spans(&[5, 1, 9]);
    let past: Vec<Vec<f32>> = spans.iter().map(|_| random.vec(state)).collect();
    let all = |backend: &dyn Backend, spans: &[&[Span]]| {
        let mut states = past.clone();
        let mut out = Tensor::zeros(15, cols);
        for spans in spans {
            let mut some: Vec<&mut [f32]> =
                states.iter_mut().take(spans.len()).map(Vec::as_mut_slice).collect();
            run(backend, spans, &mut some, &mut out);
        }
        (out, Tensor::from_vec(1, 3 * state, states.concat()))
    };
    let (expected, kept) = all(&Reference, &[&spans]);
    // The first sequence by two rows and then the rest, the others not at all.
    let steps = [vec![Span { rows: 0..2, past: 0 }], vec![Span { rows: 2..5, past: 2 }]];
    for level in levels() {
        let found = all(&cpu(level, 1), &[&spans]);
        close(&found.0, &expected, 1e-5, &format!("{what}, {level:?}"));
        close(&found.1, &kept, 1e-5, &format!("what {what} remembers, {level:?}"));
        let threads = all(&cpu(level, 2), &[&spans]);
        assert_eq!(
            (bits(&found.0), bits(&found.1)),
            (bits(&threads.0), bits(&threads.1)),
            "{what}, {level:?}"
        );
        let steps = all(&cpu(level, 1), &[&steps[0], &steps[1]]);
        assert_eq!(bits(&found.0)[..5 * cols], bits(&steps.0)[..5 * cols], "{what} in steps, {level:?}");
        assert_eq!(bits(&found.1)[..state], bits(&steps.1)[..state], "{what} in steps, {level:?}");
    }
}

#[test]
fn causal_convolutions_agree() {
    let mut random = Random(17);
    for (channels, kernel, act) in [(1, 1, "silu"), (37, 4, "silu"), (200, 4, "tanh"), (133, 12, "silu")] {
        let x = random.tensor(15, channels + 5);
        let (weight, bias) = (random.vec(kernel * channels), random.vec(channels));
        for bias in [None, Some(&*bias)] {
            let act = Activation::from_name(act).unwrap();
            let conv = CausalConv { x: &x, start: 3, weight: &weight, bias, act };
            let what = format!("a convolution of {channels} channels over {kernel} rows");
            recurrences_agree(&what, channels, (kernel - 1) * channels, &|backend, spans, states, out| {
                backend.causal_conv(&conv, spans, states, out)
            });
        }
    }
}

#[test]
fn scans_agree() {
    let mut random = Random(18);
    for (inner, n) in [(1, 1), (37, 8), (130, 16), (70, 19), (70, 23)] {
        let (x, bc) = (random.tensor(15, inner), random.tensor(15, 2 * n + 3));
        let dt = Tensor::from_vec(15, inner, random.vec(15 * inner).iter().map(|x| x.abs()).collect());
        let a: Vec<f32> = random.vec(inner * n).iter().map(|x| -4.0 * x.abs()).collect();
        let d = random.vec(inner);
        let scan = Scan { x: &x, dt: &dt, bc: &bc, start: 3, a: &a, d: &d };
        recurrences_agree(
            &format!("a scan of {inner} by {n}"),
            inner,
            inner * n,
            &|backend, spans, states, out| backend.scan(&scan, spans, states, out),
        );
    }
}

#[test]
fn scans_of_heads_agree() {
    let mut random = Random(19);
    for (heads, groups, head_dim, n) in
        [(1, 1, 1, 1), (4, 2, 5, 8), (6, 3, 33, 16), (2, 1, 64, 27), (2, 1, 9, 31)]
    {
        let xbc = random.tensor(15, heads * head_dim + 2 * groups * n);
        let dt = Tensor::from_vec(15, heads, random.vec(15 * heads).iter().map(|x| x.abs()).collect());
        let a: Vec<f32> = random.vec(heads).iter().map(|x| -4.0 * x.abs()).collect();
        let d = random.vec(heads);
        let scan = HeadScan { xbc: &xbc, dt: &dt, a: &a, d: &d, head_dim, groups, state: n };
        let (what, cols) = (format!("a scan of {heads} heads of {head_dim} by {n}"), heads * head_dim);
        recurrences_agree(&what, cols, cols * n, &|backend, spans, states, out| {
            backend.scan_heads(&scan, spans, states, out)
        });
    }
}

#[test]
fn recurrences_outside_of_their_tensors_are_refused() {
    let (one, silu) = ([1.0], Activation::from_name("silu").unwrap());
    // Which of them run over the rows of two sequences of four, with so many rows of the result and columns of what they go through.
    let run = |rows: [Range<usize>; 2], out: usize, cols: usize| {
        let (x, dt) = (Tensor::zeros(4, cols), Tensor::zeros(4, 1));
        let conv = CausalConv { x: &x, start: 2, weight: &[1.0; 2], bias: None, act: silu };
        let scan = Scan { x: &dt, dt: &dt, bc: &x, start: 1, a: &one, d: &one };
        let heads = HeadScan { xbc: &x, dt: &dt, a: &one, d: &one, head_dim: 1, groups: 1, state: 1 };
        let spans = rows.map(|rows| Span { rows, past: 0 });
        let all: [Recurrence<'_>; 3] = [
            &|backend, spans, states, out| backend.causal_conv(&conv, spans, states, out),
            &|backend, spans, states, out| backend.scan(&scan, spans, states, out),
            &|backend, spans, states, out| backend.scan_heads(&heads, spans, states, out),
        ];
        all.map(|recurrence| {
            let (mut first, mut second, mut out) = ([0.0], [0.0], Tensor::zeros(out, 1));
            let states: &mut [&mut [f32]] = &mut [&mut first, &mut second];
            let run = || recurrence(&cpu(levels()[0], 2), &spans, states, &mut out);
            catch_unwind(AssertUnwindSafe(run)).is_ok()
        })
    };
    assert_eq!(run([0..2, 2..4], 4, 3), [true; 3]);
    for (rows, out, cols) in
        [([0..3, 2..4], 4, 3), ([2..4, 0..2], 4, 3), ([0..2, 2..4], 3, 3), ([0..2, 2..4], 4, 2)]
    {
        assert_eq!(run(rows.clone(), out, cols), [false; 3], "{rows:?} of {out}, {cols} columns");
    }
}

#[test]
fn sizes_of_a_scan_whose_product_is_too_large_are_refused() {
    // Twice the channels of a head, and a state of both heads, would be 2 elements.
    let head_dim = usize::MAX / 2 + 2;
    let (xbc, dt, two) = (Tensor::zeros(1, 4), Tensor::zeros(1, 2), [1.0; 2]);
    let scan = HeadScan { xbc: &xbc, dt: &dt, a: &two, d: &two, head_dim, groups: 1, state: 1 };
    let (mut state, mut out) = ([0.0; 2], Tensor::zeros(1, 2));
    let run = || {
        let spans = [Span { rows: 0..1, past: 0 }];
        cpu(SimdLevel::Portable, 1).scan_heads(&scan, &spans, &mut [&mut state], &mut out);
    };
    let carried = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    assert_eq!(carried.downcast_ref(), Some(&"a state for each head"));
}

#[test]
fn embeddings_are_exact() {
    let mut random = Random(5);
    let table = Array::from_f32(vec![7, 9], &random.vec(63));
    let before = random.tensor(4, 9);
    for accumulate in [false, true] {
        let (mut found, mut expected) = (before.clone(), before.clone());
        cpu(levels()[0], 1).embedding(&table, &[3, 0, 6, 3], accumulate, &mut found);
        Reference.embedding(&table, &[3, 0, 6, 3], accumulate, &mut expected);
        assert_eq!(found, expected);
    }
}

struct Case {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    reach: Reach,
    softcap: Option<f32>,
    bias: Option<PositionBias>,
    sinks: bool,
    distances: Option<Distances>,
}

/// Vectors of distances: which there are, and the distances on either side that have buckets of their own, `together` to a bucket.
#[derive(Clone, Copy)]
struct Distances {
    keys: bool,
    queries: bool,
    span: i64,
    together: i64,
}

fn plain(name: &'static str, heads: usize, kv_heads: usize, dim: usize, reach: Reach) -> Case {
    Case {
        name,
        heads,
        kv_heads,
        k_dim: dim,
        v_dim: dim,
        reach,
        softcap: None,
        bias: None,
        sinks: false,
        distances: None,
    }
}

fn cases() -> Vec<Case> {
    let window = |back, ahead| Reach { back: Some(back), ahead };
    let distances = |keys, queries, span, together| Some(Distances { keys, queries, span, together });
    let table = (0..4 * 11).map(|i| (i as f32 * 0.37).sin()).collect();
    // Keys that are 10 or more before the query are ruled out: whole blocks of them.
    let near = (0..2 * 21).map(|i| if i % 21 == 0 { f32::NEG_INFINITY } else { 0.5 }).collect();
    vec![
        plain("bidirectional", 4, 4, 16, Reach::ALL),
        plain("causal", 4, 4, 8, Reach::CAUSAL),
        plain("grouped", 6, 2, 14, Reach::CAUSAL),
        plain("one key head", 5, 1, 9, Reach::CAUSAL),
        plain("window", 2, 2, 33, window(3, Some(0))),
        plain("two-sided window", 2, 2, 8, window(5, Some(5))),
        plain("wide window", 2, 1, 64, window(70, Some(0))),
        Case {
            v_dim: 5,
            softcap: Some(2.0),
            ..plain("softcap, values of another size", 2, 2, 12, Reach::CAUSAL)
        },
        Case { sinks: true, ..plain("sinks", 2, 1, 8, window(6, Some(0))) },
        Case {
            bias: Some(PositionBias::Distance { table, limit: 5 }),
            ..plain("bias by distance", 4, 4, 8, Reach::ALL)
        },
        Case {
            bias: Some(PositionBias::Distance { table: near, limit: 10 }),
            ..plain("bias that rules keys out", 2, 2, 8, Reach::CAUSAL)
        },
        Case {
            bias: Some(PositionBias::Slope { slopes: vec![0.5, 0.25, 0.1, 0.05] }),
            ..plain("slopes", 4, 2, 8, Reach::CAUSAL)
        },
        Case { distances: distances(true, true, 299, 1), ..plain("distances", 3, 3, 16, Reach::ALL) },
        Case {
            v_dim: 5,
            distances: distances(true, true, 40, 3),
            ..plain("buckets of distances", 2, 2, 33, Reach::ALL)
        },
        Case { distances: distances(true, false, 9, 1), ..plain("keys of distances", 2, 2, 8, Reach::ALL) },
        Case {
            softcap: Some(2.0),
            distances: distances(false, true, 100, 2),
            ..plain("queries of distances", 2, 2, 9, Reach::CAUSAL)
        },
        Case {
            distances: distances(true, true, 500, 1),
            ..plain("distances in a window", 2, 2, 12, window(70, Some(5)))
        },
        Case {
            distances: distances(true, true, 30, 1),
            ..plain("distances backwards", 1, 1, 64, window(260, Some(0)))
        },
    ]
}

/// Attention of new rows over what the caches hold and the rows themselves.
fn attend(backend: &dyn Backend, case: &Case, x: &Tensor, spans: &[Span], caches: &mut [KvCache]) -> Tensor {
    let sinks: Vec<f32> = (0..case.heads).map(|h| h as f32 - 0.5).collect();
    let (q, k) = (case.heads * case.k_dim, case.kv_heads * case.k_dim);
    let most = spans.iter().map(|span| span.past + span.rows.len()).max().unwrap_or(0) as i64;
    let Distances { keys, queries, span, together } =
        case.distances.unwrap_or(Distances { keys: false, queries: false, span: 1, together: 1 });
    let bucket = |distance: i64| ((distance.clamp(-span, span) + span) / together) as u32;
    let bucket: Vec<u32> = (1 - most..most).map(bucket).collect();
    let mut random = Random(16);
    let mut vectors = || random.tensor((2 * span / together + 1) as usize, q);
    let (keys, queries) = (keys.then(&mut vectors), queries.then(&mut vectors));
    let distances = DistanceVectors { keys: keys.as_ref(), queries: queries.as_ref(), bucket: &bucket };
    let params = AttentionParams {
        heads: case.heads,
        kv_heads: case.kv_heads,
        k_dim: case.k_dim,
        v_dim: case.v_dim,
        scale: 1.0 / (case.k_dim as f32).sqrt(),
        softcap: case.softcap,
        bias: case.bias.as_ref(),
        reach: case.reach,
        sinks: case.sinks.then_some(&sinks),
        distances: case.distances.is_some().then_some(&distances),
    };
    let mut all: Vec<&mut KvCache> = caches.iter_mut().collect();
    backend.append_kv(x, q, q + k, spans, &mut all);
    let all: Vec<&KvCache> = caches.iter().collect();
    let mut out = Tensor::zeros(x.rows(), case.heads * case.v_dim);
    backend.attention(x, 0, spans, &all, &params, &mut out);
    out
}

fn width(case: &Case) -> usize {
    case.heads * case.k_dim + case.kv_heads * (case.k_dim + case.v_dim)
}

fn empty(case: &Case, compute: Compute, n: usize) -> Vec<KvCache> {
    // In memory that held something else.
    let cache = || KvCache::new(compute, case.kv_heads, case.k_dim, case.v_dim);
    (0..n).map(|_| cache().in_memory(vec![f32::NAN; 100_000])).collect()
}

fn spans(lengths: &[usize]) -> Vec<Span> {
    let mut start = 0;
    lengths
        .iter()
        .map(|n| {
            let rows = start..start + n;
            start = rows.end;
            Span { rows, past: 0 }
        })
        .collect()
}

const LENGTHS: [usize; 6] = [1, 5, 16, 33, 300, 64];

fn levels_and_computes() -> Vec<(SimdLevel, Compute)> {
    levels()
        .into_iter()
        .flat_map(|level| [Compute::F32, Compute::Bf16].map(|compute| (level, compute)))
        .collect()
}

#[test]
fn attention_agrees() {
    let mut random = Random(6);
    for case in cases() {
        let spans = spans(&LENGTHS);
        let x = random.tensor(LENGTHS.iter().sum(), width(&case));
        // In bfloat16 keys and values are those of the reference to the bit, queries and weights are rounded as well.
        for (compute, tolerance) in [(Compute::F32, 1e-5), (Compute::Bf16, 6e-3)] {
            let expected = attend(&Reference, &case, &x, &spans, &mut empty(&case, compute, spans.len()));
            for level in levels() {
                let cpu = cpu(level, 2).with_compute(compute);
                let found = attend(&cpu, &case, &x, &spans, &mut empty(&case, compute, spans.len()));
                close(&found, &expected, tolerance, &format!("{level:?} {compute:?} {}", case.name));
            }
        }
    }
}

#[test]
fn attention_agrees_when_scores_are_large() {
    let mut random = Random(14);
    let sinks = Case { sinks: true, ..plain("sinks", 2, 1, 8, Reach::CAUSAL) };
    for case in [plain("bidirectional", 4, 4, 16, Reach::ALL), sinks] {
        let spans = spans(&LENGTHS);
        for factor in [1e4, 1e10, 1e30] {
            let mut x = random.tensor(LENGTHS.iter().sum(), width(&case));
            let queries = case.heads * case.k_dim;
            for row in 0..x.rows() {
                x.row_mut(row)[..queries].iter_mut().for_each(|q| *q *= factor);
            }
            let attend = |backend: &dyn Backend| {
                attend(backend, &case, &x, &spans, &mut empty(&case, backend.compute(), spans.len()))
            };
            let expected = attend(&Reference);
            for level in levels() {
                // The largest score takes nearly all of the weight. Where two are close, their rounding decides.
                let found = attend(&cpu(level, 2));
                let same = expected.data().iter().zip(found.data()).filter(|(a, b)| (*a - *b).abs() < 1e-3);
                let least = expected.data().len() * 98 / 100;
                assert!(same.count() >= least, "{level:?} {factor:e} {}", case.name);
            }
        }
    }
}

/// Plain attention of one head with one column.
fn one_column<'a>() -> AttentionParams<'a> {
    AttentionParams {
        heads: 1,
        kv_heads: 1,
        k_dim: 1,
        v_dim: 1,
        scale: 1.0,
        softcap: None,
        bias: None,
        reach: Reach::ALL,
        sinks: None,
        distances: None,
    }
}

#[test]
fn sequences_that_overlap_are_refused() {
    let case = plain("one column", 1, 1, 1, Reach::ALL);
    let x = Random(15).tensor(6, width(&case));
    let span = |rows| Span { rows, past: 0 };
    for rows in [[0..4, 3..6], [3..6, 0..3], [0..3, 3..7]] {
        let attend = || {
            let spans = rows.clone().map(span);
            let caches: Vec<KvCache> = empty(&case, Compute::F32, 2);
            let caches: Vec<&KvCache> = caches.iter().collect();
            let params = one_column();
            cpu(levels()[0], 2).attention(&x, 0, &spans, &caches, &params, &mut Tensor::zeros(6, 1));
        };
        assert!(catch_unwind(attend).is_err(), "{rows:?}");
    }
}

#[test]
fn queries_beyond_all_distances_are_refused() {
    let x = Random(15).tensor(1, 3);
    let vectors = Tensor::zeros(1, 1);
    let distances = DistanceVectors { keys: Some(&vectors), queries: None, bucket: &[0; 31] };
    // The last would be before the first key, if its position were counted on.
    for (past, is_refused) in [(15, false), (16, true), (usize::MAX - 3, true), (usize::MAX, true)] {
        let attend = || {
            let mut cache = KvCache::new(Compute::F32, 1, 1, 1);
            (0..16).for_each(|_| cache.push(&[1.0], &[1.0]));
            let params = AttentionParams { distances: Some(&distances), ..one_column() };
            let spans = [Span { rows: 0..1, past }];
            cpu(levels()[0], 1).attention(&x, 0, &spans, &[&cache], &params, &mut Tensor::zeros(1, 1));
        };
        let found = catch_unwind(attend).map_err(|carried| carried.downcast_ref::<&str>().copied());
        assert_eq!(found, if is_refused { Err(Some("distances of queries")) } else { Ok(()) }, "{past}");
    }
}

#[test]
fn who_sees_no_key_gets_zeros() {
    // Positions behind all keys, in blocks of their own.
    let case = plain("window", 2, 2, 8, Reach { back: Some(3), ahead: Some(0) });
    let x = Random(12).tensor(16, width(&case));
    for (level, compute) in levels_and_computes() {
        let spans = [Span { rows: 0..16, past: 300 }];
        let found =
            attend(&cpu(level, 1).with_compute(compute), &case, &x, &spans, &mut empty(&case, compute, 1));
        assert!(found.data().iter().all(|x| *x == 0.0), "{level:?} {compute:?}");
    }
}

#[test]
fn weights_of_keys_that_are_all_ruled_out_are_no_numbers() {
    let bias = PositionBias::Distance { table: vec![f32::NEG_INFINITY; 3], limit: 1 };
    let case = Case { bias: Some(bias), ..plain("ruled out", 1, 1, 8, Reach::CAUSAL) };
    let x = Random(17).tensor(3, width(&case));
    for (level, compute) in levels_and_computes() {
        let cpu = cpu(level, 1).with_compute(compute);
        let found = attend(&cpu, &case, &x, &spans(&[3]), &mut empty(&case, compute, 1));
        assert!(found.data().iter().all(|x| x.is_nan()), "{level:?} {compute:?}");
    }
}

#[test]
#[should_panic(expected = "what a cache is kept for")]
fn a_cache_for_another_type_is_refused() {
    let case = plain("one column", 1, 1, 1, Reach::ALL);
    let x = Random(13).tensor(1, width(&case));
    let mut caches = empty(&case, Compute::Bf16, 1);
    attend(&cpu(SimdLevel::Portable, 1), &case, &x, &spans(&[1]), &mut caches);
}

#[test]
fn attention_has_the_same_bits_alone_together_on_any_threads_and_token_by_token() {
    let mut random = Random(7);
    for case in cases() {
        let all = spans(&LENGTHS);
        let x = random.tensor(LENGTHS.iter().sum(), width(&case));
        for (level, compute) in levels_and_computes() {
            let cpu = |threads: usize| cpu(level, threads).with_compute(compute);
            let whole = attend(&cpu(1), &case, &x, &all, &mut empty(&case, compute, all.len()));
            for threads in [2, 7] {
                let other = attend(&cpu(threads), &case, &x, &all, &mut empty(&case, compute, all.len()));
                assert_eq!(
                    bits(&other),
                    bits(&whole),
                    "{level:?} {compute:?} {}: {threads} threads",
                    case.name
                );
            }
            let cpu = cpu(2);
            for span in &all {
                let rows = span.rows.len();
                let part = |from: usize, to: usize| {
                    Tensor::from_vec(to - from, x.cols(), x.data()[from * x.cols()..to * x.cols()].to_vec())
                };
                let expected = &bits(&whole)[span.rows.start * whole.cols()..span.rows.end * whole.cols()];
                let alone = attend(
                    &cpu,
                    &case,
                    &part(span.rows.start, span.rows.end),
                    &[Span { rows: 0..rows, past: 0 }],
                    &mut empty(&case, compute, 1),
                );
                assert_eq!(bits(&alone), expected, "{level:?} {compute:?} {}: alone", case.name);
                if case.reach.ahead != Some(0) {
                    continue;
                }
                let mut caches = empty(&case, compute, 1);
                let mut steps = Vec::new();
                let mut past = 0;
                // One by one, then some at once.
                for n in std::iter::repeat_n(1, rows.min(20)).chain(std::iter::repeat_n(13, 100)) {
                    let n = n.min(rows - past);
                    if n == 0 {
                        break;
                    }
                    let new = part(span.rows.start + past, span.rows.start + past + n);
                    steps.extend(bits(&attend(&cpu, &case, &new, &[Span { rows: 0..n, past }], &mut caches)));
                    past += n;
                }
                assert_eq!(steps, expected, "{level:?} {compute:?} {}: token by token", case.name);
            }
        }
    }
}

#[cfg(feature = "openblas")]
#[test]
fn products_by_openblas_agree() {
    let mut random = Random(8);
    for (inputs, outputs) in SIZES {
        let weight = Array::from_f32(vec![outputs, inputs], &random.vec(inputs * outputs));
        let parts = [LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None }];
        let bias = random.vec(outputs);
        let x = random.tensor(9, inputs);
        for accumulate in [false, true] {
            let epilogue = Epilogue {
                bias: Some(&bias),
                act: Some(Activation::Silu),
                accumulate,
                ..Epilogue::default()
            };
            let before = random.tensor(9, outputs);
            let (mut found, mut expected) = (before.clone(), before);
            Cpu::new(Some(2))
                .with_openblas()
                .linear(&parts, WeightType::F32)
                .apply(&x, &epilogue, &mut found);
            Reference.linear(&parts, WeightType::F32).apply(&x, &epilogue, &mut expected);
            close(&found, &expected, 2e-5, "openblas");
        }
    }
}

#[cfg(feature = "openblas")]
#[test]
fn a_model_by_openblas_agrees() {
    use smelt::{BackendKind, Model, OpenOptions};
    let classify = |backend: BackendKind, dtype: Option<WeightType>| {
        let options = OpenOptions { backend, dtype, ..OpenOptions::default() };
        let model = Model::open_with("examples/models/language-id", &options)?;
        let weights = model.network().memory().weights;
        Ok::<_, smelt::Error>((model.classify(&["Where is the station?".into()])?.remove(0).labels, weights))
    };
    let (expected, _) = classify(BackendKind::Reference, None).unwrap();
    let (found, weights) = classify(BackendKind::OpenBlas, None).unwrap();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.label, expected.label);
        assert!((found.score - expected.score).abs() < 1e-4, "{found:?} {expected:?}");
    }
    let (_, packed) = classify(BackendKind::Cpu, Some(WeightType::F32)).unwrap();
    assert!(weights.abs_diff(packed) < packed / 10, "{weights} bytes, {packed} packed");
    assert!(classify(BackendKind::OpenBlas, Some(WeightType::Q8)).is_err());
}
