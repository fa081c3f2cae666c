//! What replicates the cluster. The workflow is one; an engine says what "subscription", "slot",
//! "marker" and "progress" mean on its servers.

pub mod division;
pub mod identities;
mod native;
pub mod questions;
mod registry;
mod spock;

pub use registry::{Registry, SequencePolicy, parse_dsn, registered_members};
pub use zodan_core::names;

use self::names::Numbered;
use crate::copy;
use crate::error::{Error, Finding, Result, SqlState};
use crate::libpq::Rows;
use crate::lsn::Lsn;
use crate::node::{Member, Node, Statement};
use crate::replay::Decoding;
use crate::replay::share::Share;
use std::collections::{BTreeMap, BTreeSet};

/// Something by schema and name of a table.
pub type ByTable<T> = BTreeMap<(String, String), T>;

/// How one path of the mesh is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub provider: String,
    pub subscriber: String,
    /// The subscription, on the subscriber.
    pub subscription: String,
    /// The slot, on the provider.
    pub slot: String,
}

impl Path {
    /// The path as zodan names it where the engine has no rule of its own for slots.
    pub fn by_rule(provider: &str, subscriber: &str) -> Self {
        let name = names::subscription(provider, subscriber);
        Self {
            provider: provider.to_owned(),
            subscriber: subscriber.to_owned(),
            slot: name.clone(),
            subscription: name,
        }
    }
}

/// What the source knows of its cluster.
pub struct Survey {
    /// Every member, the source too. Just the source where it is not a node yet.
    pub members: Vec<Member>,
    /// Whether the source is a node already.
    pub is_member: bool,
}

impl Survey {
    /// Whether it names the same members.
    pub fn is_as(&self, other: &Self) -> bool {
        let names = |survey: &Self| -> Vec<String> {
            survey.members.iter().map(|m| m.name.clone()).collect()
        };
        self.is_member == other.is_member && names(self) == names(other)
    }
}

/// Who a node is, for the registry and for the people who look at it.
#[derive(Clone, Debug)]
pub struct Identity {
    pub member: Member,
    pub system_identifier: String,
    pub database: String,
    pub location: String,
    pub country: String,
    pub info: String,
    pub joined_at: String,
}

/// A subscription as its subscriber sees it.
#[derive(Clone, Debug)]
pub struct SubscriptionState {
    pub name: String,
    pub enabled: bool,
    /// A worker is connected to the provider's slot and applies.
    pub working: bool,
    /// Errors of its worker so far.
    pub errors: u64,
    /// The last position of the provider that has been applied.
    pub applied: Option<Lsn>,
    /// Why the last change was not applied that its worker gave up for good, if it ever did.
    pub skipped_change: Option<String>,
}

/// What the engine wants of the copy.
#[derive(Clone, Debug)]
pub struct CopyPlan {
    /// The replication origin under which copied rows are written on the new node.
    pub origin: String,
    /// Their commit timestamp in microseconds since 2000; `None` for the time of the copy.
    pub timestamp: Option<i64>,
    /// The tables whose rows are copied.
    pub tables: Vec<copy::Table>,
    /// Tables of which nobody would send any row to the new node.
    pub structure_only: Vec<String>,
    /// Those of `tables` that the new node has before the copy, empty. They keep their rows when what
    /// the copy made is dropped.
    pub preexisting: Vec<String>,
    /// DDL is replicated too, so that a table that is renamed is so everywhere.
    pub names_follow: bool,
    /// Settings of the sessions that restore the structure.
    pub settings: Vec<(&'static str, &'static str)>,
    /// What the structure leaves out beside zodan's and the engines' own.
    pub excluded: Excluded,
}

/// Schemas and extensions that are each node's own.
#[derive(Clone, Debug, Default)]
pub struct Excluded {
    pub schemas: Vec<String>,
    pub extensions: Vec<String>,
}

/// Where the new node's role in replication is not the source's, and what makes it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetDifference {
    pub what: String,
    pub remedy: String,
}

