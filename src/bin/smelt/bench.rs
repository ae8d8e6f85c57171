//! `smelt bench`: how fast a model runs here, and what share of the machine's speed that is.

use std::fmt;
use std::io::BufRead;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use smelt::backend::{Backend, Counting, Work};
use smelt::cpu::{Cpu, Meter, Peaks};
use smelt::generate::argmax;
use smelt::model::{Batch, Network};
use smelt::weights::Repository;
use smelt::{Compute, Error, ErrorKind, OpenOptions, Result, WeightType};

use crate::show::count;

const SHAPES: &str = "\
Shapes:
  BxS             token vectors of B sequences of S tokens
  mixedB          of B sequences of 8 to 256 tokens, at most 64 of them
  lengths:S,S,…   of sequences of these lengths
  decode:P:N      N new tokens after a prompt of P; time per token, the prompt's not counted
  prefill:P       one pass over a prompt of P tokens, the next token included
  batch:B:P:N     as decode, B sequences together; time per step of all of them
  total:B:P:N     as batch; time of everything, prompts included
For decode and batch N is at least 2, as the first new token is the prompt's. A shape has at most 1048576 tokens in all.";

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
    arch: Option<String>,
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

/// What is computed.
#[derive(Clone, Debug)]
enum Shape {
    /// Token vectors of sequences of these lengths.
    Encode { text: String, lengths: Vec<usize> },
    /// Tokens one after another.
    Generate { text: String, timed: Timed, sequences: usize, prompt: usize, new: usize },
}

/// Which part of a generation is timed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Timed {
    /// Prompts and new tokens.
    All,
    /// A step, without the first.
    Step,
}

/// Lengths of `mixed` batches: the first of Python's `random.Random(0).randint(8, 256)`.
const MIXED: [usize; 64] = [
    224, 106, 202, 235, 115, 18, 74, 255, 138, 132, 111, 243, 208, 220, 85, 255, 130, 99, 157, 236, 240, 63,
    137, 43, 80, 43, 201, 32, 166, 212, 72, 240, 144, 188, 215, 162, 238, 45, 87, 33, 194, 26, 238, 225, 183,
    92, 128, 151, 33, 98, 119, 88, 164, 171, 241, 60, 255, 149, 130, 121, 229, 141, 74, 23,
];

/// Tokens of a shape: more are a mistake.
const MOST_TOKENS: usize = 1 << 20;

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = |list: &str, separator: char| -> Option<Vec<usize>> {
            let number = |n: &str| n.parse::<usize>().ok().filter(|n| *n > 0);
            // A number that is too large stays so, and can be multiplied.
            list.split(separator).map(|n| Some(number(n)?.min(MOST_TOKENS + 1))).collect()
        };
        let text = text.to_owned();
        let parsed = if let Some(count) = text.strip_prefix("mixed") {
            let count = count.parse::<usize>().ok().filter(|n| *n > 0);
            let lengths = count.map(|n| MIXED.get(..n).ok_or("expected at most 64 sequences behind `mixed`"));
            lengths.transpose()?.map(|n| Shape::Encode { text: text.clone(), lengths: n.to_vec() })
        } else if let Some((kind, rest)) = text.split_once(':') {
            let numbers = numbers(rest, if kind == "lengths" { ',' } else { ':' });
            let generate = |timed, sequences, prompt, new| {
                Some(Shape::Generate { text: text.clone(), timed, sequences, prompt, new })
            };
            match (kind, numbers.as_deref()) {
                ("lengths", Some(lengths)) => {
                    Some(Shape::Encode { text: text.clone(), lengths: lengths.to_vec() })
                }
                ("prefill", Some(&[p])) => generate(Timed::All, 1, p, 1),
                ("decode", Some([_, 1])) | ("batch", Some([_, _, 1])) => {
                    return Err("expected at least 2 new tokens, as the first is the prompt's".into());
                }
                ("decode", Some(&[p, n])) => generate(Timed::Step, 1, p, n),
                ("batch", Some(&[b, p, n])) => generate(Timed::Step, b, p, n),
                ("total", Some(&[b, p, n])) => generate(Timed::All, b, p, n),
                _ => None,
            }
        } else {
            let numbers = numbers(&text, 'x').filter(|n| n.len() == 2);
            numbers.map(|n| Shape::Encode { text: text.clone(), lengths: vec![n[1]; n[0]] })
        };
        let shape = parsed.ok_or("expected a shape such as 8x128, mixed32 or decode:16:128")?;
        let all = match &shape {
            Shape::Encode { lengths, .. } => lengths.iter().sum(),
            Shape::Generate { sequences, prompt, new, .. } => sequences.saturating_mul(prompt + new),
        };
        if all > MOST_TOKENS {
            Err(format!("expected at most {MOST_TOKENS} tokens in all"))
        } else {
            Ok(shape)
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Shape::Encode { text, .. } | Shape::Generate { text, .. }) = self;
        f.write_str(text)
    }
}

impl Shape {
    /// The head that the shape needs.
    fn task(&self) -> Option<String> {
        matches!(self, Shape::Encode { .. }).then(|| "embed".into())
    }

