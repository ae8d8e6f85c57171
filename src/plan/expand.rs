//! A description with a config, to blocks: conditions decided, loops unrolled, shapes computed.

use std::collections::HashSet;

use super::blocks::{Attempts, PlannedBlock, Within};
use super::rounds::Kinds;
use crate::nn::combinators::{Product, Repeat, Residual, Sequence, Sum};
use crate::nn::{self, Block, Builder, Built, KnownValue, PlannedValue, Rows, Shape, TensorId, ValueId};
use crate::spec::{Address, Head, Item, Spec, Step, Tree};

/// Most layers of one loop.
pub(crate) const MAX_REPEAT: usize = 4096;

/// Most steps that wait for each other: those inside of a step, and those of the values that it needs.
pub(super) const MAX_DEPTH: usize = 128;

/// Most blocks of a model, loops unrolled.
const MAX_BLOCKS: usize = 100_000;

/// Builds the values of a description that somebody asks for, and those that they need.
pub struct Expander<'s, 'b> {
    spec: &'s Spec,
    head: Option<&'s Head>,
    /// Where blocks declare what they need.
    pub builder: Builder<'b>,
    /// Whether of the rounds of a loop that are alike a few are enough.
    pub few: bool,
    values: Vec<Option<PlannedValue>>,
    /// Names of the values that are being built, to find circles.
    pub(super) open: Vec<String>,
    /// Names of values that could not be built: what is wrong with them is known.
    failed: HashSet<String>,
    blocks: usize,
    depth: usize,
    /// Blocks of the value that is being built.
    pub(super) recorded: Vec<PlannedBlock>,
    /// Blocks of all values, what another value needs before it.
    done: Vec<PlannedBlock>,
    /// The combinators around the block that is being built.
    pub(super) within: Vec<Within>,
    combinators: usize,
}

impl<'s, 'b> Expander<'s, 'b> {
    /// Nothing built yet.
    pub fn new(spec: &'s Spec, head: Option<&'s Head>, builder: Builder<'b>) -> Self {
        Expander {
            spec,
            head,
            builder,
            few: false,
            values: Vec::new(),
            open: Vec::new(),
            failed: HashSet::new(),
            blocks: 0,
            depth: 0,
            recorded: Vec::new(),
            done: Vec::new(),
            within: Vec::new(),
            combinators: 0,
        }
    }

    /// Goes on with the values of another head, with the values of the model that are there already.
    pub fn turn_to(&mut self, head: &'s Head) {
        for value in self.head.iter().flat_map(|head| &head.values) {
            self.builder.values.remove(&value.name);
            // Heads may have tensors of the same name and other shapes.
            for block in self.done.iter().filter(|block| block.value == value.name) {
                for i in block.indices(|ranges| &ranges.tensors) {
                    self.builder.forget(TensorId(i));
                }
            }
        }
        self.head = Some(head);
        // What the model's values lack, another head may have.
        self.failed.clear();
        self.blocks = 0;
    }

    /// The values that were built, what they declared, and their blocks.
    pub fn finish(self) -> (Vec<PlannedValue>, nn::Declared, Vec<PlannedBlock>) {
        (self.values.into_iter().flatten().collect(), self.builder.declared, self.done)
    }