/// What a member that could not be reached when a node was removed still has to drop.
#[derive(Clone, Debug)]
pub struct PendingCleanup {
    pub member: Member,
    pub removed: String,
    /// What is to be taken back there, as in the journal.
    pub effect: String,
}

/// What a [`MemberCheck`] makes of an answer.
pub enum Judged {
    Failed(Finding),
    Warned(Finding),
}

/// What a node takes of another one.
pub struct Provider {
    pub node: Member,
    pub subscription: String,
    pub enabled: bool,
    /// Whether it takes what the other has from others too.
    pub forwarded: bool,
}

/// What is wrong with one of the nodes that are to read from the new node.
pub fn no_reader(leads_to: String, hint: impl Into<String>) -> Error {
    Error::Argument {
        argument: "readers",
        problem: format!("leads to {leads_to}"),
        hint: hint.into(),
        state: SqlState::INVALID_PARAMETER_VALUE,
    }
}

/// The tables that a path brings.
#[derive(Default)]
pub struct PathTables {
    /// By schema and name.
    pub tables: BTreeSet<(String, String)>,
    /// Whether these are all.
    pub known: bool,
}

/// What an engine needs before a join, beyond what every engine needs.
pub struct EngineCheck {
    pub name: &'static str,
    pub wanted: &'static str,
    pub on: On,
}

/// The nodes that an [`EngineCheck`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Every,
    Members,
    Source,
    New,
}

impl On {
    /// Those of `members`, the source first, and `new`.
    pub fn of<'n>(self, members: &'n [String], new: &'n str) -> impl Iterator<Item = &'n str> {
        let (members, new) = match self {
            Self::Every => (members, Some(new)),
            Self::Members => (members, None),
            Self::Source => (&members[..members.len().min(1)], None),
            Self::New => (&members[..0], Some(new)),
        };
        members.iter().map(String::as_str).chain(new)
    }
}

