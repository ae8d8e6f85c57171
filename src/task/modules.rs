//! Comparison with a reference module by module, and the line of the description that is to blame.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::bundle::{BOTH, Bundle, Comparison};
use crate::error::{Place, Problem, Result};
use crate::model::{ModuleCall, Network};
use crate::nn::Stream;
use crate::spec::{Address, Source};
use crate::tensor::{Array, Tensor};

/// How two matrices differ over the positions that are not masked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The largest absolute difference; infinite when a value is not a number.
    pub largest: f32,
    /// The largest absolute value of the reference.
    pub magnitude: f32,
    /// How far the reference itself is from exact, where the file says so (`noise.…`), else 0.
    pub noise: f32,
}

/// Values below this are compared as if they were of this size: what is left of large ones that cancel has their
/// rounding.
const SMALLEST_MAGNITUDE: f32 = 1e-2;

/// Relative differences up to here are rounding wherever they occur: some units in the last place of float32.
const ROUNDING: f32 = 5e-7;

/// From one module to the next rounding grows less than this.
const SHARP: f32 = 8.0;

/// Relative difference up to which two modules are said to take the same.
const ALIKE: f32 = 1e-4;

/// Of how many modules that take something wrong it is searched who takes that in the reference.
const SEARCHED: usize = 16;

impl Difference {
    /// The largest difference, less what rounding in the reference explains, relative to the largest value.
    pub fn relative(&self) -> f32 {
        (self.largest - BOTH * self.noise).max(0.0) / self.magnitude.max(SMALLEST_MAGNITUDE)
    }
}

/// How one module agrees with its reference.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleComparison {
    /// Its path in the description.
    pub name: String,
    /// Its name in the reference.
    pub recorded: String,
    /// How what it takes differs; none where that is not known.
    pub input: Option<Difference>,
    /// How what it gives differs.
    pub output: Difference,
    /// Where the description asks for it.
    pub place: Option<Place>,
    /// The block that it belongs to.
    block: Option<Place>,
    /// The step that gives the block its input.
    before: Option<Place>,
    /// Whether it is a round of a loop.
    is_round: bool,
    /// When the reference called it, and how often.
    calls: Option<(i64, i64)>,
    /// Its place in the order in which smelt calls modules.
    position: usize,
    /// Other modules, of both, that take in the reference what it takes here, where that is not what it takes there.
    alike: Vec<String>,
}

impl ModuleComparison {
    /// Whether what it takes and what it gives differ by no more than `tolerance`, relative to the largest values.
    pub fn agrees(&self, tolerance: f32) -> bool {
        let all = self.input.iter().chain([&self.output]);
        all.into_iter().all(|difference| difference.relative() <= tolerance)
    }
}

/// A module that smelt calls and the reference does not, such as one of a weight that it takes apart.
#[derive(Clone, Debug)]
struct Unmatched {
    name: String,
    block: Option<Place>,
    position: usize,
    /// Modules of the reference that take the same.
    alike: Vec<String>,
}

/// All modules of a reference and of a network, side by side.
#[derive(Clone, Debug, Default)]
pub struct ModuleTrace {
    /// Those that both have, in the order in which smelt computes them.
    pub compared: Vec<ModuleComparison>,
    /// Names of those that only the reference has.
    pub only_recorded: Vec<String>,
    /// Names of those that only the network has.
    pub only_computed: Vec<String>,
    /// When the reference called each.
    recorded_calls: HashMap<String, i64>,
    /// The last step of each output, in the order in which they are computed.
    ends: Vec<(String, Place)>,
    unmatched: Vec<Unmatched>,
}

/// What is wrong with the first module that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It takes the right input and gives a wrong output.
    Module,
    /// Its input is wrong, though the modules before it in the same block agree: the block does the wrong thing between them.
    Block,
    /// Its input is wrong, though all modules before it agree: what the step before it gives is wrong.
    StepBefore,
    /// What it takes is right in itself, but another module takes it in the reference.
    Input,
    /// What a layer gives is wrong, though all modules in it agree.
    Layer,
    /// All modules agree, and an output does not.
    End,
}

