//! Under last-update-wins the later of two changes of a row stays, by their commit timestamps. A copied row is older
//! than any, so a change of a peer that the source had not applied yet would win over it on the new node, although the
//! row may be the later one, and would lose on all others. Therefore such rows get the times and the authors that they
//! have on the source.
//!
//! What a peer may still deliver it committed after its marker of the barrier, which the source has applied. So rows
//! that were committed before every peer's marker, each by the clock of its author, are older than all of that.

use crate::copy::{self, Recent, Since, Source, Table};
use crate::engine::Engine;
use crate::error::Result;
use crate::libpq::Conn;
use crate::lsn::Lsn;
use crate::node::{Node, Query, Session, Statement, ask_all, server};
use crate::replay::{Applier, Catalog, Rendering};
use zodan_core::decoding::Message;

/// Commits take their time a moment before their place in the WAL, and clocks are set back now and then; in
/// microseconds.
const MARGIN: i64 = 5_000_000;

/// Where the rows of a transaction lie in the WAL of their author nobody knows any more. The origin is one that nobody
/// uses, so any position but 0/0 will do.
const SOMEWHERE: Lsn = Lsn(1);

/// Tables with CHECK constraints that not all of their rows need meet.
fn unproved() -> Query<(String, String)> {
    Query::new(
        "SELECT DISTINCT n.nspname, c.relname
           FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE k.contype = 'c' AND NOT k.convalidated",
        &[],
        |row| Ok((row.get("nspname")?, row.get("relname")?)),
    )
}

/// Which copied rows get their own times, and how.
#[derive(Clone)]
pub struct Kept {
    since: Since,
    /// As of [`CopyRules::origins_of_copied_rows`](crate::engine::CopyRules::origins_of_copied_rows).
    authors: Vec<(u32, Statement)>,
}

/// From when on the rows of the source may be newer than what a peer still delivers. To be asked before the peers commit
/// their markers; `None` without peers, or where times do not matter to the engine.
pub fn from_now_on(
    engine: &dyn Engine,
    source: &mut Node,
    peers: &mut [Node],
) -> Result<Option<Kept>> {
    let Some(authors) = engine.origins_of_copied_rows(source)? else {
        return Ok(None);
    };
    let now = "SELECT (extract(epoch FROM clock_timestamp() - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint";
    let now = Query::<i64>::new(now, &[], |row| row.only());
    let clocks = ask_all(peers.iter_mut(), &now)?.into_iter().flatten();
    let Some(at) = clocks.min() else {
        return Ok(None);
    };
    let xid = Since::oldest_running().one(source)?;
    let at = at - MARGIN;
    let since = Since { at, xid };
    Ok(Some(Kept { since, authors }))
}

/// Stores the recent rows of `tables` once more on the new node, with their own times and authors. `origin` is one that
/// nobody uses. Returns how many that are.
pub fn keep(
    engine: &dyn Engine,
    from: &Source<'_>,
    new: &mut Node,
    tables: &[Table],
    kept: Kept,
    origin: &str,
    settings: &[(&str, &str)],
) -> Result<u64> {
    let Kept { since, authors } = kept;
    let mut recent = copy::recent(from, tables, since)?;
    // A row that breaks a constraint which is not valid cannot be written once more.
    let unproved = unproved().on(new)?;
    recent.retain(|table| {
        let named = (table.relation.schema.as_str(), table.relation.name.as_str());
        !unproved
            .iter()
            .any(|(schema, name)| (schema.as_str(), name.as_str()) == named)
    });
    if recent.is_empty() {
        return Ok(0);
    }
    let known: Vec<u32> = authors.iter().map(|(number, _)| *number).collect();
    let mut stored = 0;
    for (number, set_commit_origin) in authors {
        // What nobody of the cluster has written counts as the source's own.
        let is_of = |origin: u32| origin == number || number == 0 && !known.contains(&origin);
        let changes = by_time(&recent, is_of);
        if changes.is_empty() {
            continue;
        }
        let mut writer = writer(new, settings)?;
        let catalog = Catalog::read(&mut writer)?;
        server::begin_replay(origin).run(&mut writer)?;
        server::replay_as_owners().run(&mut writer)?;
        set_commit_origin.run(&mut writer)?;
        let mut applier = Applier::begin(&mut writer)?;
        let mut rendering = Rendering::new(catalog, engine.own_schemas());
        for table in &recent {
            rendering.describe(table.relation.clone());
        }
        for (written, changes) in changes {
            rendering.begin(SOMEWHERE, written);
            for change in &changes {
                let before = rendering.rendered();
                rendering.change(change)?;
                stored += (rendering.rendered() - before) as u64;
            }
            rendering.commit()?;
            applier.send(&mut rendering)?;
        }
        applier.finish()?;
        server::end_replay().run(&mut writer)?;
        server::count_now().run(&mut writer)?;
    }
    Ok(stored)
}

/// A session of its own on the new node.
fn writer(new: &Node, settings: &[(&str, &str)]) -> Result<Node> {
    let session = Session::Remote(Conn::open(&new.name, &new.dsn)?);
    let mut writer = Node::new(&new.name, new.dsn.clone(), session);
    for (name, value) in settings {
        writer.query("SELECT set_config($1, $2, false)", &[name, value])?;
    }
    Ok(writer)
}

/// The rows of the origins that are meant, those of one time together.
fn by_time(recent: &[Recent], is_of: impl Fn(u32) -> bool) -> Vec<(i64, Vec<Message>)> {
    let mut rows: Vec<(i64, Message)> = vec![];
    for table in recent {
        for row in table.rows.iter().filter(|row| is_of(row.origin)) {
            let change = Message::Update {
                relation: table.relation.id,
                old: None,
                new: row.values.clone(),
            };
            rows.push((row.written, change));
        }
    }
    rows.sort_by_key(|(written, _)| *written);
    let mut groups: Vec<(i64, Vec<Message>)> = vec![];
    for (written, change) in rows {
        match groups.last_mut() {
            Some((at, changes)) if *at == written => changes.push(change),
            _ => groups.push((written, vec![change])),
        }
    }
    groups
}