    /// Builds a value, unless it is built already; `at` is where it is asked for.
    pub fn value(&mut self, name: &str, at: &Address) -> Option<(ValueId, Shape)> {
        if let Some(known) = self.builder.values.get(name) {
            return Some((known.id, known.shape));
        }
        if self.failed.contains(name) {
            return None;
        }
        let of_head = self.head.iter().flat_map(|head| &head.values);
        let Some(value) = self.spec.values.iter().chain(of_head).find(|v| v.name == name) else {
            self.builder.problem(at, format!("unknown value `{name}`"));
            return None;
        };
        if self.open.iter().any(|open| open == name) {
            let way: Vec<&str> = self.open.iter().map(String::as_str).collect();
            self.builder.problem(at, circle(&way, name));
            return None;
        }
        self.open.push(name.to_owned());
        let id = ValueId(self.values.len());
        self.values.push(None);
        // A value stands by itself: neither path nor index of where it was asked for hold in it.
        let path = std::mem::take(&mut self.builder.path);
        let loops = std::mem::take(&mut self.builder.loops);
        let before = self.builder.before.take();
        let scope = self.builder.scope.clone();
        let outer: Vec<&str> = self.spec.config.iter().map(|b| b.name.as_str()).collect();
        self.builder.scope.retain(|name| outer.contains(&name));
        let within = std::mem::take(&mut self.within);
        let recorded = std::mem::take(&mut self.recorded);
        let others = std::mem::take(&mut self.builder.declared.streams);
        let built = self.sequence(&value.body, None, Some(id), &value.at);
        self.within = within;
        self.done.extend(std::mem::replace(&mut self.recorded, recorded));
        let streams = self.builder.declared.streams.clone();
        self.builder.declared.streams.extend(others);
        self.builder.scope = scope;
        self.builder.path = path;
        self.builder.loops = loops;
        self.builder.before = before;
        self.open.pop();
        let Some((body, shape)) = built else {
            self.failed.insert(name.to_owned());
            return None;
        };
        let known = KnownValue { id, shape, streams: streams.clone() };
        self.values[id.0] = Some(PlannedValue { name: name.to_owned(), body, shape, streams });
        self.builder.values.insert(name.to_owned(), known);
        Some((id, shape))
    }

    /// Builds steps one after another. `value` is the value whose layers the loops among them are, if they are.
    fn sequence(
        &mut self,
        items: &'s [Item],
        input: Option<Shape>,
        value: Option<ValueId>,
        at: &Address,
    ) -> Built {
        let mut blocks = Vec::new();
        let mut shape = input;
        let mut failed = false;
        for item in items {
            self.count_step(&item.at)?;
            match self.included(&item.when) {
                Some(true) => {}
                Some(false) => continue,
                None => {
                    failed = true;
                    continue;
                }
            }
            self.depth += 1;
            let built = self.item(item, shape, value);
            self.depth -= 1;
            match built {
                Some((block, next)) => {
                    if let Shape::Matrix { cols, .. } = next {
                        self.builder.note_width(cols);
                    }
                    blocks.push(block);
                    shape = Some(next);
                    self.builder.before = Some(item.at.clone());
                }
                // What keeps the shape of its input is passed over, to find what else is wrong.
                None if shape.is_some() && keeps_shape(&item.step) && self.blocks <= MAX_BLOCKS => {
                    failed = true
                }
                None => return None,
            }
        }
        if failed {
            return None;
        }
        match shape {
            Some(shape) => Some((Sequence::of(blocks), shape)),
            None => {
                self.builder.problem(at, "a sequence without blocks");
                None
            }
        }
    }

    /// What a `when` says.
    pub fn included(&mut self, when: &Option<(Tree, Address)>) -> Option<bool> {
        let Some((tree, at)) = when else { return Some(true) };
        match self.builder.evaluate(tree, at)? {
            Tree::Bool(included) => Some(included),
            other => {
                self.builder.wrong_value(at, format!("expected `when` to be true or false, found `{other}`"));
                None
            }
        }
    }

    /// Counts what takes time, whether it becomes a block or not; none if it is too much.
    fn count_step(&mut self, at: &Address) -> Option<()> {
        self.blocks += 1;
        if self.blocks > MAX_BLOCKS {
            self.builder.problem(at, format!("more than {MAX_BLOCKS} blocks"));
            return None;
        }
        Some(())
    }

