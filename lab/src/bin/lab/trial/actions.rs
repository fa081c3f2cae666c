//! What happens beside the calls of a trial: a table of actions. One more is one row here.

use super::change::change_beside;
use super::shape::{Engine, Pick};
use super::world::{Node, Underway, World, rows_of};
use lab::Server;
use lab::postgres::{Client, NoTls};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Something that somebody else does.
pub struct Action {
    pub name: &'static str,
    pub weight: u32,
    pub engines: &'static [Engine],
    pub judged: Judged,
    pub run: fn(&Scene, Pick) -> Result<(), String>,
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What an action is allowed to cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The call beside it succeeds.
    Harmless,
    /// The call may fail. The same call again succeeds when the action is over.
    MayEndTheCall,
    /// As Harmless, and the action itself has to succeed if nobody was disturbed.
    HasToSucceed,
}

/// What an action sees.
pub struct Scene<'a> {
    pub world: &'a World,
    pub group: usize,
    /// The node that joins or leaves.
    pub subject: usize,
    /// A node is dead, and which of two versions is the later one is told by their times.
    pub by_times: bool,
    /// The call that it is beside, while it runs.
    pub call: Mutex<Option<Underway>>,
    /// A second call with the same arguments succeeded.
    pub second_succeeded: AtomicBool,
    /// When the node that joins has lost a subscription.
    pub dropped: Mutex<Option<f64>>,
}

use Engine::{Native, Spock};
use Judged::{Harmless, HasToSucceed, MayEndTheCall};

const BOTH: &[Engine] = &[Native, Spock];