    /// Tokens that one of the times that are reported stands for.
    fn tokens(&self) -> usize {
        match self {
            Shape::Encode { lengths, .. } => lengths.iter().sum(),
            Shape::Generate { timed: Timed::Step, sequences, .. } => *sequences,
            Shape::Generate { sequences, prompt, new, .. } => sequences * (prompt + new - 1),
        }
    }
}

impl Arguments {
    /// How the model is opened, but for the task.
    fn options(&self) -> OpenOptions {
        OpenOptions {
            arch: self.arch.clone(),
            dtype: self.dtype,
            compute: self.compute,
            threads: self.threads,
            ..OpenOptions::default()
        }
    }
}

/// A model that is ready to be timed.
struct Bench {
    network: Network,
    counting: Arc<Counting>,
    /// Numbers that token ids may be.
    vocab: usize,
}

/// What it takes to have a first result.
struct Cold {
    ms: f64,
    rss_mb: Option<u64>,
}

impl Cold {
    fn since(started: Instant) -> Cold {
        Cold { ms: started.elapsed().as_secs_f64() * 1e3, rss_mb: rss_mb() }
    }
}

/// A time, with the work that was done in it.
struct Timing {
    ms: f64,
    work: Work,
}

impl Timing {
    /// The time that is not spent in the backend, where looking at the clock takes so long. Half of each of an operation's two looks falls
    /// into it.
    fn outside_ms(&self, clock_ms: f64) -> f64 {
        self.ms - self.work.time.as_secs_f64() * 1e3 - self.work.operations as f64 * clock_ms
    }
}

/// How long a look at the clock takes.
fn clock_ms() -> f64 {
    const LOOKS: u32 = 10_000;
    let start = Instant::now();
    (0..LOOKS).for_each(|_| {
        std::hint::black_box(Instant::now());
    });
    start.elapsed().as_secs_f64() * 1e3 / f64::from(LOOKS)
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
            backend: smelt::backend::Backend::name(&*cpu),
            dtype: bench.kept(arguments),
            compute: match cpu.compute() {
                Compute::F32 => "f32",
                Compute::Bf16 => "bf16",
            },
            threads: cpu.threads(),
            tokens: shape.tokens(),
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
        if arguments.json { println!("{}", result.json(shape)) } else { print!("{}", result.text(shape)) }
    }
    Ok(())
}

/// Serves a program that has several engines take turns.
fn worker(arguments: &Arguments, cpu: Arc<Cpu>, started: Instant) -> Result<()> {
    let [shape] = &arguments.shapes[..] else {
        crate::wrong_command_line("expected one shape for `--worker`");
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
    }
    Ok(())
}

impl Bench {
    fn open(arguments: &Arguments, shape: &Shape, cpu: Arc<Cpu>) -> Result<Bench> {
        let repository = Repository::open(&arguments.model)?;
        let counting = Arc::new(Counting::new(cpu));
        let options = OpenOptions { task: shape.task(), ..arguments.options() };
        let network = smelt::task::open_network(&repository, &options, counting.clone())?;
        let vocab = network.vocab().unwrap_or(0);
        // What the ids of `token` leave free at both ends.
        if vocab <= 300 {
            let message = format!("expected a model with more than 300 tokens, found {vocab}");
            return Err(Error::new(ErrorKind::Input, message));
        }
        Ok(Bench { network, counting, vocab })
    }

    /// The type of the weights, as far as there is one.
    fn kept(&self, arguments: &Arguments) -> String {
        match arguments.dtype {
            Some(dtype) => dtype.name().into(),
            None => self.network.weight_type().map_or("mixed".into(), |dtype| dtype.name().into()),
        }
    }

    /// One small computation of the shape's kind, after which everything is in place.
    fn small(&self, shape: &Shape) -> Result<()> {
        match shape {
            Shape::Encode { .. } => self.encode(&[8]).map(|_| ()),
            Shape::Generate { .. } => self.generate(Timed::All, 1, 16, 1).map(|_| ()),
        }
    }

    fn time(&self, shape: &Shape) -> Result<Timing> {
        match shape {
            Shape::Encode { lengths, .. } => self.encode(lengths),
            Shape::Generate { timed, sequences, prompt, new, .. } => {
                self.generate(*timed, *sequences, *prompt, *new)
            }
        }
    }

    fn encode(&self, lengths: &[usize]) -> Result<Timing> {
        let id = |b: usize, i: usize| ((7919 * (i + 1) + 104_729 * b) % (self.vocab - 200) + 150) as u32;
        let sequences: Vec<Vec<u32>> =
            lengths.iter().enumerate().map(|(b, n)| (0..*n).map(|i| id(b, i)).collect()).collect();
        let batch = Batch::of(sequences.iter().map(Vec::as_slice));
        self.counting.take();
        let start = Instant::now();
        self.network.forward(&batch, &["last_hidden_state"], false)?;
        Ok(Timing { ms: start.elapsed().as_secs_f64() * 1e3, work: self.counting.take() })
    }

