//! Deleting all objects of a kind, for what goes with everything in it: a namespace, the definition of a kind.

use api::{Kind, Status, object};
use futures_util::{StreamExt, stream};

use super::{Context, WRITES_MAX};
use crate::leader::Epoch;
use crate::registry::{DeleteOptions, ListOptions, Target};

/// How many objects are listed at once.
const PAGE_ITEMS: usize = 500;

/// Deletes every object of a kind, in one namespace or everywhere; says how many are still there.
pub(super) async fn delete_all(
    context: &Context,
    epoch: Epoch,
    kind: &'static Kind,
    namespace: Option<&str>,
) -> Result<usize, Status> {
    let mut left = 0;
    let mut list = ListOptions { limit: Some(PAGE_ITEMS), ..ListOptions::default() };
    loop {
        let page = context.registry.list(kind, namespace, &list).await?;
        let outcomes = stream::iter(page.items).map(|object| async move {
            // Only the first deletion does anything; later looks just wait for it.
            if object::deletion_timestamp(object.value()).is_some() {
                return Ok(false);
            }
            let delete = DeleteOptions { fence: epoch.fence(), ..DeleteOptions::default() };
            let target = Target::new(kind, object.namespace(), object.name());
            match context.registry.delete(target, &delete).await {
                Ok(deleted) => Ok(deleted.removed),
                Err(status) if status.reason() == "NotFound" => Ok(true),
                Err(status) => Err(status),
            }
        });
        let outcomes: Vec<Result<bool, Status>> = outcomes.buffer_unordered(WRITES_MAX).collect().await;
        for outcome in outcomes {
            left += usize::from(!outcome?);
        }
        match page.continue_token {
            Some(token) => list.continue_token = Some(token),
            None => return Ok(left),
        }
    }
}
