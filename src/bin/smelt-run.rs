//! Text in, answer out. Exit codes: 0 when all went well, 1 when the model, its files or the text are wrong, 2 when the command
//! line is.

#![forbid(unsafe_code)]

// As the macro of the standard library, but without a panic where nobody reads on.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        // There is no place left to say that this failed.
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

use std::io::{BufRead, BufReader, IsTerminal, Read, Stdin, Write};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use clap::{CommandFactory, Parser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use smelt::backend::WeightType;
use smelt::cpu::MAX_THREADS;
use smelt::nn::Stream;
use smelt::task::Bundle;
use smelt::weights::{BundleData, Repository, read_bundle, write_bundle};
use smelt::{
    AnswerOptions, Arch, BackendKind, Compute, Error, ErrorKind, GenerateOptions, Image, Label, Model,
    OpenOptions, Pooling, Result, SamplingOptions, Sound, Text, TranscribeOptions,
};

/// Files by their names.
type Files = [(&'static str, &'static [u8])];

// `const MODELS: &[(&str, &Files)]`: the directories in `examples/models`.
include!(concat!(env!("OUT_DIR"), "/models.rs"));

/// Run a transformer model on texts, images or sounds.
///
/// The task and the architecture come from the model's config.json. Texts are arguments, or lines of standard input; models
/// that see or hear take PNG, JPEG or WAV files instead. Answers go to
/// standard output, everything else to standard error. Without --model an embedded model tells the language of a text, or, with
/// --task causal_lm, continues it.
#[derive(Parser)]
#[command(
    name = "smelt-run",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 success, 1 wrong model, file or text, 2 wrong command line"
)]
struct Arguments {
    /// Texts, or files of images or sounds; lines of standard input without any
    text: Vec<String>,

    /// Architecture: a YAML file, or the name of a built-in one
    #[arg(long, value_name = "FILE|NAME")]
    arch: Option<Arch>,

    /// Directory with config.json, *.safetensors and tokenizer.json, or the name of an embedded model
    #[arg(long, short, value_name = "DIR")]
    model: Option<String>,

    /// What to do: a head of the architecture, such as sequence_classification, masked_lm or causal_lm, or `embed`
    #[arg(long)]
    task: Option<String>,

    /// How many answers to give: labels, fills or spans; 1 by default
    #[arg(short, value_name = "N", allow_negative_numbers = true, value_parser = at_least_1())]
    n: Option<usize>,

    /// One JSON object a line
    #[arg(long)]
    json: bool,

    /// Texts come in pairs: two arguments, or a line with a tab
    #[arg(long)]
    pair: bool,

    /// What an image may show, for models that compare images with texts; several times
    #[arg(long, value_name = "TEXT")]
    label: Vec<String>,

    /// Cut texts that are too long instead of refusing them; prompts so that --max-tokens have room, up to half of
    /// what the model can take. Without --model, texts are cut
    #[arg(long)]
    truncate: bool,

    /// How token vectors become one, instead of what the model says. Of its own pipeline for sentences nothing is left: not the
    /// default prompt, Dense and Normalize modules and truncate_dim, nor that texts are cut at max_seq_length or, without one, at
    /// model_max_length
    #[arg(long, value_parser = Pooling::names())]
    pooling: Option<String>,

    /// How weights are kept, instead of as they are stored: f32, f16, bf16, q8 or q4
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,

    /// How products are computed: f32, or bf16, which rounds both sides and is faster where the processor has
    /// instructions for it; there it is the default for attention with q8 and q4, elsewhere f32 is
    #[arg(long, value_name = "TYPE")]
    compute: Option<Compute>,

    /// Threads to compute with, 1 to 1024; one per core by default
    #[arg(long, allow_negative_numbers = true, value_parser = at_least_1().range(1..=MAX_THREADS as u64))]
    threads: Option<usize>,

