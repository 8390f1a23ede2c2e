//! What is asked of DNS, and what is made of the answers: against a server that does as it is told.

use super::{testing::Dns, *};

#[tokio::test]
async fn localhost_needs_no_server_and_has_one_family() {
    let resolver = Resolver::new(&["127.0.0.1:1".parse().unwrap()]);
    let found = resolver.lookup("localhost").await.unwrap();
    assert_eq!(found.addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    assert!(found.hold <= HOLD.1);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_an_error_that_names_the_name() {
    let resolver = Resolver::new(&["127.0.0.1:1".parse().unwrap()]);
    let error = resolver.lookup("vllm.test").await.unwrap_err();
    assert!(error.to_string().contains("`vllm.test`"), "{error}");
    // That nobody answers says nothing of what there is.
    assert!(matches!(error, LookupError::Failed(_)), "{error:?}");
    let error = resolver.services("_http._tcp.vllm.test").await.unwrap_err();
    assert!(matches!(error, LookupError::Failed(_)), "{error:?}");
}

fn v4(last: u8) -> RData {
    RData::from(IpAddr::from([10, 0, 0, last]))
}

#[tokio::test]
async fn every_address_of_a_name_is_found_and_of_a_url_only_so_many_are_used() {
    let dns = Dns::start().await;
    dns.say("vllm.test.", RecordType::A, (0..200).map(v4).collect());
    let found = dns.resolver(&[]).lookup("vllm.test").await.unwrap();
    assert_eq!(found.addresses.len(), 200);
    assert_eq!(found.some().len(), MOST);
}

#[tokio::test]
async fn a_name_that_could_not_be_asked_for_is_not_one_that_is_not_there() {
    let dns = Dns::start().await;
    let resolver = dns.resolver(&["one.test", "other.test"]);
    let error = resolver.lookup("vllm").await.unwrap_err();
    assert!(matches!(error, LookupError::Nothing(_)), "{error:?}");
    for name in ["vllm.one.test.", "vllm.other.test.", "vllm."] {
        assert!(dns.was_asked(name, RecordType::A), "{name}");
        assert!(dns.was_asked(name, RecordType::AAAA), "{name}");
    }
    // One domain's server is in trouble, and the other names are not there.
    dns.fail("pods.one.test.", RecordType::A);
    let error = resolver.lookup("pods").await.unwrap_err();
    assert!(matches!(error, LookupError::Failed(_)), "{error:?}");
    assert!(error.to_string().contains("`pods`"), "{error}");
    dns.fail("_http._tcp.pods.one.test.", RecordType::SRV);
    let error = resolver.services("_http._tcp.pods").await.unwrap_err();
    assert!(matches!(error, LookupError::Failed(_)), "{error:?}");
    // A domain that never answers does not hide what is in the next one.
    dns.say("pods.other.test.", RecordType::A, vec![v4(1)]);
    let found = resolver.lookup("pods").await.unwrap();
    assert_eq!(found.addresses, [IpAddr::from([10, 0, 0, 1])]);
}

#[tokio::test]
async fn addresses_of_ipv6_are_asked_for_only_where_there_are_none_of_ipv4() {
    let dns = Dns::start().await;
    let v6: IpAddr = "fd00::1".parse().unwrap();
    dns.say("vllm.test.", RecordType::AAAA, vec![RData::from(v6)]);
    dns.fail("vllm.test.", RecordType::A);
    let resolver = dns.resolver(&[]);
    let error = resolver.lookup("vllm.test").await.unwrap_err();
    assert!(matches!(error, LookupError::Failed(_)), "{error:?}");
    dns.say("vllm.test.", RecordType::A, vec![]);
    let found = resolver.lookup("vllm.test").await.unwrap();
    assert_eq!(found.addresses, [v6]);
}

#[tokio::test]
async fn the_order_of_names_is_that_of_the_search_list_and_its_dots() {
    let dns = Dns::start().await;
    let resolver = dns.resolver(&["a.test", "b.test", "a.test"]);
    let asker = resolver.0.as_ref().unwrap();
    let names = |name: &str| {
        let names = asker.whole_names(&Name::from_ascii(name).unwrap());
        names.iter().map(Name::to_ascii).collect::<Vec<_>>()
    };
    assert_eq!(names("vllm"), ["vllm.a.test.", "vllm.b.test.", "vllm."]);
    assert_eq!(names("v.x"), ["v.x.", "v.x.a.test.", "v.x.b.test."]);
    assert_eq!(names("vllm."), ["vllm."]);
    assert_eq!(names("localhost")[0], "localhost.");
}

#[tokio::test]
async fn records_that_hold_for_a_day_are_remembered_for_minutes() {
    let dns = Dns::start().await;
    dns.holds_for(86_400);
    dns.say("vllm.test.", RecordType::A, vec![v4(1)]);
    let resolver = dns.resolver(&[]);
    let found = resolver.lookup("vllm.test").await.unwrap();
    assert!(found.hold <= HOLD.1);
    // The library's memory of it ends as soon, or what is asked for again would be the same for a day.
    let asker = resolver.0.as_ref().unwrap();
    let again = asker.find("vllm.test", &[RecordType::A]).await.unwrap();
    let left = Instant::from_std(again.valid_until()).duration_since(Instant::now());
    assert!(left <= HOLD.1, "{left:?}");
}
