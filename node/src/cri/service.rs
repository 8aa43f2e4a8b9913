//! The runtime service: each call is one of [`Core`]'s, on a thread that may block.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use proto::cri::runtime_service_server::RuntimeService;
use proto::cri::{self, CgroupDriver};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::state::{Core, internal};
use super::streams::{Streams, Ticket};
use crate::exec::{self, Limits};
use crate::network::Topology;
use crate::pods::containers::ContainerError;

/// What ExecSync gives back at most of a program's words.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// "No limit", for ExecSync.
const EXEC_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// The runtime service of a CRI server.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) core: Arc<Core>,
    pub(super) streams: Arc<Streams>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    async fn call<T, F>(&self, work: F) -> Answer<T>
    where
        T: Send + 'static,
        F: FnOnce(&Core) -> Result<T, Status> + Send + 'static,
    {
        self.core.blocking(work).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>>;

    async fn version(&self, _request: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(cri::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "barque".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        self.call(move |core| {
            core.run_sandbox(request).map(|pod_sandbox_id| cri::RunPodSandboxResponse { pod_sandbox_id })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.call(move |core| core.stop_sandbox(&id).map(|()| cri::StopPodSandboxResponse {})).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.call(move |core| core.remove_sandbox(&id).map(|()| cri::RemovePodSandboxResponse {})).await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.call(move |core| {
            let record = core.sandbox_records.get(&id)?;
            let all = core.container_records.all();
            let own = all.iter().filter(|container| container.sandbox == record.id);
            Ok(cri::PodSandboxStatusResponse {
                status: Some(core.sandbox_status(&record)?),
                info: Default::default(),
                containers_statuses: own.map(|c| core.container_status(c)).collect::<Result<_, _>>()?,
                timestamp: super::state::now(),
            })
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter;
        self.call(move |core| Ok(cri::ListPodSandboxResponse { items: core.list_sandboxes(filter)? })).await
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        self.call(move |core| {
            core.create_container(request).map(|container_id| cri::CreateContainerResponse { container_id })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let id = self.core.blocking(move |core| core.start_container(&id)).await?;
        self.core.watch(id);
        Ok(Response::new(cri::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        // A client that hangs up must not leave a container half asked to end.
        let core = Arc::clone(&self.core);
        let stopping =
            tokio::spawn(async move { core.stop_container(&request.container_id, request.timeout).await });
        stopping.await.expect("stopping does not panic")?;
        Ok(Response::new(cri::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.call(move |core| core.remove_container(&id).map(|()| cri::RemoveContainerResponse {})).await
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let filter = request.into_inner().filter;
        self.call(move |core| Ok(cri::ListContainersResponse { containers: core.list_containers(filter)? }))
            .await
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        self.call(move |core| {
            let status = core.container_status(&core.container_records.get(&id)?)?;
            Ok(cri::ContainerStatusResponse { status: Some(status), info: Default::default() })
        })
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        self.call(move |core| {
            core.update_container(request).map(|()| cri::UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        self.call(move |core| core.reopen_log(&id).map(|()| cri::ReopenContainerLogResponse {})).await
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        let request = request.into_inner();
        let id = self.core.blocking(move |core| core.running(&request.container_id)).await?;
        let timeout = match request.timeout {
            0 => EXEC_TIME_MAX,
            seconds if seconds > 0 => Duration::from_secs(seconds as u64).min(EXEC_TIME_MAX),
            _ => return Err(Status::invalid_argument("timeout cannot be negative")),
        };
        if request.cmd.is_empty() {
            return Err(Status::invalid_argument("cmd is missing"));
        }
        let limits = Limits { timeout, output_bytes_max: OUTPUT_BYTES_MAX };
        let outcome = exec::run(&self.core.containers, &id, request.cmd, limits).await.map_err(refused)?;
        if outcome.timed_out {
            let message = format!("the command did not end within {} s and was killed", timeout.as_secs());
            return Err(Status::deadline_exceeded(message));
        }
        let (stdout, stderr) = outcome.split();
        Ok(Response::new(cri::ExecSyncResponse {
            stdout: stdout.into(),
            stderr: stderr.into(),
            exit_code: outcome.exit_code,
        }))
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        let request = request.into_inner();
        if request.cmd.is_empty() {
            return Err(Status::invalid_argument("cmd is missing"));
        }
        let ends = ends((request.stdin, request.stdout, request.stderr, request.tty))?;
        let id = request.container_id;
        let id = self.core.blocking(move |core| core.running(&id)).await?;
        let url = self.streams.ticket(Ticket::Exec { id, command: request.cmd, ends })?;
        Ok(Response::new(cri::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        let request = request.into_inner();
        let ends = ends((request.stdin, request.stdout, request.stderr, request.tty))?;
        let id = request.container_id;
        let id = self.core.blocking(move |core| core.running(&id)).await?;
        let url = self.streams.ticket(Ticket::Attach { id, ends })?;
        Ok(Response::new(cri::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Answer<cri::PortForwardResponse> {
        let request = request.into_inner();
        if request.port.iter().any(|port| !(1..=65535).contains(port)) {
            return Err(Status::invalid_argument("a port is between 1 and 65535"));
        }
        let id = request.pod_sandbox_id;
        let record = self.core.blocking(move |core| {
            let record = core.sandbox_records.get(&id)?;
            match core.is_ready(&record)? {
                true => Ok(record),
                false => Err(Status::failed_precondition(format!("sandbox {} is not ready", record.id))),
            }
        });
        let record = record.await?;
        let url = self.streams.ticket(Ticket::PortForward { sandbox: record.id, netns: record.netns })?;
        Ok(Response::new(cri::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        self.call(move |core| {
            let stats = core.container_stats(&core.container_records.get(&id)?)?;
            Ok(cri::ContainerStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let filter = request.into_inner().filter;
        self.call(move |core| {
            Ok(cri::ListContainerStatsResponse { stats: core.list_container_stats(filter)? })
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.call(move |core| {
            let stats = core.sandbox_stats(&core.sandbox_records.get(&id)?)?;
            Ok(cri::PodSandboxStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter;
        self.call(move |core| {
            Ok(cri::ListPodSandboxStatsResponse { stats: core.list_sandbox_stats(filter)? })
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        let pod_cidr = network.map(|network| network.pod_cidr).unwrap_or_default();
        self.call(move |core| {
            // What the server's own configuration says comes first.
            if !pod_cidr.is_empty() && core.config.pod_cidr.is_empty() {
                if let Some(problem) = crate::network::check_range(&pod_cidr) {
                    return Err(Status::invalid_argument(format!("pod_cidr {problem}")));
                }
                core.network.want(Topology { pod_cidr, ..Topology::default() }).map_err(internal)?;
            }
            Ok(cri::UpdateRuntimeConfigResponse {})
        })
        .await
    }

    async fn status(&self, _request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let ready = self.core.network.pod_cidr().is_some();
        let condition = |kind: &str, status, reason: &str, message: &str| cri::RuntimeCondition {
            r#type: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let network = match ready {
            true => condition("NetworkReady", true, "", ""),
            false => condition(
                "NetworkReady",
                false,
                "NetworkPluginNotReady",
                "no range of addresses is known: set podCidr, or let a kubelet tell it",
            ),
        };
        let conditions = vec![condition("RuntimeReady", true, "", ""), network];
        Ok(Response::new(cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions }),
            info: Default::default(),
            runtime_handlers: vec![cri::RuntimeHandler {
                name: String::new(),
                features: Some(cri::RuntimeHandlerFeatures::default()),
            }],
            features: Some(cri::RuntimeFeatures::default()),
        }))
    }

    async fn checkpoint_container(
        &self,
        _request: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        Err(Status::unimplemented("this runtime does not write containers' memory down"))
    }

    async fn get_container_events(
        &self,
        _request: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let core = Arc::clone(&self.core);
        let events = BroadcastStream::new(self.core.events.subscribe());
        let events = events.then(move |happened| {
            let core = Arc::clone(&core);
            async move {
                match happened {
                    Ok(happened) => core.blocking(move |core| Ok(core.event(happened))).await,
                    Err(missed) => {
                        Err(Status::data_loss(format!("{missed}: list what is there and listen again")))
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        Err(Status::unimplemented("this runtime has no metrics besides its stats"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        Err(Status::unimplemented("this runtime has no metrics besides its stats"))
    }

    async fn runtime_config(
        &self,
        _request: Request<cri::RuntimeConfigRequest>,
    ) -> Answer<cri::RuntimeConfigResponse> {
        let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(cri::RuntimeConfigResponse { linux: Some(linux) }))
    }
}

/// Which ends of a process are wanted.
fn ends((stdin, stdout, stderr, tty): (bool, bool, bool, bool)) -> Result<streams::StreamEnds, Status> {
    if tty && stderr {
        return Err(Status::invalid_argument("with tty there is no stderr: its output is in stdout"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid_argument("one of stdin, stdout and stderr must be asked for"));
    }
    Ok(streams::StreamEnds { stdin, stdout, stderr, tty })
}

fn refused(error: ContainerError) -> Status {
    match error {
        ContainerError::Gone(message) => Status::failed_precondition(message),
        ContainerError::Start { message, .. } => Status::unknown(message),
        ContainerError::Refused(message) => Status::internal(message),
    }
}
