//! docs/errors.md has every error that the code can raise, under its SQLSTATE, and no other.
//!
//! The texts are read out of the sources: no server is needed. Where a constructor of errors gets its
//! message from a parameter, the calls in the same file say what that is.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What stands for a part that differs from case to case, in either text.
const ANY: char = '\u{1}';
/// Of the letters that a listed text has, how many have to be in the text of the code too.
const ENOUGH: f64 = 0.6;
/// A listed text with fewer letters says nothing, as `node <node>: <message>`.
const LETTERS: usize = 10;

/// What is told as a warning and never raised.
const WARNINGS: [&str; 1] = ["who reads it is sent"];

/// A message as the code has it.
struct Raised {
    place: String,
    /// `None` where it is that of what went wrong.
    state: Option<String>,
    text: Vec<char>,
}

/// A message as docs/errors.md has it.
struct Listed {
    /// `None` for `any`.
    state: Option<String>,
    text: Vec<char>,
}

#[test]
fn every_error_of_the_code_is_documented_under_its_sqlstate() {
    let (raised, listed) = (raised(), listed());
    assert!(
        raised.len() > 120,
        "only {} texts are found: have the constructors of errors other names?",
        raised.len()
    );
    let missing: Vec<String> = raised
        .iter()
        .filter(|error| letters(&error.text) >= LETTERS)
        .filter(|error| !WARNINGS.iter().any(|w| shown(&error.text).contains(w)))
        .filter(|error| !listed.iter().any(|row| row.is_of(error)))
        .map(|error| {
            format!(
                "{}: {} {}",
                error.place,
                error.state.as_deref().unwrap_or("?????"),
                shown(&error.text)
            )
        })
        .collect();
    assert!(
        missing.is_empty(),
        "docs/errors.md does not have:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_documented_error_is_in_the_code_or_postgresqls_own() {
    const POSTGRESQL: [&str; 6] = [
        "permission denied for",
        "invalid byte sequence for encoding",
        "canceling statement due to user request",
        "duplicate key value violates",
        "value for domain",
        "relation",
    ];
    let code: String = sources()
        .iter()
        .map(|(_, text)| unwrapped(text).replace("\\\"", "\""))
        .collect();
    let raised = raised();
    let stale: Vec<String> = listed()
        .iter()
        .filter_map(|row| {
            let text: String = row.text.iter().collect();
            let known = POSTGRESQL.iter().any(|own| text.contains(own))
                || raised.iter().any(|error| row.is_of(error));
            // The name of an argument is not in the same string as what is wrong with it.
            let of_argument = text.strip_prefix("argument ");
            let said = of_argument.and_then(|rest| rest.split_once(' '));
            let said = said.map_or(text.as_str(), |(_, problem)| problem);
            let longest = said.split(ANY).max_by_key(|part| part.len());
            let longest = longest.unwrap_or_default();
            let said = longest.trim_matches(|c: char| !c.is_alphanumeric());
            (!known && said.len() >= 8 && !code.contains(said)).then(|| shown(&row.text))
        })
        .collect();
    assert!(
        stale.is_empty(),
        "docs/errors.md has what the code does not say:\n{}",
        stale.join("\n")
    );
}

impl Listed {
    fn is_of(&self, error: &Raised) -> bool {
        let same_state = match (&self.state, &error.state) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        let own = letters(&self.text);
        same_state
            && own >= LETTERS
            && common(&self.text, &error.text).is_some_and(|n| n as f64 >= own as f64 * ENOUGH)
    }
}

fn letters(text: &[char]) -> usize {
    text.iter().filter(|c| c.is_alphanumeric()).count()
}

fn shown(text: &[char]) -> String {
    text.iter().collect::<String>().replace(ANY, "<...>")
}

/// How many letters `start` and the beginning of `whole` have in common at most, if the one can begin the other.
fn common(start: &[char], whole: &[char]) -> Option<usize> {
    // Of what is left of both: from the ends on.
    let mut after: Vec<Option<usize>> = vec![None; whole.len() + 1];
    for (i, want) in start.iter().enumerate().rev() {
        let nothing_left = start[i + 1..].is_empty();
        let next: Vec<Option<usize>> = match nothing_left {
            true => vec![Some(0); whole.len() + 1],
            false => after,
        };
        let mut here = vec![None; whole.len() + 1];
        for j in (0..=whole.len()).rev() {
            let mut best = None;
            if *want == ANY {
                best = best.max(next[j]);
            }
            if let Some(is) = whole.get(j) {
                if *want == ANY || *is == ANY {
                    best = best.max(here[j + 1]).max(next[j]);
                }
                if want == is {
                    let one = usize::from(want.is_alphanumeric());
                    best = best.max(next[j + 1].map(|n| n + one));
                }
            }
            here[j] = best;
        }
        after = here;
    }
    after[0]
}

// --- docs/errors.md ---

fn listed() -> Vec<Listed> {
    let page = fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let mut rows = vec![];
    for line in page.lines() {
        let Some((state, row)) = line.split_once(" | `") else {
            continue;
        };
        let state = state.trim_start_matches("| ");
        let message = row.split('`').next().unwrap_or_default();
        rows.push(Listed {
            state: (state != "any").then(|| state.to_owned()),
            text: placeholders(message, '<', '>'),
        });
    }
    assert!(rows.len() > 150, "only {} rows are found", rows.len());
    rows
}

/// The text with each `<...>`, or `{...}`, as one [`ANY`].
fn placeholders(text: &str, open: char, close: char) -> Vec<char> {
    let mut depth = 0;
    let mut out = vec![];
    for c in text.chars() {
        if c == open {
            depth += 1;
            if depth == 1 {
                out.push(ANY);
            }
        } else if c == close && depth > 0 {
            depth -= 1;
        } else if depth == 0 {
            out.push(c);
        }
    }
    out
}

// --- The sources ---

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Path and text of every source, without the unit tests at its end.
fn sources() -> Vec<(String, String)> {
    let mut paths = vec![];
    let mut folders: Vec<PathBuf> = ["src", "core/src", "sql"]
        .iter()
        .map(|folder| root().join(folder))
        .filter(|folder| folder.is_dir())
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => paths.push(path),
            }
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        (name, text[..end].to_owned())
    };
    paths.into_iter().map(read).collect()
}

