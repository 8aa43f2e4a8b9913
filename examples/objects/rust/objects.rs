//! Barque's objects from Rust over gRPC (tonic). The stubs are those of the package `proto`; outside this workspace,
//! generate them from `proto/barque/objects/v1/objects.proto` with `tonic-prost-build`.
//!
//! ```sh
//! cargo run -p control --example objects -- 127.0.0.1:6443 ca.crt client.crt client.key
//! ```
//!
//! With a token instead of a certificate, send `authorization: Bearer <token>` as metadata of each call.

#![expect(clippy::print_stdout, reason = "that is what it is for")]

use std::error::Error;
use std::time::Duration;

use proto::objects::objects_client::ObjectsClient;
use proto::objects::patch_request::Type as PatchType;
use proto::objects::watch_response::Type;
use proto::objects::{
    Body, CreateRequest, DeleteRequest, Encoding, GetRequest, ListRequest, PatchRequest, Resource,
    WatchRequest, WriteOptions,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

fn named(resource: &str, name: &str) -> Option<Resource> {
    let (resource, namespace, name) = (resource.to_owned(), "default".to_owned(), name.to_owned());
    Some(Resource { resource, namespace, name, ..Resource::default() })
}

fn greeting(text: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"greeting-rust"}},"data":{{"text":"{text}"}}}}"#
    )
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, ca, certificate, key] = &arguments[..] else {
        return Err("usage: objects ENDPOINT CA CERTIFICATE KEY".into());
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(std::fs::read(ca)?))
        .identity(Identity::from_pem(std::fs::read(certificate)?, std::fs::read(key)?));
    let endpoint = Channel::from_shared(format!("https://{endpoint}"))?.tls_config(tls)?;
    let mut objects = ObjectsClient::new(endpoint.timeout(Duration::from_secs(20)).connect().await?);

    let body = Some(Body { encoding: Encoding::Json.into(), content: greeting("hello").into() });
    let resource = named("configmaps", "");
    let made = objects.create(CreateRequest { resource, body, ..Default::default() }).await?.into_inner();
    let metadata = made.object.and_then(|object| object.metadata).unwrap_or_default();
    println!("created {} with uid {}", metadata.name, metadata.uid);

    // Whatever happens after this version is seen by the watch.
    let resource = named("configmaps", "greeting-rust");
    let resource_version = metadata.resource_version;
    let mut watch =
        objects.watch(WatchRequest { resource, resource_version, ..Default::default() }).await?.into_inner();

    // Server-side apply: we own what we send, and nothing else.
    let apply = PatchRequest {
        resource: named("configmaps", "greeting-rust"),
        r#type: PatchType::Apply.into(),
        patch: greeting("hey there").into(),
        force: true,
        options: Some(WriteOptions { field_manager: "example".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    objects.patch(apply).await?;
    let resource = named("configmaps", "greeting-rust");
    let got = objects.get(GetRequest { resource, ..Default::default() }).await?.into_inner();
    println!("got {}", String::from_utf8_lossy(&got.body));

    // A list is a stream: all as of one version, however many there are.
    let (resource, encoding) = (named("configmaps", ""), Encoding::None.into());
    let mut pages =
        objects.list(ListRequest { resource, encoding, ..Default::default() }).await?.into_inner();
    let mut count = 0;
    while let Some(page) = pages.message().await? {
        count += page.items.len();
    }
    println!("listed {count}");

    // Errors have gRPC's codes; the details hold the Kubernetes Status.
    let ghost = GetRequest { resource: named("pods", "ghost"), ..Default::default() };
    if let Err(error) = objects.get(ghost).await {
        println!("{:?}: {}", error.code(), error.message());
    }

    let resource = named("configmaps", "greeting-rust");
    objects.delete(DeleteRequest { resource, ..Default::default() }).await?;
    while let Some(event) = watch.message().await? {
        println!("watched {:?}", event.r#type());
        if event.r#type() == Type::Deleted {
            break;
        }
    }
    println!("deleted");
    Ok(())
}
