/// Finds stop strings in text that comes piece by piece. What is found does not depend on where the pieces are cut.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    /// Text that may yet turn out to begin a stop string.
    held: String,
    stopped: bool,
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
        StopStrings { strings, ..StopStrings::default() }
    }

    /// Adds text; gives what comes before the first stop string, or what cannot be part of one any more. After a stop string
    /// nothing more is given.
    pub fn push(&mut self, text: &str) -> Piece {
        if self.stopped {
            return Piece { text: String::new(), stopped: true };
        }
        self.held += text;
        // Where the end of the text begins a stop string that is not complete.
        let begins = |start: &usize| self.strings.iter().any(|s| s.starts_with(&self.held[*start..]));
        let open = self.held.char_indices().map(|(start, _)| start).find(begins).unwrap_or(self.held.len());
        match self.first() {
            // One that began earlier may still be completed, and then it is the first.
            Some(found) if found <= open => self.stop(found),
            _ => {
                let rest = self.held.split_off(open);
                Piece { text: std::mem::replace(&mut self.held, rest), stopped: false }
            }
        }
    }

    /// Gives what was held back, up to a stop string in it.
    pub fn finish(&mut self) -> Piece {
        match self.first() {
            Some(found) => self.stop(found),
            None => Piece { text: std::mem::take(&mut self.held), stopped: self.stopped },
        }
    }

    /// Where the first stop string in the held text begins.
    fn first(&self) -> Option<usize> {
        self.strings.iter().filter_map(|s| self.held.find(s.as_str())).min()
    }

    fn stop(&mut self, at: usize) -> Piece {
        let text = self.held[..at].to_owned();
        self.held.clear();
        self.stopped = true;
        Piece { text, stopped: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_found_across_pieces() {
        let cases: [(&[&str], &[&str], &str, bool); 10] = [
            (&["END"], &["one E", "N", "D two"], "one ", true),
            (&["END"], &["one E", "N two"], "one EN two", false),
            (&["b", "ab"], &["xa", "b"], "x", true),
            (&["\n\n"], &["a\n", "b\n", "\nc"], "a\nb", true),
            (&[], &["a", "b"], "ab", false),
            (&["abcd", "bc"], &["xabcd"], "x", true),
            (&["abcd", "bc"], &["xabc", "d"], "x", true),
            (&["abcd", "bc"], &["xabc", "e"], "xa", true),
            (&["abcd", "bc"], &["xab", "c"], "xa", true),
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
            }
            let rest = stop.finish();
            text += &rest.text;
            found |= rest.stopped;
            assert_eq!((text.as_str(), found), (expected, stopped), "{strings:?} {pieces:?}");
        }
    }
}
