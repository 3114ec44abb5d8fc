# Shared by the benchmarks of this folder; to be sourced by bash after
# scripts/lib.sh.  Scripts for pgbench are measured in turn, round by round, in
# one run on one server, in an order by chance, so that none always follows the same
# one; what counts are the ratios within a round.

# rate FOLDER SECONDS CLIENTS SCRIPT: how often a second the script runs.  A
# benchmark may redefine it for what pgbench does not do.
rate()
{
	pgbench_rate "$@"
}

pgbench_rate()
{
	local out

	out=$("$pg_bin/pgbench" -n -M prepared -c "$3" -j 2 -T "$2" \
		-D token=0 -f "$1/$4.sql" 2>&1) || die "$out"
	sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<<"$out"
}

# measure FOLDER ROUNDS SECONDS CLIENTS SCRIPT...: run them, print the medians.
measure()
{
	local folder=$1 rounds=$2 seconds=$3 clients=$4
	local round script

	shift 4
	say "$rounds rounds of $seconds s, $clients clients, $(nproc) cores, $(psql -X -A -t -c 'SHOW server_version')"
	for ((round = 1; round <= rounds; round++)); do
		for script in $(shuf -e -- "$@"); do
			rate "$folder" "$seconds" "$clients" "$script" >>"$work/$script.tps"
			printf '%s %.0f  ' "$script" "$(tail -n 1 "$work/$script.tps")"
		done
		echo
	done
	say "medians, scripts per second"
	for script; do
		printf '%-20s %10.0f   (least %.0f, most %.0f)\n' "$script" \
			"$(median "$work/$script.tps")" "$(sort -n "$work/$script.tps" | head -n 1)" \
			"$(sort -n "$work/$script.tps" | tail -n 1)"
	done
}

median()
{
	sort -n "$1" | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# ratios PAIR...: of each A:B the median of A to B, round by round, which a
# drifting machine spares.
ratios()
{
	local pair

	say "ratios, the median of the rounds"
	for pair; do
		paste "$work/${pair%:*}.tps" "$work/${pair#*:}.tps" | awk '{ print $1 / $2 }' >"$work/ratio"
		printf '%-40s %.3f\n' "${pair/:/ to }" "$(median "$work/ratio")"
	done
}
