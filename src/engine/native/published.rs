//! What there is to be asked of tables that are published as a whole.

use super::Native;
use crate::engine::{
    Outlet, OwnersRights, PublishedTables, RoleAttributes, Structure, SubscribedTable,
    TablesDigest, Unfit,
};
use crate::node::Query;
use crate::quote::literal;

/// Tables of extensions are left out of what is compared: they may be each node's own, and so not be subscribed to on
/// purpose.
const OF_EXTENSION: &str = "
    EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')";

/// `c`, `n`: the tables that the node sends.
const SENT_TABLES: &str = "
    pg_publication p CROSS JOIN LATERAL pg_get_publication_tables(p.pubname::text) g
    JOIN pg_class c ON c.oid = g.relid AND p.pubname = 'zodan' JOIN pg_namespace n ON n.oid = c.relnamespace";

impl PublishedTables for Native {
    fn owners_rights(&self) -> Query<OwnersRights> {
        Query::new(include_str!("owners.sql"), &[], OwnersRights::read)
    }

    fn role_attributes(&self, roles: &[&str]) -> Query<RoleAttributes> {
        let roles: Vec<String> = roles.iter().copied().map(literal).collect();
        Query::new(
            format!(
                "SELECT rolname, rolsuper, rolsuper OR rolbypassrls AS passes FROM pg_roles WHERE rolname IN ({})",
                roles.join(", ")
            ),
            &[],
            |row| {
                Ok(RoleAttributes {
                    role: row.get("rolname")?,
                    is_superuser: row.get("rolsuper")?,
                    passes_row_security: row.get("passes")?,
                })
            },
        )
    }

    fn structure(&self) -> Query<Structure> {
        Query::new(include_str!("tables.sql"), &[], |row| {
            Ok(Structure {
                what: row.get("what")?,
                column: row.get("column_name")?,
                is: row.get("is_now")?,
            })
        })
    }

    fn structure_digest(&self) -> Query<String> {
        Query::new(
            format!(
                "SELECT md5(string_agg(concat_ws(E'\\n', x.what, x.column_name, x.is_now), E'\\n'
                                       ORDER BY x.what COLLATE \"C\", x.column_name COLLATE \"C\"))
                   FROM ({}) AS x",
                self.structure().statement.sql
            ),
            &[],
            |row| row.only(),
        )
    }

    fn subscribed_tables(&self) -> Query<SubscribedTable> {
        Query::new(
            include_str!("subscribed_tables.sql")
                .replace(":sent_tables", SENT_TABLES)
                .replace(":of_extension", OF_EXTENSION),
            &[],
            |row| {
                let applied: Option<bool> = row.get("applied")?;
                Ok(SubscribedTable {
                    subscription: row.get("subscription")?,
                    table: row.get("table_name")?,
                    is_copied: applied == Some(false),
                })
            },
        )
    }

    fn subscribed_digests(&self) -> Query<TablesDigest> {
        Query::new(
            format!(
                "SELECT x.subscription, md5(string_agg(x.table_name || x.applied, E'\\n' ORDER BY x.table_name COLLATE \"C\")) AS digest
                   FROM ({}) AS x GROUP BY 1",
                self.subscribed_tables().statement.sql
            ),
            &[],
            |row| {
                Ok(TablesDigest {
                    subscription: row.get("subscription")?,
                    digest: row.get("digest")?,
                })
            },
        )
    }

    fn outlets(&self) -> Query<Outlet> {
        Query::new(include_str!("outlets.sql"), &[], |row| {
            let (name, plugin): (String, String) = (row.get("name")?, row.get("plugin")?);
            Ok(match plugin.is_empty() {
                true => Outlet::Publication {
                    name,
                    all_tables: row.get("all_tables")?,
                },
                false => Outlet::Slot { name, plugin },
            })
        })
    }

    fn unfit_identities(&self, unsent: bool) -> Query<Unfit> {
        // With a key the subscriber finds a row by its index. With all columns, and no primary key, it compares each of
        // them, and so needs an equality for its type, at any depth. Generated columns are not sent.
        let sql = include_str!("unfit.sql").replace(":unsent", &unsent.to_string());
        Query::new(sql, &[], Unfit::read)
    }
}

/// One value for all the tables that the node sends.
pub fn sent() -> String {
    format!(
        "(SELECT coalesce(md5(string_agg(x.t, E'\\n' ORDER BY x.t COLLATE \"C\")), '')
            FROM (SELECT format('%I.%I', n.nspname, c.relname) FROM {SENT_TABLES} WHERE NOT {OF_EXTENSION}) AS x (t))"
    )
}

/// The same for the tables that subscription `s` applies.
pub fn known() -> String {
    format!(
        "(SELECT coalesce(md5(string_agg(x.t, E'\\n' ORDER BY x.t COLLATE \"C\")), '')
            FROM (SELECT format('%I.%I', n.nspname, c.relname)
                    FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid
                    JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE r.srsubid = s.oid AND r.srsubstate IN ('r', 's') AND NOT {OF_EXTENSION}) AS x (t))"
    )
}