/// Where a network first departs from its reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Culprit {
    /// The module or output.
    pub name: String,
    /// What is wrong.
    pub fault: Fault,
    /// How much that differs.
    pub difference: f32,
    /// How much what comes before differs, if it is known: the module's input, or all modules before.
    pub before: Option<f32>,
    /// The line of the description that is to blame.
    pub place: Option<Place>,
    /// More about it.
    pub notes: Vec<String>,
}

impl Culprit {
    /// As it is shown.
    pub fn problem(&self) -> Problem {
        let Culprit { name, difference, .. } = self;
        let message = match (self.fault, self.before) {
            (Fault::Module, Some(before)) => {
                format!("`{name}` by {difference:.1e} (input differs by {before:.1e})")
            }
            (Fault::Module, None) => format!("`{name}` by {difference:.1e}"),
            (Fault::End, _) => format!("output `{name}` by {difference:.1e} (all modules agree)"),
            (Fault::Layer, before) => {
                let before = before.unwrap_or_default();
                format!("output of `{name}` by {difference:.1e} (modules in it differ by {before:.1e})")
            }
            (Fault::Block | Fault::StepBefore | Fault::Input, before) => {
                let before = before.unwrap_or_default();
                format!("input of `{name}` by {difference:.1e} (modules before differ by {before:.1e})")
            }
        };
        let problem = Problem::new(message).at(self.place.clone());
        self.notes.iter().fold(problem, |problem, note| problem.note(note))
    }
}

impl Bundle {
    /// Whether the reference has modules.
    pub fn has_modules(&self) -> bool {
        self.tensors.keys().any(|name| is_output(name))
    }

