#!/usr/bin/env bash
# Measure distlock and what users would pick instead, side by side: the same
# work, the same machine, the same run, in turn and in an order by chance, several
# rounds.
#
# Usage: bench/run.sh [--quick] [--output FOLDER] [WORK...]
#
# Works: pairs one takeover renew beat growth snapshot fence floor; all without
# arguments.  Installs what it needs, starts every server itself, and stops it.
# Takes an hour and a quarter; --quick a few minutes, enough to see that all of it works.
#
# Writes FOLDER/benchmarks.md (what is between its two marks), FOLDER/benchmarks/
# with plots, and FOLDER/benchmarks/raw.csv.  FOLDER is docs;
# with --quick nothing is written unless it is named, and the tables are printed.

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
source "$top/bench/lib.sh"
source "$top/bench/servers.sh"

rounds=9
seconds=1
counts=(1 8 32 128)			# clients
crowds=(2 8 32 128)			# clients of one lock
pairs_of_holders=50
takeover_rounds=8
beat_leases=10000
beat_seconds=20
beat_rounds=2
growth=(1000 10000 100000 1000000)
snapshot_seconds=600
snapshot_turn=2.5			# seconds of each system
fence_seconds=2
one_rounds=5
one_seconds=3
one_ttl=30000				# ms
pglock_ttl=500				# ms, how often it looks
takeover_ttl=2000			# ms
output=$top/docs
works=()

quick()
{
	rounds=2
	seconds=0.3
	counts=(1 32)
	crowds=(2 32)
	takeover_rounds=1
	beat_leases=1000
	beat_seconds=3
	beat_rounds=1
	growth=(1000 10000)
	snapshot_seconds=6
	snapshot_turn=0.5
	fence_seconds=1
	one_rounds=2
	one_seconds=0.5
	output=
}

while [ $# -gt 0 ]; do
	case $1 in
		--quick) quick ;;
		--output) output=$(mkdir -p "${2:?}" && cd "$2" && pwd); shift ;;
		pairs | one | takeover | renew | beat | growth | snapshot | fence | floor) works+=("$1") ;;
		*) die "unknown argument \"$1\"" ;;
	esac
	shift
