#!/usr/bin/env bash
# Hurt servers and their clients at random for some minutes, record what the
# clients see, and judge it: processes are stopped and killed, sessions ended and
# cancelled, servers crash, standbys take their place, the network is cut, the
# wall clock is set.  See test/faults.
#
# Usage: scripts/test-faults.sh [--minutes N] [--seed S]
# Installs what is needed, builds, and runs throwaway clusters: a third of the
# time each for one server, one with a synchronous and one with an asynchronous
# standby.  Three minutes are the default.  Ends with figures; logs are kept if
# anything is wrong.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

minutes_and_seed 3 "$@"

begin
apt_install "${faults_packages[@]}"
build_and_install

say "faults for $minutes minutes, seed $seed, PostgreSQL $PG_VERSION"
run_faults "$minutes" "$seed" ||
	{ keep=yes; die "a promise was broken, or the test has failed"; }
