#!/usr/bin/env bash
# Measure distlock against PostgreSQL's own advisory locks: the same server,
# the same run, the two in turn, several rounds, medians and ratios.
#
# Usage: bench/advisory.sh [ROUNDS [SECONDS [CLIENTS]]]   (7 rounds of 5 s, 32)

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
source "$top/bench/lib.sh"

clients=${3:-32}

begin
build_and_install
start_cluster bench "max_connections = $((clients + 20))" "lock_timeout = 30s"
psql -X -q -c "CREATE EXTENSION distlock"

measure "$top/bench/advisory" "${1:-7}" "${2:-5}" "$clients" \
	pair_lease pair_advisory pair_advisory_int one_name_lease one_name_advisory \
	renew relock relock_two_keys xact_lock empty
ratios pair_lease:pair_advisory pair_lease:pair_advisory_int \
	one_name_lease:one_name_advisory renew:relock renew:relock_two_keys renew:xact_lock
