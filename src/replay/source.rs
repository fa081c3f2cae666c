//! Decodes the transactions of a node from a slot, in the order in which they were committed there, and
//! tells those of one origin from the others.

use super::pgoutput::{self, Malformed, Message};
use crate::error::{Error, Result};
use crate::libpq::{Conn, CopyOut};
use crate::lsn::Lsn;
use crate::quote::literal;
use std::collections::BTreeMap;

/// What begins the binary format of COPY.
const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const BINARY_TRAILER: &[u8] = b"\xff\xff";

/// The committed transactions of a node.
pub struct Transactions<'a> {
    copy: CopyOut<'a>,
    node: String,
    origin: Origin,
    /// The transaction under way is one of the list, and nothing of it has been handed out.
    listed: Option<Lsn>,
    /// When the transaction under way was committed.
    timestamp: i64,
}

/// How the transactions of the origin are told from others.
pub enum Origin {
    /// By the name that the node's own progress goes by.
    Named(String),
    /// By their ids on the node, with where each one's commit is on the origin: where the engine gives
    /// transactions an origin that has no name.
    Listed(BTreeMap<u32, Lsn>),
}

/// What has been read next.
#[derive(Debug)]
pub enum Transaction {
    /// A transaction begins, committed at that time in microseconds since 2000.
    Begin {
        timestamp: i64,
    },
    /// The one that has begun is of the origin: where its commit ends there.
    OfOrigin {
        end: Lsn,
        timestamp: i64,
    },
    /// A change of it. Descriptions of tables come whichever transaction they are needed in.
    Change(Message),
    Commit,
}

impl<'a> Transactions<'a> {
    /// Everything that `slot` on the node of `conn` still has, up to now. The slot is left where it is.
    pub fn peek(
        conn: &'a mut Conn,
        node: &str,
        slot: &str,
        publication: &str,
        origin: Origin,
    ) -> Result<Self> {
        let changes = format!(
            "COPY (SELECT data FROM pg_logical_slot_peek_binary_changes({}, NULL, NULL, \
             'proto_version', '1', 'publication_names', {}, 'origin', 'any')) TO STDOUT (FORMAT binary)",
            literal(slot),
            literal(&crate::quote::ident(publication))
        );
        Ok(Self {
            copy: conn.copy_out(&changes)?,
            node: node.to_owned(),
            origin,
            listed: None,
            timestamp: 0,
        })
    }

    /// The next piece of a transaction; `None` at the end.
    #[allow(clippy::should_implement_trait)] // it can fail, and borrows the session
    pub fn next(&mut self) -> Result<Option<Transaction>> {
        loop {
            if let Some(end) = self.listed.take() {
                let timestamp = self.timestamp;
                return Ok(Some(Transaction::OfOrigin { end, timestamp }));
            }
            let Some(chunk) = self.copy.next()? else {
                return Ok(None);
            };
            let row = chunk.strip_prefix(BINARY_HEADER).unwrap_or(&chunk);
            if row.is_empty() || row == BINARY_TRAILER {
                continue;
            }
            let message = field(row)
                .and_then(pgoutput::parse)
                .map_err(|bad| self.malformed(&bad))?;
            return Ok(Some(match message {
                Message::Begin { timestamp, xid } => {
                    self.timestamp = timestamp;
                    if let Origin::Listed(known) = &self.origin {
                        self.listed = known.get(&xid).copied();
                    }
                    Transaction::Begin { timestamp }
                }
                Message::Origin { name, end } if self.is_named(&name) => Transaction::OfOrigin {
                    end,
                    timestamp: self.timestamp,
                },
                Message::Origin { .. } | Message::Other => continue,
                Message::Commit => Transaction::Commit,
                change => Transaction::Change(change),
            }));
        }
    }

    fn is_named(&self, name: &str) -> bool {
        matches!(&self.origin, Origin::Named(origin) if origin == name)
    }

    fn malformed(&self, bad: &Malformed) -> Error {
        Error::internal(format!(
            "node \"{}\" sent a change that cannot be read: {}",
            self.node, bad.0
        ))
    }
}

/// The only field of a row of a binary copy.
fn field(row: &[u8]) -> std::result::Result<&[u8], Malformed> {
    let torn = || Malformed("a row without its field".into());
    let (head, data) = row.split_at_checked(6).ok_or_else(torn)?;
    let length = i32::from_be_bytes([head[2], head[3], head[4], head[5]]);
    match (&head[..2], usize::try_from(length)) {
        (&[0, 1], Ok(length)) if length == data.len() => Ok(data),
        _ => Err(torn()),
    }
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn a_row_has_one_whole_field() {
        assert_eq!(field(b"\0\x01\0\0\0\x02ab"), Ok(&b"ab"[..]));
        for torn in [
            &b"\0\x01\0\0\0\x02a"[..],
            b"\0\x02\0\0\0\x02ab",
            b"\0\x01\xff\xff\xff\xff",
            b"",
        ] {
            assert!(field(torn).is_err(), "{torn:?}");
        }
    }
}
