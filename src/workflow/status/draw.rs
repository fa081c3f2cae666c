//! The mesh as a drawing: for a terminal, for Graphviz, for Mermaid.

use super::{Link, MemberStatus, Mesh};
use crate::workflow::report::table;
use std::str::FromStr;
use zodan_core::subscription::SubscriptionStatus;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Dot,
    Mermaid,
}

impl FromStr for Format {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text.to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "dot" => Ok(Self::Dot),
            "mermaid" => Ok(Self::Mermaid),
            _ => Err(()),
        }
    }
}

/// The lines of the drawing.
pub fn draw(mesh: &Mesh, format: Format) -> Vec<String> {
    match format {
        Format::Text => text(mesh),
        Format::Dot => dot(mesh),
        Format::Mermaid => mermaid(mesh),
    }
}

fn text(mesh: &Mesh) -> Vec<String> {
    let names: Vec<&str> = mesh.members.iter().map(name).collect();
    let cell = |provider: usize, subscriber: usize| match find(mesh, provider, subscriber) {
        Some(link) => link.state.to_string(),
        None => "-".into(),
    };
    let mut rows = vec![];
    for (p, provider) in names.iter().enumerate() {
        let mut row = vec![(*provider).to_owned()];
        row.extend((0..names.len()).map(|s| cell(p, s)));
        rows.push(row);
    }
    let mut lines = table(
        &["node", "state", "location"],
        &mesh
            .members
            .iter()
            .map(|m| {
                let place = [&m.registered.location, &m.registered.country];
                let place = place.into_iter().filter(|p| !p.is_empty());
                vec![
                    name(m).to_owned(),
                    state(m),
                    place.cloned().collect::<Vec<_>>().join(", "),
                ]
            })
            .collect::<Vec<_>>(),
    );
    lines.push(String::new());
    let to: Vec<String> = names.iter().map(|n| format!("to {n}")).collect();
    let mut heading = vec!["from"];
    heading.extend(to.iter().map(String::as_str));
    lines.extend(table(&heading, &rows));
    lines
}

fn dot(mesh: &Mesh) -> Vec<String> {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut lines = vec![
        "digraph cluster {".to_owned(),
        "    node [shape=box];".to_owned(),
    ];
    for member in &mesh.members {
        let color = if member.report.is_ok() {
            "black"
        } else {
            "red"
        };
        lines.push(format!(
            "    {} [label={}, color={color}];",
            quoted(name(member)),
            quoted(&format!("{}: {}", name(member), short(member)))
        ));
    }
    for link in &mesh.links {
        let style = match link.state {
            SubscriptionStatus::Replicating => "color=darkgreen",
            SubscriptionStatus::Unknown => "color=gray, style=dotted",
            _ => "color=red, style=dashed",
        };
        lines.push(format!(
            "    {} -> {} [label={}, {style}];",
            quoted(name(&mesh.members[link.provider])),
            quoted(name(&mesh.members[link.subscriber])),
            quoted(link.state.label())
        ));
    }
    lines.push("}".into());
    lines
}

fn mermaid(mesh: &Mesh) -> Vec<String> {
    // In its strings only the quote needs help, and what begins an entity.
    let quoted = |text: &str| {
        format!(
            "\"{}\"",
            text.replace('#', "#35;")
                .replace('"', "#quot;")
                .replace('<', "#lt;")
        )
    };
    let mut lines = vec!["flowchart LR".to_owned()];
    for (i, member) in mesh.members.iter().enumerate() {
        let label = quoted(&format!("{}: {}", name(member), short(member)));
        lines.push(format!("    m{i}[{label}]"));
    }
    for link in &mesh.links {
        let arrow = match link.state {
            SubscriptionStatus::Replicating => "-->",
            _ => "-.->",
        };
        lines.push(format!(
            "    m{} {arrow}|{}| m{}",
            link.provider, link.state, link.subscriber
        ));
    }
    lines
}

fn name(member: &MemberStatus) -> &str {
    &member.registered.name
}

