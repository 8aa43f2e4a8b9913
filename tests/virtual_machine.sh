#!/bin/sh
# Runs the runtime's kernel tests in a virtual machine: Debian's kernel with control groups of version 2 only, which
# the machine at hand may not have. Emulated, so it needs no /dev/kvm; a run takes a minute or two.
#
#   tests/virtual_machine.sh [filter ..]        for example: limits:: lifecycle::
#
# Needs a Debian host with apt, and root for the download. Installs nothing: packages are unpacked below target/.
set -eu

cd "$(dirname "$0")/.."
place="$(pwd)/target/virtual-machine"
files="$place/files"
root="$place/root"
mkdir -p "$place/packages/partial" "$files"

if [ ! -e "$files/bin/busybox" ]; then
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1)
    apt-get install --yes --quiet --download-only --reinstall --no-install-recommends \
        -o Dir::Cache::archives="$place/packages" qemu-system-x86 seabios busybox-static "$kernel"
    for package in "$place"/packages/*.deb; do
        dpkg-deb --extract "$package" "$files"
    done
fi

echo "building the tests .."
test=$(cargo test --package runtime --test it --no-run --message-format json |
    sed -n 's/.*"executable":"\([^"]*\/it-[^"]*\)".*/\1/p' | tail -n 1)
scratch="$(dirname "$(dirname "$(dirname "$test")")")"
busybox="$files/bin/busybox"

rm -rf "$root"
mkdir -p "$root/bin" "$root/modules"
cp "$busybox" "$root/bin/"
cp "$test" "$root/it"
for name in true echo; do ln -s busybox "$root/bin/$name"; done
for module in llc stp bridge veth overlay; do
    find "$files/lib/modules" -name "$module.ko" -exec cp {} "$root/modules/" \;
done
# The first root cannot be pivoted away from, so everything moves to a memory filesystem.
cat > "$root/init" <<'END'
#!/bin/busybox sh
busybox=/bin/busybox
$busybox mkdir /root
$busybox mount -t tmpfs -o size=1g tmpfs /root
$busybox cp -a /bin /it /modules /tests /root/
$busybox mkdir /root/proc /root/sys /root/dev /root/tmp /root/run /root/etc
exec $busybox switch_root /root /tests
END
cat > "$root/tests" <<END
#!/bin/busybox sh
busybox=/bin/busybox
\$busybox mount -t proc proc /proc
\$busybox mount -t sysfs sysfs /sys
\$busybox mount -t devtmpfs dev /dev
\$busybox mkdir -p /dev/shm /dev/pts '$scratch/tmp'
\$busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in llc stp bridge veth overlay; do \$busybox insmod /modules/\$module.ko; done
\$busybox ifconfig lo up
echo box > /etc/hostname
echo "controllers: \$(\$busybox cat /sys/fs/cgroup/cgroup.controllers)"
/it $*
\$busybox poweroff -f
END
chmod +x "$root/init" "$root/tests"
(cd "$root" && find . | "$busybox" cpio -o -H newc) > "$place/initramfs" 2> /dev/null

LD_LIBRARY_PATH="$files/usr/lib/x86_64-linux-gnu:$files/lib/x86_64-linux-gnu"
export LD_LIBRARY_PATH
timeout 1200 "$files/usr/bin/qemu-system-x86_64" -accel tcg -cpu max -m 2048 -smp 2 -nographic -no-reboot -net none \
    -L "$files/usr/share/qemu" -L "$files/usr/share/seabios" \
    -kernel "$files"/boot/vmlinuz-* -initrd "$place/initramfs" -append "console=ttyS0 quiet panic=-1" \
    < /dev/null | tee "$place/log"
grep -q "test result: ok" "$place/log"
