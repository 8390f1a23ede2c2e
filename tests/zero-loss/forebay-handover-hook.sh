#!/usr/bin/env bash
# Starts a new process of the worker, which takes over, and returns once the old one has ended.
set -euo pipefail
dir=$1
step=$FOREBAY_BENCH_STEP
old=$(cat "$dir/worker.pid")
setsid "$dir/worker" >"$dir/worker-$step.log" 2>&1 </dev/null &
# One that has ended and that nobody has waited for is as good as gone.
runs() {
    [ -r "/proc/$1/stat" ] && [ "$(sed 's/.*) //' "/proc/$1/stat" | cut -c1)" != Z ]
}
for _ in $(seq 600); do
    runs "$old" || exit 0
    sleep 0.1
done
echo "the process before this one did not end within a minute" >&2
exit 1
