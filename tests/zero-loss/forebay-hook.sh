#!/usr/bin/env bash
# One rebuild of Forebay, of the kind that is due at this step. `m1` (also called `chat`) and `m2` carry the
# checked requests, so whatever happens to them must lose nothing.
set -euo pipefail
dir=$1
step=$FOREBAY_BENCH_STEP
round=$((step / 12))
a=http://${FOREBAY_BENCH_UPSTREAMS%,*}
b=http://${FOREBAY_BENCH_UPSTREAMS#*,}
dead=http://$ZERO_LOSS_DEAD

models() {
    "$FOREBAY" models "$@" >/dev/null
}

chat() {
    curl -sN --max-time 20 "$FOREBAY_BENCH_URL/chat/completions" -H 'content-type: application/json' \
        -d '{"model":"temporary","stream":true,"max_tokens":30,"messages":[{"role":"user","content":"hi"}]}' "$@"
}

# Streams run when their model is deleted: they end well, and the next request is told that it is gone.
delete_with_streams() {
    local n tries=500 code
    for n in 1 2 3 4 5; do
        chat >"$dir/stream-$n" &
    done
    for n in 1 2 3 4 5; do
        until [ -s "$dir/stream-$n" ]; do
            tries=$((tries - 1))
            [ "$tries" -gt 0 ] || { echo "the streams do not begin" >&2; exit 1; }
            sleep 0.01
        done
    done
    models delete temporary
    wait
    for n in 1 2 3 4 5; do
        if [ "$(grep -c '"content":"token' "$dir/stream-$n")" != 30 ] ||
            ! grep -q '^data: \[DONE\]' "$dir/stream-$n"; then
            echo "a stream was cut when its model was deleted: $(tail -c 300 "$dir/stream-$n")" >&2
            exit 1
        fi
        : >"$dir/stream-$n"
    done
    code=$(chat -o "$dir/stream-1" -w '%{http_code}')
    [ "$code" = 404 ] || { echo "a deleted model answers $code" >&2; exit 1; }
    models create temporary --endpoint "$a"
}

ten_revisions() {
    local n
    for n in 0 1 2 3 4 5 6 7 8 9; do
        models update m2 --max-concurrent $((100 + (n + round) % 10))
    done
}

# All kinds in turn, or those that were asked for.
read -ra kinds <<<"${ZERO_LOSS_KINDS:-0 1 2 3 4 5 6 7 8 9 10 11}"

case ${kinds[step % ${#kinds[@]}]} in
0) models update m1 --max-concurrent $((150 + round % 50)) ;; # grow
1) # shrink below what is in use, and back before the line grows long
    models update m1 --max-concurrent 8
    models update m1 --max-concurrent 140
    ;;
2) models update m1 --endpoint "$a" --endpoint "$b" ;; # add an endpoint
3) models update m1 --endpoint "$b" ;;                 # remove one
4) models update m1 --endpoint "$a" ;;                 # replace it
5) models update m2 --first-byte-timeout $((60 + round % 60))s --stream-idle-timeout $((30 + round % 30))s \
    --connect-timeout $((1 + round % 3))s ;;
6) models update m1 --alias chat --alias "chat-$step" ;; # rename
7) delete_with_streams ;;
8) ten_revisions ;;
9) # while an upstream is down, of a model of its own and of one that has others
    models update down --max-concurrent $((10 + round % 10))
    models update m2 --endpoint "$a" --endpoint "$b" --endpoint "$dead"
    ;;
10)
    models update m2 --endpoint "$a" --endpoint "$b"
    models update down --warm 1
    models update down --warm 0
    ;;
11) "$FOREBAY" pool set --max-wait $((30 + round % 30))s >/dev/null ;; # what all models inherit
esac
