//! Requests of many clients, each sending its next when the last is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::args::{BenchApiArgs, Work};
use super::site::{NAMESPACE, Site};
use crate::bench::histogram::Histogram;
use crate::bench::pods::api::Api;

/// From one object to the next that is asked for; a prime.
const STRIDE: usize = 7919;

/// What one work gave.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) latencies: Histogram,
    pub(crate) window: Duration,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
}

impl Measured {
    fn merge(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or_else(|| other.first_error.clone());
    }
}

/// The path of the collection that is measured.
pub(crate) fn collection() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps")
}

/// The object of that number; old ones are there before anything is measured.
pub(crate) fn object(prefix: &str, number: usize, bytes: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": format!("{prefix}-{number}"), "labels": {"app": "bench"}},
        "data": {"changed": "0", "text": "x".repeat(bytes)}})
}

/// Makes the objects that gets, patches and lists find.
pub(crate) async fn fill(site: &Site, args: &BenchApiArgs) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let (count, bytes) = (args.objects, args.bytes);
    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        let (mut api, next) = (site.api(number)?, next.clone());
        clients.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                api.send(Method::POST, &collection(), &object("old", number, bytes)).await?;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

/// Measures one work other than watching.
pub(crate) async fn measure(site: &Site, args: &BenchApiArgs, work: Work) -> anyhow::Result<Measured> {
    let clients = if work == Work::List { 1 } else { args.clients };
    let begun = Instant::now();
    let until = begun + Duration::from_secs(args.seconds);
    let next = Arc::new(AtomicUsize::new(0));
    let mut running = JoinSet::new();
    for number in 0..clients {
        let client = Client { api: site.api(number)?, work, args: args.clone(), next: next.clone() };
        running.spawn(client.run(until));
    }
    let mut all = Measured::default();
    while let Some(ended) = running.join_next().await {
        all.merge(&ended?);
    }
    all.window = begun.elapsed();
    ensure!(all.latencies.count() > 0, "{}: nothing was answered: {:?}", work.name(), all.first_error);
    Ok(all)
}

struct Client {
    api: Api,
    work: Work,
    args: BenchApiArgs,
    next: Arc<AtomicUsize>,
}

impl Client {
    async fn run(mut self, until: Instant) -> Measured {
        let mut measured = Measured::default();
        while Instant::now() < until {
            let begun = Instant::now();
            match self.request().await {
                Ok(()) => measured.latencies.record(begun.elapsed()),
                Err(error) => {
                    measured.errors += 1;
                    measured.first_error.get_or_insert_with(|| format!("{error:#}"));
                }
            }
        }
        measured
    }

    async fn request(&mut self) -> anyhow::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Neighbours in time are no neighbours in the store.
        let any = number.wrapping_mul(STRIDE) % self.args.objects;
        match self.work {
            Work::Create => {
                let object = object("new", number, self.args.bytes);
                self.api.send(Method::POST, &collection(), &object).await?;
            }
            Work::Get => {
                let path = format!("{}/old-{}", collection(), any);
                self.api.send(Method::GET, &path, &Value::Null).await?;
            }
            Work::GetLocal => {
                let path = format!("{}/old-{}?resourceVersion=0", collection(), any);
                self.api.send(Method::GET, &path, &Value::Null).await?;
            }
            Work::Patch => {
                let path = format!("{}/old-{}", collection(), any);
                let patch = json!({"data": {"changed": number.to_string()}});
                self.api.patch(&path, &patch).await?;
            }
            Work::List => {
                let listed = self.api.read(&collection()).await?;
                ensure!(listed > self.args.objects * self.args.bytes, "the list is short: {listed} bytes");
            }
            // Measured elsewhere.
            Work::Watch => {}
        }
        Ok(())
    }
}
