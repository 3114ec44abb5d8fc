#!/usr/bin/env bash
# What can be found without a server: clang-tidy and cppcheck over all C code,
# and the model test of the engine under AddressSanitizer and
# UndefinedBehaviorSanitizer.  Any finding is a failure.
#
# Usage: scripts/test-static.sh
# Installs what is needed.  Prints TAP, each test with what it found.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

number=0

# test_that NAME COMMAND...
test_that()
{
	local name=$1
	local output

	shift
	number=$((number + 1))
	if output=$("$@" 2>&1); then
		echo "ok $number - $name"
	else
		sed 's/^/# /' <<<"$output"
		echo "not ok $number - $name"
		clean=no
	fi
}

# A process for each file: some checks confuse the variables of two files.  It
# counts what it suppresses.
clang_tidy()
{
	printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -I FILE \
		clang-tidy --quiet FILE -- "${flags[@]}" 2>&1 | {
		grep -v ' warnings generated\.$' || true
	}
}

# --quiet: nothing but findings.
run_cppcheck()
{
	cppcheck --quiet --error-exitcode=1 -j "$(nproc)" --std=c99 \
		--enable=warning,performance,portability --inline-suppr \
		--library=posix --library=gnu --library=test/static/postgres.cfg \
		-Isrc "${sources[@]}"
}

sanitize()
{
	make -C test/engine -s PG_CONFIG="$pg_bin/pg_config" check-sanitize
}

begin
apt_install clang-tidy cppcheck gcc make libc6-dev libcurl4-openssl-dev libhiredis-dev \
	libmariadb-dev libpq-dev libzookeeper-mt-dev "postgresql-server-dev-$PG_VERSION"
copy_tree "$work/tree"
cd "$work/tree"

sources=(src/*.c test/*/*.c bench/*/*.c)
# With assertions, which say what cannot be.
flags=(-std=gnu99 -fno-strict-aliasing -fwrapv -D_GNU_SOURCE -DUSE_ASSERT_CHECKING=1 -Isrc
	-isystem "$("$pg_bin/pg_config" --includedir-server)"
	-isystem "$("$pg_bin/pg_config" --includedir)"
	-isystem /usr/include/mariadb -DTHREADED)
clean=yes

echo 1..3
test_that "clang-tidy, $(clang-tidy --version | grep -oE 'version [0-9]+')" clang_tidy
test_that "$(cppcheck --version)" run_cppcheck
test_that "the engine under AddressSanitizer and UndefinedBehaviorSanitizer" sanitize
[ "$clean" = yes ]
