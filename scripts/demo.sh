#!/usr/bin/env bash
# Show the main job on real sessions: two workers contend for a lock, the one
# that holds it is frozen, its lease expires, the other takes over with a
# greater token, and the frozen one is refused when it wakes.
#
# Usage: scripts/demo.sh [--psql]
# Installs what is needed, builds, and runs a throwaway cluster, which stays
# until you have looked around: with --psql in psql, else until Enter.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

open_psql=no
case ${1:-} in
	--psql) open_psql=yes ;;
	'') ;;
	*) die "usage: scripts/demo.sh [--psql]" ;;
esac

declare -A worker_pid worker_fd sent

finish()
{
	local pid

	for pid in "${worker_pid[@]}"; do
		kill -CONT "$pid" 2>/dev/null || true
		kill "$pid" 2>/dev/null || true
	done
	cleanup
}

# A worker is a psql with its own session, reading from a pipe.
start_worker()
{
	local fd

	mkfifo "$work/$1.in"
	PGAPPNAME="worker $1" psql -X -q -A -t -v VERBOSITY=verbose >"$work/$1.out" 2>&1 <"$work/$1.in" &
	worker_pid[$1]=$!
	exec {fd}>"$work/$1.in"
	worker_fd[$1]=$fd
	sent[$1]=0
}

# send WORKER SQL: print it and let the worker run it.
send()
{
	sent[$1]=$((${sent[$1]} + 1))
	printf '  worker %s> %s\n' "$1" "$2"
	printf '%s\n\\echo answered %d\n' "$2" "${sent[$1]}" >&"${worker_fd[$1]}"
}

# Wait for the answer to what was sent last, and print it.
answer()
{
	local n=${sent[$1]}

	wait_until "the answer of worker $1" grep -q "^answered $n\$" "$work/$1.out"
	awk -v n="$n" '/^LOCATION: / { next }
		/^answered / { if ($2 == n) exit; text = ""; next }
		{ text = text "            " $0 "\n" }
		END { printf "%s", text }' "$work/$1.out"
}

wait_until()
{
	local what=$1
	local tries=600

	shift
	until "$@"; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || die "waited in vain for $what"
		sleep 0.1
	done
}

query_is()
{
	[ "$(psql -X -A -t -c "$1")" = "$2" ]
}

show()
{
	psql -X -P footer=off -c "$1" | sed 's/^/  /'
}

begin
build_and_install
start_cluster demo
psql -X -q -c "CREATE EXTENSION distlock"

say "1. Two workers want to write the nightly report; worker A is first"
start_worker A
start_worker B
send A "SELECT distlock_acquire('nightly-report', ttl => '5s');"
answer A
send B "SELECT distlock_acquire('nightly-report', ttl => '30s');"
wait_until "worker B to wait" query_is "SELECT count(*) FROM distlock_waiters" 1
echo "            (waits)"
show "SELECT name, token, holder, ttl, waiters FROM distlock_leases"
show "SELECT name, holder, position, blocked_by_tokens FROM distlock_waiters"

say "2. Worker A freezes (SIGSTOP): it cannot renew, and does not know it"
kill -STOP "${worker_pid[A]}"
echo "  its lease has this long to live:"
show "SELECT remaining FROM distlock_leases"

say "3. The lease expires, and worker B gets the lock with a greater token"
answer B
show "SELECT name, token, holder, ttl, waiters FROM distlock_leases"

say "4. Worker A wakes up, believes it still holds the lock, and is refused"
kill -CONT "${worker_pid[A]}"
send A "SELECT distlock_renew('nightly-report', 1);"
answer A
send A "SELECT distlock_check('nightly-report', 1);"
answer A
send A "SELECT distlock_release('nightly-report', 1);"
answer A

say "5. Worker B is not disturbed"
send B "SELECT distlock_check('nightly-report', 2);"
answer B
send B "SELECT distlock_release('nightly-report', 2);"
answer B
show "SELECT acquired, contended, expired, lost, released FROM distlock_stats"
echo "  In the server's log:"
grep -A 1 'lease of lock' "$work/demo/log" | sed 's/^/    /'

say "Go on by yourself"
if [ $open_psql = yes ]; then
	echo "  The throwaway cluster is removed when you leave psql."
	psql -X
else
	if [ -t 0 ]; then
		echo "  $pg_bin/psql -h $PGHOST -p $PGPORT -U $PGUSER $PGDATABASE"
		read -r -p "  Press Enter to remove the throwaway cluster. "
	else
		echo "  scripts/demo.sh --psql leaves you in psql."
	fi
fi
