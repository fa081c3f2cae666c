//! Connection strings: parsed by libpq itself, never printed.

use pq_sys as pq;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::ptr::null_mut;

/// A shorter secret would blot out ordinary words, and no text of ours quotes secrets anyway.
const SHORTEST_SCRUBBED: usize = 4;

thread_local! {
    static SECRETS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// `message` with every secret of every connection string parsed in this session blotted out. For
/// texts that come from other servers and programs, which may quote what they were given.
pub fn scrub(message: &str) -> String {
    SECRETS.with_borrow(|known| {
        known.iter().fold(message.to_owned(), |text, secret| {
            text.replace(secret.as_str(), "********")
        })
    })
}

/// A parsed connection string (keyword or URI form). It has no `Display`, and `Debug` hides every
/// option that libpq marks as a password, so it cannot reach a message by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn {
    options: Vec<DsnOption>,
}

#[derive(Clone, PartialEq, Eq)]
struct DsnOption {
    keyword: String,
    value: String,
    secret: bool,
}

/// Why a connection string was refused. The text of libpq is not in it: it quotes the offending
/// word, which may be part of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadDsn {
    ContainsNul,
    Unparsable,
}

impl BadDsn {
    pub fn problem(self) -> &'static str {
        match self {
            Self::ContainsNul => "contains a zero byte",
            Self::Unparsable => "is not a connection string that libpq understands",
        }
    }
}

impl Dsn {
    /// Of a node that is worked on from within, so that nobody connects by it.
    pub fn nowhere() -> Self {
        Self { options: vec![] }
    }

    /// Parses the keyword (`host=h port=5432`) or URI (`postgresql://h:5432/db`) form.
    pub fn parse(text: &str) -> Result<Self, BadDsn> {
        let text = CString::new(text).map_err(|_| BadDsn::ContainsNul)?;
        let mut message: *mut c_char = null_mut();
        // SAFETY: text is a C string; libpq allocates list and message, both freed below.
        let list = unsafe { pq::PQconninfoParse(text.as_ptr(), &mut message) };
        if list.is_null() {
            // SAFETY: allocated by libpq, null is allowed.
            unsafe { pq::PQfreemem(message.cast()) };
            return Err(BadDsn::Unparsable);
        }
        let mut options = vec![];
        let mut entry = list;
        // SAFETY: libpq ends the array with an entry whose keyword is null.
        unsafe {
            while !(*entry).keyword.is_null() {
                if !(*entry).val.is_null() {
                    options.push(DsnOption {
                        keyword: CStr::from_ptr((*entry).keyword)
                            .to_string_lossy()
                            .into_owned(),
                        value: CStr::from_ptr((*entry).val).to_string_lossy().into_owned(),
                        // "*" marks a password field, whatever this version of libpq has of them
                        secret: *(*entry).dispchar == b'*' as c_char,
                    });
                }
                entry = entry.add(1);
            }
            pq::PQconninfoFree(list);
        }
        let dsn = Self { options };
        // "user:pass@word@host": the rest of an unescaped password would be taken for a host, and
        // shown. A socket's path may hold the character, and an abstract socket begins with it.
        let is_host = |host: &str| host.starts_with(['/', '@']) || !host.contains('@');
        if dsn
            .get("host")
            .is_some_and(|hosts| !hosts.split(',').all(is_host))
        {
            return Err(BadDsn::Unparsable);
        }
        // libpq itself looks at the number only when it connects.
        let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok_and(|p| p > 0);
        if dsn
            .get("port")
            .is_some_and(|ports| !ports.split(',').all(is_port))
        {
            return Err(BadDsn::Unparsable);
        }
        SECRETS.with_borrow_mut(|known| {
            for secret in dsn
                .secrets()
                .into_iter()
                .filter(|s| s.len() >= SHORTEST_SCRUBBED)
            {
                if !known.iter().any(|k| k == secret) {
                    known.push(secret.to_owned());
                }
            }
            known.sort_by_key(|s| std::cmp::Reverse(s.len()));
        });
        Ok(dsn)
    }

