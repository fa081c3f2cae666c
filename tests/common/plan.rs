//! A plan beside the journal of the run that follows it.

use lab::{Called, Server};

/// The same arguments for the plan as for the CALL.
pub fn plan_of(call: &str) -> String {
    call.replace("CALL spock.recover_run", "SELECT * FROM spock.recover_plan")
        .replace("CALL spock.add_node", "SELECT * FROM spock.add_node_plan")
        .replace(
            "CALL spock.remove_node",
            "SELECT * FROM spock.remove_node_plan",
        )
}

/// Without what the names of slots end with: a cluster that is not founded yet has none.
fn without_hashes(steps: &str) -> String {
    format!("regexp_replace({steps}, '( sub_[^ ]*)_[0-9a-f]{{8}}$', '\\1')")
}

/// The slot that the run of `call` would make on the node called `provider`.
pub fn planned_slot(node: &Server, call: &str, provider: &str) -> String {
    node.value(&format!(
        "SELECT substr(action, 13) FROM ({}) p WHERE node = '{provider}' AND action LIKE 'create slot %'",
        plan_of(call)
    ))
}

/// The slot that `subscriber`, whatever its node is called, reads on `provider`.
pub fn slot(provider: &Server, subscriber: &Server) -> String {
    let name = provider.name();
    subscriber.value(&format!(
        "SELECT subslotname FROM pg_subscription WHERE subname LIKE 'sub\\_{name}\\_%'"
    ))
}

/// The steps of the plan of `call`, as the journal has them.
pub fn planned(node: &Server, call: &str) -> Vec<String> {
    let steps = format!(
        "SELECT {} FROM ({}) p WHERE reason <> '' AND undo <> '' ORDER BY step",
        without_hashes("concat_ws(' | ', step, phase, node, action)"),
        plan_of(call)
    );
    lines(node, &steps)
}

/// The steps of the last run.
pub fn journalled(node: &Server) -> Vec<String> {
    let steps = without_hashes("concat_ws(' | ', step, phase, node, description)");
    lines(
        node,
        &format!(
            "SELECT {steps} FROM zodan.step
              WHERE run_id = (SELECT max(id) FROM zodan.run WHERE state = 'done') ORDER BY step"
        ),
    )
}

/// Asks for the plan of `call`, runs it, and panics unless the run did what was planned, step for step.
pub fn assert_run_follows_plan(node: &Server, call: &str) -> Called {
    let plan = planned(node, call);
    assert!(!plan.is_empty(), "nothing is planned: {call}");
    assert_eq!(
        planned(node, call),
        plan,
        "a plan changes nothing that it goes by"
    );
    let called = node.call(call).unwrap_or_else(|failed| panic!("{failed}"));
    assert_eq!(journalled(node), plan, "{call}");
    called
}

fn lines(node: &Server, query: &str) -> Vec<String> {
    let rows = node.rows(query).into_iter();
    rows.map(|row| row[0].clone().unwrap_or_default()).collect()
}
