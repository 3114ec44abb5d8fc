# Shared by the scripts of this folder; to be sourced by bash.
#
# Each script builds in a copy of the tree under mktemp -d, runs its own
# clusters there as an ordinary user, and removes all of it at the end.  What
# stays is what was installed: Debian packages, and the extension's files in
# PostgreSQL's own folders.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say()
{
	printf '\n== %s\n' "$*"
}

die()
{
	printf '%s\n' "$*" >&2
	exit 1
}

# minutes_and_seed MINUTES [--minutes N] [--seed S]: sets $minutes and $seed.
minutes_and_seed()
{
	minutes=$1
	seed=$RANDOM
	shift
	while [ $# -gt 0 ]; do
		case $1 in
			--minutes) minutes=${2:?} ;;
			--seed) seed=${2:?} ;;
			*) die "unknown argument \"$1\"" ;;
		esac
		shift 2
	done
}

as_root()
{
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Run a command as an ordinary user: PostgreSQL refuses to run as root.
as_user()
{
	if [ "$(id -u)" = 0 ]; then runuser -u "$run_user" -- "$@"; else "$@"; fi
}

apt_update()
{
	as_root apt-get update -q >"$work/apt.log" 2>&1 || {
		tail -n 30 "$work/apt.log" >&2
		die "could not fetch the package lists"
	}
}

apt_install()
{
	local missing=()
	local package

	for package in "$@"; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null |
			grep -q ' installed$' || missing+=("$package")
	done
	[ ${#missing[@]} -eq 0 ] && return
	say "installing ${missing[*]}"
	apt_update
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
		--no-install-recommends "${missing[@]}" >"$work/apt.log" 2>&1 || {
		tail -n 30 "$work/apt.log" >&2
		die "could not install ${missing[*]}"
	}
}

# Where this Debian gets its packages from.
debian_mirror()
{
	local codename
	local mirror

	codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	mirror=$(apt-get indextargets --format '$(SITE) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
		sed -n "s/ $codename main$//p" | head -n 1)
	[ -n "$mirror" ] || die "could not tell from which mirror this Debian was installed"
	echo "$mirror"
}

# What the package "postgresql" of this Debian stands for; nothing if the
# package lists have not been fetched yet.
default_version()
{
	{ apt-cache depends postgresql 2>/dev/null || true; } |
		sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p' | head -n 1
}

# The major version to work with: PG_VERSION, or the one this Debian carries.
# PG_BIN is where its programs are, if not where Debian's package has them.
choose_version()
{
	[ -n "${PG_VERSION:-}" ] || PG_VERSION=$(default_version)
	if [ -z "$PG_VERSION" ]; then
		apt_update
		PG_VERSION=$(default_version)
	fi
	[ -n "$PG_VERSION" ] || die "the package lists of this machine know no PostgreSQL"
	pg_bin=${PG_BIN:-/usr/lib/postgresql/$PG_VERSION/bin}
	PATH=$pg_bin:$PATH
}

# Make $work, which goes away with the script, and choose who runs servers.
begin()
{
	work=$(mktemp -d)
	chmod 755 "$work"
	cd "$work"
	# Nothing of the caller's environment may lead a client elsewhere.
	local variable
	for variable in $(compgen -e PG || true); do
		case $variable in
			PG_VERSION | PG_BIN | PG_SOURCE) ;;
			*) unset "$variable" ;;
		esac
	done
	trap finish EXIT
	trap 'exit 130' INT TERM
	choose_version
}

# Scripts that start something of their own redefine this, and call cleanup.
finish()
{
	cleanup
}

cleanup()
{
	local pidfile

	for pidfile in "$work"/*/postmaster.pid; do
		[ -f "$pidfile" ] || continue
		as_user "$pg_bin/pg_ctl" -D "$(dirname "$pidfile")" -m immediate -w stop \
			>/dev/null 2>&1 || true
	done
	cd /
	if [ "${keep:-no}" = yes ]; then
		echo "logs and data are kept in $work" >&2
	else
		rm -rf "$work"
	fi
}

# copy_tree FOLDER: the sources, without what was built from them.
copy_tree()
{
	mkdir "$1"
	tar -C "$top" --exclude=.git --exclude=node_modules --exclude='*.o' \
		--exclude='*.so' --exclude='*.bc' -cf - . | tar -C "$1" -xf -
}

# Build the tree in $work/tree and install the extension.
build_and_install()
{
	apt_install gcc make libc6-dev "postgresql-$PG_VERSION" \
		"postgresql-server-dev-$PG_VERSION"
	run_user=postgres

	say "building for PostgreSQL $PG_VERSION"
	copy_tree "$work/tree"
	make_args=(PG_CONFIG="$pg_bin/pg_config" with_llvm=no COPT=-Werror)
	make -C "$work/tree" -s "${make_args[@]}" || die "the build failed"
	as_root make -C "$work/tree" -s "${make_args[@]}" install >/dev/null
	if [ "$(id -u)" = 0 ]; then chown -R "$run_user" "$work"; fi
}

# Build PostgreSQL from Debian's source package, with assertions and ready for
# valgrind, in a folder of $work or of KEEP_BUILD, unless that was done before.
# Sets $build: its folders are source and installed.
build_postgresql()
{
	local sources=$work/sources
	local apt=(-o Dir::Etc::sourcelist="$sources/deb-src.list" -o Dir::Etc::sourceparts=-
		-o Dir::State::lists="$sources/lists" -o Dir::Cache="$sources/cache")

	# The package of PostgreSQL brings the user who runs servers.
	apt_install "postgresql-$PG_VERSION" dpkg-dev gcc make libc6-dev bison flex \
		libicu-dev libipc-run-perl libssl-dev pkg-config valgrind zlib1g-dev
	run_user=postgres
	build=${KEEP_BUILD:-$work}/postgresql-$PG_VERSION
	[ ! -e "$build/done" ] || return 0

	say "building PostgreSQL $PG_VERSION from its source package"
	rm -rf --one-file-system "$build"
	mkdir -p "$build" "$sources/lists/partial" "$sources/cache"
	apt_update
	apt-get indextargets 'Created-By: Packages' 'Label: Debian' \
		--format 'deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(SITE) $(RELEASE) $(COMPONENT)' \
		>"$sources/deb-src.list"
	(
		cd "$sources" &&
			apt-get "${apt[@]}" update -q &&
			apt-get "${apt[@]}" source -q --download-only "postgresql-$PG_VERSION" &&
			dpkg-source --no-copy -x ./*.dsc "$build/source"
	) >"$work/source.log" 2>&1 ||
		{ tail -n 30 "$work/source.log" >&2; die "could not get the source package"; }
	if [ "$(id -u)" = 0 ]; then chown -R "$run_user" "$build"; fi
	as_user bash -e -c 'cd "$0/source"
		./configure --prefix="$0/installed" --enable-cassert --enable-debug --enable-tap-tests \
			--with-icu --with-openssl --without-readline CFLAGS=-Og CPPFLAGS=-DUSE_VALGRIND
		make -s -j "$(nproc)" world-bin
		make -s install-world-bin' "$build" >"$work/build.log" 2>&1 ||
		{ tail -n 30 "$work/build.log" >&2; die "PostgreSQL could not be built"; }
	touch "$build/done"
}

free_port()
{
	perl -MIO::Socket::INET -e \
		'print IO::Socket::INET->new(LocalAddr => "127.0.0.1", Listen => 1)->sockport'
}

# start_cluster NAME [SETTING...]: sets PGHOST, PGPORT, PGUSER for its clients.
start_cluster()
{
	local name=$1
	local data=$work/$1

	shift
	as_user "$pg_bin/initdb" -D "$data" -U postgres -A trust -E UTF8 \
		--locale=C.UTF-8 -N >"$work/$name.initdb.log" 2>&1 ||
		{ cat "$work/$name.initdb.log" >&2; die "initdb failed"; }
	PGHOST=$work
	PGPORT=$(free_port)
	PGUSER=postgres
	PGDATABASE=postgres
	export PGHOST PGPORT PGUSER PGDATABASE
	{
		echo "shared_preload_libraries = 'distlock'"
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$work'"
		echo "port = $PGPORT"
		printf '%s\n' "$@"
	} | as_user tee -a "$data/postgresql.conf" >/dev/null
	as_user "$pg_bin/pg_ctl" -D "$data" -l "$data/log" -w start >/dev/null ||
		{ tail -n 30 "$data/log" >&2; die "the server did not start"; }
}

# run_faults MINUTES SEED: test the checker of test/faults, then give it something
# to judge: one server, one with a synchronous standby, and one with an
# asynchronous one.  Needs faults_packages, and the tree built.
faults_packages=(libpq-dev socat)
run_faults()
{
	local faults=$work/tree/test/faults
	local minutes
	local servers

	minutes=$(awk "BEGIN { print $1 / 3 }")
	as_user "$faults/check_test" &&
		as_user make -C "$faults" -s PG_CONFIG="$pg_bin/pg_config" || return
	for servers in alone sync async; do
		as_user env PATH="$PATH" "$faults/run" --minutes "$minutes" --seed "$2" \
			--servers $servers "$work/faults-$servers" | tee "$work/$servers.log" || return
	done
	awk '$1 ~ /^(operations|grants|faults|violations)$/ { n[$1] += $2 }
		END { for (what in n) printf "in all: %s %d\n", what, n[what] }' \
		"$work"/{alone,sync,async}.log
}
