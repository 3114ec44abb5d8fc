#!/usr/bin/env bash
# Run scripts/test.sh on a PostgreSQL with assertions, built from Debian's source
# package, and PostgreSQL's own tests on a server that has distlock loaded.
#
# Usage: scripts/test-assert.sh [SUITE...]
# Suites: those of scripts/test.sh, and postgresql; all without arguments.
# PG_VERSION as there.  KEEP_BUILD names a folder in which the build stays for the
# next time.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(engine model regress isolation pgtap tap faults demo postgresql)

begin
build_postgresql

# pgTAP is the same for every build.
apt_install "postgresql-$PG_VERSION-pgtap"
cp "/usr/share/postgresql/$PG_VERSION/extension/pgtap"* "$("$build/installed/bin/pg_config" --sharedir)/extension"

env PG_VERSION="$PG_VERSION" PG_BIN="$build/installed/bin" PG_SOURCE="$build/source" \
	"$top/scripts/test.sh" "${suites[@]}"
