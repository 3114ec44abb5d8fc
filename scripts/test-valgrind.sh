#!/usr/bin/env bash
# Run SQL tests with the server under valgrind: no process of it may use memory
# that is not its own, or that nobody has written.
#
# Usage: scripts/test-valgrind.sh [SUITE...]
# Suites: regress isolation; both without arguments.  PG_VERSION and KEEP_BUILD as
# for scripts/test-assert.sh, whose build it is.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(regress isolation)

begin
build_postgresql

# A copy of the build whose server starts valgrind, unless initdb or pg_ctl only
# asks it for something.  One test takes all leases there are: let them be fewer.
cp -a "$build/installed" "$work/postgresql"
bin=$work/postgresql/bin
mv "$bin/postgres" "$bin/postgres.plain"
cat >"$bin/postgres" <<END
#!/bin/sh
[ "\$1" = -D ] || exec "$bin/postgres.plain" "\$@"
exec valgrind --quiet --leak-check=no --trace-children=yes \\
	--suppressions="$build/source/src/tools/valgrind.supp" \\
	--log-file="$work/reports/%p" "$bin/postgres.plain" "\$@" \\
	-c distlock.max_leases=4000
END
chmod 755 "$bin/postgres"
mkdir -m 1777 "$work/reports"

failed=no
env PG_VERSION="$PG_VERSION" PG_BIN="$bin" "$top/scripts/test.sh" "${suites[@]}" || failed=yes

# Each process has a report, and an empty one if nothing was wrong.
processes=$(find "$work/reports" -type f | wc -l)
with_errors=$(find "$work/reports" -type f -size +0 | wc -l)
find "$work/reports" -type f -size +0 -exec cat {} +
[ "$processes" -gt 0 ] || die "no server ran under valgrind"
echo "$processes processes under valgrind, $with_errors with errors"
[ "$failed" = no ] && [ "$with_errors" -eq 0 ]
