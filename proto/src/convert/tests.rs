//! What goes out comes back, and every bad field is named at once.

use std::time::Duration;

use proptest::prelude::*;

use crate::{
    Config, Digest, Endpoint, EndpointId, EndpointUrl, ModelId, ModelSpec, PoolSettings, PoolSize,
    Protocol, Revision, StreamUsage, Streaming, Weight,
    endpoint::{ClientIdentity, EndpointTls, FilePath, ServerName, TlsRoots},
    failure::{CheckPath, EjectionSpec, FailureSpec, HealthSpec, RetryOn, RetrySpec},
    pool::TimeoutOverrides,
    probe::{ProbeMode, ProbeSpec, ServedName},
    violation::Violations,
    wire,
};

fn duration() -> impl Strategy<Value = Duration> {
    (1_000_u64..3_600_000).prop_map(Duration::from_millis)
}

fn tls() -> impl Strategy<Value = EndpointTls> {
    let roots = prop_oneof![
        Just(TlsRoots::System),
        Just(TlsRoots::Unverified),
        Just(TlsRoots::pem(include_str!("../endpoint/test-ca.pem")).unwrap()),
    ];
    let name = proptest::option::of("[a-z]{1,10}[.][a-z]{2}");
    let identity = proptest::option::of("/[a-z/]{1,20}");
    (roots, name, identity).prop_map(|(roots, name, path)| EndpointTls {
        roots,
        server_name: name.map(|name| ServerName::new(&name).unwrap()),
        identity: path.map(|path| {
            let path = FilePath::new(&path).unwrap();
            ClientIdentity::new(path.clone(), path)
        }),
    })
}

fn streaming() -> impl Strategy<Value = Streaming> {
    let usage = prop_oneof![Just(StreamUsage::Pass), Just(StreamUsage::Inject)];
    let keep_alive = proptest::option::of((1..=3_600_u64).prop_map(Duration::from_secs));
    (usage, keep_alive).prop_map(|(usage, keep_alive)| Streaming { usage, keep_alive })
}

fn probe() -> impl Strategy<Value = ProbeSpec> {
    let modes = [ProbeMode::Off, ProbeMode::Report, ProbeMode::Enforce];
    let name = proptest::option::of("/[a-z/]{1,20}");
    (proptest::sample::select(modes.to_vec()), name).prop_map(|(mode, name)| ProbeSpec {
        mode,
        served_name: name.map(|name| ServedName::new(&name).unwrap()),
    })
}

prop_compose! {
    fn failure()(
        path in proptest::option::of("/[a-z]{1,9}"),
        interval in proptest::option::of(5_000_u64..60_000),
        counts in proptest::option::of(1_u32..=100),
        failures in proptest::option::of(0_u32..=1_000),
        percent in proptest::option::of(0_u32..=100),
        attempts in proptest::option::of(1_u32..=5),
        on in proptest::sample::subsequence(
            vec![RetryOn::Busy, RetryOn::BadGateway, RetryOn::ServerError, RetryOn::Reset], 0..=4),
        fallbacks in proptest::collection::btree_set("[A-Z]{30}", 0..3),
    ) -> FailureSpec {
        FailureSpec {
            health: HealthSpec {
                path: path.map(|path| CheckPath::new(&path).unwrap()),
                interval: interval.map(Duration::from_millis),
                timeout: interval.map(|interval| Duration::from_millis(interval / 5)),
                unhealthy_after: counts,
                healthy_after: counts,
            },
            ejection: EjectionSpec {
                failures,
                base_time: interval.map(Duration::from_millis),
                max_time: interval.map(|interval| Duration::from_millis(interval * 2)),
                panic_percent: percent,
            },
            retry: RetrySpec { max_attempts: attempts, on },
            fallbacks: fallbacks.into_iter().map(|id| ModelId::new(id).unwrap()).collect(),
        }
    }
}

