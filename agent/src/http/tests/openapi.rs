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

    /// The schema of an event.
    fn event_schema(&self) -> &Value {
        &self.operation("/v1/events")["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
    }

    /// Names of the documented events.
    fn events(&self) -> BTreeSet<String> {
        let kinds = self.resolved(self.event_schema())["oneOf"].as_array().unwrap().iter();
        let names = kinds.flat_map(|kind| self.resolved(kind)["properties"]["event"]["enum"].as_array().unwrap());
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    /// Checks a value against a schema.
    fn check(&self, schema: &Value, value: &Value, at: &str) {
        self.compare(schema, value, at).unwrap_or_else(|difference| panic!("{difference}"));
    }

    /// Checks that an event is as documented, and that without one of its fields it is not.
    fn check_event(&self, received: &Received) {
        let Received { event, id, data } = received;
        let fields = |data: &Value| {
            let mut fields = json!({ "event": event, "data": data.to_string() });
            if let Some(id) = id {
                fields["id"] = json!(id);
            }
            fields
        };
        let (schema, whole) = (self.event_schema(), fields(data));
        self.check(schema, &whole, event);
        let has_position = id.as_ref().map(|id| !id.is_empty());
        let expected = match event.as_str() {
            "freshness" | "heartbeat" => None,
            event => Some(event == "synced"),
        };
        assert_eq!(has_position, expected, "{event}");
        for (field, rest) in without_each(&whole) {
            assert!(self.compare(schema, &rest, event).is_err(), "{event} without {field}");
        }
        for (field, rest) in without_each(data).into_iter().filter(|(field, _)| field != "cause") {
            assert!(self.compare(schema, &fields(&rest), event).is_err(), "{event} without {field} in its data");
        }
    }

    /// Compares a value with a schema. Returns the first difference. Patterns and bounds are not compared.
    fn compare(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolved(schema);
        if let Some(choices) = schema["oneOf"].as_array() {
            let compared: Vec<_> = choices.iter().map(|choice| self.compare(choice, value, at)).collect();
            let matching = compared.iter().filter(|one| one.is_ok()).count();
            return ensure(matching == 1, || format!("{at}: {value} matches {matching} alternatives: {compared:?}"));
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
        ensure(kinds.iter().any(is), || format!("{at}: {value} is not {kinds:?}"))?;
        if let Some(values) = schema["enum"].as_array() {
            ensure(values.contains(value), || format!("{at}: {value} is not in {values:?}"))?;
        }
        if let (Some(content), Some(text)) = (schema.get("contentSchema"), value.as_str()) {
            let parsed: Value = serde_json::from_str(text).map_err(|error| format!("{at}: {error}"))?;
            self.compare(content, &parsed, at)?;
        }
        for (number, item) in value.as_array().into_iter().flatten().enumerate() {
            self.compare(&schema["items"], item, &format!("{at}[{number}]"))?;
        }
        let none = serde_json::Map::new();
        let known = schema["properties"].as_object().unwrap_or(&none);
        for (key, item) in value.as_object().unwrap_or(&none) {
            let property = known.get(key).or_else(|| schema.get("additionalProperties").filter(|one| one.is_object()));
            let property = property.ok_or_else(|| format!("{at}: {key} is not documented"))?;
            self.compare(property, item, &format!("{at}.{key}"))?;
        }
        for required in schema["required"].as_array().into_iter().flatten().filter(|_| value.is_object()) {
            ensure(value.get(required.as_str().unwrap()).is_some(), || format!("{at}: {required} is missing"))?;
        }
        Ok(())
    }
}

/// Returns an error unless a condition holds.
fn ensure(holds: bool, error: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(error()) }
}

/// Returns the object without one of its fields, for each of them, with the name of the field.
fn without_each(object: &Value) -> Vec<(String, Value)> {
    let fields = object.as_object().unwrap();
    let without = |field: &String| {
        let rest = fields.iter().filter(|(name, _)| *name != field);
        let rest: Value = rest.map(|(name, value)| (name.clone(), value.clone())).collect();
        (field.clone(), rest)
    };
    fields.keys().map(without).collect()
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
    for uri in ["/v1/events?service=greeter", "/v1/events"] {
        assert_eq!(checked_events(&document, uri).await, document.events(), "{uri}");
    }
}

/// Causes and checks events of each kind. Returns their names.
async fn checked_events(document: &Document, uri: &str) -> BTreeSet<String> {
    let fixture = Fixture::new();
    let kept = fixture.register("greeter", instance("a").with_version("1").with_metadata("k", "v")).await;
    let mut events = fixture.events(uri, None).await;
    let mut seen = BTreeSet::new();
    let limit = Instant::now() + Duration::from_secs(60);
    let mut see = async |last: &str| {
        loop {
            assert!(Instant::now() < limit, "{uri}: there is no event {last}");
            let received = events.next().await.unwrap();
            document.check_event(&received);
            let is_last = received.event == last;
            seen.insert(received.event);
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
    seen
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
