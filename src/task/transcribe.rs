//! Sounds in, text out.

use super::generate::{FinishReason, GenerateOptions, Generator};
use super::generation_config::{self, GenerationConfig, bare};
use super::model::Model;
use crate::error::{Error, ErrorKind, Result};
use crate::generate::Constraints;
use crate::model::Session;
use crate::preprocess::{Sound, SoundProcessor};
use crate::spec::{Tree, listed};

/// How sounds are written down.
#[derive(Clone, Debug, PartialEq)]
pub struct TranscribeOptions {
    /// The language that is spoken, as the model spells it between `<|` and `|>`: `en`. By default what `generation_config.json`
    /// says, else what the model hears.
    pub language: Option<String>,
    /// What to do, as `task_to_id` of `generation_config.json` spells it: `transcribe`, or `translate` into English.
    pub task: Option<String>,
    /// How tokens are chosen, and how many there are at most.
    pub generate: GenerateOptions,
}

impl Default for TranscribeOptions {
    /// As the model's files say, with the likeliest tokens, as many as the model can take.
    fn default() -> Self {
        let generate = GenerateOptions { max_tokens: usize::MAX, ..GenerateOptions::default() };
        TranscribeOptions { language: None, task: None, generate }
    }
}

/// What is said in a sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcription {
    /// The text.
    pub text: String,
    /// Its language, if the model was told or found one: `en`.
    pub language: Option<String>,
    /// Its tokens, behind those that the model was given to begin with.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
}

impl Model {
    /// What sounds go through before the network hears them.
    ///
    /// # Errors
    /// As [`SoundProcessor::open`].
    pub fn sound_processor(&self) -> Result<SoundProcessor> {
        SoundProcessor::open(&self.repository, &self.config)
    }

    /// Writes down what is said in sounds, with a model for speech recognition.
    ///
    /// The tokens that the text begins with, and those that may not occur, are those of transformers: `forced_decoder_ids` or
    /// `lang_to_id`, `task_to_id` and `no_timestamps_token_id`, `suppress_tokens` and `begin_suppress_tokens` of
    /// `generation_config.json`. Sounds longer than the model's window, usually 30 seconds, are refused. Needs the feature `audio`.
    ///
    /// ```
    /// use smelt::{Model, Sound, TranscribeOptions};
    /// # fn main() -> smelt::Result<()> {
    /// # if cfg!(not(feature = "audio")) { return Ok(()); }
    /// # let text = std::fs::read_to_string("tests/golden/media/cases.json").unwrap();
    /// # let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    /// # let dir = format!("tests/golden/{}", cases["speech"][0]["directory"].as_str().unwrap());
    /// let model = Model::open(dir)?;
    /// let sound = Sound::open("tests/golden/media/speech.wav")?;
    /// println!("{}", model.transcribe(&[sound], &TranscribeOptions::default())?[0].text);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Input` when the model is for another task, or lacks the language or the task; `Unsupported` when
    /// `generation_config.json` asks for what is not implemented; whatever [`sound_processor`](Self::sound_processor) and its
    /// [`input_features`](SoundProcessor::input_features) give.
    pub fn transcribe(&self, sounds: &[Sound], options: &TranscribeOptions) -> Result<Vec<Transcription>> {
        self.expect_task(&["speech_recognition"])?;
        let processor = self.sound_processor()?;
        let rules = Rules::read(self, options)?;
        let positions = self.network.plan().token_limit(crate::nn::Stream::Decoder).unwrap_or(usize::MAX);
        let one = |(i, sound): (usize, &Sound)| {
            let mut session = self.network.session(1);
            session.encode_audio(processor.input_features(std::slice::from_ref(sound))?)?;
            let mut prompt = rules.prompt.clone();
            let mut language = rules.language.clone();
            let mut seen = 0;
            if rules.hears_language {
                let (name, id) = self.language(&mut session, rules.start, &rules.languages)?;
                language = Some(name);
                seen = 1; // the session has the first token already
                match prompt.get_mut(1) {
                    Some(second) => *second = Some(id),
                    None => prompt.push(Some(id)),
                }
            }
            prompt.extend(rules.rest.iter().copied().map(Some));
            let no_timestamps = rules.no_timestamps.filter(|id| prompt.last() != Some(&Some(*id)));
            prompt.extend(no_timestamps.map(Some));
            let prompt: Vec<u32> = prompt.into_iter().flatten().collect();
            let Some(room) = positions.checked_sub(prompt.len()).filter(|room| *room > 0) else {
                let message =
                    format!("{} tokens to begin with leave no room among {positions}", prompt.len());
                return Err(Error::new(ErrorKind::Config, message));
            };
            // As transformers understands it for these models, `max_length` counts new tokens.
            let room = room.min(rules.max_length.unwrap_or(usize::MAX));
            let generate = GenerateOptions {
                max_tokens: options.generate.max_tokens.min(room),
                before: options.generate.before.wrapping_add(i),
                ..options.generate.clone()
            };
            let (prompts, constraints) = (vec![(prompt, seen, 0)], rules.constraints.clone());
            let mut generator = Generator::begin(self, session, prompts, &generate, constraints)?;
            generator.silence_from(rules.no_timestamps.map(|id| id + 1));
            while generator.step()? {}
            let generation = generator.into_generations().remove(0); // of the one sequence
            let (text, tokens, finish) = (generation.text, generation.tokens, generation.finish);
            Ok(Transcription { text, language, tokens, finish })
        };
        sounds.iter().enumerate().map(one).collect()
    }