prop_compose! {
    fn spec()(
        id in "[a-z][a-z0-9.-]{0,20}",
        alias in proptest::option::of("[A-Z][A-Za-z0-9]{1,10}/[a-z]{1,5}"),
        ports in proptest::collection::btree_set(1_u16.., 1..5),
        weight in 1_u32..1000,
        tls in proptest::option::of(tls()),
        size in proptest::option::of(1_u32..=150),
        max_waiting in proptest::option::of(0_u32..100_000),
        max_wait in proptest::option::of(duration()),
        idle_timeout in proptest::option::of(duration()),
        age in proptest::option::of(duration()),
        total in proptest::option::of(duration()),
        probe in probe(),
        failure in failure(),
        streaming in streaming(),
    ) -> ModelSpec {
        let endpoints = ports.into_iter().enumerate().map(|(n, port)| {
            let id = EndpointId::new(format!("e{n}")).unwrap();
            let scheme = if tls.is_some() { "https" } else { "http" };
            let url = EndpointUrl::parse(&format!("{scheme}://10.0.0.1:{port}")).unwrap();
            Endpoint {
                weight: Weight::new(weight).unwrap(),
                protocol: if tls.is_some() { Protocol::Auto } else { Protocol::Http2 },
                tls: tls.clone().unwrap_or_default(),
                ..Endpoint::new(id, url)
            }
        });
        let aliases = alias.into_iter().map(|alias| ModelId::new(alias).unwrap());
        let mut spec =
            ModelSpec::new(ModelId::new(id).unwrap(), aliases.collect(), endpoints.collect())
                .unwrap();
        spec.pool.max_concurrent = size.map(|size| PoolSize::new(size).unwrap());
        spec.pool.max_waiting = max_waiting;
        spec.pool.max_wait = max_wait;
        spec.pool.idle_timeout = idle_timeout;
        spec.pool.max_connection_age = age;
        spec.timeouts = TimeoutOverrides { total, ..TimeoutOverrides::default() };
        spec.probe = probe;
        spec.streaming = streaming;
        spec.failing(failure).unwrap()
    }
}

proptest! {
    #[test]
    fn a_model_survives_the_wire(spec in spec()) {
        let wire = wire::Model::from(&spec);
        prop_assert_eq!(ModelSpec::try_from(wire).unwrap(), spec);
    }

    #[test]
    fn a_config_survives_the_wire_and_has_one_digest(
        specs in proptest::collection::btree_map("[a-z]{1,8}", spec(), 0..6),
        seed in any::<u64>(),
    ) {
        let settings = PoolSettings::default();
        let mut models: Vec<_> = specs
            .into_iter()
            .map(|(id, spec)| {
                let id = ModelId::new(id).unwrap();
                let spec = ModelSpec::new(id, vec![], spec.endpoints().to_vec()).unwrap()
                    .asking(spec.pool.clone(), spec.timeouts.clone())
                    .failing(spec.failure().clone()).unwrap();
                spec.resolve(&settings, Revision::new(7)).unwrap()
            })
            .collect();
        let sorted = Config::new(settings.budget().unwrap(), models.clone()).unwrap();
        let turn = models.len().checked_rem(seed as usize).unwrap_or(0).min(models.len());
        models.rotate_left(turn);
        models.reverse();
        let shuffled = Config::new(settings.budget().unwrap(), models).unwrap();
        let (bytes, digest) = sorted.encode();
        prop_assert_eq!(shuffled.encode().1, digest);
        prop_assert_eq!(Digest::of(&bytes), digest);
        prop_assert_eq!(Config::decode(&bytes).unwrap(), sorted);
    }

    #[test]
    fn no_bytes_panic_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Config::decode(&bytes);
    }
}

fn fields(violations: &Violations) -> Vec<&str> {
    violations
        .as_slice()
        .iter()
        .map(|violation| violation.field.as_str())
        .collect()
}

fn bad_endpoints() -> Vec<wire::Endpoint> {
    vec![
        wire::Endpoint {
            url: "ftp://x".into(),
            ..Default::default()
        },
        wire::Endpoint {
            id: "Up".into(),
            url: "http://x/p".into(),
            weight: Some(0),
            protocol: 9,
            tls: Some(wire::EndpointTls {
                ca_pem: "x".into(),
                server_name: "a b".into(),
                client_key_file: "key".into(),
                ..Default::default()
            }),
            credential: None,
            discovery: None,
        },
        wire::Endpoint {
            url: "https://x".into(),
            tls: Some(wire::EndpointTls {
                ca_pem: "x".into(),
                skip_verification: true,
                client_certificate_file: "a".into(),
                client_key_file: "b".into(),
                ..Default::default()
            }),
            ..Default::default()
        },
        wire::Endpoint {
            url: "http://y".into(),
            protocol: wire::EndpointProtocol::Auto.into(),
            tls: Some(wire::EndpointTls::default()),
            ..Default::default()
        },
    ]
}

