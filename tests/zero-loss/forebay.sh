#!/usr/bin/env bash
# Forebay, standalone, reconfigured over gRPC in every way there is, one after the other (forebay-hook.sh).
# Flags are those of `forebay bench zero-loss`.
source "$(dirname "$0")/lib.sh"
admin=127.0.0.1:$((port + 3))
control=127.0.0.1:$((port + 4))
export FOREBAY_CONTROL=http://$control

# As long a line as the others have.
line=(--max-waiting 10000)

models() {
    "$forebay" models "$@" >/dev/null
}

begin
# The revisions are what is being looked at, not the budget: it must not bind.
start forebay env GATEWAY_MAX_CONCURRENT=200 GATEWAY_MAX_MODELS_CONCURRENT=5 "$forebay" standalone \
    --listen "$gateway" --admin-listen "$admin" --control-listen "$control" --data-dir "$dir/data" \
    --log-level warn
listening "$control"
listening "$gateway"
models create m1 --alias chat --endpoint "http://$upstream_a" "${line[@]}"
models create m2 --endpoint "http://$upstream_a" --endpoint "http://$upstream_b" "${line[@]}"
models create temporary --endpoint "http://$upstream_a"
# Nothing listens there.
models create down --endpoint "http://127.0.0.1:$((port + 5))"

status=0
models_asked=${ZERO_LOSS_MODELS:-m1,chat,m2}
FOREBAY=$forebay ZERO_LOSS_DEAD=127.0.0.1:$((port + 5)) \
    harness "'$here/forebay-hook.sh' '$dir'" "'$forebay' models list" --model "$models_asked" "$@" ||
    status=$?

# Every revision arrived, and why connections were closed: `shrink`, `removed` and `idle` had to be.
"$forebay" fleet rollout --wait --within 10s >&2
# What the upstream closed is what was open when the harness ended.
curl -fsS "http://$admin/metrics" | grep -E '^forebay_(pool_connections_closed|replays)_total\{' |
    grep -E 'model="m[12]"' | grep -vE 'reason="upstream"| 0$' >&2 || true
exit "$status"
