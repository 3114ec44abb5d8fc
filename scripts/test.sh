#!/usr/bin/env bash
# Install what is needed, build with -Werror, and run every test against
# throwaway clusters.  Ends with a line "N passed, N failed".
#
# Usage: scripts/test.sh [SUITE...]
# Suites: engine model regress isolation pgtap tap faults demo; all without arguments.
# PG_VERSION chooses another major version than Debian's own.  Logs are kept
# when a test has failed.  scripts/test-assert.sh has one suite more, postgresql.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(engine model regress isolation pgtap tap faults demo)
passed=0
failed=0

# count LOG: add up the TAP or pg_regress results of one suite.  A suite that
# printed none, or ended badly without naming a failure, counts as failed.
count()
{
	local log=$1
	local status=$2
	local ok
	local not_ok

	ok=$(grep -cE '^(ok [0-9]|ok [0-9]* *- |test .*\.\.\. ok|.*\.\.\. ok +[0-9]+ ms)' "$log" || true)
	not_ok=$(grep -cE '^(not ok|test .*\.\.\. FAILED|.*\.\.\. FAILED)' "$log" || true)
	if [ "$not_ok" -eq 0 ] && { [ "$status" -ne 0 ] || [ "$ok" -eq 0 ]; }; then
		not_ok=1
	fi
	passed=$((passed + ok))
	failed=$((failed + not_ok))
	echo "-- $ok passed, $not_ok failed"
}

# run SUITE COMMAND...: show what matters while it runs, and count.
run()
{
	local suite=$1
	local log=$work/$1.log
	local status=0

	shift
	say "$suite"
	case $suite in
		regress | isolation)
			"$@" 2>&1 | tee "$log" || status=$?
			[ $status -eq 0 ] || cat regression.diffs output_iso/regression.diffs 2>/dev/null || true
			rm -rf regression.diffs output_iso
			;;
		postgresql)
			"$@" 2>&1 | tee "$log" || status=$?
			;;
		*)
			# One line a test file, and all that failed or was said.
			"$@" 2>&1 | tee "$log" | { grep --line-buffered -vE '^ *(ok|# Subtest)' || true; } || status=$?
			;;
	esac
	count "$log" $status
}

# The demo is one of the two commands of the README: its story has to be true.
demo()
{
	local story

	echo 1..1
	if story=$("$top/scripts/demo.sh" </dev/null 2>&1) &&
		grep -q 'lease of lock "nightly-report" under token 1 is lost' <<<"$story" &&
		grep -q 'is held by "worker B" under token 2' <<<"$story"; then
		echo 'ok 1 - scripts/demo.sh'
	else
		echo "$story"
		echo 'not ok 1 - scripts/demo.sh'
	fi
}

# PostgreSQL's own tests: who does not use distlock must not notice it.
postgresql_tests()
{
	local test
	local status=0

	for test in regress isolation; do
		rm -rf "$PG_SOURCE/src/test/$test/"{,output_iso/}regression.diffs
	done
	as_user make -C "$PG_SOURCE/src/test/regress" -s installcheck-parallel || status=$?
	as_user make -C "$PG_SOURCE/src/test/isolation" -s installcheck \
		EXTRA_REGRESS_OPTS="prepared-transactions prepared-transactions-cic" || status=$?
	cat "$PG_SOURCE"/src/test/{regress,isolation/output_iso}/regression.diffs 2>/dev/null || true
	return $status
}

for suite in "${suites[@]}"; do
	case $suite in
		engine | model | regress | isolation | pgtap | tap | faults | demo) ;;
		postgresql) [ -n "${PG_SOURCE:-}" ] || die "scripts/test-assert.sh has the suite \"$suite\"" ;;
		*) die "unknown suite \"$suite\"" ;;
	esac
done

# Make a file system that a test may fill, if this machine lets us.
mount_small_disk()
{
	mkdir "$work/small"
	if as_root mount -t tmpfs -o "size=32m,uid=$(as_user id -u),mode=700" tmpfs "$work/small"; then
		small_disk=$work/small
	else
		echo "no file system can be mounted here: 031_disk_full.pl is skipped"
	fi
}

finish()
{
	[ -z "${small_disk:-}" ] || as_root umount -l "$small_disk" || true
	cleanup
}

