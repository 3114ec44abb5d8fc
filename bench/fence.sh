#!/usr/bin/env bash
# Measure what the fence costs: transactions that update one row, guarded and
# not, and a protected table against one that is not.
#
# Usage: bench/fence.sh [ROUNDS [SECONDS [CLIENTS]]]   (7 rounds of 5 s, 32)
#
# Each client has a lease of its own.  "call" has as many round trips as
# "guarded"; "pipeline" has one for the whole transaction.

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
source "$top/bench/lib.sh"

clients=${3:-32}

begin
build_and_install
start_cluster bench "max_connections = $((clients + 20))" "autovacuum = off"
psql -X -q -c "CREATE EXTENSION distlock"
psql -X -q -A -t -f "$top/bench/fence/tables.sql"

measure "$top/bench/fence" "${1:-7}" "${2:-5}" "$clients" \
	bare call guarded pipeline_bare pipeline_guarded \
	statement_bare statement_guarded statement_constant statement_own statement_column
ratios guarded:call guarded:bare pipeline_guarded:pipeline_bare \
	statement_guarded:statement_bare statement_constant:statement_bare \
	statement_column:statement_own