/// Without the line breaks that a string literal is wrapped with.
fn unwrapped(text: &str) -> String {
    let mut parts = text.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.trim_start())
}

fn raised() -> Vec<Raised> {
    let sources = sources();
    let states = states(&sources);
    let mut raised = vec![];
    for (name, text) in &sources {
        let text = unwrapped(text);
        if name.ends_with(".sql") {
            raised.extend(raised_in_sql(name, &text));
        } else {
            Source { name, text: &text }.raised(&states, &mut raised);
        }
    }
    raised
}

/// `pub const NAME: Self = Self(*b"55000")`, by name.
fn states(sources: &[(String, String)]) -> HashMap<String, String> {
    let mut states = HashMap::new();
    for (_, text) in sources {
        for declared in text.split("pub const ").skip(1) {
            if let Some((name, rest)) = declared.split_once(": Self = Self(*b\"") {
                states.insert(name.to_owned(), rest[..5].to_owned());
            }
        }
    }
    states
}

fn raised_in_sql(name: &str, text: &str) -> Vec<Raised> {
    let messages = text.split("MESSAGE = ").skip(1);
    messages
        .filter_map(|rest| rest.split('\'').nth(1))
        .map(|message| Raised {
            place: name.to_owned(),
            state: None,
            text: message.replace("%s", &ANY.to_string()).chars().collect(),
        })
        .collect()
}

struct Source<'s> {
    name: &'s str,
    text: &'s str,
}

