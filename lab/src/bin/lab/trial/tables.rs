//! The tables of a trial: each kind as data. All are in the schema `trial`, and a row of each has a number that tells
//! who wrote it, and a version that goes up by one with each update.

/// A kind of table, of which the list in a schedule shows the name. In the statements `{id}` is the number of the row, `{v}` its version, and `{lane}` the writer's.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    /// On the first node, before the second one joins.
    pub create: &'static str,
    pub insert: &'static str,
    pub update: Option<&'static str>,
    pub delete: Option<&'static str>,
    pub truncate: Option<&'static str>,
    /// Numbers and versions of all rows.
    pub read: &'static str,
    /// Why Spock does not replicate all of it, if it does not.
    pub not_on_spock: Option<&'static str>,
}

/// The roles that the tables name, on every server.
pub const ROLES: &str = "CREATE ROLE trial_owner NOLOGIN";

/// In order of how much is special about them.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "plain",
        create: "CREATE TABLE trial.plain (id bigint PRIMARY KEY, v integer NOT NULL, at timestamptz DEFAULT now())",
        insert: "INSERT INTO trial.plain (id, v) VALUES ({id}, {v})",
        update: Some("UPDATE trial.plain SET v = {v}, at = now() WHERE id = {id}"),
        delete: Some("DELETE FROM trial.plain WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.plain",
        not_on_spock: None,
    },
    Kind {
        name: "uuid",
        create: "CREATE TABLE trial.uuid (key uuid PRIMARY KEY, id bigint NOT NULL, v integer NOT NULL)",
        insert: "INSERT INTO trial.uuid VALUES (md5('{id}')::uuid, {id}, {v})",
        update: Some("UPDATE trial.uuid SET v = {v} WHERE key = md5('{id}')::uuid"),
        delete: Some("DELETE FROM trial.uuid WHERE key = md5('{id}')::uuid"),
        truncate: None,
        read: "SELECT id, v FROM trial.uuid",
        not_on_spock: None,
    },
    Kind {
        name: "text",
        create: "CREATE TABLE trial.text (key text COLLATE \"C\" PRIMARY KEY, v integer NOT NULL, body text)",
        insert: "INSERT INTO trial.text VALUES ('it''s \\ {id}', {v}, E'tab\\t and \\\\N')",
        update: Some("UPDATE trial.text SET v = {v} WHERE key = 'it''s \\ {id}'"),
        delete: Some("DELETE FROM trial.text WHERE key = 'it''s \\ {id}'"),
        truncate: None,
        read: "SELECT split_part(key, ' ', 3)::bigint, v FROM trial.text",
        not_on_spock: None,
    },
    Kind {
        name: "composite",
        create: "CREATE TABLE trial.composite (gone text, shelf bigint, id bigint, v integer NOT NULL, also text,
                                               PRIMARY KEY (shelf, id));
                 ALTER TABLE trial.composite DROP COLUMN gone, DROP COLUMN also",
        insert: "INSERT INTO trial.composite VALUES ({id} % 7, {id}, {v})",
        update: Some("UPDATE trial.composite SET v = {v} WHERE shelf = {id} % 7 AND id = {id}"),
        delete: Some("DELETE FROM trial.composite WHERE shelf = {id} % 7 AND id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.composite",
        not_on_spock: None,
    },
    Kind {
        name: "large values",
        create: "CREATE TABLE trial.large (id bigint PRIMARY KEY, v integer NOT NULL, body text NOT NULL);
                 ALTER TABLE trial.large ALTER body SET STORAGE EXTERNAL",
        insert: "INSERT INTO trial.large
                 SELECT {id}, {v}, string_agg(md5(({id} + i)::text), '') FROM generate_series(1, 120) i",
        // The body is sent as unchanged.
        update: Some("UPDATE trial.large SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.large WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.large",
        not_on_spock: None,
    },
    Kind {
        name: "types",
        create: "CREATE TYPE trial.state AS ENUM ('new', 'it''s paid');
                 CREATE DOMAIN trial.positive AS numeric(20, 2) CHECK (VALUE > 0);
                 CREATE TABLE trial.types (id trial.positive PRIMARY KEY, v integer NOT NULL, state trial.state,
                                           tags text[], doc jsonb, span int8range, bits bytea, f double precision)",
        insert: "INSERT INTO trial.types VALUES ({id} + 1, {v}, 'new', ARRAY['a', NULL, '{}'], jsonb_build_object('v', {v}),
                                                 int8range({id}, {id} + 9), decode(md5('{id}'), 'hex'), {id} / 3.0)",
        update: Some("UPDATE trial.types SET v = {v}, state = 'it''s paid', doc = doc || jsonb_build_object('v', {v}) WHERE id = {id} + 1"),
        delete: Some("DELETE FROM trial.types WHERE id = {id} + 1"),
        truncate: None,
        read: "SELECT id::bigint - 1, v FROM trial.types",
        not_on_spock: None,
    },
    Kind {
        name: "generated columns",
        create: "CREATE TABLE trial.generated (id bigint PRIMARY KEY, v integer NOT NULL,
                                               twice integer GENERATED ALWAYS AS (v * 2) STORED,
                                               n bigint GENERATED BY DEFAULT AS IDENTITY);
                 CREATE INDEX ON trial.generated (twice)",
        insert: "INSERT INTO trial.generated (id, v) VALUES ({id}, {v})",
        update: Some("UPDATE trial.generated SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.generated WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.generated",
        not_on_spock: None,
    },
    Kind {
        name: "triggers",
        create: "CREATE TABLE trial.triggers (id bigint PRIMARY KEY, v integer NOT NULL, touched timestamptz);
                 CREATE TABLE trial.audit (id bigint, v integer, what text, PRIMARY KEY (id, v, what));
                 CREATE FUNCTION trial.touch() RETURNS trigger LANGUAGE plpgsql
                     AS $$ BEGIN NEW.touched := clock_timestamp(); RETURN NEW; END $$;
                 CREATE FUNCTION trial.tell() RETURNS trigger LANGUAGE plpgsql
                     AS $$ BEGIN INSERT INTO trial.audit VALUES (NEW.id, NEW.v, TG_OP); RETURN NULL; END $$;
                 CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON trial.triggers FOR EACH ROW EXECUTE FUNCTION trial.touch();
                 CREATE TRIGGER tell AFTER INSERT OR UPDATE ON trial.triggers FOR EACH ROW EXECUTE FUNCTION trial.tell()",
        insert: "INSERT INTO trial.triggers (id, v) VALUES ({id}, {v})",
        update: Some("UPDATE trial.triggers SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.triggers WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.triggers",
        not_on_spock: None,
    },
    Kind {
        name: "foreign keys",
        create: "CREATE TABLE trial.parent (id bigint PRIMARY KEY);
                 CREATE TABLE trial.child (id bigint PRIMARY KEY, v integer NOT NULL,
                                           parent bigint NOT NULL REFERENCES trial.parent ON DELETE CASCADE)",
        insert: "WITH p AS (INSERT INTO trial.parent VALUES ({id})) INSERT INTO trial.child VALUES ({id}, {v}, {id})",
        update: Some("UPDATE trial.child SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.parent WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.child",
        not_on_spock: None,
    },
    Kind {
        name: "owner with rights",
        create: "CREATE TABLE trial.owned (id bigint PRIMARY KEY, v integer NOT NULL);
                 ALTER TABLE trial.owned OWNER TO trial_owner;
                 ALTER TABLE trial.owned ENABLE ROW LEVEL SECURITY;
                 CREATE POLICY positive ON trial.owned USING (v > 0)",
        insert: "INSERT INTO trial.owned VALUES ({id}, {v})",
        update: Some("UPDATE trial.owned SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.owned WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.owned",
        not_on_spock: None,
    },
    Kind {
        name: "odd names",
        create: r#"CREATE TABLE trial."Odd ""N\ame'" ("select" bigint PRIMARY KEY, "V; --" integer NOT NULL)"#,
        insert: r#"INSERT INTO trial."Odd ""N\ame'" VALUES ({id}, {v})"#,
        update: Some(r#"UPDATE trial."Odd ""N\ame'" SET "V; --" = {v} WHERE "select" = {id}"#),
        delete: Some(r#"DELETE FROM trial."Odd ""N\ame'" WHERE "select" = {id}"#),
        truncate: None,
        read: r#"SELECT "select", "V; --" FROM trial."Odd ""N\ame'""#,
        not_on_spock: None,
    },
    Kind {
        name: "without key",
        create: "CREATE TABLE trial.keyless (id bigint NOT NULL, v integer NOT NULL)",
        insert: "INSERT INTO trial.keyless VALUES ({id}, {v})",
        update: None,
        delete: None,
        truncate: None,
        read: "SELECT id, v FROM trial.keyless",
        not_on_spock: None,
    },
    Kind {
        name: "hash partitions",
        create: "CREATE TABLE trial.hashed (id bigint PRIMARY KEY, v integer NOT NULL) PARTITION BY HASH (id);
                 CREATE TABLE trial.hashed_0 PARTITION OF trial.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
                 CREATE TABLE trial.hashed_1 PARTITION OF trial.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        insert: "INSERT INTO trial.hashed VALUES ({id}, {v})",
        update: Some("UPDATE trial.hashed SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.hashed WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.hashed",
        not_on_spock: None,
    },
    Kind {
        name: "rows that move",
        create: "CREATE TABLE trial.moving (id bigint, part integer, v integer NOT NULL, PRIMARY KEY (id, part))
                     PARTITION BY LIST (part);
                 CREATE TABLE trial.moving_0 PARTITION OF trial.moving FOR VALUES IN (0);
                 CREATE TABLE trial.moving_rest PARTITION OF trial.moving DEFAULT",
        insert: "INSERT INTO trial.moving VALUES ({id}, {v} % 2, {v})",
        update: Some("UPDATE trial.moving SET v = {v}, part = {v} % 2 WHERE id = {id}"),
        delete: Some("DELETE FROM trial.moving WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.moving",
        not_on_spock: None,
    },
    Kind {
        name: "inheritance",
        create: "CREATE TABLE trial.base (id bigint PRIMARY KEY, v integer NOT NULL);
                 CREATE TABLE trial.derived (more text, PRIMARY KEY (id)) INHERITS (trial.base)",
        insert: "INSERT INTO trial.derived VALUES ({id}, {v}, 'more')",
        update: Some("UPDATE trial.base SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.base WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.base",
        not_on_spock: None,
    },
    Kind {
        name: "emptied",
        create: "CREATE TABLE trial.emptied_1 (id bigint PRIMARY KEY, v integer NOT NULL);
                 CREATE TABLE trial.emptied_2 (LIKE trial.emptied_1 INCLUDING ALL);
                 CREATE TABLE trial.emptied_3 (LIKE trial.emptied_1 INCLUDING ALL);
                 CREATE TABLE trial.emptied_4 (LIKE trial.emptied_1 INCLUDING ALL);
                 CREATE TABLE trial.emptied_5 (LIKE trial.emptied_1 INCLUDING ALL)",
        insert: "INSERT INTO trial.emptied_{lane} VALUES ({id}, {v})",
        update: Some("UPDATE trial.emptied_{lane} SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.emptied_{lane} WHERE id = {id}"),
        truncate: Some("TRUNCATE trial.emptied_{lane}"),
        read: "SELECT id, v FROM trial.emptied_1 UNION ALL SELECT id, v FROM trial.emptied_2
               UNION ALL SELECT id, v FROM trial.emptied_3 UNION ALL SELECT id, v FROM trial.emptied_4
               UNION ALL SELECT id, v FROM trial.emptied_5",
        not_on_spock: None,
    },
    Kind {
        name: "two pieces",
        // A page for each row: larger than what the copy reads in one go. A part of it is dead, so that the rows are on
        // other pages when it gets another file. The rows of `create` are nobody's, and stay as they are.
        create: "CREATE TABLE trial.pieces (id bigint PRIMARY KEY, v integer NOT NULL, body text) WITH (fillfactor = 10);
                 ALTER TABLE trial.pieces ALTER body SET STORAGE PLAIN;
                 INSERT INTO trial.pieces SELECT 90000000000 + g, 1, repeat('x', 800) FROM generate_series(1, 9500) g;
                 DELETE FROM trial.pieces WHERE id % 7 = 0 AND id > 90000000000",
        insert: "INSERT INTO trial.pieces VALUES ({id}, {v})",
        update: Some("UPDATE trial.pieces SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.pieces WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.pieces WHERE id < 90000000000",
        not_on_spock: None,
    },
    Kind {
        name: "full identity",
        create: "CREATE TABLE trial.full_identity (id bigint NOT NULL, v integer NOT NULL, word text);
                 ALTER TABLE trial.full_identity REPLICA IDENTITY FULL",
        insert: "INSERT INTO trial.full_identity VALUES ({id}, {v}, NULL)",
        update: Some("UPDATE trial.full_identity SET v = {v} WHERE id = {id}"),
        delete: Some("DELETE FROM trial.full_identity WHERE id = {id}"),
        truncate: None,
        read: "SELECT id, v FROM trial.full_identity",
        not_on_spock: Some("updates want a key"),
    },
    Kind {
        name: "index identity",
        create: "CREATE TABLE trial.index_identity (code text NOT NULL, id bigint NOT NULL, v integer NOT NULL);
                 CREATE UNIQUE INDEX by_code ON trial.index_identity (code);
                 ALTER TABLE trial.index_identity REPLICA IDENTITY USING INDEX by_code",
        insert: "INSERT INTO trial.index_identity VALUES ('code {id}', {id}, {v})",
        update: Some("UPDATE trial.index_identity SET v = {v} WHERE code = 'code {id}'"),
        delete: Some("DELETE FROM trial.index_identity WHERE code = 'code {id}'"),
        truncate: None,
        read: "SELECT id, v FROM trial.index_identity",
        not_on_spock: Some("the lab puts tables without a primary key into a set that takes inserts only"),
    },
];
