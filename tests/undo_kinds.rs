//! A join that fails late takes back everything that a restore can make, whatever kind it is of, and nothing that
//! somebody else has made meanwhile.

mod common;

use common::{Call, Hang, Running, assert_failed, fingerprint, quick};
use lab::{Cluster, Server, add_node};

const ROLES: &str = r#"CREATE ROLE "Rôle ""x""; y"; CREATE ROLE reader"#;

/// One of every kind, most of them with names that have to be quoted.
const ZOO: &str = r#"
CREATE SCHEMA "S 1""%s"; SET search_path = "S 1""%s", public;
CREATE TYPE "Enum'x" AS ENUM ('a', 'b'); CREATE TYPE comp AS (a int, b "Enum'x"); CREATE TYPE shell;
CREATE DOMAIN dom AS int CHECK (VALUE > 0) NOT NULL;
CREATE TYPE rng AS RANGE (subtype = float8, multirange_type_name = "mr rng");
CREATE FUNCTION "f,(1)"(a int, VARIADIC b "Enum'x"[] DEFAULT '{}') RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION f_out(IN a comp, OUT b int, INOUT c text) LANGUAGE sql AS 'SELECT 1, $2';
CREATE PROCEDURE p(INOUT a int) LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION sfunc(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2';
CREATE AGGREGATE mysum(int) (SFUNC = sfunc, STYPE = int, INITCOND = '0');
CREATE AGGREGATE "my pct"(float8 ORDER BY anyelement) (SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA);
CREATE AGGREGATE countall(*) (SFUNC = int8inc, STYPE = int8, INITCOND = '0');
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq, COMMUTATOR = ===);
CREATE OPERATOR !@# (RIGHTARG = int, FUNCTION = int4um);
CREATE OPERATOR FAMILY fam USING btree;
CREATE OPERATOR CLASS opc FOR TYPE int USING btree FAMILY fam AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(int, int);
CREATE COLLATION "coll Ä" FROM "C";
CREATE CONVERSION conv FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE FUNCTION comp2text(comp) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1.a::text';
CREATE CAST (comp AS text) WITH FUNCTION comp2text(comp) AS ASSIGNMENT;
CREATE TRANSFORM FOR int LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal), TO SQL WITH FUNCTION int4recv(internal));
CREATE FUNCTION "call x"() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE LANGUAGE "lang x" HANDLER "call x";
CREATE TEXT SEARCH PARSER "par ser" (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype);
CREATE TEXT SEARCH TEMPLATE "tem plate" (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH DICTIONARY d1 (TEMPLATE = "tem plate"); CREATE TEXT SEARCH CONFIGURATION c1 (COPY = simple);
ALTER TEXT SEARCH CONFIGURATION c1 ALTER MAPPING FOR word WITH d1;
CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
CREATE FOREIGN DATA WRAPPER "f dw"; CREATE SERVER "srv 'x" FOREIGN DATA WRAPPER "f dw";
CREATE USER MAPPING FOR PUBLIC SERVER "srv 'x";
CREATE USER MAPPING FOR "Rôle ""x""; y" SERVER "srv 'x" OPTIONS (password 'x''y');
CREATE FOREIGN TABLE ft (a int) SERVER "srv 'x";
CREATE TABLE "T
newline" ("a	b" int PRIMARY KEY, "select" comp, "%s" dom DEFAULT 1) USING heap2;
CREATE TABLE par (a int, b text COLLATE "coll Ä", PRIMARY KEY (a, b)) PARTITION BY RANGE (a);
CREATE TABLE par1 PARTITION OF par FOR VALUES FROM (0) TO (10) PARTITION BY LIST (b); CREATE TABLE par1x PARTITION OF par1 DEFAULT;
CREATE VIEW v AS SELECT * FROM par; CREATE RULE r AS ON INSERT TO v DO INSTEAD NOTHING;
CREATE MATERIALIZED VIEW "m v" AS SELECT 1 AS one;
CREATE TABLE typed OF comp (PRIMARY KEY (a));
CREATE STATISTICS "st x" ON a, b FROM par1x; CREATE STATISTICS ste ON (a+1) FROM par1x;
ALTER TABLE par1x ENABLE ROW LEVEL SECURITY; CREATE POLICY "po licy" ON par1x TO "Rôle ""x""; y" USING (a > 0);
CREATE FUNCTION et() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER "e t" ON sql_drop EXECUTE FUNCTION et();
CREATE PUBLICATION "pub 'x" FOR TABLE par1x; CREATE SEQUENCE "Seq 1" AS smallint INCREMENT -2 CYCLE;
GRANT ALL ON ALL TABLES IN SCHEMA "S 1""%s" TO "Rôle ""x""; y" WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES FOR ROLE "Rôle ""x""; y" IN SCHEMA "S 1""%s" GRANT SELECT ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE "Rôle ""x""; y" REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
CREATE EXTENSION citext SCHEMA "S 1""%s";
"#;

/// What `pg_identify_object` calls the kinds that a restore makes.
const KINDS: &str = "access method, aggregate, cast, collation, composite type, conversion, event trigger, extension, \
foreign table, foreign-data wrapper, function, language, materialized view, operator, operator class, operator family, \
policy, procedure, publication, schema, sequence, server, statistics object, table, text search configuration, \
text search dictionary, text search parser, text search template, transform, type, user mapping, view";

const LATE: &str = "within sequences and materialized views are set";

fn pair(content: &str) -> Cluster {
    let cluster = Cluster::start_with(2, &quick());
    for server in cluster.all() {
        server.sql(ROLES);
    }
    cluster.form_mesh(1, content);
    cluster
}

fn runs(server: &Server) -> String {
    server.value("SELECT string_agg(state, ' ' ORDER BY id) FROM zodan.run")
}

#[test]
fn undo_drops_objects_of_every_kind() {
    let cluster = pair(ZOO);
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let classes = "pg_class pg_type pg_proc pg_operator pg_opclass pg_opfamily pg_collation pg_conversion pg_ts_config
        pg_ts_dict pg_ts_parser pg_ts_template pg_statistic_ext pg_namespace pg_language pg_cast pg_transform pg_am
        pg_foreign_data_wrapper pg_foreign_server pg_user_mapping pg_event_trigger pg_extension pg_policy pg_publication";
    let kinds: Vec<String> = classes
        .split_whitespace()
        .map(|class| {
            format!(
                "SELECT i.type FROM {class} c, pg_identify_object('{class}'::regclass, c.oid, 0) i WHERE c.oid >= 16384"
            )
        })
        .collect();
    assert_eq!(
        n1.value(&format!(
            "SELECT string_agg(type, ', ' ORDER BY type COLLATE \"C\") FROM (SELECT DISTINCT type FROM ({}) a) k
              WHERE type NOT IN ('index', 'toast table')",
            kinds.join(" UNION ALL ")
        )),
        KINDS,
        "the test does not test every kind"
    );
    n2.sql("DROP SCHEMA public");
    let before = fingerprint(&cluster.all());
    let arm = format!("SET zodan.failpoint = 'error {LATE}'");
    let failed = Running::start_after(n2, &arm, &Call::of(n2, n1).sql()).fails();
    assert_failed(
        &failed,
        "XX000",
        &format!("fault: {LATE}"),
        "A test wanted it.",
    );
    assert!(!failed.hint().contains("Could not be undone"), "{failed}");
    before.assert_same_now(&cluster.all());
    assert_eq!(runs(n2), "undone");
    add_node(n2, "n2", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
}

/// What a restore grants and revokes of objects that it finds.
#[test]
fn undo_restores_rights_on_what_was_there() {
    const HSTORE: &str = "CREATE SCHEMA mine; CREATE EXTENSION hstore SCHEMA mine;";
    let cluster = pair(&format!(
        "{HSTORE}
         REVOKE EXECUTE ON FUNCTION mine.akeys(mine.hstore) FROM PUBLIC;
         GRANT EXECUTE ON FUNCTION pg_ls_waldir() TO reader;
         GRANT SELECT ON pg_authid TO reader"
    ));
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n2.sql(HSTORE);
    n2.sql("GRANT EXECUTE ON FUNCTION pg_ls_logdir() TO reader");
    let rights = "SELECT string_agg(r::text, ' ') FROM (VALUES
        (has_function_privilege('reader', 'mine.akeys(mine.hstore)', 'EXECUTE')),
        (has_function_privilege('reader', 'pg_ls_waldir()', 'EXECUTE')),
        (has_function_privilege('reader', 'pg_ls_logdir()', 'EXECUTE')),
        (has_table_privilege('reader', 'pg_authid', 'SELECT'))) v(r)";
    assert_eq!(n1.value(rights), "false true false true");
    let before = "true false true false";
    assert_eq!(n2.value(rights), before);
    let failed = fail_after(&cluster, "SELECT 1");
    assert!(!failed.hint().contains("Could not be undone"), "{failed}");
    assert_eq!(n2.value(rights), before);
    add_node(n2, "n2", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(n2.value(rights), "false true true true");
}

/// Fails late, after `meanwhile` on the new node; returns what the CALL said.
fn fail_after(cluster: &Cluster, meanwhile: &str) -> lab::CallFailed {
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let points = format!("within indexes are created; error {LATE}");
    let (hang, running) = Hang::start(n2, "", &points, &Call::of(n2, n1).sql());
    n2.sql(&format!("BEGIN READ WRITE; {meanwhile}; COMMIT"));
    hang.release();
    running.fails()
}

#[test]
fn undo_keeps_what_others_made_meanwhile() {
    let cluster = pair(
        "CREATE SCHEMA app; CREATE TABLE app.item (id int PRIMARY KEY); CREATE TABLE app.part (id int PRIMARY KEY);
         CREATE TABLE late (id int PRIMARY KEY)",
    );
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let before = fingerprint(&cluster.all());

    // It rests on nothing that the copy brought.
    let failed = fail_after(
        &cluster,
        "CREATE TABLE public.own (id int); CREATE FUNCTION public.own() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    );
    assert_failed(
        &failed,
        "XX000",
        &format!("fault: {LATE}"),
        "A test wanted it",
    );
    assert!(!failed.hint().contains("Could not be undone"), "{failed}");
    let told = failed.notices.iter().any(|n| {
        n.severity == "WARNING"
            && n.message == "node \"n2\" keeps what the copy did not bring: table public.own, function public.own()"
    });
    assert!(told, "{:?}", failed.notices);
    assert_eq!(n2.value("SELECT to_regclass('app.item')"), "");
    n2.sql("DROP TABLE public.own; DROP FUNCTION public.own()");
    before.assert_same_now(&cluster.all());

    // It bears the name of something that is yet to come.
    let (hang, running) = Hang::start(
        n2,
        "",
        "within the structure is dumped",
        &Call::of(n2, n1).sql(),
    );
    n2.sql("BEGIN READ WRITE; CREATE TABLE public.late (id int); INSERT INTO public.late VALUES (1); COMMIT");
    hang.release();
    let failed = running.fails();
    assert_eq!(failed.code(), "38000", "{failed}");
    assert!(
        failed
            .message()
            .contains("relation \"late\" already exists"),
        "{failed}"
    );
    assert_eq!(n2.value("SELECT count(*) FROM public.late"), "1");
    assert_eq!(n2.value("SELECT to_regclass('app.item')"), "");
    n2.sql("DROP TABLE public.late");
    before.assert_same_now(&cluster.all());

    // It rests on a table, a schema and a type of the copy.
    let failed = fail_after(
        &cluster,
        "CREATE VIEW public.own AS SELECT * FROM app.item; CREATE TABLE app.mine (id int); CREATE TABLE public.typed (p app.part)",
    );
    assert_failed(
        &failed,
        "XX000",
        &format!("fault: {LATE}"),
        "table app.item, table app.part, schema app cannot be dropped: ",
    );
    assert!(
        failed
            .hint()
            .contains("what others have made meanwhile depends on it"),
        "{failed}"
    );
    let left = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'v') AND relname IN ('own', 'mine', 'typed', 'item', 'part')";
    assert_eq!(n2.value(left), "item mine own part typed");
    assert_eq!(n2.value("SELECT count(*) FROM pg_attribute WHERE attrelid = 'public.typed'::regclass AND attname = 'p'"), "1");
    n2.sql("DROP VIEW public.own; DROP TABLE app.mine; DROP TABLE public.typed");
    add_node(n2, "n2", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(runs(n2), "undone undone undone done");
}

/// Something of the new node's own keeps the undo from dropping a table: it ends, and says which and why.
#[test]
fn undo_reports_what_it_cannot_drop() {
    let cluster =
        pair("CREATE TABLE item (id int PRIMARY KEY); CREATE TABLE part (id int PRIMARY KEY)");
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    let failed = fail_after(
        &cluster,
        "CREATE SUBSCRIPTION stray CONNECTION '' PUBLICATION p WITH (connect = false, slot_name = NONE);
         INSERT INTO pg_subscription_rel SELECT oid, 'item'::regclass, 'i', NULL FROM pg_subscription",
    );
    let left = "table public.item cannot be dropped: could not drop relation mapping for subscription \"stray\"";
    assert_failed(&failed, "XX000", &format!("fault: {LATE}"), left);
    assert_eq!(n2.value("SELECT to_regclass('part')"), "");
    let again = Call::of(n2, n1).fails_on(n2);
    assert_eq!(again.code(), "55000", "{again}");
    assert!(again.message().contains(left), "{again}");
    n2.sql("DROP SUBSCRIPTION stray");
    add_node(n2, "n2", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
}

/// A change that the source refused was not made, so nothing is taken back.
#[test]
fn undo_leaves_what_was_never_changed() {
    let cluster = Cluster::start_with(2, &quick());
    cluster.create_extension();
    let (n1, n2) = (cluster.n(1), cluster.n(2));
    n1.sql("CREATE TABLE keyless (a int)");
    let before = fingerprint(&cluster.all());
    let mut locker = n1.client_named("locker");
    locker
        .batch_execute("BEGIN; LOCK TABLE keyless IN ACCESS SHARE MODE")
        .expect("lock the table");
    let impatient = "SET zodan.no_progress_timeout = '1s'";
    let failed = Running::start_after(n2, impatient, &Call::of(n2, n1).sql()).fails();
    assert_failed(
        &failed,
        "55000",
        "REPLICA IDENTITY FULL",
        "End the transactions",
    );
    assert!(!failed.hint().contains("Could not be undone"), "{failed}");
    assert_eq!(runs(n2), "undone");
    locker.batch_execute("ROLLBACK").expect("unlock the table");
    before.assert_same_now(&cluster.all());
    add_node(n2, "n2", n1, "n1").unwrap_or_else(|e| panic!("{e}"));
}