done
[ ${#works[@]} -gt 0 ] || works=(pairs one takeover renew beat growth snapshot fence floor)

# A system is a rival of the driver and where it is to be found.
declare -A rival=() target=()

volatile=(distlock distlock-session advisory for-update shedlock-unlogged pglock-unlogged
	mariadb redis redlock)
durable=(distlock-durable shedlock pglock redis-always redlock-always etcd zookeeper)
# An unlogged table is waited for as any.
waiting=($(printf '%s\n' "${volatile[@]}" "${durable[@]}" | grep -v unlogged))

system()
{
	rival[$1]=$2
	target[$1]=$3
}

finish()
{
	stop_servers
	cleanup
}

# ---- Measuring ----

# record WORK SYSTEM CLIENTS ROUND: what the driver prints becomes lines of raw.csv.
record()
{
	local measure value

	while read -r measure value; do
		echo "$1,$2,$3,$4,$measure,$value"
	done >>"$raw"
}

# drive SYSTEM WORK CLIENTS SECONDS [NAMES [TTL]]
drive()
{
	local system=$1

	shift
	as_user "$work/tree/bench/rivals/driver" "${rival[$system]}" "${target[$system]}" "$@"
}

# cpu_of SERVER: a line for each of its processes: how many ns its threads have been
# on a processor so far.
cpu_of()
{
	local pid

	for pid in $(processes_of "$1"); do
		echo "$pid $(cat "/proc/$pid"/task/*/schedstat 2>/dev/null | awk '{ ns += $1 } END { print ns + 0 }')"
	done
}

# bytes_written: by all of the machine, to the disk that the servers are on.  (What
# a process has written counts whole folios.)
bytes_written()
{
	awk -v device="$(stat -c '%Hd:%Ld' "$work")" '$1 ":" $2 == device { print $10 * 512 }' /proc/diskstats
}

# ---- The works ----

work_pairs()
{
	local round clients system

	for ((round = 1; round <= rounds; round++)); do
		for clients in "${counts[@]}"; do
			for system in $(shuf -e select-1 empty-function "${volatile[@]}" "${durable[@]}"); do
				drive "$system" pairs "$clients" "$seconds" | record pairs "$system" "$clients" "$round"
			done
		done
	done
}

work_one()
{
	local round clients system ttl

	for ((round = 1; round <= one_rounds; round++)); do
		for clients in "${crowds[@]}"; do
			for system in $(shuf -e "${waiting[@]}"); do
				ttl=$one_ttl
				[ "$system" != pglock ] || ttl=$pglock_ttl
				drive "$system" one "$clients" "$one_seconds" 1 "$ttl" |
					record one "$system" "$clients" "$round"
			done
		done
	done
}

work_takeover()
{
	local round system

	for ((round = 1; round <= takeover_rounds; round++)); do
		for system in $(shuf -e "${waiting[@]}"); do
			drive "$system" takeover "$pairs_of_holders" 1 1 "$takeover_ttl" |
				record takeover "$system" "$pairs_of_holders" "$round"
		done
	done
}

renewing=(distlock distlock-durable shedlock pglock redis redis-always redlock redlock-always etcd)

work_renew()
{
	local round system

	for ((round = 1; round <= rounds; round++)); do
		for system in $(shuf -e select-1 "${renewing[@]}"); do
			if [ "$system" = select-1 ]; then
				drive "$system" pairs 32 "$seconds"
			else
				drive "$system" renew 32 "$seconds"
			fi | record renew "$system" 32 "$round"
		done
	done
}

# beat SERVER SYSTEM ROUND: what leases cost the server that they are on while they are
# renewed.
beat()
{
	local name=$1 system=$2 round=$3 line from written

	sync -f "$work"
	exec {from}< <(drive "$system" beat 32 "$beat_seconds" "$beat_leases" 60000)
	read -r line <&"$from"
	written=$(bytes_written)
	cpu_of "$name" >"$work/before"
	read -r line <&"$from"
	cpu_of "$name" >"$work/after"
	written=$(($(bytes_written) - written))
	record beat "$system" 32 "$round" <&"$from"
	exec {from}<&-
	awk -v seconds="$beat_seconds" -v written="$written" '
		NR == FNR { ns[$1] = $2; next }
		{ all_ns += $2 - ns[$1] }
		END { printf "cpu %.5f\nbytes %.0f\n", all_ns / 1e9 / seconds, written / seconds }
	' "$work/before" "$work/after" | record beat "$system" 32 "$round"
}

work_beat()
{
	local round pair

	for ((round = 1; round <= beat_rounds; round++)); do
		for pair in $(shuf -e bench:distlock bench:distlock-durable bench:shedlock bench:pglock \
			redis:redis redis-always:redis-always etcd:etcd-lease-each); do
			beat "${pair%:*}" "${pair#*:}" "$round"
		done
	done
}

# sql TARGET STATEMENT
sql()
{
	psql -X -A -t -q -d "$1" -c "$2"
}

# fill SYSTEM LEASES: have so many live leases; record how fast they were taken,
# and how many bytes each takes.
fill()
{
	local system=$1 n=$2

	if [ "$system" = shedlock ]; then
		sql "$pg" "INSERT INTO shedlock SELECT 'h' || g, 'infinity', 'epoch', 'client 0' FROM generate_series(0, $n - 1) g"
	else
		drive "$system-$n" hold 16 1 "$n" 36000000
	fi | record fill "$system" "$n" 1
	case $system in
		distlock*)
			sql "$pg" "SELECT sum(allocated_size) / current_setting('distlock.max_leases')::numeric +
				CASE WHEN '$system' = 'distlock-durable'
					THEN pg_table_size('distlock_lease_table') / $n.0 ELSE 0 END
				FROM pg_shmem_allocations WHERE name ~ '^distlock'"
			;;
		shedlock) sql "$pg" "SELECT pg_total_relation_size('shedlock') / $n.0" ;;
		redis)
			redis-cli -s "$work/redis-$n/socket" info memory |
				awk -F: -v n="$n" '/^used_memory:/ { print $2 / n }'
			;;
	esac | sed 's/^/bytes /' | record fill "$system" "$n" 1
}