    /// Keyword, value and whether the value is a secret.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        self.options
            .iter()
            .map(|o| (o.keyword.as_str(), o.value.as_str(), o.secret))
    }

    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.options
            .iter()
            .find(|o| o.keyword == keyword)
            .map(|o| o.value.as_str())
    }

    /// The values that must never be shown, longest first so that none survives as a part of another.
    pub fn secrets(&self) -> Vec<&str> {
        let mut secrets: Vec<&str> = self
            .options
            .iter()
            .filter(|o| o.secret && !o.value.is_empty())
            .map(|o| o.value.as_str())
            .collect();
        secrets.sort_by_key(|s| std::cmp::Reverse(s.len()));
        secrets
    }

    /// The keyword form for a human, without secrets.
    pub fn redacted(&self) -> String {
        self.options
            .iter()
            .map(|o| {
                let value = if o.secret { "********" } else { &o.value };
                format!("{}={}", o.keyword, quote_value(value))
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The keyword form without secrets, which still connects where none is asked for.
    pub fn without_secrets(&self) -> String {
        let open = self.options.iter().filter(|o| !o.secret);
        open.map(|o| format!("{}={}", o.keyword, quote_value(&o.value)))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The keyword form, secrets included: for libpq and for the engines' own catalogs, nothing else.
    pub fn reveal(&self) -> String {
        self.options
            .iter()
            .map(|o| format!("{}={}", o.keyword, quote_value(&o.value)))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl std::fmt::Debug for Dsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.redacted())
    }
}

/// Quotes a value of the keyword form as libpq's parser reads it.
fn quote_value(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && c != '\'' && c != '\\';
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_forms_are_parsed() {
        for text in [
            "host=h port=5432 dbname=d user=u password=s3cret",
            "host = h port = 5432 dbname = 'd' user=u password = 's3cret'",
            "postgresql://u:s3cret@h:5432/d",
            "postgres://u@h:5432/d?password=s3cret",
        ] {
            let dsn = Dsn::parse(text).unwrap();
            assert_eq!(dsn.get("host"), Some("h"), "{text}");
            assert_eq!(dsn.get("dbname"), Some("d"), "{text}");
            assert_eq!(dsn.secrets(), ["s3cret"], "{text}");
        }
        let multi = Dsn::parse("postgresql://a:1,b:2/d?target_session_attrs=read-write").unwrap();
        assert_eq!(multi.get("host"), Some("a,b"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let dsn = Dsn::parse("host=h password='a b\\'c' sslpassword=zzzz").unwrap();
        let shown = format!("{dsn:?}");
        assert!(shown.contains("host=h"), "{shown}");
        assert!(shown.contains("password=********") && shown.contains("sslpassword=********"));
        assert!(!shown.contains("a b") && !shown.contains("zzzz"), "{shown}");
        assert_eq!(dsn.without_secrets(), "host=h");
        assert_eq!(scrub("said a b'c and zzzz"), "said ******** and ********");
    }

    #[test]
    fn exposing_and_parsing_is_the_identity() {
        let dsn =
            Dsn::parse("host=/tmp/a\\ b user='o\\'x' password='\\\\ ' options='-c a=b'").unwrap();
        assert!(Dsn::parse(&dsn.reveal()).unwrap() == dsn);
    }

    #[test]
    fn bad_strings_are_refused_without_being_quoted() {
        assert_eq!(Dsn::parse("secret no equals"), Err(BadDsn::Unparsable));
        assert_eq!(Dsn::parse("a\0b"), Err(BadDsn::ContainsNul));
        assert_eq!(Dsn::parse("host=h port=x"), Err(BadDsn::Unparsable));
        assert_eq!(
            Dsn::parse("postgresql://u:half@way@h/d"),
            Err(BadDsn::Unparsable)
        );
        assert!(Dsn::parse("host=/a@b,@abstract,h port=1,,2").is_ok());
        assert!(!BadDsn::Unparsable.problem().contains("secret"));
    }

    /// What a value may hold: blanks, quotes and backslashes above all.
    const VALUE: &str = "([ '\\\\=a-zA-Z0-9@/:%é\t]|\\PC){0,24}";

    proptest! {
        #[test]
        fn no_text_makes_the_parser_fall_over(text in any::<String>(), keyword in "(host|port|user|password|options)?") {
            for text in [text.clone(), format!("{keyword}={text}"), format!("postgresql://{text}"), format!("postgres://u:{text}@h/d")] {
                if let Ok(dsn) = Dsn::parse(&text) {
                    prop_assert!(Dsn::parse(&dsn.reveal()).is_ok_and(|again| again == dsn), "{text:?}");
                    prop_assert!(Dsn::parse(&dsn.without_secrets()).is_ok(), "{text:?}");
                }
            }
        }

        #[test]
        fn every_value_is_what_libpq_reads_again(user in VALUE, options in VALUE, password in VALUE) {
            let text = format!(
                "user={} options={} password={}",
                quote_value(&user), quote_value(&options), quote_value(&password)
            );
            let dsn = Dsn::parse(&text).unwrap();
            for (keyword, value) in [("user", user), ("options", options), ("password", password)] {
                prop_assert_eq!(dsn.get(keyword).unwrap_or_default(), value);
            }
        }

        #[test]
        fn no_form_for_humans_has_the_secret(secret in "[ '\\\\=A-Z0-9]{0,8}#secret#[ '\\\\=A-Z0-9]{0,8}") {
            let dsn = Dsn::parse(&format!("host=h user=u password={}", quote_value(&secret))).unwrap();
            for shown in [format!("{dsn:?}"), dsn.redacted(), dsn.without_secrets()] {
                prop_assert!(!shown.contains("#secret#"), "{shown}");
            }
            let said = scrub(&format!("could not use {secret} there"));
            prop_assert!(!said.contains("#secret#"), "{said}");
        }
    }
}
