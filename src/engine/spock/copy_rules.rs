//! What a copy of the source has to be like.

use super::sets::SetKinds;
use super::sets::{LOCAL_SETS, differences};
use super::ways::Ways;
use super::{Spock, conditions, set_tables, sets};
use crate::copy::{self, InSnapshot};
use crate::engine::{ConflictRule, CopyPlan, CopyRules, Paths, SetDifference};
use crate::error::Result;
use crate::node::{Node, Query, Statement};

/// Replication sets that every node has.
const BUILT_IN: [&str; 3] = ["default", "default_insert_only", "ddl_sql"];

impl CopyRules for Spock {
    fn block_writes(&self, new: &mut Node, database: &str) -> Result<Option<[Statement; 2]>> {
        // Not where somebody has decided otherwise for the database, and not before 6.0, where it
        // would hold off superusers too: the next CALL, if this one is killed.
        let rows = new.query(
            "SELECT EXISTS (SELECT FROM pg_settings WHERE name = 'spock.readonly' AND 'local' = ANY (enumvals))
                    AND NOT EXISTS (SELECT FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase,
                                           unnest(s.setconfig) c
                                     WHERE d.datname = current_database() AND s.setrole = 0
                                       AND c LIKE 'spock.readonly=%')",
            &[],
        )?;
        let database = crate::quote::ident(database);
        Ok(rows.one()?.only::<bool>()?.then(|| {
            ["SET spock.readonly = 'local'", "RESET spock.readonly"]
                .map(|what| Statement::new(format!("ALTER DATABASE {database} {what}"), &[]))
        }))
    }

    fn apply_runs_statements(&self, _source: &mut Node) -> Result<bool> {
        // DDL that is replicated, and before 6.0 batches of rows.
        Ok(true)
    }

    fn apply_role(&self) -> Query<String> {
        // Its workers name no role, which makes them the bootstrap superuser.
        Query::new("SELECT rolname FROM pg_roles WHERE oid = 10", &[], |row| {
            row.only()
        })
    }

    fn copy_plan(
        &self,
        source: &mut Node,
        snapshot: &mut InSnapshot,
        new: &str,
    ) -> Result<CopyPlan> {
        let preexisting: Vec<String> = extension_tables(source)?
            .into_iter()
            .map(|(table, _)| table)
            .collect();
        conditions::in_sync(&source.name, &conditions::unsynced().on(snapshot)?)?;
        let in_sets = sets::set_tables().on(snapshot)?;
        self.copied.replace(Some(in_sets.clone()));
        // What nobody will send is not copied either: it would be of one moment, for good.
        let mut ways = Ways::default();
        let no_kinds = SetKinds::new();
        ways.add_own(
            &in_sets,
            &no_kinds,
            &self.subscriptions_of(&source.name, new),
        );
        for (peer, tables) in &self.of_peers {
            ways.add_received(tables, &no_kinds, &self.subscriptions_of(peer, new));
        }
        let (mut tables, mut structure_only) = (vec![], vec![]);
        for table in copy::tables(snapshot, &preexisting)? {
            let pieces = ways.to_copy(&(table.schema.clone(), table.name.clone()));
            let is_restored = !table.extension && !self.excluded.schemas.contains(&table.schema);
            if pieces.is_empty() && is_restored {
                structure_only.push(table.label());
            }
            let apart = pieces.len() > 1;
            for (filter, columns) in pieces {
                let mut piece = table.clone();
                if let Some(columns) = columns {
                    piece.keep_columns(&columns);
                }
                // What an extension's script stores itself is there already.
                piece.filter = match (filter, piece.filter.take()) {
                    (Some(filter), Some(own)) => Some(format!("({filter}) AND ({own})")),
                    (filter, own) => filter.or(own),
                };
                if apart {
                    piece.share();
                }
                tables.push(piece);
            }
        }
        Ok(CopyPlan {
            origin: self.path(&source.name, new).slot,
            names_follow: true,
            tables,
            structure_only,
            preexisting,
            settings: vec![
                ("spock.enable_ddl_replication", "off"),
                ("spock.include_ddl_repset", "off"),
                ("spock.readonly", "off"),
            ],
            excluded: self.excluded.clone(),
        })
    }

