#!/bin/sh
# Says what a host is and which agent it has, as lines "fleet:KEY=VALUE". It changes nothing and needs no Python.
# Input, all exported: FLEET_AGENT_ROOT (else the default), FLEET_PYTHON (an interpreter to consider first),
# FLEET_PROBE_ONLY=agent (leave out the platform).
set -u
PATH="${PATH:-/usr/bin:/bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/opt/homebrew/bin:$HOME/.local/bin:$HOME/.cargo/bin"
export PATH
export LC_ALL=C

say() { printf 'fleet:%s=%s\n' "$1" "$2"; }

nearest_folder() {
    folder=$1
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    printf '%s\n' "$folder"
}

probe_system() {
    say os "$(uname -s)"
    say architecture "$(uname -m)"
    say user "$(id -un)"
    say home "$HOME"
    if [ "$(uname -s)" = Linux ]; then
        libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc=
        if [ -z "$libc" ]; then
            for loader in /lib/ld-musl-*; do [ -e "$loader" ] && libc="musl 1.2"; done
        fi
        say libc "$libc"
        say home_filesystem "$(stat -f -c %T "$HOME" 2>/dev/null)"
        [ -r /etc/machine-id ] && say etc_machine_id "$(cat /etc/machine-id)"
    else
        say home_filesystem "$(df -P "$HOME" | awk 'NR == 2 { print ($1 ~ /:/) ? "nfs" : "local" }')"
    fi
    say disk_free_kib "$(df -Pk "$(nearest_folder "$root")" | awk 'NR == 2 { print $4 }')"
}

# One line per interpreter: version, whether it can make a virtual environment with pip, resolved path.
probe_python() {
    for name in ${FLEET_PYTHON:+"$FLEET_PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        path=$(command -v "$name" 2>/dev/null) || continue
        found=$("$path" -c '
import sys
try:
    import ensurepip, venv
    ensurepip.version()
    venv_works = "yes"
except Exception:
    venv_works = "no"
print("%d.%d.%d %s %s" % (sys.version_info[:3] + (venv_works, sys.executable)))
' 2>/dev/null) || continue
        say python "$found"
    done
}

probe_uv() {
    path=$(command -v uv 2>/dev/null) || return 0
    version=$("$path" --version 2>/dev/null) && say uv "$path" && say uv_version "$version"
}

probe_manager() {
    if [ "$(uname -s)" = Darwin ]; then
        command -v launchctl >/dev/null 2>&1 && say manager launchd
        return 0
    fi
    XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"
    export XDG_RUNTIME_DIR
    if [ -S "$XDG_RUNTIME_DIR/systemd/private" ] && systemctl --user show-environment >/dev/null 2>&1; then
        say manager systemd
        say linger "$(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null)"
    fi
}

# Any agent's Python tells this machine's id: a shared home has one folder a machine.
probe_agent() {
    for python in "$root"/machines/*/agent/current/venv/bin/python; do
        [ -x "$python" ] || continue
        layout=$("$python" -m fleet_agent layout 2>/dev/null) || continue
        machine_id=$(printf '%s' "$layout" | tr -d '\n' | sed -n 's/.*"machine_id": *"\([^"]*\)".*/\1/p')
        agent="$root/machines/$machine_id/agent"
        [ -n "$machine_id" ] && [ -e "$agent/current/agentctl" ] || return 0
        say layout "$(printf '%s' "$layout" | tr -d '\n')"
        say current "$(readlink "$agent/current")"
        say configuration "$(tr -d '\n' 2>/dev/null <"$root/machines/$machine_id/agent.json")"
        /bin/sh "$agent/current/agentctl" status
        return 0
    done
}

root="${FLEET_AGENT_ROOT:-$HOME/.local/share/fleet}"
say root "$root"
say environment_machine_id "${FLEET_MACHINE_ID:-}"
say environment_runtime_dir "${FLEET_RUNTIME_DIR:-}"
if [ "${FLEET_PROBE_ONLY:-}" != agent ]; then
    probe_system
    probe_python
    probe_uv
    probe_manager
fi
probe_agent
say end ok