/// How an error is made: what the call begins with, which argument or field has the SQLSTATE and which the
/// message, and what stands around the message, `_` for what differs.
const CONSTRUCTORS: [(&str, Part, Part, [&str; 2]); 10] = {
    use Part::{Field, None, Nth};
    const STATE: Part = Field("state");
    const MESSAGE: Part = Field("message");
    [
        ("Error::refused(", Nth(0), Nth(1), ["", ""]),
        ("Finding::new(", Nth(1), Nth(2), ["", ""]),
        ("ereport!(", None, Nth(2), ["", ""]),
        ("Error::Refused {", STATE, MESSAGE, ["", ""]),
        ("Error::Local {", STATE, MESSAGE, ["", ""]),
        ("Error::Interrupted {", STATE, MESSAGE, ["", ""]),
        (
            "Error::Argument {",
            STATE,
            Field("problem"),
            ["argument _ ", ""],
        ),
        (
            "Error::Connect {",
            None,
            Field("reason"),
            ["could not connect to node _: ", ""],
        ),
        (
            "Error::Lost {",
            None,
            Field("reason"),
            ["connection to node _ was lost: ", ""],
        ),
        (
            "Error::Stalled {",
            None,
            Field("what"),
            ["node _: ", " made no progress for _ s"],
        ),
    ]
};

#[derive(Clone, Copy)]
enum Part {
    None,
    Nth(usize),
    Field(&'static str),
}

impl Part {
    fn of<'a>(self, arguments: &[&'a str]) -> Option<&'a str> {
        match self {
            Self::None => None,
            Self::Nth(n) => arguments.get(n).copied(),
            Self::Field(name) => arguments.iter().find_map(|argument| {
                let rest = argument.strip_prefix(name)?;
                match rest.strip_prefix(':') {
                    Some(value) => Some(value.trim()),
                    None => rest.is_empty().then_some(*argument),
                }
            }),
        }
    }
}

