#!/usr/bin/env bash
# Send random statements to a throwaway server for some minutes: those of
# sqlsmith, and calls of every function with random arguments; see test/fuzz.
# Whatever they are answered, the server must not crash, lose a connection or
# report an internal error (SQLSTATE XX...).
#
# Usage: scripts/test-sqlsmith.sh [--minutes N] [--seed S]
# Installs what is needed, builds, and runs a throwaway cluster.  Ten minutes
# are the default.  Ends with figures; logs are kept if anything is wrong.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

minutes_and_seed 10 "$@"

# sqlsmith chooses among all functions of the catalogs, and would rarely come upon
# ours.  This view, which it finds first, has ours and what makes arguments for
# them.  Operators of polymorphic types go, since it cannot use them.
narrow_sqlsmith()
{
	psql -X -q -v ON_ERROR_STOP=1 smith <<-'SQL'
		CREATE SCHEMA narrow;
		CREATE FUNCTION narrow.usual(types oid[]) RETURNS boolean IMMUTABLE
		RETURN types <@ '{bool,int4,int8,interval,text,text[]}'::regtype[]::oid[];
		CREATE VIEW narrow.pg_proc AS
		SELECT * FROM pg_catalog.pg_proc
		WHERE proname LIKE 'distlock\_%' AND prokind = 'f' OR
		    prokind = 'a' AND narrow.usual(prorettype || proargtypes::oid[]) OR
		    oid IN ('lag(anyelement)'::regprocedure, 'abs(bigint)'::regprocedure,
		        'length(text)'::regprocedure, 'upper(text)'::regprocedure,
		        'justify_hours(interval)'::regprocedure, 'string_to_array(text, text)'::regprocedure);
		GRANT USAGE ON SCHEMA narrow TO PUBLIC;
		GRANT SELECT ON narrow.pg_proc TO PUBLIC;
		ALTER DATABASE smith SET search_path = narrow, pg_catalog, public;
		SET allow_system_table_mods = on;
		DELETE FROM pg_operator WHERE oprleft::regtype::text LIKE 'any%' OR oprright::regtype::text LIKE 'any%';
	SQL
}

pids=()

finish()
{
	[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
	cleanup
}

# Run the generators side by side; they fight for the same locks.
run_generators()
{
	local pid n status

	for n in 1 2; do
		timeout "$seconds" sqlsmith --seed=$((seed + n)) --exclude-catalog --verbose \
			--target="host=$PGHOST port=$PGPORT dbname=smith user=fuzz_owner" >"$work/smith$n.log" 2>&1 &
		pids+=($!)
	done
	for n in 1 2 3 4; do
		PGDATABASE=fuzz "$top/test/fuzz/calls" --seconds "$seconds" --seed $((seed + n)) >"$work/calls$n.log" 2>&1 &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do
		status=0
		wait "$pid" || status=$?
		case $status in
			0 | 124) ;;
			*) complain "a generator ended with status $status; see smith*.log and calls*.log" ;;
		esac
	done
	pids=()
}

complain()
{
	echo "$*" >&2
	keep=yes
}

# In the log a statement follows its error.
judge_log()
{
	if grep -E -A2 'PANIC|TRAP:|was terminated by signal|exited with exit code [^1]| XX[0-9A-Z]{3} ' "$work/main/log" >"$work/bad.log"; then
		head -c 4000 "$work/bad.log" >&2
		complain "the server crashed or had an internal error"
	fi
}

# Two refuse all that they are called for; one needs a damaged lease table, one is
# for COPY ... FROM, which a trigger refuses.
cannot_return=distlock_refuse_change,distlock_refuse_write,distlock_discard_damaged,distlock_image_recv

# figures DATABASE: what came of its statements; sets $never.
figures()
{
	say "$1: errors by SQLSTATE"
	sed -nE "s/^[^ ]+ [^ ]+ [^ ]+ \\[[0-9]+\\] $1 ([0-9A-Z]{5}) (ERROR|FATAL):.*/\\1/p" "$work/main/log" |
		sort | uniq -c | sort -rn
	say "$1: calls that returned"
	psql -X -q -A -t -F '  ' -d "$1" -c "
		SELECT calls, funcname FROM pg_stat_user_functions WHERE funcname LIKE 'distlock\_%' ORDER BY calls DESC"
	never=$(psql -X -q -A -t -d "$1" -c "
		SELECT string_agg(proname, ', ' ORDER BY proname) FROM pg_proc
		WHERE proname LIKE 'distlock\_%' AND oid NOT IN (SELECT funcid FROM pg_stat_user_functions)
		AND proname <> ALL ('{$cannot_return}')")
	echo "never: ${never:-none but those that cannot}"
}

begin
apt_install sqlsmith
build_and_install
start_cluster main "max_prepared_transactions = 50" "max_connections = 30" \
	"track_functions = all" "log_line_prefix = '%m [%p] %d %e '" "fsync = off" \
	"distlock.max_leases = 200" "distlock.max_ttl = '5 s'" "distlock.default_ttl = '1 s'" \
	"distlock.log_expirations = off"
for database in smith fuzz; do
	psql -X -q -c "CREATE DATABASE $database"
	psql -X -q -v ON_ERROR_STOP=1 -f "$top/test/fuzz/setup.sql" "$database" >/dev/null
done
narrow_sqlsmith

seconds=$(perl -e 'print int(60 * shift)' "$minutes")
say "random statements for $minutes minutes, seed $seed, PostgreSQL $PG_VERSION"
run_generators

# What nobody holds on to ends, and nothing else is left.
for attempt in $(seq 100); do
	left=$(psql -X -A -t -d fuzz -c "SELECT (SELECT count(*) FROM distlock_leases) + (SELECT count(*) FROM distlock_waiters)" 2>&1)
	[ "$left" != 0 ] || break
	sleep 0.2
done
[ "$left" = 0 ] || complain "leases or waiters are left: $left"
# sqlsmith writes a letter for each statement.
! grep -qE '^[.eSt]*C' "$work"/smith*.log || complain "sqlsmith lost its connection"
judge_log
for database in smith fuzz; do
	figures "$database"
done
[ -z "$never" ] || complain "these functions were never reached: $never"
say "statements"
echo "sqlsmith: $(grep -hE '^[.eStC]+$' "$work"/smith*.log | tr -d '\n' | wc -c), calls: $(awk '{ n += $1 } END { print n }' "$work"/calls*.log)"
[ "${keep:-no}" = no ] || die "see $work/main/log, and bad.log next to it"
