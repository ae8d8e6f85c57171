//! Raw outputs for token ids: `cargo run --example forward [DIR]`.

use smelt::Model;
use smelt::model::Batch;

fn main() -> smelt::Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "examples/models/language-id".into());
    let model = Model::open(dir)?;
    // Sequences of different lengths, without padding.
    let batch = Batch::of([&[2, 40, 50, 60, 3][..], &[2, 70, 3]]);
    for output in model.forward(&batch, &[], true)? {
        let (rows, cols) = (output.value.rows(), output.value.cols());
        println!("{:20} [{rows}, {cols}]  first element {:.4}", output.name, output.value.data()[0]);
    }
    Ok(())
}
