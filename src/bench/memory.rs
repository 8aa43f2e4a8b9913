//! `--work memory`: what a state of many keys costs in memory, and how long a restart takes with it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use super::group::{Group, MEMBERS};
use super::{systems, usage};

/// What a system keeps of memory that it has just freed, it may give back within this time after a load or a start.
const SETTLE: Duration = Duration::from_secs(3);

/// What was found, per member where it is a list.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct MemoryFound {
    pub(crate) keys: usize,
    pub(crate) load_seconds: f64,
    /// Before the first key.
    pub(crate) resident_empty_bytes: Vec<u64>,
    /// After the last key, settled.
    pub(crate) resident_loaded_bytes: Vec<u64>,
    /// After the whole group was stopped and started again, settled.
    pub(crate) resident_restarted_bytes: Vec<u64>,
    /// One follower, killed and started while the others serve: from start to its first linearizable answer.
    pub(crate) restart_one_seconds: f64,
    /// All members stopped in order and started at once: until each has answered.
    pub(crate) restart_all_seconds: f64,
}

/// Loads and restarts a group.
pub(crate) async fn measure(group: &mut Group, keys: usize, value: &Bytes) -> anyhow::Result<MemoryFound> {
    let resident_empty_bytes = usage::resident_bytes(&group.pids());
    let endpoints = group.target().await.endpoints;
    let began = Instant::now();
    systems::load(&endpoints, keys, value).await?;
    let load_seconds = began.elapsed().as_secs_f64();
    tokio::time::sleep(SETTLE).await;
    let resident_loaded_bytes = usage::resident_bytes(&group.pids());

    let leader = systems::leader_position(&group.endpoints()).await.unwrap_or(0);
    let follower = (leader + 1) % MEMBERS;
    group.kill(follower);
    let began = Instant::now();
    group.launch(follower)?;
    group.wait_healthy(follower).await?;
    let restart_one = began.elapsed();

    group.stop_all().await?;
    let restart_all = start_all(group).await?;
    tokio::time::sleep(SETTLE).await;
    Ok(MemoryFound {
        keys,
        load_seconds,
        resident_empty_bytes,
        resident_loaded_bytes,
        resident_restarted_bytes: usage::resident_bytes(&group.pids()),
        restart_one_seconds: restart_one.as_secs_f64(),
        restart_all_seconds: restart_all.as_secs_f64(),
    })
}

async fn start_all(group: &mut Group) -> anyhow::Result<Duration> {
    let began = Instant::now();
    for number in 0..MEMBERS {
        group.launch(number)?;
    }
    for number in 0..MEMBERS {
        group.wait_healthy(number).await?;
    }
    Ok(began.elapsed())
}
