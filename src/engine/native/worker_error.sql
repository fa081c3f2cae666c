SELECT format('Subscription %s: %s errors of its apply worker so far%s. The log of that server says what they were%s.',
              s.subname, coalesce(e.apply_error_count, 0),
              (SELECT ', conflicts: ' || string_agg(format('%s %s', substr(c.key, 7), c.value), ', ' ORDER BY c.key)
                 FROM jsonb_each_text(to_jsonb(e)) c
                WHERE c.key LIKE 'confl\_%' AND c.value <> '0'),
              ': ' || pg_current_logfile())
  FROM pg_subscription s
  JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
  LEFT JOIN pg_stat_subscription_stats e ON e.subid = s.oid
 WHERE s.subname = $1
