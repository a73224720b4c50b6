#!/bin/sh
# Makes the role that postgres-exporter reads PostgreSQL's statistics with. It cannot read bonbon's tables. The postgres image runs
# this file when it makes the database; docs/operations.md says how to run it on a database that exists.
set -eu
psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set password `cat /run/secrets/monitor_password`
CREATE ROLE monitor LOGIN CONNECTION LIMIT 5;
GRANT pg_monitor TO monitor;
ALTER ROLE monitor PASSWORD :'password';
SQL
