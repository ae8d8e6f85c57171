/// Finds stop strings in text that comes piece by piece, across the borders of the pieces.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    /// Text that may yet turn out to begin a stop string.
    held: String,
}

/// Text that may be given out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether a stop string follows it.
    pub stopped: bool,
}

impl StopStrings {
    /// Looks for these strings; empty ones are never found.
    pub fn new(strings: &[String]) -> Self {
        let strings = strings.iter().filter(|s| !s.is_empty()).cloned().collect();
        StopStrings { strings, held: String::new() }
    }

    /// Adds text; gives what comes before the first stop string, or what cannot be part of one any more.
    pub fn push(&mut self, text: &str) -> Piece {
        self.held += text;
        let first = self.strings.iter().filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(end) = first {
            let text = self.held[..end].to_owned();
            self.held.clear();
            return Piece { text, stopped: true };
        }
        // The longest end of the text that begins a stop string stays.
        let may_begin = |start: &usize| self.strings.iter().any(|s| s.starts_with(&self.held[*start..]));
        let keep =
            self.held.char_indices().map(|(start, _)| start).find(may_begin).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// Gives the text that was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_found_across_pieces() {
        let cases: [(&[&str], &[&str], &str, bool); 6] = [
            (&["END"], &["one E", "N", "D two"], "one ", true),
            (&["END"], &["one E", "N two"], "one EN two", false),
            (&["b", "ab"], &["xa", "b"], "x", true),
            (&["\n\n"], &["a\n", "b\n", "\nc"], "a\nb", true),
            (&[], &["a", "b"], "ab", false),
            (&["é!"], &["caf", "é", "."], "café.", false),
        ];
        for (strings, pieces, expected, stopped) in cases {
            let strings: Vec<String> = strings.iter().map(|s| (*s).to_owned()).collect();
            let mut stop = StopStrings::new(&strings);
            let (mut text, mut found) = (String::new(), false);
            for piece in pieces {
                let piece = stop.push(piece);
                text += &piece.text;
                found |= piece.stopped;
                if found {
                    break;
                }
            }
            text += &stop.finish();
            assert_eq!((text.as_str(), found), (expected, stopped), "{strings:?} {pieces:?}");
        }
    }
}
