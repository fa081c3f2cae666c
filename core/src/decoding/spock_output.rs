//! The messages of Spock's output plugin, protocol version 4, which its versions 5.0 and 6 both speak, with
//! values as text. Read off `spock_proto_native.c` of Spock 5.0.11 and 6.0.0.

use super::reader::Reader;
use super::{Column, Malformed, Message, Relation, Result, Tuple};

/// Reads one message.
pub fn parse(bytes: &[u8]) -> Result<Message> {
    let mut reader = Reader::new(bytes);
    let message = match reader.u8()? {
        b'B' => {
            reader.u8()?; // flags, none of which is in use; here and below
            let lsn = reader.lsn()?;
            let timestamp = reader.u64()?.cast_signed();
            reader.u32()?; // transaction id
            Message::Begin { timestamp, lsn }
        }
        b'O' => {
            reader.u8()?;
            let end = reader.lsn()?;
            // The id of the node, which is in no catalog of PostgreSQL's.
            let name = reader.u16()?.to_string();
            Message::Origin { name, end }
        }
        b'R' => Message::Relation(relation(&mut reader)?),
        b'I' => {
            reader.u8()?;
            let relation = reader.u32()?;
            reader.expect(b'N')?;
            Message::Insert {
                relation,
                new: tuple(&mut reader)?,
            }
        }
        b'U' => {
            reader.u8()?;
            let relation = reader.u32()?;
            let old = match reader.u8()? {
                b'K' => {
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
            reader.u8()?;
            let relation = reader.u32()?;
            reader.expect(b'K')?;
            Message::Delete {
                relation,
                old: tuple(&mut reader)?,
            }
        }
        b'T' => {
            let count = reader.u32()?;
            reader.u8()?;
            Message::Truncate {
                relations: (0..count).map(|_| reader.u32()).collect::<Result<_>>()?,
            }
        }
        b'C' => return Ok(Message::Commit),
        b'S' | b'L' | b'M' => return Ok(Message::Other),
        other => return Err(Malformed::unexpected("message", other)),
    };
    reader.end()?;
    Ok(message)
}

fn relation(reader: &mut Reader) -> Result<Relation> {
    reader.u8()?;
    let id = reader.u32()?;
    let length = reader.u8()?;
    let schema = reader.ended(length.into())?;
    let length = reader.u8()?;
    let name = reader.ended(length.into())?;
    reader.expect(b'A')?;
    let count = reader.u16()?;
    let columns = (0..count)
        .map(|_| {
            reader.expect(b'C')?;
            let key = reader.u8()? & 1 == 1;
            reader.expect(b'N')?;
            let length = reader.u16()?;
            let name = reader.ended(length.into())?;
            reader.u32()?; // type
            reader.u32()?; // its modifier
            Ok(Column { name, key })
        })
        .collect::<Result<_>>()?;
    Ok(Relation {
        id,
        schema,
        name,
        full: false,
        columns,
    })
}

fn tuple(reader: &mut Reader) -> Result<Tuple> {
    reader.expect(b'T')?;
    reader.tuple(Reader::ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoding::Value;
    use crate::lsn::Lsn;

    #[test]
    fn the_origin_is_the_id_of_a_node() {
        let bytes = [&b"O\0"[..], &0x10u64.to_be_bytes(), &49708u16.to_be_bytes()].concat();
        assert_eq!(
            parse(&bytes),
            Ok(Message::Origin {
                name: "49708".into(),
                end: Lsn(0x10)
            })
        );
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_table_and_a_row_of_it() {
        let table = [
            &b"R\0"[..],
            &7u32.to_be_bytes(),
            b"\x02s\0\x02t\0A",
            &1u16.to_be_bytes(),
            b"C\x01N",
            &3u16.to_be_bytes(),
            b"id\0",
            &[0; 8],
        ]
        .concat();
        let Ok(Message::Relation(relation)) = parse(&table) else {
            panic!("no table: {:?}", parse(&table));
        };
        assert_eq!(
            (relation.schema.as_str(), relation.name.as_str()),
            ("s", "t")
        );
        assert_eq!(relation.columns[0].name, "id");
        assert!(relation.columns[0].key);
        let row = [
            &b"I\0"[..],
            &7u32.to_be_bytes(),
            b"NT",
            &2u16.to_be_bytes(),
            b"t",
            &2u32.to_be_bytes(),
            b"5\0n",
        ]
        .concat();
        assert_eq!(
            parse(&row),
            Ok(Message::Insert {
                relation: 7,
                new: vec![Value::Text("5".into()), Value::Null]
            })
        );
        assert!(parse(&[&row[..], b"x"].concat()).is_err());
    }
}
