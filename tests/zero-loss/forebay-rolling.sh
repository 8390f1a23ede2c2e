#!/usr/bin/env bash
# Forebay, three control planes, three workers and a balancer before them; one worker after the other is restarted under
# load, and after each round one control plane (forebay-rolling-hook.sh). Flags are those of `forebay bench zero-loss`,
# such as `--rate 500 --duration 5m --every 1s`.
source "$(dirname "$0")/lib.sh"
balancer=${BALANCER:-$(dirname "$forebay")/balancer}
[ -x "$balancer" ] || fail "$balancer is missing: cargo build --release --workspace, or say BALANCER=PATH"
address() { echo "127.0.0.1:$((port + $1))"; }
controls=("$(address 11)" "$(address 12)" "$(address 13)")
gateways=("$(address 21)" "$(address 22)" "$(address 23)")
admins=("$(address 31)" "$(address 32)" "$(address 33)")

# Those that were restarted are not this script's children. Nobody must be there when the next run begins.
also_end() {
    local file pid
    for file in "$dir"/*.pid; do
        [ -r "$file" ] && pid=$(cat "$file") || continue
        kill "$pid" 2>/dev/null || continue
        # All that there was to lose was counted.
        sleep 2
        kill -9 "$pid" 2>/dev/null || true
    done
}

begin
# What is registered is the same at all three: one registry, copied.
start first "$forebay" control --control-listen "${controls[0]}" --data-dir "$dir/control-0" --log-level warn
listening "${controls[0]}"
export FOREBAY_CONTROL=http://${controls[0]}
# Room for streams of seconds on two of three workers.
"$forebay" pool set --max-models-concurrent 16 >/dev/null
"$forebay" models create m1 --alias chat --endpoint "http://$upstream_a" --max-concurrent 400 --max-waiting 10000 >/dev/null
"$forebay" models create m2 --endpoint "http://$upstream_a" --endpoint "http://$upstream_b" --max-concurrent 400 --max-waiting 10000 >/dev/null
kill "${started[0]}"
wait "${started[0]}" || true
for n in 1 2; do cp -r "$dir/control-0" "$dir/control-$n"; done

urls=http://${controls[0]},http://${controls[1]},http://${controls[2]}
for n in 0 1 2; do
    cat >"$dir/control-$n.sh" <<END
#!/usr/bin/env bash
echo \$\$ >"$dir/control-$n.pid"
exec "$forebay" control --control-listen "${controls[$n]}" --data-dir "$dir/control-$n" --log-level info
END
    cat >"$dir/worker-$n.sh" <<END
#!/usr/bin/env bash
echo \$\$ >"$dir/worker-$n.pid"
exec "$forebay" worker --control "$urls" --worker-id "w$n" --data-dir "$dir/worker-$n" --listen "${gateways[$n]}" \\
    --admin-listen "${admins[$n]}" --drain-delay 1s --grace 60s --log-level info --rebalance-every 2s
END
    chmod +x "$dir/control-$n.sh" "$dir/worker-$n.sh"
    start "control-$n" "$dir/control-$n.sh"
    start "worker-$n" "$dir/worker-$n.sh"
    listening "${controls[$n]}"
    listening "${gateways[$n]}"
    echo "${admins[$n]}" >"$dir/worker-$n.admin"
    echo "${controls[$n]}" >"$dir/control-$n.admin"
done
start balancer "$balancer" "$gateway" "${gateways[0]}=${admins[0]}" "${gateways[1]}=${admins[1]}" "${gateways[2]}=${admins[2]}"
listening "$gateway"
for n in 0 1 2; do "$here/forebay-rolling-hook.sh" "$dir" ready "worker-$n"; done
# The balancer has looked since.
sleep 0.5

status=0
harness "'$here/forebay-rolling-hook.sh' '$dir' roll" "true" --model m1,chat,m2 --hook-timeout 2m "$@" || status=$?
for name in worker control; do
    find "$dir" -name "$name-*.rolled" -exec cat {} + | wc -l | sed "s/\$/ restarts of $name processes/" >&2
done
grep -h 'stream ended\|control plane lost' "$dir"/worker-*.log | wc -l | sed 's/$/ streams to control planes ended/' >&2
exit "$status"
