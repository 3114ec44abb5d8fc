#!/usr/bin/env bash
# Run clients against three servers that Patroni looks after, with etcd, and kill
# the leader, cut it off and freeze it again and again; record what the clients
# see, and judge it.  See test/faults.
#
# Usage: scripts/test-patroni.sh [--minutes N] [--seed S]
# Installs what is needed, builds, and runs a throwaway cluster.  Five minutes
# are the default.  Ends with figures; logs are kept if anything is wrong.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

minutes_and_seed 5 "$@"

begin
apt_install libpq-dev patroni etcd-server socat
build_and_install

say "Patroni for $minutes minutes, seed $seed, PostgreSQL $PG_VERSION"
faults=$work/tree/test/faults
as_user make -C "$faults" -s PG_CONFIG="$pg_bin/pg_config" &&
	as_user env PATH="$PATH" "$faults/patroni" --minutes "$minutes" --seed "$seed" "$work/patroni" ||
	{ keep=yes; die "a promise was broken, or the test has failed"; }