# grow SYSTEM...: a server for each number of live leases, all of them in turn.
grow()
{
	local n round system

	for n in "${growth[@]}"; do
		start_postgresql "grow-$n" "distlock.max_leases = $((growth[-1] + 100000))"
		start_redis "redis-$n"
		system "redis-$n" redis "$work/redis-$n/socket"
		for system in distlock distlock-durable shedlock; do
			system "$system-$n" "$system" "$pg"
		done
		for system; do
			fill "$system" "$n"
		done
		sql "$pg" "VACUUM ANALYZE"
		sql "$pg" "CHECKPOINT"
	done
	for ((round = 1; round <= rounds; round++)); do
		for system in $(shuf -e "$@"); do
			for n in $(shuf -e "${growth[@]}"); do
				drive "$system-$n" pairs 8 "$seconds" | record growth "$system" "$n" "$round"
			done
		done
	done
	for n in "${growth[@]}"; do
		stop_postgresql "grow-$n"
		stop_server "redis-$n"
	done
}

# All in one server would have twice as many leases.
work_growth()
{
	grow distlock shedlock redis
	grow distlock-durable
}

# snapshot FLOOR SYSTEM...: in turn with SELECT 1, which is recorded as FLOOR, for as
# long as one snapshot is held open.  The clients column has the seconds since it was
# taken.
snapshot()
{
	local floor=$1 system table start holder_pid now

	start_postgresql snapshot
	system "snapshot-$floor" select-1 "$pg"
	system snapshot-distlock distlock "$pg"
	system snapshot-distlock-durable distlock-durable "$pg"
	system snapshot-shedlock shedlock "$pg"
	system snapshot-pglock pglock "$pg"
	coproc holder { psql -X -q -A -t -d "$pg"; }
	holder_pid=$holder_PID
	printf 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;\n' >&"${holder[1]}"
	read -r <&"${holder[0]}"
	start=$SECONDS
	while now=$((SECONDS - start)) && [ "$now" -lt "$snapshot_seconds" ]; do
		snapshot_round=$((snapshot_round + 1))
		for system in $(shuf -e "$@"); do
			drive "snapshot-$system" pairs 32 "$snapshot_turn" |
				record snapshot "$system" "$now" "$snapshot_round"
		done
		for system in "${@:2}"; do
			case $system in
				distlock) continue ;;
				distlock-durable) table=distlock_lease_table ;;
				*) table=$system ;;
			esac
			sql "$pg" "SELECT 'bytes', pg_total_relation_size('$table')" | tr '|' ' ' |
				record snapshot "$system" "$now" "$snapshot_round"
		done
	done
	printf '\\q\n' >&"${holder[1]}"
	wait "$holder_pid" || true
	stop_postgresql snapshot
}

# On the server of lease tables that grow, everybody gets slower in the end.
work_snapshot()
{
	local snapshot_round=0

	snapshot select-1 distlock distlock-durable
	snapshot select-1-leases shedlock pglock
}

work_fence()
{
	local round script

	start_postgresql fence
	psql -X -q -d "$pg" -f "$top/bench/fence/tables.sql" >/dev/null
	for ((round = 1; round <= rounds; round++)); do
		for script in $(shuf -e bare call guarded token statement_bare statement_guarded statement_token); do
			echo "rate $(pgbench_rate "$top/bench/fence" "$fence_seconds" 32 "$script")" |
				record fence "$script" 32 "$round"
		done
	done
	stop_postgresql fence
}

work_floor()
{
	as_user "$pg_bin/pg_test_fsync" -s 1 -f "$work/bench/fsync" 2>/dev/null |
		awk '/one 8kB write/ { one = 1 } /two 8kB/ { one = 0 }
			one && $1 == "fdatasync" { print $1, $2 }' | record floor fsync 1 1
}

