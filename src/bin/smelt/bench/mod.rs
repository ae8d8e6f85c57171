//! `smelt bench`: how fast a model runs here, and what share of the machine's speed that is.

mod model;
mod report;
mod shape;

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use smelt::backend::{Backend, Work};
use smelt::cpu::{Cpu, Meter, Peaks};
use smelt::{Arch, Compute, Error, ErrorKind, OpenOptions, Result, WeightType};

use model::{Bench, clock_ms};
use report::{Cold, Measured, median, rounded};
use shape::{SHAPES, Shape};

#[derive(clap::Args)]
#[command(after_help = SHAPES)]
pub struct Arguments {
    /// What to compute
    #[arg(required = true)]
    shapes: Vec<Shape>,
    /// Directory with config.json and *.safetensors
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// Architecture: a YAML file, or the name of a built-in one
    #[arg(long, value_name = "FILE|NAME")]
    arch: Option<Arch>,
    /// How weights are kept, instead of as they are stored
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,
    /// How products are computed: f32, or bf16, which rounds both sides and is the default for attention with q8 and q4 where
    /// the processor has instructions for it
    #[arg(long, value_name = "TYPE")]
    compute: Option<Compute>,
    /// Threads to compute with, 1 to 1024; one per core by default
    #[arg(long, allow_negative_numbers = true, value_parser = crate::threads())]
    threads: Option<usize>,
    /// Take packed weights from this file, or write them to it, see smelt-run
    #[arg(long, value_name = "FILE")]
    packed: Option<PathBuf>,
    /// How many times each shape is computed, after once to warm up
    #[arg(long, default_value_t = 5, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// One JSON object a shape
    #[arg(long)]
    json: bool,
    /// Compute the shape once for each line `run` of the input, and answer `{"ms": …}`
    #[arg(long, conflicts_with_all = ["json", "runs"])]
    worker: bool,
}

impl Arguments {
    /// How the model is opened, but for the task.
    fn options(&self) -> OpenOptions {
        OpenOptions {
            arch: self.arch.clone(),
            dtype: self.dtype,
            compute: self.compute,
            threads: self.threads,
            packed: self.packed.clone(),
            ..OpenOptions::default()
        }
    }
}

pub fn run(arguments: &Arguments, started: Instant) -> Result<()> {
    let cpu = Arc::new(arguments.options().cpu());
    if arguments.worker {
        return worker(arguments, cpu, started);
    }
    for (i, shape) in arguments.shapes.iter().enumerate() {
        let bench = Bench::open(arguments, shape, cpu.clone())?;
        bench.small(shape)?;
        // Only the first shape tells how long a start takes and what memory it needs.
        let cold = (i == 0).then(|| Cold::since(started));
        bench.time(shape)?;
        let (mut times, mut outside, mut peaks, mut work) =
            (Vec::new(), Vec::new(), Vec::new(), Work::default());
        let (meter, clock_ms) = (Meter::default(), clock_ms());
        for _ in 0..arguments.runs {
            // What measures the memory has filled the caches.
            bench.small(shape)?;
            let timing = bench.time(shape)?;
            times.push(timing.ms);
            outside.push(timing.outside_ms(clock_ms));
            work = timing.work;
            peaks.push(meter.measure(&cpu));
        }
        times.sort_by(f64::total_cmp);
        let result = Measured {
            name: bench.network.plan().name.clone(),
            backend: cpu.name(),
            dtype: bench.kept(arguments),
            compute: match cpu.compute() {
                Compute::F32 => "f32",
                Compute::Bf16 => "bf16",
            },
            threads: cpu.threads(),
            amount: bench.amount(shape),
            peaks: Peaks {
                bytes_per_s: median(peaks.iter().map(|p| p.bytes_per_s)),
                flops_per_s: median(peaks.iter().map(|p| p.flops_per_s)),
                region_s: median(peaks.iter().map(|p| p.region_s)),
            },
            cold,
            interpreter_ms: median(outside.into_iter()),
            times,
            work,
        };
        if arguments.json {
            println!("{}", result.json(shape))
        } else {
            print!("{}", result.text(shape))
        }
        if crate::is_unread() {
            break;
        }
    }
    Ok(())
}

/// Serves a program that has several engines take turns.
fn worker(arguments: &Arguments, cpu: Arc<Cpu>, started: Instant) -> Result<()> {
    let [shape] = &arguments.shapes[..] else {
        crate::wrong_command_line("bench", "expected one shape for `--worker`");
    };
    let bench = Bench::open(arguments, shape, cpu)?;
    bench.small(shape)?;
    let cold = Cold::since(started);
    println!("{}", json!({"ready": true, "cold_ms": rounded(cold.ms, 1), "rss_mb": cold.rss_mb}));
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
        if line.trim() == "run" {
            println!("{}", json!({"ms": bench.time(shape)?.ms}));
        }
        if crate::is_unread() {
            break;
        }
    }
    Ok(())
}
