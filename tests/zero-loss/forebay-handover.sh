#!/usr/bin/env bash
# Forebay, a control plane and one worker whose process is replaced under load, again and again
# (forebay-handover-hook.sh). Flags are those of `forebay bench zero-loss`, such as `--duration 5m --every 3s`.
source "$(dirname "$0")/lib.sh"
admin=127.0.0.1:$((port + 3))
control=127.0.0.1:$((port + 4))
export FOREBAY_CONTROL=http://$control

begin
start control "$forebay" control --control-listen "$control" --data-dir "$dir/data" --log-level warn
listening "$control"
cat >"$dir/worker" <<END
#!/usr/bin/env bash
# The newest process of the worker; its id is kept for who ends it.
echo \$\$ >"$dir/worker.pid"
exec "$forebay" worker --control "http://$control" --worker-id w --data-dir "$dir/data" --listen "$gateway" \\
    --admin-listen "$admin" --grace 60s --log-level info --take-over
END
chmod +x "$dir/worker"
start worker "$dir/worker"
listening "$gateway"
"$forebay" models create m1 --alias chat --endpoint "http://$upstream_a" --max-waiting 10000 >/dev/null
"$forebay" models create m2 --endpoint "http://$upstream_a" --endpoint "http://$upstream_b" --max-waiting 10000 >/dev/null

status=0
harness "'$here/forebay-handover-hook.sh' '$dir'" "true" --model m1,chat,m2 "$@" || status=$?
cat "$dir"/worker*.log | grep -c 'handed over' | sed 's/$/ processes handed over/' >&2 || true
kill "$(cat "$dir/worker.pid")" 2>/dev/null || true
exit "$status"
