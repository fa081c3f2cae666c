//! Whether every path of a cluster replicates, and how far behind it is.

use super::{Check, ObservedCluster};
use crate::engine::Path;
use crate::error::{Finding, Result, SqlState};
use crate::workflow::status::{Link, Slot};
use zodan_core::subscription::SubscriptionStatus;

/// Slots of a healthy path follow within this time, as the public procedures have it.
const LAG_US: i64 = 59_000_000;

/// Every path of the mesh, its provider and its subscriber.
fn links<'a>(cluster: &'a ObservedCluster) -> impl Iterator<Item = (&'a Link, &'a str, &'a str)> {
    let name = |member: usize| cluster.mesh.members[member].registered.name.as_str();
    let ends = move |link: &'a Link| (link, name(link.provider), name(link.subscriber));
    cluster.mesh.links.iter().map(ends)
}

/// Those whose slot is known.
fn with_slots(cluster: &ObservedCluster) -> impl Iterator<Item = (&Slot, &str, &str)> {
    links(cluster).filter_map(|(link, provider, subscriber)| {
        let slot = link.slot.as_ref()?;
        Some((slot, provider, subscriber))
    })
}

pub fn replicating(cluster: &ObservedCluster, check: &mut Check) -> Result<()> {
    for (link, provider, subscriber) in links(cluster) {
        let subscription = link.subscription.as_deref().unwrap_or("none");
        let last_error = link.last_error.as_ref().map(|t| format!(": {t}"));
        let found = format!(
            "from \"{provider}\": {subscription} is {}{}",
            link.state,
            last_error.unwrap_or_default()
        );
        let broken = (link.state != SubscriptionStatus::Replicating).then(|| {
            let hint = match link.left_out {
                true => {
                    "Compare the nodes, spock.verify_nodes(), and mend what differs: spock.sub_resync_table brings a table anew. Entries of spock.exception_log that are settled can be deleted."
                }
                false => {
                    "The logs of the subscriber and of the provider say more; see spock.cluster_status()."
                }
            };
            let finding = Finding::new(
                subscriber,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                found.as_str(),
                hint,
            );
            match (link.state, &link.subscription) {
                (SubscriptionStatus::Disabled, Some(name)) => {
                    let path = Path {
                        subscription: name.clone(),
                        ..Path::by_rule(provider, subscriber)
                    };
                    finding.fixed_by(cluster.engine.enable(&path).inlined())
                }
                _ => finding,
            }
        });
        check.record(subscriber, found.as_str(), broken);
    }
    Ok(())
}

pub fn slots(cluster: &ObservedCluster, check: &mut Check) -> Result<()> {
    for (slot, provider, subscriber) in with_slots(cluster) {
        let bytes = slot.retained_bytes.unwrap_or_default();
        let status = slot.wal_status.as_deref().unwrap_or("unknown");
        let found = format!("{} is {status}, {bytes} bytes of WAL retained", slot.name);
        match status {
            "reserved" => check.pass(provider, found),
            "lost" => check.fail(Finding::new(
                provider,
                SqlState::NOT_IN_PREREQUISITE_STATE,
                found,
                format!(
                    "\"{subscriber}\" has missed changes for good: remove it and add it again."
                ),
            )),
            _ => check.warn(Finding::warning(
                provider,
                found,
                format!(
                    "Make \"{subscriber}\" catch up before the WAL is gone or the disk is full."
                ),
            )),
        }
    }
    Ok(())
}

pub fn lag(cluster: &ObservedCluster, check: &mut Check) -> Result<()> {
    for (slot, provider, subscriber) in with_slots(cluster) {
        let (behind, time) = (slot.lag_bytes.unwrap_or(0), slot.lag_us.unwrap_or(0));
        let found = format!(
            "\"{subscriber}\" is {behind} bytes and {:.1} s behind",
            time as f64 / 1e6
        );
        match behind == 0 || time < LAG_US {
            true => check.pass(provider, found),
            false => check.warn(Finding::warning(
                provider,
                found,
                format!("See what \"{subscriber}\" is busy with, and whether the path replicates."),
            )),
        }
    }
    Ok(())
}