fn state(member: &MemberStatus) -> String {
    match &member.report {
        Ok(report) => {
            let local = if member.registered.is_local {
                ", this node"
            } else {
                ""
            };
            format!(
                "up, {}, PostgreSQL {}{local}",
                report.role(),
                release(&report.version)
            )
        }
        Err(why) => format!("down: {why}"),
    }
}

fn short(member: &MemberStatus) -> String {
    match &member.report {
        Ok(report) => format!("{}, PostgreSQL {}", report.role(), release(&report.version)),
        Err(_) => "down".into(),
    }
}

/// The number alone, without the packager's remarks.
fn release(version: &str) -> &str {
    version.split(' ').next().unwrap_or(version)
}

/// Of several subscriptions one that does not replicate.
fn find(mesh: &Mesh, provider: usize, subscriber: usize) -> Option<&Link> {
    let is = |c: &&Link| (c.provider, c.subscriber) == (provider, subscriber);
    let all = || mesh.links.iter().filter(is);
    all()
        .find(|link| link.state != SubscriptionStatus::Replicating)
        .or_else(|| all().next())
}

#[cfg(test)]
mod tests {
    use super::super::{MemberReport, Registered};
    use super::*;

    fn member(name: &str, up: bool) -> MemberStatus {
        MemberStatus {
            registered: Registered {
                id: None,
                name: name.into(),
                location: "NY".into(),
                country: "USA".into(),
                dsn: Err(String::new()),
                info: None,
                joined_at: None,
                number: None,
                cluster: None,
                is_local: name == "n1",
                database: String::new(),
            },
            report: match up {
                true => Ok(MemberReport {
                    server: String::new(),
                    place: String::new(),
                    version: "17.11 (Packager 1)".into(),
                    standby: false,
                    slots: vec![],
                    inbound: vec![],
                    sent: None,
                    end: None,
                    compared: vec![],
                    recovering: vec![],
                    undecided: vec![],
                }),
                false => Err("no connection: refused".into()),
            },
        }
    }

    fn link(provider: usize, subscriber: usize, state: SubscriptionStatus) -> Link {
        Link {
            provider,
            subscriber,
            subscription: None,
            state,
            replication_sets: None,
            slot_name: None,
            slot: None,
            last_error: None,
            left_out: false,
            applied: None,
        }
    }

    fn mesh() -> Mesh {
        Mesh {
            engine: "native",
            members: vec![member("n1", true), member("a \"b\" #1", false)],
            links: vec![
                link(1, 0, SubscriptionStatus::Down),
                link(0, 1, SubscriptionStatus::Unknown),
            ],
        }
    }

    #[test]
    fn a_terminal_gets_a_matrix() {
        assert_eq!(
            draw(&mesh(), Format::Text),
            [
                " node     | state                                    | location",
                "----------+------------------------------------------+----------",
                " n1       | up, primary, PostgreSQL 17.11, this node | NY, USA",
                " a \"b\" #1 | down: no connection: refused             | NY, USA",
                "",
                " from     | to n1 | to a \"b\" #1",
                "----------+-------+-------------",
                " n1       | -     | unknown",
                " a \"b\" #1 | down  | -",
            ]
        );
    }

    #[test]
    fn names_are_quoted_for_graphviz_and_mermaid() {
        assert_eq!(
            draw(&mesh(), Format::Dot),
            [
                "digraph cluster {",
                "    node [shape=box];",
                "    \"n1\" [label=\"n1: primary, PostgreSQL 17.11\", color=black];",
                "    \"a \\\"b\\\" #1\" [label=\"a \\\"b\\\" #1: down\", color=red];",
                "    \"a \\\"b\\\" #1\" -> \"n1\" [label=\"down\", color=red, style=dashed];",
                "    \"n1\" -> \"a \\\"b\\\" #1\" [label=\"unknown\", color=gray, style=dotted];",
                "}",
            ]
        );
        assert_eq!(
            draw(&mesh(), Format::Mermaid),
            [
                "flowchart LR",
                "    m0[\"n1: primary, PostgreSQL 17.11\"]",
                "    m1[\"a #quot;b#quot; #35;1: down\"]",
                "    m1 -.->|down| m0",
                "    m0 -.->|unknown| m1",
            ]
        );
    }
}