# ---- Servers ----

# start_postgresql NAME [SETTING...]: its connection string is in $pg.
start_postgresql()
{
	local name=$1

	shift
	start_cluster "$name" "max_connections = 300" "max_wal_size = 8GB" "log_checkpoints = off" "$@"
	pg="host=$PGHOST port=$PGPORT user=postgres dbname=postgres"
	psql -X -q -v library="$work/tree/bench/rivals/nothing.so" -c "CREATE EXTENSION distlock" \
		-f "$top/bench/rivals/tables.sql"
}

# Stop it, and remove its data.
stop_postgresql()
{
	as_user "$pg_bin/pg_ctl" -D "$work/$1" -m immediate -w stop >/dev/null
	rm -rf "${work:?}/$1"
}

start_all()
{
	local i name sockets_volatile=() sockets_always=()

	start_postgresql bench
	for name in distlock distlock-session distlock-durable advisory shedlock pglock \
		select-1 empty-function; do
		system "$name" "$name" "$pg"
	done
	system for-update for-update "$pg options='-csearch_path=unlogged,public'"
	system shedlock-unlogged shedlock "$pg options='-csearch_path=unlogged,public'"
	system pglock-unlogged pglock "$pg options='-csearch_path=unlogged,public'"

	for ((i = 0; i < 5; i++)); do
		start_redis "redlock$i"
		start_redis "redlock-always$i" --appendonly yes --appendfsync always
		sockets_volatile+=("$work/redlock$i/socket")
		sockets_always+=("$work/redlock-always$i/socket")
	done
	start_redis redis
	start_redis redis-always --appendonly yes --appendfsync always
	system redis redis "$work/redis/socket"
	system redis-always redis "$work/redis-always/socket"
	system redlock redis "$(IFS=,; echo "${sockets_volatile[*]}")"
	system redlock-always redis "$(IFS=,; echo "${sockets_always[*]}")"

	start_mariadb
	system mariadb mariadb "$work/mariadb/socket"
	start_etcd
	system etcd etcd "$etcd_url"
	system etcd-lease-each etcd-lease-each "$etcd_url"
	start_zookeeper
	system zookeeper zookeeper "$zookeeper_address"
}

describe()
{
	echo "date $(date +%F)"
	echo "commit $(git -C "$top" describe --always --dirty 2>/dev/null || echo unknown)"
	echo "cpu $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)"
	echo "ram $(awk '/^MemTotal/ { printf "%.0f GB", $2 / 1048576 }' /proc/meminfo)"
	echo "os $(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release), Linux $(uname -r | cut -d - -f 1)"
	echo "rounds $rounds"
	echo "seconds $seconds"
	echo "PostgreSQL $(psql -X -A -t -d "${target[distlock]}" -c 'SHOW server_version' | cut -d ' ' -f 1)"
	local package
	for package in mariadb-server redis-server etcd-server zookeeper; do
		echo "$package $(dpkg-query -W -f '${Version}' "$package")"
	done
}

# ---- The run ----

begin
apt_install procps gnuplot-nox mariadb-server redis-server etcd-server etcd-client zookeeper \
	libpq-dev libhiredis-dev libmariadb-dev libzookeeper-st-dev libcurl4-openssl-dev
build_and_install
as_user make -C "$work/tree/bench/rivals" -s PG_CONFIG="$pg_bin/pg_config"
raw=$work/raw.csv
echo "work,system,clients,round,measure,value" >"$raw"

say "starting the servers"
start_all
describe >"$work/machine"
for w in "${works[@]}"; do
	say "$w, $(date +%T)"
	"work_$w"
done

mkdir -p "$work/report"
"$top/bench/report" "$raw" "$work/machine" "$work/report"
if [ -n "$output" ]; then
	mkdir -p "$output/benchmarks"
	cp "$raw" "$work/report"/*.svg "$output/benchmarks"
	"$top/bench/report" --merge "$work/report/benchmarks.md" "$output/benchmarks.md"
	say "written: $output/benchmarks.md"
else
	cat "$work/report/benchmarks.md"
fi
