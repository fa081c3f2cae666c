//! What output plugins send, as messages. Both plugins say the same in their own ways.

pub mod pgoutput;
#[cfg(test)]
mod properties;
mod reader;
pub mod spock_output;

use crate::lsn::Lsn;

/// What cannot be read: a message of another protocol, or a torn one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl Malformed {
    pub fn unexpected(what: &str, byte: u8) -> Self {
        Self(format!("{what} {:?}", char::from(byte)))
    }
}

pub type Result<T> = std::result::Result<T, Malformed>;

#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Begin {
        /// Microseconds since 2000: of the commit on the node that the transaction came from.
        timestamp: i64,
        /// Where its commit begins on the node that is read.
        lsn: Lsn,
    },
    /// The transaction came from another node: the origin's name on this one, and where its commit ends
    /// on that one.
    Origin {
        name: String,
        end: Lsn,
    },
    Relation(Relation),
    Insert {
        relation: u32,
        new: Tuple,
    },
    Update {
        relation: u32,
        /// The old key, or the whole old row where that is the identity; `None` if the key is the same.
        old: Option<Tuple>,
        new: Tuple,
    },
    Delete {
        relation: u32,
        /// The key, or the whole row where that is the identity.
        old: Tuple,
    },
    Truncate {
        relations: Vec<u32>,
    },
    Commit,
    /// Of no concern here: types, messages.
    Other,
}

impl Message {
    /// The tables that it changes.
    pub fn tables(&self) -> &[u32] {
        match self {
            Self::Insert { relation, .. }
            | Self::Update { relation, .. }
            | Self::Delete { relation, .. } => std::slice::from_ref(relation),
            Self::Truncate { relations } => relations,
            _ => &[],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub id: u32,
    pub schema: String,
    pub name: String,
    /// The whole row is the identity.
    pub full: bool,
    pub columns: Vec<Column>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// Part of the identity.
    pub key: bool,
}

pub type Tuple = Vec<Value>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    Null,
    /// A large value that the update did not touch; it is not sent.
    Unchanged,
    Text(String),
}

impl From<Option<&str>> for Value {
    fn from(text: Option<&str>) -> Self {
        text.map_or(Self::Null, |text| Self::Text(text.to_owned()))
    }
}
