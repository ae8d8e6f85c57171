use std::cmp::Ordering;

use crate::error::{Error, ErrorKind, Result};

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Logits are divided by it; from 0 on, and 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens are considered, and those that are as likely as the last of them; at least 1.
    pub top_k: Option<usize>,
    /// Only the fewest likeliest tokens that together have this probability are considered; more than 0 and at most 1.
    pub top_p: Option<f32>,
    /// Only tokens with at least this share of the likeliest one's probability are considered; 0 to 1.
    pub min_p: Option<f32>,
    /// Logits of tokens that occurred already are divided by it if positive, else multiplied; more than 0, and 1 changes nothing. By
    /// default what `generation_config.json` says, else 1. Keskar et al., “CTRL”, 2019.
    pub repetition_penalty: Option<f32>,
    /// The same seed gives the same text at the same place among the texts, each of which has random numbers of its own.
    pub seed: u64,
}

impl Default for SamplingOptions {
    /// The likeliest token, always.
    fn default() -> Self {
        SamplingOptions {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            seed: 0,
        }
    }
}

impl SamplingOptions {
    /// Checks that each option is in its range.
    ///
    /// # Errors
    /// `Input` for the first that is not.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, holds: bool, range: &str, found: f32| {
            let message = || format!("`{name}` out of range: expected {range}, found {found}");
            if holds { Ok(()) } else { Err(Error::new(ErrorKind::Input, message())) }
        };
        let unit = |x: f32| (0.0..=1.0).contains(&x);
        let t = self.temperature;
        check("temperature", t >= 0.0 && t.is_finite(), "a number from 0 on", t)?;
        check("top_k", self.top_k != Some(0), "at least 1", 0.0)?;
        let p = self.top_p.unwrap_or(1.0);
        check("top_p", unit(p) && p > 0.0, "more than 0 and at most 1", p)?;
        let p = self.min_p.unwrap_or(0.0);
        check("min_p", unit(p), "0 to 1", p)?;
        let r = self.repetition_penalty.unwrap_or(1.0);
        check("repetition_penalty", r > 0.0 && r.is_finite(), "a positive number", r)
    }
}

