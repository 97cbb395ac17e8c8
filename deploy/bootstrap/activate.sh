#!/bin/sh
# Makes one installed version of the agent the current one: switches, stops the running agent (model servers and job
# runners go on), starts. Whoever finds no agent in between, and starts one, starts the new version.
# Prints "fleet:KEY=VALUE" lines.
# Input, all exported: FLEET_MACHINE_DIR, FLEET_VERSION, FLEET_CONFIGURATION=new|previous (agent.json of the version's
# folder, or the one that was there before), FLEET_KEEP_VERSIONS (folders of versions to keep, separated by spaces).
set -eu
umask 077
agent="$FLEET_MACHINE_DIR/agent"
version="$agent/versions/$FLEET_VERSION"
configuration="$FLEET_MACHINE_DIR/agent.json"

say() { printf 'fleet:%s=%s\n' "$1" "$2"; }

# A rename replaces the link in one step; mv would follow it into the folder on some systems.
switch_link() {
    rm -f "$agent/current.new"
    ln -s "versions/$FLEET_VERSION" "$agent/current.new"
    "$version/venv/bin/python" -c 'import os, sys; os.replace(sys.argv[1], sys.argv[2])' "$agent/current.new" "$agent/current"
}

switch_configuration() {
    if [ "$FLEET_CONFIGURATION" = previous ]; then
        if [ -e "$configuration.previous" ]; then mv -f "$configuration.previous" "$configuration"; fi
        return 0
    fi
    if [ -e "$configuration" ]; then cp -p "$configuration" "$configuration.previous"; fi
    cp "$version/agent.json" "$configuration.new"
    mv -f "$configuration.new" "$configuration"
}

# A job's runner goes on with the version that started it, over more than one upgrade. Where ps is of no help: it may.
is_in_use() {
    processes=$(ps -A -ww -o args= 2>/dev/null) || return 0
    printf '%s\n' "$processes" | grep -F -q -- "$1/venv/"
}

forget_old_versions() {
    for folder in "$agent"/versions/*; do
        case " $FLEET_KEEP_VERSIONS $FLEET_VERSION " in
            *" $(basename "$folder") "*) ;;
            *) is_in_use "$folder" || rm -rf "$folder" ;;
        esac
    done
}

test -e "$version/complete"
former="$agent/$(readlink "$agent/current" || true)"
switch_configuration
switch_link
if [ -e "$former/agentctl" ]; then /bin/sh "$former/agentctl" stop; fi
if [ -n "${FLEET_KEEP_VERSIONS:-}" ]; then forget_old_versions; fi
/bin/sh "$agent/current/agentctl" start
/bin/sh "$agent/current/agentctl" status
say end ok
