//! PostgreSQL's own subscriptions.

use crate::node::Query;

/// PostgreSQL's own subscriptions of this database.
pub fn subscriptions() -> Query<String> {
    Query::new(
        "SELECT s.subname
           FROM pg_subscription s
           JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
          ORDER BY 1",
        &[],
        |row| row.only(),
    )
}

/// How many tables they know, all together.
pub fn subscribed_tables() -> Query<i64> {
    Query::new(
        "SELECT count(*)
           FROM pg_subscription s
           JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
           JOIN pg_subscription_rel r ON r.srsubid = s.oid",
        &[],
        |row| row.only(),
    )
}
