//! The same bits whatever the batch, the threads, and whether tokens come at once or one by one: on whole models.

mod common;

use std::sync::Arc;

use common::{cases, levels, load};
use smelt::cpu::{Cpu, SimdLevel};
use smelt::model::{Batch, Network, Output};
use smelt::task::Bundle;
use smelt::tensor::Array;
use smelt::weights::read_bundle;

fn network(dir: &std::path::Path, level: SimdLevel, threads: usize) -> Network {
    load(dir, Arc::new(Cpu::with_level(level, Some(threads)).unwrap())).unwrap()
}

fn bits(output: &Output) -> Vec<u32> {
    output.value.data().iter().map(|x| x.to_bits()).collect()
}

/// The part of an output that belongs to sequence `i`.
fn part(output: &Output, batch: &Batch, i: usize) -> Vec<u32> {
    let rows = batch.spans(output.rows)[i].rows.clone();
    let cols = output.value.cols();
    bits(output)[rows.start * cols..rows.end * cols].to_vec()
}

/// Sequence `i` of each stream of a batch, as far as the stream has so many.
fn alone(batch: &Batch, i: usize) -> Batch {
    let mut alone = Batch::default();
    let item =
        |items: &Option<Array>| items.as_ref().map(|items| items.items(&[i.min(items.shape()[0] - 1)]));
    (alone.images, alone.audio) = (item(&batch.images), item(&batch.audio));
    if let Some(span) = batch.input.spans.get(i) {
        alone.input.push(&batch.input.ids[span.rows.clone()], 0);
        if !batch.input.type_ids.is_empty() {
            alone.input.type_ids = batch.input.type_ids[span.rows.clone()].to_vec();
        }
    }
    if let Some(span) = batch.decoder.spans.get(i) {
        alone.decoder.push(&batch.decoder.ids[span.rows.clone()], 0);
    }
    alone
}

#[test]
fn a_batch_is_each_sequence_alone_on_any_number_of_threads() {
    for dir in cases() {
        let bundle = Bundle::new(read_bundle(&dir.join("reference.safetensors")).unwrap()).unwrap();
        let batch = bundle.batch();
        for level in levels() {
            let one = network(&dir, level, 1);
            let whole = one.forward(batch, &[], true).unwrap();
            for threads in [2, 5] {
                let other = network(&dir, level, threads).forward(batch, &[], true).unwrap();
                for output in &whole {
                    let same = other.iter().find(|o| o.name == output.name).unwrap();
                    assert_eq!(
                        bits(same),
                        bits(output),
                        "{}: {}, {threads} threads",
                        dir.display(),
                        output.name
                    );
                }
            }
            for i in 0..batch.len() {
                let alone = alone(batch, i);
                let single = one.forward(&alone, &[], true).unwrap();
                for output in
                    whole.iter().filter(|output| output.rows.stream().is_some_and(|of| i < batch.count(of)))
                {
                    // What compares sequences with each other depends on the others.
                    if output.name.starts_with("logits_per_") {
                        continue;
                    }
                    let same = single.iter().find(|o| o.name == output.name).unwrap();
                    assert_eq!(
                        bits(same),
                        part(output, batch, i),
                        "{}: {} of {i}",
                        dir.display(),
                        output.name
                    );
                }
            }
        }
    }
}

#[test]
fn a_batch_that_is_computed_in_groups_is_each_sequence_alone() {
    let id = |i: usize, j: usize| ((i * 37 + j * 11) % 200 + 5) as u32;
    for name in ["language-id", "prose"] {
        let network = network(&std::path::Path::new("examples/models").join(name), SimdLevel::Portable, 1);
        // More together than is computed at once.
        let lengths = [3, 120, 100, 7, 90, 1, 60];
        let sequences: Vec<Vec<u32>> =
            lengths.iter().enumerate().map(|(i, n)| (0..*n).map(|j| id(i, j)).collect()).collect();
        let batch = Batch::of(sequences.iter().map(Vec::as_slice));
        assert!(batch.input.ids.len() > smelt::backend::Backend::rows_at_once(network.backend()));
        for output in network.forward(&batch, &[], true).unwrap() {
            for (i, ids) in sequences.iter().enumerate() {
                let alone = network.forward(&Batch::of([&ids[..]]), &[], true).unwrap();
                let same = alone.iter().find(|o| o.name == output.name).unwrap();
                assert_eq!(bits(same), part(&output, &batch, i), "{name}: {} of {i}", output.name);
            }
        }
    }
}

#[test]
fn tokens_one_by_one_give_what_the_prompt_gives_at_once() {
    let mut seen = 0;
    for dir in cases() {
        for level in levels() {
            let network = network(&dir, level, 2);
            if !network.plan().task.as_deref().is_some_and(|task| ["causal_lm", "seq2seq_lm"].contains(&task))
            {
                continue;
            }
            seen += 1;
            let prompts: [&[u32]; 3] = [&[5, 9, 40, 7, 33, 12, 8], &[17], &[60, 3, 3, 21]];
            let decodes = network.plan().has_decoder();
            // All sequences together, as long as each has tokens left; then those that go on.
            let mut together = network.session(3);
            if decodes {
                together.encode(&prompts).unwrap();
            }
            let at_once = together.step(&prompts, "logits").unwrap();
            for (i, prompt) in prompts.iter().enumerate() {
                let mut session = network.session(1);
                if decodes {
                    session.encode(&[prompt]).unwrap();
                }
                let mut last = None;
                for id in *prompt {
                    last = Some(session.step(&[&[*id]], "logits").unwrap());
                }
                let last = last.unwrap();
                let same = last.row(0).iter().zip(at_once.row(i)).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: prompt {i}", dir.display());
                // A batch from which others have left goes on with the same bits.
                if i == 0 {
                    let mut fewer = network.session(3);
                    if decodes {
                        fewer.encode(&prompts).unwrap();
                    }
                    fewer.step(&prompts, "logits").unwrap();
                    fewer.retain(&[true, false, false]);
                    let next =
                        [fewer.step(&[&[11]], "logits").unwrap(), session.step(&[&[11]], "logits").unwrap()];
                    assert_eq!(next[0], next[1], "{}", dir.display());
                }
            }
        }
    }
    assert!(seen >= 6, "decoders were tried");
}

#[test]
fn many_threads_may_use_one_model() {
    let dir = cases().into_iter().next().unwrap();
    let bundle = Bundle::new(read_bundle(&dir.join("reference.safetensors")).unwrap()).unwrap();
    let network = load(&dir, Arc::new(Cpu::new(Some(2)))).unwrap();
    let expected = network.forward(bundle.batch(), &[], false).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let found = network.forward(bundle.batch(), &[], false).unwrap();
                    assert!(found.iter().zip(&expected).all(|(a, b)| bits(a) == bits(b)));
                }
            });
        }
    });
}
