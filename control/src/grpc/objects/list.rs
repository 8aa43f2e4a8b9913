//! Lists as streams: pages of REST, all as of one version, cut into messages that every client takes.

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::Method;
use prost::Message;
use proto::objects::{ListRequest, ListResponse, Object, VersionMatch};
use tonic::Status;

use super::Objects;
use super::answer::{self, Page};
use super::request::{Asked, Caller};

/// Objects that are asked for at once.
const PAGE_ITEMS_MAX: i64 = 500;
/// A message is full when its objects have this many bytes; a larger one is alone.
const MESSAGE_ITEMS_BYTES: usize = 1024 * 1024;

/// A list on its way.
pub(super) struct Pages {
    objects: Objects,
    caller: Caller,
    /// Without limit and token.
    asked: Asked,
    /// How many may follow; `None`: all.
    left: Option<i64>,
    /// What was fetched and not sent.
    page: Option<Page>,
}

impl Pages {
    /// Fetches the first page.
    pub(super) async fn begin(
        objects: Objects,
        caller: Caller,
        request: ListRequest,
    ) -> Result<Self, Status> {
        let mut asked = Asked::all(Method::GET, request.resource.clone())?.answered_in(request.encoding)?;
        asked.add("labelSelector", &request.label_selector);
        asked.add("fieldSelector", &request.field_selector);
        let mut first = asked.clone();
        first.add("resourceVersion", &request.resource_version);
        let version_match = match request.version_match() {
            VersionMatch::Unspecified => "",
            VersionMatch::Exact => "Exact",
            VersionMatch::NotOlderThan => "NotOlderThan",
        };
        first.add("resourceVersionMatch", version_match);
        let left = (request.limit > 0).then_some(request.limit);
        let mut pages = Self { objects, caller, asked, left, page: None };
        pages.fetch(first, &request.continue_token).await?;
        Ok(pages)
    }

    pub(super) fn stream(self) -> BoxStream<'static, Result<ListResponse, Status>> {
        stream::try_unfold(self, |mut pages| async move {
            let message = pages.next().await?;
            Ok::<_, Status>(message.map(|message| (message, pages)))
        })
        .boxed()
    }

    async fn fetch(&mut self, mut asked: Asked, token: &str) -> Result<(), Status> {
        let limit = self.left.unwrap_or(PAGE_ITEMS_MAX).min(PAGE_ITEMS_MAX);
        asked.add("limit", &limit.to_string());
        asked.add("continue", token);
        let response = self.objects.ask(&self.caller, &asked).await?;
        let page = self.caller.in_time(answer::page(response, asked.encoding)).await??;
        if let Some(left) = &mut self.left {
            *left -= i64::try_from(page.items.len()).unwrap_or(i64::MAX).min(*left);
        }
        self.page = Some(page);
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<ListResponse>, Status> {
        let Some(page) = &mut self.page else { return Ok(None) };
        let message = first_message(page);
        if !page.items.is_empty() {
            return Ok(Some(message));
        }
        let token = std::mem::take(&mut page.continue_token);
        let remaining = page.remaining;
        self.page = None;
        if token.is_empty() {
            return Ok(Some(message));
        }
        if self.left == Some(0) {
            return Ok(Some(ListResponse {
                continue_token: token,
                remaining_item_count: remaining,
                ..message
            }));
        }
        self.fetch(self.asked.clone(), &token).await?;
        Ok(Some(message))
    }
}

/// A list that is at hand, as a stream.
pub(super) fn messages(page: Page) -> BoxStream<'static, Result<ListResponse, Status>> {
    let messages = stream::unfold(Some(page), |page| async move {
        let mut page = page?;
        let message = first_message(&mut page);
        let rest = (!page.items.is_empty()).then_some(page);
        Some((message, rest))
    });
    messages.map(Ok).boxed()
}

/// Takes as many objects off a page as one message carries.
fn first_message(page: &mut Page) -> ListResponse {
    let mut bytes = 0;
    let fits = |object: &&Object| {
        bytes += object.encoded_len();
        bytes <= MESSAGE_ITEMS_BYTES
    };
    let count = page.items.iter().take_while(fits).count().max(1).min(page.items.len());
    let items = page.items.drain(..count).collect();
    ListResponse { items, resource_version: page.resource_version.clone(), ..ListResponse::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_small_and_large_objects_are_alone() {
        let object = |bytes: usize| Object { body: vec![0; bytes].into(), ..Object::default() };
        let sizes = [10, MESSAGE_ITEMS_BYTES / 2, MESSAGE_ITEMS_BYTES / 2, 3 * MESSAGE_ITEMS_BYTES, 10];
        let mut page = Page { items: sizes.map(object).into(), ..Page::default() };
        let mut counts = Vec::new();
        while !page.items.is_empty() {
            counts.push(first_message(&mut page).items.len());
        }
        assert_eq!(counts, [2, 1, 1, 1]);
        assert!(first_message(&mut Page::default()).items.is_empty());
    }
}
