//! Points at which a test has something go wrong: compiled in with the feature `faults` only.
//!
//! The journal makes them: one before and one after every step, so a new step has its own, and one
//! wherever a step with several side effects says how far it is. `zodan.fault` names the point and
//! what happens there:
//!
//! ```text
//! list                                       every point is told as a NOTICE
//! error 3 before create slot sub_n2_n4 on n2 error, kill, panic or hang, the first time it is reached
//! ```

#[cfg(not(feature = "faults"))]
mod points {
    use crate::error::Result;

    pub fn define() {}

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
    use crate::error::{Error, Result, SqlState};
    use crate::rim;
    use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
    use pgrx::prelude::*;
    use std::cell::RefCell;
    use std::ffi::CString;

    static FAULT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

    thread_local! {
        /// The fault that has happened already in this session.
        static PAST: RefCell<String> = const { RefCell::new(String::new()) };
    }

    pub fn define() {
        GucRegistry::define_string_guc(
            c"zodan.fault",
            c"What goes wrong where, for tests.",
            c"\"list\", or error, kill, panic or hang and the name of a point.",
            &FAULT,
            GucContext::Suset,
            GucFlags::default(),
        );
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
        if armed.is_empty() || PAST.with_borrow(|past| *past == armed) {
            return Ok(());
        }
        let name = name()?;
        if armed == "list" {
            rim::notice(&format!("fault point: {name}"));
            return Ok(());
        }
        let Some((action, point)) = armed.split_once(' ') else {
            return Ok(());
        };
        if point != name {
            return Ok(());
        }
        PAST.set(armed.clone());
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
                    name
                );
                Ok(())
            }
            "hang" => hang(),
            _ => Err(Error::internal(format!(
                "zodan.fault has no action \"{action}\""
            ))),
        }
    }
}

pub use points::{define, reached};
