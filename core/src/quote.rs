//! Names and values that come from elsewhere, made harmless for a statement.

/// `name` as a quoted identifier, always quoted.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `schema.name`, both quoted.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// `text` as a literal, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_stay_one_token() {
        assert_eq!(
            ident("a\"; DROP TABLE x; --"),
            "\"a\"\"; DROP TABLE x; --\""
        );
        assert_eq!(qualified("S 1", "t"), "\"S 1\".\"t\"");
        assert_eq!(literal("n'3"), "'n''3'");
        assert_eq!(literal("\\'"), "E'\\\\'''");
    }

    proptest! {
        /// Read back as the server reads it: nothing of the name gets out of the quotes.
        #[test]
        fn every_name_stays_between_its_quotes(name in any::<String>()) {
            let quoted = ident(&name);
            let inner = quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"')).unwrap();
            prop_assert_eq!(inner.replace("\"\"", "").contains('"'), false);
            prop_assert_eq!(inner.replace("\"\"", "\""), name);
        }

        #[test]
        fn every_text_stays_between_its_quotes(text in any::<String>()) {
            let quoted = literal(&text);
            let escaped = quoted.starts_with('E');
            let inner = quoted.trim_start_matches('E').strip_prefix('\'').and_then(|q| q.strip_suffix('\'')).unwrap();
            let mut read = String::new();
            let mut chars = inner.chars();
            while let Some(c) = chars.next() {
                if c == '\'' || c == '\\' && escaped {
                    prop_assert_eq!(chars.next(), Some(c), "{}", quoted);
                }
                read.push(c);
            }
            prop_assert_eq!(read, text);
        }
    }
}
