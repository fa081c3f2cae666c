DO $do$
BEGIN
    PERFORM set_config('client_min_messages', 'error', true);
    PERFORM set_config('spock.enable_ddl_replication', 'off', true);
    EXECUTE format('CREATE SUBSCRIPTION zodan_probe CONNECTION %L PUBLICATION zodan_probe '
                   'WITH (create_slot = false, slot_name = NONE, enabled = false)',
                   current_setting('zodan_probe.dsn'));
    RAISE EXCEPTION USING ERRCODE = 'ZODAN', MESSAGE = 'reached';
EXCEPTION WHEN SQLSTATE 'ZODAN' THEN NULL;
END
$do$