    fn item(&mut self, item: &'s Item, input: Option<Shape>, value: Option<ValueId>) -> Built {
        if self.depth > MAX_DEPTH {
            self.builder.problem(&item.at, format!("more than {MAX_DEPTH} steps that wait for each other"));
            return None;
        }
        match &item.step {
            Step::Residual(body) => {
                self.builder.block = "residual".into();
                self.builder.matrix(input, &item.at)?;
                let id = self.combinator();
                let built = self.inside("residual", id, 0, |this| this.sequence(body, input, None, &item.at));
                let (body, shape) = built?;
                self.same(input?, shape, "`residual` adds its input", &item.at.key())?;
                Some((Box::new(Residual(body)), shape))
            }
            Step::Sum(branches) => {
                let (branches, shape) = self.branches("sum", branches, input, &item.at)?;
                Some((Box::new(Sum(branches)), shape))
            }
            Step::Product(branches) => {
                let (branches, shape) = self.branches("product", branches, input, &item.at)?;
                Some((Box::new(Product(branches)), shape))
            }
            Step::Repeat { count, path, index, body } => {
                let n = self.count(&count.0, &count.1)?;
                let mut shape = input;
                let mut layers = Vec::new();
                let mut rounds = Vec::new();
                let id = self.combinator();
                // Of a loop inside of another all rounds count: its numbers may tell parts of a layer apart.
                let may_skip = self.few && self.builder.loops.is_empty();
                let mut kinds = may_skip.then(|| Kinds::new(path, body, index));
                for i in 0..n {
                    self.count_step(&item.at)?;
                    let outer = self.builder.scope.clone();
                    self.builder.scope.insert(index.clone(), Tree::Int(i as i64));
                    if kinds.as_mut().is_some_and(|kinds| kinds.have_enough(&self.builder.scope)) {
                        self.builder.scope = outer;
                        continue;
                    }
                    self.builder.loops.push((i, n));
                    let prefix = self.builder.path.clone();
                    let layer =
                        self.inside("repeat", id, 0, |this| this.layer(path.as_ref(), body, shape, &item.at));
                    if let Some((_, at)) = path {
                        self.builder.block = "repeat".into();
                        self.builder.step = item.at.clone();
                        rounds.push(self.builder.round(at));
                    }
                    self.builder.path = prefix;
                    self.builder.loops.pop();
                    self.builder.scope = outer;
                    let (layer, next) = layer?;
                    if let Some(shape) = shape {
                        self.same(
                            shape,
                            next,
                            "each round of `repeat` takes what the last one gave",
                            &item.at.key(),
                        )?;
                    }
                    layers.push(layer);
                    shape = Some(next);
                }
                self.builder.block = "repeat".into();
                self.builder.matrix(shape, &item.at)?;
                Some((Box::new(Repeat { layers, value, rounds }), shape?))
            }
            Step::Block { name, fields } => self.block(name, fields, &item.at, input),
        }
    }

    /// Builds the branches of `sum` or `product`, with the shape of what they make together.
    fn branches(
        &mut self,
        kind: &'static str,
        branches: &'s [Vec<Item>],
        input: Option<Shape>,
        at: &Address,
    ) -> Option<(Vec<Box<dyn Block>>, Shape)> {
        let mut built = Vec::new();
        let mut all: Option<Shape> = None;
        let mut failed = false;
        let before = self.builder.before.clone();
        let id = self.combinator();
        for (i, branch) in branches.iter().enumerate() {
            self.builder.before = before.clone();
            let at = at.child(i);
            self.count_step(&at)?;
            let first = branch.iter().find(|item| self.included(&item.when) != Some(false));
            // A branch of which nothing is included is none.
            if first.is_none() && !branch.is_empty() {
                branch.iter().try_for_each(|item| self.count_step(&item.at))?;
                continue;
            }
            // A branch may begin by itself.
            let input = input.filter(|_| !first.is_some_and(is_source));
            let branch = self.inside(kind, id, i, |this| this.sequence(branch, input, None, &at));
            let Some((branch, shape)) = branch else {
                failed = true;
                continue;
            };
            match (all.get_or_insert(shape), shape) {
                // One column counts for all.
                (Shape::Matrix { rows, cols }, Shape::Matrix { rows: found, cols: others })
                    if kind == "product" && *rows == found && (*cols == 1 || others == 1) =>
                {
                    *cols = others.max(*cols);
                }
                (expected, _) => {
                    let why = if kind == "sum" { "`sum` adds" } else { "`product` multiplies" };
                    self.same(*expected, shape, &format!("{why} its branches"), &at)?;
                }
            }
            built.push(branch);
        }
        if all.is_none() && !failed {
            self.builder.problem(at, no_branches(kind));
        }
        all.filter(|_| !failed).map(|shape| (built, shape))
    }

    /// A number for a combinator, to tell it from others.
    fn combinator(&mut self) -> usize {
        self.combinators += 1;
        self.combinators
    }

    /// Builds what a combinator is around.
    fn inside<T>(
        &mut self,
        kind: &'static str,
        id: usize,
        branch: usize,
        build: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.within.push(Within { kind, id, branch });
        let built = build(self);
        self.within.pop();
        built
    }

