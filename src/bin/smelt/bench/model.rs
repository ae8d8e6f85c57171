//! A model that computes shapes, and takes the time.

use std::sync::Arc;
use std::time::Instant;

use smelt::backend::{Backend, Counting, Work};
use smelt::cpu::Cpu;
use smelt::generate::argmax;
use smelt::model::{Batch, Network};
use smelt::nn::Stream;
use smelt::plan::{Config, Plan, Target, source_for};
use smelt::tensor::Array;
use smelt::weights::{Index, Repository};
use smelt::{Error, ErrorKind, OpenOptions, Result};

use super::Arguments;
use super::shape::{Shape, Timed};

/// Numbers of images or sounds that are made up: more are a mistake, and take gigabytes.
const MOST_NUMBERS: usize = 1 << 28;

/// A model that is ready to be timed.
pub struct Bench {
    pub network: Network,
    counting: Arc<Counting>,
    /// Numbers that the ids of a prompt may be; 0 where nothing reads any.
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

/// Opens what computes a shape: where that generates, the head that the config asks for, else vectors alone.
fn open_for(
    shape: &Shape,
    arguments: &Arguments,
    repository: &Repository,
    backend: Arc<dyn Backend>,
) -> Result<Network> {
    let plan = |task: Option<&str>| {
        let config = Config::open(repository)?;
        let source = source_for(arguments.arch.as_ref(), &config)?;
        Plan::new(source, &config, &Index::open(repository)?, &Target::of(repository, task))
    };
    let fits = |plan: &Plan| shape.check(&plan.declared.streams);
    let task = match shape {
        Shape::Generate { .. } => None,
        Shape::Encode { .. } => Some("embed"),
        Shape::Items { .. } => {
            // Where texts are read too, vectors of images have a name of their own.
            let mut tasks = ["embed", "image_features", "image_embedding"].into_iter();
            tasks.find(|task| plan(Some(task)).is_ok_and(|plan| fits(&plan).is_ok())).or(Some("embed"))
        }
    };
    let options = OpenOptions { task: task.map(str::to_owned), ..arguments.options() };
    let opened = smelt::task::open_network(repository, &options, backend);
    opened.and_then(|network| fits(network.plan()).map(|()| network)).or_else(|error| {
        // Of a model that reads something else, that says more than what is missing for vectors.
        plan(None).map_or(Ok(()), |plan| fits(&plan))?;
        Err(error)
    })
}

impl Bench {
    pub fn open(arguments: &Arguments, shape: &Shape, cpu: Arc<Cpu>) -> Result<Bench> {
        let repository = Repository::open(&arguments.model)?;
        let counting = Arc::new(Counting::new(cpu));
        let network = open_for(shape, arguments, &repository, counting.clone())?;
        let declared = &network.plan().declared;
        let reader = if declared.streams.contains(&Stream::Input) { Stream::Input } else { Stream::Decoder };
        let ids = declared.ids.iter().filter(|ids| ids.stream == reader && !ids.types);
        let vocab = ids.map(|ids| ids.below).min().unwrap_or(0);
        // What the made-up ids leave free at both ends.
        if vocab <= 300 && !matches!(shape, Shape::Items { .. }) {
            let message = format!("expected a vocabulary of more than 300 tokens, found {vocab}");
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
            Shape::Items { stream, .. } => self.items(*stream, 1).map(|_| ()),
        }
    }

    pub fn time(&self, shape: &Shape) -> Result<Timing> {
        match shape {
            Shape::Encode { lengths, .. } => self.encode(lengths),
            Shape::Generate { timed, sequences, prompt, new, .. } => {
                self.generate(*timed, *sequences, *prompt, *new)
            }
            Shape::Items { stream, count, .. } => self.items(*stream, *count),
        }
    }

    /// What one of the times that are reported stands for: tokens, images or sounds.
    pub fn amount(&self, shape: &Shape) -> usize {
        shape.amount(self.encoder() == Some(Stream::Input))
    }

    /// What the encoder of an encoder-decoder reads.
    fn encoder(&self) -> Option<Stream> {
        let streams = &self.network.plan().declared.streams;
        streams.iter().copied().find(|s| *s != Stream::Decoder).filter(|_| streams.contains(&Stream::Decoder))
    }

    fn encode(&self, lengths: &[usize]) -> Result<Timing> {
        let id = |b: usize, i: usize| ((7919 * (i + 1) + 104_729 * b) % (self.vocab - 200) + 150) as u32;
        let sequences: Vec<Vec<u32>> =
            lengths.iter().enumerate().map(|(b, n)| (0..*n).map(|i| id(b, i)).collect()).collect();
        self.forward(&Batch::of(sequences.iter().map(Vec::as_slice)), "last_hidden_state")
    }

    /// Images or sounds, and what the model computes of them last.
    fn items(&self, stream: Stream, count: usize) -> Result<Timing> {
        let items = Some(self.made_up(stream, count)?);
        let batch = match stream {
            Stream::Images => Batch { images: items, ..Batch::default() },
            _ => Batch { audio: items, ..Batch::default() },
        };
        let outputs = &self.network.plan().outputs;
        self.forward(&batch, outputs.last().map_or("last_hidden_state", |(name, _)| name))
    }

    fn forward(&self, batch: &Batch, wanted: &str) -> Result<Timing> {
        self.counting.take();
        let start = Instant::now();
        self.network.forward(batch, &[wanted], false)?;
        Ok(Timing { ms: start.elapsed().as_secs_f64() * 1e3, work: self.counting.take() })
    }

    /// The numbers of images or spectra, as they come out of preprocessing: small ones on both sides of 0.
    fn made_up(&self, stream: Stream, count: usize) -> Result<Array> {
        let items = self.network.plan().declared.items.iter().find(|items| items.stream == stream);
        let item = items.map_or(&[][..], |items| &items.shape);
        let shape = [&[count], item].concat();
        let numbers = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MOST_NUMBERS);
        let Some(numbers) = numbers else {
            let message = format!("expected at most {MOST_NUMBERS} numbers in all, found {shape:?}");
            return Err(Error::new(ErrorKind::Limit, message).help("give fewer at once"));
        };
        let values: Vec<f32> = (0..numbers).map(|i| (7919 * i % 255) as f32 / 127.0 - 1.0).collect();
        Ok(Array::from_f32(shape, &values))
    }

    fn generate(&self, timed: Timed, sequences: usize, prompt: usize, new: usize) -> Result<Timing> {
        let id = |b: usize, i: usize| ((7919 * (i + 1) + 104_729 * b) % (self.vocab - 10) + 5) as u32;
        let mut tokens: Vec<Vec<u32>> =
            (0..sequences).map(|b| (0..prompt).map(|i| id(b, i)).collect()).collect();
        let mut session = self.network.session(sequences);
        // Encoders compute when the decoder takes its first step.
        match self.encoder() {
            Some(Stream::Input) => {
                session.encode(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
                // Stands for the token that decoders start with: no id takes longer than another.
                tokens.iter_mut().for_each(|prompt| prompt.truncate(1));
            }
            Some(Stream::Audio) => session.encode_audio(self.made_up(Stream::Audio, sequences)?)?,
            _ => {}
        }
        session.expect(tokens.iter().map(Vec::len).max().unwrap_or(0) + new);
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
