//! The files of `src/`, `core/` and `lab/` import each other in one direction. What a part of a module takes from that
//! module, or the module from its parts, is within one module and not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A crate: its modules by path, each with the text of its file.
struct Crate {
    root: PathBuf,
    modules: BTreeMap<Vec<String>, String>,
}

type Module = Vec<String>;

impl Crate {
    fn read(root: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
        let mut modules = BTreeMap::new();
        read_modules(&root, &mut vec![], &mut modules);
        Self { root, modules }
    }

    /// The module that a path leads to, from `from`; `None` outside of the crate.
    fn resolve(&self, from: &Module, path: &[&str], depth: usize) -> Option<Module> {
        // A re-export of itself ends here.
        if depth > 8 {
            return None;
        }
        let mut at = from.clone();
        let mut segments = path.iter();
        let mut entered = false;
        for segment in segments.by_ref() {
            match *segment {
                "crate" => at = vec![],
                "self" => {}
                "super" => drop(at.pop()?),
                name => {
                    let child = [at.clone(), vec![name.to_owned()]].concat();
                    if self.modules.contains_key(&child) {
                        at = child;
                    } else if entered {
                        return Some(self.exported(&at, name, depth).unwrap_or(at));
                    } else {
                        return None;
                    }
                }
            }
            entered = true;
        }
        Some(at)
    }

    /// Where `module` has the name from that it hands on.
    fn exported(&self, module: &Module, name: &str, depth: usize) -> Option<Module> {
        let uses = imports(&self.modules[module]);
        let public = uses.iter().filter(|(public, _)| *public);
        let mut named = public.filter(|(_, path)| path.last().is_some_and(|last| last == name));
        let (_, path) = named.next()?;
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        self.resolve(module, &path, depth + 1)
    }

    /// Which modules take something of which others.
    fn arrows(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let taken = |(module, text): (_, &String)| {
            let of = imports(text).into_iter().filter_map(|(_, path)| {
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                self.resolve(module, &path, 0)
            });
            let beside = of.filter(|other: &Module| {
                !other.is_empty() && !module.starts_with(other) && !other.starts_with(module)
            });
            (module, beside.collect())
        };
        self.modules.iter().map(taken).collect()
    }
}

fn read_modules(folder: &Path, module: &mut Module, modules: &mut BTreeMap<Module, String>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            module.push(name);
            read_modules(&path, module, modules);
            module.pop();
        } else if path.extension().is_some_and(|e| e == "rs") {
            let own = match name.as_str() {
                "lib" | "main" | "mod" => module.clone(),
                _ => [module.clone(), vec![name]].concat(),
            };
            modules.insert(own, fs::read_to_string(&path).unwrap());
        }
    }
}

/// The paths that the `use` declarations of a file name, without those of its tests, and whether each is public.
fn imports(text: &str) -> Vec<(bool, Vec<String>)> {
    let code = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    let mut found = vec![];
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let (public, rest) = match line.trim_start() {
            line if line.starts_with("pub") => match line.split_once("use ") {
                Some((before, rest)) if !before.contains("fn ") => (true, rest.to_owned()),
                _ => continue,
            },
            line => match line.strip_prefix("use ") {
                Some(rest) => (false, rest.to_owned()),
                None => continue,
            },
        };
        let mut tree = rest;
        while !tree.contains(';') {
            tree += lines.next().unwrap_or(";");
        }
        let tree: String = tree.split(';').next().unwrap_or_default().to_owned();
        expand(&[], tree.trim(), public, &mut found);
    }
    found
}

