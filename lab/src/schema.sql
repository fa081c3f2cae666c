-- A shop with everything. Expects the setting lab.rows: how many rows the large tables have together.

CREATE SCHEMA shop AUTHORIZATION lab_owner;
CREATE SCHEMA "Odd ""Names""";
GRANT USAGE ON SCHEMA shop TO lab_reader;
COMMENT ON SCHEMA shop IS 'It''s a shop; with everything';
SET search_path = shop;

CREATE TYPE state AS ENUM ('new', 'paid', 'shipped', 'it''s closed');
CREATE TYPE address AS (street text, city text, zip text);
CREATE DOMAIN email AS text CHECK (VALUE ~ '^[^@]+@[^@]+$');
CREATE DOMAIN positive AS numeric(12, 2) DEFAULT 1 CHECK (VALUE > 0);

-- A CHECK calls this one; it finds its table only because it brings its own search_path.
CREATE TABLE price_limit (top numeric NOT NULL);
INSERT INTO price_limit VALUES (100000);
CREATE FUNCTION price_ok(price numeric) RETURNS boolean
    LANGUAGE plpgsql STABLE SET search_path = shop
    AS $$ BEGIN RETURN price <= (SELECT top FROM price_limit); END $$;

---- The large tables.

CREATE TABLE customer (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email      email NOT NULL,
    name       text NOT NULL,
    name_lower text GENERATED ALWAYS AS (lower(name)) STORED,
    home       address,
    since      date NOT NULL
);
INSERT INTO customer (email, name, home, since)
SELECT 'c' || i || '@example.com', 'Customer ' || i, ROW('Main Street ' || i % 500, 'City, "' || i % 50 || '"', i)::address,
       date '2020-01-01' + (i % 2000)::int
  FROM generate_series(1, current_setting('lab.rows')::bigint / 10) i;
CREATE UNIQUE INDEX customer_email ON customer (lower(email));

CREATE TABLE purchase (
    id       serial PRIMARY KEY,
    customer bigint NOT NULL,
    state    state NOT NULL DEFAULT 'new',
    total    positive NOT NULL CHECK (price_ok(total)),
    details  jsonb NOT NULL DEFAULT '{}',
    changed  timestamptz
);
INSERT INTO purchase (customer, state, total, details)
SELECT 1 + i % (current_setting('lab.rows')::bigint / 10), (enum_range(NULL::state))[1 + i % 4], 1 + i % 9999,
       jsonb_build_object('lines', i % 7, 'note', CASE WHEN i % 3 = 0 THEN 'a "quoted" \ note' END)
  FROM generate_series(1, current_setting('lab.rows')::bigint * 2 / 10) i;

CREATE TABLE purchase_line (
    purchase integer NOT NULL,
    line     smallint NOT NULL,
    article  text NOT NULL,
    price    numeric(10, 2) NOT NULL,
    PRIMARY KEY (purchase, line)
);
INSERT INTO purchase_line
SELECT i, l, 'article ' || (i * 31 + l) % 1000, (i + l) % 5000 / 100.0
  FROM generate_series(1, current_setting('lab.rows')::bigint * 2 / 10) i, generate_series(1, 2) l;

CREATE TABLE measurement (
    at     timestamptz NOT NULL,
    sensor integer NOT NULL,
    value  double precision,
    PRIMARY KEY (at, sensor)
) PARTITION BY RANGE (at);
CREATE TABLE measurement_2025 PARTITION OF measurement FOR VALUES FROM ('2025-01-01 00:00+00') TO ('2026-01-01 00:00+00');
CREATE TABLE measurement_2026 PARTITION OF measurement FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2027-01-01 00:00+00')
    PARTITION BY HASH (sensor);
CREATE TABLE measurement_2026_0 PARTITION OF measurement_2026 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE measurement_2026_1 PARTITION OF measurement_2026 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE measurement_rest PARTITION OF measurement DEFAULT;
INSERT INTO measurement
SELECT timestamptz '2024-12-31 00:00+00' + i * interval '700 days' / (current_setting('lab.rows')::bigint * 3 / 10), i % 100,
       sin(i) * 1e10
  FROM generate_series(1, current_setting('lab.rows')::bigint * 3 / 10) i;

---- Rows that are unusual.

-- Wide ones: one megabyte that does not compress, and one that compresses to little.
CREATE TABLE attachment (
    id   serial PRIMARY KEY,
    name text NOT NULL,
    body bytea,
    text text,
    tags text[],
    grid integer[][]
);
INSERT INTO attachment (name, body, text, tags, grid)
SELECT 'file ' || i, (SELECT string_agg(sha256(int8send(i * 100000 + b)), '') FROM generate_series(1, 32768) b),
       repeat('long text ' || i || E'\n', 80000), ARRAY['a', NULL, 'with "quotes", {braces} and \ ', ''], ARRAY[[i, 2], [3, NULL]]
  FROM generate_series(1, 10) i;
