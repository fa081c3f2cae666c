//! What state a subscription is in, by what its subscriber and its provider say.

use serde::Deserialize;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubscriptionStatus {
    Replicating,
    /// It replicates, and yet the subscriber lacks something.
    Incomplete,
    /// Its own copy is not finished: how far it is, in the words of the engines.
    Initializing,
    Syncing,
    Synchronizing,
    Down,
    Disabled,
    /// The subscriber has none.
    Missing,
    /// The subscriber does not answer.
    Unknown,
}

impl SubscriptionStatus {
    /// What the subscriber says of one without a copy of its own.
    pub fn of(enabled: bool, working: bool) -> Self {
        match (enabled, working) {
            (false, _) => Self::Disabled,
            (true, true) => Self::Replicating,
            (true, false) => Self::Down,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Replicating => "replicating",
            Self::Incomplete => "incomplete",
            Self::Initializing => "initializing",
            Self::Syncing => "syncing",
            Self::Synchronizing => "synchronizing",
            Self::Down => "down",
            Self::Disabled => "disabled",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for SubscriptionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// What the subscriber says of its subscription.
#[derive(Clone, Copy, Debug)]
pub struct AtSubscriber {
    pub status: SubscriptionStatus,
    /// Whether its worker has received anything since it started, where that is known.
    pub received: Option<bool>,
    /// Its tables are not those that the provider sends.
    pub other_tables: bool,
    /// Its worker has left out changes for good.
    pub left_out: bool,
}

/// Whoever is asked may not answer, and need not have what it is asked about.
#[derive(Clone, Copy, Debug)]
pub enum Answer<T> {
    Silent,
    None,
    Some(T),
}

/// The slot of the subscription, as its provider sees it.
#[derive(Clone, Copy, Debug)]
pub struct AtProvider {
    pub active: bool,
    /// WAL that it needs has been removed.
    pub lost: bool,
}

/// What the two ends say together, of which none has to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    NoSlot,
    LostWal,
    InactiveSlot,
    OtherTables,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSlot => "its slot does not exist on the provider",
            Self::LostWal => "its slot has lost WAL that it needs",
            Self::InactiveSlot => "its replication slot is inactive",
            Self::OtherTables => {
                "its tables are not those that its provider sends (see spock.health_report)"
            }
        })
    }
}

/// The state of a subscription. `half_compared`: a recovery by comparison has given the subscriber a part of what it
/// lacks of the provider, and was interrupted.
pub fn assess(
    subscriber: Answer<AtSubscriber>,
    provider: Answer<AtProvider>,
    half_compared: bool,
) -> (SubscriptionStatus, Option<Problem>) {
    use SubscriptionStatus::{Disabled, Down, Incomplete, Missing, Replicating, Unknown};
    let own = match subscriber {
        Answer::Silent => return (Unknown, None),
        Answer::None => return (Missing, None),
        Answer::Some(own) => own,
    };
    let replicates = own.status == Replicating;
    // A worker that fails and starts again is there most of the time: whether one streams, the provider knows.
    let problem = match provider {
        // The word of the subscriber has to do.
        Answer::Silent if replicates && own.received == Some(false) => return (Down, None),
        Answer::Silent => None,
        _ if own.status == Disabled => None,
        Answer::None => Some(Problem::NoSlot),
        Answer::Some(slot) if slot.lost => Some(Problem::LostWal),
        Answer::Some(slot) if replicates && !slot.active => Some(Problem::InactiveSlot),
        Answer::Some(_) if replicates && own.other_tables => Some(Problem::OtherTables),
        Answer::Some(_) => None,
    };
    let left_out = own.left_out && !matches!(provider, Answer::Silent);
    let status = match problem {
        Some(Problem::NoSlot | Problem::LostWal | Problem::InactiveSlot) => Down,
        Some(Problem::OtherTables) => Incomplete,
        None if replicates && (left_out || half_compared) => Incomplete,
        None => own.status,
    };
    (status, problem)
}

