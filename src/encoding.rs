//! Texts are UTF-8 in here. In a database of another encoding they are converted on the way to the server's own
//! functions and back; a name that has no form in the other encoding is the server's error, never another name.

use crate::error::{Error, Result};
use pgrx::pg_sys;
use std::borrow::Cow;
use std::ffi::{CStr, CString};

const UTF8: i32 = pg_sys::pg_enc::PG_UTF8 as i32;
const SQL_ASCII: i32 = pg_sys::pg_enc::PG_SQL_ASCII as i32;

/// As the database has it.
pub fn to_server(text: &str) -> Result<CString> {
    let text = CString::new(text).map_err(|_| Error::internal("a text holds a zero byte"))?;
    if text.as_bytes().is_ascii() {
        return Ok(text);
    }
    // SAFETY: a C string of that length. What is converted comes in a copy, else the text itself.
    unsafe {
        let length = text.count_bytes() as i32;
        let converted = pg_sys::pg_any_to_server(text.as_ptr(), length, UTF8);
        if converted.cast_const() == text.as_ptr() {
            return Ok(text);
        }
        let owned = CStr::from_ptr(converted).to_owned();
        pg_sys::pfree(converted.cast());
        Ok(owned)
    }
}

/// From what the database has. Text of a SQL_ASCII database has to be UTF-8.
pub fn from_server(text: &CStr) -> Result<String> {
    let bytes = text.to_bytes();
    let valid = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| Error::internal("text that is not UTF-8"))
    };
    if bytes.is_ascii() {
        return valid(bytes);
    }
    // SAFETY: as above.
    unsafe {
        let converted = pg_sys::pg_server_to_any(text.as_ptr(), bytes.len() as i32, UTF8);
        let owned = valid(CStr::from_ptr(converted).to_bytes());
        if converted.cast_const() != text.as_ptr() {
            pg_sys::pfree(converted.cast());
        }
        owned
    }
}

/// For a message, which the server takes for text of the database: other characters as an escape string has them,
/// where the database is of another encoding.
pub fn shown(text: &str) -> Cow<'_, str> {
    // SAFETY: reads backend state.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    if text.is_ascii() || encoding == UTF8 || encoding == SQL_ASCII {
        return Cow::Borrowed(text);
    }
    Cow::Owned(escaped(text))
}

fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match u32::from(c) {
            0..0x80 => c.to_string(),
            code @ ..0x1_0000 => format!("\\u{code:04x}"),
            code => format!("\\U{code:08x}"),
        })
        .collect()
}

/// The name of the database's encoding.
pub fn of_database() -> String {
    // SAFETY: a C string in static memory.
    unsafe { CStr::from_ptr(pg_sys::GetDatabaseEncodingName()) }
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn what_cannot_be_said_is_escaped() {
        assert_eq!(
            escaped("table \"größe\" 🐘"),
            "table \"gr\\u00f6\\u00dfe\" \\U0001f418"
        );
    }
}