    /// Computes everything that the file has reference outputs for, and compares each module on the way.
    ///
    /// A module that is called several times is compared once, in the call that comes closest.
    ///
    /// # Errors
    /// Whatever [`Network::trace`] gives.
    pub fn trace(&self, network: &Network) -> Result<ModuleTrace> {
        let plan = network.plan();
        let outputs = self.tensors.keys().filter_map(|name| name.strip_prefix("output."));
        let wanted: Vec<&str> = outputs.filter(|name| plan.output(name).is_some()).collect();
        let calls = network.trace(&self.batch, &wanted)?;

        let recorded: Vec<&str> = self.tensors.keys().filter_map(|name| recorded_name(name)).collect();
        let mut by_name: HashMap<String, Vec<&str>> = HashMap::new();
        for name in &recorded {
            for known in plan.module_names(name) {
                by_name.entry(known).or_default().push(name);
            }
        }
        let mut places = Places { source: &plan.spec.source, known: BTreeMap::new() };
        let names = Names { recorded: &recorded, by_name };
        let mut best: BTreeMap<&str, ModuleComparison> = BTreeMap::new();
        let mut unmatched: Vec<(usize, &ModuleCall)> = Vec::new();
        for (i, call) in calls.iter().enumerate() {
            let is_last = calls[i + 1..].iter().all(|later| later.step.at != call.step.at);
            let whole = names.whole(call).filter(|_| is_last);
            let found =
                names.of(call).into_iter().map(|name| (name, false)).chain(whole.map(|name| (name, true)));
            let found = found.filter_map(|(name, is_whole)| {
                let comparison = self.compared(i, call, name, &mut places)?;
                let block = comparison.block.clone();
                // What the whole takes is not what its last part takes.
                let comparison = match is_whole {
                    true => ModuleComparison { input: None, place: block, ..comparison },
                    false => comparison,
                };
                Some((name, comparison))
            });
            let nearer = |a: &ModuleComparison, b: &ModuleComparison| {
                a.output.relative().total_cmp(&b.output.relative())
            };
            let Some((name, comparison)) = found.min_by(|(_, a), (_, b)| nearer(a, b)) else {
                unmatched.push((i, call));
                continue;
            };
            if best.get(name).is_none_or(|old| nearer(&comparison, old).is_lt()) {
                best.insert(name, comparison);
            }
        }
        let only_recorded = recorded.iter().filter(|name| !best.contains_key(*name));
        let only_recorded: Vec<String> = only_recorded.map(|name| (*name).to_owned()).collect();
        let mut compared: Vec<ModuleComparison> = best.into_values().collect();
        compared.sort_by_key(|comparison| comparison.position);
        let is_leaf = |name: &&str| !recorded.iter().any(|other| is_part(other, name));
        let leaves: Vec<&str> = recorded.iter().copied().filter(is_leaf).collect();
        // Whoever takes what these take tells what is wrong with them: of the first ones, the rest only follows from them.
        let is_off =
            |module: &&mut ModuleComparison| module.input.is_some_and(|input| input.relative() > ALIKE);
        for module in compared.iter_mut().filter(is_off).take(SEARCHED) {
            module.alike = self.takers(&calls[module.position], &leaves);
            module.alike.retain(|name| *name != module.recorded && !only_recorded.contains(name));
        }
        let known: HashSet<&String> = compared.iter().map(|c| &c.name).collect();
        let mut only_computed: Vec<String> = unmatched.iter().map(|(_, call)| call.name.clone()).collect();
        only_computed.retain(|name| !known.contains(name));
        only_computed.dedup();
        let unmatched = unmatched.into_iter().map(|(position, call)| Unmatched {
            name: call.name.clone(),
            block: places.block(call),
            position,
            alike: self.takers(call, &leaves),
        });
        let unmatched = unmatched.collect();
        let calls_of = |name: &&str| Some(((*name).to_owned(), self.calls(name)?.0));
        Ok(ModuleTrace {
            recorded_calls: recorded.iter().filter_map(calls_of).collect(),
            ends: plan.ends().into_iter().filter_map(|(name, at)| Some((name, places.step(&at)?))).collect(),
            compared,
            only_recorded,
            only_computed,
            unmatched,
        })
    }

    /// The modules of the reference among `names` that take what a call takes.
    fn takers(&self, call: &ModuleCall, names: &[&str]) -> Vec<String> {
        let Some(input) = &call.input else { return Vec::new() };
        let takes = |name: &&&str| {
            let recorded = self.tensors.get(&format!("module.{name}.input"));
            let difference = recorded.and_then(|recorded| self.matrix_difference(input, recorded, 0.0));
            difference.is_some_and(|difference| difference.relative() <= ALIKE)
        };
        names.iter().filter(takes).map(|name| (*name).to_owned()).collect()
    }

    fn compared(
        &self,
        position: usize,
        call: &ModuleCall,
        recorded: &str,
        places: &mut Places<'_>,
    ) -> Option<ModuleComparison> {
        let difference = |found: &Tensor, what: &str| {
            let name = format!("module.{recorded}.{what}");
            self.matrix_difference(found, self.tensors.get(&name)?, self.noise(&name))
        };
        Some(ModuleComparison {
            name: call.name.clone(),
            recorded: recorded.to_owned(),
            input: call.input.as_ref().and_then(|found| difference(found, "input")),
            output: difference(&call.output, "output")?,
            place: places.find(&call.at, &in_layer(call, &call.label)),
            block: places.block(call),
            before: call.step.before.as_ref().and_then(|at| places.step(at)),
            is_round: call.is_round,
            calls: self.calls(recorded),
            position,
            alike: Vec::new(),
        })
    }

    /// When the reference called a module, and how often.
    fn calls(&self, recorded: &str) -> Option<(i64, i64)> {
        match self.tensors.get(&format!("module.{recorded}.calls"))?.to_i64()?[..] {
            [first, count] => Some((first, count)),
            _ => None,
        }
    }

