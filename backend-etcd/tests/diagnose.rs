//! The diagnosis of an etcd, in the form that programs receive.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use enlist::{Error, Namespace};
use enlist_etcd::{
    Etcd, EtcdBuilder,
    diagnose::{Check, EndpointFault, Finding, SkipReason, Status},
};
use enlist_testkit::{EtcdServer, Provider, ServerOptions, soon};

/// Endpoint without a listener.
const DEAD_ENDPOINT: &str = "http://127.0.0.1:1";

async fn findings(builder: EtcdBuilder) -> Vec<Finding> {
    let mut found = Vec::new();
    let report = |finding| {
        found.push(finding);
        Ok::<_, Error>(())
    };
    soon("a diagnosis", builder.diagnose(&Namespace::default(), report)).await.unwrap();
    found
}

#[tokio::test]
async fn each_piece_is_reported_in_order() {
    let server = EtcdServer::start_with(Provider::own(), ServerOptions::new()).await;
    let found = findings(Etcd::builder([DEAD_ENDPOINT.to_owned(), server.url()])).await;
    let checks: Vec<_> = found.iter().map(Finding::check).collect();
    let tried = [Check::Read, Check::Lease, Check::Write, Check::Watch];
    let mut expected = vec![Check::Endpoint, Check::Endpoint, Check::Tls, Check::Auth, Check::Version];
    expected.extend(tried.into_iter().chain(tried).chain([Check::Space, Check::Latency]));
    assert_eq!(checks, expected, "{found:#?}");
    let fault = match &found[0] {
        Finding::EndpointFails { url, fault, .. } if url == DEAD_ENDPOINT => Some(*fault),
        _ => None,
    };
    assert_eq!(fault, Some(EndpointFault::NotReachable));
    let failed = found.iter().filter(|finding| finding.status() == Status::Failed).count();
    assert_eq!(failed, 1, "{found:#?}");
    // The end of its lease deletes the key of a trial write.
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let all = etcd_client::GetOptions::new().with_all_keys().with_count_only();
    assert_eq!(raw.get("", Some(all)).await.unwrap().count(), 0);
}

#[tokio::test]
async fn without_an_endpoint_the_rest_is_skipped() {
    let found = findings(Etcd::builder([DEAD_ENDPOINT])).await;
    let (first, rest) = found.split_first().unwrap();
    assert_eq!(first.status(), Status::Failed);
    let is_skipped = |finding: &Finding| matches!(finding, Finding::Skipped { reason: SkipReason::NoEndpoint, .. });
    assert!(rest.len() == 9 && rest.iter().all(is_skipped), "{found:#?}");
}

#[tokio::test]
async fn an_error_of_the_report_ends_the_diagnosis() {
    let mut count = 0;
    let report = |_| {
        count += 1;
        Err(Error::Closed)
    };
    let ended = Etcd::builder([DEAD_ENDPOINT]).diagnose(&Namespace::default(), report).await;
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
    assert_eq!(count, 1);
}
