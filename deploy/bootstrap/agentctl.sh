#!/bin/sh
# Starts, stops and shows the agent of this machine; bring-up puts it beside each installed version.
# usage: agentctl start|stop|status|uninstall
# Settings come from agent.conf beside it: manager (systemd, launchd, background), machine_dir, unit, and what the
# agent's environment needs. It never signals a process whose start time is not the one that it wrote down.
set -u
here=$(dirname "$0")
manager=background machine_dir='' unit=''
# shellcheck source=/dev/null
. "$here/agent.conf"

# By its version, not by "current": after an upgrade, what it started must not load modules of the next version.
python="$machine_dir/agent/$(readlink "$machine_dir/agent/current")/venv/bin/python"
pid_file="$machine_dir/agent/agent.pid"
log="$machine_dir/logs/agent.out"
STOP_SECONDS=15
START_TENTHS=50

say() { printf 'fleet:%s=%s\n' "$1" "$2"; }

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

# When a process started: pid and start time together name it, since pids are recycled.
start_of() {
    if [ -r "/proc/$1/stat" ]; then
        sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
    else
        LC_ALL=C ps -o lstart= -p "$1" 2>/dev/null
    fi
}

is_zombie() { [ -r "/proc/$1/stat" ] && [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 1)" = Z ]; }

background_pid() {
    [ -r "$pid_file" ] || return 1
    { read -r pid && read -r started; } <"$pid_file" || return 1
    [ -n "$started" ] && [ "$(start_of "$pid")" = "$started" ] && ! is_zombie "$pid" && printf '%s\n' "$pid"
}

# One at a time: of two agents that are started at once one ends, and the file must not keep the pid of that one.
background_start() {
    tenths=0
    while ! mkdir "$pid_file.lock" 2>/dev/null && [ "$tenths" -lt "$START_TENTHS" ]; do # else its maker died
        sleep 0.1
        tenths=$((tenths + 1))
    done
    background_pid >/dev/null || background_spawn
    rmdir "$pid_file.lock" 2>/dev/null
    return 0
}

background_spawn() {
    mkdir -p "$machine_dir/logs"
    if [ -f "$log" ] && [ "$(wc -c <"$log")" -gt 1048576 ]; then mv -f "$log" "$log.1"; fi
    cd "$machine_dir" || {
        rmdir "$pid_file.lock"
        fail "cannot enter $machine_dir"
    }
    if command -v setsid >/dev/null 2>&1; then
        setsid "$python" -m fleet_agent serve </dev/null >>"$log" 2>&1 &
    else
        nohup "$python" -m fleet_agent serve </dev/null >>"$log" 2>&1 &
    fi
    pid=$!
    printf '%s\n%s\n' "$pid" "$(start_of "$pid")" >"$pid_file.new" && mv -f "$pid_file.new" "$pid_file"
}

background_stop() {
    pid=$(background_pid) || return 0
    kill -TERM "$pid" 2>/dev/null
    tenths=0
    while background_pid >/dev/null; do
        if [ "$tenths" -ge $((STOP_SECONDS * 10)) ]; then
            kill -KILL "$pid" 2>/dev/null
            sleep 0.2
            break
        fi
        sleep 0.1
        tenths=$((tenths + 1))
    done
    rm -f "$pid_file"
}

systemd_folder="${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user"

systemd_start() {
    mkdir -p "$systemd_folder"
    if ! cmp -s "$here/fleet-agent.service" "$systemd_folder/$unit.service"; then
        cp "$here/fleet-agent.service" "$systemd_folder/$unit.service" || fail "cannot write $systemd_folder/$unit.service"
        systemctl --user daemon-reload
    fi
    systemctl --user reset-failed "$unit.service" 2>/dev/null
    systemctl --user enable "$unit.service" 2>/dev/null
    systemctl --user start "$unit.service" || fail "systemd did not start $unit.service"
    loginctl enable-linger 2>/dev/null || say linger_failed yes
}

systemd_pid() {
    pid=$(systemctl --user show --property=MainPID --value "$unit.service" 2>/dev/null)
    [ -n "$pid" ] && [ "$pid" != 0 ] && printf '%s\n' "$pid"
}

launchd_plist="$HOME/Library/LaunchAgents/$unit.plist"

# A desktop session has a gui domain; a Mac that nobody is logged in on has only the user domain.
launchd_domain() {
    if launchctl print "gui/$(id -u)" >/dev/null 2>&1; then
        printf 'gui/%s\n' "$(id -u)"
    else
        printf 'user/%s\n' "$(id -u)"
    fi
}

launchd_pid() {
    launchctl print "$(launchd_domain)/$unit" 2>/dev/null | sed -n 's/^[[:space:]]*pid = //p' | grep .
}

launchd_start() {
    launchd_pid >/dev/null && return 0
    mkdir -p "$HOME/Library/LaunchAgents" "$machine_dir/logs"
    cp "$here/fleet-agent.plist" "$launchd_plist" || fail "cannot write $launchd_plist"
    launchctl bootout "$(launchd_domain)/$unit" 2>/dev/null
    launchctl bootstrap "$(launchd_domain)" "$launchd_plist" || fail "launchd did not take $launchd_plist"
}

start() {
    case $manager in
        systemd) systemd_start ;;
        launchd) launchd_start ;;
        background) background_start ;;
    esac
}

stop() {
    case $manager in
        systemd) systemctl --user stop "$unit.service" 2>/dev/null ;;
        launchd) launchctl bootout "$(launchd_domain)/$unit" 2>/dev/null ;;
    esac
    # Also where a service manager runs it now: an earlier version may have been a plain process.
    background_stop
}

status() {
    say manager_used "$manager"
    if pid=$("${manager}_pid"); then
        say agent running
        say agent_pid "$pid"
    else
        say agent stopped
    fi
}

uninstall() {
    stop
    case $manager in
        systemd)
            systemctl --user disable "$unit.service" 2>/dev/null
            rm -f "$systemd_folder/$unit.service"
            systemctl --user daemon-reload
            ;;
        launchd) rm -f "$launchd_plist" ;;
    esac
}

XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"
export XDG_RUNTIME_DIR
case ${1:-} in
    start | stop | status | uninstall) "$1" ;;
    *) fail "usage: agentctl start|stop|status|uninstall" ;;
esac
