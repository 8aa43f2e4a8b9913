//! Which protocol a client wants to speak on an upgraded connection, and the answer that agrees to it.
//!
//! Pure: headers in, answer and protocol out.

use api::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use ring::digest;

/// Appended to a WebSocket client's key (RFC 6455, 4.2.2).
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Port-forwarding over SPDY, bare or inside WebSocket messages.
const PORT_FORWARD: &str = "portforward.k8s.io";
const TUNNELLED_PORT_FORWARD: &str = "SPDY/3.1+portforward.k8s.io";

/// How processes are carried, over either transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteCommand {
    /// What carries the streams.
    pub transport: Transport,
    /// 1 to 5: from 3 on there is a stream for resizes, from 4 on the status is JSON, from 5 on a WebSocket
    /// channel can be closed.
    pub version: u8,
}

/// What carries messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Streams in frames.
    Spdy,
    /// Channels in messages.
    WebSocket,
}

/// What a request's headers ask for.
#[derive(Debug)]
pub struct Asked {
    transport: Option<Transport>,
    websocket_key: String,
    /// Newest first, as clients list them.
    protocols: Vec<String>,
}

impl Asked {
    /// Reads them.
    pub fn of(headers: &HeaderMap) -> Self {
        let upgrade = text(headers, &UPGRADE);
        let transport = if upgrade.eq_ignore_ascii_case("websocket") {
            Some(Transport::WebSocket)
        } else {
            upgrade.to_ascii_uppercase().starts_with("SPDY/3.1").then_some(Transport::Spdy)
        };
        let name = match transport {
            Some(Transport::WebSocket) => PROTOCOL,
            _ => STREAM_PROTOCOL,
        };
        let listed = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let protocols = listed.flat_map(|list| list.split(',')).map(|name| name.trim().to_owned());
        Self {
            transport,
            websocket_key: text(headers, &HeaderName::from_static("sec-websocket-key")),
            protocols: protocols.filter(|name| !name.is_empty()).collect(),
        }
    }

    /// The answer and the protocol of an `exec` or an `attach`.
    pub fn remote_command(&self) -> Result<(Response<()>, RemoteCommand), Status> {
        let transport = self.transport()?;
        let version = |name: &str| match (name, transport) {
            ("channel.k8s.io", _) => Some(1),
            ("v2.channel.k8s.io", Transport::Spdy) => Some(2),
            ("v3.channel.k8s.io", Transport::Spdy) => Some(3),
            ("v4.channel.k8s.io", _) => Some(4),
            ("v5.channel.k8s.io", Transport::WebSocket) => Some(5),
            _ => None,
        };
        let supported = match transport {
            Transport::Spdy => "v4.channel.k8s.io, v3.channel.k8s.io, v2.channel.k8s.io, channel.k8s.io",
            Transport::WebSocket => "v5.channel.k8s.io, v4.channel.k8s.io, channel.k8s.io",
        };
        let found = self.protocols.iter().filter_map(|name| Some((name.as_str(), version(name)?)));
        match found.max_by_key(|(_, version)| *version) {
            Some((name, version)) => {
                Ok((self.agree(transport, Some(name)), RemoteCommand { transport, version }))
            }
            None if self.protocols.is_empty() => {
                Ok((self.agree(transport, None), RemoteCommand { transport, version: 1 }))
            }
            None => Err(self.unknown(supported)),
        }
    }

    /// The answer and the transport of a `portforward`.
    pub fn port_forward(&self) -> Result<(Response<()>, Transport), Status> {
        let transport = self.transport()?;
        let name = match transport {
            Transport::Spdy => PORT_FORWARD,
            Transport::WebSocket => TUNNELLED_PORT_FORWARD,
        };
        match self.protocols.iter().any(|asked| asked == name) {
            true => Ok((self.agree(transport, Some(name)), transport)),
            false => Err(self.unknown(name)),
        }
    }

    fn transport(&self) -> Result<Transport, Status> {
        match self.transport {
            Some(Transport::WebSocket) if self.websocket_key.is_empty() => {
                Err(Status::bad_request("Sec-WebSocket-Key is missing"))
            }
            Some(transport) => Ok(transport),
            None => Err(Status::bad_request(
                "Upgrade request required: this is a stream, over WebSocket or SPDY/3.1 on HTTP/1.1",
            )),
        }
    }

    fn unknown(&self, supported: &str) -> Status {
        let asked = self.protocols.join(", ");
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{asked}], server accepts [{supported}]"
        );
        Status::bad_request(message)
    }

    fn agree(&self, transport: Transport, protocol: Option<&str>) -> Response<()> {
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        let (upgrade, name) = match transport {
            Transport::Spdy => ("SPDY/3.1", "x-stream-protocol-version"),
            Transport::WebSocket => ("websocket", "sec-websocket-protocol"),
        };
        headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
        // Neither can be refused: base64, and a name out of our own list.
        let words = [
            (transport == Transport::WebSocket)
                .then(|| ("sec-websocket-accept", accept_key(&self.websocket_key))),
            protocol.map(|protocol| (name, protocol.to_owned())),
        ];
        for (name, value) in words.into_iter().flatten() {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        answer
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim().to_owned()
}

fn accept_key(key: &str) -> String {
    let text = format!("{key}{WEBSOCKET_GUID}");
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(pairs: &[(&'static str, &'static str)]) -> Asked {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Asked::of(&headers)
    }

    #[test]
    fn the_newest_common_protocol_is_agreed_on() {
        let spdy = asked(&[
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "channel.k8s.io"),
        ]);
        let (answer, protocol) = spdy.remote_command().unwrap();
        assert_eq!(protocol, RemoteCommand { transport: Transport::Spdy, version: 4 });
        assert_eq!(answer.status(), 101);
        assert_eq!(answer.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert_eq!(answer.headers()["upgrade"], "SPDY/3.1");
        let websocket = asked(&[
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        let (answer, protocol) = websocket.remote_command().unwrap();
        assert_eq!(protocol, RemoteCommand { transport: Transport::WebSocket, version: 5 });
        // The example of RFC 6455.
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    }

    #[test]
    fn what_cannot_be_agreed_on_is_refused() {
        let message = |asked: Asked| asked.remote_command().unwrap_err().message().to_owned();
        assert!(message(asked(&[])).starts_with("Upgrade request required"));
        assert!(message(asked(&[("upgrade", "h2c")])).starts_with("Upgrade request required"));
        let other = asked(&[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v9.channel.k8s.io")]);
        assert!(message(other).contains("client supports [v9.channel.k8s.io], server accepts [v4"));
        assert!(message(asked(&[("upgrade", "websocket")])).contains("Sec-WebSocket-Key"));
    }
}
