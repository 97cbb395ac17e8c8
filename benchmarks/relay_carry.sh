#!/bin/sh
# Gathers the relay's benchmarks with all that they need, for a Linux machine (x86-64, glibc 2.34 or later, root) that
# has a Python and nothing else: no network, no iproute2, no rsync.
#
#     benchmarks/relay_carry.sh FOLDER 3.12                          # here, with network: the other machine's Python
#     tar xzf FOLDER.tar.gz; FOLDER/run benchmarks.relay --hosts 4   # there; PYTHON=... where it is not on the PATH
#
# The tools start through the machine's own loader with their libraries beside them, so that nothing that they start
# (`ip netns exec`) sees these libraries.
set -eu
folder=$1 python=$2
cd "$(dirname "$0")/.."
mkdir -p "$folder/bin" "$folder/site"
folder=$(cd "$folder" && pwd)

packages="iproute2 libbpf1 libelf1 libmnl0 libbsd0 libmd0 libcap2 libxtables12 zlib1g rsync libpopt0 libxxhash0 liblz4-1 libzstd1 libacl1 libssl3"
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
# shellcheck disable=SC2086
(cd "$unpacked" && apt-get -q download $packages && for package in *.deb; do dpkg -x "$package" root; done) >/dev/null
mkdir -p "$folder/lib"
find "$unpacked/root" -name 'lib*.so.*' -path '*lib/x86_64-linux-gnu/lib*' -exec cp -P {} "$folder/lib/" \;
for tool in bin/ip sbin/tc sbin/bridge usr/bin/rsync; do
    name=$(basename $tool)
    cp "$unpacked/root/$tool" "$folder/lib/$name"
    cat >"$folder/bin/$name" <<WRAPPER
#!/bin/sh
lib=\$(dirname "\$(readlink -f "\$0")")/../lib
exec /lib64/ld-linux-x86-64.so.2 --library-path "\$lib" "\$lib/$name" "\$@"
WRAPPER
    chmod +x "$folder/bin/$name"
done

uv pip install -q --target "$folder/site" --python-version "$python" --python-platform x86_64-manylinux_2_28 \
    --only-binary :all: cryptography pydantic libtorrent
git ls-files --cached --others --exclude-standard benchmarks agent controller inventory proto |
    grep '\.\(py\|yaml\|json\)$' | grep -v benchmarks/data | xargs cp --parents -t "$folder"

cat >"$folder/run" <<'RUN'
#!/bin/sh
cd "$(dirname "$(readlink -f "$0")")"
export PATH="$PWD/bin:$PATH" PYTHONPATH="$PWD:$PWD/site:$PWD/proto:$PWD/inventory:$PWD/agent:$PWD/controller"
exec "${PYTHON:-python3}" -u -W ignore -m "$@"
RUN
chmod +x "$folder/run"
tar -C "$(dirname "$folder")" -czf "$folder.tar.gz" "$(basename "$folder")"
du -sh "$folder" "$folder.tar.gz"
