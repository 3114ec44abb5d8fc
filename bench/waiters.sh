#!/usr/bin/env bash
# Measure how long a lock takes from its holder to the next in its queue, with
# many sessions waiting, against pg_advisory_lock: all for one lock, and each
# for a lock of its own.
#
# Usage: bench/waiters.sh [ROUNDS [HANDOVERS [WAITERS]]]
#        (18 rounds of 10000 hand-overs, 200 waiting sessions)

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
source "$top/bench/lib.sh"

rounds=${1:-18}
handovers=${2:-10000}
waiters=${3:-200}

# hand_overs CASE LOCKS WAITERS: measure all systems, print the medians of the
# rounds and the ratios to advisory locks.  What ratios() calls tps are times here.
hand_overs()
{
	local case=$1 system file p50 p99 max

	say "$case: $2 x $3 waiting sessions, $rounds rounds of $handovers hand-overs"
	"$work/hand_over" "$2" "$3" "$rounds" "$handovers" >"$work/rounds"
	while read -r system p50 p99 max; do
		file=$work/${case}_$system
		echo "$p50" >>"${file}_p50.tps"
		echo "$p99" >>"${file}_p99.tps"
		echo "$max" >>"${file}_max.tps"
	done <"$work/rounds"
	printf '%-20s %10s %10s %10s  microseconds, the median of the rounds\n' '' p50 p99 max
	for system in advisory session lease; do
		file=$work/${case}_$system
		printf '%-20s %10.1f %10.1f %10.1f  (p50: least %.1f, most %.1f)\n' "$system" \
			"$(median "${file}_p50.tps")" "$(median "${file}_p99.tps")" \
			"$(median "${file}_max.tps")" \
			"$(sort -n "${file}_p50.tps" | head -n 1)" \
			"$(sort -n "${file}_p50.tps" | tail -n 1)"
	done
	ratios "${case}_session_p50:${case}_advisory_p50" \
		"${case}_session_p99:${case}_advisory_p99" \
		"${case}_lease_p50:${case}_advisory_p50" \
		"${case}_lease_p99:${case}_advisory_p99"
}

begin
apt_install libpq-dev
build_and_install
cc -O2 -Wall -I"$("$pg_bin/pg_config" --includedir)" -o "$work/hand_over" \
	"$top/bench/waiters/hand_over.c" -lpq
start_cluster bench "max_connections = $((2 * waiters + 20))"
psql -X -q -c "CREATE EXTENSION distlock"

say "$(nproc) cores, $(psql -X -A -t -c 'SHOW server_version')"
hand_overs one_lock 1 "$waiters"
hand_overs many_locks "$waiters" 1