impl Source<'_> {
    fn raised(&self, states: &HashMap<String, String>, raised: &mut Vec<Raised>) {
        for (begins, state, message, around) in CONSTRUCTORS {
            for (at, _) in self.text.match_indices(begins) {
                let open = at + begins.len() - 1;
                let arguments = arguments(self.text, open);
                let Some(message) = message.of(&arguments) else {
                    continue;
                };
                let state = state
                    .of(&arguments)
                    .and_then(|state| state.split("SqlState::").nth(1))
                    .and_then(|name| states.get(name.trim_end_matches([',', ' '])))
                    .cloned();
                if state.as_deref().is_some_and(|s| s == "00000") {
                    continue; // What a check has found in order.
                }
                let [mut before, after] = around.map(|part| part.replace('_', &ANY.to_string()));
                let argument = Part::Field("argument").of(&arguments);
                if let Some(argument) = argument.filter(|a| a.starts_with('"')) {
                    before = before.replacen(ANY, argument.trim_matches('"'), 1);
                }
                let line = self.text[..at].lines().count();
                raised.extend(self.texts(message, at).into_iter().map(|text| Raised {
                    place: format!("{}, about line {line}", self.name),
                    state: state.clone(),
                    text: before.chars().chain(text).chain(after.chars()).collect(),
                }));
            }
        }
    }

    /// What `expression` can be, which is at `at`.
    fn texts(&self, expression: &str, at: usize) -> Vec<Vec<char>> {
        let mut found = literals(expression);
        let name = expression.split(['.', ',']).next().unwrap_or_default();
        if !found.is_empty() || !is_name(name) {
            return found;
        }
        let before = &self.text[..at];
        if let Some(bound) = before.rfind(&format!("let {name} = ")) {
            found = literals(statement(&self.text[bound..]));
        }
        if found.is_empty() {
            found = self.given(name, before);
        }
        found
    }

    /// What the calls of the function or closure around give for its parameter `name`.
    fn given(&self, name: &str, before: &str) -> Vec<Vec<char>> {
        let function = before.rfind("fn ").map(|i| (i, i + 3, '(', ')'));
        let closure = before.match_indices(" = |").last().and_then(|(i, _)| {
            let named = before[..i].rfind("let ")?;
            Some((i, named + 4, '|', '|'))
        });
        for (_, begin, open, close) in closure.into_iter().chain(function) {
            let Some(from) = self.text[begin..].find(open).map(|i| begin + i) else {
                continue;
            };
            let called = self.text[begin..from].trim_start_matches("mut ");
            let called = called.split([' ', '<', '(']).next().unwrap_or_default();
            let Some(to) = self.text[from + 1..].find(close).map(|i| from + 1 + i) else {
                continue;
            };
            let parameters = self.text[from + 1..to].split(',').map(str::trim);
            let parameters = parameters.filter(|p| !p.ends_with("self"));
            let position = parameters.clone().position(|p| {
                p.strip_prefix(name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            });
            if let Some(position) = position {
                let call = format!("{called}(");
                let calls = self.text.match_indices(&call);
                let calls = calls.filter(|(at, _)| !self.text[..*at].ends_with("Error::"));
                let texts = calls.flat_map(|(at, _)| {
                    let arguments = arguments(self.text, at + call.len() - 1);
                    arguments.get(position).map_or(vec![], |a| literals(a))
                });
                return texts.collect();
            }
        }
        vec![]
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Up to the semicolon that ends it.
fn statement(text: &str) -> &str {
    let mut depth = 0;
    for (at, token) in Tokens(text, 0) {
        match token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            ";" if depth == 0 => return &text[..at],
            _ => {}
        }
    }
    text
}

/// What stands between the bracket at `open` and its end, divided by its commas.
fn arguments(text: &str, open: usize) -> Vec<&str> {
    let (mut depth, mut from) = (0, open + 1);
    let mut parts = vec![];
    for (at, token) in Tokens(text, open) {
        match token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            "," if depth == 1 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
        if depth == 0 {
            parts.push(text[from..at].trim());
            break;
        }
    }
    parts
}

/// The string literals that the expression can be: of a `format!` its first, and those that stand alone.
fn literals(expression: &str) -> Vec<Vec<char>> {
    let mut found = vec![];
    let mut skip_to = 0;
    for (at, token) in Tokens(expression, 0) {
        if at < skip_to || !token.starts_with('"') {
            continue;
        }
        let before = expression[..at].trim_end();
        if before.ends_with("format!(") {
            skip_to = at + arguments(expression, before.len() - 1).join(",").len();
        } else if !["", "{", "=>", "Some("].iter().any(|b| match b.is_empty() {
            true => before.is_empty(),
            false => before.ends_with(b),
        }) {
            continue;
        }
        let text = token[1..token.len() - 1].replace("\\\"", "\"");
        let text = text.replace("{{", "(").replace("}}", ")");
        found.push(placeholders(&text, '{', '}'));
    }
    found
}

/// String literals and single characters of Rust, with where they begin; no comments.
struct Tokens<'t>(&'t str, usize);

impl<'t> Iterator for Tokens<'t> {
    type Item = (usize, &'t str);

    fn next(&mut self) -> Option<Self::Item> {
        let Self(text, at) = *self;
        let rest = &text[at..];
        let first = rest.chars().next()?;
        let mut length = first.len_utf8();
        if rest.starts_with("//") {
            length = rest.find('\n').unwrap_or(rest.len());
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            length = end.map_or(rest.len(), |end| end + 2);
        } else if first == '\'' {
            // A character, not the name of a lifetime.
            let escape = usize::from(rest.starts_with("'\\"));
            let mut after = rest.char_indices().skip(2 + escape);
            if let Some((end, '\'')) = after.next() {
                length = end + 1;
            }
        }
        self.1 += length;
        Some((at, &rest[..length]))
    }
}
