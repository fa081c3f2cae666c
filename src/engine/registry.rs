//! Registries with what only a server's libpq can say of them: how their members are reached.

use super::Identity;
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;
use crate::node::Member;
use zodan_core::registry::Entry;

pub use zodan_core::registry::{Registry, SequencePolicy};

/// The members of `registry`, and how they are reached.
pub fn registered_members(registry: &Registry) -> Result<Vec<Member>> {
    let member = |(name, dsn): (&str, &str)| {
        Ok(Member {
            name: name.to_owned(),
            dsn: parse_dsn(name, dsn)?,
        })
    };
    registry.members().map(member).collect()
}

/// A connection string of the registry.
pub fn parse_dsn(name: &str, dsn: &str) -> Result<Dsn> {
    Dsn::parse(dsn).map_err(|bad| {
        Error::refused(
            SqlState::INVALID_PARAMETER_VALUE,
            format!(
                "the connection string of node \"{name}\" in zodan.node {}",
                bad.problem()
            ),
            "Correct it in zodan.node on every member.",
        )
    })
}

impl From<&Identity> for Entry {
    fn from(identity: &Identity) -> Self {
        Self {
            name: identity.member.name.clone(),
            dsn: identity.member.dsn.reveal(),
            system_identifier: identity.system_identifier.clone(),
            database: identity.database.clone(),
            location: Some(identity.location.clone()),
            country: Some(identity.country.clone()),
            info: Some(identity.info.clone()),
            joined_at: identity.joined_at.clone(),
            number: 0,
        }
    }
}
