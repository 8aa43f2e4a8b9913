//! HTTPS servers that stand for webhooks: each answers with what a function makes of the review it is sent.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};

/// A webhook that listens.
pub(crate) struct Webhook {
    pub(crate) port: u16,
    /// For `caBundle`.
    pub(crate) ca: String,
}

impl Webhook {
    /// A webhook on the loopback address and under these names.
    pub(crate) async fn serve(
        names: &[&str],
        answer: impl Fn(&str, Value) -> Value + Send + Sync + 'static,
    ) -> Self {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let (tls, ca) = certificate(names, loopback);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind((loopback, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(|request: http::Request<_>| {
                        let answer = answer.clone();
                        async move { respond(request, answer.as_ref()).await }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { port, ca }
    }

    /// A `clientConfig` that names its address.
    pub(crate) fn by_url(&self) -> Value {
        json!({"url": format!("https://127.0.0.1:{}/hook", self.port), "caBundle": self.ca})
    }

    /// One that names a Service in the namespace `default`.
    pub(crate) fn by_service(&self, name: &str) -> Value {
        json!({"service": {"namespace": "default", "name": name, "path": "/hook"}, "caBundle": self.ca})
    }
}

/// What a server shows under these names, and how it is trusted.
fn certificate(names: &[&str], address: IpAddr) -> (rustls::ServerConfig, String) {
    let names = names.iter().map(|name| (*name).to_owned()).chain([address.to_string()]);
    let own = rcgen::generate_simple_self_signed(names.collect::<Vec<_>>()).unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    (tls, STANDARD.encode(own.cert.pem()))
}

async fn respond(
    request: http::Request<hyper::body::Incoming>,
    answer: &(dyn Fn(&str, Value) -> Value + Send + Sync),
) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let answer = answer(&path, serde_json::from_slice(&body).unwrap_or_default());
    Ok(http::Response::new(Full::new(Bytes::from(answer.to_string()))))
}

/// What answers admission reviews: given the request, the response but for its `uid`.
pub(crate) fn admission(decide: impl Fn(&Value) -> Value) -> impl Fn(&str, Value) -> Value {
    move |_, review| {
        let mut response = decide(&review["request"]);
        response["uid"] = review["request"]["uid"].clone();
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
    }
}
