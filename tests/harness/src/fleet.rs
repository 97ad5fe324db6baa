//! Several coordinators of one deployment behind a load balancer.

use crate::processes::{Process, Processes};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener as Listener, TcpStream};
use tokio::task::JoinHandle;

/// Identical coordinators behind a TCP load balancer at the deployment's public address.
pub struct Fleet {
    /// The deployment; its own coordinator does not run.
    pub deployment: Processes,
    coordinators: Vec<Process>,
    balancer: JoinHandle<()>,
}

impl Fleet {
    /// Starts so many coordinators with these lines in `[storage]` of server.toml, and this environment.
    pub async fn start(coordinators: usize, storage: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_with(coordinators, storage, environment, |text| text).await
    }

    /// The same with a change of server.toml.
    pub async fn start_with(
        coordinators: usize,
        storage: &str,
        environment: &[(&str, &str)],
        change: impl Fn(String) -> String,
    ) -> Self {
        let deployment = Processes::prepare(storage, environment);
        let file = deployment.path().join("deployment/server.toml");
        let text = std::fs::read_to_string(&file).expect("server.toml");
        std::fs::write(&file, change(text)).expect("server.toml");
        let public = deployment.listen();
        let ports: Vec<_> =
            (0..coordinators).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let addresses: Vec<_> = ports.iter().map(|port| port.local_addr().expect("an address")).collect();
        drop(ports);
        for (n, address) in addresses.iter().enumerate() {
            deployment.copy_coordinator(&name(n), *address);
        }
        let balancer =
            tokio::spawn(balance(Listener::bind(public).await.expect("the public port"), addresses));
        let mut fleet = Self { deployment, coordinators: vec![], balancer };
        for n in 0..coordinators {
            let coordinator = fleet.deployment.start_coordinator(&name(n));
            coordinator.wait_for("listening on");
            fleet.coordinators.push(coordinator);
        }
        fleet
    }

    /// The process of a coordinator.
    pub fn coordinator(&mut self, n: usize) -> &mut Process {
        &mut self.coordinators[n]
    }

    /// Starts a coordinator again that has ended, and waits until it listens.
    pub fn start_again(&mut self, n: usize) {
        // Its log goes on in the file: what it says from now on is to be waited for.
        let before = self.coordinators[n].log().matches("listening on").count();
        self.coordinators[n] = self.deployment.start_coordinator(&name(n));
        self.coordinators[n].wait_until(|log| log.matches("listening on").count() > before);
    }

    /// Which coordinators ever said this.
    pub fn who_said(&self, text: &str) -> Vec<usize> {
        let said = |(n, coordinator): (usize, &Process)| coordinator.log().contains(text).then_some(n);
        self.coordinators.iter().enumerate().filter_map(said).collect()
    }

    /// All their logs, for a test that failed.
    pub fn logs(&self) -> String {
        self.coordinators.iter().map(Process::log).collect::<Vec<_>>().join("\n----\n")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.balancer.abort();
    }
}

fn name(n: usize) -> String {
    format!("coordinator-{n}")
}

/// Each connection goes to the coordinator that has the fewest, and takes it.
async fn balance(public: Listener, coordinators: Vec<SocketAddr>) {
    let coordinators: Arc<Vec<_>> =
        Arc::new(coordinators.into_iter().map(|address| (address, AtomicUsize::new(0))).collect());
    while let Ok((mut client, _)) = public.accept().await {
        let coordinators = coordinators.clone();
        tokio::spawn(async move {
            let mut order: Vec<_> = coordinators.iter().collect();
            order.sort_by_key(|(_, connections)| connections.load(Ordering::SeqCst));
            for (address, connections) in order {
                connections.fetch_add(1, Ordering::SeqCst);
                let connected = TcpStream::connect(address).await;
                let is_connected = connected.is_ok();
                if let Ok(mut coordinator) = connected {
                    let _ = copy_bidirectional(&mut client, &mut coordinator).await;
                }
                connections.fetch_sub(1, Ordering::SeqCst);
                if is_connected {
                    return;
                }
            }
        });
    }
}
