#!/bin/sh
# Puts Debian's cloud kernel for amd64, which carries wireguard.ko, into a folder: $1, else $WIREGUARD_TEST_KERNEL, else
# wireguard-test-kernel in the user's cache folder. It unpacks the package and runs none of its hooks, so neither the host's
# boot loader nor its modules are touched. It needs Debian's apt-get, apt-cache and dpkg, and no root. A kernel that
# is there already is kept.
set -eu
dir=${1:-${WIREGUARD_TEST_KERNEL:-${XDG_CACHE_HOME:-$HOME/.cache}/wireguard-test-kernel}}
if ls "$dir"/boot/vmlinuz-* >/dev/null 2>&1; then
	echo "$dir has a kernel"
	exit 0
fi
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\)$/\1/p' | head -n 1)
if [ -z "$package" ]; then
	echo "apt knows no linux-image-cloud-amd64: run apt-get update on a Debian system" >&2
	exit 1
fi
mkdir -p "$dir"
work=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get -q -o APT::Sandbox::User= download "$package")
dpkg -x "$work/$package"_*.deb "$work/root"
rm -rf "$dir/boot" "$dir/lib"
mv "$work/root/lib" "$dir/lib"
mv "$work/root/boot" "$dir/boot"
echo "$package is in $dir"
