//! `smelt new`: drafts a description.

use std::path::PathBuf;

use smelt::plan::Config;
use smelt::weights::{Index, Repository};
use smelt::{Error, ErrorKind, Result};

use crate::show::count;

/// What `smelt new` takes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Directory with config.json and *.safetensors, of which only the headers are read
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// Where to write the draft, instead of standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite the file, if there is one
    #[arg(long, requires = "out")]
    force: bool,
    /// A built-in architecture not to begin with; may be repeated
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
}

/// Writes the draft; says whether `smelt check` accepts it.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let known = smelt::plan::builtin::names();
    if let Some(name) = arguments.without.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Error::new(ErrorKind::Input, format!("no built-in architecture `{name}`")));
    }
    if let Some(path) = arguments.out.as_ref().filter(|path| !arguments.force && path.is_file()) {
        let message = format!("`{}` exists already", path.display());
        return Err(Error::new(ErrorKind::Input, message).help("`--force` overwrites it"));
    }
    let repository = Repository::open(&arguments.model)?;
    let without: Vec<&str> = arguments.without.iter().map(String::as_str).collect();
    let draft =
        smelt::draft::draft(&Config::open(&repository)?, &Index::open_headers(&repository)?, &without)?;
    match &arguments.out {
        Some(path) => draft.write(path)?,
        None => print!("{}", draft.text),
    }
    eprintln!("made from {}; {} not explained", draft.skeleton, count(draft.unexplained.len(), "thing"));
    if let Some(error) = &draft.refused {
        eprintln!("`smelt check` refuses the draft: {error}");
    }
    Ok(draft.refused.is_none())
}
