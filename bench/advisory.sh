#!/usr/bin/env bash
# Measure distlock against PostgreSQL's own advisory locks: the same server,
# the same run, the two in turn, several rounds, medians and ratios.
#
# Usage: bench/advisory.sh [ROUNDS [SECONDS [CLIENTS]]]   (7 rounds of 5 s, 32)

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

rounds=${1:-7}
seconds=${2:-5}
clients=${3:-32}
scripts=$top/bench/advisory

begin
build_and_install
start_cluster bench "max_connections = $((clients + 20))" "lock_timeout = 30s"
psql -X -q -c "CREATE EXTENSION distlock"

# one SCRIPT: measure it once, in scripts per second.
one()
{
	local out

	out=$("$pg_bin/pgbench" -n -M prepared -c "$clients" -j 2 -T "$seconds" \
		-D token=0 -f "$scripts/$1.sql" 2>&1) || die "$out"
	sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<<"$out" >>"$work/$1.tps"
}

median()
{
	sort -n "$1" | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# The median of the ratios round by round, which a drifting machine spares.
ratio()
{
	paste "$work/$1.tps" "$work/$2.tps" | awk '{ print $1 / $2 }' >"$work/ratio"
	median "$work/ratio"
}

pairs="pair_lease:pair_advisory pair_lease:pair_advisory_int one_name_lease:one_name_advisory renew:relock renew:relock_two_keys renew:xact_lock"
all="pair_lease pair_advisory pair_advisory_int one_name_lease one_name_advisory renew relock relock_two_keys xact_lock empty"

say "$rounds rounds of $seconds s, $clients clients, $(nproc) cores, $(psql -X -A -t -c 'SHOW server_version')"
for ((round = 1; round <= rounds; round++)); do
	for script in $all; do
		one "$script"
		printf '%s %.0f  ' "$script" "$(tail -n 1 "$work/$script.tps")"
	done
	echo
done

say "medians, scripts per second"
for script in $all; do
	printf '%-20s %10.0f   (least %.0f, most %.0f)\n' "$script" "$(median "$work/$script.tps")" \
		"$(sort -n "$work/$script.tps" | head -n 1)" "$(sort -n "$work/$script.tps" | tail -n 1)"
done
say "ratios, the median of the rounds"
for pair in $pairs; do
	printf '%-40s %.3f\n' "${pair/:/ to }" "$(ratio "${pair%:*}" "${pair#*:}")"
done
