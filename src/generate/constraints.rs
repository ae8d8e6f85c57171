/// What a repository says about the tokens of a text, whatever their scores. Names are those of `generation_config.json` where it has
/// one for the same thing; tokens of a prompt are those that the network is given, of an encoder-decoder those of the decoder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Is chosen behind a prompt of one token.
    pub forced_bos: Option<u32>,
    /// Are what the text may end with when it has as many tokens as were asked for.
    pub forced_eos: Vec<u32>,
    /// Are never chosen.
    pub suppressed: Vec<u32>,
    /// Are not chosen first, or, where [`forced_bos`](Self::forced_bos) comes first, second.
    pub begin_suppressed: Vec<u32>,
    /// Sequences of tokens that do not occur.
    pub bad_words: Vec<Vec<u32>>,
    /// No sequence of so many tokens occurs twice; 0 lets them.
    pub no_repeat_ngram: usize,
    /// The text does not end before it has so many tokens, with those of the prompt.
    pub min_length: usize,
    /// The same, without them.
    pub min_new_tokens: usize,
}

impl Constraints {
    /// Makes the logits of tokens that may not come next infinitely small, in the order of transformers 5.23. `history` are the tokens so far, of which the last `new` are
    /// not of the prompt; `is_last` says that no more are asked for, and `eos` are the tokens that end the text.
    pub fn apply(&self, logits: &mut [f32], history: &[u32], new: usize, is_last: bool, eos: &[u32]) {
        let n = self.no_repeat_ngram;
        if n > 0 && history.len() + 1 >= n {
            let end = &history[history.len() + 1 - n..];
            history
                .windows(n)
                .filter(|gram| gram[..n - 1] == *end)
                .for_each(|gram| ban(logits, &gram[n - 1..]));
        }
        for word in &self.bad_words {
            let (start, last) = word.split_at(word.len().saturating_sub(1));
            let ends_text = start.is_empty() && last.iter().all(|id| eos.contains(id));
            if history.ends_with(start) && !ends_text {
                ban(logits, last);
            }
        }
        if history.len() < self.min_length || new < self.min_new_tokens {
            ban(logits, eos);
        }
        if is_last && !self.forced_eos.is_empty() {
            force(logits, &self.forced_eos);
        } else if let Some(id) = self.forced_bos.filter(|_| history.len() == 1) {
            force(logits, &[id]);
        }
        ban(logits, &self.suppressed);
        let prompt = history.len() - new;
        if new == usize::from(prompt == 1 && self.forced_bos.is_some()) {
            ban(logits, &self.begin_suppressed);
        }
    }
}

/// Leaves nothing to be chosen but some tokens, all of them as likely.
fn force(logits: &mut [f32], ids: &[u32]) {
    logits.fill(f32::NEG_INFINITY);
    set(logits, ids, 0.0);
}

fn ban(logits: &mut [f32], ids: &[u32]) {
    set(logits, ids, f32::NEG_INFINITY);
}

fn set(logits: &mut [f32], ids: &[u32], logit: f32) {
    for id in ids {
        if let Some(to) = logits.get_mut(*id as usize) {
            *to = logit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens of six that may come next.
    fn allowed(constraints: &Constraints, history: &[u32], new: usize, is_last: bool) -> Vec<usize> {
        let mut logits = [1.0; 6];
        constraints.apply(&mut logits, history, new, is_last, &[5]);
        (0..6).filter(|id| logits[*id].is_finite()).collect()
    }

    fn none() -> Constraints {
        Constraints::default()
    }

    #[test]
    fn without_constraints_all_may_come() {
        assert_eq!(allowed(&none(), &[], 0, true), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn no_sequence_comes_twice() {
        let grams = Constraints { no_repeat_ngram: 2, ..none() };
        assert_eq!(allowed(&grams, &[1, 2, 1, 3, 1], 2, false), [0, 1, 4, 5]);
        assert_eq!(allowed(&grams, &[], 0, false), [0, 1, 2, 3, 4, 5]);
        let tokens = Constraints { no_repeat_ngram: 1, ..none() };
        assert_eq!(allowed(&tokens, &[1, 2], 0, false), [0, 3, 4, 5]);
    }

    #[test]
    fn bad_words_do_not_come() {
        let bad =
            Constraints { bad_words: vec![vec![1], vec![2, 3, 4], vec![5], vec![0, 9], vec![]], ..none() };
        assert_eq!(allowed(&bad, &[0, 0], 1, false), [0, 2, 3, 4, 5]);
        assert_eq!(allowed(&bad, &[0, 2, 3], 1, false), [0, 2, 3, 5]);
        assert_eq!(allowed(&bad, &[2, 3], 1, false), [0, 2, 3, 5]);
    }

    #[test]
    fn a_text_has_its_least_length() {
        let length = Constraints { min_length: 3, ..none() };
        assert_eq!(allowed(&length, &[0, 0], 0, false), [0, 1, 2, 3, 4]);
        assert_eq!(allowed(&length, &[0, 0, 0], 0, false), [0, 1, 2, 3, 4, 5]);
        let new = Constraints { min_new_tokens: 1, ..none() };
        assert_eq!(allowed(&new, &[0, 0, 0], 0, false), [0, 1, 2, 3, 4]);
        assert_eq!(allowed(&new, &[0, 0, 0], 1, false), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn first_and_last_tokens_are_forced() {
        let ends =
            Constraints { forced_bos: Some(2), forced_eos: vec![4, 5], begin_suppressed: vec![3], ..none() };
        assert_eq!(allowed(&ends, &[0], 0, false), [2]);
        assert_eq!(allowed(&ends, &[0, 2], 1, false), [0, 1, 2, 4, 5]);
        assert_eq!(allowed(&ends, &[0, 2, 2], 2, false), [0, 1, 2, 3, 4, 5]);
        assert_eq!(allowed(&ends, &[0, 2, 2], 2, true), [4, 5]);
        assert_eq!(allowed(&ends, &[0, 1], 0, false), [0, 1, 2, 4, 5], "behind a longer prompt");
    }

    #[test]
    fn tokens_are_suppressed() {
        let never = Constraints { suppressed: vec![0, 7], ..none() };
        assert_eq!(allowed(&never, &[1], 1, false), [1, 2, 3, 4, 5]);
    }
}
