SELECT format('START_REPLICATION SLOT %I LOGICAL 0/0 (startup_params_format %L, expected_encoding %L, '
              'min_proto_version %L, max_proto_version %L, spock_version %L, spock_version_num %L, '
              '"spock.forward_origins" %L, "spock.replication_set_names" %L)',
              s.sub_slot_name, '1', getdatabaseencoding(), ':protocol', ':protocol',
              spock.spock_version(), spock.spock_version_num(),
              coalesce((SELECT string_agg(quote_ident(f), ',') FROM unnest(s.sub_forward_origins) f), ''),
              coalesce((SELECT string_agg(quote_ident(r), ',') FROM unnest(s.sub_replication_sets) r), ''))
  FROM spock.subscription s WHERE s.sub_name = $1