/// `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(before: &[String], tree: &str, public: bool, found: &mut Vec<(bool, Vec<String>)>) {
    let tree = tree.trim();
    if let Some(group) = tree.strip_prefix('{') {
        let group = group.strip_suffix('}').unwrap_or(group);
        let (mut depth, mut begin) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(before, &group[begin..at], public, found);
                    begin = at + 1;
                }
                _ => {}
            }
        }
        expand(before, &group[begin..], public, found);
        return;
    }
    match tree.split_once("::") {
        Some((first, rest)) => {
            let before = [before, &[first.trim().to_owned()]].concat();
            expand(&before, rest, public, found);
        }
        None if tree.is_empty() => {}
        None => {
            let name = tree.split(" as ").next().unwrap_or_default();
            let mut path = before.to_vec();
            if name != "self" && name != "*" {
                path.push(name.to_owned());
            }
            found.push((public, path));
        }
    }
}

/// A way from `start` back to itself.
fn circle<'m>(
    arrows: &'m BTreeMap<&Module, BTreeSet<Module>>,
    start: &'m Module,
) -> Option<Vec<&'m Module>> {
    let mut ways = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in arrows.get(way[way.len() - 1]).into_iter().flatten() {
            if next == start {
                return Some(way);
            }
            if seen.insert(next) {
                ways.push([way.clone(), vec![next]].concat());
            }
        }
    }
    None
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for root in ["../src", "src", "../lab/src"] {
        let read = Crate::read(root);
        let arrows = read.arrows();
        let count: usize = arrows.values().map(BTreeSet::len).sum();
        assert!(count > 5, "only {count} imports in {}", read.root.display());
        let shown = |way: Vec<&Module>| {
            let way: Vec<String> = way.iter().map(|m| m.join("::")).collect();
            way.join(" -> ")
        };
        let circles: Vec<String> = read
            .modules
            .keys()
            .filter_map(|module| circle(&arrows, module))
            .map(shown)
            .collect();
        assert!(circles.is_empty(), "{root}:\n{}", circles.join("\n"));
    }
}

/// The folders of `src/` as docs/internals.md has them, those above first; what stands together has one number.
fn drawn() -> BTreeMap<String, usize> {
    let internals = include_str!("../../docs/internals.md");
    let begin = "Dependencies point one way: ";
    let line = internals.lines().find_map(|line| line.strip_prefix(begin));
    let line = line.expect("docs/internals.md says how dependencies point");
    let (ways, _) = line.split_once(", and all").expect("on what all depend");
    let floors = ways.split('→').enumerate();
    floors
        .flat_map(|(floor, names)| names.split(',').map(move |name| (name, floor)))
        .map(|(name, floor)| (name.trim().trim_matches('`').to_owned(), floor))
        .collect()
}

#[test]
fn folders_depend_on_each_other_as_drawn() {
    let floors = drawn();
    assert!(floors.len() > 6, "{floors:?}");
    let read = Crate::read("../src");
    let mut between: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, taken) in read.arrows() {
        for other in taken {
            let (Some(from), Some(to)) = (module.first(), other.first()) else {
                continue;
            };
            if from == to {
                continue;
            }
            let (Some(above), Some(below)) = (floors.get(from), floors.get(to)) else {
                continue;
            };
            let (module, other) = (module.join("::"), other.join("::"));
            assert!(above <= below, "{module} imports {other}");
            let of = between.entry(vec![from.clone()]).or_default();
            of.insert(vec![to.clone()]);
        }
    }
    let arrows = between
        .iter()
        .map(|(from, to)| (from, to.clone()))
        .collect();
    for folder in between.keys() {
        let way = circle(&arrows, folder);
        assert!(way.is_none(), "{way:?}");
    }
}

#[test]
fn imports_are_read_as_rust_reads_them() {
    let text = "use crate::a::{self, b::{C, d as e}, F};\npub use g::*;\nfn use_it() {}\n\
                #[cfg(test)]\nmod tests { use super::*; }";
    let read: Vec<String> = imports(text)
        .into_iter()
        .map(|(public, path)| format!("{}{}", if public { "pub " } else { "" }, path.join("::")))
        .collect();
    let wanted = [
        "crate::a",
        "crate::a::b::C",
        "crate::a::b::d",
        "crate::a::F",
        "pub g",
    ];
    assert_eq!(read, wanted);
}