/// In order of how much they disturb: a schedule is made smaller towards the first.
pub const ACTIONS: &[Action] = &[
    // Maintenance.
    Action {
        name: "ANALYZE",
        weight: 2,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| s.on_table(p, "ANALYZE {t}"),
    },
    Action {
        name: "VACUUM",
        weight: 3,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| s.on_table(p, "VACUUM {t}"),
    },
    Action {
        name: "CHECKPOINT",
        weight: 2,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| s.on_node(p, "CHECKPOINT"),
    },
    Action {
        name: "WAL switch",
        weight: 2,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| s.on_node(p, "SELECT pg_switch_wal()"),
    },
    Action {
        name: "reload of settings",
        weight: 1,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| s.on_node(p, "SELECT pg_reload_conf()"),
    },
    Action {
        name: "ALTER TABLE without rewriting",
        weight: 2,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| s.on_table(p, "ALTER TABLE {t} SET (fillfactor = 91)"),
    },
    Action {
        name: "REINDEX CONCURRENTLY",
        weight: 3,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| s.on_table(p, "REINDEX TABLE CONCURRENTLY {t}"),
    },
    Action {
        name: "CREATE INDEX CONCURRENTLY",
        weight: 2,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            let at = p.table.index(1000);
            s.on_table(
                p,
                &format!("CREATE INDEX CONCURRENTLY scratch_{at} ON {{t}} ((1))"),
            )
        },
    },
    Action {
        name: "VACUUM FULL",
        weight: 5,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| s.on_table(p, "VACUUM FULL {t}"),
    },
    Action {
        name: "CLUSTER",
        weight: 3,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            let index = "(SELECT indexrelid::regclass FROM pg_index WHERE indrelid = '{t}'::regclass AND indisvalid ORDER BY 1 LIMIT 1)";
            let statement = format!(
                "DO $do$ DECLARE i text := {index}; BEGIN IF i IS NOT NULL THEN \
            EXECUTE format('CLUSTER %s USING %I', $t${{t}}$t$, split_part(i, '.', 2)); END IF; END $do$"
            );
            s.on_table(p, &statement)
        },
    },
    Action {
        name: "ALTER TABLE that rewrites",
        weight: 4,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            s.rewrite(p, "ALTER TABLE {t} ADD COLUMN scratch double precision DEFAULT random(); ALTER TABLE {t} DROP COLUMN scratch")
        },
    },
    Action {
        name: "ALTER TABLE that rewrites and leaves no trace",
        weight: 3,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            s.rewrite(
                p,
                "ALTER TABLE {t} ALTER v TYPE bigint; ALTER TABLE {t} ALTER v TYPE integer",
            )
        },
    },
    Action {
        name: "VACUUM FULL of what is being copied",
        weight: 4,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            let copied = "SELECT l.relation::regclass FROM pg_stat_progress_copy c JOIN pg_locks l USING (pid)
                            JOIN pg_class r ON r.oid = l.relation
                           WHERE command = 'COPY TO' AND datname = current_database() AND relkind = 'r'
                             AND relnamespace = to_regnamespace('trial') ORDER BY relpages DESC LIMIT 1";
            match s.wait_for(s.world.members(s.group), copied) {
                Some((node, table)) => {
                    s.world
                        .log(&format!("{}: VACUUM FULL {table}", node.name()));
                    node.try_each(&["SET lock_timeout = '2s'", &format!("VACUUM FULL {table}")])
                }
                None => s.on_table(p, "VACUUM FULL {t}"),
            }
        },
    },
    Action {
        name: "file swap as pg_repack makes it",
        weight: 4,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            let copy = format!("trial.scratch_{}", s.world.number());
            s.rewrite(p, &REPACK.replace("{copy}", &copy))
        },
    },
    Action {
        name: "rename of a table and back",
        weight: 2,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            s.on_table(
                p,
                "ALTER TABLE {t} RENAME TO scratch; DO $do$ BEGIN \
            EXECUTE format('ALTER TABLE trial.scratch RENAME TO %I', $name${n}$name$); END $do$",
            )
        },
    },
    Action {
        name: "detach and attach of a partition",
        weight: 2,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            if !s
                .world
                .shape
                .kinds
                .iter()
                .any(|kind| kind.name == "hash partitions")
            {
                return Ok(());
            }
            s.on_node(p, "BEGIN; ALTER TABLE trial.hashed DETACH PARTITION trial.hashed_0; \
            ALTER TABLE trial.hashed ATTACH PARTITION trial.hashed_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0); COMMIT")
        },
    },
    Action {
        name: "table made and dropped",
        weight: 2,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            let node = s.member(p);
            let table = format!("trial.scratch_{}", p.table.index(1000));
            s.later(&node, format!("DROP TABLE IF EXISTS {table}"));
            node.try_sql(&format!("CREATE TABLE {table} (id bigint PRIMARY KEY)"))?;
            thread::sleep(ms(p.duration / 4));
            node.try_sql(&format!("DROP TABLE {table}"))
        },
    },
    Action {
        name: "table made on all members",
        weight: 3,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            // In a join not before the new node subscribes to all members, which it could not to a table that it lacks.
            let members = s.world.members(s.group);
            let subscribes = format!(
                "SELECT 1 FROM pg_subscription HAVING count(*) >= {}",
                members.len()
            );
            if !members.contains(&s.subject) {
                s.wait_for(vec![s.subject], &subscribes);
            }
            s.world
                .make_table(s.group, &format!("trial.made_{}", p.table.index(1000)));
            Ok(())
        },
    },
    Action {
        name: "role with settings of its own",
        weight: 3,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| s.with_defaults(p, "ROLE postgres"),
    },
    Action {
        name: "database with settings of its own",
        weight: 3,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| {
            let database = s.world.groups[s.group].database;
            s.with_defaults(p, &format!("DATABASE {database}"))
        },
    },
    // Others at work.
    Action {
        name: "transaction that is idle",
        weight: 4,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| s.on_node_for(p, "BEGIN; SELECT pg_current_xact_id()", "COMMIT"),
    },
    Action {
        name: "transaction that nobody ends",
        weight: 1,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            let node = s.member(p);
            s.later(
                &node,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'pg_sleep.3600'
                    AND pid <> pg_backend_pid()"
                    .into(),
            );
            let mut client = node.connect()?;
            thread::spawn(move || {
                client.batch_execute("BEGIN; SELECT pg_current_xact_id(), pg_sleep(3600)")
            });
            Ok(())
        },
    },
    Action {
        name: "application that comes back to the node that leaves",
        weight: 4,
        engines: BOTH,
        judged: Harmless,
        run: |s, _| s.come_back(),
    },
    Action {
        name: "transaction that is prepared for a while",
        weight: 4,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| s.prepare(p),
    },
    Action {
        name: "snapshot that is kept",
        weight: 2,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| {
            s.on_node_for(
                p,
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1",
                "COMMIT",
            )
        },
    },
    Action {
        name: "table that is locked",
        weight: 2,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| {
            let table = s.table(&s.member(p), p)?;
            s.on_node_for(
                p,
                &format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
                "ROLLBACK",
            )
        },
    },
    Action {
        name: "slot of somebody else",
        weight: 2,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| {
            let node = s.member(p);
            let name = format!("foreign_{}", p.table.index(1000));
            s.later(&node, format!("SELECT pg_drop_replication_slot('{name}')"));
            node.try_sql(&format!(
                "SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
            ))
        },
    },
    Action {
        name: "publication of somebody else",
        weight: 1,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            let node = s.member(p);
            let table = s.table(&node, p)?;
            let name = format!("foreign_{}", p.table.index(1000));
            s.later(&node, format!("DROP PUBLICATION {name}"));
            node.try_sql(&format!("CREATE PUBLICATION {name} FOR TABLE {table}"))
        },
    },
    Action {
        name: "subscription of somebody else",
        weight: 1,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            let node = s.member(p);
            let name = format!("foreign_{}", p.table.index(1000));
            s.later(&node, format!("DROP SUBSCRIPTION {name}"));
            node.try_sql(&format!(
                "CREATE SUBSCRIPTION {name} CONNECTION 'dbname=elsewhere' PUBLICATION p
                     WITH (connect = false, slot_name = NONE)"
            ))
        },
    },
    Action {
        name: "plan of a removal",
        weight: 2,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| {
            let Some(node) = s.stays(p) else {
                return Ok(());
            };
            let name = lab::quote_literal(s.world.server(s.subject).name());
            node.try_sql(&format!("SELECT * FROM spock.remove_node_plan({name})"))
        },
    },
    Action {
        name: "status",
        weight: 3,
        engines: BOTH,
        judged: HasToSucceed,
        run: |s, p| {
            s.stays(p).map_or(Ok(()), |node| {
                node.try_sql("SELECT * FROM spock.cluster_status()")
            })
        },
    },
    Action {
        name: "health report",
        weight: 2,
        engines: BOTH,
        judged: HasToSucceed,
        run: |s, p| {
            let Some(node) = s.stays(p) else {
                return Ok(());
            };
            let (name, dsn) = (
                lab::quote_literal(node.name()),
                lab::quote_literal(&node.dsn()),
            );
            node.try_sql(&format!("SELECT * FROM spock.health_report({name}, {dsn})"))
        },
    },
    Action {
        name: "verification",
        weight: 3,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| {
            let Some(node) = s.stays(p) else {
                return Ok(());
            };
            // It may be refused, because of the call beside it for instance, but may find nothing.
            let mut found = node.try_rows("SELECT * FROM spock.verify_nodes()")?;
            // Its tables are quoted.
            found.retain(|row| !s.world.may_double(&row[0].replace('"', "")));
            // An operator may just make an empty table on one member after the other.
            found.retain(|row| row[3..6].iter().any(|rows| rows != "0"));
            if !found.is_empty() {
                s.world.blame(format!("the verification finds {found:?}"));
            }
            Ok(())
        },
    },
    Action {
        name: "second call with the same arguments",
        weight: 3,
        engines: BOTH,
        judged: Harmless,
        run: |s, _| {
            if let Some(call) = s.underway() {
                let outcome = s.world.node(call.on, s.group).call(&call.text, |_| {});
                s.world.log(&format!("the second call: {}", outcome.said()));
                s.second_succeeded
                    .fetch_or(outcome.result.is_ok(), Ordering::SeqCst);
            }
            Ok(())
        },
    },
    Action {
        name: "membership of the other database",
        weight: 4,
        engines: &[Native],
        judged: MayEndTheCall,
        run: |s, p| {
            let Some(other) = (0..s.world.groups.len()).find(|group| *group != s.group) else {
                return Ok(());
            };
            change_beside(s.world, other, p)
        },
    },
    Action {
        name: "operator who disables a subscription for a while",
        weight: 3,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| s.suspend(p),
    },
    Action {
        name: "operator who drops a subscription of the node that joins",
        weight: 2,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| s.drop_subscription(p),
    },
    Action {
        name: "cancel",
        weight: 3,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, _| s.cancel(),
    },
    Action {
        name: "cancel when somebody has a view on what was copied",
        weight: 2,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, _| {
            let Some((node, table)) = s.wait_for(vec![s.subject], COPIED) else {
                return Ok(());
            };
            s.later(&node, "DROP VIEW IF EXISTS public.somebodys".into());
            let made = node.try_sql(&format!(
                "SET default_transaction_read_only = off; CREATE VIEW public.somebodys AS SELECT * FROM {table}"
            ));
            let cancelled = s.cancel();
            made.and(cancelled)
        },
    },
    Action {
        name: "pg_terminate_backend of the call",
        weight: 2,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, _| {
            s.underway().map_or(Ok(()), |call| {
                s.world
                    .node(call.on, s.group)
                    .try_sql(&format!("SELECT pg_terminate_backend({})", call.pid))
            })
        },
    },
    // Faults.
    Action {
        name: "slow network",
        weight: 2,
        engines: BOTH,
        judged: Harmless,
        run: |s, p| {
            s.world
                .network
                .limit(s.any(p).name(), 300_000 + 100 * u64::from(p.duration));
            Ok(())
        },
    },
    Action {
        name: "connections reset",
        weight: 3,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            s.world.network.sever(s.any(p).name());
            Ok(())
        },
    },
    Action {
        name: "nobody can connect to a node for a while",
        weight: 2,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            s.world.network.shield(s.any(p).name());
            s.network_back(p)
        },
    },
    Action {
        name: "a node can connect to nobody for a while",
        weight: 2,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            s.world.network.confine(s.any(p).name());
            s.network_back(p)
        },
    },
    Action {
        name: "network of a node cut for a while",
        weight: 2,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            s.world.network.part(&[s.any(p).name()]);
            s.network_back(p)
        },
    },
    Action {
        name: "server frozen for a while",
        weight: 2,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            let node = s.any(p);
            s.world.disturb(node.number);
            s.world.with_power(node.number, |server| {
                server.freeze();
                thread::sleep(ms(p.duration));
                server.thaw();
            });
            Ok(())
        },
    },
    Action {
        name: "disk full for a while",
        weight: 2,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            let node = s.any(p);
            s.world.disk_is_full(node.number);
            // For processes that begin meanwhile; one that needs a new WAL segment takes the server down.
            let limited = |server: &Server| server.limit_file_size(Some(100_000));
            s.world.with_power(node.number, limited);
            thread::sleep(ms(p.duration));
            s.world
                .with_power(node.number, |server| server.limit_file_size(None));
            Ok(())
        },
    },
    Action {
        name: "restart",
        weight: 3,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            let node = s.any(p);
            s.world.disturb(node.number);
            s.world.with_power(node.number, |server| server.restart());
            Ok(())
        },
    },
    Action {
        name: "crash",
        weight: 4,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            let node = s.any(p);
            s.world.crashes(node.number);
            s.world.with_power(node.number, |server| {
                server.crash();
                thread::sleep(ms(p.duration / 2));
                server.boot();
            });
            Ok(())
        },
    },
    Action {
        name: "kill -9 of the call",
        weight: 3,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, _| {
            s.underway().map_or(Ok(()), |call| {
                s.kill(call.on, &format!("SELECT {}", call.pid))
            })
        },
    },
    Action {
        name: "kill -9 of a process that replicates",
        weight: 3,
        engines: BOTH,
        judged: MayEndTheCall,
        run: |s, p| {
            s.kill(s.any(p).number, "SELECT pid FROM pg_stat_activity
            WHERE backend_type ~ 'walsender|logical replication|zodan|spock' OR application_name ~ '^zodan' ORDER BY random() LIMIT 1")
        },
    },
];

