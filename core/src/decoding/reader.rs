//! Numbers and texts of messages in the byte order of networks.

use super::{Malformed, Result, Tuple, Value};
use crate::lsn::Lsn;

pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
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

    pub fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn lsn(&mut self) -> Result<Lsn> {
        self.u64().map(Lsn)
    }

    pub fn expect(&mut self, byte: u8) -> Result<()> {
        match self.u8()? {
            found if found == byte => Ok(()),
            found => Err(Malformed::unexpected("part", found)),
        }
    }

    /// A string up to a zero byte.
    pub fn text(&mut self) -> Result<String> {
        let end = self.bytes.iter().position(|b| *b == 0);
        let end = end.ok_or_else(|| Malformed("a name without an end".into()))?;
        self.ended(end + 1)
    }

    /// A string of `n` bytes with the zero byte that ends it.
    pub fn ended(&mut self, n: usize) -> Result<String> {
        match self.take(n)? {
            [text @ .., 0] => utf8(text),
            _ => Err(Malformed("a text without an end".into())),
        }
    }

    /// A string of `n` bytes.
    pub fn counted(&mut self, n: usize) -> Result<String> {
        self.take(n).and_then(utf8)
    }

    /// The values of a row; `text` reads one of so many bytes.
    pub fn tuple(&mut self, text: impl Fn(&mut Self, usize) -> Result<String>) -> Result<Tuple> {
        let count = self.u16()?;
        (0..count)
            .map(|_| match self.u8()? {
                b'n' => Ok(Value::Null),
                b'u' => Ok(Value::Unchanged),
                b't' => {
                    let length = self.u32()?;
                    Ok(Value::Text(text(self, length as usize)?))
                }
                other => Err(Malformed::unexpected("value", other)),
            })
            .collect()
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<()> {
        match self.bytes {
            [] => Ok(()),
            rest => Err(Malformed(format!("{} bytes too many", rest.len()))),
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("text that is not UTF-8".into()))
}
