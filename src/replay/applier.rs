//! Sends rendered changes to the node that lacks them, ahead of its answers; what differs in values only is
//! parsed and planned there once.

use super::Rendering;
use crate::error::{Error, Result};
use crate::libpq::Pipeline;
use crate::node::{Node, Session};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::rc::Rc;

/// So many statements are kept prepared: the node needs memory for each.
const PREPARED: usize = 1000;

/// One without a name is replaced by the next.
const UNNAMED: &CStr = c"";

pub struct Applier<'a> {
    pipeline: Pipeline<'a>,
    prepared: HashMap<Rc<str>, CString>,
}

impl<'a> Applier<'a> {
    /// Over the session of `node`, which is remote.
    pub fn begin(node: &'a mut Node) -> Result<Self> {
        let Session::Remote(conn) = &mut node.session else {
            return Err(Error::internal("a replay over a local session"));
        };
        Ok(Self {
            pipeline: Pipeline::begin(conn)?,
            prepared: HashMap::new(),
        })
    }

    /// Sends what has been rendered. An error may be that of any change before.
    pub fn send(&mut self, rendering: &mut Rendering) -> Result<()> {
        for change in rendering.take() {
            if let Some((sql, name)) = self.prepared.get_key_value(&*change.sql) {
                self.pipeline.execute(name, sql, &change.params)?;
                continue;
            }
            if self.prepared.len() >= PREPARED {
                self.prepared.clear();
                let all = Rc::from("DEALLOCATE ALL");
                self.pipeline.prepare(UNNAMED, &all)?;
                self.pipeline.execute(UNNAMED, &all, &[])?;
            }
            let name = CString::new(format!("z{}", self.prepared.len()))
                .map_err(|_| Error::internal("a name holds a zero byte"))?;
            let sql: Rc<str> = Rc::from(change.sql);
            self.pipeline.prepare(&name, &sql)?;
            self.pipeline.execute(&name, &sql, &change.params)?;
            self.prepared.insert(sql, name);
        }
        Ok(())
    }

    /// Waits until all has been applied.
    pub fn finish(self) -> Result<()> {
        self.pipeline.finish()
    }
}
