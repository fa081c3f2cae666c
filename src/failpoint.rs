//! Points at which a test has something go wrong: compiled in with the feature `faults` only.
//!
//! The journal makes them: one before and one after every step, so a new step has its own, and one
//! wherever a step with several side effects says how far it is. `zodan.failpoint` names points and what
//! happens there, with `; ` between them:
//!
//! ```text
//! list                                       every point is told as a NOTICE
//! event triggers fire                        those of users, for what zodan does: they can refuse any statement
//! error 4 before marker on n2               error, kill, panic or hang, the first time it is reached
//! ```

#[cfg(not(feature = "faults"))]
mod points {
    use crate::error::Result;

    pub fn define() {}

    #[inline(always)]
    pub fn event_triggers_fire() -> bool {
        false
    }

    #[inline(always)]
    pub fn reached(
        _name: impl FnOnce() -> Result<String>,
        _hang: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        Ok(())
    }
}

#[cfg(feature = "faults")]
mod points {
    use crate::ereport;
    use crate::error::{Error, Result, SqlState};
    use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
    use pgrx::prelude::*;
    use std::cell::RefCell;
    use std::ffi::CString;

    const EVENT_TRIGGERS: &str = "event triggers fire";

    static FAULT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

    thread_local! {
        /// The faults that have happened already in this session.
        static PAST: RefCell<Vec<String>> = const { RefCell::new(vec![]) };
    }

    pub fn define() {
        GucRegistry::define_string_guc(
            c"zodan.failpoint",
            c"What goes wrong where, for tests.",
            c"\"list\", or error, kill, panic or hang and the name of a point.",
            &FAULT,
            GucContext::Suset,
            GucFlags::default(),
        );
    }

    pub fn event_triggers_fire() -> bool {
        // pgrx gives the setting to one thread alone, and each unit test has its own.
        if cfg!(test) {
            return false;
        }
        let armed = FAULT.get().unwrap_or_default();
        let armed = armed.to_string_lossy();
        armed.split("; ").any(|fault| fault == EVENT_TRIGGERS)
    }

    /// What happens at a point; `hang` waits until the test lets it go on.
    pub fn reached(
        name: impl FnOnce() -> Result<String>,
        hang: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let armed = FAULT
            .get()
            .unwrap_or_default()
            .into_string()
            .unwrap_or_default();
        if armed.is_empty() {
            return Ok(());
        }
        let name = without_hashes(&name()?);
        for fault in armed.split("; ") {
            if fault == EVENT_TRIGGERS {
                continue;
            }
            if fault == "list" {
                ereport::notice(&format!("fault point: {name}"));
                continue;
            }
            let Some((action, point)) = fault.split_once(' ') else {
                continue;
            };
            if point == name && PAST.with_borrow(|past| past.iter().all(|p| p != fault)) {
                PAST.with_borrow_mut(|past| past.push(fault.to_owned()));
                return happen(action, &name, hang);
            }
        }
        Ok(())
    }

    /// A point is called the same in every cluster, and for every node of a name: names of slots and subscriptions are
    /// without what they end with.
    fn without_hashes(name: &str) -> String {
        let short = |word: &str| match word.rsplit_once('_') {
            Some((slot, hash)) if slot.starts_with("sub_") && is_hash(hash) => slot.to_owned(),
            Some((name, generation)) if is_generation(generation) => name.to_owned(),
            _ => word.to_owned(),
        };
        name.split(' ').map(short).collect::<Vec<_>>().join(" ")
    }

    fn is_generation(text: &str) -> bool {
        let number = text.strip_prefix("gen").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    }

    fn is_hash(text: &str) -> bool {
        text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit())
    }

    fn happen(action: &str, name: &str, hang: impl FnOnce() -> Result<()>) -> Result<()> {
        match action {
            "error" => Err(Error::refused(
                SqlState::INTERNAL_ERROR,
                format!("fault: {name}"),
                "A test wanted it.",
            )),
            "kill" => {
                // SAFETY: our own process, which does not come back from it.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                Ok(())
            }
            "panic" => {
                ereport!(
                    PgLogLevel::PANIC,
                    PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                    name.to_owned()
                );
                Ok(())
            }
            "hang" => hang(),
            _ => Err(Error::internal(format!(
                "zodan.failpoint has no action \"{action}\""
            ))),
        }
    }
}

pub use points::{define, event_triggers_fire, reached};
