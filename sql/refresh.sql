-- It commits nothing of its own, so it may have a SET clause.
CREATE PROCEDURE spock.refresh_subscriptions()
LANGUAGE c
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'refresh_subscriptions_wrapper';
REVOKE ALL ON PROCEDURE spock.refresh_subscriptions() FROM PUBLIC;
COMMENT ON PROCEDURE spock.refresh_subscriptions() IS
    'Makes every subscription of every member know the tables and partitions that its provider has by now, without copying their rows; a table has to be on every member before. Native engine';
