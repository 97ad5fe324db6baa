//! A network that swallows everything for a while, without a word to either side: network namespaces, where the machine allows them.

use crate::fleet::{TRAINERS, job, trainer, undisturbed};
use std::process::Command;
use std::time::Duration;
use undertone_harness::{Process, Processes, binary};
use undertone_round::event::{JobEvent, Outcome};

/// A namespace with a line to this machine. It goes with the value.
struct Elsewhere {
    name: String,
    /// This machine's end of the line.
    line: String,
    here: String,
}

fn ip(arguments: &str) -> bool {
    let done = Command::new("ip").args(arguments.split(' ')).output();
    done.is_ok_and(|output| output.status.success())
}

impl Elsewhere {
    /// `None` where this user or this machine cannot.
    fn new() -> Option<Self> {
        let id = std::process::id();
        let net = 1 + id % 250;
        let elsewhere = Self {
            name: format!("undertone-{id}"),
            line: format!("ut{id}"),
            here: format!("10.213.{net}.1"),
        };
        let (name, line, there) = (&elsewhere.name, &elsewhere.line, format!("10.213.{net}.2"));
        let steps = [
            format!("netns add {name}"),
            format!("link add {line} type veth peer name {line}e"),
            format!("link set {line}e netns {name}"),
            format!("addr add {}/24 dev {line}", elsewhere.here),
            format!("link set {line} up"),
            format!("-n {name} addr add {there}/24 dev {line}e"),
            format!("-n {name} link set {line}e up"),
            format!("-n {name} link set lo up"),
        ];
        steps.iter().all(|step| ip(step)).then_some(elsewhere)
    }

    /// Nothing comes through, and nobody is told.
    fn cut(&self) {
        // The far end: its packets go nowhere, and connections here only wait.
        assert!(ip(&format!("-n {} link set {}e down", self.name, self.line)));
    }

    fn mend(&self) {
        assert!(ip(&format!("-n {} link set {}e up", self.name, self.line)));
    }

    fn run_client(&self, d: &Processes, name: &str) -> Process {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(binary("undertone-client"));
        command.arg("run").arg("--dir").arg(d.client_folder(name));
        Process::start(command, d.client_folder(name).join("log"))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
        ip(&format!("link del {}", self.line));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_falls_silent_costs_time_and_nothing_else() {
    const ROUNDS: u32 = 3;
    let Some(elsewhere) = Elsewhere::new() else {
        println!("skipped: network namespaces need root and `ip`");
        return;
    };
    let expected = undisturbed(ROUNDS).await;
    let d = Processes::start_at(&elsewhere.here);
    let mut clients: Vec<Process> =
        TRAINERS.iter().map(|(name, rows, shift)| trainer(&d, name, *rows, *shift)).collect();
    // The last one lives elsewhere.
    drop(clients.pop());
    let far = elsewhere.run_client(&d, TRAINERS[TRAINERS.len() - 1].0);
    let patient = job(ROUNDS).replace("\"60s\"", "\"600s\"").replace("\"40s\"", "\"300s\"");
    let mut operator = d.operator().await;
    let id = operator.submit(&patient).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Released { .. })).await;
    // Shorter than anybody notices, and longer than a session is kept without a word.
    for silent in [5, 50] {
        elsewhere.cut();
        tokio::time::sleep(Duration::from_secs(silent)).await;
        elsewhere.mend();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let events = d.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}\n{}", events.text(), far.log());
    assert!(!events.text().contains("aborted"), "{}", events.text());
    assert_eq!(d.operator().await.model(&id).await, expected, "not the bits of a run without faults");
}
