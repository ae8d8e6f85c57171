//! Norms, tables and poolers outside of layers that a description does not have.

use super::adapt::Candidate;
use super::edit::{get_mut, set, stem, value_mut};
use super::fit::View;
use super::patterns::Pattern;
use super::places::{is_norm, path_of_norm, sequence};
use super::print::{NOTE, yaml};
use super::sizes::size;
use crate::spec::{Address, Tree};

impl Candidate {
    /// Norms and tables outside of layers.
    pub(super) fn outside(&mut self, view: &View) -> usize {
        for free in view.free.iter().filter(|p| p.layers.is_empty() && !p.name.ends_with(".bias")) {
            let path = stem(&free.name).to_owned();
            let lower = path.to_lowercase();
            if lower.contains("pool")
                && free.shape.len() == 2
                && free.shape[0] == free.shape[1]
                && self.pooler(&path)
            {
                return 1;
            }
            if lower.ends_with("token") && !self.ignores(&free.name) && prepend(&mut self.tree, &path) {
                return 1;
            }
            let Some(repeat) = self.stack(&path) else { continue };
            if is_norm(free) {
                let is_first = lower.contains("emb");
                let place = if is_first { "behind the embeddings" } else { "behind the last layer" };
                let new =
                    self.norm_block(view, free, &path, format!("`{path}` is stored: by its name, {place}"));
                let Some((items, at)) = sequence(&mut self.tree, &repeat) else { continue };
                let neighbour = if is_first { at.checked_sub(1) } else { Some(at + 1) };
                if neighbour.and_then(|i| items.get(i)).and_then(path_of_norm).is_some() {
                    continue;
                }
                items.insert(if is_first { at } else { at + 1 }, new);
                self.lost += 0.25;
                return 1;
            }
            let decodes = self.decodes(&repeat);
            let of = match &lower {
                name if decodes && name.contains("pos") => "decoder_positions",
                name if name.contains("pos") || name.ends_with("wpe") => "positions",
                name if name.contains("type") => "type_ids",
                _ => continue,
            };
            if free.shape.len() == 2 && self.embedding(view, free, &path, of, &repeat) {
                self.lost += 0.5;
                return 1;
            }
        }
        0
    }

    /// A map of the first row, which is all that other descriptions do with one of that name.
    fn pooler(&mut self, path: &str) -> bool {
        let Some(model) = get_mut(&mut self.tree, "model") else { return false };
        if model.get("hidden").is_none() || yaml(model).contains(path) {
            return false;
        }
        let block = |name: &str, value: Tree| Tree::Map(vec![(name.to_owned(), value)]);
        let map = Tree::Map(vec![
            ("at".into(), Tree::Text(path.into())),
            ("out".into(), Tree::Text("$hidden".into())),
            (NOTE.into(), Tree::Text(format!("a guess: `{path}` maps the first row"))),
        ]);
        let pooled = vec![
            block("from", Tree::Text("hidden".into())),
            block("pool", Tree::Text("first".into())),
            block("linear", map),
            block("activation", Tree::Text("tanh".into())),
        ];
        set(model, "pooled", Tree::List(pooled));
        let features = get_mut(&mut self.tree, "heads").and_then(|heads| get_mut(heads, "features"));
        if let Some(Tree::List(outputs)) = features.and_then(|head| get_mut(head, "outputs"))
            && !outputs.iter().any(|x| x.as_text() == Some("pooled"))
        {
            outputs.push(Tree::Text("pooled".into()));
        }
        true
    }

    /// Whether the loop at a place is that of a decoder beside an encoder.
    fn decodes(&self, repeat: &[usize]) -> bool {
        let mut here = Address::root();
        repeat[..repeat.len() - 1].iter().for_each(|i| here = here.child(*i));
        let sequence = here.value(&self.tree).cloned().unwrap_or(Tree::Null);
        yaml(&Tree::Map(vec![("x".into(), sequence)])).contains("decoder_token_ids")
    }

    /// Whether the description says that a tensor does not matter.
    fn ignores(&self, name: &str) -> bool {
        let ignored = self.tree.get("weights").and_then(|weights| weights.get("ignore"));
        matches!(ignored, Some(Tree::List(items)) if items.iter().any(|x| x.as_text() == Some(name)))
    }

    /// The steps to the loop over layers that a path outside of layers belongs to.
    fn stack(&self, path: &str) -> Option<Vec<usize>> {
        let Tree::Map(sections) = &self.tree else { return None };
        let model = sections.iter().position(|(key, _)| key == "model")?;
        let mut found = Vec::new();
        for (v, (_, value)) in sections[model].1.entries().iter().enumerate() {
            let Tree::List(items) = value else { continue };
            for (i, item) in items.iter().enumerate().filter(|(_, item)| item.get("repeat").is_some()) {
                let at = item.get("at").and_then(Tree::as_text).unwrap_or_default();
                found.push((at.split('.').next() == path.split('.').next(), vec![model, v, i]));
            }
        }
        let same = found.iter().position(|(same, _)| *same);
        let only = if found.len() == 1 { Some(0) } else { None };
        Some(found.swap_remove(same.or(only)?).1)
    }

