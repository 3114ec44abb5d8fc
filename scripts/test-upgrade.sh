#!/usr/bin/env bash
# Upgrade a cluster that has leases to another major version with pg_upgrade,
# and see that nothing is lost.  Ends with a line "N passed, N failed".
#
# Usage: scripts/test-upgrade.sh [OLD [NEW]]
# Without arguments, from 15 to 17.  That takes Debian 13, which carries 17; the
# packages of 15, which it does not, come from Debian 12 and stay installed.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

old=${1:-15}
new=${2:-17}
passed=0
failed=0

# Packages of an older Debian go with a newer one, not the other way round.
# From here on apt has one more source, which it forgets with this script.
add_source_of()
{
	local suite
	local mirror

	case $1 in
		15) suite=bookworm ;;
		*) die "this Debian does not carry postgresql-$1" ;;
	esac
	mirror=$(debian_mirror)
	say "postgresql-$1 comes from $suite, for this run only"
	mkdir "$work/sources"
	cp /etc/apt/sources.list "$work/sources/own.list" 2>/dev/null || true
	cp /etc/apt/sources.list.d/* "$work/sources" 2>/dev/null || true
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
		>"$work/sources/with-$suite.list"
	printf 'Dir::Etc::%s "%s";\n' sourcelist /dev/null sourceparts "$work/sources" >"$work/apt.conf"
	export APT_CONFIG=$work/apt.conf
	as_root()
	{
		if [ "$(id -u)" = 0 ]; then "$@"; else sudo --preserve-env=APT_CONFIG "$@"; fi
	}
	apt_update
}

# See to it that apt knows the packages of this version.
find_version()
{
	apt-cache show "postgresql-server-dev-$1" >/dev/null 2>&1 || apt_update
	apt-cache show "postgresql-server-dev-$1" >/dev/null 2>&1 || add_source_of "$1"
}

bin_of()
{
	echo "/usr/lib/postgresql/$1/bin"
}

# Build and install for one version; leaves nothing in $work that the next one
# would find.
install_version()
{
	local PG_VERSION=$1

	choose_version
	build_and_install
	as_user mv "$work/tree" "$work/tree.$1"
}

stop()
{
	as_user "$pg_bin/pg_ctl" -D "$work/$1" -w stop >/dev/null
}

restart()
{
	as_user "$pg_bin/pg_ctl" -D "$work/$1" -l "$work/$1/log" -w start >/dev/null
}

query()
{
	as_user "$pg_bin/psql" -XAtq -v ON_ERROR_STOP=1 "$@"
}

# is WHAT GOT EXPECTED
is()
{
	if [ "$2" = "$3" ]; then
		passed=$((passed + 1))
		echo "ok $((passed + failed)) - $1"
	else
		failed=$((failed + 1))
		printf 'not ok %d - %s\n# got:      %s\n# expected: %s\n' $((passed + failed)) "$1" "$2" "$3"
	fi
}

begin
find_version "$old"
find_version "$new"
apt_install "postgresql-$old" "postgresql-$new"
install_version "$old"
install_version "$new"

# ---- The old cluster: durable leases, and a grace that nobody waits for ----

settings=("max_prepared_transactions = 10" "distlock.failover_grace = off" "distlock.log_expirations = off")
leases="SELECT name, token, mode, scope, holder, owner, durable, ttl
	FROM distlock_leases WHERE durable ORDER BY token"
probe="SELECT distlock_acquire('probe', scope => 'transaction', wait => '0')"

say "a cluster of version $old"
PG_VERSION=$old
choose_version
start_cluster old "${settings[@]}"
old_port=$PGPORT
query <<SQL >/dev/null
CREATE ROLE worker;
CREATE DATABASE app;
CREATE EXTENSION distlock;
\\c app
CREATE SCHEMA locks;
CREATE EXTENSION distlock SCHEMA locks;
ALTER DATABASE app SET search_path = locks, public;
GRANT USAGE ON SCHEMA locks TO worker;
CREATE TABLE ledger (amount integer);
SELECT locks.distlock_protect('ledger', 'ledger');
SQL
query -d app <<SQL >/dev/null
SET ROLE worker;
SELECT distlock_acquire('kept', '1h', holder => 'me');
SELECT distlock_acquire('ledger', '1h');
SELECT distlock_acquire('read ' || n % 20, '2h', mode => 'shared') FROM generate_series(1, 40) n;
SQL
kept=$(query -d app -c "SELECT token FROM distlock_leases WHERE name = 'kept'")
ledger=$(query -d app -c "SELECT token FROM distlock_leases WHERE name = 'ledger'")
query -d app -c "SELECT distlock_acquire('volatile', '1h', durable => false)" >/dev/null
leases_before=$(query -d app -c "$leases")
images_before=$(query -d app -c "SELECT * FROM distlock_images ORDER BY block, slot")
token_before=$(query -c "$probe")
stop old

# ---- pg_upgrade ----

say "pg_upgrade to version $new"
PG_VERSION=$new
choose_version
start_cluster new "${settings[@]}"
stop new
cd "$work"
for options in --check ""; do
	status=0
	# shellcheck disable=SC2086
	as_user "$(bin_of "$new")/pg_upgrade" $options -U postgres -b "$(bin_of "$old")" -B "$(bin_of "$new")" \
		-d "$work/old" -D "$work/new" -s "$work" -p "$old_port" -P "$PGPORT" \
		>"$work/pg_upgrade.log" 2>&1 || status=$?
	[ $status -eq 0 ] || cat "$work/pg_upgrade.log"
	is "pg_upgrade $options" $status 0
done
restart new

# ---- The new cluster ----

is 'the images are there' \
	"$(query -d app -c "SELECT * FROM distlock_images ORDER BY block, slot")" "$images_before"
is 'the leases are there' "$(query -d app -c "$leases")" "$leases_before"
is 'with their full time to live' \
	"$(query -d app -c "SELECT bool_and(remaining > ttl - interval '1min') FROM distlock_leases")" t
is 'volatile leases are lost' \
	"$(query -d app -c "SELECT count(*) FROM distlock_leases WHERE NOT durable")" 0
is 'and waited for' \
	"$(query -d app -c "SELECT distlock_try_acquire('free') IS NULL")" t
is 'a lease is good, and can be renewed' \
	"$(query -d app -c "SELECT distlock_check('kept', $kept), distlock_renew('kept', $kept) > now()")" 't|t'
is 'its owner may release it' \
	"$(query -d app -c "SET ROLE worker; SELECT distlock_release('kept', $kept)")" t
is 'a protected table is still protected' \
	"$(query -d app -c "INSERT INTO ledger VALUES (1)" 2>&1 | grep -c 'ERROR:.*ledger')" 1
is 'and can be written under the lease' \
	"$(query -d app -c "BEGIN" -c "SELECT distlock_guard('ledger', $ledger)" \
		-c "INSERT INTO ledger VALUES (1) RETURNING amount" -c COMMIT | tail -n 1)" 1
is 'the next epoch begins' \
	"$(query -d app -c "SELECT token_limit >> 40 FROM distlock_control")" 1
token=$(query -c "$probe")
is 'tokens grow' $((token > token_before)) 1
is 'in the next epoch' $((token >> 40)) 1
is 'leases are granted where nobody waits for any' \
	"$(query -c "SELECT distlock_acquire('new', '1h', wait => '0') > $token")" t

# The crash shall find no image of the lease that was released.
for ((i = 0; i < 300; i++)); do
	[ "$(query -d app -c "SELECT count(*) FROM distlock_images")" != 41 ] || break
	sleep 0.1
done
as_user "$pg_bin/pg_ctl" -D "$work/new" -m immediate -w stop >/dev/null
restart new
is 'the leases are there after a crash' \
	"$(query -d app -c "SELECT count(*), count(*) FILTER (WHERE name = 'kept') FROM distlock_leases")" '41|0'
is 'new ones too' "$(query -c "SELECT name FROM distlock_leases")" new
is 'tokens grow after a crash' "$(query -c "SELECT distlock_acquire('probe', wait => '0') > $token + 1")" t

[ "$failed" -eq 0 ] || keep=yes
echo
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
