use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::classify::labels_of;
use super::sentence::Pipeline;
use super::tokenizer;
use crate::backend::{Backend, Compute, WeightType};
use crate::cpu::Cpu;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Batch, LoadOptions, Network, Output};
use crate::nn::Stream;
use crate::plan::{Arch, Config, Plan, Target, source_for};
use crate::reference::Reference;
use crate::tokenizer::{Encoding, Limit, Tokenizer};
use crate::weights::{Checkpoint, Index, Repository};

/// A loaded model directory: configuration, tokenizer and weights. Any number of threads may use it at once.
///
/// Every task can also fail with `Tokenizer` when the directory has no tokenizer, with `Limit` when a batch needs more memory than
/// [`OpenOptions::memory_limit`], and with `Checkpoint` when a result is infinite or no number.
#[derive(Debug)]
pub struct Model {
    pub(super) repository: Repository,
    pub(super) config: Config,
    pub(super) generation: Option<Config>,
    /// Names of classes by their numbers.
    pub(super) labels: HashMap<String, String>,
    pub(super) network: Network,
    pub(super) tokenizer: Option<Tokenizer>,
    /// Whether the network sees which text of a pair a token is of.
    pub(super) type_ids: bool,
    pub(super) truncate: bool,
    /// What the repository says of vectors of texts, once they are asked for.
    pub(super) pipeline: OnceLock<Option<Pipeline>>,
}

/// Which backend computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// The fast one.
    #[default]
    Cpu,
    /// The plain one.
    Reference,
    /// The fast one with matrix products by the system's OpenBLAS ([`Cpu::with_openblas`]).
    #[cfg(feature = "openblas")]
    OpenBlas,
}

/// How a model is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The architecture: a YAML file or the name of a built-in one (`"mine.yaml".into()`), or the text of such a file ([`Arch::yaml`]); by
    /// default the built-in one that matches the config.
    pub arch: Option<Arch>,
    /// The task: a head of the architecture, or `embed` for vectors of texts. By default `embed` if the repository has a pipeline
    /// for sentences (`modules.json`), else what the config asks for.
    pub task: Option<String>,
    /// How weights are kept; as they are stored by default.
    pub dtype: Option<WeightType>,
    /// How linear maps and attention are multiplied, [`Cpu::compute_for`] by default; with [`Compute::Bf16`] weights are kept in bfloat16
    /// unless `dtype` says otherwise. The other backends multiply in float32 and refuse it.
    pub compute: Option<Compute>,
    /// Threads to compute with, as [`Cpu::new`] takes them; the plain backend has one.
    pub threads: Option<usize>,
    /// Bytes that weights and batches may take; by default what the machine has, as Linux tells it, elsewhere any number.
    pub memory_limit: Option<u64>,
    /// A file for packed weights: written where it is missing, or has those of another model, or kept in another way or for another
    /// processor; otherwise they are read from it, which takes a fraction of the time.
    pub packed: Option<PathBuf>,
    /// Whether texts that are too long are cut instead of refused; prompts so that the new tokens have room, up to half of what
    /// the model can take.
    pub truncate: bool,
    /// Which backend computes.
    pub backend: BackendKind,
}

impl OpenOptions {
    /// The fast backend, as it is asked for.
    pub fn cpu(&self) -> Cpu {
        let cpu = Cpu::new(self.threads);
        let compute = self.compute.unwrap_or(cpu.compute_for(self.dtype));
        cpu.with_compute(compute)
    }

    /// How weights are kept, if not as they are stored.
    pub fn kept(&self) -> Option<WeightType> {
        self.dtype.or((self.compute == Some(Compute::Bf16)).then_some(WeightType::Bf16))
    }
}

/// A text, or a pair of texts that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'t> {
    /// The text.
    pub text: &'t str,
    /// The second text.
    pub pair: Option<&'t str>,
}

impl<'t> From<&'t str> for Text<'t> {
    fn from(text: &'t str) -> Self {
        Text { text, pair: None }
    }
}

impl<'t> From<(&'t str, &'t str)> for Text<'t> {
    fn from((text, pair): (&'t str, &'t str)) -> Self {
        Text { text, pair: Some(pair) }
    }
}