    fn generate(&self, timed: Timed, sequences: usize, prompt: usize, new: usize) -> Result<Timing> {
        let id = |b: usize, i: usize| ((7919 * (i + 1) + 104_729 * b) % (self.vocab - 10) + 5) as u32;
        let mut tokens: Vec<Vec<u32>> =
            (0..sequences).map(|b| (0..prompt).map(|i| id(b, i)).collect()).collect();
        let mut session = self.network.session(sequences);
        self.counting.take();
        let mut start = Instant::now();
        for step in 0..new {
            let tokens_now: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
            let logits = session.step(&tokens_now, "logits")?;
            tokens = (0..sequences).map(|b| vec![argmax(logits.row(b))]).collect();
            session.give(logits);
            if step == 0 && timed == Timed::Step {
                self.counting.take();
                start = Instant::now();
            }
        }
        let steps = if timed == Timed::Step { new - 1 } else { 1 };
        let ms = start.elapsed().as_secs_f64() * 1e3 / steps as f64;
        let work = self.counting.take();
        let per_step = |n: u64| n / steps as u64;
        let work = Work {
            flops: per_step(work.flops),
            bytes: per_step(work.bytes),
            time: work.time / steps as u32,
            operations: per_step(work.operations),
        };
        Ok(Timing { ms, work })
    }
}

/// Everything that is told of a shape.
struct Measured {
    name: String,
    backend: String,
    dtype: String,
    compute: &'static str,
    threads: usize,
    tokens: usize,
    times: Vec<f64>,
    /// Of a time, what is not spent in the backend.
    interpreter_ms: f64,
    work: Work,
    peaks: Peaks,
    cold: Option<Cold>,
}

impl Measured {
    fn ms(&self) -> f64 {
        median(self.times.iter().copied())
    }

    fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 * 1e3 / self.ms()
    }

    fn gb_per_s(&self) -> f64 {
        self.work.bytes as f64 / self.ms() / 1e6
    }

    fn gflops_per_s(&self) -> f64 {
        self.work.flops as f64 / self.ms() / 1e6
    }

    fn json(&self, shape: &Shape) -> Value {
        json!({
            "contender": "smelt",
            "dtype": self.dtype,
            "compute": self.compute,
            "threads": self.threads,
            "shape": shape.to_string(),
            "ms_median": rounded(self.ms(), 3),
            "ms_min": rounded(self.times[0], 3),
            "ms_max": rounded(self.times[self.times.len() - 1], 3),
            "runs": self.times.len(),
            "cold_ms": self.cold.as_ref().map(|cold| rounded(cold.ms, 1)),
            "rss_mb": self.cold.as_ref().and_then(|cold| cold.rss_mb),
            "tokens_per_s": rounded(self.tokens_per_s(), 1),
            "gb_per_s": rounded(self.gb_per_s(), 2),
            "gflops_per_s": rounded(self.gflops_per_s(), 2),
            "peak_gb_per_s": rounded(self.peaks.bytes_per_s / 1e9, 2),
            "peak_gflops_per_s": rounded(self.peaks.flops_per_s / 1e9, 2),
            "region_us": rounded(self.peaks.region_s * 1e6, 3),
            "interpreter_us": rounded(self.interpreter_ms * 1e3, 1),
        })
    }

    fn text(&self, shape: &Shape) -> String {
        let (ms, min, max) = (self.ms(), self.times[0], self.times[self.times.len() - 1]);
        let (bytes, flops) = (self.peaks.bytes_per_s / 1e9, self.peaks.flops_per_s / 1e9);
        let share = |found: f64, peak: f64| 100.0 * found / peak;
        format!(
            "{shape}: {name}, {dtype}, compute {compute}, {backend}\n  \
             time        {ms:.3} ms ({min:.3} to {max:.3} in {runs}), {tokens:.1} tokens/s\n  \
             memory      {gb:.1} GB/s, {gb_share:.0} % of the {bytes:.1} that the machine reads\n  \
             arithmetic  {gf:.1} GFLOP/s, {gf_share:.0} % of the {flops:.1} that the machine computes\n  \
             threads     {region:.2} us to hand an empty loop to all of them and to come back\n  \
             interpreter {outside:.1} us, {outside_share:.2} % of the time: what is not spent in the backend\n",
            name = self.name,
            dtype = self.dtype,
            backend = self.backend,
            compute = self.compute,
            runs = count(self.times.len(), "run"),
            tokens = self.tokens_per_s(),
            gb = self.gb_per_s(),
            gb_share = share(self.gb_per_s(), bytes),
            gf = self.gflops_per_s(),
            gf_share = share(self.gflops_per_s(), flops),
            region = self.peaks.region_s * 1e6,
            outside = self.interpreter_ms * 1e3,
            outside_share = share(self.interpreter_ms, ms),
        )
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { (values[(n - 1) / 2] + values[n / 2]) / 2.0 }
}

/// A number with so many digits after the point.
fn rounded(x: f64, digits: i32) -> Value {
    let factor = 10f64.powi(digits);
    json!((x * factor).round() / factor)
}

/// The most memory that this process has had so far, in MB, where the system tells.
fn rss_mb() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.div_ceil(1024))
}