ALTER TABLE attachment ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE attachment ALTER COLUMN name SET STATISTICS 17;

-- Values at the edges of their types, and text that COPY has to escape.
CREATE TABLE edge (
    id    integer PRIMARY KEY,
    f8    double precision,
    f4    real,
    num   numeric,
    i8    bigint,
    ts    timestamptz,
    day   date,
    span  interval,
    t     text,
    b     bytea,
    net   inet,
    u     uuid,
    bits  bit varying(70),
    r     int4range,
    m     nummultirange,
    p     point,
    words tsvector,
    who   regrole,
    what  regclass
);
INSERT INTO edge VALUES
    (1, 'NaN', '-Infinity', 'NaN', 9223372036854775807, 'infinity', '-infinity', '-178000000 years', E'tab\there\\N\\.\r\n', '\x00ff5c', '::1/128',
     'ffffffff-ffff-ffff-ffff-ffffffffffff', B'0', 'empty', '{}', '(1e300,-1e-300)', 'a:1A fat:2 c', 'lab_owner', 'shop.customer'),
    (2, 5e-324, 3.4028235e38, 'Infinity', -9223372036854775808, '0001-01-01 00:00:00+00 BC', '5874897-12-31', '00:00:00.000001', '\N', '', '10.1.2.3/8',
     '00000000-0000-0000-0000-000000000000', B'1', '[,)', '{[1.5,2.5),(7,)}', '(NaN,0)', '', 'postgres', 'shop.edge'),
    (3, 0.1::real, -0.0, 1e-1000, 0, '1999-12-31 23:59:59.999999+00', 'epoch', NULL, '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (4, 1.7976931348623157e308, 1e-45, 12345678901234567890.123456789, 1, NULL, NULL, NULL, 'Zoë – 東京 🐘', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO edge (id) VALUES (5);

---- Tables that are unusual.

CREATE TABLE empty (id integer PRIMARY KEY, body text);

CREATE TABLE keyless (happened timestamptz NOT NULL, what text);
INSERT INTO keyless SELECT timestamptz '2026-01-01 00:00+00', 'the same' FROM generate_series(1, 3);
INSERT INTO keyless SELECT timestamptz '2026-01-01 00:00+00' + i * interval '1 hour', 'event ' || i FROM generate_series(1, 100) i;

CREATE TABLE full_identity (word text, n integer);
ALTER TABLE full_identity REPLICA IDENTITY FULL;
INSERT INTO full_identity SELECT 'word ' || i % 10, i FROM generate_series(1, 50) i;

CREATE TABLE index_identity (code text NOT NULL, n integer);
CREATE UNIQUE INDEX index_identity_code ON index_identity (code);
ALTER TABLE index_identity REPLICA IDENTITY USING INDEX index_identity_code;
INSERT INTO index_identity SELECT 'code ' || i, i FROM generate_series(1, 50) i;

CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;

CREATE TABLE dropped_columns (gone_first integer, id integer PRIMARY KEY, gone text, body text);
INSERT INTO dropped_columns SELECT 1, i, 'x', 'body ' || i FROM generate_series(1, 20) i;
ALTER TABLE dropped_columns DROP COLUMN gone_first, DROP COLUMN gone;
ALTER TABLE dropped_columns ADD COLUMN late integer DEFAULT 42;

-- Everything computed, so no column is left to copy but the key.
CREATE TABLE computed (
    id      integer PRIMARY KEY,
    doubled integer GENERATED ALWAYS AS (id * 2) STORED,
    squared bigint GENERATED ALWAYS AS (id::bigint * id) STORED
);
INSERT INTO computed SELECT i FROM generate_series(1, 20) i;

CREATE TABLE vehicle (id integer PRIMARY KEY, name text);
CREATE TABLE car (doors integer, CHECK (doors > 0)) INHERITS (vehicle);
CREATE TABLE sports_car (PRIMARY KEY (id)) INHERITS (car);
INSERT INTO vehicle VALUES (1, 'bike');
INSERT INTO car VALUES (2, 'van', 5);
INSERT INTO sports_car VALUES (3, 'roadster', 2);

CREATE TABLE "Odd ""Names"""."Select; DROP TABLE x" (
    "from"       integer PRIMARY KEY,
    "a.b ""c"""  text,
    "Größe"      integer CHECK ("Größe" > 0),
    "%s $1 \n"   text DEFAULT 'it''s'
);
INSERT INTO "Odd ""Names"""."Select; DROP TABLE x" SELECT i, 'row ' || i, i FROM generate_series(1, 20) i;

CREATE UNLOGGED TABLE basket (id integer PRIMARY KEY, content text);
INSERT INTO basket VALUES (1, 'not replicated');

-- Two tables that refer to each other: neither can be filled first with its constraint in place.
CREATE TABLE department (id integer PRIMARY KEY, head integer);
CREATE TABLE employee (id integer PRIMARY KEY, department integer NOT NULL REFERENCES department, boss integer REFERENCES employee);
INSERT INTO department SELECT i, i * 10 FROM generate_series(1, 5) i;
INSERT INTO employee SELECT i, 1 + i % 5, CASE WHEN i > 1 THEN i / 2 END FROM generate_series(1, 60) i;
ALTER TABLE department ADD FOREIGN KEY (head) REFERENCES employee DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE booking (room integer, during tstzrange NOT NULL, EXCLUDE USING gist (during WITH &&));
INSERT INTO booking SELECT 1, tstzrange(t, t + interval '1 hour') FROM generate_series(timestamptz '2026-01-01 00:00+00', '2026-01-03 00:00+00', '2 hours') t;

CREATE TABLE private (id integer PRIMARY KEY, owner name NOT NULL DEFAULT current_user, secret text);
ALTER TABLE private ENABLE ROW LEVEL SECURITY;
ALTER TABLE private FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON private USING (owner = current_user);
INSERT INTO private VALUES (1, 'lab_reader', 'a'), (2, 'lab_owner', 'b');

---- Everything that is not a table.

ALTER TABLE purchase ADD FOREIGN KEY (customer) REFERENCES customer ON DELETE CASCADE;
ALTER TABLE purchase_line ADD FOREIGN KEY (purchase) REFERENCES purchase;
CREATE INDEX purchase_customer ON purchase (customer) INCLUDE (state);
CREATE INDEX purchase_open ON purchase (changed) WHERE state <> 'it''s closed';
CREATE INDEX purchase_details ON purchase USING gin (details);
CREATE INDEX edge_words ON edge USING gin (words);
CREATE INDEX measurement_value ON measurement (value);
CREATE STATISTICS purchase_both (ndistinct, dependencies) ON customer, state FROM purchase;
ALTER TABLE customer CLUSTER ON customer_pkey;
ALTER TABLE employee ADD CONSTRAINT not_own_boss CHECK (boss <> id) NOT VALID;

CREATE SEQUENCE ticket INCREMENT BY 5 MINVALUE -100 MAXVALUE 1000000 START 10 CACHE 3 CYCLE;
SELECT setval('ticket', 4242);
CREATE SEQUENCE untouched START 77;
CREATE SEQUENCE downwards INCREMENT BY -1;
SELECT nextval('downwards');

-- Fires for the application's writes only: a copied or replicated row must not be changed or logged again.
CREATE TABLE log (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, said text NOT NULL);
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql SET search_path = shop
    AS $$ BEGIN NEW.changed = now(); INSERT INTO log (said) VALUES ('purchase ' || NEW.id); RETURN NEW; END $$;
CREATE TRIGGER changed BEFORE INSERT OR UPDATE ON purchase FOR EACH ROW EXECUTE FUNCTION note_change();
UPDATE purchase SET state = 'paid' WHERE id <= 20;
CREATE TRIGGER sleeping AFTER DELETE ON purchase FOR EACH STATEMENT EXECUTE FUNCTION note_change();
ALTER TABLE purchase DISABLE TRIGGER sleeping;

CREATE VIEW open_purchase WITH (security_barrier) AS SELECT * FROM purchase WHERE state <> 'it''s closed';
CREATE RECURSIVE VIEW chain (id, top) AS
    SELECT id, id FROM shop.employee WHERE boss IS NULL UNION ALL SELECT e.id, c.top FROM shop.employee e JOIN chain c ON e.boss = c.id;
CREATE MATERIALIZED VIEW turnover AS SELECT customer % 100 AS slot, sum(total) AS total FROM purchase GROUP BY 1;
CREATE UNIQUE INDEX turnover_slot ON turnover (slot);
CREATE MATERIALIZED VIEW turnover_top AS SELECT * FROM turnover ORDER BY total DESC, slot LIMIT 10;
CREATE MATERIALIZED VIEW unpopulated AS SELECT count(*) FROM measurement WITH NO DATA;
CREATE RULE protect AS ON DELETE TO price_limit DO INSTEAD NOTHING;

CREATE FUNCTION add_up(state numeric, value numeric) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2';
CREATE AGGREGATE grand_total(numeric) (SFUNC = shop.add_up, STYPE = numeric, INITCOND = '0');
CREATE PROCEDURE tidy() LANGUAGE sql AS 'DELETE FROM shop.basket';
CREATE OPERATOR #+# (LEFTARG = numeric, RIGHTARG = numeric, FUNCTION = shop.add_up);

ALTER TABLE customer OWNER TO lab_owner;
ALTER FUNCTION price_ok(numeric) OWNER TO lab_owner;
GRANT SELECT ON customer, open_purchase TO lab_reader;
GRANT UPDATE (name) ON customer TO lab_reader;
REVOKE EXECUTE ON PROCEDURE tidy() FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE lab_owner IN SCHEMA shop GRANT SELECT ON TABLES TO lab_reader;
COMMENT ON COLUMN customer.email IS 'where to write; never "spam"';
RESET search_path;
ANALYZE;
