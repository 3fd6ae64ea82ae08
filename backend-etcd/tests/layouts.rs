//! The layouts of other ecosystems: byte-exact by recorded fixtures, and by the conformance suite as far as they carry.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod common;

use std::{collections::HashMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use common::EtcdHarness;
use enlist::{
    Endpoint, FencingToken, Instance, InstanceId, LeaseId, LockMode, LockName, Namespace, ServiceRef,
    lock::{Place, Standing},
    standing,
};
use enlist_etcd::{
    EtcdConcurrency, GoZero, Layout, LockLayout, Native,
    layout::{Line, PlaceValue, Skip},
};
use enlist_testkit::{
    Carried,
    cases::{Case, all},
};
use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinSet};

const GO_ZERO: &str = include_str!("fixtures/go-zero.json");
const ETCD_CONCURRENCY: &str = include_str!("fixtures/etcd-concurrency.json");

/// How many cases run side by side, each with an etcd of its own.
const SIDE_BY_SIDE: usize = 6;

/// Runs the cases that need no more than `carries`, and prints what it leaves out.
async fn conform<F>(carries: &'static [Carried], wanted: impl Fn(&str) -> bool, harness: fn() -> F)
where
    F: Future<Output = EtcdHarness> + Send + 'static,
{
    let fits = |case: &Case<EtcdHarness>| case.needs.iter().all(|need| carries.contains(need));
    let (selected, left_out): (Vec<_>, Vec<_>) =
        all::<EtcdHarness>().into_iter().filter(|case| wanted(case.topic)).partition(fits);
    for case in &left_out {
        println!("left out: {} needs {:?}", case.name, case.needs);
    }
    println!("running {} cases, {} are left out", selected.len(), left_out.len());
    let permits = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    let mut running = JoinSet::new();
    let mut names = HashMap::new();
    for case in selected {
        let permits = Arc::clone(&permits);
        let task = running.spawn(async move {
            let _permit = permits.acquire().await.unwrap();
            (case.run)(&harness().await).await;
        });
        names.insert(task.id(), case.name);
    }
    assert!(names.len() >= 20);
    let mut failed = Vec::new();
    while let Some(ended) = running.join_next_with_id().await {
        if let Err(error) = ended {
            failed.push(format!("{}: {error}", names[&error.id()]));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn go_zero_keeps_every_promise_it_can_carry() {
    let harness = || {
        EtcdHarness::over(
            Namespace::default(),
            vec![Carried::LockDetails],
            Arc::new(GoZero),
            Arc::new(Native::default()),
            |builder| builder.layout(GoZero),
        )
    };
    conform(&[Carried::LockDetails], |_| true, harness).await;
}

#[tokio::test]
async fn etcd_concurrency_keeps_every_promise_it_can_carry() {
    let harness = || {
        let carries = Carried::ALL.into_iter().filter(|carried| *carried != Carried::LockDetails).collect();
        EtcdHarness::over(
            Namespace::default(),
            carries,
            Arc::new(Native::default()),
            Arc::new(EtcdConcurrency),
            |builder| builder.lock_layout(EtcdConcurrency),
        )
    };
    conform(&[Carried::Id], |topic| ["lock", "election"].contains(&topic), harness).await;
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(text(value, "value_base64")).unwrap()
}

fn cases<'a>(fixture: &'a Value, list: &str) -> &'a Vec<Value> {
    let cases = fixture[list].as_array().unwrap();
    assert!(!cases.is_empty());
    cases
}

fn instance(value: &Value) -> Instance {
    let endpoints = value["endpoints"].as_array().unwrap().iter().map(|endpoint| {
        let port = u16::try_from(endpoint["port"].as_u64().unwrap()).unwrap();
        Endpoint::new(text(endpoint, "host"), port).unwrap()
    });
    Instance::new(InstanceId::parse(text(value, "id")).unwrap(), endpoints).unwrap()
}

#[test]
fn go_zero_writes_the_bytes_that_go_writes() {
    let fixture: Value = serde_json::from_str(GO_ZERO).unwrap();
    for case in cases(&fixture, "write") {
        let service = ServiceRef::parse(text(case, "service")).unwrap();
        let instance = instance(&case["instance"]);
        // With a fixed id go-zero's key has the id instead of the lease.
        let lease = text(&case["options"], "lease_id").parse().unwrap();
        let lease = case["options"]["id"].is_null().then(|| LeaseId::new(lease));
        assert_eq!(GoZero.key(&service, instance.id(), lease).unwrap(), text(case, "key").as_bytes());
        assert_eq!(GoZero.encode(&instance, None, None).unwrap(), bytes(case), "{}", text(case, "name"));
    }
    for example in fixture["list_prefix"]["examples"].as_array().unwrap() {
        let service = ServiceRef::parse(text(example, "service")).unwrap();
        let range = GoZero.service_range(&service).unwrap();
        assert_eq!(range.bounds().0, text(example, "prefix").as_bytes());
    }
}

#[test]
fn go_zero_reads_what_it_may_meet() {
    let fixture: Value = serde_json::from_str(GO_ZERO).unwrap();
    for case in cases(&fixture, "read") {
        let service = ServiceRef::parse(text(case, "service")).unwrap();
        let decoded = GoZero.decode(&service, text(case, "key").as_bytes(), &bytes(case));
        let name = text(case, "name");
        match case["expect"]["skip"].as_str() {
            Some("foreign") => assert_eq!(decoded, Err(Skip::Foreign), "{name}"),
            Some("malformed") => assert!(matches!(decoded, Err(Skip::Malformed(_))), "{name}: {decoded:?}"),
            _ => assert_eq!(decoded.unwrap().instance, instance(&case["expect"]), "{name}"),
        }
    }
}

#[test]
fn what_go_zero_cannot_carry_is_refused_and_not_lost() {
    let plain = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
    assert!(GoZero.encode(&plain, None, None).is_ok());
    for rich in [plain.clone().with_weight(1), plain.clone().with_zone("z"), plain.clone().with_metadata("k", "v")] {
        assert!(GoZero.encode(&rich, None, None).is_err());
    }
    assert!(GoZero.encode(&plain, Some("owner"), None).is_err());
    let elsewhere = ServiceRef::new(Namespace::parse("team").unwrap(), enlist::ServiceName::parse("s").unwrap());
    assert!(GoZero.service_range(&elsewhere).is_err());
}

fn line_of(kind: &Value) -> Line {
    if kind == "election" { Line::Election } else { Line::Lock }
}

#[test]
fn etcd_concurrency_writes_the_bytes_that_etcd_writes() {
    let fixture: Value = serde_json::from_str(ETCD_CONCURRENCY).unwrap();
    for case in cases(&fixture, "write") {
        let name = LockName::parse(text(case, "lock_name")).unwrap();
        let lease = LeaseId::new(text(case, "lease_id").parse().unwrap());
        let key = EtcdConcurrency.place(line_of(&case["kind"]), &name, lease, 7).unwrap();
        assert_eq!(key, text(case, "key").as_bytes());
        let said = case["value_utf8"].as_str().unwrap_or_default().to_owned();
        let value = PlaceValue { mode: LockMode::Exclusive, text: said };
        assert_eq!(EtcdConcurrency.encode(line_of(&case["kind"]), &value), bytes(case), "{}", text(case, "name"));
    }
}

#[test]
fn etcd_concurrency_reads_who_holds_and_who_waits_for_whom() {
    let fixture: Value = serde_json::from_str(ETCD_CONCURRENCY).unwrap();
    for case in cases(&fixture, "read") {
        let (name, line) = (LockName::parse(text(case, "lock_name")).unwrap(), line_of(&case["kind"]));
        let keys = case["keys"].as_array().unwrap();
        let places: Vec<(&Value, Place, String)> = keys
            .iter()
            .filter_map(|key| {
                let value = EtcdConcurrency.decode(line, &name, text(key, "key").as_bytes(), &bytes(key))?;
                let token = FencingToken::new(key["create_revision"].as_u64().unwrap());
                Some((key, Place { token, mode: value.mode }, value.text))
            })
            .collect();
        let by_token =
            |token| places.iter().find(|(_, place, _)| place.token == token).map(|(key, _, _)| text(key, "key"));
        let (mut holder, mut waits) = (None, HashMap::new());
        for (key, place, said) in &places {
            match standing(places.iter().map(|(_, place, _)| *place), place.token) {
                Standing::Holder => holder = Some((text(key, "key"), place.token.get(), said.as_str())),
                Standing::Behind(other) => {
                    waits.insert(text(key, "key"), by_token(other).unwrap());
                }
                Standing::Absent => panic!("{key} is in line"),
            }
        }
        let expect = &case["expect"];
        let told = |field: &str| expect[field].as_str();
        assert_eq!(holder.map(|(key, _, _)| key), told("holder"), "{}", text(case, "name"));
        assert_eq!(holder.map(|(_, token, _)| token), expect["fencing_token"].as_u64());
        if let Some((_, _, said)) = holder {
            assert_eq!(Some(said), told("value"));
        }
        let expected = expect["waits_for"].as_object().cloned().unwrap_or_default();
        assert_eq!(waits.len(), expected.len(), "{}", text(case, "name"));
        for (waiter, before) in expected {
            assert_eq!(waits.get(waiter.as_str()).copied(), before.as_str());
        }
    }
}