    /// Bytes that the model may take, such as 500M or 8G; by default what the machine has, or a container may take
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = parse_bytes)]
    memory_limit: Option<u64>,

    /// Keep packed weights in this file: the next start takes them from there, much faster. Written anew for another model, type
    /// or processor
    #[arg(long, value_name = "FILE", conflicts_with = "reference")]
    packed: Option<PathBuf>,

    /// Compute with the plain reference implementation, in float32
    #[arg(long)]
    reference: bool,

    /// Multiply matrices with the system's OpenBLAS, in float32
    #[cfg(feature = "openblas")]
    #[arg(long, conflicts_with = "reference")]
    openblas: bool,

    #[command(flatten, next_help_heading = "Generation")]
    generation: GenerationArguments,

    #[command(flatten, next_help_heading = "Raw tensors")]
    tensors: TensorArguments,
}

#[derive(clap::Args)]
struct GenerationArguments {
    /// Most new tokens; 64 for texts by default, as many as the model can take for sounds
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_tokens: Option<usize>,

    /// The language that is spoken, such as `en`, instead of what the model hears
    #[arg(long, value_name = "LANG")]
    language: Option<String>,

    /// Translate what is said into English
    #[arg(long)]
    translate: bool,

    /// 0, the default, takes the likeliest token; higher values are more varied
    #[arg(long, allow_negative_numbers = true)]
    temperature: Option<f32>,

    /// Consider only the K likeliest tokens; this, --top-p, --min-p and --seed need a --temperature above 0
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = at_least_1())]
    top_k: Option<usize>,

    /// Consider only the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Consider only tokens with this share of the likeliest one's probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Divide the logits of tokens that occurred already; by default by what generation_config.json says, else 1
    #[arg(long, allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,

    /// The same seed gives the same text at the same place among the texts; 0 by default
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<u64>,

    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

#[derive(clap::Args)]
struct TensorArguments {
    /// Inputs as a safetensors file: input_ids, attention_mask, token_type_ids, decoder_input_ids, pixel_values, input_features
    #[arg(long, value_name = "FILE", requires = "outputs", conflicts_with_all = FOR_TEXTS)]
    inputs: Option<PathBuf>,

    /// Where to write the outputs, as a safetensors file
    #[arg(long, value_name = "FILE")]
    outputs: Option<PathBuf>,

    /// Write the inputs of all layers too
    #[arg(long)]
    hidden_states: bool,

    /// Continue each row greedily by N tokens too
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    greedy: Option<usize>,
}

/// What means nothing to raw tensors.
const FOR_TEXTS: [&str; 8] =
    ["text", "n", "json", "pair", "label", "truncate", "pooling", "GenerationArguments"];

/// Texts that are answered together.
const CHUNK: usize = 64;

/// Bytes of standard input that are read at once, and of its longest line.
const READ: usize = 1 << 20;
const LONGEST_LINE: u64 = 1 << 24;

/// Files that are open at once.
const FILES: usize = 8;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Model(error)) => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let (on, off) = if colour { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
            eprintln!("{on}error{off}: {error}");
            ExitCode::from(1)
        }
        // Whoever reads the output has had enough.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(error)) => {
            eprintln!("error: cannot write the output: {error}");
            ExitCode::from(1)
        }
    }
}

