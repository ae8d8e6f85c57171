//! What quantised weights cost: perplexity of the embedded language model, and differences from transformers.
//!
//! `cargo test --release --test quantised -- --nocapture` prints the figures of docs/performance.md.

mod common;

use std::sync::Arc;

use common::{cases, load_as};

use smelt::cpu::{Cpu, SimdLevel};
use smelt::model::Batch;
use smelt::task::Bundle;
use smelt::weights::read_bundle;
use smelt::{Compute, Model, OpenOptions, WeightType};

/// Jane Austen, “Pride and Prejudice”, 1813, and Herman Melville, “Moby-Dick”, 1851: beginnings.
const TEXTS: [&str; 2] = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a \
     wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, \
     this truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful \
     property of some one or other of their daughters.",
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and \
     nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of \
     the world. It is a way I have of driving off the spleen and regulating the circulation.",
];

/// `exp` of the mean of the negative logarithms of the probabilities of all tokens but the first.
fn perplexity(dtype: WeightType, compute: Option<Compute>) -> f64 {
    let options = OpenOptions { dtype: Some(dtype), compute, ..OpenOptions::default() };
    let model = Model::open_with("examples/models/prose", &options).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for text in TEXTS {
        let encoding = model.tokenizer().unwrap().encode(text, None, Default::default()).unwrap();
        let outputs = model.forward(&Batch::of([&encoding.ids[..]]), &["logits"], false).unwrap();
        for (i, next) in encoding.ids.iter().skip(1).enumerate() {
            let row = outputs[0].value.row(i);
            let largest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let total: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
            sum += total.ln() - f64::from(row[*next as usize] - largest);
            count += 1;
        }
    }
    (sum / f64::from(count)).exp()
}

#[test]
fn perplexity_stays_near_that_of_float32() {
    let exact = perplexity(WeightType::F32, None);
    println!("f32: perplexity {exact:.3}");
    let cases = [
        (WeightType::Bf16, None, 0.005),
        (WeightType::Bf16, Some(Compute::Bf16), 0.01),
        (WeightType::Q8, None, 0.005),
        (WeightType::Q8, Some(Compute::F32), 0.005),
        (WeightType::Q4, None, 0.1),
    ];
    for (dtype, compute, bound) in cases {
        let found = perplexity(dtype, compute);
        let change = found / exact - 1.0;
        println!("{dtype}, computed in {compute:?}: perplexity {found:.3}, {:+.2} %", 100.0 * change);
        assert!(change.abs() < bound, "{dtype}, {compute:?}: {found} instead of {exact}");
    }
}

#[test]
fn outputs_stay_near_those_of_transformers() {
    let levels = SimdLevel::ALL.into_iter().filter(|level| Cpu::with_level(*level, Some(2)).is_some());
    for level in levels {
        outputs_of_level_stay_near_those_of_transformers(level);
    }
}

fn outputs_of_level_stay_near_those_of_transformers(level: SimdLevel) {
    // Where activations are rounded to 8 bits as well, as much as weights of 8 bits are, the two errors are as one of √2 the size.
    let is_bytes = level.multiplies_bytes();
    let q8 = if is_bytes { 0.02 * std::f32::consts::SQRT_2 } else { 0.02 };
    // Models of 16 to 64 columns with random weights: errors average out less than in larger ones.
    let kinds = [
        (WeightType::F32, None, 1e-5),
        (WeightType::Bf16, Some(Compute::Bf16), 0.01),
        (WeightType::Q8, None, q8),
        (WeightType::Q4, None, 0.3),
    ];
    for (dtype, compute, bound) in kinds {
        let mut errors: Vec<f32> = Vec::new();
        for dir in cases() {
            let cpu = Cpu::with_level(level, Some(2)).unwrap();
            let compute = compute.unwrap_or(cpu.compute_for(Some(dtype)));
            let cpu = cpu.with_compute(compute);
            let network = load_as(&dir, Arc::new(cpu), Some(dtype)).unwrap();
            let bundle = Bundle::new(read_bundle(&dir.join("reference.safetensors")).unwrap()).unwrap();
            let comparisons = bundle.compare(&network).unwrap();
            let outputs = comparisons.iter().filter(|c| !c.name.starts_with("generate"));
            errors.extend(outputs.map(|c| c.largest / c.magnitude));
        }
        errors.sort_by(f32::total_cmp);
        let at = |share: f64| errors[((errors.len() - 1) as f64 * share) as usize];
        let (middle, most) = (at(0.5), at(0.9));
        println!(
            "{level:?}, {dtype}: largest difference by largest value: median {middle:.1e}, 90 % below {most:.1e}"
        );
        assert!(middle <= bound && at(1.0).is_finite(), "{level:?}, {dtype}: {middle}");
    }
}