    fn count(&mut self, tree: &Tree, at: &Address) -> Option<usize> {
        let count = self.builder.evaluate(tree, at)?;
        rounds(&count).map_err(|message| self.builder.wrong_value(at, message)).ok()
    }

    fn layer(
        &mut self,
        path: Option<&(Tree, Address)>,
        body: &'s [Item],
        input: Option<Shape>,
        at: &Address,
    ) -> Built {
        if let Some((path, at)) = path {
            match self.builder.evaluate(path, at)? {
                Tree::Text(path) => self.builder.path = self.builder.join(&path),
                other => {
                    self.builder.wrong_value(at, format!("expected a path, found `{other}`"));
                    return None;
                }
            }
        }
        self.sequence(body, input, None, at)
    }

    fn block(&mut self, name: &str, fields: &Tree, at: &Address, input: Option<Shape>) -> Built {
        let definition = nn::block(name)?; // an unknown one is reported already
        let mut attempts = Attempts::default();
        loop {
            self.builder.step = at.clone();
            self.begin(&mut attempts);
            let built = (definition.build)(&mut self.builder, fields, at, input);
            self.end(&mut attempts);
            match self.builder.wanted.take() {
                // The block refers to a value that is not built yet: build it first.
                Some(wanted) if built.is_none() => self.value(&wanted.name, &wanted.at)?,
                _ => {
                    if let Some((_, output)) = &built {
                        self.record(attempts, definition, (fields, at), (input, *output));
                    }
                    return built;
                }
            };
        }
    }

    fn same(&mut self, expected: Shape, found: Shape, why: &str, at: &Address) -> Option<()> {
        if expected == found {
            return Some(());
        }
        let message = format!("{why}: expected {}, found {}", describe(expected), describe(found));
        self.builder.problem(at, message);
        None
    }
}

/// How often a `repeat` goes round. The error says what is wrong.
pub(super) fn rounds(count: &Tree) -> Result<usize, String> {
    match count {
        Tree::Int(n) if (0..=MAX_REPEAT as i64).contains(n) => Ok(*n as usize),
        other => Err(format!("expected to repeat 0 to {MAX_REPEAT} times, found {}", other.quoted())),
    }
}

/// What is said of a `sum` or `product` that has none.
pub(super) fn no_branches(kind: &str) -> String {
    format!("`{kind}` without branches")
}

/// What is said of a value that needs itself: `way` leads to it.
pub(super) fn circle(way: &[&str], name: &str) -> String {
    let circle = way.iter().skip_while(|other| **other != name).map(|other| format!("`{other}` needs "));
    format!("values need each other: {}`{name}`", circle.collect::<String>())
}

/// Whether a step that can be built gives a matrix of the shape that it takes.
fn keeps_shape(step: &Step) -> bool {
    match step {
        Step::Residual(_) | Step::Repeat { .. } => true,
        Step::Sum(_) | Step::Product(_) => false,
        Step::Block { name, .. } => nn::block(name).is_some_and(|block| block.keeps_shape),
    }
}

/// Whether a step takes no input.
fn is_source(item: &Item) -> bool {
    matches!(&item.step, Step::Block { name, .. } if nn::block(name).is_some_and(|block| block.is_source))
}

fn describe(shape: Shape) -> String {
    match shape {
        Shape::Matrix { rows: Rows::Tokens(_), cols } => format!("{cols} columns per token"),
        Shape::Matrix { rows: Rows::Fixed(_, n), cols } => format!("{n} rows of {cols} columns"),
        Shape::Matrix { rows: Rows::Patches(_, 0), cols } => format!("{cols} columns per patch"),
        Shape::Matrix { rows: Rows::Patches(_, n), cols } => {
            format!("{cols} columns per patch, and {n} rows before them")
        }
        Shape::Matrix { rows: Rows::Sequences(_), cols } => format!("{cols} columns per sequence"),
        Shape::Matrix { rows: Rows::Learned(n), cols } => format!("{n} learned rows of {cols} columns"),
        Shape::Bias { heads, .. } => format!("a position bias for {heads} heads"),
        Shape::Pairs { .. } => "the result of `similarity`".into(),
    }
}
