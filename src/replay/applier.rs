//! Sends rendered changes to the node that lacks them, ahead of its answers; what differs in values only is
//! parsed and planned there once.

use super::{About, Rendering};
use crate::error::{Error, Result};
use crate::libpq::Pipeline;
use crate::node::{Node, Session};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::rc::Rc;

/// So many statements are kept prepared: the node needs memory for each.
const PREPARED: usize = 1000;

/// Of so many rows that were left as they were it is known which.
const IDLE: usize = 10_000;

/// One without a name is replaced by the next.
const UNNAMED: &CStr = c"";

pub struct Applier<'a> {
    pipeline: Pipeline<'a, About>,
    prepared: HashMap<Rc<str>, CString>,
    idle: Vec<About>,
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
            idle: vec![],
        })
    }

    /// Sends what has been rendered. An error may be that of any change before.
    pub fn send(&mut self, rendering: &mut Rendering) -> Result<()> {
        for change in rendering.take() {
            if let Some((sql, name)) = self.prepared.get_key_value(&*change.sql) {
                self.pipeline
                    .execute(name, sql, &change.params, change.about)?;
                continue;
            }
            if self.prepared.len() >= PREPARED {
                self.prepared.clear();
                let all = Rc::from("DEALLOCATE ALL");
                self.pipeline.prepare(UNNAMED, &all)?;
                self.pipeline.execute(UNNAMED, &all, &[], None)?;
            }
            let name = CString::new(format!("z{}", self.prepared.len()))
                .map_err(|_| Error::internal("a name holds a zero byte"))?;
            let sql: Rc<str> = Rc::from(change.sql);
            self.pipeline.prepare(&name, &sql)?;
            self.pipeline
                .execute(&name, &sql, &change.params, change.about)?;
            self.prepared.insert(sql, name);
        }
        let idle = self.pipeline.take_idle();
        self.keep(idle);
        Ok(())
    }

    fn keep(&mut self, idle: Vec<About>) {
        let room = IDLE - self.idle.len();
        self.idle.extend(idle.into_iter().take(room));
    }

    /// Waits until all has been applied; the rows that were watched and left as they were, if they were there.
    pub fn finish(mut self) -> Result<Vec<About>> {
        let last = self.pipeline.finish()?;
        let room = IDLE - self.idle.len();
        self.idle.extend(last.into_iter().take(room));
        Ok(self.idle)
    }
}
