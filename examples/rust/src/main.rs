//! Barque's store from Rust, with the client that was made for etcd.
//!
//! ```sh
//! cargo run --manifest-path examples/rust/Cargo.toml -- 127.0.0.1:2379
//! ```

use etcd_client::{Client, Compare, CompareOp, DeleteOptions, Error, GetOptions, Txn, TxnOp};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut endpoints: Vec<String> = std::env::args().skip(1).collect();
    if endpoints.is_empty() {
        endpoints.push("127.0.0.1:2379".to_owned());
    }
    let mut client = Client::connect(endpoints, None).await?;

    // Every answer tells the store's revision.
    let put = client.put("greeting", "hello", None).await?;
    println!("put at revision {}", put.header().map_or(0, |header| header.revision()));

    let got = client.get("greeting", None).await?;
    let pair = got.kvs().first().expect("it was just written");
    println!("got {}", pair.value_str()?);

    // Change it only if nobody else has since we read it.
    let unchanged = Compare::mod_revision("greeting", CompareOp::Equal, pair.mod_revision());
    let change = TxnOp::put("greeting", "hey there", None);
    let txn = client.txn(Txn::new().when([unchanged]).and_then([change])).await?;
    println!("{}", if txn.succeeded() { "changed" } else { "somebody was faster" });

    for number in 0..3 {
        client.put(format!("list/{number}"), "x", None).await?;
    }
    let listed = client.get("list/", Some(GetOptions::new().with_prefix().with_keys_only())).await?;
    for pair in listed.kvs() {
        println!("list: {}", pair.key_str()?);
    }
    let deleted = client.delete("list/", Some(DeleteOptions::new().with_prefix())).await?;
    println!("deleted {}", deleted.deleted());
    Ok(())
}
