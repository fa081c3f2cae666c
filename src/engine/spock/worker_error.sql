SELECT concat_ws('; ',
       format('Subscription %s is %s by spock.sub_show_status()', s.sub_name, coalesce(t.status, 'unknown')),
       CASE WHEN a.pid IS NULL THEN 'no apply worker runs'
            ELSE concat_ws(', ', format('its apply worker has pid %s', a.pid),
                           'waits for ' || a.wait_event_type || ' ' || a.wait_event,
                           (SELECT string_agg(format('is blocked by pid %s (%s, %s)', b.pid,
                                                     coalesce(nullif(b.application_name, ''), b.backend_type),
                                                     b.state), ', ')
                              FROM pg_stat_activity b WHERE b.pid = ANY (pg_blocking_pids(a.pid)))) END,
       (SELECT 'spock.readonly is all there: ' || r.reset
          FROM (:readonly) AS r WHERE r.value = 'all'),
       (SELECT 'applies with a delay of ' || s.sub_apply_delay WHERE s.sub_apply_delay > '0'),
       (SELECT string_agg(format('table %s is being synchronized (status %s)', u.tab, u.status), ', ')
          FROM (:unsynced) AS u WHERE u.sub = s.sub_name),
       (SELECT 'the last that it could not apply: '
               || concat_ws(': ', nullif(concat_ws(' ', e.operation, e.table_schema || '.' || nullif(e.table_name, '')), ''),
                            e.error_message)
          FROM spock.exception_log e WHERE :counts ORDER BY e.retry_errored_at DESC LIMIT 1),
       'the log of that server says more' || coalesce(': ' || pg_current_logfile(), ''))
  FROM spock.subscription s
  LEFT JOIN spock.sub_show_status() t ON t.subscription_name = s.sub_name
  LEFT JOIN pg_stat_activity a
    ON a.backend_type = format('spock apply %s:%s', (SELECT oid FROM pg_database WHERE datname = current_database()), s.sub_id)
 WHERE s.sub_name = $1
