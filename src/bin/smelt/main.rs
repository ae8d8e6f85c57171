//! Tools for architecture descriptions. Exit codes: 0 when all went well, 1 when something is wrong or differs, 2 when the command
//! line is wrong.

#![forbid(unsafe_code)]

// As the macros of the standard library, but without a panic where nobody reads on: `smelt explain | head` is no mistake, and changes
// no verdict.
macro_rules! println {
    ($($text:tt)*) => { $crate::written({ use std::io::Write as _; writeln!(std::io::stdout(), $($text)*) }) };
}
macro_rules! print {
    ($($text:tt)*) => { $crate::written({ use std::io::Write as _; write!(std::io::stdout(), $($text)*) }) };
}
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        // There is no place left to say that this failed.
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod bench;
mod check;
mod diff;
mod explain;
mod explained;
mod new;
mod picture;
mod show;
mod verify;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use clap::{CommandFactory, Parser, Subcommand};

use smelt::cpu::MAX_THREADS;
use smelt::docs::combinator;
use smelt::nn::{BLOCKS, COMBINATORS, FieldDef, maps};

/// Check, verify and look up architecture descriptions.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 success, 1 wrong or different, 2 wrong command line"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare a model with reference outputs, output by output and module by module
    Verify(verify::Arguments),
    /// Check a description by itself, or with a config or a checkpoint
    Check(check::Arguments),
    /// Show what a model is made of, what it costs, and which tensor is whose
    Explain(explain::Arguments),
    /// Draft a description from config.json and the names and shapes of the tensors
    New(new::Arguments),
    /// Time a model on made-up tokens, images or sounds
    Bench(bench::Arguments),
    /// Print a JSON Schema of the language, for editors
    Schema,
    /// List the blocks of the language and how they are put together, or explain one
    Blocks {
        /// The block, combinator or map
        #[arg(value_parser = names(), hide_possible_values = true)]
        name: Option<String>,
        /// The whole reference, as Markdown
        #[arg(long, conflicts_with = "name")]
        markdown: bool,
    },
}

/// Ends the program, with the usage of a command.
fn wrong_command_line(command: &str, message: &str) -> ! {
    let mut all = Arguments::command();
    // Commands do not know what they belong to before.
    all.build();
    let usage = all.find_subcommand(command).unwrap_or(&all);
    usage.clone().error(clap::error::ErrorKind::ValueValidation, message).exit()
}

/// What `--threads` may be.
fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MAX_THREADS as u64)
}

/// What `smelt blocks` explains.
fn names() -> PossibleValuesParser {
    let blocks = BLOCKS.iter().map(|block| block.name).chain(COMBINATORS);
    PossibleValuesParser::new(blocks.chain(maps().map(|(name, ..)| *name)))
}

fn main() -> ExitCode {
    let started = Instant::now();
    let result = match Arguments::parse().command {
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments).map(|()| true),
        Command::New(arguments) => new::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments, started).map(|()| true),
        Command::Schema => {
            println!("{:#}", smelt::schema::schema());
            Ok(true)
        }
        Command::Blocks { name, markdown } => {
            blocks(name.as_deref(), markdown);
            Ok(true)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

/// Whether whoever reads the output has had enough.
static IS_UNREAD: AtomicBool = AtomicBool::new(false);

/// Whether there is no use in more output.
fn is_unread() -> bool {
    IS_UNREAD.load(Ordering::Relaxed)
}

/// Ends the program where the output cannot be written. Where nobody reads it, it goes on for its verdict.
fn written(result: std::io::Result<()>) {
    if let Err(error) = result.and_then(|()| std::io::stdout().flush()) {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            IS_UNREAD.store(true, Ordering::Relaxed);
            return;
        }
        eprintln!("error: cannot write the output: {error}");
        std::process::exit(1);
    }
}

fn blocks(name: Option<&str>, markdown: bool) {
    if markdown {
        return println!("{}", smelt::docs::block_reference().trim_end());
    }
    let Some(name) = name else {
        for block in &BLOCKS {
            println!("{:16} {}", block.name, first_sentence(&block.doc.join(" ")));
        }
        println!("\nHow blocks are put together:");
        for name in COMBINATORS {
            println!("{name:16} {}", first_sentence(combinator(name).unwrap_or_default()));
        }
        println!("\nMaps that blocks take as the value of a field:");
        for (name, doc, _) in maps() {
            println!("{name:16} {}", first_sentence(&doc.join(" ")));
        }
        return;
    };
    if let Some(text) = combinator(name) {
        return println!("{name}\n\n{text}");
    }
    let maps = maps().map(|(name, doc, fields)| (*name, *doc, *fields));
    let mut all = BLOCKS.iter().map(|block| (block.name, block.doc, block.fields)).chain(maps);
    if let Some((_, doc, fields)) = all.find(|(n, ..)| *n == name) {
        println!("{name}\n");
        doc.iter().for_each(|line| println!("{}", line.trim()));
        println!();
        fields().iter().for_each(print_field);
    }
}

/// The first sentence of a text, in one line.
fn first_sentence(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.split_inclusive(". ").next().unwrap_or_default().trim_end().to_owned()
}

fn print_field(field: &FieldDef) {
    let need = match (field.default, field.required) {
        (Some(default), _) => format!(", {default} by default"),
        (None, true) => ", required".into(),
        (None, false) => String::new(),
    };
    println!("  {}: {}{need}", field.name, (field.kind)());
    field.doc.iter().for_each(|line| println!("      {}", line.trim()));
}
