//! Any list of operations does in a database, with restarts between them, what it does in memory.

use crate::contract::{attempt, client_id, event, full_step, job, joins, release, secret, token, upload};
use crate::records::{LedgerRow, TokenRecord, Transition};
use crate::{Durability, MemoryStore, SqlStore, Store};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;
use undertone_test_servers::PostgresServer;

/// Small ranges, so that operations meet.
#[derive(Debug, Clone)]
enum Operation {
    CreateToken { token: u8, uses: u32, named: bool },
    DeleteToken { token: u8 },
    Enrol { token: u8, name: Option<u8>, key: u8, now: u64 },
    Touch { client: u8, now: u64 },
    InsertJob { job: u8 },
    Commit { job: u8, behind: u64, events: u8, seq: u64, round: u32, client: u8, blob: u8, model: Option<u8> },
    Restart,
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::{Commit, CreateToken, DeleteToken, Enrol, InsertJob, Restart, Touch};
    let few = || 0..3_u8;
    prop_oneof![
        2 => (few(), 0..3_u32, any::<bool>()).prop_map(|(token, uses, named)| CreateToken { token, uses, named }),
        1 => few().prop_map(|token| DeleteToken { token }),
        4 => (few(), proptest::option::of(few()), few(), 1_998..2_001_u64)
            .prop_map(|(token, name, key, now)| Enrol { token, name, key, now }),
        1 => (few(), 0..5_u64).prop_map(|(client, now)| Touch { client, now }),
        2 => few().prop_map(|job| InsertJob { job }),
        8 => (few(), 0..2_u64, few(), 0..3_u64, 1..3_u32, few(), few(), proptest::option::of(few())).prop_map(
            |(job, behind, events, seq, round, client, blob, model)| {
                Commit { job, behind, events, seq, round, client, blob, model }
            }
        ),
        1 => Just(Restart),
    ]
}

/// Does it; the outcome as text, so that it can be compared.
async fn apply(store: &dyn Store, operation: &Operation) -> String {
    let name = |n: &u8| format!("n{n}");
    match operation {
        Operation::CreateToken { token: n, uses, named } => {
            let fixed = named.then(|| client_id(&name(n)));
            format!("{:?}", store.create_token(TokenRecord { name: fixed, ..token(&name(n), *uses) }).await)
        }
        Operation::DeleteToken { token } => format!("{:?}", store.delete_token(&name(token)).await),
        Operation::Enrol { token, name: asked, key, now } => {
            let mut request = joins("x", &name(key));
            request.name = asked.map(|n| client_id(&name(&n)));
            format!("{:?}", store.enrol(secret(&name(token)), *now, request).await)
        }
        Operation::Touch { client, now } => {
            format!("{:?}", store.touch_client(&client_id(&name(client)), *now).await)
        }
        Operation::InsertJob { job: n } => format!("{:?}", store.insert_job(job(&name(n)), vec![]).await),
        Operation::Commit { job: n, behind, events, seq, round, client, blob, model } => {
            let id = job(&name(n)).id;
            let version = store.job(&id).await.unwrap().map_or(1, |j| j.version);
            let lines = store.ledger(0, u32::MAX).await.unwrap().len() as u64;
            let key = attempt(&id, *round);
            let step = Transition {
                events: (0..*events).map(|e| event(&format!("{e} at {version}"))).collect(),
                ledger: vec![LedgerRow { seq: lines + seq, document: format!("at {version}") }],
                uploads: vec![upload(&key, &name(client), &name(blob))],
                release: model.map(|m| release(&key, &name(&m))),
                ended: *events == 2,
                ..full_step(&id, version.saturating_sub(*behind))
            };
            format!("{:?}", store.commit(step).await)
        }
        Operation::Restart => String::new(),
    }
}

/// Everything that can be read.
async fn everything(store: &dyn Store) -> String {
    let mut all = format!("{:?}\n{:?}\n", store.list_tokens().await, store.clients().await);
    all += &format!("{:?}\n", store.open_jobs().await);
    for job in store.jobs().await.unwrap() {
        all += &format!("{job:?}\n{:?}\n", store.events(&job.id, 0, u32::MAX).await);
        all += &format!("{:?}\n{:?}\n", store.ledger(0, u32::MAX).await, store.releases(&job.id).await);
        for round in 1..3 {
            all += &format!("{:?}\n", store.uploads(&attempt(&job.id, round)).await);
        }
    }
    all
}

/// Does a list of operations in memory and in the store that `open` opens, again after each restart; the first difference as text.
async fn compare(operations: &[Operation], open: impl AsyncFn() -> SqlStore) -> Result<(), TestCaseError> {
    let model = MemoryStore::new();
    let mut store = open().await;
    for operation in operations {
        if matches!(operation, Operation::Restart) {
            store.close().await;
            store = open().await;
        }
        let (expected, found) = (apply(&model, operation).await, apply(&store, operation).await);
        prop_assert_eq!(expected, found, "{:?}", operation);
    }
    prop_assert_eq!(everything(&model).await, everything(&store).await);
    store.close().await;
    Ok(())
}

fn lists(cases: u32) -> (TestRunner, impl Strategy<Value = Vec<Operation>>) {
    let config = ProptestConfig { cases, ..ProptestConfig::with_source_file(file!()) };
    (TestRunner::new(config), proptest::collection::vec(operation(), 1..60))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn sqlite_does_what_memory_does() {
    let (mut runner, lists) = lists(48);
    let tested = runner.run(&lists, |operations| {
        let folder = TempDir::new().unwrap();
        let open =
            async || SqlStore::sqlite(&folder.path().join("state.db"), Durability::Process).await.unwrap();
        runtime().block_on(compare(&operations, open))
    });
    tested.unwrap();
}

#[test]
fn postgres_does_what_memory_does() {
    let server = PostgresServer::start();
    let (mut runner, lists) = lists(24);
    let tested = runner.run(&lists, |operations| {
        let url = server.new_database();
        let open = async || SqlStore::postgres(&url, Durability::Process).await.unwrap();
        runtime().block_on(compare(&operations, open))
    });
    tested.unwrap();
}