    /// How rows of tokens or sequences differ from a padded reference; none if they are of other things.
    fn matrix_difference(&self, found: &Tensor, reference: &Array, noise: f32) -> Option<Difference> {
        let (n, width, cols) = match *reference.shape() {
            [n, width, cols] => (n, width, cols),
            [n, cols] => (n, 1, cols),
            _ => return None,
        };
        if cols != found.cols() {
            return None;
        }
        let values = reference.to_f32();
        let mut ways: Vec<Difference> = Vec::new();
        for stream in [Stream::Input, Stream::Decoder] {
            let (tokens, stream_width) = self.tokens(stream);
            if stream_width != width || tokens.spans.len() != n || tokens.ids.len() != found.rows() {
                continue;
            }
            let mut difference = Difference { largest: 0.0, magnitude: 0.0, noise };
            for (i, span) in tokens.spans.iter().enumerate() {
                let rows = &found.data()[span.rows.start * cols..span.rows.end * cols];
                difference.add(rows, &values[i * width * cols..][..rows.len()]);
            }
            ways.push(difference);
        }
        if ways.is_empty() && found.rows() == n * width {
            let mut difference = Difference { largest: 0.0, magnitude: 0.0, noise };
            difference.add(found.data(), &values);
            ways.push(difference);
        }
        ways.into_iter().min_by(|a, b| a.largest.total_cmp(&b.largest))
    }
}

impl Difference {
    fn add(&mut self, found: &[f32], reference: &[f32]) {
        self.largest = self.largest.max(super::bundle::largest(found, reference));
        self.magnitude = self.magnitude.max(super::bundle::magnitude(reference));
    }
}

/// Modules of a reference by the names that a description may have for them.
struct Names<'r> {
    recorded: &'r [&'r str],
    by_name: HashMap<String, Vec<&'r str>>,
}

impl<'r> Names<'r> {
    /// Those that may be meant by a call.
    fn of(&self, call: &ModuleCall) -> Vec<&'r str> {
        if let Some(known) = self.by_name.get(&call.name) {
            return known.clone();
        }
        // A prefix that the description does not know, as long as it is clear which module is meant.
        let suffix = format!(".{}", call.name);
        let ending: Vec<&str> = self.recorded.iter().copied().filter(|r| r.ends_with(&suffix)).collect();
        if ending.len() == 1 { ending } else { Vec::new() }
    }

    /// The module that gives what the last of its parts gives, as it computes with their weights and does not call them.
    fn whole(&self, call: &ModuleCall) -> Option<&'r str> {
        let (whole, _) = call.name.rsplit_once('.')?;
        let [recorded] = self.by_name.get(whole)?[..] else { return None };
        let has_parts = self.recorded.iter().any(|other| is_part(other, recorded));
        (!has_parts).then_some(recorded)
    }
}

fn is_part(name: &str, whole: &str) -> bool {
    name.strip_prefix(whole).is_some_and(|rest| rest.starts_with('.'))
}

fn in_layer(call: &ModuleCall, label: &str) -> String {
    match call.step.layer {
        Some((i, n)) => format!("{label}, layer {i} of {n}"),
        None => label.to_owned(),
    }
}

/// A module's input or output, in the order of execution.
struct Event<'t> {
    module: usize,
    is_input: bool,
    difference: &'t Difference,
    /// The largest relative difference before.
    before: f32,
}

impl Event<'_> {
    /// How sharply the difference rises here.
    fn rise(&self) -> f32 {
        self.difference.relative() / self.before.max(ROUNDING)
    }
}