/// Chooses tokens for one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    state: u64,
    /// Logits with the repetition penalty.
    penalised: Vec<f32>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler for the `sequence`-th sequence of a batch: what it chooses does not depend on the others.
    ///
    /// # Errors
    /// As [`SamplingOptions::validate`].
    pub fn new(options: &SamplingOptions, sequence: usize) -> Result<Sampler> {
        options.validate()?;
        let sampler = |state| Sampler {
            options: options.clone(),
            state,
            penalised: Vec::new(),
            candidates: Candidates::default(),
        };
        let mut seed = sampler(options.seed);
        // Streams of neighbouring numbers would run in step; a scrambled number does not.
        let offset = (0..=sequence % 4096).fold(0, |_, _| seed.next());
        Ok(sampler(offset ^ (sequence as u64 / 4096)))
    }

    /// The next token. `history` are the tokens so far, for the repetition penalty.
    ///
    /// # Errors
    /// `Checkpoint` when a logit is not a number, or infinitely large; `Config` when all are infinitely small: no token may come next;
    /// `Input` when the repetition penalty makes them infinite.
    pub fn pick(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        // Looked at to the end: the compiler makes vectors of that.
        if logits.iter().fold(false, |found, x| found | x.is_nan() | (*x == f32::INFINITY)) {
            let message = "the model's logits are not numbers";
            return Err(Error::new(ErrorKind::Checkpoint, message).help("is the checkpoint damaged?"));
        }
        if !logits.iter().any(|x| x.is_finite()) {
            let message = "no token may come next";
            return Err(Error::new(ErrorKind::Config, message)
                .help("what `generation_config.json` says of tokens rules all of them out"));
        }
        let penalty = self.options.repetition_penalty.unwrap_or(1.0);
        let scores = if penalty == 1.0 {
            logits
        } else {
            penalise(logits, history, penalty, &mut self.penalised);
            &self.penalised
        };
        if !largest_of(scores).is_finite() {
            let message = format!("a `repetition_penalty` of {penalty:e} makes logits infinite");
            return Err(Error::new(ErrorKind::Input, message));
        }
        if self.options.temperature == 0.0 {
            return Ok(argmax(scores));
        }
        self.candidates.choose(&self.options, scores);
        let total = total(&self.candidates.kept);
        let mut left = self.uniform() * total;
        for (id, weight) in &self.candidates.kept {
            left -= f64::from(*weight);
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding may leave a rest: the last candidate that has a probability gets it.
        let mut last = self.candidates.kept.iter().rev();
        Ok(last.find(|(_, weight)| *weight > 0.0).map_or(0, |(id, _)| *id))
    }

    /// A number in 0 .. 1 with 53 random bits.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// SplitMix64: Steele, Lea, Flood, “Fast Splittable Pseudorandom Number Generators”, 2014.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Logits with the repetition penalty.
fn penalise(logits: &[f32], history: &[u32], penalty: f32, scores: &mut Vec<f32>) {
    scores.clear();
    scores.extend_from_slice(logits);
    for id in history {
        // Once, however often it occurred.
        if let (Some(score), Some(logit)) = (scores.get_mut(*id as usize), logits.get(*id as usize)) {
            *score = if *logit < 0.0 { logit * penalty } else { logit / penalty };
        }
    }
}

/// Tokens that may be chosen.
#[derive(Clone, Debug, Default)]
struct Candidates {
    /// Each with its probability up to a common factor, by their ids.
    kept: Vec<(u32, f32)>,
    /// Those among which a limit is looked for.
    among: Vec<(u32, f32)>,
}

/// Scores of which only the largest is looked at first.
const TOGETHER: usize = 32;

impl Candidates {
    /// The order of the filters is that of transformers 5.23: temperature, top-k, top-p, min-p.
    ///
    /// Nothing is sorted: a vocabulary is large, and where a filter ends is found by partitions.
    fn choose(&mut self, options: &SamplingOptions, scores: &[f32]) {
        let all = || scores.iter().enumerate().map(|(id, score)| (id as u32, *score));
        self.kept.clear();
        match options.top_k {
            Some(k) if k < scores.len() => {
                let least = self.kth_largest(scores, k);
                self.kept.extend(all().filter(|(_, score)| *score >= least)); // ties with the last one stay
            }
            _ => self.kept.extend(all()),
        }
        let best = largest_of(scores);
        self.kept.iter_mut().for_each(|(_, score)| *score = ((*score - best) / options.temperature).exp());
        if let Some(p) = options.top_p.filter(|p| *p < 1.0) {
            let last = self.last_of_share(f64::from(p));
            self.kept.retain(|candidate| likelier(candidate, &last) != Ordering::Greater);
        }
        if let Some(p) = options.min_p {
            // The likeliest token's weight is 1.
            self.kept.retain(|(_, weight)| *weight >= p);
        }
    }

    /// The `k`-th largest score, where there are more than `k`.
    fn kth_largest(&mut self, scores: &[f32], k: usize) -> f32 {
        let nth = |of: &mut Vec<(u32, f32)>| of.select_nth_unstable_by(k - 1, likelier).1.1;
        // Of the largest ones of these parts, the k-th is at most the one that is looked for.
        self.among.clear();
        self.among.extend(scores.chunks(TOGETHER).map(|some| (0, largest_of(some))));
        let least = if k <= self.among.len() { nth(&mut self.among) } else { f32::NEG_INFINITY };
        self.among.clear();
        self.among.extend(scores.iter().filter(|score| **score >= least).map(|score| (0, *score)));
        nth(&mut self.among)
    }

    /// The last of the fewest likeliest candidates that together have this share of all.
    fn last_of_share(&mut self, p: f64) -> (u32, f32) {
        let all = total(&self.kept);
        // Together, those that are below this average of what is left out have less than it.
        let least = (1.0 - p) * all / self.kept.len() as f64;
        self.among.clear();
        self.among.extend(self.kept.iter().filter(|(_, weight)| f64::from(*weight) >= least));
        let (mut before, mut from, mut to) = (0.0, 0, self.among.len());
        while to - from > 1 {
            let middle = from + (to - from) / 2;
            self.among[from..to].select_nth_unstable_by(middle - from, likelier);
            let more = total(&self.among[from..middle]);
            if before + more >= p * all {
                to = middle;
            } else {
                (before, from) = (before + more, middle);
            }
        }
        self.among.get(from).copied().unwrap_or((u32::MAX, 0.0))
    }
}

/// The likelier one first; of those that are as likely, the one with the smaller id.
fn likelier((a, x): &(u32, f32), (b, y): &(u32, f32)) -> Ordering {
    y.total_cmp(x).then(a.cmp(b))
}

/// The sum of all weights, in several sums side by side: one addition need not wait for the other.
fn total(candidates: &[(u32, f32)]) -> f64 {
    let mut sums = [0.0; 8];
    for some in candidates.chunks(sums.len()) {
        sums.iter_mut().zip(some).for_each(|(sum, (_, weight))| *sum += f64::from(*weight));
    }
    sums.iter().sum()
}

/// The index of the largest element, the first of equals; 0 without elements.
pub fn argmax(x: &[f32]) -> u32 {
    // The first block that has the largest, then its place in there.
    const BLOCK: usize = 256;
    let (mut largest, mut block) = (f32::NEG_INFINITY, 0);
    for (i, part) in x.chunks(BLOCK).enumerate() {
        let of_part = largest_of(part);
        if of_part > largest {
            (largest, block) = (of_part, i);
        }
    }
    let part = x.chunks(BLOCK).nth(block).unwrap_or(x);
    let place = part.iter().position(|x| *x == largest).unwrap_or(0);
    (block * BLOCK + place) as u32
}

/// The largest number; below all if there is none.
fn largest_of(x: &[f32]) -> f32 {
    // Of each lane first: the compiler makes vectors of that.
    let mut largest = [f32::NEG_INFINITY; 16];
    for part in x.chunks(largest.len()) {
        for (largest, x) in largest.iter_mut().zip(part) {
            *largest = if x > largest { *x } else { *largest };
        }
    }
    largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(options: &SamplingOptions, logits: &[f32]) -> Vec<u32> {
        let mut candidates = Candidates::default();
        candidates.choose(options, logits);
        candidates.kept.into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn filters_keep_what_transformers_keeps() {
        // transformers 5.23: TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper on these logits
        let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
        let base = SamplingOptions { temperature: 1.0, ..SamplingOptions::default() };
        let cases = [
            (base.clone(), vec![0, 1, 2, 3, 4]),
            (SamplingOptions { top_k: Some(1), ..base.clone() }, vec![1, 3]),
            (SamplingOptions { top_k: Some(3), ..base.clone() }, vec![1, 2, 3]),
            (SamplingOptions { top_p: Some(0.5), ..base.clone() }, vec![1, 3]),
            (SamplingOptions { top_p: Some(0.3), ..base.clone() }, vec![1]),
            (SamplingOptions { top_p: Some(0.9), ..base.clone() }, vec![1, 2, 3]),
            (SamplingOptions { min_p: Some(0.3), ..base.clone() }, vec![1, 2, 3]),
            (SamplingOptions { min_p: Some(1.0), ..base.clone() }, vec![1, 3]),
            (SamplingOptions { top_p: Some(0.8), min_p: Some(0.3), ..base.clone() }, vec![1, 2, 3]),
            (SamplingOptions { min_p: Some(0.1), temperature: 0.5, ..base.clone() }, vec![1, 2, 3]),
        ];
        for (options, expected) in cases {
            assert_eq!(candidates(&options, &logits), expected, "{options:?}");
        }
    }

    #[test]
    fn filters_keep_what_sorting_would() {
        // Many logits, of which many are equal, peaked and flat.
        let mut random = Sampler::new(&SamplingOptions::default(), 3).unwrap();
        for spread in [0.0, 0.1, 3.0, 30.0] {
            let logits: Vec<f32> =
                (0..3000).map(|_| (random.uniform() * 200.0).round() as f32 / 200.0 * spread).collect();
            for (k, p) in [1, 2, 40, 93, 94, 95, 1000, 2999, 3000]
                .into_iter()
                .flat_map(|k| [1e-20, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0].map(|p| (k, p)))
            {
                let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
                sorted.sort_by(likelier);
                let (best, least) = (sorted[0].1, sorted[k - 1].1);
                sorted.retain(|(_, score)| *score >= least);
                sorted.iter_mut().for_each(|(_, score)| *score = ((*score - best) / 0.7).exp());
                let (all, mut sum) = (total(&sorted), 0.0);
                let enough = sorted.iter().position(|(_, weight)| {
                    sum += f64::from(*weight);
                    sum >= f64::from(p) * all
                });
                if p < 1.0 {
                    sorted.truncate(enough.unwrap() + 1);
                }
                let mut expected: Vec<u32> = sorted.into_iter().map(|(id, _)| id).collect();
                expected.sort_unstable();
                let options = SamplingOptions {
                    temperature: 0.7,
                    top_k: Some(k),
                    top_p: Some(p),
                    ..SamplingOptions::default()
                };
                assert_eq!(candidates(&options, &logits), expected, "{spread} {k} {p}");
            }
        }
    }

    #[test]
    fn a_seed_gives_a_sequence() {
        let options = SamplingOptions { temperature: 1.0, seed: 7, ..SamplingOptions::default() };
        let logits = [0.0; 50];
        let draw = |sequence| {
            let mut sampler = Sampler::new(&options, sequence).unwrap();
            (0..20).map(|_| sampler.pick(&logits, &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn frequencies_are_probabilities() {
        let options = SamplingOptions { temperature: 1.0, ..SamplingOptions::default() };
        let mut sampler = Sampler::new(&options, 0).unwrap();
        let logits = [0.1f32.ln(), 0.2f32.ln(), 0.7f32.ln()];
        let mut counts = [0i64; 3];
        for _ in 0..20_000 {
            counts[sampler.pick(&logits, &[]).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([2000, 4000, 14_000i64]) {
            assert!((count - expected).abs() < 300, "{counts:?}");
        }
    }

    #[test]
    fn wrong_options_and_logits_are_refused() {
        let base = SamplingOptions::default();
        for options in [
            SamplingOptions { temperature: -1.0, ..base.clone() },
            SamplingOptions { temperature: f32::NAN, ..base.clone() },
            SamplingOptions { top_k: Some(0), ..base.clone() },
            SamplingOptions { top_p: Some(1.5), ..base.clone() },
            SamplingOptions { min_p: Some(-0.1), ..base.clone() },
            SamplingOptions { repetition_penalty: Some(0.0), ..base.clone() },
        ] {
            assert!(options.validate().is_err(), "{options:?}");
        }
        assert!(Sampler::new(&base, 0).unwrap().pick(&[0.0, f32::NAN], &[]).is_err());
        for (penalty, logits) in [(1e-40, [3.0, 1.0]), (1e38, [-30.0, -20.0])] {
            for temperature in [0.0, 1.0] {
                let options =
                    SamplingOptions { repetition_penalty: Some(penalty), temperature, ..base.clone() };
                assert!(Sampler::new(&options, 0).unwrap().pick(&logits, &[0, 1]).is_err(), "{penalty}");
            }
        }
    }

    #[test]
    fn the_first_of_the_largest_is_chosen() {
        let ones: Vec<f32> =
            (0..1000).map(|i| if [300, 301, 700].contains(&i) { 1.0 } else { -1.0 }).collect();
        let cases =
            [(&[][..], 0), (&[-0.0, 0.0], 0), (&[f32::NEG_INFINITY; 3], 0), (&[-2.0, -1.0], 1), (&ones, 300)];
        for (x, expected) in cases {
            assert_eq!(argmax(x), expected, "{x:?}");
        }
    }

    #[test]
    fn repeated_tokens_are_penalised() {
        let options = SamplingOptions { repetition_penalty: Some(2.0), ..SamplingOptions::default() };
        let mut sampler = Sampler::new(&options, 0).unwrap();
        assert_eq!(sampler.pick(&[3.0, 2.0], &[]).unwrap(), 0);
        assert_eq!(sampler.pick(&[3.0, 2.0], &[0]).unwrap(), 1);
        assert_eq!(sampler.pick(&[-3.0, -4.0], &[0]).unwrap(), 1);
        // Once, however often they occurred.
        assert_eq!(sampler.pick(&[3.0, 1.0], &[0, 0]).unwrap(), 0);
        let options = SamplingOptions { temperature: 1.0, top_k: Some(1), ..options };
        assert_eq!(Sampler::new(&options, 0).unwrap().pick(&[3.0, 2.0], &[0]).unwrap(), 1);
    }
}
