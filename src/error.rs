//! The one error type of the crate: what kind of thing went wrong, and for each problem found the
//! message, the place in the file that asked for it, and what to do next.
//!
//! An [`Error`] may hold many [`Problem`]s, because a mistake in a description, a config and a
//! checkpoint are all reported in one go. Its `Display` form is what the programs print.

use std::fmt;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong, so that a program can react without reading the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The architecture description (YAML) is wrong.
    Spec,
    /// `config.json` or another JSON file of the model directory is wrong or lacks something.
    Config,
    /// The safetensors files are broken or do not hold what the description needs.
    Checkpoint,
    /// `tokenizer.json` is missing or wrong.
    Tokenizer,
    /// What was asked of a model does not fit it: ids out of range, text too long, no such task.
    Input,
    /// More memory or time would be needed than the limit allows.
    Limit,
    /// The model uses something that is not computed faithfully.
    Unsupported,
    /// A file could not be read or written.
    Io,
}

/// Where in a file a problem stands, with the line itself, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the file as the user would write it.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The text of that line and how many characters of it to underline; none shows no excerpt.
    pub excerpt: Option<(String, usize)>,
    /// Where it is among the file's entries, such as `model.hidden[2].repeat`; empty where that is not known.
    pub path: String,
    /// Said behind the underline (with an excerpt) or behind the position (without one).
    pub label: String,
}

/// A line under a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// `note`, `found`, `tried`, `help`, or empty for a plain list item.
    pub tag: &'static str,
    /// What is said.
    pub text: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Says what was expected and what was found, without a full stop.
    pub message: String,
    /// The place that asked for it.
    pub place: Option<Place>,
    /// More about it; the last one says what to do.
    pub remarks: Vec<Remark>,
}

impl Problem {
    /// A problem without a place.
    pub fn new(message: impl Into<String>) -> Self {
        Problem { message: message.into(), place: None, remarks: Vec::new() }
    }

    /// Adds the place.
    pub fn at(mut self, place: Option<Place>) -> Self {
        self.place = place.or(self.place);
        self
    }

    /// Adds a remark under `tag`.
    pub fn remark(mut self, tag: &'static str, text: impl Into<String>) -> Self {
        self.remarks.push(Remark { tag, text: text.into() });
        self
    }

    /// Adds a fact.
    pub fn note(self, text: impl Into<String>) -> Self {
        self.remark("note", text)
    }

    /// Adds the next thing to do.
    pub fn help(self, text: impl Into<String>) -> Self {
        self.remark("help", text)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        let mut margin = String::new();
        if let Some(place) = &self.place {
            let number = place.line.to_string();
            margin = " ".repeat(number.len());
            write!(f, "\n{margin}--> {}:{}:{}", place.file, place.line, place.column)?;
            match &place.excerpt {
                Some((text, width)) => {
                    let indent = " ".repeat(place.column - 1);
                    let carets = "^".repeat((*width).max(1));
                    write!(f, "\n{margin} |\n{number} | {text}\n{margin} | {indent}{carets}")?;
                    if !place.label.is_empty() {
                        write!(f, " {}", place.label)?;
                    }
                }
                None if !place.label.is_empty() => write!(f, " ({})", place.label)?,
                None => {}
            }
        }
        for remark in &self.remarks {
            match remark.tag {
                "" => write!(f, "\n{margin} = {}", remark.text)?,
                tag => write!(f, "\n{margin} = {tag}: {}", remark.text)?,
            }
        }
        Ok(())
    }
}

/// Everything that was found wrong with one request.
///
/// The `Display` form lists each [`Problem`] with its place and remarks, separated by blank lines; every
/// problem after the first is introduced by `error: `, as the programs introduce the first.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.joined())]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    problems: Vec<Problem>,
}

impl Error {
    /// An error of one problem without a place.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Problem::new(message).into_error(kind)
    }

    /// An error of several problems. `problems` must not be empty.
    pub fn many(kind: ErrorKind, problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty(), "an error needs a problem");
        Error { inner: Box::new(Inner { kind, problems }) }
    }

    /// A file that could not be read or written.
    pub fn io(path: &std::path::Path, cause: &std::io::Error) -> Self {
        let path = path.display();
        // What reading a text says of bytes that are none.
        if cause.kind() == std::io::ErrorKind::InvalidData {
            let message = format!("`{path}`: expected UTF-8 text, found other bytes");
            return Error::new(ErrorKind::Io, message).help("save it as UTF-8");
        }
        Error::new(ErrorKind::Io, format!("cannot open `{path}`: {cause}"))
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The problems, in the order in which they were found; never empty.
    pub fn problems(&self) -> &[Problem] {
        &self.inner.problems
    }

    /// Adds the next thing to do to the last problem.
    pub fn help(mut self, text: impl Into<String>) -> Self {
        if let Some(last) = self.inner.problems.last_mut() {
            last.remarks.push(Remark { tag: "help", text: text.into() });
        }
        self
    }

    fn joined(&self) -> String {
        let texts: Vec<String> = self.inner.problems.iter().map(Problem::to_string).collect();
        texts.join("\n\nerror: ")
    }
}

impl Problem {
    /// An error of this problem alone.
    pub fn into_error(self, kind: ErrorKind) -> Error {
        Error::many(kind, vec![self])
    }
}

/// `1 tensor`, `2 tensors`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// The candidate that a misspelt `word` most likely means, if any is close.
pub(crate) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.to_lowercase().replace(['_', '-', '.'], "");
    let limit = (word.len() / 3).clamp(1, 4);
    let plain_word = plain(word);
    candidates
        .into_iter()
        .map(|c| match c {
            c if plain(c) == plain_word => (0, c),
            // `num_heads` means `heads` rather than `kv_heads`.
            c if !c.is_empty() && word.strip_suffix(c).is_some_and(|rest| rest.ends_with('_')) => (1, c),
            // A letter has at most four bytes.
            c if c.len().abs_diff(word.len()) > 4 * limit => (usize::MAX, c),
            c => (edit_distance(word, c), c),
        })
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

/// Least number of insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1);
            best = best.min(rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_its_line() {
        let problem = Problem::new("unknown block `layernorm`")
            .at(Some(Place {
                file: "my.yaml".into(),
                line: 35,
                column: 7,
                excerpt: Some(("    - layernorm: embeddings.LayerNorm".into(), 9)),
                path: "model.hidden[2]".into(),
                label: "not a block".into(),
            }))
            .help("did you mean `layer_norm`?");
        let expected = "unknown block `layernorm`
  --> my.yaml:35:7
   |
35 |     - layernorm: embeddings.LayerNorm
   |       ^^^^^^^^^ not a block
   = help: did you mean `layer_norm`?";
        assert_eq!(problem.to_string(), expected);
    }

    #[test]
    fn misspelt_words_find_their_neighbour() {
        let words = ["layer_norm", "rms_norm", "linear", "embedding"];
        let cases = [
            ("layernorm", Some("layer_norm")),
            ("LayerNorm", Some("layer_norm")),
            ("lienar", Some("linear")),
            ("embeding", Some("embedding")),
            ("attention", None),
            ("", None),
        ];
        for (word, expected) in cases {
            assert_eq!(closest(word, words), expected, "{word}");
        }
    }
}
