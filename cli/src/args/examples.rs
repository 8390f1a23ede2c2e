//! Examples below the help texts.

pub(super) const EXAMPLES: &str = "\
Examples:
  forebay standalone --demo                 everything in one process, with three built-in models
  forebay models create llama --endpoint http://10.0.0.5:8000
  forebay models update llama --max-concurrent 80
  forebay fleet rollout --wait";

pub(super) const STANDALONE_EXAMPLES: &str = "\
Examples:
  forebay standalone --demo                 with three built-in models and a little traffic
  forebay standalone                        on a store of your own
  GATEWAY_MAX_CONCURRENT=80 forebay standalone --data-dir ./data";

pub(super) const WORKER_EXAMPLES: &str = "\
Examples:
  forebay worker                            on this machine, beside a control plane
  forebay worker --worker-id w2 --control http://10.0.0.2:50051 \\
      --listen 0.0.0.0:8080 --insecure      reachable from other machines, without TLS";

pub(super) const CREATE_EXAMPLES: &str = "\
Examples:
  forebay models create llama --endpoint http://10.0.0.5:8000
  forebay models create llama --alias default --max-concurrent 80 --warm 10 \\
      --endpoint http://10.0.0.5:8000 --endpoint http://10.0.0.6:8000
  forebay models create llama --discover srv=_http._tcp.vllm.svc.cluster.local
  forebay models create llama --discover file=/etc/forebay/llama.json --discover-allow 10.1.0.0/16
                                            live: servers come and go as the source says
  forebay models create llama --endpoint http://10.0.0.5:8000 --validate-only
  forebay models create llama --endpoint http://10.0.0.5:8000 --probe enforce --validate-only
                                            asks the endpoint what it serves, and shows it";

pub(super) const UPDATE_EXAMPLES: &str = "\
Examples:
  forebay models update llama --max-concurrent 20          live: nothing in flight is cut
  forebay models update llama --endpoint http://10.0.0.7:8000
  forebay models update llama --clear pool.max_concurrent  back to what is inherited";

pub(super) const DIFF_EXAMPLES: &str = "\
Examples:
  forebay fleet diff                        what the newest revision changed
  forebay fleet diff 12                     what changed since revision 12
  forebay fleet diff 12 15                  what changed between the two";

pub(super) const APPLY_EXAMPLES: &str = "\
Examples:
  forebay models export > models.yaml
  forebay models apply -f models.yaml --dry-run     what would change
  forebay models apply -f models.yaml --prune       and nothing else is left
  echo '{\"id\": \"llama\", \"endpoints\": [{\"url\": \"http://10.0.0.5:8000\"}]}' |
      forebay models apply -f -";

pub(super) const SET_EXAMPLES: &str = "\
Examples:
  forebay pool set --max-concurrent 80
  forebay pool set --max-models-concurrent 5 --idle-timeout 3s";

pub(super) const ZERO_LOSS_EXAMPLES: &str = "\
Examples:
  forebay bench zero-loss --model llama --duration 60s \\
      --hook 'forebay models update llama --max-concurrent $((100 + FOREBAY_BENCH_STEP % 50))'
  forebay bench zero-loss --url http://127.0.0.1:8000/v1 --model any --baseline \\
      --every 1s --hook 'nginx -s reload' --output json
  forebay bench zero-loss --model llama --upstream-elsewhere --rate 20 --timeout 2m";

pub(super) const ROLLOUT_EXAMPLES: &str = "\
Examples:
  forebay fleet rollout                     where every worker stands
  forebay fleet rollout --wait              for pipelines
  forebay fleet rollout 7 --wait --within 5m -o json

Exit codes with --wait:
  0   every connected worker runs it, or a newer one
  3   a worker refused it; which, what field and why is said at once
  4   not everywhere in time, or no worker is connected any more
  5   it went through rings and was taken back; by which revision and why is said
  1   anything else";

pub(super) const SEED_EXAMPLES: &str = "\
Examples:
  forebay bench seed                        about two minutes
  forebay bench seed --out report           tables, JSON and pictures into a directory
  forebay bench seed --service-time 2s --seconds 20
  forebay bench seed --waves 3 --seconds 1 --handshake 20ms --output json";

pub(super) const KEYS_EXAMPLES: &str = "\
Examples:
  forebay keys create chat-app
  forebay keys create ci --models llama,qwen --expires 90d --rpm 60
  forebay keys create batch --priority low --tpm 200000 --max-concurrent 4
  forebay keys create chat-app -o json | jq -r .secret > chat-app.key
  forebay keys revoke 3fJk09sLmQ2x --reason 'found in a log'";