/// What an engine's checks have found, by their names.
pub type EngineFindings = Vec<(&'static str, Vec<Finding>)>;

/// What an engine wants every member to be like, before a join and afterwards.
pub struct MemberCheck {
    pub name: &'static str,
    pub wanted: &'static str,
    /// Whether a node that is to join is asked too.
    pub with_new: bool,
    /// Without parameters.
    pub question: Statement,
    /// By node; the source of a join is the first.
    pub judge: fn(&[(String, Rows)]) -> Vec<Judged>,
}

pub trait Engine {
    fn label(&self) -> &'static str;

    /// Whether its apply workers count against `max_logical_replication_workers`, as PostgreSQL's own
    /// do. All count against `max_worker_processes`.
    fn uses_logical_workers(&self) -> bool;

    /// The output plugin of the slots.
    fn plugin(&self) -> &'static str;

    /// Whether the slots have the flag `failover`. One decision for the whole cluster.
    fn failover(&self) -> bool {
        false
    }

    /// The name of the node that the database is in its cluster; `None` where it is in none.
    fn local_name(&self, node: &mut Node) -> Result<Option<String>>;
    fn survey(&self, source: &mut Node) -> Result<Survey>;

    /// What the node takes of others; `None` where it is no node, or where a registry says who the members are.
    fn providers(&self, _node: &mut Node) -> Result<Option<Vec<Provider>>> {
        Ok(None)
    }

    /// Whether `other` knows that a node of the name of `me` was removed, has none, and has no slot that `me` reads.
    /// Only asked where nodes keep no registry.
    fn has_removed(&self, _other: &mut Node, _me: &mut Node) -> Result<bool> {
        Ok(false)
    }

    /// Learns the names of the paths between `members`, and of those between them and `absent`, which
    /// cannot be asked.
    fn load_paths(&mut self, members: &mut [&mut Node], absent: &[Member]) -> Result<()>;

    /// Forgets them: the membership has changed.
    fn unload_paths(&mut self) {}

    /// Learns the names of all paths, those that are and those to be.
    fn load_paths_with(&mut self, members: &mut [&mut Node], new: &mut Node) -> Result<()>;

    /// Learns the paths from `members`, the source first, to a node that only reads from them, and those from the new
    /// node to it.
    fn load_reader_paths(
        &mut self,
        _members: &mut [&mut Node],
        _new: &mut Node,
        _reader: &mut Node,
    ) -> Result<()> {
        Ok(())
    }

    fn path(&self, provider: &str, subscriber: &str) -> Path;
    /// What its slot is called where names of slots are given by what the registry knows, for whoever has not learned
    /// the path.
    fn slot_by_rule(
        &self,
        _cluster: &str,
        _provider: Numbered,
        _subscriber: Numbered,
        _database: &str,
    ) -> Option<String> {
        None
    }

    /// Which cluster it is, or will be when it is is_member, where names of slots tell it.
    fn cluster(&self) -> Option<&str> {
        None
    }

    /// Every path from one to the other: somebody may have made several subscriptions. Never empty.
    fn paths(&self, provider: &str, subscriber: &str) -> Vec<Path> {
        vec![self.path(provider, subscriber)]
    }
    /// The tables that each of several paths between the same two nodes brings, as far as `nodes` know: their provider
    /// cannot be asked.
    fn tables_of(&self, _nodes: &mut [&mut Node], paths: &[Path]) -> Result<Vec<PathTables>> {
        Ok(paths.iter().map(|_| PathTables::default()).collect())
    }
    /// What the subscription of `path` takes of all that its provider sends: what two subscribers have of a provider
    /// is compared where that is the same.
    fn part(&self, _path: &Path) -> String {
        String::new()
    }

    /// What others than `members` have on a leaving node and it has of others, so that it cannot cease to be one, or
    /// they would lose what they have not had yet.
    fn strangers(&self, _leaving: &mut Node, _members: &[String]) -> Result<Vec<Finding>> {
        Ok(vec![])
    }
    /// Slots of the node that are of no path that is known, and whether somebody streams from them: those of a node that
    /// has died may be among them, under names that it chose.
    fn unclaimed_slots(&self, _node: &mut Node) -> Result<Vec<(String, bool)>> {
        Ok(vec![])
    }

    /// What this engine needs beyond what every engine needs.
    fn checks(&self) -> &'static [EngineCheck];
    /// Makes these checks, the source being the first of `members`. One that needs what another has not found is left
    /// out.
    fn run_checks(&self, members: &mut [&mut Node], new: &mut Node) -> Result<EngineFindings>;

    /// What every member is looked at for, beside what every engine looks at.
    fn member_checks(&self) -> Vec<MemberCheck> {
        vec![]
    }

    /// The replication origin that the subscription of `path` is going to have; `None` where it gets a name that is
    /// free.
    fn origin_wanted<'p>(&self, _path: &'p Path) -> Option<&'p str> {
        None
    }

    /// Where the connection strings of the members are that `asked` names.
    fn addresses(&self, _asked: &str) -> String {
        "zodan.node of the members".into()
    }

    /// What does no harm to the join and is not as its user may think.
    fn warnings(&self, _members: &mut [&mut Node]) -> Result<Vec<Finding>> {
        Ok(vec![])
    }

    /// Connects from the node to `dsn`. The last answer is the `server, database` of
    /// `server::identity` there, or nothing where only the connection can be tried.
    fn probe(&self, dsn: &str) -> Vec<Statement>;

    /// Makes the node a node of the cluster, able to provide changes.
    fn create_node(&self, identity: &Identity) -> Vec<Statement>;
    fn drop_node(&self) -> Vec<Statement>;

    /// Tables of which updates would fail, or stop who applies them, as [`identities::unfit`] has them; `None` where
    /// the engine decides itself what it sends of such tables.
    fn unfit_identities(&self, _unsent: bool) -> Option<Statement> {
        None
    }

    /// `name, registry`: which member the node is, and its registry as one value; no row where it is none.
    /// `None` where the engine makes nodes known to each other by itself.
    fn registry(&self) -> Option<Statement> {
        None
    }
    /// Makes `registry` that of the node, unless it has a newer one; whether it is then.
    fn apply_registry(&self, _registry: &Registry) -> Result<Option<Statement>> {
        Ok(None)
    }
    /// Makes the node forget what `name` left there, and with Spock who it was.
    fn forget_node(&self, name: &str) -> Vec<Statement>;
    /// `name, location, country, dsn, system_identifier, database, info, joined_at, id, number` of every member,
    /// as the node knows them.
    fn members(&self) -> Statement;

    /// Installs or removes the trigger by which the later of two updates of a row of the table stays; true if that
    /// changed anything. `None` where the engine resolves conflicts itself.
    fn last_update_wins(&self, _table: &str, _wanted: bool) -> Option<Statement> {
        None
    }

    /// Records a pending cleanup on a node. `None` where the engine has no place for it.
    fn record_cleanup(&self, _cleanup: &PendingCleanup) -> Option<Statement> {
        None
    }
    /// The pending cleanups that are recorded on the node.
    fn pending_cleanups(&self, _node: &mut Node) -> Result<Vec<PendingCleanup>> {
        Ok(vec![])
    }
    /// Deletes the record of what `member` had to drop after the removal of `removed`.
    fn cleaned_up(&self, _removed: &str, _member: &str) -> Option<Statement> {
        None
    }

    /// How often nodes of the name have been removed, this one included, of which a removal that was interrupted has
    /// written `begun`. `None` where names of slots tell memberships by something else.
    fn times_removed(&self, _name: &str, _begun: Option<u32>) -> Option<u32> {
        None
    }
    /// Writes that down on the node, if it has a place for it.
    fn remember_removed(&self, _node: &mut Node, _name: &str, _times: u32) -> Result<()> {
        Ok(())
    }
    /// The new node remembers what the members do.
    fn inherit_removed(&self, _new: &mut Node) -> Result<()> {
        Ok(())
    }

    /// How another of `nodes`, between which the paths are known, subscribes to the successor of one of them: a node
    /// that was removed and still takes itself for the one of its name.
    fn path_to_successor(&self, _nodes: &mut [&mut Node]) -> Result<Option<Path>> {
        Ok(None)
    }

    /// Commits a marker on the node; the last answer is its token.
    fn emit_marker(&self, id: &str, provider: &str) -> Vec<Statement>;
    /// Whether the marker has been applied on the subscriber of `path`.
    fn marker_seen(&self, path: &Path, token: &str) -> Statement;
    /// Removes what markers leave behind on their provider, if they do.
    fn forget_markers(&self, provider: &str) -> Option<Statement>;
    /// Removes what the one marker leaves behind.
    fn forget_marker(&self, token: &str) -> Option<Statement>;

    /// `name, enabled, working, errors, applied, gave up` of the subscriptions of a node.
    fn subscriptions(&self) -> Statement;

    /// One text: what the subscriber of `path` knows of why its worker makes no progress, and where it says more.
    /// `None` where [`Self::subscriptions`] tells it.
    fn worker_error(&self, _path: &Path) -> Option<Statement> {
        None
    }

    /// As [`Self::subscriptions`] for people: `subscription, provider, slot, status, received, replication_sets, last_error, applied` of each, and
    /// `tables`, one value for those that it applies, to be compared with [`Self::sent_tables`]. The provider is null where its name follows from that of the subscription; received tells whether the worker that
    /// runs now has had anything from it, and is null where nobody knows.
    fn subscription_details(&self) -> Statement;
    /// `schema, table` of changes that the node's apply workers have passed over since its subscriptions were made, for
    /// the row was not there; nulls where it is not known of which table. `None` where the engine does not count them.
    fn passed_over(&self) -> Option<Statement> {
        None
    }
    /// An expression: one value for the tables that the node sends; `None` where subscriptions may differ in that.
    fn sent_tables(&self) -> Option<String> {
        None
    }

    /// Something on the node that resumes apply when the coordinator is gone, if the engine's pause
    /// does not end by itself.
    fn start_watchdog(&self, limit_ms: u128) -> Option<Statement>;
    fn stop_watchdog(&self) -> Option<Statement>;
    /// Makes apply of the named subscriptions stop.
    fn pause(&self, subscriptions: &[String]) -> Statement;
    fn resume(&self) -> Statement;
    /// The same where whoever ordered the pause is gone: how many subscriptions, or no answer. `None` where such a
    /// pause ends by itself.
    fn resume_orphaned(&self) -> Option<Statement> {
        None
    }
    /// `paused, alive`: whether the pause still holds, and how many workers could still commit.
    fn pause_state(&self) -> Statement;

    /// What keeps applications from writing in new sessions of the node's database, beyond what they
    /// can turn off themselves: the statement, and the one that takes it back.
    fn block_writes(&self, _new: &mut Node, _database: &str) -> Result<Option<[Statement; 2]>> {
        Ok(None)
    }

    /// Whether apply workers run statements beside the changes of rows, so that they fail in a database whose
    /// sessions are read-only.
    fn apply_runs_statements(&self, source: &mut Node) -> Result<bool>;
    /// The role whose settings the sessions of apply workers begin with, where the subscriptions are made by the
    /// session that is asked.
    fn apply_role(&self) -> Statement;

    fn copy_plan(&self, source: &mut Node, new: &str, snapshot: &str) -> Result<CopyPlan>;
    /// Gives the copied structure the role it has in replication on the source. Returns what to
    /// tell.
    fn copy_replication_sets(&self, source: &mut Node, new: &mut Node) -> Result<Vec<String>>;
    /// What somebody changed on the source during the join, so that the mirror is not true any more.
    fn replication_set_differences(
        &self,
        _source: &mut Node,
        _new: &mut Node,
    ) -> Result<Vec<SetDifference>> {
        Ok(vec![])
    }

    /// `origin, receiver, commit, bytes, time`: how far a node is behind its providers, in the engine's
    /// own view, if it has one.
    fn lag(&self) -> Option<Statement> {
        None
    }

    /// Creates the subscription of `path`, disabled and without copy.
    fn subscribe(&self, path: &Path, provider: &Member) -> Statement;
    /// Whether a node that joins can take what the members wrote meanwhile from the source alone: it sends on whatever
    /// any of them would send. Known after [`Self::load_paths_with`].
    fn source_sends_all(&self) -> bool;
    /// Makes the provider of `path`, a subscription that is not enabled, send on what it has of others too, or its own
    /// changes only.
    fn forward(&self, path: &Path, others_too: bool) -> Statement;
    /// The command by which the worker of `path` asks its provider for changes, from where the slot stands; no row
    /// where the subscription is gone. It is run on the subscriber.
    fn start_replication(&self, path: &Path) -> Statement;
    fn disable(&self, path: &Path) -> Statement;
    /// The same where no worker is applying; no answer otherwise. `None` where a worker that is told to end
    /// ends between two transactions.
    fn disable_if_idle(&self, _path: &Path) -> Option<Statement> {
        None
    }
    /// The replication origin of the subscription of `path`, on its subscriber.
    fn origin(&self, path: &Path) -> Statement;
    /// How a recovery slot is made and read.
    fn decoding(&self) -> Decoding;
    /// By schema and name, the tables of which a recovery slot of the node gives the changes, and what a row has to meet
    /// for that; `None` for all.
    fn decoded_tables(&self, _node: &mut Node) -> Result<Option<ByTable<Option<String>>>> {
        Ok(None)
    }
    /// How many workers of subscriptions that have been disabled have not ended yet.
    fn stopping_workers(&self) -> Statement;
    /// Ends those of them that have had nothing from their provider yet: they may try to connect for long. `None` where
    /// they are ended when a subscription is disabled.
    fn end_connecting_workers(&self) -> Option<Statement> {
        None
    }
    /// The origin that rows of the provider of `path` bear on its subscriber: a name, or a number that has
    /// none.
    fn row_origin(&self, path: &Path) -> Statement {
        self.origin(path)
    }
    /// By schema and name, what two of `nodes` are to have alike of their tables; `None` where that is all of all.
    /// The others are those that may have sent it to the two.
    fn shares(
        &self,
        _nodes: &mut [&mut Node],
        _here: usize,
        _there: usize,
    ) -> Result<Option<ByTable<Share>>> {
        Ok(None)
    }
    /// By the number of the origin that rows bear on the source, 0 for its own, what makes a replaying session on the new
    /// node commit as of the same node. `None` where which of two changes stays is not told from when they were committed.
    fn origins_of_copied_rows(&self, _source: &mut Node) -> Result<Option<Vec<(u32, Statement)>>> {
        Ok(None)
    }
    /// Marks what a replaying session commits as the engine does, where that is not as PostgreSQL does.
    fn set_commit_origin(&self, _origin: &str) -> Option<Statement> {
        None
    }
    /// Schemas whose tables are each node's own, whatever replicates them.
    fn own_schemas(&self) -> &'static [&'static str];

    /// Sets the position from which the subscription applies.
    fn start_at(&self, path: &Path, lsn: Lsn) -> Statement;
    fn enable(&self, path: &Path) -> Statement;
    /// Enables several of one subscriber.
    fn enable_all(&self, paths: &[Path]) -> Vec<Statement> {
        paths.iter().map(|path| self.enable(path)).collect()
    }
    /// Makes the subscriber of `idle`, a subscription that is not enabled, start the next of its other
    /// workers at once. `None` where nothing but its own pace holds it up.
    fn wake_launcher(&self, _idle: &Path) -> Option<Statement> {
        None
    }
    /// The setting of the engine that limits one wait for its subscriptions in the session of the CALL,
    /// and its value in seconds, where it is set.
    fn sync_timeout(&self) -> Option<(&'static str, u64)> {
        None
    }
    /// The address that the subscription of `path` leads to, where it is enabled and nothing has come from there; no row
    /// otherwise. `None` where nobody knows that.
    fn idle_address(&self, _path: &Path) -> Option<Statement> {
        None
    }
    /// Makes the subscription of `path` know the tables that its provider sends by now, without copying any of their
    /// rows. `None` where the engine has other ways to say what is replicated.
    fn refresh(&self, _path: &Path) -> Option<Statement> {
        None
    }
    fn unsubscribe(&self, subscription: &str) -> Vec<Statement>;
    /// Drops every subscription of the node to members of a cluster, without a word to them.
    fn end_subscriptions(&self) -> Vec<Statement>;
    /// Disables them.
    fn stop_subscriptions(&self) -> Statement;
    /// An error of the engine's own with the code that PostgreSQL has for such.
    fn map_error(&self, error: Error) -> Error {
        error
    }
    /// Whether a node forgets a member together with its subscription to it.
    fn drops_node_with_last_subscription(&self) -> bool {
        false
    }
}

/// The engine that the source's cluster replicates with.
pub fn detect(source: &mut Node) -> Result<Box<dyn Engine>> {
    Ok(match spock::is_node(source)? {
        true => Box::new(spock::Spock::default()),
        false => Box::new(native::Native::default()),
    })
}

/// The checks that the engines make before a join.
#[cfg(test)]
pub fn all_checks() -> [&'static [EngineCheck]; 2] {
    [&spock::CHECKS, &native::CHECKS]
}

/// And on every member.
#[cfg(test)]
pub fn all_member_checks() -> Vec<MemberCheck> {
    spock::member_checks()
}

/// Parses the answer of [`Engine::subscriptions`].
pub fn subscription_states(rows: &Rows) -> Result<Vec<SubscriptionState>> {
    rows.iter()
        .map(|row| {
            Ok(SubscriptionState {
                name: row.text(0).to_owned(),
                enabled: row.bool(1),
                working: row.bool(2),
                errors: row.parse(3)?,
                applied: row
                    .get(4)
                    .map(|lsn| lsn.parse().map_err(|()| Error::internal("not an LSN")))
                    .transpose()?,
                skipped_change: row.get(5).map(str::to_owned),
            })
        })
        .collect()
}