impl ModuleTrace {
    /// Where the network departs from its reference, if a module differs by more than `tolerance` relative to its largest
    /// value, or an output by more than `tolerance`.
    ///
    /// That is not always the first module beyond the tolerance: a small mistake may grow over some layers until it is seen. So
    /// it is, up to there, the point where the difference rises most sharply.
    pub fn culprit(&self, outputs: &[Comparison], tolerance: f32) -> Option<Culprit> {
        let events = self.events(outputs, tolerance);
        if let Some(end) = events.iter().position(|event| event.difference.relative() > tolerance) {
            return Some(self.blame(sharpest(&events[..=end])?));
        }
        // Of several wrong outputs the one that is computed first.
        let order = |name: &str| self.ends.iter().position(|(end, _)| end == name).unwrap_or(usize::MAX);
        let wrong = outputs.iter().filter(|output| !output.agrees(tolerance));
        let wrong = wrong.min_by_key(|output| order(&output.name))?;
        if let Some(suspect) = self.suspect(outputs, tolerance) {
            return Some(suspect);
        }
        Some(Culprit {
            name: wrong.name.clone(),
            fault: Fault::End,
            difference: wrong.largest,
            before: None,
            place: self.ends.iter().find(|(name, _)| *name == wrong.name).map(|(_, place)| place.clone()),
            notes: Vec::new(),
        })
    }

    /// The point where the difference rises more sharply than rounding does, below any tolerance: a slightly wrong number,
    /// or nothing.
    pub fn suspect(&self, outputs: &[Comparison], tolerance: f32) -> Option<Culprit> {
        let events = self.events(outputs, tolerance);
        sharpest(&events).filter(|event| event.rise() > SHARP).map(|event| self.blame(event))
    }

    /// What modules take and give, in order, less what heals: where torch and the description draw the line around a module
    /// differently, such as an embedding with its scale or a head with its bias, only its output differs.
    fn events(&self, outputs: &[Comparison], tolerance: f32) -> Vec<Event<'_>> {
        let all_right = outputs.iter().all(|output| output.agrees(tolerance));
        let last = self.compared.iter().rposition(|module| !module.agrees(tolerance));
        let heals = |i: usize| match self.compared[i].input {
            _ if self.compared[i].agrees(tolerance) => false,
            // What is looked up is soon taken.
            None => {
                let next = self.compared[i + 1..].iter().find_map(|module| module.input);
                next.map_or(all_right, |input| input.relative() <= tolerance)
            }
            Some(input) => {
                all_right && !outputs.is_empty() && last == Some(i) && input.relative() <= tolerance
            }
        };
        let mut before = 0f32;
        let mut events = Vec::new();
        for (module, comparison) in self.compared.iter().enumerate() {
            let input = comparison.input.iter().map(|difference| (true, difference));
            let output = Some((false, &comparison.output)).filter(|_| !heals(module));
            for (is_input, difference) in input.chain(output) {
                events.push(Event { module, is_input, difference, before });
                before = before.max(difference.relative());
            }
        }
        events
    }

    fn blame(&self, event: &Event<'_>) -> Culprit {
        let module = &self.compared[event.module];
        let earlier = &self.compared[..event.module];
        let mut culprit = Culprit {
            name: module.name.clone(),
            fault: Fault::Module,
            difference: event.difference.largest,
            before: module.input.map(|input| input.largest),
            place: module.place.clone(),
            notes: Vec::new(),
        };
        if !event.is_input && !module.is_round {
            return culprit;
        }
        let previous = earlier.iter().rev().find(|other| !other.is_round);
        culprit.before = Some(event.before);
        let same_block = |other: &&ModuleComparison| !other.is_round && other.block == module.block;
        if !event.is_input {
            culprit.fault = Fault::Layer;
            culprit.place = module.before.clone().or_else(|| module.block.clone());
        } else if let Some(other) = earlier.iter().rev().find(same_block) {
            culprit.fault = Fault::Block;
            culprit.place = module.block.clone();
            culprit.notes.push(format!("between `{}`, which agrees, and `{}`", other.name, module.name));
        } else if let Some((other, taker)) = self.entrance(previous, module) {
            culprit.fault = Fault::Block;
            culprit.place = module.block.clone();
            let note = format!("between `{other}`, which takes what `{taker}` takes, and `{}`", module.name);
            culprit.notes.push(note);
        } else if !module.alike.is_empty() {
            culprit.fault = Fault::Input;
            let takers = module.alike.join("`, `");
            culprit.notes.push(format!("what it takes here goes to `{takers}` in the reference"));
        } else {
            culprit.fault = Fault::StepBefore;
            culprit.place = module.before.clone().or_else(|| module.block.clone());
            culprit.notes.extend(module.place.as_ref().map(|p| {
                format!(
                    "`{}` takes what it gives: {}:{}:{} ({})",
                    module.name, p.file, p.line, p.column, p.label
                )
            }));
        }
        if let (Fault::StepBefore | Fault::Input | Fault::Layer, Some(previous)) = (culprit.fault, previous) {
            culprit.notes.push(format!("`{}` is the last module before that agrees", previous.name));
        }
        let missed = self.missed(previous, module);
        if !missed.is_empty() {
            culprit.notes.push(format!("the reference has `{}` between them", missed.join("`, `")));
        }
        culprit
    }

    /// A module of the block of `module` that is called before it, with one that takes the same in the reference, where both have
    /// other names: with `previous` in agreement the block is given the right thing.
    fn entrance(
        &self,
        previous: Option<&ModuleComparison>,
        module: &ModuleComparison,
    ) -> Option<(&str, &str)> {
        let between = self.missed(previous, module);
        self.unmatched.iter().find_map(|other| {
            let is_before = other.block == module.block && other.position < module.position;
            let taker = between.iter().find(|name| other.alike.iter().any(|alike| alike == *name));
            Some((other.name.as_str(), *taker.filter(|_| is_before)?))
        })
    }

    /// Modules without parts that the reference calls between two others, and smelt does not.
    fn missed(&self, from: Option<&ModuleComparison>, to: &ModuleComparison) -> Vec<&str> {
        let from = from.and_then(|module| module.calls).map_or(0, |(first, _)| first);
        let Some((to, _)) = to.calls else { return Vec::new() };
        let has_parts = |name: &str| self.recorded_calls.keys().any(|other| is_part(other, name));
        let called = |name: &&String| self.recorded_calls.get(*name).is_some_and(|n| from < *n && *n < to);
        self.only_recorded.iter().filter(called).map(String::as_str).filter(|name| !has_parts(name)).collect()
    }
}

