//! The bytes that the Go libraries store, compared with the recordings that the layouts are tested with.

use enlist::{LeaseId, ServiceRef};
use enlist_etcd::layout::{Layout, Writing};
use enlist_testkit::EtcdServer;
use etcd_client::{SortOrder, SortTarget};
use serde_json::Value;

use super::{Go, own_etcd};

/// A key with its value and its lease.
struct Stored {
    key: String,
    value: String,
    lease: i64,
}

/// Returns all keys.
async fn stored(raw: &mut etcd_client::Client) -> Vec<Stored> {
    below(raw, "").await
}

/// Returns the keys with this prefix; an empty one has all of them.
async fn below(raw: &mut etcd_client::Client, prefix: &str) -> Vec<Stored> {
    let options = etcd_client::GetOptions::new().with_sort(SortTarget::Create, SortOrder::Ascend);
    let options = if prefix.is_empty() { options.with_all_keys() } else { options.with_prefix() };
    let answer = raw.get(prefix, Some(options)).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let pairs = answer.kvs().iter();
    pairs.map(|pair| Stored { key: text(pair.key()), value: text(pair.value()), lease: pair.lease() }).collect()
}

/// Returns the leases of the keys with this prefix, in the order of their creation.
pub(super) async fn leases(server: &EtcdServer, prefix: &str) -> Vec<i64> {
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    below(&mut raw, prefix).await.into_iter().map(|stored| stored.lease).collect()
}

/// Lets the library write the instance of each recorded case, and compares the key and the value with the recording.
///
/// `omitted` names cases whose input the library cannot be given.
pub(super) async fn the_library_writes_the_recorded_bytes(program: &str, fixture: &str, omitted: &[&str]) {
    let server = own_etcd().await;
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    let mut written = 0;
    for case in fixture["write"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if omitted.contains(&name) {
            continue;
        }
        let mut go = Go::start(&server, program, &["write", &case.to_string()]);
        assert_eq!(go.line().await, "wrote", "{program}: {name}");
        let found = stored(&mut raw).await;
        let [one] = &found[..] else { panic!("{program}: {name}: {} keys", found.len()) };
        let mut key = case["key"].as_str().unwrap().to_owned();
        // etcd chooses the lease.
        if let Some(lease) = case["options"]["lease_id"].as_str().filter(|_| case["options"]["id"].is_null()) {
            key = key.replace(lease, &one.lease.to_string());
        }
        assert_eq!((&one.key, one.value.as_str()), (&key, case["value_utf8"].as_str().unwrap()), "{program}: {name}");
        written += 1;
        drop(go);
        raw.delete("", Some(etcd_client::DeleteOptions::new().with_all_keys())).await.unwrap();
    }
    println!("{program}: {written} recorded cases, the same bytes");
    assert!(written > 0);
}

/// Compares the one registration in etcd with the bytes that our layout writes for the same instance.
pub(super) async fn the_server_is_stored_as_by_ours(server: &EtcdServer, layout: &dyn Layout, service: &ServiceRef) {
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let found = stored(&mut raw).await;
    let [one] = &found[..] else { panic!("{}: {} keys", layout.name(), found.len()) };
    let instance = layout.decode(service, one.key.as_bytes(), one.value.as_bytes()).unwrap().instance;
    let lease = Some(LeaseId::new(one.lease));
    let key = layout.key(service, instance.id(), lease).unwrap();
    let value = layout.encode(service, &instance, &Writing { lease, ..Writing::default() }).unwrap();
    let ours = (String::from_utf8(key).unwrap(), String::from_utf8(value).unwrap());
    assert_eq!((&one.key, &one.value), (&ours.0, &ours.1), "{}", layout.name());
}
