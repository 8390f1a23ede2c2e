//! An etcd that lets in only who shows a certificate and knows a password.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use forebay_control::{BoundControl, ControlSettings, EtcdAccess, ReplicaSettings, SecretPaths};
use forebay_proto::{PoolSettings, wire};
use forebay_tests::{Authority, Process, eventually, lasting_addr, model_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use wire::model_registry_client::ModelRegistryClient;

use crate::turn;

struct Guarded {
    dir: tempfile::TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Process>,
}

impl Guarded {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("etcd");
        for (name, text) in [
            ("ca.pem", authority.pem()),
            ("stranger.pem", Authority::new("stranger").pem()),
            ("right", "right\n".to_owned()),
            ("wrong", "wrong\n".to_owned()),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let (certificate, key) = authority.sign(&["localhost", "127.0.0.1"]);
        fs::write(dir.path().join("cert.pem"), certificate).unwrap();
        fs::write(dir.path().join("key.pem"), key).unwrap();
        let mut guarded = Self {
            dir,
            client: lasting_addr(),
            peer: lasting_addr(),
            process: None,
        };
        guarded.restart().await;
        for command in [
            &["user", "add", "root:root"][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "forebay"],
            &[
                "role",
                "grant-permission",
                "forebay",
                "--prefix=true",
                "readwrite",
                "/mine/",
            ],
            &["user", "add", "ada:right"],
            &["user", "grant-role", "ada", "forebay"],
            &["auth", "enable"],
        ] {
            assert!(guarded.ctl(command).await, "{command:?}");
        }
        guarded
    }

    /// Another authority, another certificate, another password.
    async fn renew(&self) {
        let authority = Authority::new("another");
        let (certificate, key) = authority.sign(&["localhost", "127.0.0.1"]);
        let root = ["--user", "root:root"];
        for command in [
            &["user", "delete", "ada"][..],
            &["user", "add", "ada:other"],
            &["user", "grant-role", "ada", "forebay"],
        ] {
            let command = [&root[..], command].concat();
            assert!(self.ctl(&command).await, "{command:?}");
        }
        for (name, text) in [
            ("ca.pem", authority.pem()),
            ("cert.pem", certificate),
            ("key.pem", key),
            ("right", "other\n".to_owned()),
        ] {
            fs::write(self.dir.path().join(name), text).unwrap();
        }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    async fn restart(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill().await;
        }
        let client = format!("https://localhost:{}", self.client.port());
        let peer = format!("http://{}", self.peer);
        let cluster = format!("one={peer}");
        let (data, ca) = (self.file("data"), self.file("ca.pem"));
        let (cert, key) = (self.file("cert.pem"), self.file("key.pem"));
        let listen = format!("https://{}", self.client);
        let args = [
            "--name",
            "one",
            "--data-dir",
            &data,
            "--log-level",
            "error",
            "--logger",
            "zap",
            "--listen-client-urls",
            &listen,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &cluster,
            "--client-cert-auth",
            "--trusted-ca-file",
            &ca,
            "--cert-file",
            &cert,
            "--key-file",
            &key,
        ];
        self.process = Some(Process::start("etcd", &args, &[]));
        eventually("etcd answers", async || {
            let said = self.ctl_says(&["endpoint", "health"]).await;
            // Health is not asked as root once names are asked for, and then refused by name.
            (said.contains("is healthy") || said.contains("user name is empty")).then_some(())
        })
        .await;
    }

    async fn ctl(&self, command: &[&str]) -> bool {
        self.ctl_process(command).end().await.0 == Some(0)
    }

    async fn ctl_says(&self, command: &[&str]) -> String {
        let (_, out, err) = self.ctl_process(command).end().await;
        format!("{out}{err}")
    }

    fn ctl_process(&self, command: &[&str]) -> Process {
        let endpoint = format!("https://localhost:{}", self.client.port());
        let (ca, cert, key) = (
            self.file("ca.pem"),
            self.file("cert.pem"),
            self.file("key.pem"),
        );
        let with = [
            "--endpoints",
            &endpoint,
            "--cacert",
            &ca,
            "--cert",
            &cert,
            "--key",
            &key,
        ];
        Process::start(
            "etcdctl",
            &[&with[..], command].concat(),
            &[("ETCDCTL_API", "3")],
        )
    }

    fn access(&self, ca: &str, password: &str) -> EtcdAccess {
        let path = |name: &str| Some(self.dir.path().join(name));
        EtcdAccess {
            ca_file: path(ca),
            cert_file: path("cert.pem"),
            key_file: path("key.pem"),
            user: Some("ada".to_owned()),
            password_file: path(password),
            insecure: false,
        }
    }
}

async fn bind(
    guarded: &Guarded,
    prefix: &str,
    access: EtcdAccess,
    dir: &Path,
) -> Result<BoundControl, String> {
    for (name, digit) in [("pepper", "1"), ("seal.key", "2")] {
        fs::write(dir.join(name), digit.repeat(64)).unwrap();
    }
    let store = format!("etcds://localhost:{}/{prefix}", guarded.client.port());
    let settings = ControlSettings {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        exposure: forebay_control::Exposure::LoopbackOnly,
        store: store.parse().unwrap(),
        fresh_settings: PoolSettings::default(),
        recovery: forebay_control::Recovery::Automatic,
        stream_age: None,
        rings: None,
        probe_allow: Vec::new(),
        leases: forebay_control::LeaseSettings::default(),
        secrets: SecretPaths {
            pepper: Some(dir.join("pepper")),
            seal_key: Some(dir.join("seal.key")),
        },
        replica: ReplicaSettings { name: None, access },
    };
    BoundControl::bind(settings)
        .await
        .map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_passwords_are_asked_for_and_tokens_are_had_anew() {
    let _turn = turn().await;
    let mut guarded = Guarded::start().await;
    let dir = tempfile::tempdir().unwrap();
    let access = guarded.access("ca.pem", "right");
    let other = bind(&guarded, "others", access.clone(), dir.path())
        .await
        .unwrap_err();
    assert!(other.contains("permission denied"), "{other}");
    let bound = bind(&guarded, "mine", access, dir.path()).await.unwrap();
    let url = format!("http://{}", bound.addr());
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    let stopping = stop.clone();
    tasks.spawn(async move { bound.run(stopping).await.unwrap() });
    let endpoint = Endpoint::from_shared(url)
        .unwrap()
        .timeout(Duration::from_secs(20));
    let mut registry = ModelRegistryClient::new(endpoint.connect_lazy());
    let create = |id: &str| wire::CreateModelRequest {
        model: Some(model_at(id, "http://127.0.0.1:9")),
        ..wire::CreateModelRequest::default()
    };
    registry.create_model(create("a")).await.unwrap();
    // An etcd that was started again knows no token of before.
    guarded.restart().await;
    let written = registry
        .create_model(create("b"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(written.revision, 3);
    // What is in the files is read anew for a connection and for a token that are made anew.
    guarded.renew().await;
    guarded.restart().await;
    eventually("it is let in with the new ones", async || {
        registry.clone().create_model(create("c")).await.ok()
    })
    .await;
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}
