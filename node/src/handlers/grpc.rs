//! The question of a `grpc` probe: the health service of a gRPC server, in plain text.

use std::time::Duration;

use k8s_openapi::api::core::v1::GRPCAction;
use proto::health::HealthCheckRequest;
use proto::health::health_check_response::ServingStatus;
use proto::health::health_client::HealthClient;
use tonic::Code;
use tonic::transport::Endpoint;

use super::Target;

/// The largest answer that is taken: one small number.
const ANSWER_BYTES_MAX: usize = 4096;

/// Asks once, within `timeout` from the connection to the answer.
pub(super) async fn check(action: &GRPCAction, target: &Target, timeout: Duration) -> Result<(), String> {
    let port = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
    let address = std::net::SocketAddr::new(target.ip, port);
    let service = action.service.clone().unwrap_or_default();
    let seconds = timeout.as_secs();
    let end = tokio::time::Instant::now() + timeout;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent("kube-probe/1.33"))
        .map_err(|error| format!("error: failed to connect service at {address:?}: {error}"))?;
    let channel = match tokio::time::timeout_at(end, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            let error = innermost(&error);
            return Err(format!("error: failed to connect service at \"{address}\": {error}"));
        }
        Err(_) => {
            return Err(format!("timeout: failed to connect service \"{address}\" within {seconds}s"));
        }
    };
    let mut client = HealthClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let asked = tokio::time::timeout_at(end, client.check(HealthCheckRequest { service })).await;
    let status = match asked {
        Ok(Ok(answer)) => answer.into_inner().status(),
        Ok(Err(status)) if status.code() == Code::Unimplemented => {
            return Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            ));
        }
        Ok(Err(status)) => return Err(format!("error: health rpc probe failed: {}", status.message())),
        Err(_) => return Err(format!("timeout: health rpc did not complete within {seconds}s")),
    };
    match status {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("service unhealthy (responded with \"{}\")", other.as_str_name())),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}