/// A table that the new node of a join has got.
const COPIED: &str = "SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND oid > 16384
    AND relnamespace = to_regnamespace('trial') ORDER BY oid LIMIT 1";

/// What pg_repack does at its end: the table gets the file of a copy, and new indexes. Rows of the copy would end apply on the
/// other members, which lack it: a publication of all tables sends them. A table with dropped columns is left alone, which the
/// copy would lack, too.
const REPACK: &str = "BEGIN; SELECT zodan.unreplicated(), 1 / (count(*) = 0)::integer FROM pg_attribute
     WHERE attrelid = '{t}'::regclass AND attisdropped;
    LOCK TABLE {t} IN ACCESS EXCLUSIVE MODE;
    CREATE TABLE {copy} (LIKE {t} INCLUDING STORAGE); INSERT INTO {copy} SELECT * FROM ONLY {t};
    SET LOCAL allow_system_table_mods = on;
    UPDATE pg_class c SET relfilenode = o.relfilenode, reltoastrelid = o.reltoastrelid FROM pg_class o
     WHERE (c.oid, o.oid) IN (('{t}'::regclass, '{copy}'::regclass), ('{copy}'::regclass, '{t}'::regclass));
    UPDATE pg_depend d SET refobjid = c.oid FROM pg_class c
     WHERE c.oid IN ('{t}'::regclass, '{copy}'::regclass) AND d.classid = 'pg_class'::regclass
       AND d.objid = c.reltoastrelid AND d.deptype = 'i';
    DROP TABLE {copy}; REINDEX TABLE {t}; COMMIT";