enum Failure {
    Model(Error),
    Output(std::io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Model(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Output(error)
    }
}

fn run(arguments: &Arguments) -> std::result::Result<(), Failure> {
    check_sampling(&arguments.generation);
    let TensorArguments { inputs, outputs, hidden_states, greedy } = &arguments.tensors;
    for (given, option) in [
        (outputs.is_some(), "--outputs"),
        (*hidden_states, "--hidden-states"),
        (greedy.is_some(), "--greedy"),
    ] {
        // Not said with `requires`, which clap gives up beside a text, as that conflicts with `--inputs`.
        if given && inputs.is_none() {
            wrong_command_line(&format!("`{option}` needs `--inputs`"));
        }
    }
    let tensors = inputs.as_deref().zip(outputs.as_deref());
    // What is wrong with the command line is said before the model is opened.
    let texts = if tensors.is_none() { Some(Texts::new(arguments)) } else { None };
    let options = OpenOptions {
        arch: arguments.arch.clone(),
        task: arguments.task.clone(),
        dtype: arguments.dtype,
        compute: arguments.compute,
        threads: arguments.threads,
        memory_limit: arguments.memory_limit,
        packed: arguments.packed.clone(),
        // The embedded model tells a language by the beginning of a text.
        truncate: arguments.truncate || arguments.model.is_none(),
        backend: match arguments.reference {
            true => BackendKind::Reference,
            #[cfg(feature = "openblas")]
            false if arguments.openblas => BackendKind::OpenBlas,
            false => BackendKind::Cpu,
        },
    };
    // Not taken apart at the end, because the system takes all memory back at once.
    let model = ManuallyDrop::new(Model::from_repository(repository(arguments)?, &options)?);
    if let Some((inputs, outputs)) = tensors {
        raw(&model, inputs, outputs, &arguments.tensors)?;
    }
    if let Some(texts) = texts {
        check_options(&model, arguments)?;
        answer_all(&model, texts, arguments)?;
    }
    Ok(())
}

/// Answers texts as they come. Where one is wrong, those before it have their answers.
fn answer_all(model: &Model, mut texts: Texts, arguments: &Arguments) -> std::result::Result<(), Failure> {
    let [sees, hears] = [Stream::Images, Stream::Audio].map(|stream| model.takes(stream));
    let at_once = match (sees, hears) {
        (true, _) => FILES,
        (_, true) => 1, // it takes as long as many texts
        _ => CHUNK,
    };
    let answer = |texts: &[Text<'_>], before: usize| match (sees, hears) {
        (true, _) => images(model, texts, arguments),
        (_, true) => sounds(model, texts, arguments, before),
        _ => answers(model, texts, arguments, before),
    };
    let bar = progress(&texts);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let (mut done, mut many) = (0, false);
    loop {
        let (found, rest) = texts.next(at_once);
        if found.is_empty() {
            rest?;
            break;
        }
        if !arguments.json {
            // The first is answered before it is known whether others come.
            many = done > 0 || found.len() > 1 || rest.is_err() || texts.has_more();
            if let (false, Some("causal_lm" | "seq2seq_lm")) = (many, model.task()) {
                let options = generation(&arguments.generation, false, 0);
                stream(model, view(&found[0]), &options, &mut out).map_err(|failure| match failure {
                    Failure::Model(error) => Failure::Model(texts.located(error, 1)),
                    failure => failure,
                })?;
                done = 1;
                continue;
            }
        }
        let found: Vec<Text<'_>> = found.iter().map(view).collect();
        let mut together = if found.len() > 1 { answer(&found, done).ok() } else { None };
        // Together they fail where one does: then each is answered alone.
        for part in found.chunks(if together.is_some() { found.len() } else { 1 }) {
            let answers = match together.take() {
                Some(answers) => answers,
                None => answer(part, done).map_err(|error| texts.located(error, done + 1))?,
            };
            for (text, answer) in part.iter().zip(answers) {
                if answer["truncated"] != 0 {
                    bar.suspend(|| {
                        eprintln!(
                            "note: {} tokens were cut off `{}`",
                            answer["truncated"],
                            shortened(text.text)
                        )
                    });
                }
                if arguments.json { writeln!(out, "{answer}")? } else { print(&mut out, &answer, many)? }
            }
            done += part.len();
        }
        out.flush()?;
        if done > CHUNK && bar.is_hidden() && !std::io::stdout().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        bar.inc(found.len() as u64);
        rest?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn view((text, pair): &Owned) -> Text<'_> {
    Text { text, pair: pair.as_deref() }
}

/// A progress bar is for people, and for work that lasts: it is hidden at first.
fn progress(texts: &Texts) -> ProgressBar {
    let (total, template) = match texts {
        Texts::Arguments(texts) => (Some(texts.len() as u64), "{bar:40} {pos}/{len} texts, {eta} left"),
        Texts::Lines { .. } => (None, "{pos} texts, {per_sec}"),
    };
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
    // The templates are constants that are known to be valid; the default style would do as well.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Ends the program.
fn wrong_command_line(message: &str) -> ! {
    Arguments::command().error(clap::error::ErrorKind::ValueValidation, message).exit()
}

fn at_least_1() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Ends the program where options of sampling are out of range, or would change nothing.
fn check_sampling(options: &GenerationArguments) {
    let chosen = sampling(options);
    if let Err(error) = chosen.validate() {
        wrong_command_line(&error.to_string());
    }
    for (given, option) in [
        (options.top_k.is_some(), "--top-k"),
        (options.top_p.is_some(), "--top-p"),
        (options.min_p.is_some(), "--min-p"),
        (options.seed.is_some(), "--seed"),
    ] {
        if given && chosen.temperature == 0.0 {
            wrong_command_line(&format!(
                "`{option}` needs a `--temperature` above 0, without one the likeliest token is taken"
            ));
        }
    }
    if options.stop.iter().any(String::is_empty) {
        wrong_command_line("`--stop`: expected a text, found an empty one");
    }
}

/// Refuses options that mean nothing to the model, and tasks that have no answer in words.
fn check_options(model: &Model, arguments: &Arguments) -> Result<()> {
    let [sees, hears] = [Stream::Images, Stream::Audio].map(|stream| model.takes(stream));
    let task = model.task().filter(|_| arguments.task.as_deref() != Some("embed"));
    let is_one_of = |tasks: &[&str]| task.is_some_and(|task| tasks.contains(&task));
    let compares = is_one_of(&["similarity"]);
    let chooses = compares
        || is_one_of(&["sequence_classification", "question_answering", "masked_lm", "image_classification"]);
    let writes = hears || is_one_of(&["causal_lm", "seq2seq_lm"]);
    let embeds = !hears
        && !chooses
        && (sees || task.is_none_or(|task| ["features", "text_embedding"].contains(&task)));
    if let Some(task) = task
        && !(chooses || writes || embeds || task == "token_classification")
    {
        let message = format!("the task `{task}` has no answer in words");
        return Err(
            Error::new(ErrorKind::Input, message).help("give tensors with `--inputs` and `--outputs`")
        );
    }
    let options = &arguments.generation;
    for (given, understood, option, what) in [
        (arguments.n.is_some(), chooses, "-n", "that choose among answers"),
        (arguments.pair, !sees && !hears, "--pair", "that read"),
        (!arguments.label.is_empty(), compares, "--label", "that compare images with texts"),
        (arguments.pooling.is_some(), embeds, "--pooling", "that give vectors"),
        (options.language.is_some(), hears, "--language", "that hear"),
        (options.translate, hears, "--translate", "that hear"),
        (options.max_tokens.is_some(), writes, "--max-tokens", "that write"),
        (options.top_k.is_some(), writes, "--top-k", "that write"),
        (options.top_p.is_some(), writes, "--top-p", "that write"),
        (options.min_p.is_some(), writes, "--min-p", "that write"),
        (options.repetition_penalty.is_some(), writes, "--repetition-penalty", "that write"),
        (options.seed.is_some(), writes, "--seed", "that write"),
        // Behind those that need it.
        (options.temperature.is_some(), writes, "--temperature", "that write"),
        (!options.stop.is_empty(), writes, "--stop", "that write"),
    ] {
        if given && !understood {
            let message = format!("`{option}` is for models {what}, this one does not");
            return Err(Error::new(ErrorKind::Input, message));
        }
    }
    Ok(())
}

fn repository(arguments: &Arguments) -> Result<Repository> {
    let generates = arguments.task.as_deref() == Some("causal_lm");
    let name = arguments.model.as_deref().unwrap_or(if generates { "prose" } else { "language-id" });
    let embedded = MODELS.iter().find(|(n, _)| *n == name);
    // A directory of that name may be meant, if a model is named at all.
    match embedded.filter(|_| arguments.model.is_none() || !Path::new(name).is_dir()) {
        Some((name, files)) => Ok(Repository::from_files(*name, files.iter().copied())),
        None => Repository::open(Path::new(name)),
    }
}

/// A text with its pair.
type Owned = (String, Option<String>);

/// Where texts come from.
enum Texts {
    Arguments(std::vec::IntoIter<Owned>),
    /// Standard input, of which so many lines were read.
    Lines {
        input: BufReader<Stdin>,
        number: usize,
        pairs: bool,
    },
}

impl Texts {
    /// Ends the program where there is none, or one lacks its pair.
    fn new(arguments: &Arguments) -> Texts {
        let (texts, pairs) = (&arguments.text, arguments.pair);
        if texts.is_empty() {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                wrong_command_line("no text: give it as an argument, or on standard input");
            }
            return Texts::Lines { input: BufReader::with_capacity(READ, stdin), number: 0, pairs };
        }
        if pairs && texts.len() % 2 != 0 {
            wrong_command_line("expected texts in pairs, found one without another");
        }
        let one = |texts: &[String]| (texts[0].clone(), texts.get(1).cloned());
        let texts: Vec<Owned> = texts.chunks(if pairs { 2 } else { 1 }).map(one).collect();
        Texts::Arguments(texts.into_iter())
    }

    /// The next one, and those behind it that are there without waiting, up to `most`; then what is wrong with the one that
    /// follows, if anything is.
    fn next(&mut self, most: usize) -> (Vec<Owned>, Result<()>) {
        let mut found = Vec::new();
        while found.len() < most && (found.is_empty() || self.is_ready()) {
            match self.one() {
                Ok(Some(text)) => found.push(text),
                Ok(None) => break,
                Err(error) => return (found, Err(error)),
            }
        }
        (found, Ok(()))
    }

    fn one(&mut self) -> Result<Option<Owned>> {
        let (input, number, pairs) = match self {
            Texts::Arguments(texts) => return Ok(texts.next()),
            Texts::Lines { input, number, pairs } => (input, number, *pairs),
        };
        let mut line = Vec::new();
        let read = input.take(LONGEST_LINE + 1).read_until(b'\n', &mut line);
        read.map_err(|e| Error::new(ErrorKind::Io, format!("cannot read standard input: {e}")))?;
        if line.is_empty() {
            return Ok(None);
        }
        *number += 1;
        let wrong = |what: String| Error::new(ErrorKind::Input, format!("line {number}: {what}"));
        if line.len() as u64 > LONGEST_LINE {
            return Err(wrong(format!("expected at most {LONGEST_LINE} bytes")));
        }
        if line.ends_with(b"\n") {
            line.pop();
            line.pop_if(|end| *end == b'\r');
        }
        let line = String::from_utf8(line).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            wrong(format!("expected UTF-8, found the byte {:#04x}", e.as_bytes()[at]))
        })?;
        match line.split_once('\t') {
            Some((text, pair)) if pairs => Ok(Some((text.to_owned(), Some(pair.to_owned())))),
            None if pairs => Err(wrong("expected two texts with a tab between them".into())),
            _ => Ok(Some((line, None))),
        }
    }

