//! A model that computes shapes, and takes the time.

use std::sync::Arc;
use std::time::Instant;

use smelt::backend::{Counting, Work};
use smelt::cpu::Cpu;
use smelt::generate::argmax;
use smelt::model::{Batch, Network};
use smelt::weights::Repository;
use smelt::{Error, ErrorKind, OpenOptions, Result};

use super::Arguments;
use super::shape::{Shape, Timed};

/// A model that is ready to be timed.
pub struct Bench {
    pub network: Network,
    counting: Arc<Counting>,
    /// Numbers that token ids may be.
    vocab: usize,
}

/// A time, with the work that was done in it.
pub struct Timing {
    pub ms: f64,
    pub work: Work,
}

impl Timing {
    /// The time that is not spent in the backend, where looking at the clock takes so long. Half of each of an operation's two looks falls
    /// into it.
    pub fn outside_ms(&self, clock_ms: f64) -> f64 {
        self.ms - self.work.time.as_secs_f64() * 1e3 - self.work.operations as f64 * clock_ms
    }
}

/// How long a look at the clock takes.
pub fn clock_ms() -> f64 {
    const LOOKS: u32 = 10_000;
    let start = Instant::now();
    (0..LOOKS).for_each(|_| {
        std::hint::black_box(Instant::now());
    });
    start.elapsed().as_secs_f64() * 1e3 / f64::from(LOOKS)
}

impl Bench {
    pub fn open(arguments: &Arguments, shape: &Shape, cpu: Arc<Cpu>) -> Result<Bench> {
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
    pub fn kept(&self, arguments: &Arguments) -> String {
        match arguments.dtype {
            Some(dtype) => dtype.name().into(),
            None => self.network.weight_type().map_or("mixed".into(), |dtype| dtype.name().into()),
        }
    }

    /// One small computation of the shape's kind, after which everything is in place.
    pub fn small(&self, shape: &Shape) -> Result<()> {
        match shape {
            Shape::Encode { .. } => self.encode(&[8]).map(|_| ()),
            Shape::Generate { .. } => self.generate(Timed::All, 1, 16, 1).map(|_| ()),
        }
    }

    pub fn time(&self, shape: &Shape) -> Result<Timing> {
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