#[test]
fn every_bad_field_is_named_at_once() {
    let zero = Some(prost_types::Duration {
        seconds: 0,
        nanos: 1,
    });
    let negative = Some(prost_types::Duration {
        seconds: -1,
        nanos: 0,
    });
    let bad = wire::Model {
        id: "a b".into(),
        aliases: vec!["ok".into(), "/".into()],
        endpoints: bad_endpoints(),
        pool: Some(wire::Pool {
            max_concurrent: Some(0),
            scope: 9,
            queue: Some(wire::Queue {
                max_waiting: Some(100_001),
                max_wait: negative,
                ..Default::default()
            }),
            idle_timeout: zero,
            ..Default::default()
        }),
        timeouts: Some(wire::Timeouts {
            connect: zero,
            ..Default::default()
        }),
        ..Default::default()
    };
    let violations = ModelSpec::try_from(bad).unwrap_err();
    assert_eq!(
        fields(&violations),
        [
            "id",
            "aliases[1]",
            "endpoints[0].url",
            "endpoints[1].id",
            "endpoints[1].url",
            "endpoints[1].weight",
            "endpoints[1].protocol",
            "endpoints[1].tls.ca_pem",
            "endpoints[1].tls.server_name",
            "endpoints[1].tls.client_certificate_file",
            "endpoints[2].tls.skip_verification",
            "endpoints[2].tls.client_certificate_file",
            "endpoints[2].tls.client_key_file",
            "endpoints[3].protocol",
            "endpoints[3].tls",
            "pool.scope",
            "pool.max_concurrent",
            "pool.queue.max_waiting",
            "pool.queue.max_wait",
            "pool.idle_timeout",
            "timeouts.connect",
        ]
    );
}

fn discovered(discovery: wire::Discovery) -> wire::Endpoint {
    wire::Endpoint {
        id: "pods".into(),
        discovery: Some(discovery),
        ..Default::default()
    }
}

fn of_source(source: wire::discovery::Source) -> wire::Discovery {
    wire::Discovery {
        source: Some(source),
        ..Default::default()
    }
}

#[test]
fn whatever_is_said_of_a_source_comes_back() {
    use wire::discovery::Source;
    let second = prost_types::Duration {
        seconds: 1,
        nanos: 0,
    };
    for (source, polled) in [
        (Source::Dns("vllm.svc:8000".into()), false),
        (Source::Srv("_http._tcp.vllm.svc".into()), false),
        (Source::File("/etc/targets.json".into()), true),
        (Source::Http("https://sd:443/t?x=y".into()), true),
    ] {
        let https_list = matches!(&source, Source::Http(_));
        let discovery = wire::Discovery {
            https: true,
            allow: vec!["10.0.0.0/8".into(), "fd00::/8".into()],
            ports: vec!["80".into(), "8000-8099".into()],
            refresh: polled.then_some(second),
            keep_empty: Some(second),
            send_credentials: true,
            source_tls: https_list.then(|| wire::EndpointTls {
                server_name: "sd.internal".into(),
                ..Default::default()
            }),
            ..of_source(source)
        };
        let model = wire::Model {
            id: "m".into(),
            endpoints: vec![discovered(discovery)],
            ..Default::default()
        };
        let spec = ModelSpec::try_from(model.clone()).unwrap();
        let back = wire::Model::from(&spec);
        assert_eq!(back.endpoints[0].discovery, model.endpoints[0].discovery);
        assert_eq!(ModelSpec::try_from(back).unwrap(), spec);
        let resolved = spec
            .resolve(&PoolSettings::default(), Revision::new(1))
            .unwrap();
        let pushed = wire::Model::from(&resolved);
        assert_eq!(crate::ResolvedModel::try_from(pushed).unwrap(), resolved);
    }
}

#[test]
fn every_bad_field_of_a_source_is_named() {
    use wire::discovery::Source;
    let long = prost_types::Duration {
        seconds: 100_000,
        nanos: 0,
    };
    let tls = || Some(wire::EndpointTls::default());
    let bad = vec![
        discovered(wire::Discovery {
            allow: vec!["10.0.0.0/8".into(), "x".into()],
            ports: vec!["0".into()],
            refresh: Some(long),
            keep_empty: Some(long),
            ..of_source(Source::Http("ftp://a".into()))
        }),
        discovered(wire::Discovery {
            refresh: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            send_credentials: true,
            source_tls: tls(),
            ports: vec!["1".into(); 17],
            allow: vec!["::/0".into(); 33],
            ..of_source(Source::Srv("x".into()))
        }),
        discovered(wire::Discovery {
            source_tls: tls(),
            ..of_source(Source::Http("http://a/x".into()))
        }),
        wire::Endpoint {
            url: "http://a".into(),
            tls: tls(),
            ..discovered(of_source(Source::Dns("a:1".into())))
        },
    ];
    let model = wire::Model {
        id: "m".into(),
        endpoints: bad,
        ..Default::default()
    };
    let violations = ModelSpec::try_from(model).unwrap_err();
    let fields = fields(&violations);
    let expected = [
        "endpoints[0].discovery.http",
        "endpoints[0].discovery.refresh",
        "endpoints[0].discovery.keep_empty",
        "endpoints[0].discovery.allow[1]",
        "endpoints[0].discovery.ports[0]",
        "endpoints[1].discovery.refresh",
        "endpoints[1].discovery.allow",
        "endpoints[1].discovery.ports",
        "endpoints[1].discovery.send_credentials",
        "endpoints[1].discovery.source_tls",
        "endpoints[2].discovery.source_tls",
        "endpoints[3].url",
        "endpoints[3].tls",
    ];
    assert_eq!(fields, expected);
}

