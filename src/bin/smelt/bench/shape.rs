//! What is computed, as a command line says it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use smelt::nn::Stream;
use smelt::{Error, ErrorKind};

pub const SHAPES: &str = "\
Shapes:
  BxS             token vectors of B sequences of S tokens
  mixedB          of B sequences of 8 to 256 tokens, at most 64 of them
  lengths:S,S,…   of sequences of these lengths
  decode:P:N      N new tokens after a prompt of P; time per token, the prompt's not counted
  prefill:P       one pass over a prompt of P tokens, the next token included
  batch:B:P:N     as decode, B sequences together; time per step of all of them
  total:B:P:N     as batch; time of everything, prompts included
  imagesB         vectors of B images, of the size that the model is for
  soundsB         vectors of B sounds, of the length that the model is for
For decode and batch N is at least 2, as the first new token is the prompt's. A shape has at most 1048576 tokens in all.
In an encoder-decoder the prompt is what the encoder reads, and the token vectors are the encoder's. Where it reads sounds, \
each sequence has one, and the prompt is what the decoder begins with.";

/// What is computed.
#[derive(Clone, Debug)]
pub enum Shape {
    /// Token vectors of sequences of these lengths.
    Encode { text: String, lengths: Vec<usize> },
    /// Tokens one after another.
    Generate { text: String, timed: Timed, sequences: usize, prompt: usize, new: usize },
    /// Vectors of this many images or sounds.
    Items { text: String, stream: Stream, count: usize },
}

/// Which part of a generation is timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Timed {
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
        // A number that is too large stays so, and can be multiplied.
        let number = |n: &str| Some(n.parse::<usize>().ok().filter(|n| *n > 0)?.min(MOST_TOKENS + 1));
        let numbers =
            |list: &str, separator: char| list.split(separator).map(number).collect::<Option<Vec<usize>>>();
        let text = text.to_owned();
        let parsed = if let Some(count) = text.strip_prefix("mixed") {
            let count = number(count);
            let lengths = count.map(|n| MIXED.get(..n).ok_or("expected at most 64 sequences behind `mixed`"));
            lengths.transpose()?.map(|n| Shape::Encode { text: text.clone(), lengths: n.to_vec() })
        } else if let Some(count) = text.strip_prefix("images") {
            number(count).map(|count| Shape::Items { text: text.clone(), stream: Stream::Images, count })
        } else if let Some(count) = text.strip_prefix("sounds") {
            number(count).map(|count| Shape::Items { text: text.clone(), stream: Stream::Audio, count })
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
        let shape = parsed.ok_or("expected a shape such as 8x128, mixed32, decode:16:128 or images8")?;
        let all = match &shape {
            Shape::Encode { lengths, .. } => lengths.iter().sum(),
            Shape::Generate { sequences, prompt, new, .. } => sequences.saturating_mul(prompt + new),
            Shape::Items { count, .. } => *count,
        };
        if all > MOST_TOKENS {
            Err(format!("expected at most {MOST_TOKENS} {} in all", shape.unit()))
        } else {
            Ok(shape)
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Shape::Encode { text, .. } | Shape::Generate { text, .. } | Shape::Items { text, .. }) = self;
        f.write_str(text)
    }
}

impl Shape {
    /// What the speed is told in.
    pub fn unit(&self) -> &'static str {
        match self {
            Shape::Encode { .. } | Shape::Generate { .. } => "tokens",
            Shape::Items { stream: Stream::Images, .. } => "images",
            Shape::Items { .. } => "sounds",
        }
    }

    /// How many of them one of the times that are reported stands for, in a model whose encoder reads the prompt or in another.
    pub fn amount(&self, encoded: bool) -> usize {
        match self {
            Shape::Encode { lengths, .. } => lengths.iter().sum(),
            Shape::Generate { timed: Timed::Step, sequences, .. } => *sequences,
            // The last new token is read by nobody. A decoder that is not given the prompt begins with a token of its own.
            Shape::Generate { sequences, prompt, new, .. } => {
                sequences * (prompt + new - 1 + usize::from(encoded))
            }
            Shape::Items { count, .. } => *count,
        }
    }

    /// An error unless a model that computes from these streams can compute the shape.
    pub fn check(&self, streams: &BTreeSet<Stream>) -> smelt::Result<()> {
        let reads: Vec<Stream> = streams.iter().copied().filter(|s| *s != Stream::Decoder).collect();
        let fits = match self {
            Shape::Encode { .. } => reads == [Stream::Input],
            Shape::Generate { .. } => {
                reads == [Stream::Input] || reads == [Stream::Audio] && streams.contains(&Stream::Decoder)
            }
            Shape::Items { stream, .. } => reads == [*stream],
        };
        if fits {
            return Ok(());
        }
        let known = |stream: &Stream| match stream {
            Stream::Input | Stream::Decoder => ("texts", "`8x128`"),
            Stream::Images => ("images", "`images8`"),
            Stream::Audio => ("sounds", "`sounds1`"),
        };
        let (names, mut shapes): (Vec<&str>, Vec<&str>) = reads.iter().map(known).unzip();
        match reads[..] {
            [Stream::Input] => shapes.push("`decode:16:32`"),
            [Stream::Audio] => shapes.push("`decode:4:32`"),
            _ => {}
        }
        let names = if names.is_empty() { "nothing".into() } else { names.join(" and ") };
        let message = format!("expected a shape for a model that reads {names}, found `{self}`");
        let lists = "`smelt bench --help` lists the shapes";
        let help =
            if shapes.is_empty() { lists.into() } else { format!("try {}; {lists}", shapes.join(" or ")) };
        Err(Error::new(ErrorKind::Input, message).help(help))
    }
}