fn sharpest<'e, 't>(events: &'e [Event<'t>]) -> Option<&'e Event<'t>> {
    // Of equal ones the first.
    events.iter().reduce(|best, event| if event.rise() > best.rise() { event } else { best })
}

/// Places of a description, each looked up once.
struct Places<'s> {
    source: &'s Source,
    known: BTreeMap<Address, Option<Place>>,
}

impl Places<'_> {
    /// The block that a call belongs to.
    fn block(&mut self, call: &ModuleCall) -> Option<Place> {
        self.find(&call.step.at.key(), &in_layer(call, &format!("`{}`", call.step.block)))
    }

    fn find(&mut self, at: &Address, label: &str) -> Option<Place> {
        let found = self.known.entry(at.clone()).or_insert_with(|| self.source.place(at));
        found.clone().map(|place| Place { excerpt: None, label: label.to_owned(), ..place })
    }

    /// A step, by the entry that names it.
    fn step(&mut self, at: &Address) -> Option<Place> {
        let path = at.path(&self.source.tree);
        let name = path.rsplit('.').next().unwrap_or_default();
        self.find(&at.key(), &format!("`{name}`"))
    }
}

/// Whether the tensor is the output of a module.
fn is_output(tensor: &str) -> bool {
    recorded_name(tensor).is_some()
}

/// The module whose output the tensor is.
fn recorded_name(tensor: &str) -> Option<&str> {
    tensor.strip_prefix("module.")?.strip_suffix(".output")
}