/// Opens a model directory with an architecture of one's own.
///
/// `spec` is a YAML file, or the name of a built-in architecture; `dir` holds `config.json`, `*.safetensors` and
/// `tokenizer.json`.
///
/// ```
/// # fn main() -> smelt::Result<()> {
/// # let dir = "examples/models/language-id";
/// let model = smelt::load_from_spec("examples/classifier.yaml", dir)?;
/// let answers = model.classify(&["Where is the station?".into()])?;
/// assert_eq!(answers[0].labels[0].label, "en");
/// # Ok(()) }
/// ```
///
/// # Errors
/// Everything that is wrong with the description, the config and the checkpoint, see [`ErrorKind`].
pub fn load_from_spec(spec: impl AsRef<Path>, dir: impl AsRef<Path>) -> Result<Model> {
    let spec = spec.as_ref();
    let Some(arch) = spec.to_str() else {
        let message = format!("expected the name of a description in UTF-8, found `{}`", spec.display());
        return Err(Error::new(ErrorKind::Input, message));
    };
    Model::open_with(dir, &OpenOptions { arch: Some(arch.into()), ..OpenOptions::default() })
}

impl Model {
    /// Opens a model directory with the built-in architecture that matches its config, for the task that its config asks for.
    ///
    /// ```
    /// # fn main() -> smelt::Result<()> {
    /// let model = smelt::Model::open("examples/models/language-id")?;
    /// assert_eq!(model.task(), Some("sequence_classification"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with the config, the tokenizer and the checkpoint; `Unsupported` when no architecture matches; `Limit`
    /// when the weights need more memory than the machine has; `Io` for files that cannot be read.
    pub fn open(dir: impl AsRef<Path>) -> Result<Model> {
        Model::open_with(dir, &OpenOptions::default())
    }

    /// As [`open`](Self::open), with options.
    ///
    /// # Errors
    /// As [`open`](Self::open), and what is wrong with the description that the options name; `Limit` when the weights need more
    /// memory than the options allow.
    pub fn open_with(dir: impl AsRef<Path>, options: &OpenOptions) -> Result<Model> {
        Model::from_repository(Repository::open(dir.as_ref())?, options)
    }

