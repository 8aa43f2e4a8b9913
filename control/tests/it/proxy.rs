//! `proxy` of pods, services and nodes, through nodes that connect to real sockets of this machine.

use std::process::Stdio;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{Answer, Client, PODS, pod, request};
use crate::kubectl::with_each;
use crate::server::TestServer;

/// A web server that says what it was asked; it knows redirects, a chat, and a download without length.
async fn web() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

async fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut lines, mut length) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_owned();
            if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let path = lines[0].split(' ').nth(1).unwrap_or_default();
        let answer = match path {
            "/away" => "HTTP/1.1 302 Found\r\nLocation: /login?x=1\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "/teapot" => "HTTP/1.1 418 I'm a teapot\r\nAccess-Control-Allow-Origin: *\r\nX-Own: 1\r\n\
                          Content-Length: 6\r\n\r\nshort\n"
                .to_owned(),
            "/chat" => {
                stream
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                    .await?;
                let mut bytes = [0; 64];
                loop {
                    let count = stream.read(&mut bytes).await?;
                    if count == 0 {
                        return Ok(());
                    }
                    bytes[..count].make_ascii_uppercase();
                    stream.write_all(&bytes[..count]).await?;
                }
            }
            _ => {
                let text = format!("{}\n\n{}", lines.join("\n"), String::from_utf8_lossy(&body));
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}",
                    text.len()
                )
            }
        };
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// A pod on a node, with an address, whose first port is this one.
async fn running_pod(client: &Client, name: &str, port: u16) {
    let mut made = pod(name);
    made["spec"]["containers"][0]["ports"] = json!([{"containerPort": port}]);
    client.post(PODS, &made).await.expect(201);
    let target = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
    client.post(&format!("{PODS}/{name}/binding"), &target).await.expect(201);
    let status =
        json!({"status": {"podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}], "phase": "Running"}});
    client.merge(&format!("{PODS}/{name}/status"), &status).await.expect(200);
}

async fn send(client: &Client, method: Method, path: &str, body: &'static str) -> Answer {
    let headers = [("authorization", "Basic eDp5"), ("x-mine", "1"), ("accept", "text/html")];
    client.send(request(method, path, &headers, Bytes::from_static(body.as_bytes()))).await
}

#[tokio::test]
async fn every_verb_reaches_the_pod_with_path_query_and_body() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let port = web().await;
    running_pod(&client, "a", port).await;
    for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let body = if method == Method::GET { "" } else { "some body" };
        let path = format!("{PODS}/a:{port}/proxy/x%2Fy//z/?q=1&watch=true");
        let answer = send(&client, method.clone(), &path, body).await;
        assert_eq!(answer.code, StatusCode::OK, "{}", answer.text());
        let text = answer.text();
        assert!(text.starts_with(&format!("{method} /x%2Fy//z/?q=1&watch=true HTTP/1.1\n")), "{text}");
        assert!(text.ends_with(&format!("\n\n{body}")), "{text}");
        let text = text.to_lowercase();
        assert!(text.contains("x-mine: 1") && text.contains("host: barque-control"), "{text}");
        assert!(!text.contains("authorization"), "credentials are not the pod's business: {text}");
    }
    // The first port of the pod, when none is named.
    let short = send(&client, Method::GET, &format!("{PODS}/a/proxy/teapot"), "").await;
    assert_eq!((short.code.as_u16(), short.text().as_str()), (418, "short\n"));
    assert!(short.headers.contains_key("x-own"));
    assert!(!short.headers.contains_key("access-control-allow-origin"));
    // Redirects stay behind the proxy; a page is a directory.
    let away = send(&client, Method::GET, &format!("{PODS}/http:a:{port}/proxy/away"), "").await;
    assert_eq!(away.code, StatusCode::FOUND);
    assert_eq!(away.headers["location"], format!("{PODS}/http:a:{port}/proxy/login?x=1"));
    let bare = send(&client, Method::GET, &format!("{PODS}/a/proxy?x=1"), "").await;
    assert_eq!(bare.code, StatusCode::MOVED_PERMANENTLY);
    assert_eq!(bare.headers["location"], format!("{PODS}/a/proxy/?x=1"));
    assert!(send(&client, Method::POST, &format!("{PODS}/a/proxy"), "").await.text().starts_with("POST / "));
}

#[tokio::test]
async fn what_cannot_be_reached_is_said() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    client.post(PODS, &pod("unbound")).await.expect(201);
    let said = |path: &str| {
        let (path, client) = (path.to_owned(), &client);
        async move { client.get(&path).await.status() }
    };
    assert_eq!(said(&format!("{PODS}/ghost/proxy/")).await.0, 404);
    assert_eq!(said(&format!("{PODS}/unbound/proxy/")).await.0, 400);
    assert_eq!(said(&format!("{PODS}/ftp:a:80/proxy/")).await.2, "invalid pod request \"ftp:a:80\"");
    // A port where nobody listens.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    running_pod(&client, "a", closed).await;
    let (code, reason, message) = said(&format!("{PODS}/a/proxy/")).await;
    assert_eq!((code, reason.as_str()), (503, "ServiceUnavailable"));
    assert!(
        message.starts_with(&format!("error trying to reach service: http://10.244.0.9:{closed}: ")),
        "{message}"
    );
    // Who may not, may not; the right is one of its own.
    let mut asked =
        request(Method::GET, &format!("{PODS}/a/proxy/"), &[("impersonate-user", "alice")], Bytes::new());
    asked.headers_mut().insert("impersonate-group", "developers".parse().unwrap());
    let (code, _, message) = client.send(asked).await.status();
    assert_eq!(code, 403);
    assert!(message.contains("cannot get resource \"pods/proxy\""), "{message}");
}

