#!/usr/bin/env bash
# Measure durable leases: acquire and release against a lease table updated with
# SQL and against Redis with "appendfsync always", renewals against an advisory
# lock; and what a million pairs leave behind while a transaction is held open.
#
# Usage: bench/durable.sh [ROUNDS [SECONDS [CLIENTS [PAIRS]]]]
#        (7 rounds of 5 s, 32 clients, 1000000 pairs; 0 pairs: not that part)

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
source "$top/bench/lib.sh"
source "$top/bench/servers.sh"

clients=${3:-32}
pairs=${4:-1000000}

finish()
{
	stop_servers
	cleanup
}

rate()
{
	if [ "$4" = pair_redis ]; then
		"$work/redis_pairs" "$work/redis/socket" "$3" 2 "$2"
	else
		pgbench_rate "$@"
	fi
}

# grow TABLE SCRIPT: the size of the table, and pairs a second, after so many.
grow()
{
	local table=$1 script=$2 done=0 next seconds

	for next in 1000 $((pairs / 100)) $((pairs / 10)) $((pairs / 2)) "$pairs"; do
		[ "$next" -gt "$done" ] || continue
		seconds=$("$pg_bin/pgbench" -n -M prepared -c 10 -j 2 -t $(((next - done) / 10)) \
			-D token=0 -f "$top/bench/durable/$script.sql" 2>&1 |
			sed -n 's/^tps = \([0-9.]*\).*/\1/p')
		printf '%-20s %10d pairs: %10.0f pairs/s, %8d kB of table, %8d kB of indexes\n' \
			"$script" "$next" "$seconds" \
			$(psql -X -A -t -F ' ' -c "SELECT pg_relation_size('$table') / 1024, pg_indexes_size('$table') / 1024")
		done=$next
	done
}

begin
apt_install procps redis-server libhiredis-dev
build_and_install
cc -O2 -Wall -o "$work/redis_pairs" "$top/bench/durable/redis_pairs.c" -lhiredis -lpthread
start_cluster bench "max_connections = $((clients + 20))" "max_wal_size = 8GB" \
	"log_checkpoints = off"
# Redis writes to the same disk, under the same user.
start_redis redis --appendonly yes --appendfsync always
psql -X -q -c "CREATE EXTENSION distlock"
psql -X -q -f "$top/bench/durable/locks.sql"

say "$(redis-server --version | cut -d ' ' -f 1-3), appendfsync always"
measure "$top/bench/durable" "${1:-7}" "${2:-5}" "$clients" \
	pair_durable pair_sql pair_redis pair_volatile renew_durable relock
ratios pair_durable:pair_sql pair_durable:pair_redis renew_durable:relock \
	pair_volatile:pair_durable

say "fdatasync, alone and unshared"
as_user "$pg_bin/pg_test_fsync" -s 1 -f "$work/bench/fsync" 2>/dev/null |
	sed -n '/one 8kB write/,/^$/p'

if [ "$pairs" -gt 0 ]; then
	say "growth, with a transaction held open for the whole run, 10 clients"
	coproc holder { psql -X -q -A -t; }
	printf 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;\n' >&"${holder[1]}"
	read -r <&"${holder[0]}"
	grow distlock_lease_table pair_durable
	grow locks pair_insert
	printf 'COMMIT;\n\\q\n' >&"${holder[1]}"
fi