    /// The likeliest of the languages, by the token that would come first.
    fn language(
        &self,
        session: &mut Session<'_>,
        start: u32,
        languages: &[(String, u32)],
    ) -> Result<(String, u32)> {
        let step = session.step(&[&[start]], "logits")?;
        let logits = step.row(0);
        let score = |id: u32| logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let mut best: Option<&(String, u32)> = None;
        for language in languages {
            let better = |other: &(String, u32)| {
                // Of equal ones that with the smallest id.
                score(language.1).total_cmp(&score(other.1)).then(other.1.cmp(&language.1)).is_gt()
            };
            if best.is_none_or(better) {
                best = Some(language);
            }
        }
        best.cloned().ok_or_else(|| Error::new(ErrorKind::Config, "`lang_to_id` has no languages"))
    }
}

/// How a text begins, and what may not be in it.
#[derive(Debug)]
struct Rules {
    start: u32,
    /// The first tokens; none stands for one that is left out, or for the language.
    prompt: Vec<Option<u32>>,
    /// Those behind the language.
    rest: Vec<u32>,
    no_timestamps: Option<u32>,
    language: Option<String>,
    hears_language: bool,
    languages: Vec<(String, u32)>,
    constraints: Constraints,
    max_length: Option<usize>,
}

/// Settings that change the text, with the only value that is implemented; none is always allowed.
const PLAIN: [(&str, Tree); 14] = [
    ("return_timestamps", Tree::Bool(false)),
    ("do_sample", Tree::Bool(false)),
    ("num_beams", Tree::Int(1)),
    ("repetition_penalty", Tree::Float(1.0)),
    ("no_repeat_ngram_size", Tree::Int(0)),
    ("bad_words_ids", Tree::Null),
    ("forced_bos_token_id", Tree::Null),
    ("forced_eos_token_id", Tree::Null),
    ("min_length", Tree::Int(0)),
    ("min_new_tokens", Tree::Int(0)),
    ("no_speech_threshold", Tree::Null),
    ("logprob_threshold", Tree::Null),
    ("compression_ratio_threshold", Tree::Null),
    ("prompt_ids", Tree::Null),
];

impl Rules {
    /// What `generation_config.json`, or `config.json` without one, and the options say.
    fn read(model: &Model, options: &TranscribeOptions) -> Result<Rules> {
        let file = GenerationConfig::of(model);
        file.expect(&generation_config::PLAIN)?;
        file.expect(&PLAIN)?;
        let start =
            file.id("decoder_start_token_id")?.ok_or_else(|| file.wrong("no `decoder_start_token_id`"))?;
        let languages = file.ids_by_name("lang_to_id")?;
        let tasks = file.ids_by_name("task_to_id")?;
        let asked = options.language.is_some() || options.task.is_some();
        if asked && file.get("is_multilingual") == Some(&Tree::Bool(false)) {
            let message = "this model has one language and one task, which cannot be chosen";
            return Err(Error::new(ErrorKind::Input, message));
        }
        let text = |option: &Option<String>, key: &str| {
            option.clone().or_else(|| file.get(key).and_then(Tree::as_text).map(str::to_owned))
        };
        let (language, task) = (text(&options.language, "language"), text(&options.task, "task"));
        let mut prompt = vec![Some(start)];
        if language.is_none() && task.is_none() {
            let forced = file.forced_ids()?;
            prompt.extend(if forced.is_empty() {
                GenerationConfig::of_config(model).forced_ids()?
            } else {
                forced
            });
        }
        let mut rest = Vec::new();
        if let Some(language) = &language {
            let token = language.to_lowercase();
            let known = languages.iter().find(|(name, _)| *name == bare(&token));
            let (_, id) = known.ok_or_else(|| unknown("language", language, &languages))?;
            prompt.push(Some(*id));
        }
        if let Some(task) = &task {
            let known = tasks.iter().find(|(name, _)| name == task);
            rest.push(known.ok_or_else(|| unknown("task", task, &tasks))?.1);
        } else if language.is_some() && !tasks.is_empty() {
            let known = tasks.iter().find(|(name, _)| name == "transcribe");
            rest.push(known.ok_or_else(|| unknown("task", "transcribe", &tasks))?.1);
        }
        let undefined = prompt.get(1).is_none_or(Option::is_none);
        let hears_language = language.is_none() && undefined && !languages.is_empty();
        let given = prompt.get(1).copied().flatten();
        let named = given.and_then(|id| languages.iter().find(|(_, other)| *other == id));
        let limit = ["max_new_tokens", "max_length"].into_iter().find(|key| file.get(key).is_some());
        let max_length = limit.map(|key| file.count(key)).transpose()?;
        Ok(Rules {
            start,
            language: named.map(|(name, _)| name.clone()),
            prompt,
            rest,
            no_timestamps: file.id("no_timestamps_token_id")?,
            hears_language,
            languages,
            constraints: Constraints {
                suppressed: file.ids("suppress_tokens")?,
                begin_suppressed: file.ids("begin_suppress_tokens")?,
                ..Constraints::default()
            },
            max_length,
        })
    }
}

fn unknown(what: &str, found: &str, known: &[(String, u32)]) -> Error {
    let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
    let expected = if names.is_empty() { "none to be chosen".to_owned() } else { listed(&names) };
    Error::new(ErrorKind::Input, format!("unknown {what} `{found}`: expected {expected}"))
}
