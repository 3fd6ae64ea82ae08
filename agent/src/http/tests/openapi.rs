//! Comparison of the document of `OpenAPI` with what the routes do: paths, parameters, statuses and bodies, in both
//! directions.

use std::collections::BTreeSet;

use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::http::{api::openapi::DOCUMENT, messages::error::Code};

/// The document.
struct Document(Value);

impl Document {
    fn new() -> Self {
        Self(serde_json::from_str(DOCUMENT).unwrap())
    }

    fn paths(&self) -> BTreeSet<&str> {
        self.0["paths"].as_object().unwrap().keys().map(String::as_str).collect()
    }

    fn operation(&self, path: &str) -> &Value {
        let operations = self.0["paths"][path].as_object().unwrap();
        assert_eq!(operations.len(), 1, "{path} can be read only");
        &operations["get"]
    }

    /// Follows a reference, if the value is one.
    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.0.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference}")),
            None => value,
        }
    }

    /// Names of the parameters of an operation that are in this place.
    fn parameters(&self, path: &str, place: &str) -> BTreeSet<String> {
        let none = vec![];
        let all = self.operation(path)["parameters"].as_array().unwrap_or(&none).iter();
        let all = all.map(|one| self.resolved(one)).filter(|one| one["in"] == place);
        all.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The schema of a response; `None` if the status or media type is not documented.
    fn schema(&self, path: &str, status: u16, media_type: &str) -> Option<&Value> {
        let response = self.resolved(self.operation(path)["responses"].get(status.to_string())?);
        response["content"].get(media_type)?.get("schema")
    }

    /// Checks a value against a schema, of which the document uses these keywords only.
    fn check(&self, schema: &Value, value: &Value, at: &str) {
        let schema = self.resolved(schema);
        if let Some(choices) = schema["oneOf"].as_array() {
            let choice = choices.iter().find(|one| (one["type"] == "null") == value.is_null());
            return self.check(choice.unwrap(), value, at);
        }
        let is = |name: &Value| match name.as_str().unwrap() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("{at}: {other}"),
        };
        let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
        assert!(kinds.iter().any(is), "{at}: {value} is not {kinds:?}");
        if let Some(values) = schema["enum"].as_array() {
            assert!(values.contains(value), "{at}: {value} is not in {values:?}");
        }
        for (number, item) in value.as_array().into_iter().flatten().enumerate() {
            self.check(&schema["items"], item, &format!("{at}[{number}]"));
        }
        let none = serde_json::Map::new();
        let known = schema["properties"].as_object().unwrap_or(&none);
        for (key, item) in value.as_object().unwrap_or(&none) {
            let property = known.get(key).or_else(|| schema.get("additionalProperties").filter(|one| one.is_object()));
            self.check(
                property.unwrap_or_else(|| panic!("{at}: {key} is not documented")),
                item,
                &format!("{at}.{key}"),
            );
        }
        for required in schema["required"].as_array().into_iter().flatten().filter(|_| value.is_object()) {
            assert!(value.get(required.as_str().unwrap()).is_some(), "{at}: {required} is missing");
        }
    }
}

/// Returns the paths of the routes.
fn routes() -> BTreeSet<&'static str> {
    let source = include_str!("../router.rs");
    source.split(".route(\"").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect()
}

/// A path of the document with values for its parameters.
fn filled(path: &str) -> String {
    path.replace("{namespace}", "default").replace("{service}", "greeter").replace("{file}", "console.js")
}

/// A fixture in which each object of the interface exists, and what keeps them.
async fn populated() -> (Fixture, impl Sized) {
    let fixture = Fixture::new();
    let described = instance("a").with_version("1").with_zone("z").with_metadata("k", "v");
    let kept = vec![fixture.register("greeter", described).await, fixture.register("greeter", instance("b")).await];
    fixture.json("/v1/services/default/greeter").await;
    let leaving = fixture.register("greeter", instance("c")).await;
    let has = |count| move |body: &Value| body["instances"].as_array().unwrap().len() == count;
    fixture.json_once("/v1/services/default/greeter", has(3)).await;
    leaving.deregister().await.unwrap();
    fixture.json_once("/v1/services/default/greeter", has(2)).await;
    let name = LockName::parse("jobs").unwrap();
    let guard = fixture.writer.acquire(&name, LockOptions::new()).await.unwrap();
    let leadership = enlist::Election::campaign(&fixture.writer, &name, "node-1", LockOptions::new()).await.unwrap();
    (fixture, (kept, guard, leadership))
}

#[tokio::test(start_paused = true)]
async fn each_route_is_documented() {
    assert_eq!(Document::new().paths(), routes());
    assert_eq!(Fixture::new().json("/v1/openapi.json").await, Document::new().0);
}

/// An unknown parameter is refused with a list of the known ones.
#[tokio::test(start_paused = true)]
async fn each_parameter_is_documented() {
    let (document, fixture) = (Document::new(), Fixture::new());
    for path in document.paths().into_iter().filter(|path| !path.starts_with("/console/") && *path != "/") {
        let (status, _, body) = fixture.get(&format!("{}?undocumented=1", filled(path))).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (400, &"invalid_parameter".into()), "{path}");
        let message = body["error"]["message"].as_str().unwrap();
        let known: BTreeSet<_> = message.split('`').skip(3).step_by(2).map(str::to_owned).collect();
        assert_eq!(known, document.parameters(path, "query"), "{path}: {message}");
    }
    for path in document.paths() {
        let in_path: BTreeSet<_> =
            path.split('{').skip(1).map(|rest| rest.split_once('}').unwrap().0.to_owned()).collect();
        assert_eq!(in_path, document.parameters(path, "path"), "{path}");
    }
    assert_eq!(document.parameters("/v1/events", "header"), ["last-event-id".to_owned()].into());
}

