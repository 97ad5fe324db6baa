//! Whether the coordinator of a deployment answers on this machine: what probes of service managers and `doctor` ask.

use crate::config::ServerConfig;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// What was found at the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// A coordinator of this deployment that serves.
    Serving,
    /// A coordinator of this deployment that answers and does not serve: it does not reach its database.
    NotServing,
    /// Nobody listens: it is starting, stands by until another one ends, or does not run.
    NobodyThere,
    /// Somebody listens, and is not a coordinator of this deployment that answers. Why.
    Wrong(String),
}

/// Asks the coordinator of this configuration, on this machine, over TLS as everybody does.
pub async fn ask(config: &ServerConfig, patience: Duration) -> Standing {
    let address = here(config.listen);
    match tokio::time::timeout(patience, tokio::net::TcpStream::connect(address)).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => return Standing::NobodyThere,
        Ok(Err(e)) => return Standing::Wrong(format!("cannot connect to {address}: {e}")),
        Err(_) => return Standing::Wrong(format!("{address} does not answer")),
    }
    match tokio::time::timeout(patience, check(config, address)).await {
        Ok(Ok(ServingStatus::Serving)) => Standing::Serving,
        Ok(Ok(_)) => Standing::NotServing,
        Ok(Err(why)) => Standing::Wrong(why),
        Err(_) => {
            Standing::Wrong(format!("who listens on {address} says nothing within {} s", patience.as_secs()))
        }
    }
}

async fn check(config: &ServerConfig, address: SocketAddr) -> Result<ServingStatus, String> {
    let ca = config.pki.join("ca.crt");
    let ca = std::fs::read(&ca).map_err(|e| format!("{}: {e}", ca.display()))?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .domain_name(host_of(&config.public_url).unwrap_or_default());
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(|e| e.to_string())?;
    let channel = endpoint.tls_config(tls).map_err(|e| e.to_string())?.connect().await.map_err(|e| {
        let cause = std::error::Error::source(&e).map(|cause| format!(" ({cause})")).unwrap_or_default();
        format!("who listens on {address} is not a coordinator of this deployment: {e}{cause}")
    })?;
    let request = HealthCheckRequest { service: String::new() };
    let answer = HealthClient::new(channel).check(request).await.map_err(|e| e.message().to_owned())?;
    Ok(answer.into_inner().status())
}

/// Where a listener on every address is reached from here.
fn here(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The host in `https://HOST:PORT`, without brackets.
pub(crate) fn host_of(url: &str) -> Option<String> {
    let authority = url.strip_prefix("https://")?.split('/').next()?;
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?.0,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    (!host.is_empty()).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_a_certificate_is_for() {
        for (url, host) in [
            ("https://fl.example.org:7443", Some("fl.example.org")),
            ("https://fl.example.org", Some("fl.example.org")),
            ("https://[::1]:7443", Some("::1")),
            ("https://10.0.0.1:7443/", Some("10.0.0.1")),
            ("https://:7443", None),
            ("http://fl.example.org:7443", None),
        ] {
            assert_eq!(host_of(url).as_deref(), host, "{url}");
        }
    }

    #[test]
    fn who_listens_everywhere_is_reached_here() {
        let of = |text: &str| here(text.parse().unwrap()).to_string();
        assert_eq!(of("0.0.0.0:7443"), "127.0.0.1:7443");
        assert_eq!(of("[::]:7443"), "[::1]:7443");
        assert_eq!(of("10.1.2.3:7443"), "10.1.2.3:7443");
    }
}