    fn copy_replication_sets(&self, source: &mut Node, new: &mut Node) -> Result<Vec<String>> {
        let sets = format!(
            "SELECT s.set_name, s.replicate_insert, s.replicate_update, s.replicate_delete,
                    s.replicate_truncate FROM {LOCAL_SETS} ORDER BY 1"
        );
        let sets = source.query(&sets, &[])?;
        for row in &sets {
            let verb = match BUILT_IN.contains(&row.get("set_name")?) {
                true => "repset_alter",
                false => "repset_create",
            };
            new.query(
                &format!(
                    "SELECT spock.{verb}($1::name, $2::boolean, $3::boolean, $4::boolean, $5::boolean)"
                ),
                &[
                    row.get("set_name")?,
                    row.get("replicate_insert")?,
                    row.get("replicate_update")?,
                    row.get("replicate_delete")?,
                    row.get("replicate_truncate")?,
                ],
            )?;
        }
        let wanted = match self.copied.take() {
            Some(tables) => tables,
            None => set_tables(source)?,
        };
        for table in set_tables(new)? {
            if !wanted.contains(&table) {
                new.query(
                    "SELECT spock.repset_remove_table($1::name, $2::regclass, false)",
                    &[
                        &table.set,
                        &crate::quote::qualified(&table.schema, &table.name),
                    ],
                )?;
            }
        }
        let present = set_tables(new)?;
        for table in wanted.iter().filter(|t| !present.contains(t)) {
            if !exists(new, &table.schema, &table.name)? {
                continue; // made during the join; told as drift
            }
            new.query(
                "SELECT spock.repset_add_table($1::name, $2::regclass, false,
                            nullif($3, '{}')::text[], nullif($4, ''), false)",
                &[
                    &table.set,
                    &crate::quote::qualified(&table.schema, &table.name),
                    &table.column_list,
                    table.filter.as_deref().unwrap_or(""),
                ],
            )?;
        }
        let sequences = format!(
            "SELECT s.set_name, n.nspname, c.relname
               FROM {LOCAL_SETS} JOIN spock.replication_set_seq q ON q.set_id = s.set_id
               JOIN pg_class c ON c.oid = q.set_seqoid JOIN pg_namespace n ON n.oid = c.relnamespace"
        );
        let present = new.query(&sequences, &[])?;
        for row in &source.query(&sequences, &[])? {
            let (schema, name) = (row.get("nspname")?, row.get("relname")?);
            if !present.iter().any(|t| t == row) && exists(new, schema, name)? {
                new.query(
                    "SELECT spock.repset_add_seq($1::name, $2::regclass, false)",
                    &[row.get("set_name")?, &crate::quote::qualified(schema, name)],
                )?;
            }
        }
        Ok(vec![format!(
            "{} replication sets mirrored, {} tables in them",
            sets.len(),
            wanted.len()
        )])
    }

    fn replication_set_differences(
        &self,
        source: &mut Node,
        new: &mut Node,
    ) -> Result<Vec<SetDifference>> {
        let (of_source, of_new) = (set_tables(source)?, set_tables(new)?);
        Ok(differences(&of_source, &of_new, &source.name, &new.name))
    }

    fn last_update_wins(&self, _table: &str, _wanted: bool) -> ConflictRule {
        ConflictRule::OfTheEngine {
            hint: "Spock lets the last update win by itself: see spock.conflict_resolution.",
        }
    }

    fn origins_of_copied_rows(&self, source: &mut Node) -> Result<Option<Vec<(u32, Statement)>>> {
        let rows = source.query(
            "SELECT CASE WHEN l.node_id IS NULL THEN n.node_id ELSE 0 END AS origin, n.node_id
               FROM spock.node n LEFT JOIN spock.local_node l USING (node_id)",
            &[],
        )?;
        let author = |row: &crate::libpq::Row| {
            let set_commit_origin = Statement::new(
                "SELECT zodan.session_origin($1::integer)",
                &[row.get("node_id")?],
            );
            Ok((row.get("origin")?, set_commit_origin))
        };
        rows.iter().map(author).collect::<Result<_>>().map(Some)
    }
}

/// Tables in replication sets that belong to extensions, and to which.
pub(super) fn extension_tables(node: &mut Node) -> Result<Vec<(String, String)>> {
    let members = format!(
        "SELECT DISTINCT format('%I.%I', n.nspname, c.relname) AS table_name, e.extname
           FROM {LOCAL_SETS} JOIN spock.replication_set_table t ON t.set_id = s.set_id
           JOIN pg_class c ON c.oid = t.set_reloid JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
           JOIN pg_extension e ON e.oid = d.refobjid ORDER BY 1"
    );
    Query::new(members, &[], |row| {
        Ok((row.get("table_name")?, row.get("extname")?))
    })
    .on(node)
}

fn exists(node: &mut Node, schema: &str, name: &str) -> Result<bool> {
    let name = crate::quote::qualified(schema, name);
    let rows = node.query("SELECT to_regclass($1) IS NOT NULL", &[&name])?;
    rows.one()?.only()
}