    /// Adds a table to the embeddings that the layers begin with.
    fn embedding(&mut self, view: &View, table: &Pattern, path: &str, of: &str, repeat: &[usize]) -> bool {
        let named = (0..=2).find_map(|extra| {
            let is_it = |v: &Tree| size(v).is_some_and(|n| n + extra == table.shape[0]);
            let is_guess = |name: &String| view.values.guessed.iter().any(|(guess, _)| guess == name);
            let mut names = view.values.scope.iter().filter(|(name, v)| is_it(v) && !is_guess(name));
            names.next().map(|(name, _)| (name, extra))
        });
        let is_computed = value_mut(&mut self.tree, &repeat[..repeat.len() - 1]).is_some_and(|sequence| {
            yaml(&Tree::Map(vec![("x".into(), sequence.clone())])).contains("sinusoidal")
        });
        // A table that could as well be computed is ignored; one with more rows is learned.
        if is_computed && !matches!(named, Some((_, 1..))) {
            return false;
        }
        let extra = named.map_or(0, |(_, extra)| extra);
        let used = self.keys();
        let key = view.config.entries().iter().find(|(key, v)| {
            size(v) == Some(table.shape[0]) && !used.contains(key) && !key.contains("token")
        });
        let bound = if of.ends_with("positions") { "positions" } else { "types" };
        let (rows, new_key) = match (named, key) {
            (Some((name, 0)), _) => (Tree::Text(format!("${name}")), None),
            (Some((name, extra)), _) => (Tree::Text(format!("${{{name} + {extra}}}")), None),
            (None, Some((key, _))) => (Tree::Text(format!("${bound}")), Some(key.clone())),
            _ => (Tree::Int(i64::try_from(table.shape[0]).unwrap_or(i64::MAX)), None),
        };
        let Some((items, at)) = sequence(&mut self.tree, repeat) else { return false };
        let Some(place) =
            items[..at].iter().position(|x| x.get("embedding").is_some() || x.get("sum").is_some())
        else {
            return false;
        };
        let mut fields =
            vec![("at".to_owned(), Tree::Text(path.into())), ("of".into(), Tree::Text(of.into()))];
        fields.push(("rows".into(), rows));
        if let Some(width) = items[place].get("embedding").and_then(|e| e.get("width")) {
            fields.push(("width".into(), width.clone()));
        }
        if extra > 0 {
            fields.push(("offset".into(), Tree::Int(extra as i64)));
        }
        fields.push((NOTE.into(), Tree::Text(format!("`{path}` {:?} is stored", table.shape))));
        let new = Tree::Map(vec![("embedding".into(), Tree::Map(fields))]);
        match get_mut(&mut items[place], "sum") {
            Some(Tree::List(branches)) => {
                branches.retain(|branch| branch.get("sinusoidal").is_none());
                branches.push(new);
            }
            Some(_) => return false,
            None => {
                let old = items[place].clone();
                items[place] = Tree::Map(vec![("sum".into(), Tree::List(vec![old, new]))]);
            }
        }
        if let (Some(key), Some(Tree::Map(entries))) = (new_key, get_mut(&mut self.tree, "config")) {
            entries.retain(|(name, _)| name != bound);
            entries.push((bound.into(), Tree::Text(key)));
        }
        if of.ends_with("positions") {
            drop_field(&mut self.tree, "rope");
        }
        true
    }
}

/// Adds a row before the others, where there is one already.
fn prepend(tree: &mut Tree, path: &str) -> bool {
    match tree {
        Tree::Map(entries) => entries.iter_mut().any(|(key, value)| match (key.as_str(), &mut *value) {
            ("prepend", Tree::Text(first)) => {
                *value = Tree::List(vec![Tree::Text(first.clone()), Tree::Text(path.to_owned())]);
                true
            }
            _ => prepend(value, path),
        }),
        Tree::List(items) => items.iter_mut().any(|x| prepend(x, path)),
        _ => false,
    }
}

/// Removes a field wherever it is.
fn drop_field(tree: &mut Tree, field: &str) {
    match tree {
        Tree::Map(entries) => {
            entries.retain(|(key, _)| key != field);
            entries.iter_mut().for_each(|(_, x)| drop_field(x, field));
        }
        Tree::List(items) => items.iter_mut().for_each(|x| drop_field(x, field)),
        _ => {}
    }
}
