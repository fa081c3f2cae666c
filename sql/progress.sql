CREATE FUNCTION zodan.progress_read(
    handle bigint,
    pid    integer,
    OUT run              bigint,
    OUT command          text,
    OUT node             text,
    OUT phase            integer,
    OUT phases           integer,
    OUT phase_name       text,
    OUT step             text,
    OUT step_node        text,
    OUT activity         text,
    OUT tables           text[],
    OUT percent          double precision,
    OUT bytes_done       bigint,
    OUT bytes_total      bigint,
    OUT rows_done        bigint,
    OUT rows_total       bigint,
    OUT bytes_per_second double precision,
    OUT time_left        interval,
    OUT started_at       timestamptz,
    OUT last_progress_at timestamptz)
RETURNS SETOF record
LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'progress_read_wrapper';
REVOKE ALL ON FUNCTION zodan.progress_read(bigint, integer) FROM PUBLIC;
COMMENT ON FUNCTION zodan.progress_read(bigint, integer) IS
    'What a session that runs a CALL of zodan tells in its shared memory; no row if it has ended';

-- The numbers of a run are in shared memory, which its session holds a lock for (class 2054120546, "zodb" in ASCII; see
-- src/progress/shared.rs). It lets go of that after the run's last commit, and each statement here has a snapshot of its own: so a
-- run is never seen as neither under way nor ended.
CREATE FUNCTION zodan.progress_rows(
    OUT pid              integer,
    OUT run              bigint,
    OUT command          text,
    OUT node             text,
    OUT state            text,
    OUT phase            integer,
    OUT phases           integer,
    OUT phase_name       text,
    OUT step             text,
    OUT step_node        text,
    OUT activity         text,
    OUT tables           text[],
    OUT percent          numeric,
    OUT bytes_done       bigint,
    OUT bytes_total      bigint,
    OUT rows_done        bigint,
    OUT rows_total       bigint,
    OUT bytes_per_second bigint,
    OUT time_left        interval,
    OUT started_at       timestamptz,
    OUT last_progress_at timestamptz,
    OUT ended_at         timestamptz)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
        SELECT l.pid, t.run, t.command, t.node, 'running', t.phase, t.phases, t.phase_name, t.step, t.step_node, t.activity,
               t.tables, round(t.percent::numeric, 2), t.bytes_done, t.bytes_total, t.rows_done, t.rows_total,
               t.bytes_per_second::bigint, t.time_left, t.started_at, t.last_progress_at, NULL::timestamptz
          FROM pg_locks l
         CROSS JOIN LATERAL zodan.progress_read(l.objid::bigint, l.pid) t
         WHERE l.locktype = 'advisory' AND l.classid = 2054120546 AND l.objsubid = 2
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
         ORDER BY t.started_at;
    IF FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
        SELECT NULL::integer, r.id, r.command, r.node, CASE r.state WHEN 'running' THEN 'unfinished' ELSE r.state END,
               CASE WHEN r.state <> 'done' THEN (SELECT max(s.phase) FROM zodan.step s WHERE s.run_id = r.id) END, NULL::integer, NULL, NULL, NULL, r.message,
               '{}'::text[], CASE r.state WHEN 'done' THEN 100.00 END, NULL::bigint, NULL::bigint, r.copied_rows,
               CASE r.state WHEN 'done' THEN r.copied_rows END, NULL::bigint, NULL::interval, r.started_at,
               (SELECT max(coalesce(s.ended_at, s.started_at)) FROM zodan.step s WHERE s.run_id = r.id), r.ended_at
          FROM zodan.run r ORDER BY r.id DESC LIMIT 1;
END
$$;
REVOKE ALL ON FUNCTION zodan.progress_rows() FROM PUBLIC;
COMMENT ON FUNCTION zodan.progress_rows() IS 'The rows of zodan.progress';

CREATE VIEW zodan.progress AS SELECT * FROM zodan.progress_rows();
REVOKE ALL ON zodan.progress FROM PUBLIC;
COMMENT ON VIEW zodan.progress IS 'The CALLs of zodan that run in this database, while they run; if there is none, the last run';
COMMENT ON COLUMN zodan.progress.pid IS 'The session that runs the CALL; null if the run has ended';
COMMENT ON COLUMN zodan.progress.run IS 'Its number in zodan.run; null before there is anything to undo';
COMMENT ON COLUMN zodan.progress.node IS 'The node that joins, leaves or has failed';
COMMENT ON COLUMN zodan.progress.state IS 'running; of a run that has ended done, undone or failed as in zodan.run, or unfinished: it was interrupted, or waits for spock.recover_finalize';
COMMENT ON COLUMN zodan.progress.phase IS 'Of a run that has not done all, the last that it wrote about; null of one that has';
COMMENT ON COLUMN zodan.progress.step IS 'The step of zodan.step that was begun last, or that is being undone';
COMMENT ON COLUMN zodan.progress.step_node IS 'Where';
COMMENT ON COLUMN zodan.progress.activity IS 'What is done within the step, or what it waits for and how far that is; of a run that has failed the error';
COMMENT ON COLUMN zodan.progress.tables IS 'The tables in hand, quoted: copied, or with an index in the making';
COMMENT ON COLUMN zodan.progress.percent IS 'Of the whole CALL; it never goes back, and is 100 when the CALL has done all';
COMMENT ON COLUMN zodan.progress.bytes_done IS 'Of a join: bytes of tables copied and indexes built, by their size on the disk of the source; of a recovery: bytes of the failed node''s WAL';
COMMENT ON COLUMN zodan.progress.bytes_total IS 'What bytes_done is going to be';
COMMENT ON COLUMN zodan.progress.rows_done IS 'Rows copied; of a recovery changes';
COMMENT ON COLUMN zodan.progress.rows_total IS 'What rows_done is going to be, as the planner of the source estimates it; null where nobody knows';
COMMENT ON COLUMN zodan.progress.bytes_per_second IS 'How fast bytes_done grew in the last 30 s; null where it is not known';
COMMENT ON COLUMN zodan.progress.time_left IS 'At that pace, until all bytes are done; null where it is not known';
COMMENT ON COLUMN zodan.progress.last_progress_at IS 'When anything last moved: a number, a step, what is waited for';