    /// Whether there is one that needs no waiting.
    fn is_ready(&self) -> bool {
        match self {
            Texts::Arguments(_) => true,
            Texts::Lines { input, .. } => input.buffer().contains(&b'\n'),
        }
    }

    /// Whether more are there, as far as that is known without waiting.
    fn has_more(&self) -> bool {
        match self {
            Texts::Arguments(texts) => texts.len() > 0,
            Texts::Lines { input, .. } => !input.buffer().is_empty(),
        }
    }

    /// What is wrong with the `number`-th text, with its line.
    fn located(&self, error: Error, number: usize) -> Error {
        let mut problems = error.problems().to_vec();
        if let (Texts::Lines { .. }, ErrorKind::Input | ErrorKind::Limit) = (self, error.kind()) {
            problems[0].message.insert_str(0, &format!("line {number}: "));
        }
        Error::many(error.kind(), problems)
    }
}

/// For texts behind `before` others.
fn generation(arguments: &GenerationArguments, sounds: bool, before: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens: arguments.max_tokens.unwrap_or(if sounds { usize::MAX } else { 64 }),
        sampling: sampling(arguments),
        before,
        stop: arguments.stop.clone(),
        ignore_eos: false,
    }
}

fn sampling(arguments: &GenerationArguments) -> SamplingOptions {
    let default = SamplingOptions::default();
    SamplingOptions {
        temperature: arguments.temperature.unwrap_or(default.temperature),
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
        seed: arguments.seed.unwrap_or(default.seed),
    }
}

