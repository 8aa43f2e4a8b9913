//! The bounds of requests: in time, and in how many there are at once.

use std::future::Future;

use api::Status;
use http::Response;
use http_body_util::BodyExt;

use super::{Body, Head, REQUEST_TIME_MAX, RETRY_AFTER_S, Rest, too_many};
use crate::auth::Attributes;

impl Rest {
    /// Runs a request within the bounds of time and number.
    pub(super) async fn bounded(
        &self,
        head: &Head,
        attributes: &Attributes<'_>,
        work: impl Future<Output = Result<Response<Body>, Status>>,
    ) -> Result<Response<Body>, Status> {
        let _seat = self.fairness.seat(&head.identity, attributes).await?;
        let time = head.timeout().unwrap_or(REQUEST_TIME_MAX).min(REQUEST_TIME_MAX);
        match tokio::time::timeout(time, work).await {
            Ok(result) => result,
            Err(_) => {
                Err(Status::timeout("request did not complete within the allotted timeout", RETRY_AFTER_S))
            }
        }
    }

    /// Runs a request whose answer is a stream; the stream counts until its end.
    pub(super) async fn stream(
        &self,
        head: &Head,
        work: impl Future<Output = Result<Response<Body>, Status>>,
    ) -> Result<Response<Body>, Status> {
        let place = self.fairness.stream(&head.identity).await?;
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| too_many())?;
        let guard = self.metrics.clone().stream();
        let response = match tokio::time::timeout(REQUEST_TIME_MAX, work).await {
            Ok(response) => response?,
            Err(_) => return Err(Status::timeout("the stream did not begin in time", RETRY_AFTER_S)),
        };
        Ok(response.map(|body| {
            body.map_frame(move |frame| {
                let _held = (&place, &permit, &guard);
                frame
            })
            .boxed_unsync()
        }))
    }
}
