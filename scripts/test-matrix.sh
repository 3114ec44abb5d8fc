#!/usr/bin/env bash
# Run scripts/test.sh on each supported version of PostgreSQL, in a folder with
# the Debian that carries it.  Ends with a line for each, and fails if one did.
#
# Usage: scripts/test-matrix.sh [VERSION...]   (15 17 18 19)
# SUITES chooses other suites than all, KEEP_DEBIAN a folder in which the Debians
# stay for the next time.  Needs root, and a quarter of an hour for each version.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(15 17 18 19)
[ "$(id -u)" = 0 ] || die "only root can install a Debian in a folder"

# The Debian that carries this version, and what has to be added to it.
choose_debian()
{
	extra=
	case $1 in
		15) debian=bookworm ;;
		17) debian=trixie ;;
		18) debian=sid ;;
		19) debian=sid extra=experimental ;;
		*) die "no Debian is known to carry postgresql-$1" ;;
	esac
}

# Install it in $root for this version, unless that was done before.
install_debian()
{
	[ ! -e "$root/installed" ] || return 0
	say "installing Debian $debian ${extra:+with $extra }in a folder"
	rm -rf --one-file-system "$root"
	debootstrap --variant=minbase "$debian" "$root" "$mirror" >"$work/debootstrap.log" 2>&1 ||
		{ tail -n 30 "$work/debootstrap.log" >&2; die "could not install Debian $debian"; }
	if [ -n "$extra" ]; then
		echo "deb $mirror $extra main" >"$root/etc/apt/sources.list.d/$extra.list"
		# What that version needs may come from there as well.
		printf 'Package: src:postgresql-%s src:postgresql-common\nPin: release a=%s\nPin-Priority: 500\n' \
			"$1" "$extra" >"$root/etc/apt/preferences.d/$extra"
	fi
	# A package must not start a server.
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	touch "$root/installed"
}

# Run a command in $root.  What is mounted for it is gone afterwards.
inside()
{
	root=$root unshare --mount --propagation private bash -c '
		mount -t proc proc "$root/proc"
		mount --rbind /sys "$root/sys"
		mount --rbind /dev "$root/dev"
		mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
		exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
	' inside "$@" </dev/null
}

begin
apt_install debootstrap
mirror=$(debian_mirror)
results=()
failed=no
for version in "${versions[@]}"; do
	choose_debian "$version"
	root=${KEEP_DEBIAN:-$work}/$debian$extra
	mkdir -p "$(dirname "$root")"
	install_debian "$version"
	cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
	grep -l Acquire /etc/apt/apt.conf.d/* 2>/dev/null | xargs -r cp -t "$root/etc/apt/apt.conf.d"
	rm -rf "$root/distlock"
	copy_tree "$root/distlock"

	say "PostgreSQL $version, Debian $debian${extra:+ with $extra}"
	inside env PG_VERSION="$version" /distlock/scripts/test.sh ${SUITES:-} 2>&1 | tee "$work/$version.log" || failed=yes keep=yes
	result=$(grep -E '^[0-9]+ passed, ' "$work/$version.log" || echo "did not come to its end")
	results+=("PostgreSQL $version: $result")
done

echo
printf '%s\n' "${results[@]}"
[ "$failed" = no ]
