//! The table of contents of an archive, as `pg_restore -l` prints it and `-L` takes it.

use std::collections::HashSet;

/// Entries that must not be restored.
#[derive(Debug, Default)]
pub struct Omit {
    /// By the catalog and the OID that the object has on the node that was dumped.
    pub objects: HashSet<(u32, u32)>,
    /// By the text after the OIDs, for entries that name an object without being one: "COMMENT -
    /// EXTENSION zodan". A prefix, since the owner follows.
    pub texts: Vec<String>,
}

impl Omit {
    /// Also leaves out the comment and the security label of an object outside of any schema.
    pub fn labels_of(&mut self, kind: &str, name: &str) {
        for label in ["COMMENT", "SECURITY LABEL"] {
            // pg_dump quotes a name only where it has to
            for name in [name.to_owned(), crate::quote::ident(name)] {
                self.texts.push(format!("{label} - {kind} {name} "));
            }
        }
    }

    fn covers(&self, entry: &Entry<'_>) -> bool {
        self.objects.contains(&entry.object) || self.texts.iter().any(|t| entry.text.starts_with(t))
    }
}

struct Entry<'a> {
    id: u32,
    object: (u32, u32),
    text: &'a str,
}

/// `id; catalog oid kind schema name owner`. Names may hold blanks, so nothing after the numbers is
/// taken apart; pg_dump has replaced line breaks in them.
fn parse(line: &str) -> Option<Entry<'_>> {
    let (id, rest) = line.split_once("; ")?;
    let (catalog, rest) = rest.split_once(' ')?;
    let (oid, text) = rest.split_once(' ')?;
    Some(Entry {
        id: id.parse().ok()?,
        object: (catalog.parse().ok()?, oid.parse().ok()?),
        text,
    })
}

/// What is restored together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Most,
    /// Foreign keys, which the source's own rows may break.
    ForeignKeys,
    /// What needs the foreign keys, and event triggers, which would see them.
    Last,
}

impl Entry<'_> {
    fn part(&self) -> Part {
        let label = |of: &str| {
            ["COMMENT ", "SECURITY LABEL "]
                .iter()
                .any(|label| self.text.starts_with(label) && self.text.contains(of))
        };
        if self.text.starts_with("FK CONSTRAINT ") {
            Part::ForeignKeys
        } else if self.text.starts_with("EVENT TRIGGER ")
            || label(" EVENT TRIGGER ")
            || label(" CONSTRAINT ")
        {
            Part::Last
        } else {
            Part::Most
        }
    }
}

/// The list for `-L`: what `list` has of this part and `omit` does not cover, in the same order.
pub fn select(list: &str, omit: &Omit, part: Part) -> String {
    list.lines()
        .filter_map(parse)
        .filter(|entry| entry.part() == part && !omit.covers(entry))
        .map(|entry| format!("{};\n", entry.id))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = "\
;
; Archive created at 2026-01-01 00:00:00 UTC
;     TOC Entries: 8
;
3; 3079 16389 EXTENSION - zodan 
3601; 0 0 COMMENT - EXTENSION zodan 
3602; 0 0 COMMENT - EXTENSION zodan2 
6; 2615 16385 SCHEMA - app postgres
7; 2615 16386 SCHEMA - a ; b \"c\" post gres
215; 1259 16391 TABLE a ; b \"c\" 3; 3079 16389 postgres
3603; 0 0 COMMENT - EXTENSION \"Odd one\" 
3460; 6104 16500 PUBLICATION - zodan postgres
";

    #[test]
    fn entries_are_left_out_by_object_and_by_text() {
        let mut omit = Omit::default();
        omit.objects
            .extend([(3079, 16389), (2615, 16385), (6104, 16500)]);
        omit.labels_of("EXTENSION", "zodan");
        omit.labels_of("EXTENSION", "Odd one");
        assert_eq!(select(LIST, &omit, Part::Most), "3602;\n7;\n215;\n");
    }

    #[test]
    fn all_is_kept_by_default() {
        assert_eq!(
            select(LIST, &Omit::default(), Part::Most).lines().count(),
            8
        );
    }

    #[test]
    fn foreign_keys_and_what_follows_them_are_apart() {
        let list = "\
3; 2606 1 FK CONSTRAINT app item item_fkey postgres
4; 0 0 COMMENT app CONSTRAINT item_fkey ON item postgres
5; 3466 2 EVENT TRIGGER - guard postgres
6; 0 0 COMMENT - EVENT TRIGGER guard postgres
7; 2606 3 CONSTRAINT app item item_pkey postgres
8; 2620 4 TRIGGER app item guard postgres
";
        let part = |part| select(list, &Omit::default(), part);
        assert_eq!(part(Part::ForeignKeys), "3;\n");
        assert_eq!(part(Part::Last), "4;\n5;\n6;\n");
        assert_eq!(part(Part::Most), "7;\n8;\n");
    }

    proptest! {
        #[test]
        fn whatever_pg_restore_lists_is_an_entry_or_none(list in any::<String>(), id in any::<u32>(), name in "\\PC{0,30}") {
            let _ = select(&list, &Omit::default(), Part::Most);
            let line = format!("{id}; 1259 16391 TABLE {name} owner");
            prop_assert_eq!(select(&line, &Omit::default(), Part::Most), format!("{id};\n"));
        }
    }
}
