//! Computes raw outputs for token ids, without a tokenizer.
//!
//! ```sh
//! cargo run --release --example forward
//! cargo run --release --example forward -- path/to/model 2 40 3
//! ```

use smelt::Model;
use smelt::model::Batch;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| "examples/models/language-id".into());
    let mut ids = arguments.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;
    if ids.is_empty() {
        ids = vec![2, 40, 41, 3];
    }

    let model = Model::open(dir)?;
    // Two sequences of different lengths, end to end: nothing is padded.
    let batch = Batch::of([&ids[..], &ids[..1]]);
    // All outputs of the task, and what enters each layer.
    for output in model.forward(&batch, &[], true)? {
        let rows = if matches!(output.rows, smelt::nn::Rows::Tokens(_)) { "tokens" } else { "sequences" };
        let first: Vec<f32> = output.value.row(0).iter().copied().take(4).collect();
        println!("{:20} [{} {rows}, {}] {first:.3?}", output.name, output.value.rows(), output.value.cols());
    }
    Ok(())
}
