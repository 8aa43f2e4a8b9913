//! The service `barque.objects.v1.Objects`: the objects of the API over gRPC.
//!
//! ```text
//!   call ─► request (the HTTP request that it stands for) ─► [rest] ─► answer (messages) or error (Status)
//! ```
//!
//! Owns the translation and nothing else: a call becomes the request that a client of REST would have sent, and
//! takes that request's way through identity, rights, bounds, admission, registry, metrics. Promises that both
//! doors therefore answer alike; that deadlines are heeded; that a stream is read no faster than its client reads,
//! and ends with the client or the replica. Does not know kinds, rules or rights.

mod answer;
mod error;
mod exec;
mod list;
mod request;
mod watch;

use std::sync::Arc;

use futures_util::stream::BoxStream;
use http::{Method, Response};
use http_body_util::BodyExt;
use proto::objects::objects_server::{Objects as Service, ObjectsServer};
use proto::objects::{
    BindRequest, BindResponse, CreateRequest, DeleteCollectionRequest, DeleteRequest, ExecRequest,
    ExecResponse, GetRequest, ListRequest, ListResponse, Object, PatchRequest, UpdateRequest, WatchRequest,
    WatchResponse, WriteResponse,
};
use serde_json::json;
use tonic::{Request, Status, Streaming};

use self::request::{Asked, Caller};
use crate::rest::{BODY_BYTES_MAX, Body, Handover, Rest};

/// Largest message of a client: a body as large as REST takes, and what stands around it.
const MESSAGE_BYTES_MAX: usize = BODY_BYTES_MAX + 64 * 1024;

/// The service; clones share everything.
#[derive(Debug, Clone)]
pub struct Objects {
    rest: Arc<Rest>,
}

type Answered<T> = Result<tonic::Response<T>, Status>;

impl Objects {
    /// The service over a replica's API.
    pub fn new(rest: Arc<Rest>) -> Self {
        Self { rest }
    }

