//! One address for the API of all masters: whichever of them leads has it.
//!
//! Owns the address on this machine's link. Takes it when this replica begins to lead and can answer, announces it to the
//! neighbours, and gives it up when another leads or the replica ends. It is taken for [`LIFETIME`] at a time, so that the
//! kernel gives it up by itself when this process was killed: nobody but the kernel could then.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Context as _;
use runtime::net::{Netlink, Prefix, announce_address};
use tokio::sync::watch;

/// For how long the address is taken each time, in whole seconds as the kernel counts.
const LIFETIME: Duration = Duration::from_secs(3);
/// How often it is taken again.
const RENEWAL: Duration = Duration::from_millis(500);
/// How often it is announced after it was taken, once with each renewal: some neighbours miss one, and a killed leader's
/// machine may contradict until its kernel gives the address up.
const ANNOUNCEMENTS: u32 = 10;

/// Holds the address on the link that has `own` whenever `leads` says so; ends with its sender.
pub(crate) async fn hold(address: Ipv4Addr, own: IpAddr, mut leads: watch::Receiver<bool>) {
    let mut told = String::new();
    let (mut holds, mut left) = (true, 0);
    loop {
        let wanted = *leads.borrow_and_update();
        let is_new = wanted && !holds;
        if is_new {
            left = ANNOUNCEMENTS;
        }
        // At the beginning: an earlier life of this replica may have left it.
        if wanted || holds {
            let announces = left > 0;
            let turn = tokio::task::spawn_blocking(move || turn(address, own, wanted, announces)).await;
            match turn.context("the turn broke off").flatten() {
                Ok(()) => {
                    if wanted != holds {
                        tracing::info!(%address, holds = wanted, "the API's virtual address");
                    }
                    holds = wanted;
                    left = left.saturating_sub(1);
                    told.clear();
                }
                Err(error) => {
                    let words = format!("{error:#}");
                    if words != told {
                        tracing::error!(%address, error = words, "the API's virtual address is not as it should be; trying on");
                        told = words;
                    }
                }
            }
        }
        tokio::select! {
            changed = leads.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(RENEWAL), if wanted || holds => {}
        }
    }
    if holds {
        let given_up = tokio::task::spawn_blocking(move || turn(address, own, false, false)).await;
        if let Err(error) = given_up.context("the turn broke off").flatten() {
            tracing::warn!(%address, error = %format!("{error:#}"), "the API's virtual address stays here for a moment");
        }
    }
}

fn turn(address: Ipv4Addr, own: IpAddr, wanted: bool, announces: bool) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link_of(own)?.with_context(|| format!("no link of this machine has {own}"))?;
    let prefix = Prefix::host(IpAddr::V4(address));
    if !wanted {
        netlink.delete_address(&link, prefix)?;
        return Ok(());
    }
    netlink.lend_address(&link, prefix, LIFETIME)?;
    if announces {
        announce_address(&link, address)?;
    }
    Ok(())
}
