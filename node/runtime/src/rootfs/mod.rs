//! A container's root filesystem: the overlay, what is mounted over it, devices, and making it the root.
//! All of it happens in the container's own mount namespace, by the container's init, before it gives
//! its privileges up; so it ends with the container, and there is nothing to clean up on the host.
//!
//! Promises: whatever the image or a volume holds at a mount target (symbolic links, `..`), nothing is
//! mounted or made outside the new root.

pub(crate) mod devices;
pub(crate) mod mounts;
pub(crate) mod overlay;
pub(crate) mod pivot;
pub(crate) mod resolve;
