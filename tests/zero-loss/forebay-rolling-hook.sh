#!/usr/bin/env bash
# Restarts the next process: the workers in turn, and after each round of them one of the control planes. A worker is
# asked to end (SIGTERM), waited for, started again, and waited for until it is ready.
set -euo pipefail
dir=$1

answers() {
    local host=${1%:*} port=${1#*:} line=
    exec 3<>"/dev/tcp/$host/$port" || return 1
    printf 'GET /readyz HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n\r\n' "$1" >&3
    read -r line <&3 || true
    exec 3>&-
    [[ $line == *" 200 "* ]]
}

ready() {
    local admin
    admin=$(cat "$dir/$1.admin")
    for _ in $(seq 300); do
        if answers "$admin" 2>/dev/null; then return 0; fi
        sleep 0.1
    done
    echo "$1 is not ready after 30 s" >&2
    return 1
}

# One that has ended and that nobody has waited for is as good as gone.
runs() {
    local state
    # It may go while it is looked at.
    state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1) || return 1
    [ -n "$state" ] && [ "$state" != Z ]
}

roll() {
    local name=$1 pid
    pid=$(cat "$dir/$name.pid")
    kill "$pid"
    for _ in $(seq 900); do
        runs "$pid" || break
        sleep 0.1
    done
    if runs "$pid"; then
        echo "$name did not end within 90 s" >&2
        exit 1
    fi
    setsid "$dir/$name.sh" >>"$dir/$name.log" 2>&1 </dev/null &
    ready "$name"
    echo "$name" >>"$dir/$name.rolled"
}

case $2 in
    ready) ready "$3" ;;
    roll)
        step=$FOREBAY_BENCH_STEP
        case $((step % 4)) in
            3) roll "control-$((step / 4 % 3))" ;;
            *) roll "worker-$((step % 4))" ;;
        esac
        # The balancer has looked since.
        sleep 0.5
        ;;
esac