    /// As [`open_with`](Self::open_with), from files that may be embedded in the program.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn from_repository(repository: Repository, options: &OpenOptions) -> Result<Model> {
        let config = Config::open(&repository)?;
        let backend: Arc<dyn Backend> = match options.backend {
            BackendKind::Cpu => Arc::new(options.cpu()),
            BackendKind::Reference => {
                if options.compute == Some(Compute::Bf16) {
                    return Err(Error::new(
                        ErrorKind::Input,
                        "the reference implementation multiplies in float32",
                    )
                    .help("leave `compute` out, or the reference implementation"));
                }
                Arc::new(Reference)
            }
            #[cfg(feature = "openblas")]
            BackendKind::OpenBlas => {
                if options.kept().is_some_and(|kept| kept != WeightType::F32) {
                    return Err(Error::new(ErrorKind::Input, "OpenBLAS multiplies in float32")
                        .help("leave `dtype` and `compute` out, or OpenBLAS"));
                }
                Arc::new(options.cpu().with_openblas())
            }
        };
        let generation = Config::open_file(&repository, "generation_config.json")?;
        let planned = Planned::new(&repository, &config, options)?;
        // A large vocabulary takes as long to read as the weights of a small model.
        let read = || tokenizer::open(&repository, &config);
        let (network, tokenizer) = std::thread::scope(|scope| {
            let reading =
                std::thread::Builder::new().name("smelt-tokenizer".into()).spawn_scoped(scope, read);
            let network = planned.load(&repository, options, backend);
            let tokenizer = match reading {
                Ok(reading) => reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // The machine gives no more threads.
                Err(_) => read(),
            };
            (network, tokenizer)
        });
        let network = network?;
        let (tokenizer, type_ids) = tokenizer?.unzip();
        let type_ids = type_ids.unwrap_or_default();
        Ok(Model {
            repository,
            labels: labels_of(&config),
            config,
            generation,
            network,
            tokenizer,
            type_ids,
            truncate: options.truncate,
            pipeline: OnceLock::new(),
        })
    }

    /// The task that it was opened for; none when that is `embed`.
    pub fn task(&self) -> Option<&str> {
        self.network.plan().task.as_deref()
    }

    /// Whether it computes from texts (`Input`), images or sounds (`Audio`).
    pub fn takes(&self, stream: Stream) -> bool {
        self.network.plan().declared.streams.contains(&stream)
    }

    /// The network, for raw tensors.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Computes raw outputs, by the names of transformers (`logits`, `last_hidden_state`, …; all that the task has, without
    /// names), for sequences of token ids.
    ///
    /// ```
    /// use smelt::model::Batch;
    /// # fn main() -> smelt::Result<()> {
    /// let model = smelt::Model::open("examples/models/language-id")?;
    /// let outputs = model.forward(&Batch::of([&[2, 40, 3][..], &[2, 3]]), &["logits"], false)?;
    /// assert_eq!(outputs[0].value.rows(), 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Network::forward`].
    pub fn forward(&self, batch: &Batch, wanted: &[&str], hidden_states: bool) -> Result<Vec<Output>> {
        self.network.forward(batch, wanted, hidden_states)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `Tokenizer` when the directory has no `tokenizer.json`.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let message = format!("no `{}`", self.repository.label("tokenizer.json"));
            let help =
                "save the tokenizer with transformers' `save_pretrained`, or give token ids (`--inputs`)";
            Error::new(ErrorKind::Tokenizer, message).help(help)
        })
    }

    /// An error unless the model was opened for this task.
    pub(super) fn expect_task(&self, expected: &[&str]) -> Result<()> {
        match self.task() {
            Some(task) if expected.contains(&task) => Ok(()),
            found => {
                let found = found.unwrap_or("embed");
                let message = format!(
                    "expected a model for {}, found one for `{found}`",
                    crate::spec::listed(expected)
                );
                Err(Error::new(ErrorKind::Input, message)
                    .help("open it for another task, if its checkpoint has the head"))
            }
        }
    }

    /// Tokens of texts, each cut at `cut_at`; one that is still too long for the model is cut or refused, one that is too short for the
    /// head filled up.
    pub(super) fn encode(&self, texts: &[Text<'_>], cut_at: Option<usize>) -> Result<Vec<Encoding>> {
        let tokenizer = self.tokenizer()?;
        let positions = self.network.plan().token_limit(Stream::Input);
        let limit = match cut_at {
            Some(max) if positions.is_none_or(|positions| max <= positions) => {
                Limit { max_tokens: cut_at, truncate: true }
            }
            _ => Limit { max_tokens: positions, truncate: self.truncate },
        };
        let encode = |text: &Text<'_>| {
            let encoding = tokenizer.encode(text.text, text.pair, limit)?;
            if encoding.ids.is_empty() {
                let message = format!("the text `{}` has no tokens", text.text);
                return Err(Error::new(ErrorKind::Input, message));
            }
            match self.network.plan().pad_to {
                Some(len) => tokenizer.padded(encoding, len),
                None => Ok(encoding),
            }
        };
        texts.iter().map(encode).collect()
    }

    /// Runs texts through the network, some at a time, and hands each batch's output `name` to `take` with the encodings of
    /// its texts.
    pub(super) fn each_batch(
        &self,
        encodings: &[Encoding],
        name: &[&str],
        mut take: impl FnMut(&[Encoding], &[Output]) -> Result<()>,
    ) -> Result<()> {
        let mut rest = encodings;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |e: &&Encoding| {
                tokens += e.ids.len();
                tokens <= BATCH_TOKENS
            };
            let n = rest.iter().take_while(fits).count().max(1);
            let (now, later) = rest.split_at(n);
            let mut batch = Batch::default();
            for encoding in now {
                batch.input.push(&encoding.ids, 0);
                batch.input.type_ids.extend_from_slice(&encoding.type_ids);
            }
            // Types only matter where a text has two parts; a model may have fewer types than the tokenizer, or none.
            let reads_types = self.type_ids && self.network.reads_types(Stream::Input);
            if !reads_types || batch.input.type_ids.iter().all(|t| *t == 0) {
                batch.input.type_ids.clear();
            }
            take(now, &self.network.forward(&batch, name, false)?)?;
            rest = later;
        }
        Ok(())
    }
}

/// Tokens whose results are kept at once: the network itself computes them in smaller groups.
const BATCH_TOKENS: usize = 1024;

/// Opens the network of a model directory alone, without a tokenizer, on any backend; what `options` say of the backend and of texts
/// is not looked at.
///
/// # Errors
/// As [`Model::open`].
pub fn open_network(
    repository: &Repository,
    options: &OpenOptions,
    backend: Arc<dyn Backend>,
) -> Result<Network> {
    Planned::new(repository, &Config::open(repository)?, options)?.load(repository, options, backend)
}

/// A network before its weights are read.
struct Planned {
    plan: Plan,
    index: Index,
}

impl Planned {
    fn new(repository: &Repository, config: &Config, options: &OpenOptions) -> Result<Planned> {
        let source = source_for(options.arch.as_ref(), config)?;
        let target = Target::of(repository, options.task.as_deref());
        let index = Index::open(repository)?;
        let plan = Plan::new(source, config, &index, &target)?;
        Ok(Planned { plan, index })
    }

    fn load(
        self,
        repository: &Repository,
        options: &OpenOptions,
        backend: Arc<dyn Backend>,
    ) -> Result<Network> {
        let checkpoint = Checkpoint::map(repository, &self.index)?;
        let load = LoadOptions {
            dtype: options.kept(),
            memory_limit: options.memory_limit,
            packed: options.packed.clone(),
        };
        Network::load(self.plan, &checkpoint, backend, &load)
    }
}