#[tokio::test]
async fn a_service_is_one_of_its_pods() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let port = web().await;
    running_pod(&client, "a", port).await;
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "a"},
        "ports": [{"name": "http", "port": 80, "targetPort": port}]}});
    client.post(services, &service).await.expect(201);
    let none = client.get(&format!("{services}/web:http/proxy/")).await.status();
    assert_eq!(none, (503, "ServiceUnavailable".into(), "no endpoints available for service \"web\"".into()));
    let endpoints = json!({"metadata": {"name": "web"}, "subsets": [{
        "addresses": [{"ip": "10.244.0.9", "targetRef": {"kind": "Pod", "namespace": "default", "name": "a"}}],
        "ports": [{"name": "http", "port": port}]}]});
    let all = "/api/v1/namespaces/default/endpoints";
    client.post(all, &endpoints).await.expect(201);
    for id in ["web:http", "web:80", "http:web:http"] {
        let answer = client.get(&format!("{services}/{id}/proxy/hello")).await;
        assert!(answer.text().starts_with("GET /hello HTTP/1.1"), "{id}: {}", answer.text());
    }
    let (code, _, message) = client.get(&format!("{services}/web:81/proxy/")).await.status();
    assert_eq!((code, message.as_str()), (503, "no service port 81 found for service \"web\""));
    assert_eq!(client.get(&format!("{services}/web/proxy/")).await.status().0, 503, "no port without a name");
    // The only port of a service needs no name.
    let plain = json!({"metadata": {"name": "plain"}, "spec": {"ports": [{"port": 80}]}});
    client.post(services, &plain).await.expect(201);
    let endpoints = json!({"metadata": {"name": "plain"}, "subsets": [{
        "addresses": [{"ip": "10.244.0.9", "targetRef": {"kind": "Pod", "namespace": "default", "name": "a"}}],
        "ports": [{"port": port}]}]});
    client.post(all, &endpoints).await.expect(201);
    for id in ["plain", "http:plain:", "plain:80"] {
        let answer = client.get(&format!("{services}/{id}/proxy/hello")).await;
        assert!(answer.text().starts_with("GET /hello HTTP/1.1"), "{id}: {}", answer.text());
    }
    // Somebody's own endpoints do not lead to this machine's loopback.
    let own = json!({"metadata": {"name": "own"}, "spec": {"ports": [{"port": 80}]}});
    client.post(services, &own).await.expect(201);
    let endpoints = json!({"metadata": {"name": "own"}, "subsets": [{
        "addresses": [{"ip": "169.254.169.254"}], "ports": [{"port": port}]}]});
    let refused = client.post(all, &endpoints).await;
    if refused.code == StatusCode::CREATED {
        assert_eq!(client.get(&format!("{services}/own/proxy/")).await.status().2, "address not allowed");
    }
}

