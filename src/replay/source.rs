//! Decodes the transactions of a node from a slot, in the order in which they were committed there.

use crate::error::{Error, Result};
use crate::libpq::{Conn, CopyOut};
use crate::quote::literal;
use zodan_core::decoding::{Malformed, Message, pgoutput, spock_output};

/// What begins the binary format of COPY.
const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const BINARY_TRAILER: &[u8] = b"\xff\xff";

/// What an output plugin speaks.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    Pgoutput,
    Spock,
}

/// How a slot is made and read for a replay.
#[derive(Clone, Copy, Debug)]
pub struct Decoding {
    pub plugin: &'static str,
    /// The options of the plugin, as SQL expressions.
    pub options: &'static str,
    pub protocol: Protocol,
}

/// The committed transactions of a node, message by message.
pub struct Transactions<'a> {
    copy: CopyOut<'a>,
    node: String,
    protocol: Protocol,
}

impl<'a> Transactions<'a> {
    /// Everything that `slot` on the node of `conn` still has, up to now. The slot is left where it is.
    pub fn peek(conn: &'a mut Conn, node: &str, slot: &str, decoding: &Decoding) -> Result<Self> {
        let changes = format!(
            "COPY (SELECT data FROM pg_logical_slot_peek_binary_changes({}, NULL, NULL, {})) \
             TO STDOUT (FORMAT binary)",
            literal(slot),
            decoding.options
        );
        Ok(Self {
            copy: conn.copy_out(&changes)?,
            node: node.to_owned(),
            protocol: decoding.protocol,
        })
    }

    /// The next message; `None` at the end.
    #[allow(clippy::should_implement_trait)] // it can fail, and borrows the session
    pub fn next(&mut self) -> Result<Option<Message>> {
        loop {
            let Some(chunk) = self.copy.next()? else {
                return Ok(None);
            };
            let row = chunk.strip_prefix(BINARY_HEADER).unwrap_or(&chunk);
            if row.is_empty() || row == BINARY_TRAILER {
                continue;
            }
            let parse = match self.protocol {
                Protocol::Pgoutput => pgoutput::parse,
                Protocol::Spock => spock_output::parse,
            };
            return match field(row).and_then(parse) {
                Ok(message) => Ok(Some(message)),
                Err(bad) => Err(Error::internal(format!(
                    "node \"{}\" sent a change that cannot be read: {}",
                    self.node, bad.0
                ))),
            };
        }
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
