//! A plan with everything that is told of it.

use std::path::Path;

use smelt::plan::{self, Arch, Config, Cost, Memory, Plan, Row, Stored, Target, Tokens, source_for};
use smelt::weights::{Index, Repository};
use smelt::{Compute, Error, ErrorKind, OpenOptions, Result, WeightType};

/// What is to be explained.
pub struct Request<'a> {
    /// The model directory.
    pub model: &'a Path,
    /// The head, `embed` for none; by default what the model's files ask for.
    pub task: Option<&'a str>,
    /// What is computed of each sequence.
    pub tokens: Tokens,
    /// Sequences at once.
    pub sequences: u64,
    /// How weights are kept, instead of as they are stored.
    pub dtype: Option<WeightType>,
    /// How products are computed.
    pub compute: Option<Compute>,
    /// Threads to compute with.
    pub threads: Option<usize>,
    /// A row for each layer.
    pub all: bool,
}

/// A plan with everything that is told of it.
pub struct Explained {
    pub plan: Plan,
    pub rows: Vec<Row>,
    pub total: Cost,
    pub memory: Memory,
    pub peak: u64,
    pub tensors: Vec<Stored>,
}

impl Explained {
    /// Plans a model with the description `spec`, or with the one for its config.
    pub fn new(request: &Request<'_>, spec: Option<&Arch>) -> Result<Explained> {
        let repository = Repository::open(request.model)?;
        let config = Config::open(&repository)?;
        let source = source_for(spec, &config)?;
        let target = Target::of(&repository, request.task);
        let index = Index::open_headers(&repository)?;
        let plan = Plan::new(source, &config, &index, &target)?;
        let tokens = request.tokens;
        let declared = &plan.declared;
        let keeps = declared.caches.iter().any(|cache| cache.kept) || !declared.recurrent.is_empty();
        if tokens.past > 0 && !keeps {
            let message = format!("`--past`: expected 0, found {}", tokens.past);
            return Err(Error::new(ErrorKind::Input, message).help(format!(
                "{} keeps nothing of the tokens before: `--tokens` counts them all",
                plan.name
            )));
        }
        let Request { dtype, compute, threads, .. } = *request;
        let options = OpenOptions { dtype, compute, threads, ..OpenOptions::default() };
        let (cpu, kept) = (options.cpu(), options.kept());
        let costs = plan::costs(&plan, &index, &cpu, kept, tokens);
        let stored = |tensor: usize| plan::stored_type(&plan, &index, tensor);
        let memory = Memory::of(&plan.declared, &cpu, &stored, kept);
        Ok(Explained {
            rows: plan::rows(&plan, &costs, request.all),
            total: plan::totals(&costs),
            memory,
            peak: plan::peak(&plan, &index, &memory, tokens, request.sequences, &cpu),
            tensors: plan::stored(&plan, &index),
            plan,
        })
    }
}