#[tokio::test]
async fn an_upgraded_connection_is_the_clients() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let port = web().await;
    running_pod(&client, "a", port).await;
    let mut connection = client.connect().await;
    let head = format!(
        "GET {PODS}/a/proxy/chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(connection.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 101 ") && answer.to_lowercase().contains("upgrade: websocket"),
        "{answer}"
    );
    for word in ["hello", "again"] {
        connection.write_all(word.as_bytes()).await.unwrap();
        let mut echo = [0; 5];
        connection.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.to_uppercase().as_bytes());
    }
    // It does not hold the replica's stop up.
    server.stop.cancel();
    server.served.await.unwrap();
}

#[tokio::test]
async fn a_node_says_what_the_replica_knows_of_it() {
    let server = TestServer::start().await;
    let client = Client::admin(&server);
    let node = json!({"metadata": {"name": "n1"}});
    client.post("/api/v1/nodes", &node).await.expect(201);
    running_pod(&client, "a", 80).await;
    client.post(PODS, &pod("b")).await.expect(201);
    let pods = client.get("/api/v1/nodes/n1/proxy/pods").await.expect(200);
    let names: Vec<&Value> =
        pods["items"].as_array().unwrap().iter().map(|pod| &pod["metadata"]["name"]).collect();
    assert_eq!(names, ["a"]);
    assert_eq!(client.get("/api/v1/nodes/n1:10250/proxy/healthz").await.code, 503);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let path = "/api/v1/nodes/n1/status";
    client.patch(path, "application/strategic-merge-patch+json", &ready).await.expect(200);
    assert_eq!(client.get("/api/v1/nodes/n1/proxy/healthz").await.text(), "ok");
    for (path, told) in
        [("metrics", "Metrics"), ("metrics/resource", "Resources"), ("stats/summary", "Summary")]
    {
        let text = client.get(&format!("/api/v1/nodes/n1/proxy/{path}")).await;
        assert_eq!((text.code.as_u16(), text.text()), (200, format!("{told} of n1\n")));
    }
    assert_eq!(client.get("/api/v1/nodes/ghost/proxy/metrics").await.code, 404);
    assert_eq!(client.get("/api/v1/nodes/n1/proxy/nonsense").await.code, 404);
    assert_eq!(client.get("/api/v1/nodes/ghost/proxy/healthz").await.code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_and_its_proxy_lead_to_the_pod() {
    let port = web().await;
    with_each(move |kubectl, server| async move {
        let client = Client::admin(&server);
        running_pod(&client, "a", port).await;
        let raw = kubectl.run(&format!("get --raw {PODS}/a:{port}/proxy/some/path?x=1")).await;
        assert!(
            raw.ok && raw.stdout.starts_with("GET /some/path?x=1 HTTP/1.1"),
            "{} {}",
            raw.stdout,
            raw.stderr
        );
        let mut proxy = kubectl.command("proxy --port=0").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(proxy.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("it says where it serves");
        let address = line.rsplit(' ').next().unwrap().to_owned();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let ask =
            format!("GET {PODS}/a/proxy/hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("GET /hello HTTP/1.1"), "{answer}");
        // A service's port is one of its pods'.
        let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "a"},
            "ports": [{"port": 80, "targetPort": port}]}});
        client.post("/api/v1/namespaces/default/services", &service).await.expect(201);
        let mut forward = kubectl.command("port-forward svc/web :80").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("it says where it listens");
        let address = line.split_whitespace().nth(2).expect("Forwarding from ADDRESS -> PORT").to_owned();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /forwarded HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; "HTTP/1.1 200 OK".len()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 200 OK");
    })
    .await;
}
