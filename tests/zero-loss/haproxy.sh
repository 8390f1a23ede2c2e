#!/usr/bin/env bash
# HAProxy as master and worker, reconfigured by a seamless reload: the listening sockets are handed over,
# and idle connections of clients are closed with an answer only. Flags are those of `forebay bench zero-loss`.
source "$(dirname "$0")/lib.sh"
haproxy=${HAPROXY:-$(command -v haproxy || echo /usr/sbin/haproxy)}

# Weights, limits and the set of endpoints change in turn.
configuration() {
    local step=$1 servers
    local pool="pool-max-conn $((128 + step % 4 * 16)) pool-purge-delay 2s"
    local a="server a $upstream_a $pool" b="server b $upstream_b $pool"
    case $((step % 4)) in
    0) servers="$a"$'\n'"    $b" ;;
    1) servers="$a weight 3"$'\n'"    $b weight 1" ;;
    2) servers="$a" ;;
    *) servers="$b" ;;
    esac
    cat <<CONF
global
    maxconn 8000
    nbthread 2
    stats socket $dir/stats.sock mode 600 level admin expose-fd listeners
defaults
    mode http
    option http-no-delay
    option idle-close-on-response
    option redispatch
    retries 3
    http-reuse always
    balance leastconn
    timeout connect 2s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 10s
frontend llm
    bind $gateway backlog 4096
    default_backend llm
backend llm
    $servers
CONF
}

if [ "${1:-}" = hook ]; then
    dir=$2
    configuration "$FOREBAY_BENCH_STEP" | replace "$dir/haproxy.cfg"
    kill -USR2 "$(cat "$dir/haproxy.pid")"
    exit
fi

[ -x "$haproxy" ] || fail "HAProxy is missing: apt-get install --no-install-recommends haproxy, or say HAPROXY=PATH"
begin
configuration 0 >"$dir/haproxy.cfg"
start haproxy "$haproxy" -W -f "$dir/haproxy.cfg"
echo "${started[0]}" >"$dir/haproxy.pid"
listening "$gateway"
harness "'$0' hook '$dir'" "'$haproxy' -v" --model any "$@"