#[tokio::test(start_paused = true)]
async fn each_status_is_documented_with_its_code() {
    let document = Document::new();
    let codes = Code::ALL.map(Code::parts);
    let documented: BTreeSet<_> = serde_json::from_value(
        document.0.pointer("/components/schemas/Error/properties/error/properties/code/enum").unwrap().clone(),
    )
    .unwrap();
    assert_eq!(documented, codes.iter().map(|(code, _)| (*code).to_owned()).collect::<BTreeSet<String>>());
    let statuses: BTreeSet<_> = codes.iter().map(|(_, status)| status.as_str().to_owned()).collect();
    let responses = document.0.pointer("/components/responses").unwrap().as_object().unwrap();
    assert_eq!(responses.keys().cloned().collect::<BTreeSet<_>>(), statuses);
}

#[tokio::test(start_paused = true)]
async fn each_body_is_as_documented() {
    let document = Document::new();
    let (fixture, _kept) = populated().await;
    for path in document.paths().into_iter().filter(|path| *path != "/v1/events") {
        let (status, headers, body) = fixture.get(&filled(path)).await;
        let media_type = headers["content-type"].to_str().unwrap();
        let schema = document.schema(path, status.as_u16(), media_type);
        let schema = schema.unwrap_or_else(|| panic!("{path}: {status} {media_type}"));
        if media_type == "application/json" && path != "/v1/openapi.json" {
            document.check(schema, &body, path);
        }
        let documented = &document.operation(path)["responses"]["200"]["headers"];
        assert_eq!(headers.contains_key("x-enlist-freshness"), documented.is_object(), "{path}");
    }
    let departures = fixture.json("/v1/services/default/greeter").await["departures"].as_array().unwrap().len();
    let locks = fixture.json("/v1/locks").await["locks"][0]["holders"].as_array().unwrap().len();
    assert_eq!((departures, locks), (1, 1), "what is checked is there");
    assert!(fixture.json("/v1/elections").await["elections"][0]["leader"].is_object());
}

#[tokio::test(start_paused = true)]
async fn each_event_is_as_documented() {
    let document = Document::new();
    let content = &document.operation("/v1/events")["responses"]["200"]["content"]["text/event-stream"];
    let schema = document.resolved(&content["itemSchema"]);
    let data = &schema["properties"]["data"]["contentSchema"];
    let fixture = Fixture::new();
    let kept = fixture.register("greeter", instance("a").with_version("1").with_metadata("k", "v")).await;
    let mut events = fixture.events("/v1/events?service=greeter", None).await;
    let mut seen = BTreeSet::new();
    let limit = Instant::now() + Duration::from_secs(60);
    let mut see = async |last: &str| {
        loop {
            assert!(Instant::now() < limit, "there is no event {last}");
            let Received { event, id, data: found } = events.next().await.unwrap();
            let fields = json!({ "event": event, "id": id.unwrap_or_default(), "data": found.to_string() });
            document.check(schema, &fields, &event);
            document.check(data, &found, &event);
            let is_last = event == last;
            seen.insert(event);
            if is_last {
                return;
            }
        }
    };
    see("synced").await;
    kept.update(|update| _ = update.weight(7)).await.unwrap();
    see("updated").await;
    kept.deregister().await.unwrap();
    see("removed").await;
    see("heartbeat").await;
    fixture.reader.cut();
    see("freshness").await;
    let known: BTreeSet<String> = serde_json::from_value(schema["properties"]["event"]["enum"].clone()).unwrap();
    assert_eq!(seen, known);
}

/// A client of xDS, with a rejection.
#[test]
fn a_client_is_as_documented() {
    let views = json!({ "followed": 3, "stale": 1, "unknown": 1, "oldest_age_ms": 7 });
    let clients = [crate::http::api::clients::example()];
    let client = json!({ "clients": clients, "not_sent": 1, "views": views });
    let document = Document::new();
    let schema = document.schema("/v1/clients", 200, "application/json").unwrap();
    document.check(schema, &client, "clients");
    assert!(client["clients"][0]["last_rejection"].is_object());
}

#[tokio::test(start_paused = true)]
async fn each_refusal_is_as_documented() {
    let document = Document::new();
    let token = BearerToken::new("s3cret").unwrap();
    let (open, closed) = (Fixture::new(), Fixture::with(&HttpOptions::new().token(token)));
    closed.reader.cut();
    open.reader.cut();
    for path in document.paths() {
        let uri = filled(path);
        let with = |name: &'static str, value: &'static str| {
            let mut request = request(&uri);
            request.headers_mut().insert(name, value.parse().unwrap());
            request
        };
        let mut post = request(&uri);
        *post.method_mut() = axum::http::Method::POST;
        let long = request(&format!("{uri}?namespace={}", "x".repeat(5000)));
        let mut refused = vec![with("host", "evil.example"), with("origin", "http://evil.example"), post, long];
        refused.extend([with("content-length", "9"), request(&uri)]);
        for request in refused {
            check_refusal(&document, path, open.send(request).await).await;
        }
        check_refusal(&document, path, closed.send(request(&uri)).await).await;
    }
}

/// Checks a response, if it is an error.
async fn check_refusal(document: &Document, path: &str, response: axum::response::Response) {
    let status = response.status().as_u16();
    if status == 200 {
        return;
    }
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap();
    let schema = document.schema(path, status, "application/json");
    document.check(schema.unwrap_or_else(|| panic!("{path}: {status}")), &body, path);
}
