#!/bin/sh
# Installs one version of the agent beside the others; a failed install leaves nothing. Prints "fleet:KEY=VALUE" lines.
# Input, all exported: FLEET_UPLOAD (folder with our wheels, requirements.txt and what else was pushed), FLEET_VERSION,
# FLEET_PYTHON (interpreter; empty: uv brings one), FLEET_PYTHON_REQUEST ("3.12"), FLEET_UV (uv; empty: python -m venv),
# FLEET_WHEELS (folder of third-party wheels in FLEET_UPLOAD; empty: the host's package index),
# FLEET_PYTHON_ARCHIVE (name of a pushed archive of Python; empty: none), FLEET_AGENT_ROOT, FLEET_BORROW (a prefix
# whose Python already has the agent, on the controller's own machine: nothing is installed).
set -eu
umask 077
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
root="${FLEET_AGENT_ROOT:-$HOME/.local/share/fleet}"

say() { printf 'fleet:%s=%s\n' "$1" "$2"; }

fail() {
    say failed "$1"
    exit 1
}

machine_layout() { # the agent's wheels are importable as they are: its layout needs nothing else
    PYTHONPATH=$(printf '%s:' "$FLEET_UPLOAD"/llmfleet_*.whl) "$1" -m fleet_agent layout | tr -d '\n'
}

# An archive that was pushed is unpacked once, beside the versions of uv, and kept.
unpack_python() {
    home="$root/tools/$(basename "$FLEET_PYTHON_ARCHIVE" .tar.gz)"
    if [ ! -x "$home/bin/python3" ]; then
        rm -rf "$home.new" "$home"
        mkdir -p "$home.new"
        tar -xzf "$FLEET_UPLOAD/$FLEET_PYTHON_ARCHIVE" -C "$home.new" || fail python-archive
        if [ -d "$home.new/python" ]; then mv "$home.new/python" "$home"; else mv "$home.new" "$home"; fi
        rm -rf "$home.new"
    fi
    FLEET_PYTHON="$home/bin/python3"
}

find_python() {
    say stage python
    if [ -n "${FLEET_PYTHON_ARCHIVE:-}" ]; then unpack_python; fi
    if [ -z "${FLEET_PYTHON:-}" ]; then
        "$FLEET_UV" python install "$FLEET_PYTHON_REQUEST" >&2 || fail no-python
        FLEET_PYTHON=$("$FLEET_UV" python find "$FLEET_PYTHON_REQUEST") || fail no-python
    fi
    "$FLEET_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail old-python
}

make_environment() {
    say stage environment
    if [ -n "${FLEET_UV:-}" ]; then
        "$FLEET_UV" venv --quiet --no-project --python "$FLEET_PYTHON" "$version/venv" >&2 || fail environment
    else
        "$FLEET_PYTHON" -m venv "$version/venv" >&2 || fail environment
    fi
}

pip_install() {
    if [ -n "${FLEET_UV:-}" ]; then
        # Compiled once here: an agent that compiles at each start holds some megabytes more while idle.
        "$FLEET_UV" pip install --quiet --compile-bytecode --python "$version/venv/bin/python" "$@" >&2
    else
        "$version/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@" >&2
    fi
}

install_packages() {
    say stage install
    if [ -n "${FLEET_WHEELS:-}" ]; then
        pip_install --require-hashes --no-index --find-links "$FLEET_UPLOAD/$FLEET_WHEELS" \
            -r "$FLEET_UPLOAD/requirements.txt" || fail requirements
    else
        pip_install --require-hashes -r "$FLEET_UPLOAD/requirements.txt" || fail requirements
    fi
    # By path, without the index: a stranger owns a similar name there.
    pip_install --no-deps --no-index "$FLEET_UPLOAD"/llmfleet_*.whl || fail wheels
}

works() { "$version/venv/bin/python" -m fleet_agent version >/dev/null; }

# What was there under this very name (installed again by force) comes back where the new install failed.
clean_up() {
    rm -rf "$FLEET_UPLOAD"
    if [ -z "${version:-}" ]; then return 0; fi
    if [ ! -e "$version/complete" ]; then
        rm -rf "$version"
        if [ -e "$version.before" ]; then mv "$version.before" "$version"; fi
    fi
    rm -rf "$version.before"
}
trap clean_up EXIT

if [ -n "${FLEET_UV_PUSHED:-}" ]; then
    mkdir -p "$root/tools/$FLEET_UV_PUSHED"
    mv -f "$FLEET_UPLOAD/uv" "$root/tools/$FLEET_UV_PUSHED/uv"
    chmod 700 "$root/tools/$FLEET_UV_PUSHED/uv"
    FLEET_UV="$root/tools/$FLEET_UV_PUSHED/uv"
fi
find_python
layout=$(machine_layout "$FLEET_PYTHON") || fail layout
machine_id=$(printf '%s' "$layout" | sed -n 's/.*"machine_id": *"\([^"]*\)".*/\1/p')
version="$root/machines/$machine_id/agent/versions/$FLEET_VERSION"
if [ ! -e "$version/complete" ] || ! works 2>/dev/null || [ -n "${FLEET_FORCE:-}" ]; then
    rm -rf "$version.before"
    if [ -e "$version/complete" ]; then mv "$version" "$version.before"; fi
    rm -rf "$version"
    mkdir -p "$version"
    if [ -n "${FLEET_BORROW:-}" ]; then
        ln -s "$FLEET_BORROW" "$version/venv"
    else
        make_environment
        install_packages
    fi
    works || fail broken
    : >"$version/complete"
    say installed yes
fi
say layout "$layout"
