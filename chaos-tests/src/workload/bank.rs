//! A bank: money goes from account to account, in transactions that compare what was read.

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use serde_json::{Map, Value, json};

use super::append::{compare_revision, put};
use super::session::{Failure, Session};

const PREFIX: &[u8] = b"bank/";
/// The end of that range.
const PREFIX_END: &[u8] = b"bank0";
const ACCOUNTS: u64 = 8;
/// What each account begins with.
const BALANCE: i64 = 100;
/// The most that one transfer moves.
const AMOUNT_MAX: u64 = 20;

pub(super) async fn work(mut session: Session) {
    while session.turn().await && !open(&session).await {
        session.move_on();
    }
    while session.turn().await {
        if session.pick(3) == 0 {
            let _balances = read(&mut session).await;
        } else {
            transfer(&mut session).await;
        }
    }
}

fn name(account: u64) -> Bytes {
    Bytes::from(format!("bank/{account}"))
}

/// Makes all accounts at one moment, unless they are there.
async fn open(session: &Session) -> bool {
    let request = pb::TxnRequest {
        compare: vec![compare_revision(name(0), 0)],
        success: (0..ACCOUNTS).map(|account| put(name(account), BALANCE.to_string().into())).collect(),
        failure: vec![],
    };
    session.txn(request).await.is_ok()
}

/// Balance and revision of every account.
async fn accounts(session: &Session) -> Result<Vec<(u64, i64, i64)>, Failure> {
    let request = pb::RangeRequest {
        key: Bytes::from_static(PREFIX),
        range_end: Bytes::from_static(PREFIX_END),
        ..Default::default()
    };
    let answer = session.range(request).await?;
    let accounts = answer.kvs.iter().filter_map(|kv| {
        let account = String::from_utf8_lossy(&kv.key[PREFIX.len()..]).parse().ok()?;
        Some((account, String::from_utf8_lossy(&kv.value).parse().ok()?, kv.mod_revision))
    });
    Ok(accounts.collect())
}

async fn read(session: &mut Session) {
    session.invoke("read", Value::Null);
    match accounts(session).await {
        Ok(all) => {
            let all: Map<String, Value> =
                all.into_iter().map(|(account, balance, _)| (account.to_string(), json!(balance))).collect();
            session.ok("read", Value::from(all));
        }
        Err(failure) => session.failed("read", Value::Null, failure),
    }
}

async fn transfer(session: &mut Session) {
    let from = session.pick(ACCOUNTS);
    let to = (from + 1 + session.pick(ACCOUNTS - 1)) % ACCOUNTS;
    let amount = 1 + session.pick(AMOUNT_MAX) as i64;
    let asked = json!({"from": from, "to": to, "amount": amount});
    session.invoke("transfer", asked.clone());
    let all = match accounts(session).await {
        Ok(all) => all,
        Err(failure) => return session.failed("transfer", asked, failure),
    };
    let find = |account: u64| all.iter().find(|(other, ..)| *other == account);
    let (Some((_, has, from_revision)), Some((_, gets, to_revision))) = (find(from), find(to)) else {
        return session.failed("transfer", asked, Failure::NotDone("an account is missing".to_owned()));
    };
    if *has < amount {
        return session.refused("transfer", asked);
    }
    let request = pb::TxnRequest {
        compare: vec![compare_revision(name(from), *from_revision), compare_revision(name(to), *to_revision)],
        success: vec![
            put(name(from), (has - amount).to_string().into()),
            put(name(to), (gets + amount).to_string().into()),
        ],
        failure: vec![],
    };
    match session.txn(request).await {
        Ok(answer) if answer.succeeded => session.ok("transfer", asked),
        Ok(_) => session.refused("transfer", asked),
        Err(failure) => session.failed("transfer", asked, failure),
    }
}
