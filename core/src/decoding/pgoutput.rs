//! The messages of PostgreSQL's own output plugin, protocol version 1.
//! <https://www.postgresql.org/docs/17/protocol-logicalrep-message-formats.html>

use super::reader::Reader;
use super::{Column, Malformed, Message, Relation, Result, Tuple};

/// Reads one message.
pub fn parse(bytes: &[u8]) -> Result<Message> {
    let mut reader = Reader::new(bytes);
    let message = match reader.u8()? {
        b'B' => {
            let lsn = reader.lsn()?;
            let timestamp = reader.u64()?.cast_signed();
            reader.u32()?; // its transaction id
            Message::Begin { timestamp, lsn }
        }
        b'O' => {
            let end = reader.lsn()?;
            Message::Origin {
                name: reader.text()?,
                end,
            }
        }
        b'R' => Message::Relation(relation(&mut reader)?),
        b'I' => {
            let relation = reader.u32()?;
            reader.expect(b'N')?;
            Message::Insert {
                relation,
                new: tuple(&mut reader)?,
            }
        }
        b'U' => {
            let relation = reader.u32()?;
            let old = match reader.u8()? {
                b'K' | b'O' => {
                    let old = tuple(&mut reader)?;
                    reader.expect(b'N')?;
                    Some(old)
                }
                b'N' => None,
                other => return Err(Malformed::unexpected("part of an update", other)),
            };
            Message::Update {
                relation,
                old,
                new: tuple(&mut reader)?,
            }
        }
        b'D' => {
            let relation = reader.u32()?;
            match reader.u8()? {
                b'K' | b'O' => {}
                other => return Err(Malformed::unexpected("part of a delete", other)),
            }
            Message::Delete {
                relation,
                old: tuple(&mut reader)?,
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
        other => return Err(Malformed::unexpected("message", other)),
    };
    reader.end()?;
    Ok(message)
}

fn relation(reader: &mut Reader) -> Result<Relation> {
    let id = reader.u32()?;
    let schema = match reader.text()? {
        schema if schema.is_empty() => "pg_catalog".into(),
        schema => schema,
    };
    let name = reader.text()?;
    let full = reader.u8()? == b'f';
    let count = reader.u16()?;
    let columns = (0..count)
        .map(|_| {
            let key = reader.u8()? & 1 == 1;
            let name = reader.text()?;
            reader.u32()?; // type
            reader.u32()?; // its modifier
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

fn tuple(reader: &mut Reader) -> Result<Tuple> {
    reader.tuple(Reader::counted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoding::Value;
    use crate::lsn::Lsn;

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
                lsn: Lsn(1)
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