fn stream(
    model: &Model,
    text: Text<'_>,
    options: &GenerateOptions,
    out: &mut impl Write,
) -> std::result::Result<(), Failure> {
    let pieces = model.stream(text, options)?;
    if pieces.truncated() > 0 {
        eprintln!("note: {} tokens were cut off the text", pieces.truncated());
    }
    for piece in pieces {
        write!(out, "{}", piece?)?;
        out.flush()?;
    }
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

/// The answers for some texts, as the objects that `--json` prints.
fn answers(model: &Model, texts: &[Text<'_>], arguments: &Arguments, before: usize) -> Result<Vec<Value>> {
    let n = arguments.n.unwrap_or(1);
    let object = |text: &Text<'_>, key: &str, value: Value, truncated: usize| {
        let mut object = json!({"text": text.text, key: value, "truncated": truncated});
        if let Some(pair) = text.pair {
            object["pair"] = json!(pair);
        }
        object
    };
    let task = if arguments.task.as_deref() == Some("embed") { None } else { model.task() };
    Ok(match task {
        Some("sequence_classification") => {
            let all = model.classify(texts)?.into_iter();
            let one = |(text, c): (&Text<'_>, smelt::Classification)| {
                object(text, "labels", c.labels.iter().take(n).map(label).collect(), c.truncated)
            };
            texts.iter().zip(all).map(one).collect()
        }
        Some("token_classification") => {
            let all = model.classify_tokens(texts)?.into_iter();
            let one = |(text, labels): (&Text<'_>, smelt::TokenLabels)| {
                let token = |t: &smelt::task::TokenLabel| json!({"text": t.text, "start": t.start, "end": t.end, "label": t.label.label, "score": t.label.score});
                object(text, "tokens", labels.tokens.iter().map(token).collect(), labels.truncated)
            };
            texts.iter().zip(all).map(one).collect()
        }
        Some("question_answering") => {
            let options = AnswerOptions { n, ..AnswerOptions::default() };
            let one = |(text, found): (&Text<'_>, smelt::Answers)| {
                let span = |a: &smelt::Answer| json!({"text": a.text, "start": a.start, "end": a.end, "score": a.score});
                object(text, "answers", found.answers.iter().map(span).collect(), found.truncated)
            };
            texts.iter().zip(model.answer(texts, options)?).map(one).collect()
        }
        Some("masked_lm") => {
            let one = |(text, fills): (&Text<'_>, smelt::MaskFills)| {
                let fill = |f: &smelt::task::Fill| json!({"token": f.token, "id": f.id, "score": f.score});
                let masks =
                    fills.masks.iter().map(|mask| Value::from(mask.iter().map(fill).collect::<Vec<_>>()));
                object(text, "masks", masks.collect(), fills.truncated)
            };
            texts.iter().zip(model.fill_mask(texts, n)?).map(one).collect()
        }
        Some("causal_lm" | "seq2seq_lm") => {
            let one = |(text, g): (&Text<'_>, smelt::Generation)| {
                object(text, "generated", json!(g.text), g.truncated)
            };
            texts
                .iter()
                .zip(model.generate(texts, &generation(&arguments.generation, false, before))?)
                .map(one)
                .collect()
        }
        // Other tasks are refused before.
        _ => {
            let pooling = arguments.pooling.as_deref().and_then(Pooling::from_name);
            let one = |(text, e): (&Text<'_>, smelt::Embedding)| {
                object(text, "embedding", json!(e.vector), e.truncated)
            };
            texts.iter().zip(model.embed(texts, pooling)?).map(one).collect()
        }
    })
}

/// The answers for some images, as the objects that `--json` prints.
fn images(model: &Model, files: &[Text<'_>], arguments: &Arguments) -> Result<Vec<Value>> {
    let images = files.iter().map(|file| Image::open(file.text)).collect::<Result<Vec<_>>>()?;
    let texts: Vec<&str> = arguments.label.iter().map(String::as_str).collect();
    let found = match model.task() {
        Some("image_classification") => model.classify_images(&images)?,
        Some("similarity") => model.describe_images(&images, &texts)?,
        _ => {
            let pooling = arguments.pooling.as_deref().and_then(Pooling::from_name);
            let vectors = model.embed_images(&images, pooling)?;
            let one = |(file, e): (&Text<'_>, smelt::Embedding)| json!({"file": file.text, "embedding": e.vector, "truncated": e.truncated});
            return Ok(files.iter().zip(vectors).map(one).collect());
        }
    };
    let one = |(file, c): (&Text<'_>, smelt::Classification)| {
        let labels: Vec<Value> = c.labels.iter().take(arguments.n.unwrap_or(1)).map(label).collect();
        json!({"file": file.text, "labels": labels, "truncated": c.truncated})
    };
    Ok(files.iter().zip(found).map(one).collect())
}

/// What is said in some sounds, as the objects that `--json` prints.
fn sounds(model: &Model, files: &[Text<'_>], arguments: &Arguments, before: usize) -> Result<Vec<Value>> {
    let sounds = files.iter().map(|file| Sound::open(file.text)).collect::<Result<Vec<_>>>()?;
    let options = TranscribeOptions {
        language: arguments.generation.language.clone(),
        task: arguments.generation.translate.then(|| "translate".to_owned()),
        generate: generation(&arguments.generation, true, before),
    };
    let one = |(file, said): (&Text<'_>, smelt::Transcription)| {
        let mut object = json!({"file": file.text, "generated": said.text, "truncated": 0});
        if let Some(language) = said.language {
            object["language"] = json!(language);
        }
        object
    };
    Ok(files.iter().zip(model.transcribe(&sounds, &options)?).map(one).collect())
}

fn label(label: &Label) -> Value {
    json!({"label": label.label, "score": label.score})
}

/// Prints an answer for people. With several texts, each is named.
fn print(out: &mut impl Write, answer: &Value, many: bool) -> std::io::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let indent = if many { "  " } else { "" };
    if many {
        let name = if answer["file"].is_null() { &answer["text"] } else { &answer["file"] };
        writeln!(out, "{}", text(name))?;
    }
    let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    for label in list("labels") {
        writeln!(out, "{indent}{:.4} {}", number(&label["score"]), text(&label["label"]))?;
    }
    for token in list("tokens") {
        let score = number(&token["score"]);
        writeln!(out, "{indent}{score:.4} {} {}", text(&token["label"]), text(&token["text"]))?;
    }
    for span in list("answers") {
        writeln!(out, "{indent}{:.4} {}", number(&span["score"]), text(&span["text"]))?;
    }
    for mask in list("masks") {
        for fill in mask.as_array().into_iter().flatten() {
            writeln!(out, "{indent}{:.4} {}", number(&fill["score"]), text(&fill["token"]))?;
        }
    }
    if let Some(vector) = answer["embedding"].as_array() {
        let numbers: Vec<String> = vector.iter().map(|x| format!("{:.6}", number(x))).collect();
        writeln!(out, "{indent}{}", numbers.join(" "))?;
    }
    if let Some(generated) = answer["generated"].as_str() {
        // What is said begins with a space.
        let generated = if answer["file"].is_null() { generated } else { generated.trim_start() };
        writeln!(out, "{indent}{generated}")?;
    }
    Ok(())
}

fn raw(model: &Model, inputs: &Path, outputs: &Path, arguments: &TensorArguments) -> Result<()> {
    let bundle = Bundle::new(read_bundle(inputs)?)?;
    let mut tensors = Vec::new();
    for output in model.forward(bundle.batch(), &[], arguments.hidden_states)? {
        let (shape, data) = bundle.padded(&output);
        tensors.push((format!("output.{}", output.name), shape, BundleData::F32(data)));
    }
    if let Some(steps) = arguments.greedy {
        for (i, greedy) in bundle.greedy(model.network(), steps)?.into_iter().enumerate() {
            let tokens = greedy.tokens.iter().map(|id| i64::from(*id)).collect();
            tensors.push((format!("generate.{i}.tokens"), vec![steps], BundleData::I64(tokens)));
            let shape = vec![greedy.logits.rows(), greedy.logits.cols()];
            tensors.push((format!("generate.{i}.logits"), shape, BundleData::F32(greedy.logits.into_vec())));
        }
    }
    write_bundle(outputs, &tensors)
}

/// A number of an answer; JSON has none for what is infinite or no number.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `1500`, `500M`, `8G`, `8GB`.
fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let text = text.to_ascii_uppercase();
    let (digits, factor) = match text.strip_suffix('B').unwrap_or(&text) {
        t if t.ends_with('K') => (t[..t.len() - 1].to_owned(), 1_000),
        t if t.ends_with('M') => (t[..t.len() - 1].to_owned(), 1_000_000),
        t if t.ends_with('G') => (t[..t.len() - 1].to_owned(), 1_000_000_000),
        t => (t.to_owned(), 1),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    number.ok_or_else(|| "expected a number of bytes, such as 500M or 8G".into())
}
