-- The tables of the lab's writers. Every row has a version that goes up by one with each update.
CREATE SCHEMA IF NOT EXISTS load;

CREATE TABLE IF NOT EXISTS load.account (
    id      bigint PRIMARY KEY,
    version integer NOT NULL,
    owner   text NOT NULL,
    balance numeric(14, 2) NOT NULL,
    touched timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS load.event (
    id      bigint PRIMARY KEY,
    version integer NOT NULL,
    kind    text NOT NULL,
    payload jsonb NOT NULL,
    tags    text[] NOT NULL
);

CREATE TABLE IF NOT EXISTS load.document (
    shelf   bigint NOT NULL,
    id      bigint NOT NULL,
    version integer NOT NULL,
    body    text NOT NULL,
    PRIMARY KEY (shelf, id)
);
