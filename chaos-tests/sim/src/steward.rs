//! What an operator asks of members while clients work: forget history, defragment, hand leadership over, take a member
//! out and an empty one in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use chaos_tests::nemesis::{Fault, membership};
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use raft_store::{Member, MemberId};
use tokio::sync::mpsc::UnboundedReceiver;
use tonic::{Response, Status};

use crate::members::{Seat, peer_address};
use crate::net;

/// What a member's URL begins with.
const SCHEME: &str = "http://";
/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// How often an order is tried that need not succeed.
const ATTEMPTS_MAX: usize = 5;

/// What is to be done, and to whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) fault: Fault,
    pub(crate) target: usize,
}

/// Carries orders out.
pub(crate) struct Steward {
    pub(crate) seats: Vec<Rc<Seat>>,
    /// Where each member is asked.
    pub(crate) endpoints: Vec<SocketAddr>,
}

impl Steward {
    /// Carries out what is ordered, each order by itself, until nobody can order any more.
    pub(crate) async fn work(self, mut orders: UnboundedReceiver<Order>) {
        let steward = Rc::new(self);
        while let Some(order) = orders.recv().await {
            let steward = Rc::clone(&steward);
            tokio::task::spawn_local(async move {
                if order.fault == Fault::ReplaceMember {
                    return steward.replace(order.target).await;
                }
                for _ in 0..ATTEMPTS_MAX {
                    if steward.maintain(order).await.is_some() {
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
    }

    async fn maintain(&self, order: Order) -> Option<()> {
        let channel = net::client_channel(self.endpoints[order.target]);
        match order.fault {
            Fault::Compact => {
                let mut kv = KvClient::new(channel);
                let request = pb::RangeRequest { key: b"compact".as_slice().into(), ..Default::default() };
                let revision = answer(kv.range(request)).await?.header?.revision;
                answer(kv.compact(pb::CompactionRequest { revision, physical: false })).await.map(drop)
            }
            Fault::Defragment => {
                let mut member = MaintenanceClient::new(channel);
                answer(member.defragment(pb::DefragmentRequest {})).await.map(drop)
            }
            _ => {
                let leader = self.seats.iter().position(|seat| seat.leads.get())?;
                let other = (leader + 1 + order.target % (self.seats.len() - 1)) % self.seats.len();
                let mut member = MaintenanceClient::new(net::client_channel(self.endpoints[leader]));
                let target_id = self.seats[other].id.get();
                answer(member.move_leader(pb::MoveLeaderRequest { target_id })).await.map(drop)
            }
        }
    }

    /// Takes a member out whose process and data are gone, and an empty one in at its place; goes on until that is done.
    async fn replace(&self, number: usize) {
        let seat = &self.seats[number];
        let lost = seat.id.get();
        for attempt in 1.. {
            // Not the one who is gone.
            let asked = (number + attempt % (self.seats.len() - 1) + 1) % self.seats.len();
            if let Some(members) = self.exchange(asked, number, lost).await {
                let own = members.iter().find(|(_, member)| member.address == peer_address(number));
                if let Some((id, _)) = own {
                    seat.id.set(*id);
                    return seat.admit(members);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One step of it; the list when there is nothing left to do.
    async fn exchange(
        &self,
        asked: usize,
        number: usize,
        lost: MemberId,
    ) -> Option<BTreeMap<MemberId, Member>> {
        let url = format!("{SCHEME}{}", peer_address(number));
        let step = membership::exchange(net::client_channel(self.endpoints[asked]), lost, &url);
        let list = tokio::time::timeout(TIMEOUT, step).await.ok()?.ok()??;
        let as_member = |member: &pb::Member| {
            let address = member.peer_ur_ls.first()?.strip_prefix(SCHEME)?;
            Some((member.id, Member::new(member.name.clone(), address)))
        };
        list.iter().map(as_member).collect()
    }
}

async fn answer<T>(asked: impl Future<Output = Result<Response<T>, Status>>) -> Option<T> {
    Some(tokio::time::timeout(TIMEOUT, asked).await.ok()?.ok()?.into_inner())
}
