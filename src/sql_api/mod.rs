//! What SQL can call: arguments in, checked, and on to the workflow. The declarations are in `sql/`,
//! one file per procedure.

mod add_node;
mod arguments;
mod native;
