//! What belongs to one engine stands in its folder: `src/engine/spock/` and `src/engine/native/`. Everything else asks the
//! engine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Words of an engine: its schema in SQL, its slots, its name, its output plugin, the catalogs of its subscriptions.
const WORDS: [&str; 8] = [
    "spock.",
    "spk_",
    "'spock'",
    "\"spock\"",
    "Spock",
    "pgoutput",
    "spock_output",
    "pg_subscription",
];

/// Where such a word has to stand outside of the folders, and why.
const EXCEPTIONS: &[(&str, &[&str], &str)] = &[
    (
        "src/engine/mod.rs",
        &["\"spock\"", "spock.", "Spock"],
        "chooses the engine",
    ),
    (
        "src/engine/contract/",
        &["Spock"],
        "tells implementers what differs",
    ),
    (
        "src/replay/source.rs",
        &["Spock", "spock_output", "pgoutput"],
        "reads the messages of every output plugin",
    ),
    (
        "src/replay/statements.rs",
        &["\"spock\""],
        "a test leaves out a schema",
    ),
    (
        "src/node/server/facts.sql",
        &["pg_subscription"],
        "counts the workers of a server, whatever is on it",
    ),
    (
        "src/node/server/subscriptions.rs",
        &["pg_subscription"],
        "PostgreSQL's own subscriptions, of any cluster or none",
    ),
    (
        "src/environment.rs",
        &["Spock", "spock."],
        "every session of ours has these settings before anybody knows the engine",
    ),
    (
        "src/workflow/readers.rs",
        &["Spock"],
        "a refusal names both engines",
    ),
    (
        "src/workflow/division.rs",
        &["Spock"],
        "a refusal names both engines",
    ),
    (
        "src/workflow/recover/connect.rs",
        &["spock."],
        "a hint names the registries of both engines",
    ),
    (
        "src/workflow/recover/streams.rs",
        &["spock."],
        "a hint that only several subscriptions of Spock lead to",
    ),
    (
        "src/workflow/checks/paths.rs",
        &["spock."],
        "a hint about changes that only Spock leaves out",
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// The functions and procedures of ours that users call, which are in schema `spock` whatever the engine.
fn own_calls() -> BTreeSet<String> {
    let mut paths = vec![];
    files(&root().join("sql"), &mut paths);
    let mut names = BTreeSet::new();
    for path in paths {
        let text = fs::read_to_string(path).unwrap();
        for made in ["FUNCTION spock.", "PROCEDURE spock."] {
            for rest in text.split(made).skip(1) {
                names.insert(rest.split('(').next().unwrap().to_owned());
            }
        }
    }
    assert!(names.contains("add_node") && names.contains("cluster_status"));
    names
}

/// Whether `word` stands in the line as something of the engine.
fn has(line: &str, word: &str, calls: &BTreeSet<String>) -> bool {
    let mut rest = line;
    while let Some(at) = rest.find(word) {
        let after = &rest[at + word.len()..];
        let name = |c: char| c.is_ascii_lowercase() || c == '_';
        let called = &after[..after.find(|c| !name(c)).unwrap_or(after.len())];
        if word != "spock." || !calls.contains(called) {
            return true;
        }
        rest = after;
    }
    false
}

#[test]
fn what_is_of_one_engine_stands_in_its_folder() {
    let calls = own_calls();
    let mut paths = vec![];
    files(&root().join("src"), &mut paths);
    let (mut strays, mut used) = (vec![], BTreeSet::new());
    for path in paths {
        let name = path
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        if ["src/engine/spock/", "src/engine/native/"]
            .iter()
            .any(|f| name.starts_with(f))
        {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            for word in WORDS.iter().filter(|word| has(line, word, &calls)) {
                let exception = EXCEPTIONS
                    .iter()
                    .position(|(file, words, _)| name.starts_with(file) && words.contains(word));
                match exception {
                    Some(exception) => drop(used.insert(exception)),
                    None => strays.push(format!("{name}:{}: {}", number + 1, line.trim())),
                }
            }
        }
    }
    assert!(strays.is_empty(), "\n{}", strays.join("\n"));
    let unused = (0..EXCEPTIONS.len()).filter(|i| !used.contains(i));
    let unused: Vec<&str> = unused.map(|i| EXCEPTIONS[i].0).collect();
    assert!(unused.is_empty(), "not needed any more: {unused:?}");
}
