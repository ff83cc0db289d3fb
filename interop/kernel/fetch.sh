#!/bin/sh
# Puts Debian's cloud kernel for amd64, which contains wireguard.ko, into a folder: $1, or $WIREGUARD_TEST_KERNEL, or
# wireguard-test-kernel in the user's cache folder. It unpacks the package without running its hooks, so it does not change the
# host's boot loader or modules. It needs Debian's apt-get, apt-cache and dpkg, but not root. It keeps a kernel that the
# folder already contains.
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
