//! Changes of a status that are meant for one object, and not for another one that came to have its name.

use api::{Status, object};
use serde_json::Value;

use super::{Registry, Target, WriteOptions};

impl Registry {
    /// Changes the status of the object of that uid. That it is gone, or another one, is fine: nobody is left to be told
    /// anything.
    pub(crate) async fn change_status_of(
        &self,
        uid: &str,
        target: Target<'_>,
        fence: Option<u64>,
        mut change: impl FnMut(&mut Value) + Send,
    ) -> Result<(), Status> {
        let options = WriteOptions { fence, ..WriteOptions::default() };
        let apply = |value: &mut Value| {
            if object::uid(value) == uid {
                change(value);
            }
            Ok(())
        };
        match self.modify(target, &options, apply).await {
            Err(status) if status.reason() == "NotFound" => Ok(()),
            written => written.map(drop),
        }
    }
}
