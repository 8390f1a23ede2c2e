# Shared by the drivers: ports, a directory that goes away, processes that are ended by their id, and the
# harness itself. Sourced, not run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
forebay=${FOREBAY:-$root/target/release/forebay}
# The gateway listens here; its upstreams and further ports follow.
port=${ZERO_LOSS_PORT:-18000}
gateway=127.0.0.1:$port
upstream_a=127.0.0.1:$((port + 1))
upstream_b=127.0.0.1:$((port + 2))

# On a machine that others use, too, gateway and harness can run before everything else (as root): what is
# measured is then the gateway, and not who else is at work.
first=() hook_first=
if [ "${ZERO_LOSS_REAL_TIME:-0}" = 1 ]; then
    first=(chrt --rr 10)
    # Behind both, and still before everything else: half a change must not wait for somebody's compiler.
    hook_first='exec chrt --rr 5 '
fi

fail() {
    printf 'failed: %s\n' "$*" >&2
    exit 1
}

[ -x "$forebay" ] || fail "$forebay is missing: cargo build --release --workspace, or say FOREBAY=PATH"

started=()
begin() {
    dir=$(mktemp -d "${TMPDIR:-/tmp}/forebay-zero-loss.XXXXXX")
    trap end EXIT
}

# Starts a process that `end` ends; what it prints goes to a file in the directory.
start() {
    local name=$1
    shift
    "${first[@]}" "$@" >"$dir/$name.log" 2>&1 &
    started+=($!)
}

end() {
    local status=$? pid
    # What a driver started by other ways than `start`.
    if declare -F also_end >/dev/null; then also_end; fi
    for pid in "${started[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in "${started[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    if [ "$status" != 0 ]; then
        tail -n 5 "$dir"/*.log >&2 || true
    fi
    rm -rf "$dir"
    exit "$status"
}

# Waits until something listens.
listening() {
    local address=$1 tries=100
    while ! (exec 3<>"/dev/tcp/${address%:*}/${address#*:}") 2>/dev/null; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "nothing listens on $address after 10 s"
        sleep 0.1
    done
}

# The harness, with the hook and what is run instead of it for reference.
harness() {
    local hook=$1 reference=$2
    shift 2
    "${first[@]}" "$forebay" bench zero-loss --url "http://$gateway/v1" \
        --upstream-listen "$upstream_a,$upstream_b" --baseline \
        --hook "$hook_first$hook" --baseline-hook "$hook_first$reference" "$@"
}

# Puts standard input in the place of a file, in one step.
replace() {
    cat >"$1.new"
    mv "$1.new" "$1"
}
