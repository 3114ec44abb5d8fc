# The servers of the benchmarks other than PostgreSQL; to be sourced by bash after
# scripts/lib.sh.  Each is on loopback or a Unix socket, has a folder of its own
# under $work, is run by the same user, and ends with the script.  What it is
# durable with is said where it starts.

# By name: the first process of each.
declare -A server_pid=()

# start NAME COMMAND...: in the background; its output goes to NAME.log.
start()
{
	local name=$1

	shift
	as_user mkdir -p "$work/$name"
	as_user "$@" >"$work/$name.log" 2>&1 &
	server_pid[$name]=$!
}

# await NAME COMMAND...: until the command succeeds.
await()
{
	local name=$1
	local tries

	shift
	for ((tries = 0; tries < 600; tries++)); do
		"$@" >/dev/null 2>&1 && return
		kill -0 "${server_pid[$name]}" 2>/dev/null || break
		sleep 0.1
	done
	tail -n 30 "$work/$name.log" >&2
	die "$name did not start"
}

# A process and all that it has started.
processes_from()
{
	local child

	echo "$1"
	for child in $(pgrep -P "$1"); do
		processes_from "$child"
	done
}

processes_of()
{
	if [ -n "${server_pid[$1]:-}" ]; then
		processes_from "${server_pid[$1]}"
	else
		processes_from "$(head -n 1 "$work/$1/postmaster.pid")"
	fi
}

stop_server()
{
	kill $(processes_of "$1") 2>/dev/null || true
	wait "${server_pid[$1]}" 2>/dev/null || true
	unset "server_pid[$1]"
	rm -rf "${work:?}/$1"
}

stop_servers()
{
	local name

	for name in ${server_pid[@]+"${!server_pid[@]}"}; do
		stop_server "$name"
	done
}

# start_redis NAME SETTING...: the socket is $work/NAME/socket.
start_redis()
{
	local name=$1

	shift
	start "$name" redis-server --port 0 --unixsocket "$work/$name/socket" \
		--dir "$work/$name" --save '' "$@"
	await "$name" redis-cli -s "$work/$name/socket" ping
}

start_mariadb()
{
	as_user mkdir -p "$work/mariadb"
	as_user mariadb-install-db --no-defaults --datadir="$work/mariadb/data" \
		--auth-root-authentication-method=normal >"$work/mariadb-install.log" 2>&1 ||
		{ tail -n 30 "$work/mariadb-install.log" >&2; die "mariadb-install-db failed"; }
	start mariadb /usr/sbin/mariadbd --no-defaults --datadir="$work/mariadb/data" \
		--socket="$work/mariadb/socket" --pid-file="$work/mariadb/pid" \
		--skip-networking --max-connections=1000
	await mariadb mariadb-admin --no-defaults -u root -S "$work/mariadb/socket" ping
}

# One member, the least that it can do; it flushes its log for each group of writes.
start_etcd()
{
	local peer

	etcd_url=http://127.0.0.1:$(free_port)
	peer=http://127.0.0.1:$(free_port)
	start etcd etcd --data-dir "$work/etcd/data" --logger zap --log-level error \
		--listen-client-urls "$etcd_url" --advertise-client-urls "$etcd_url" \
		--listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
		--initial-cluster "default=$peer"
	await etcd env ETCDCTL_API=3 etcdctl --endpoints "$etcd_url" get /
}

# One server; it flushes its log for each group of writes.  Its sessions end at a
# tick, which is 2 s by default.
start_zookeeper()
{
	zookeeper_address=127.0.0.1:$(free_port)
	as_user mkdir -p "$work/zookeeper"
	as_user tee "$work/zookeeper/zoo.cfg" >/dev/null <<-END
		tickTime=200
		dataDir=$work/zookeeper
		clientPort=${zookeeper_address#*:}
		clientPortAddress=127.0.0.1
		maxClientCnxns=0
		maxSessionTimeout=60000
		admin.enableServer=false
	END
	start zookeeper java -cp '/usr/share/java/*' -Dzookeeper.log.dir="$work/zookeeper" \
		org.apache.zookeeper.server.quorum.QuorumPeerMain "$work/zookeeper/zoo.cfg"
	await zookeeper bash -c "exec 3<>/dev/tcp/${zookeeper_address/://}"
}
