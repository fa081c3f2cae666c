//! The messages of PostgreSQL's own output plugin, protocol version 1.
//! <https://www.postgresql.org/docs/17/protocol-logicalrep-message-formats.html>

use crate::lsn::Lsn;

/// What cannot be read: a message of another protocol, or a torn one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

type Result<T> = std::result::Result<T, Malformed>;

#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Begin {
        /// Microseconds since 2000: of the commit on the node that the transaction came from.
        timestamp: i64,
        /// Its transaction id on the node that is read.
        xid: u32,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    /// A large value that the update did not touch; it is not sent.
    Unchanged,
    Text(String),
}

/// Reads one message.
pub fn parse(bytes: &[u8]) -> Result<Message> {
    let mut reader = Reader { bytes };
    let message = match reader.u8()? {
        b'B' => {
            reader.u64()?; // where its commit is here
            let timestamp = reader.u64()?.cast_signed();
            let xid = reader.u32()?;
            Message::Begin { timestamp, xid }
        }
        b'O' => {
            let end = Lsn(reader.u64()?);
            Message::Origin {
                name: reader.text()?,
                end,
            }
        }
        b'R' => Message::Relation(reader.relation()?),
        b'I' => {
            let relation = reader.u32()?;
            reader.expect(b'N')?;
            Message::Insert {
                relation,
                new: reader.tuple()?,
            }
        }
        b'U' => {
            let relation = reader.u32()?;
            let old = match reader.u8()? {
                b'K' | b'O' => {
                    let old = reader.tuple()?;
                    reader.expect(b'N')?;
                    Some(old)
                }
                b'N' => None,
                other => return Err(unexpected("part of an update", other)),
            };
            Message::Update {
                relation,
                old,
                new: reader.tuple()?,
            }
        }
        b'D' => {
            let relation = reader.u32()?;
            match reader.u8()? {
                b'K' | b'O' => {}
                other => return Err(unexpected("part of a delete", other)),
            }
            Message::Delete {
                relation,
                old: reader.tuple()?,
            }
        }
        b'T' => {
            let count = reader.u32()?;
            reader.u8()?; // CASCADE and RESTART IDENTITY: all tables that went are named
            Message::Truncate {
                relations: (0..count).map(|_| reader.u32()).collect::<Result<_>>()?,
            }
        }
        b'C' => {
            reader.take(1 + 8 + 8 + 8)?;
            Message::Commit
        }
        b'Y' | b'M' => return Ok(Message::Other),
        other => return Err(unexpected("message", other)),
    };
    match reader.bytes {
        [] => Ok(message),
        rest => Err(Malformed(format!("{} bytes too many", rest.len()))),
    }
}

fn unexpected(what: &str, byte: u8) -> Malformed {
    Malformed(format!("{what} {:?}", char::from(byte)))
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self
            .bytes
            .split_at_checked(n)
            .ok_or_else(|| Malformed("it ends too early".into()))?;
        self.bytes = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N)?;
        taken
            .try_into()
            .map_err(|_| Malformed("it ends too early".into()))
    }

    fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        match self.u8()? {
            found if found == byte => Ok(()),
            found => Err(unexpected("part", found)),
        }
    }

    /// A string that a zero byte ends.
    fn text(&mut self) -> Result<String> {
        let end = self.bytes.iter().position(|b| *b == 0);
        let end = end.ok_or_else(|| Malformed("a name without an end".into()))?;
        let text = utf8(self.take(end)?)?;
        self.take(1)?;
        Ok(text)
    }

    fn relation(&mut self) -> Result<Relation> {
        let id = self.u32()?;
        let schema = match self.text()? {
            schema if schema.is_empty() => "pg_catalog".into(),
            schema => schema,
        };
        let name = self.text()?;
        let full = self.u8()? == b'f';
        let count = self.u16()?;
        let columns = (0..count)
            .map(|_| {
                let key = self.u8()? & 1 == 1;
                let name = self.text()?;
                self.u32()?; // type
                self.u32()?; // its modifier
                Ok(Column { name, key })
            })
            .collect::<Result<_>>()?;
        Ok(Relation {
            id,
            schema,
            name,
            full,
            columns,
        })
    }

    fn tuple(&mut self) -> Result<Tuple> {
        let count = self.u16()?;
        (0..count)
            .map(|_| match self.u8()? {
                b'n' => Ok(Value::Null),
                b'u' => Ok(Value::Unchanged),
                b't' => {
                    let length = self.u32()?;
                    Ok(Value::Text(utf8(self.take(length as usize)?)?))
                }
                other => Err(unexpected("value", other)),
            })
            .collect()
    }
}

fn utf8(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("text that is not UTF-8".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn an_update_with_an_old_key_and_an_untouched_value() {
        let bytes = message(&[
            b"U",
            &7u32.to_be_bytes(),
            b"K",
            &2u16.to_be_bytes(),
            b"t",
            &1u32.to_be_bytes(),
            b"5",
            b"n",
            b"N",
            &2u16.to_be_bytes(),
            b"t",
            &1u32.to_be_bytes(),
            b"6",
            b"u",
        ]);
        assert_eq!(
            parse(&bytes),
            Ok(Message::Update {
                relation: 7,
                old: Some(vec![Value::Text("5".into()), Value::Null]),
                new: vec![Value::Text("6".into()), Value::Unchanged],
            })
        );
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end]).is_err(), "{end}");
        }
        assert!(parse(&message(&[&bytes, b"x"])).is_err());
    }

    #[test]
    fn where_a_transaction_came_from() {
        let origin = message(&[b"O", &0x1_0000_0010u64.to_be_bytes(), b"pg_16400\0"]);
        assert_eq!(
            parse(&origin),
            Ok(Message::Origin {
                name: "pg_16400".into(),
                end: Lsn(0x1_0000_0010),
            })
        );
        let begin = message(&[
            b"B",
            &1u64.to_be_bytes(),
            &(-5i64).to_be_bytes(),
            &7u32.to_be_bytes(),
        ]);
        assert_eq!(
            parse(&begin),
            Ok(Message::Begin {
                timestamp: -5,
                xid: 7
            })
        );
        assert_eq!(parse(&[&b"C"[..], &[0; 25]].concat()), Ok(Message::Commit));
    }

    #[test]
    fn a_relation_with_its_key() {
        let bytes = message(&[
            b"R",
            &9u32.to_be_bytes(),
            b"public\0t\0d",
            &2u16.to_be_bytes(),
            &[1],
            b"id\0",
            &23u32.to_be_bytes(),
            &u32::MAX.to_be_bytes(),
            &[0],
            b"v\0",
            &25u32.to_be_bytes(),
            &u32::MAX.to_be_bytes(),
        ]);
        let Ok(Message::Relation(relation)) = parse(&bytes) else {
            panic!("no relation");
        };
        assert_eq!((relation.id, relation.full), (9, false));
        let keys: Vec<(&str, bool)> = relation
            .columns
            .iter()
            .map(|c| (c.name.as_str(), c.key))
            .collect();
        assert_eq!(keys, [("id", true), ("v", false)]);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(parse(b"").is_err());
        assert!(parse(b"Z").is_err());
        assert_eq!(parse(b"M anything"), Ok(Message::Other));
    }
}
