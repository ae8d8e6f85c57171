//! rten and candle as peers: a worker of the comparison in `bench_encode.py`, whose protocol is in `common.py`.
//!
//!     peer rten|candle MODEL_DIR THREADS SHAPE [f32|int8]
//!
//! It computes the token vectors of a BERT-like encoder. Shapes are `BxS`, `mixedB` and `lengths:S,S,…`; sequences of
//! different lengths are padded, with an attention mask.
//!
//! - rten runs `derived/model.plain.onnx` or `derived/model.plain.int8.onnx` (`make_models.py derive --for rten`), weights
//!   packed at load.
//! - candle runs the BERT of candle-transformers on `model.safetensors`, in float32 only.
//!
//! There are no decoders: candle-transformers has no GPT-2, and there is no graph of one in standard operators for rten.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Token vectors of a batch.
type Forward = Box<dyn Fn(&Batch) -> Result<Vec<f32>>>;

/// Lengths of `mixed` batches: the first of Python's `random.Random(0).randint(8, 256)`.
const MIXED: [usize; 64] = [
    224, 106, 202, 235, 115, 18, 74, 255, 138, 132, 111, 243, 208, 220, 85, 255, 130, 99, 157, 236, 240, 63,
    137, 43, 80, 43, 201, 32, 166, 212, 72, 240, 144, 188, 215, 162, 238, 45, 87, 33, 194, 26, 238, 225, 183,
    92, 128, 151, 33, 98, 119, 88, 164, 171, 241, 60, 255, 149, 130, 121, 229, 141, 74, 23,
];

/// Padded sequences: `ids` and `mask` are `[rows, width]`.
struct Batch {
    rows: usize,
    width: usize,
    ids: Vec<u32>,
    mask: Vec<u32>,
}

impl Batch {
    /// Sequences of these lengths, of the tokens that all peers are given.
    fn new(lengths: &[usize], vocab: usize) -> Batch {
        let (rows, width) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        let mut batch = Batch { rows, width, ids: vec![0; rows * width], mask: vec![0; rows * width] };
        for (b, n) in lengths.iter().enumerate() {
            for i in 0..*n {
                batch.ids[b * width + i] = ((7919 * (i + 1) + 104_729 * b) % (vocab - 200) + 150) as u32;
                batch.mask[b * width + i] = 1;
            }
        }
        batch
    }
}

fn main() {
    if let Err(e) = run(Instant::now()) {
        println!("{}", json!({"error": e.to_string()}));
    }
}

fn run(started: Instant) -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (engine, directory, threads, shape, dtype) = match arguments[..] {
        [engine, directory, threads, shape] => (engine, directory, threads, shape, "f32"),
        [engine, directory, threads, shape, dtype] => (engine, directory, threads, shape, dtype),
        _ => return Err("usage: peer rten|candle MODEL_DIR THREADS SHAPE [f32|int8]".into()),
    };
    let (directory, lengths) = (Path::new(directory), lengths(shape)?);
    let config: Value = serde_json::from_slice(&std::fs::read(directory.join("config.json"))?)?;
    let vocab =
        config["vocab_size"].as_u64().filter(|n| *n > 200).ok_or("expected a `vocab_size` above 200")?;
    // SAFETY: no other thread has been started yet.
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", threads);
        std::env::set_var("RTEN_NUM_THREADS", threads);
    }
    let threads: usize = threads.parse()?;
    let forward = match (engine, dtype) {
        ("rten", "f32") => rten(&directory.join("derived/model.plain.onnx"), threads)?,
        ("rten", "int8") => rten(&directory.join("derived/model.plain.int8.onnx"), threads)?,
        ("candle", "f32") => candle(directory)?,
        _ => return Err(format!("{engine} has no {dtype} here").into()),
    };
    forward(&Batch::new(&[8], vocab as usize))?;
    let cold_ms = (started.elapsed().as_secs_f64() * 1e4).round() / 10.0;
    answer(&json!({"ready": true, "cold_ms": cold_ms, "rss_mb": rss_mb()}))?;
    let batch = Batch::new(&lengths, vocab as usize);
    for line in std::io::stdin().lock().lines() {
        if line?.trim() == "run" {
            let start = Instant::now();
            std::hint::black_box(forward(&batch)?);
            answer(&json!({"ms": start.elapsed().as_secs_f64() * 1e3}))?;
        }
    }
    Ok(())
}

fn answer(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

fn lengths(shape: &str) -> Result<Vec<usize>> {
    let number =
        |n: &str| n.parse().ok().filter(|n| *n > 0).ok_or("expected a shape such as 8x128 or mixed32");
    if let Some(count) = shape.strip_prefix("mixed") {
        return Ok(MIXED.get(..number(count)?).ok_or("expected at most 64 sequences")?.to_vec());
    }
    if let Some(list) = shape.strip_prefix("lengths:") {
        return Ok(list.split(',').map(number).collect::<std::result::Result<_, _>>()?);
    }
    let (rows, width) = shape.split_once('x').unwrap_or((shape, ""));
    Ok(vec![number(width)?; number(rows)?])
}

fn rten(model: &Path, threads: usize) -> Result<Forward> {
    use rten::{ModelOptions, RunOptions, ThreadPool, ValueView};
    let model = ModelOptions::with_all_ops().prepack_weights(true).load_file(model)?;
    let (ids, mask) = (model.node_id("input_ids")?, model.node_id("attention_mask")?);
    let output = model.node_id("last_hidden_state")?;
    // The pool that the environment describes has no more threads than there are cores.
    let pool = Arc::new(ThreadPool::with_num_threads(threads));
    Ok(Box::new(move |batch| {
        let integers = |values: &[u32]| values.iter().map(|v| *v as i32).collect::<Vec<_>>();
        let (id_values, mask_values) = (integers(&batch.ids), integers(&batch.mask));
        let shape = [batch.rows, batch.width];
        let inputs = vec![
            (ids, ValueView::from_shape(shape, &id_values)?.into()),
            (mask, ValueView::from_shape(shape, &mask_values)?.into()),
        ];
        let mut options = RunOptions::default();
        options.thread_pool = Some(pool.clone());
        let [hidden] = model.run_n(inputs, [output], Some(options))?;
        Ok(hidden.into_shape_vec::<f32, 3>()?.1)
    }))
}

fn candle(directory: &Path) -> Result<Forward> {
    use candle_core::{Device, Tensor};
    use candle_nn::VarBuilder;
    use candle_transformers::models::bert::{BertModel, Config, DTYPE};
    let config: Config = serde_json::from_slice(&std::fs::read(directory.join("config.json"))?)?;
    // SAFETY: nothing writes to the file while it is read.
    let weights = unsafe {
        VarBuilder::from_mmaped_safetensors(&[directory.join("model.safetensors")], DTYPE, &Device::Cpu)?
    };
    let model = BertModel::load(weights, &config)?;
    Ok(Box::new(move |batch| {
        let shape = (batch.rows, batch.width);
        let hidden = Device::Cpu.with_context(|| {
            let ids = Tensor::from_slice(&batch.ids, shape, &Device::Cpu)?;
            let mask = Tensor::from_slice(&batch.mask, shape, &Device::Cpu)?;
            model.forward(&ids, &ids.zeros_like()?, Some(&mask))
        })?;
        Ok(hidden.flatten_all()?.to_vec1()?)
    }))
}

/// The most memory that this process has had so far, in MB.
fn rss_mb() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.div_ceil(1024))
}
