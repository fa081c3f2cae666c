SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby,
       (SELECT coalesce(json_agg(s), '[]')
          FROM (SELECT s.slot_name AS name, s.active, s.wal_status,
                       pg_wal_lsn_diff(p.lsn, s.restart_lsn)::bigint AS retained_bytes,
                       greatest(0, pg_wal_lsn_diff(p.lsn, greatest(r.replay_lsn, s.confirmed_flush_lsn)))::bigint
                           AS lag_bytes,
                       (extract(epoch FROM CASE
                           WHEN r.pid IS NOT NULL THEN coalesce(r.replay_lag, '0')
                           ELSE clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz
                        END) * 1000000)::bigint AS lag_us
                  FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                    ELSE pg_current_wal_lsn() END) AS p (lsn),
                       pg_replication_slots s
                  LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
                 WHERE s.slot_type = 'logical' AND s.database = current_database()) s) AS slots,
       (SELECT coalesce(json_agg(i), '[]') FROM (:subscriptions) i) AS inbound,
       :sent_tables AS sent, :end_of_wal AS flushed,
       (SELECT coalesce(json_agg(failed), '[]') FROM :compared) AS compared,
       (SELECT :server_id FROM pg_control_system()) AS server, :place AS place,
       (SELECT coalesce(json_agg(failed), '[]') FROM :unfinished) AS recovering,
       (SELECT coalesce(json_agg(failed), '[]') FROM :undecided) AS undecided