#[cfg(test)]
mod tests {
    use super::SubscriptionStatus::{
        Disabled, Down, Incomplete, Initializing, Missing, Replicating, Synchronizing, Syncing,
        Unknown,
    };
    use super::*;
    use proptest::prelude::*;

    const ALL: [SubscriptionStatus; 9] = [
        Replicating,
        Incomplete,
        Initializing,
        Syncing,
        Synchronizing,
        Down,
        Disabled,
        Missing,
        Unknown,
    ];

    fn says(status: SubscriptionStatus) -> AtSubscriber {
        AtSubscriber {
            status,
            received: None,
            other_tables: false,
            left_out: false,
        }
    }

    fn slot(active: bool, lost: bool) -> Answer<AtProvider> {
        Answer::Some(AtProvider { active, lost })
    }

    #[test]
    fn a_status_is_read_as_it_is_shown() {
        for status in ALL {
            let json = format!("\"{status}\"");
            assert_eq!(
                serde_json::from_str::<SubscriptionStatus>(&json).unwrap(),
                status
            );
        }
    }

    #[test]
    fn both_ends_have_to_agree() {
        let assess = |subscriber, provider| super::assess(subscriber, provider, false);
        let on = |status| Answer::Some(says(status));
        assert_eq!(assess(Answer::Silent, slot(true, false)), (Unknown, None));
        assert_eq!(assess(Answer::None, slot(true, false)), (Missing, None));
        let healthy = assess(on(Replicating), slot(true, false));
        assert_eq!(healthy, (Replicating, None));
        let down = |problem| (Down, Some(problem));
        for (provider, problem) in [
            (Answer::None, Problem::NoSlot),
            (slot(true, true), Problem::LostWal),
            (slot(false, false), Problem::InactiveSlot),
        ] {
            assert_eq!(assess(on(Replicating), provider), down(problem));
        }
        // One that copies streams by slots of its own.
        assert_eq!(assess(on(Syncing), slot(false, false)), (Syncing, None));
        assert_eq!(assess(on(Syncing), Answer::None), down(Problem::NoSlot));
        assert_eq!(assess(on(Disabled), Answer::None), (Disabled, None));
    }

    #[test]
    fn without_the_provider_the_subscribers_word_has_to_do() {
        let mut own = says(Replicating);
        for (received, expected) in [
            (None, Replicating),
            (Some(true), Replicating),
            (Some(false), Down),
        ] {
            own.received = received;
            let state = assess(Answer::Some(own), Answer::Silent, false);
            assert_eq!(state, (expected, None));
        }
    }

    #[test]
    fn what_replicates_may_lack_something() {
        let state = |other_tables, left_out, half_compared| {
            let own = AtSubscriber {
                other_tables,
                left_out,
                ..says(Replicating)
            };
            assess(Answer::Some(own), slot(true, false), half_compared)
        };
        let tables = (Incomplete, Some(Problem::OtherTables));
        assert_eq!(state(true, true, true), tables);
        assert_eq!(state(false, true, false), (Incomplete, None));
        assert_eq!(state(false, false, true), (Incomplete, None));
        assert_eq!(state(false, false, false), (Replicating, None));
    }

    proptest! {
        /// Nothing makes a subscription look better than its subscriber says.
        #[test]
        fn what_does_not_replicate_is_not_said_to(
            status in prop::sample::select(&ALL[1..]), known in any::<[bool; 4]>(), provider in 0..4
        ) {
            let [received, other_tables, left_out, half_compared] = known;
            let own = AtSubscriber { status, received: Some(received), other_tables, left_out };
            let provider = match provider {
                0 => Answer::Silent,
                1 => Answer::None,
                n => slot(true, n == 3),
            };
            let (assessed, _) = assess(Answer::Some(own), provider, half_compared);
            prop_assert!(assessed == status || assessed == Down);
            prop_assert!(status != Disabled || assessed == Disabled);
        }
    }
}
