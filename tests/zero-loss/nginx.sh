#!/usr/bin/env bash
# nginx, reconfigured by `nginx -s reload`. Flags are those of `forebay bench zero-loss`.
source "$(dirname "$0")/lib.sh"
nginx=${NGINX:-$(command -v nginx || echo /usr/sbin/nginx)}

# Weights, the pool and the set of endpoints change in turn.
configuration() {
    local step=$1 servers
    case $((step % 4)) in
    0) servers="server $upstream_a; server $upstream_b;" ;;
    1) servers="server $upstream_a weight=3; server $upstream_b;" ;;
    2) servers="server $upstream_a;" ;;
    *) servers="server $upstream_b;" ;;
    esac
    cat <<CONF
daemon off;
worker_processes 2;
worker_rlimit_nofile 16384;
pid $dir/nginx.pid;
error_log $dir/nginx-error.log warn;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path $dir/body;
    proxy_temp_path $dir/proxy;
    fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi;
    scgi_temp_path $dir/scgi;
    client_max_body_size 32m;
    keepalive_requests 1000000;
    upstream llm {
        $servers
        keepalive $((128 + step % 4 * 16));
        keepalive_timeout 4s;
        keepalive_requests 1000000;
    }
    server {
        listen $gateway backlog=4096;
        location / {
            proxy_pass http://llm;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }
    }
}
CONF
}

if [ "${1:-}" = hook ]; then
    dir=$2
    configuration "$FOREBAY_BENCH_STEP" | replace "$dir/nginx.conf"
    exec "$nginx" -p "$dir" -e "$dir/nginx-error.log" -c "$dir/nginx.conf" -s reload
fi

[ -x "$nginx" ] || fail "nginx is missing: apt-get install --no-install-recommends nginx, or say NGINX=PATH"
begin
configuration 0 >"$dir/nginx.conf"
start nginx "$nginx" -p "$dir" -e "$dir/nginx-error.log" -c "$dir/nginx.conf"
listening "$gateway"
harness "'$0' hook '$dir'" "'$nginx' -v" --model any "$@"