fn ms(n: u16) -> Duration {
    Duration::from_millis(n.into())
}

impl<'a> Scene<'a> {
    /// The call that it is beside, if it runs yet and still.
    fn underway(&self) -> Option<Underway> {
        self.call.lock().unwrap().clone()
    }

    fn cancel(&self) -> Result<(), String> {
        self.underway().map_or(Ok(()), |call| {
            call.cancel.cancel_query(NoTls).map_err(|e| e.to_string())
        })
    }

    /// One of the members.
    fn member(&self, pick: Pick) -> Node<'a> {
        let members = self.world.members(self.group);
        self.world.node(*pick.node.get(&members), self.group)
    }

    /// One of the nodes that are members before and after the call, if there was more than one before: a database without
    /// peers need not be a node.
    fn stays(&self, pick: Pick) -> Option<Node<'a>> {
        let mut members = self.world.members(self.group);
        let several = members.len() > 1;
        members.retain(|number| *number != self.subject);
        several.then(|| self.world.node(*pick.node.get(&members), self.group))
    }

    /// One of the members, or the node that joins or leaves.
    fn any(&self, pick: Pick) -> Node<'a> {
        let (mut nodes, dead) = (self.world.members(self.group), self.world.dead());
        if !nodes.contains(&self.subject) {
            nodes.push(self.subject);
        }
        nodes.retain(|number| !dead.contains(number));
        self.world.node(*pick.node.get(&nodes), self.group)
    }

    /// The first of these nodes on which the query finds something while the call runs, and what.
    fn wait_for(&self, nodes: Vec<usize>, query: &str) -> Option<(Node<'a>, String)> {
        let mut clients: Vec<_> = nodes
            .into_iter()
            .map(|number| self.world.node(number, self.group))
            .filter_map(|node| Some((node, node.connect().ok()?)))
            .collect();
        while self.underway().is_some() {
            for (node, client) in &mut clients {
                let found = rows_of(client, query).ok()?.into_iter().flatten().next();
                if let Some(found) = found {
                    return Some((*node, found));
                }
            }
            thread::sleep(ms(5));
        }
        None
    }

    /// An application that writes as fast as it can, and begins anew when its session is ended, as long as the node takes
    /// it. What it is told is committed, while the others still subscribe to the node, has to get to them.
    fn come_back(&self) -> Result<(), String> {
        let leaves = self.world.members(self.group).contains(&self.subject);
        if !leaves || self.world.dead().contains(&self.subject) {
            return Ok(());
        }
        let mut others = self.others()?;
        let mut session = None;
        while self.underway().is_some() {
            let write = "INSERT INTO trial.marker VALUES (gen_random_uuid()) RETURNING token";
            let taken = session.take().map_or_else(|| self.application(), Ok);
            let written = taken.and_then(|mut client| {
                let written = rows_of(&mut client, write)?;
                session = Some(client);
                Ok(written)
            });
            match written {
                Ok(_) if !self.is_subscribed(&mut others)? => break,
                Ok(written) => self.owes(written.into_iter().flatten()),
                Err(e) if e.contains("25006") => break,
                // The session was ended, as all others.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// A session on the node that joins or leaves with the defaults of its database, unlike those of the trial.
    fn application(&self) -> Result<Client, String> {
        let node = self.world.node(self.subject, self.group);
        let config = node.server().config_of("trial application", node.database);
        config.connect(NoTls).map_err(|e| lab::explain(&e))
    }

    /// Sessions on the others, for [`Self::is_subscribed`]: to begin one takes as long as a node needs to be detached.
    fn others(&self) -> Result<Vec<Client>, String> {
        let mut others = self.world.members(self.group);
        others.retain(|number| *number != self.subject);
        let connect = |number: usize| self.world.node(number, self.group).connect();
        others.into_iter().map(connect).collect()
    }

    /// Whether all others still subscribe to the node that leaves.
    fn is_subscribed(&self, others: &mut [Client]) -> Result<bool, String> {
        let name = self.world.server(self.subject).name();
        let subscriptions = match self.world.engine {
            Native => format!(
                "SELECT 1 FROM pg_subscription JOIN pg_database d ON d.oid = subdbid
                  WHERE datname = current_database() AND subname ~ '^sub_{name}_'"
            ),
            Spock => format!(
                "SELECT 1 FROM spock.subscription JOIN spock.node ON node_id = sub_origin
                  WHERE node_name = '{name}'"
            ),
        };
        for client in others {
            if rows_of(client, &subscriptions)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// These markers have to be on all members.
    fn owes(&self, tokens: impl Iterator<Item = String>) {
        self.world.owed.lock().unwrap().extend(tokens);
    }

    /// A transaction manager prepares a transaction, and commits it later, whatever happens meanwhile.
    fn prepare(&self, pick: Pick) -> Result<(), String> {
        let leaves = self.world.members(self.group).contains(&self.subject);
        if !leaves || self.world.dead().contains(&self.subject) {
            return Ok(());
        }
        let id = format!("manager_{}", pick.table.index(1000));
        let token = format!("00000000-0000-4000-8000-{:012}", self.world.number());
        let mut others = self.others()?;
        let mut client = self.application()?;
        let prepared = client.batch_execute(&format!(
            "BEGIN; INSERT INTO trial.marker VALUES ('{token}'); PREPARE TRANSACTION '{id}'"
        ));
        prepared.map_err(|e| lab::explain(&e))?;
        let owes = self.is_subscribed(&mut others);
        thread::sleep(ms(pick.duration));
        let node = self.world.node(self.subject, self.group);
        // Until it is done: nothing else of the database goes on without.
        while let Err(e) = node.try_sql(&format!("COMMIT PREPARED '{id}'")) {
            if e.contains("does not exist") {
                break;
            }
            self.world.log(&format!("{}: {e}", node.name()));
            thread::sleep(ms(50));
        }
        if owes? {
            self.owes([token].into_iter());
        }
        Ok(())
    }

    /// Run when the step is over.
    fn later(&self, node: &Node, sql: String) {
        let mut undo = self.world.undo.lock().unwrap();
        undo.push((node.number, node.database, sql));
    }

    fn on_node(&self, pick: Pick, sql: &str) -> Result<(), String> {
        let node = self.member(pick);
        self.world.log(&format!("{}: {sql}", node.name()));
        node.try_sql(sql)
    }

    fn table(&self, node: &Node, pick: Pick) -> Result<String, String> {
        let tables = node.try_rows(
            "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
              WHERE nspname = 'trial' AND relkind = 'r' AND relname !~ '^scratch' AND relname <> 'marker' ORDER BY 1",
        )?;
        match tables.is_empty() {
            true => Err("there is no table".into()),
            false => Ok(pick.table.get(&tables)[0].clone()),
        }
    }

    /// Runs statements, each for itself, with `{t}` as a table and `{n}` as its plain name. They give up before they make
    /// writers wait for long.
    fn on_table(&self, pick: Pick, sql: &str) -> Result<(), String> {
        let node = self.member(pick);
        let table = self.table(&node, pick)?;
        let plain = table.strip_prefix("trial.").unwrap_or(&table);
        let plain = plain.trim_matches('"').replace("\"\"", "\"");
        let sql = sql.replace("{t}", &table).replace("{n}", &plain);
        self.world.log(&format!("{}: {sql}", node.name()));
        // CONCURRENTLY and VACUUM run in no transaction block, so no two statements go together.
        node.try_each(&["SET lock_timeout = '2s'", &sql])
    }

    /// Stores the rows of a table anew, as of now: what a recovery cannot know the times of is left alone, and told.
    fn rewrite(&self, pick: Pick, sql: &str) -> Result<(), String> {
        match self.by_times {
            true => Ok(()),
            false => self.on_table(pick, sql),
        }
    }

    /// Keeps what `first` begins for as long as the pick says.
    fn on_node_for(&self, pick: Pick, first: &str, last: &str) -> Result<(), String> {
        let node = self.member(pick);
        self.world.log(&format!("{}: {first}", node.name()));
        let mut client = node.connect()?;
        let done = client.batch_execute(&format!("SET lock_timeout = '2s'; {first}"));
        done.map_err(|e| lab::explain(&e))?;
        thread::sleep(ms(pick.duration));
        client.batch_execute(last).map_err(|e| lab::explain(&e))
    }

    /// New sessions get defaults that no session of the product may heed.
    fn with_defaults(&self, pick: Pick, whose: &str) -> Result<(), String> {
        const DEFAULTS: &[(&str, &str)] = &[
            ("statement_timeout", "50ms"),
            ("lock_timeout", "10ms"),
            ("idle_in_transaction_session_timeout", "50ms"),
            ("default_transaction_isolation", "serializable"),
            ("search_path", "trial"),
            ("datestyle", "SQL, DMY"),
            ("row_security", "off"),
            ("quote_all_identifiers", "on"),
            ("session_replication_role", "replica"),
        ];
        let node = self.member(pick);
        let (name, value) = pick.table.get(DEFAULTS);
        self.world
            .log(&format!("{}: {whose} has {name} = {value}", node.name()));
        let alter = format!("SET default_transaction_read_only = off; ALTER {whose}");
        self.later(&node, format!("{alter} RESET {name}"));
        node.try_sql(&format!("{alter} SET {name} = '{value}'"))
    }

    fn network_back(&self, pick: Pick) -> Result<(), String> {
        self.world.log("the network of a node is cut");
        thread::sleep(ms(pick.duration));
        self.world.network.heal();
        Ok(())
    }

    /// Disables one of the subscriptions of a member, and enables it after a while.
    fn suspend(&self, pick: Pick) -> Result<(), String> {
        let node = self.member(pick);
        let (names, disable, enable) = match self.world.engine {
            Native => (
                "SELECT quote_ident(subname) FROM pg_subscription JOIN pg_database d ON d.oid = subdbid
                  WHERE datname = current_database() AND subenabled ORDER BY 1",
                "ALTER SUBSCRIPTION {s} DISABLE",
                "ALTER SUBSCRIPTION {s} ENABLE",
            ),
            Spock => (
                "SELECT sub_name FROM spock.subscription WHERE sub_enabled ORDER BY 1",
                "SELECT spock.sub_disable('{s}', true)",
                "SELECT spock.sub_enable('{s}', true)",
            ),
        };
        let names = node.try_rows(names)?;
        if names.is_empty() {
            return Ok(());
        }
        let name = &pick.table.get(&names)[0];
        self.world
            .log(&format!("{}: {name} is disabled", node.name()));
        let enable = enable.replace("{s}", name);
        self.later(&node, enable.clone());
        node.try_sql(&disable.replace("{s}", name))?;
        thread::sleep(ms(pick.duration));
        node.try_sql(&enable)
    }

    /// Drops one that the node has been given, if it joins. Its slot stays with the provider.
    fn drop_subscription(&self, pick: Pick) -> Result<(), String> {
        let members = self.world.members(self.group);
        // With Spock one that takes changes of nobody is no member, and nobody but the operator can take it back.
        if members.contains(&self.subject) || members.len() == 1 {
            return Ok(());
        }
        let drop = match self.world.engine {
            Native => {
                "SET default_transaction_read_only = off; ALTER SUBSCRIPTION {s} DISABLE;
                 ALTER SUBSCRIPTION {s} SET (slot_name = NONE); DROP SUBSCRIPTION {s}"
            }
            Spock => "SET default_transaction_read_only = off; SELECT spock.sub_drop('{s}')",
        };
        let names = self.world.subscriptions();
        let Some((node, _)) = self.wait_for(vec![self.subject], names) else {
            return Ok(());
        };
        thread::sleep(ms(pick.duration / 8));
        let names = node.try_rows(names)?;
        if names.is_empty() || self.underway().is_none() {
            return Ok(());
        }
        let name = &pick.table.get(&names)[0];
        self.world
            .log(&format!("{}: {name} is dropped", node.name()));
        node.try_sql(&drop.replace("{s}", name))?;
        *self.dropped.lock().unwrap() = Some(self.world.now());
        Ok(())
    }

    /// SIGKILL for the process that a query names; the server then ends all sessions and recovers.
    fn kill(&self, number: usize, pid: &str) -> Result<(), String> {
        let node = self.world.node(number, self.group);
        let pids = node.try_rows(pid)?;
        let Some(pid) = pids.first().and_then(|row| row[0].parse().ok()) else {
            return Ok(());
        };
        self.world.crashes(number);
        self.world
            .log(&format!("{}: SIGKILL for process {pid}", node.name()));
        self.world.with_power(number, |server| {
            if server.has_backend(pid) {
                server.kill_backend(pid);
            }
        });
        Ok(())
    }
}