begin
packages=()
for suite in "${suites[@]}"; do
	case $suite in
		model)
			packages+=(spin)
			;;
		faults)
			packages+=("${faults_packages[@]}")
			;;
		pgtap)
			packages+=(libtap-parser-sourcehandler-pgtap-perl)
			;;
		tap)
			packages+=(libipc-run-perl pgbouncer python3-psycopg python3-psycopg2
				default-jdk-headless libpostgresql-jdbc-java)
			;;
	esac
done
apt_install ${packages[@]+"${packages[@]}"}
build_and_install
pgxs=$("$pg_bin/pg_config" --pkglibdir)/pgxs
cd "$work/tree"

install_node_pg()
{
	if command -v npm >/dev/null; then
		as_user env HOME="$work" npm install --prefix test/drivers \
			--no-audit --no-fund --no-package-lock >"$work/npm.log" 2>&1 ||
			{ tail "$work/npm.log" >&2; die "npm could not install pg"; }
	else
		apt_install nodejs node-pg
	fi
}

# pgTAP comes to a Debian after the PostgreSQL it is for.  It is only SQL, so
# until then the one for the version before will do.
install_pgtap()
{
	local package=postgresql-$PG_VERSION-pgtap
	local extensions

	extensions=$("$pg_bin/pg_config" --sharedir)/extension
	[ ! -e "$extensions/pgtap.control" ] || return 0
	apt-cache show "$package" >/dev/null 2>&1 || apt_update
	if apt-cache show "$package" >/dev/null 2>&1; then
		apt_install "$package"
		return
	fi
	package=postgresql-$((PG_VERSION - 1))-pgtap
	say "taking $package"
	mkdir "$work/pgtap"
	(cd "$work/pgtap" && apt-get download -q "$package" >"$work/apt.log" 2>&1 && dpkg-deb -x ./*.deb .) || {
		cat "$work/apt.log" >&2
		die "could not get $package"
	}
	as_root cp "$work"/pgtap/usr/share/postgresql/*/extension/pgtap* "$extensions"
}

for suite in "${suites[@]}"; do
	case $suite in
		engine)
			run engine as_user make -C test/engine -s PG_CONFIG="$pg_bin/pg_config" check
			;;
		model)
			run model as_user test/model/check
			;;
		regress | isolation | pgtap | postgresql)
			if [ ! -d "$work/main" ]; then
				start_cluster main "max_prepared_transactions = 10"
			fi
			case $suite in
				regress)
					run regress as_user make -s "${make_args[@]}" ISOLATION= installcheck
					;;
				isolation)
					run isolation as_user make -s "${make_args[@]}" REGRESS= installcheck
					;;
				pgtap)
					install_pgtap
					run pgtap as_user pg_prove -v test/pgtap/*.sql
					;;
				postgresql)
					run postgresql postgresql_tests
					;;
			esac
			;;
		tap)
			install_node_pg
			mkdir -p "$work/tap"
			[ "$(id -u)" != 0 ] || chown "$run_user" "$work/tap"
			mount_small_disk
			run tap as_user env -u PGHOST -u PGPORT -u PGUSER -u PGDATABASE \
				PATH="$PATH:/usr/sbin" \
				TESTDIR="$work/tap" TESTDATADIR="$work/tap" TESTLOGDIR="$work/tap/log" \
				PG_REGRESS="$pgxs/src/test/regress/pg_regress" \
				NODE_PATH="$work/tree/test/drivers/node_modules:/usr/share/nodejs" \
				DISTLOCK_REQUIRE_DRIVERS=1 DISTLOCK_SMALL_DISK="${small_disk:-}" \
				prove -v -I "$pgxs/src/test/perl" -I test/t/lib test/t/*.pl
			;;
		faults)
			# scripts/test-faults.sh takes longer.
			run faults run_faults 0.75 "$RANDOM"
			;;
		demo)
			run demo demo
			;;
	esac
done

# A test that crashes servers on purpose does not notice that one has failed.
if grep -r --include='*log' -a '^TRAP: ' "$work"; then
	failed=$((failed + 1))
fi

[ "$failed" -eq 0 ] || keep=yes
echo
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