/// What a build that does not know the field makes of it: it refuses that model, and would rather have no endpoint than
/// take it for one.
#[test]
fn a_build_without_discovery_refuses_the_model_alone() {
    let source = wire::discovery::Source::Srv("_http._tcp.vllm.svc".into());
    let model = |endpoint| wire::Model {
        id: "m".into(),
        endpoints: vec![
            wire::Endpoint {
                url: "http://a".into(),
                ..Default::default()
            },
            endpoint,
        ],
        ..Default::default()
    };
    let spec = ModelSpec::try_from(model(discovered(of_source(source)))).unwrap();
    let resolved = spec
        .resolve(&PoolSettings::default(), Revision::new(1))
        .unwrap();
    let mut seen = wire::Model::from(&resolved);
    // Fields that are not known are passed over.
    seen.endpoints[1].discovery = None;
    let violations = crate::ResolvedModel::try_from(seen).unwrap_err();
    assert_eq!(fields(&violations), ["endpoints[1].url"]);
}

#[test]
fn an_empty_model_lacks_an_id_and_endpoints() {
    let violations = ModelSpec::try_from(wire::Model::default()).unwrap_err();
    assert_eq!(fields(&violations), ["id", "endpoints"]);
}

#[test]
fn a_pushed_model_must_be_resolved() {
    let model = wire::Model {
        id: "a".into(),
        endpoints: vec![wire::Endpoint {
            url: "http://a".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let config = wire::Config {
        budget: 150,
        models: vec![model],
    };
    let violations = Config::try_from(config).unwrap_err();
    assert_eq!(
        fields(&violations),
        [
            "models[0].resolved_pool.max_concurrent",
            "models[0].resolved_timeouts.connect"
        ]
    );
}

#[test]
fn a_probe_that_cannot_be_is_named_and_one_that_is_off_takes_no_byte() {
    let model = |probe| wire::Model {
        probe: Some(probe),
        ..wire::Model::default()
    };
    let bad = model(wire::EndpointProbe {
        mode: 7,
        served_name: "a b".to_owned(),
    });
    let violations = ModelSpec::try_from(bad).unwrap_err().to_string();
    assert!(violations.contains("probe.mode: 7"), "{violations}");
    assert!(
        violations.contains("probe.served_name: ' '"),
        "{violations}"
    );
    let spec = ModelSpec::new(
        ModelId::new("m").unwrap(),
        vec![],
        vec![Endpoint::new(
            EndpointId::new("a").unwrap(),
            EndpointUrl::parse("http://a").unwrap(),
        )],
    );
    assert_eq!(wire::Model::from(&spec.unwrap()).probe, None);
}

#[test]
fn streaming_that_cannot_be_is_named_and_none_takes_no_byte() {
    let bad = wire::Model {
        streaming: Some(wire::Streaming {
            usage: 7,
            keep_alive: Some(prost_types::Duration {
                seconds: 0,
                nanos: 1,
            }),
        }),
        ..wire::Model::default()
    };
    let violations = ModelSpec::try_from(bad).unwrap_err().to_string();
    assert!(violations.contains("streaming.usage: 7"), "{violations}");
    assert!(
        violations.contains("streaming.keep_alive: "),
        "{violations}"
    );
    let said = wire::Model {
        id: "m".to_owned(),
        endpoints: vec![wire::Endpoint {
            url: "http://a".to_owned(),
            ..wire::Endpoint::default()
        }],
        streaming: Some(wire::Streaming {
            usage: wire::StreamUsage::Pass.into(),
            keep_alive: None,
        }),
        ..wire::Model::default()
    };
    let spec = ModelSpec::try_from(said).unwrap();
    assert_eq!(wire::Model::from(&spec).streaming, None);
}
