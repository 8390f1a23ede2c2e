//! Workers and control planes restarted one after the other behind a balancer, under load with streams: nothing fails and
//! nothing is cut. The long run of this is `tests/zero-loss/forebay-rolling.sh`, see docs/bench/rolling.md.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use forebay_proto::wire;
use forebay_tests::{Balancer, Behind, Process, eventually, lasting_addr, model_at};
use serde_json::Value;

use crate::roles::{ANY, Control, FOREBAY};

/// A worker that can be restarted where it was.
struct Member {
    id: String,
    behind: Behind,
    data: String,
    process: Option<Process>,
}

impl Member {
    async fn start(&mut self, controls: &str) {
        let (gateway, admin) = (
            self.behind.gateway.to_string(),
            self.behind.admin.to_string(),
        );
        let args = [
            "worker",
            "--control",
            controls,
            "--listen",
            &gateway,
            "--admin-listen",
            &admin,
            "--worker-id",
            &self.id,
            "--data-dir",
            &self.data,
            "--drain-delay",
            "1s",
            "--grace",
            "20s",
            "--rebalance-every",
            "1s",
        ];
        let mut process = Process::start(FOREBAY, &args, &[]);
        process.printed("gateway   http://").await;
        self.process = Some(process);
    }

    /// In good order.
    async fn end(&mut self) {
        let process = self.process.take().unwrap();
        let (code, _, err) = process.terminate().await;
        assert_eq!(code, Some(0), "{err}");
        assert!(!err.contains("not finished"), "{err}");
    }

    async fn config(&self) -> Option<Value> {
        let answer = reqwest::get(format!("http://{}/config", self.behind.admin)).await;
        answer.ok()?.json().await.ok()
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// The load, as a process: ends with 0 when nothing was lost.
fn load(gateway: &str, upstreams: &str) -> Process {
    let url = format!("http://{gateway}/v1");
    let args = [
        "bench",
        "zero-loss",
        "--url",
        &url,
        "--upstream-listen",
        upstreams,
        "--model",
        "m",
        "--rate",
        "40",
        "--stream-tokens",
        "60",
        "--token-interval",
        "10ms",
        "--duration",
        "25s",
        "--warm-up",
        "500ms",
        "--output",
        "json",
    ];
    Process::start(FOREBAY, &args, &[])
}

/// One registry, copied: what is registered is the same at all three.
async fn stores(dir: &Path, upstream: SocketAddr) -> Vec<PathBuf> {
    let stores: Vec<_> = (0..3).map(|n| dir.join(format!("c{n}"))).collect();
    let first = Control::start(ANY, &stores[0], &[]).await;
    let mut model = model_at("m", &format!("http://{upstream}"));
    // A machine that is busy with other tests makes a long line; that is not what this is about.
    model.pool = Some(wire::Pool {
        queue: Some(wire::Queue {
            max_waiting: Some(10_000),
            ..wire::Queue::default()
        }),
        ..wire::Pool::default()
    });
    first.create(model).await;
    first.process.terminate().await;
    stores[1..].iter().for_each(|store| copy(&stores[0], store));
    stores
}

async fn members(dir: &Path, controls: &str) -> Vec<Member> {
    let mut members = Vec::new();
    for n in 0..3 {
        let id = format!("w{n}");
        let mut member = Member {
            behind: Behind {
                gateway: lasting_addr(),
                admin: lasting_addr(),
            },
            data: dir.join(&id).to_str().unwrap().to_owned(),
            id,
            process: None,
        };
        member.start(controls).await;
        members.push(member);
    }
    members
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_and_control_planes_are_restarted_one_by_one_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let upstreams = [lasting_addr(), lasting_addr()];
    let stores = stores(dir.path(), upstreams[0]).await;
    let addresses: Vec<_> = (0..3).map(|_| lasting_addr().to_string()).collect();
    let mut controls = Vec::new();
    for n in 0..3 {
        controls.push(Some(Control::start(&addresses[n], &stores[n], &[]).await));
    }
    let urls: Vec<_> = addresses.iter().map(|a| format!("http://{a}")).collect();
    let urls = urls.join(",");
    let mut members = members(dir.path(), &urls).await;
    let behind = members.iter().map(|member| member.behind).collect();
    let balancer = Balancer::start(ANY.parse().unwrap(), behind).await;
    let all_ready = async || {
        eventually("all workers are ready", async || {
            (balancer.ready().len() == 3).then_some(())
        })
        .await;
    };
    all_ready().await;

    let upstreams = upstreams.map(|upstream| upstream.to_string()).join(",");
    let load = load(&balancer.addr().to_string(), &upstreams);
    for n in 0..3 {
        members[n].end().await;
        members[n].start(&urls).await;
        all_ready().await;
        let control = controls[n].take().unwrap();
        // The last one is killed, not asked.
        match n {
            2 => control.process.kill().await,
            _ => drop(control.process.terminate().await),
        }
        for member in &members {
            eventually("it follows another one", async || {
                let control = member.config().await?["control"].clone();
                let gone = format!("http://{}", addresses[n]);
                (control["connected"] == true && control["url"] != gone).then_some(())
            })
            .await;
        }
        controls[n] = Some(Control::start(&addresses[n], &stores[n], &[]).await);
    }
    let (code, out, err) = load_end(load).await;
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(0), "{err}{report:#}");
    let measured = &report["measured"];
    assert_eq!(measured["ok"], measured["requests"], "{report:#}");
    assert!(measured["streams"].as_u64().unwrap() > 200, "{report:#}");
    assert_eq!(balancer.failed(), 0);
    for member in &mut members {
        member.end().await;
    }
}

async fn load_end(mut load: Process) -> (Option<i32>, String, String) {
    assert!(load.ends_within(Duration::from_secs(90)).await);
    load.end().await
}