    /// What is mounted.
    pub fn service(self) -> ObjectsServer<Self> {
        ObjectsServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Has a request answered; an error of REST is an error here.
    async fn ask(&self, caller: &Caller, asked: &Asked) -> Result<Response<Body>, Status> {
        self.ask_for(caller, asked, None).await
    }

    async fn ask_for(
        &self,
        caller: &Caller,
        asked: &Asked,
        handover: Option<Handover>,
    ) -> Result<Response<Body>, Status> {
        let mut request = asked.http(caller)?;
        if let Some(handover) = handover {
            request.extensions_mut().insert(handover);
        }
        let response = caller.in_time(self.rest.handle(request)).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = caller.in_time(response.into_body().collect()).await?;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(error::of_answer(code, &body))
    }

    /// Has a write made.
    async fn write(&self, caller: &Caller, asked: &Asked) -> Answered<WriteResponse> {
        let response = self.ask(caller, asked).await?;
        let created = response.status() == http::StatusCode::CREATED;
        let warnings = answer::warnings(response.headers());
        let object = answer::object(response, asked.encoding).await?;
        Ok(tonic::Response::new(WriteResponse { object: Some(object), warnings, created }))
    }
}

#[tonic::async_trait]
impl Service for Objects {
    type ListStream = BoxStream<'static, Result<ListResponse, Status>>;
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;
    type DeleteCollectionStream = BoxStream<'static, Result<ListResponse, Status>>;
    type ExecStream = BoxStream<'static, Result<ExecResponse, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Answered<Object> {
        let caller = Caller::of(&request);
        let GetRequest { resource, resource_version, encoding } = request.into_inner();
        let mut asked = Asked::one(Method::GET, resource)?.answered_in(encoding)?;
        asked.add("resourceVersion", &resource_version);
        let response = self.ask(&caller, &asked).await?;
        Ok(tonic::Response::new(answer::object(response, asked.encoding).await?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Answered<Self::ListStream> {
        let caller = Caller::of(&request);
        let pages = list::Pages::begin(self.clone(), caller, request.into_inner()).await?;
        Ok(tonic::Response::new(pages.stream()))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Answered<Self::WatchStream> {
        let caller = Caller::of(&request);
        let asked = watch::asked(request.into_inner())?;
        let response = self.ask(&caller, &asked).await?;
        Ok(tonic::Response::new(watch::stream(response.into_body(), caller, asked.encoding)))
    }

    async fn create(&self, request: Request<CreateRequest>) -> Answered<WriteResponse> {
        let caller = Caller::of(&request);
        let CreateRequest { resource, body, options, encoding } = request.into_inner();
        let asked = Asked::any(Method::POST, resource)?.answered_in(encoding)?;
        let asked = asked.with_options(options.unwrap_or_default())?.with_body(body)?;
        self.write(&caller, &asked).await
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answered<WriteResponse> {
        let caller = Caller::of(&request);
        let UpdateRequest { resource, body, options, encoding } = request.into_inner();
        let asked = Asked::one(Method::PUT, resource)?.answered_in(encoding)?;
        let asked = asked.with_options(options.unwrap_or_default())?.with_body(body)?;
        self.write(&caller, &asked).await
    }

    async fn patch(&self, request: Request<PatchRequest>) -> Answered<WriteResponse> {
        let caller = Caller::of(&request);
        let PatchRequest { resource, r#type, patch, force, options, encoding } = request.into_inner();
        let mut asked = Asked::one(Method::PATCH, resource)?.answered_in(encoding)?;
        asked = asked.with_options(options.unwrap_or_default())?.with_patch(r#type, patch)?;
        if force {
            asked.add("force", "true");
        }
        self.write(&caller, &asked).await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answered<Object> {
        let caller = Caller::of(&request);
        let DeleteRequest { resource, options, encoding } = request.into_inner();
        let asked = Asked::one(Method::DELETE, resource)?.answered_in(encoding)?;
        let asked = asked.with_delete_options(options.unwrap_or_default())?;
        let response = self.ask(&caller, &asked).await?;
        Ok(tonic::Response::new(answer::object(response, asked.encoding).await?))
    }

    async fn delete_collection(
        &self,
        request: Request<DeleteCollectionRequest>,
    ) -> Answered<Self::DeleteCollectionStream> {
        let caller = Caller::of(&request);
        let DeleteCollectionRequest { resource, label_selector, field_selector, options, encoding } =
            request.into_inner();
        let mut asked = Asked::all(Method::DELETE, resource)?.answered_in(encoding)?;
        asked.add("labelSelector", &label_selector);
        asked.add("fieldSelector", &field_selector);
        let asked = asked.with_delete_options(options.unwrap_or_default())?;
        let response = self.ask(&caller, &asked).await?;
        let page = answer::page(response, asked.encoding).await?;
        Ok(tonic::Response::new(list::messages(page)))
    }

    async fn bind(&self, request: Request<BindRequest>) -> Answered<BindResponse> {
        let caller = Caller::of(&request);
        let BindRequest { namespace, pod, pod_uid, node, dry_run } = request.into_inner();
        let mut asked = Asked::pod(Method::POST, namespace, pod.clone(), "binding")?;
        if dry_run {
            asked.add("dryRun", "All");
        }
        let mut metadata = json!({"name": pod});
        if !pod_uid.is_empty() {
            metadata["uid"] = pod_uid.into();
        }
        let target = json!({"apiVersion": "v1", "kind": "Node", "name": node});
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target});
        self.ask(&caller, &asked.with_json(&binding)).await?;
        Ok(tonic::Response::new(BindResponse {}))
    }

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Answered<Self::ExecStream> {
        let caller = Caller::of(&request);
        let mut incoming = request.into_inner();
        let asked = exec::asked(caller.in_time(incoming.message()).await??)?;
        let (handover, mut handed) = Handover::new();
        self.ask_for(&caller, &asked, Some(handover)).await?;
        let open = handed.recv().await;
        let open =
            open.ok_or_else(|| Status::internal("the stream was not opened; see this replica's log"))?;
        Ok(tonic::Response::new(exec::stream(incoming, open, caller)))
    }
}
