//! Engines that send whole tables, and whose rows PostgreSQL's own workers apply.

use crate::error::Result;
use crate::libpq::Row;
use crate::node::Query;
use crate::quote::qualified;

/// A table whose rows cannot be applied with the rights of its owner.
#[derive(Clone)]
pub struct OwnersRights {
    pub schema: String,
    pub table: String,
    pub owner: String,
    pub obstacle: Obstacle,
    /// What gives the owner what it lacks, where that is one statement.
    pub statement: Option<String>,
    /// Only an attribute of the owner makes it fit, which the role of that name may lack elsewhere.
    pub is_exempt: bool,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// Something of the table calls a function that the owner may not execute.
    Function { function: String, what: String },
    /// Others have privileges that the owner has not.
    Privileges(String),
    /// The table forces row-level security on its owner.
    Security,
}

impl OwnersRights {
    pub fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            schema: row.get("nspname")?,
            table: row.get("relname")?,
            owner: row.get("rolname")?,
            obstacle: match row.get("kind")? {
                "security" => Obstacle::Security,
                "function" => Obstacle::Function {
                    what: row.get("what")?,
                    function: row.get("lacks")?,
                },
                _ => Obstacle::Privileges(row.get("lacks")?),
            },
            statement: row.get("statement")?,
            is_exempt: row.get("exempt")?,
        })
    }
}

/// What a role may do as one that owns tables.
pub struct RoleAttributes {
    pub role: String,
    pub is_superuser: bool,
    pub passes_row_security: bool,
}

/// A table, a column of it, its key, or an enumerated type.
pub struct Structure {
    pub what: String,
    /// Empty for what is no column.
    pub column: String,
    /// Type, columns of the key, or labels.
    pub is: String,
}

/// A table that a subscription knows, or that the node sends.
pub struct SubscribedTable {
    /// Empty for what the node sends.
    pub subscription: String,
    /// `None` for a subscription that knows no table.
    pub table: Option<String>,
    /// Whether its changes are not applied yet: it is being copied.
    pub is_copied: bool,
}

/// One value for all tables that a subscription applies, or that the node sends.
pub struct TablesDigest {
    /// Empty for what the node sends.
    pub subscription: String,
    pub digest: String,
}

/// What may send the tables of a node to somebody outside of its cluster.
pub enum Outlet {
    Publication { name: String, all_tables: bool },
    Slot { name: String, plugin: String },
}

/// A table of which updates fail, or stop whoever applies them.
pub struct Unfit {
    pub table: String,
    /// What the replica identity can become so that updates work: FULL or DEFAULT.
    pub becomes: Option<String>,
    pub statement: String,
    pub undo: String,
    /// An update is sent and stops whoever applies it, instead of failing where it is made.
    pub stops_apply: bool,
    /// Why it can become nothing that works.
    pub why: String,
    /// That is because of generated columns.
    pub generated: bool,
}

impl Unfit {
    pub fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            table: qualified(row.get("nspname")?, row.get("relname")?),
            becomes: row.get("becomes")?,
            statement: row.get("statement")?,
            undo: row.get("undo")?,
            stops_apply: row.get("stops_apply")?,
            why: row.get("why")?,
            generated: row.get("generated")?,
        })
    }

    pub fn hint(&self) -> &'static str {
        match self.generated {
            true => {
                "Give the table a primary key, or a replica identity by a unique index, of columns that are not generated."
            }
            false => "Give the table a primary key, or a replica identity by a unique index.",
        }
    }
}

/// Engines that send whole tables, and whose rows PostgreSQL's own workers apply: with the rights of the owners, into
/// tables that have to be the same, found by the replica identity. All without parameters, for who only looks has none.
pub trait PublishedTables {
    /// The tables whose rows cannot be applied with the rights of their owners.
    fn owners_rights(&self) -> Query<OwnersRights>;

    /// The attributes of those of `roles` that are there.
    fn role_attributes(&self, roles: &[&str]) -> Query<RoleAttributes>;

    /// The tables with their columns, types and keys.
    fn structure(&self) -> Query<Structure>;

    /// The same as one value, to be compared first.
    fn structure_digest(&self) -> Query<String>;

    /// What the node sends, and what its subscriptions know.
    fn subscribed_tables(&self) -> Query<SubscribedTable>;

    /// The same as one value for each, to be compared first.
    fn subscribed_digests(&self) -> Query<TablesDigest>;

    /// Publications of others that have zodan's own tables, and all slots of the database.
    fn outlets(&self) -> Query<Outlet>;

    /// Tables of which updates fail or stop whoever applies them. `unsent` is whether some node of the cluster refuses
    /// updates where the identity has columns that it does not send, which is PostgreSQL 18 and newer.
    fn unfit_identities(&self, unsent: bool) -> Query<Unfit>;
}
