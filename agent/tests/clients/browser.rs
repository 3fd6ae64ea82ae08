//! The console in a browser, driven over `WebDriver`.

use std::{fs, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use enlist::{Election as _, Health, Lock as _, LockName, LockOptions, Registry as _, ServiceRef, TaskOwner};
use enlist_testkit::eventually;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    process::Command,
    sync::RwLockReadGuard,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    MACHINE,
    group::ProcessGroup,
    http::{exchange, start},
    supplied,
    support::{ASSIGNMENT, AdsClient, Store, instance},
};

/// A page of a browser. Dropping it kills the browser with its driver.
struct Page {
    driver: SocketAddr,
    session: String,
    _process: ProcessGroup,
    _machine: RwLockReadGuard<'static, ()>,
}

impl Page {
    /// Opens a page in a window of this width.
    async fn open(url: &str, width: u32) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let driver = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new(supplied("ENLIST_CLIENT_CHROMEDRIVER"));
        command.arg(format!("--port={}", driver.port())).stdout(Stdio::null()).stderr(Stdio::null());
        let process = ProcessGroup::start(&mut command);
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            format!("--window-size={width},800"),
        ];
        let options = json!({ "binary": supplied("ENLIST_CLIENT_CHROMIUM"), "args": arguments });
        let wanted = json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        let wanted = json!({ "capabilities": { "alwaysMatch": wanted } });
        let opened = eventually("a session", || async {
            let body =
                exchange(driver, "POST", "/session", &wanted.to_string()).await.map_err(|error| error.to_string())?;
            let body: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
            body["value"]["sessionId"].as_str().map(str::to_owned).ok_or_else(|| body.to_string())
        });
        let page = Self { driver, session: opened.await, _process: process, _machine: MACHINE.read().await };
        page.command("url", &json!({ "url": url })).await;
        page
    }

    async fn command(&self, name: &str, body: &Value) -> Value {
        let path = format!("/session/{}/{name}", self.session);
        let body = exchange(self.driver, "POST", &path, &body.to_string()).await.unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        assert!(body["value"]["error"].is_null(), "{name}: {body}");
        body["value"].clone()
    }

    /// Returns the value of an expression.
    async fn value(&self, expression: &str) -> Value {
        self.command("execute/sync", &json!({ "script": format!("return {expression}"), "args": [] })).await
    }

    /// Waits until an expression is true.
    async fn until(&self, expression: &str) {
        eventually(expression, || async {
            if self.value(expression).await == true { Ok(()) } else { Err(self.value("document.body.innerText").await) }
        })
        .await;
    }

    async fn shows(&self, text: &str) {
        self.until(&format!("document.body.innerText.includes({})", json!(text))).await;
    }

    async fn press(&self, key: &str) {
        let actions = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        self.command("actions", &json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] })).await;
    }

    /// Sets the size of the window and the preferred colours.
    async fn show_as(&self, [width, height]: [u32; 2], scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        self.command("goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).await;
    }

    /// Writes a picture of the window to a file.
    async fn photograph(&self, file: &Path) {
        let path = format!("/session/{}/screenshot", self.session);
        let body: Value = serde_json::from_str(&exchange(self.driver, "GET", &path, "").await.unwrap()).unwrap();
        let picture = STANDARD.decode(body["value"].as_str().unwrap()).unwrap();
        assert!(!picture.is_empty());
        fs::write(file, picture).unwrap();
    }

    /// Begins to measure the times for which the page does not react.
    async fn measure_pauses(&self) {
        self.value(
            "(window.longest = 0, window.last = performance.now(), setInterval(() => { const now = performance.now(); \
             window.longest = Math.max(window.longest, now - window.last); window.last = now; }, 10), 0)",
        )
        .await;
    }

    /// Checks that the page reacted within a second all the time.
    async fn has_reacted(&self) {
        let longest = self.value("Math.round(window.longest)").await.as_u64().unwrap();
        assert!(longest <= 1_000, "the page did not react for {longest} ms");
    }

    /// Ends the browser. Nothing was reported as an error, a violation of the policy included.
    async fn close(self) {
        let log = self.command("se/log", &json!({ "type": "browser" })).await;
        let errors: Vec<_> = log.as_array().unwrap().iter().filter(|entry| entry["level"] == "SEVERE").collect();
        assert!(errors.is_empty(), "{errors:?}");
        exchange(self.driver, "DELETE", &format!("/session/{}", self.session), "").await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs Chromium: cargo xtask clients"]
async fn changes_are_shown_as_they_happen() {
    let store = Store::new();
    let (agent, address) = start(&store).await;
    let first = store.register("greeter", instance("greeter-1", 8080).with_zone("eu-1a")).await;
    let page = Page::open(&format!("http://{address}/"), 1200).await;
    page.shows("greeter").await;
    page.shows("live, age").await;
    let _second = store.register("mail", instance("mail-1", 8081)).await;
    page.shows("mail").await;
    page.value("location.hash = '#/service/greeter'").await;
    page.shows("greeter-1").await;
    first.deregister().await.unwrap();
    page.shows("Recent departures").await;
    page.value("location.hash = '#/clients'").await;
    page.shows("No stream of xDS is open").await;
    let mut client = AdsClient::connect(agent.address).await;
    client.assignment("mail").await;
    page.shows("test-1").await;
    store.agents.cut();
    page.shows("do not arrive").await;
    store.agents.heal();
    page.until("document.getElementById('banner').hidden").await;
    page.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: cargo xtask clients"]
async fn the_console_is_used_by_keyboard() {
    let store = Store::new();
    let (_agent, address) = start(&store).await;
    let _first = store.register("greeter", instance("greeter-1", 8080)).await;
    let _second = store.register("mail", instance("mail-1", 8081)).await;
    let page = Page::open(&format!("http://{address}/"), 1200).await;
    page.shows("mail").await;
    page.press("j").await;
    page.press("j").await;
    page.until("document.activeElement.textContent === 'mail'").await;
    page.press("\u{e007}").await;
    page.until("location.hash === '#/service/mail'").await;
    page.shows("mail-1").await;
    for (key, view) in [("2", "#/queues"), ("3", "#/clients"), ("4", "#/timeline"), ("1", "#/services")] {
        page.press(key).await;
        page.until(&format!("location.hash === '{view}'")).await;
    }
    page.press("/").await;
    page.until("document.activeElement.id === 'search'").await;
    page.press("g").await;
    page.until("document.querySelectorAll('#table tbody tr').length === 1").await;
    page.close().await;
}

/// Nothing is wider than a small window, and hostile texts are texts.
#[tokio::test]
#[ignore = "needs Chromium: cargo xtask clients"]
async fn the_console_fits_a_small_window() {
    let store = Store::new();
    let (_agent, address) = start(&store).await;
    let hostile = "<img src=x onerror=alert(1)>";
    let long = "n".repeat(200);
    let described = instance(&long, 8080).with_metadata(hostile, long.clone()).with_version(long.clone());
    let _first = store.register(hostile, described).await;
    let page = Page::open(&format!("http://{address}/"), 360).await;
    page.shows(hostile).await;
    for view in
        ["#/services", "#/service/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E", "#/queues", "#/clients", "#/timeline"]
    {
        page.value(&format!("location.hash = '{view}'")).await;
        page.until("document.documentElement.scrollWidth <= document.documentElement.clientWidth").await;
    }
    assert_eq!(page.value("document.images.length").await, 0);
    page.close().await;
}

/// Each view is wide enough for its content, in the colours that the user prefers. The pictures are for inspection.
#[tokio::test]
#[ignore = "needs Chromium: cargo xtask clients"]
async fn the_console_fits_each_window_and_scheme() {
    let store = Store::new();
    let (agent, address) = start(&store).await;
    let mut registered = Vec::new();
    for number in 1..=40_u16 {
        let zone = if number % 2 == 0 { "eu-1a" } else { "eu-1b" };
        let version = format!("1.{}.0", number % 3);
        let described = instance(&format!("greeter-{number}"), 8000 + number).with_zone(zone).with_version(version);
        let described = if number == 7 { described.with_health(Health::Draining) } else { described };
        registered.push(store.register("greeter", described.with_metadata("team", "blue")).await);
        registered.push(store.register(&format!("service-{number}"), instance("one", 9000 + number)).await);
    }
    let mut client = AdsClient::connect(agent.address).await;
    client.assignment("greeter").await;
    let mut refusing = AdsClient::connect(agent.address).await;
    refusing.request(ASSIGNMENT, &["greeter"]).await;
    let response = refusing.next(ASSIGNMENT).await;
    refusing.reject(&response, &["greeter"], "endpoints of no use").await;
    registered.remove(2).deregister().await.unwrap();
    let (lock, election) = (LockName::parse("reports").unwrap(), LockName::parse("scheduler").unwrap());
    let _held = store.services.acquire(&lock, LockOptions::new()).await.unwrap();
    let _leads = store.services.campaign(&election, "scheduler-1", LockOptions::new()).await.unwrap();
    let (waiting, tasks) = (store.services.clone(), TaskOwner::new());
    let wait = async move { drop(waiting.campaign(&election, "scheduler-2", LockOptions::new()).await) };
    tasks.spawn_until_stopped("a waiting candidate", wait).unwrap();
    let pictures = Path::new(&supplied("ENLIST_CLIENT_PICTURES")).to_owned();
    let page = Page::open(&format!("http://{address}/"), 1200).await;
    page.shows("greeter").await;
    // The timeline has what the page has seen.
    registered.remove(3).deregister().await.unwrap();
    for (scheme, is_expected) in [("light", "sum > 600"), ("dark", "sum < 200")] {
        for [width, height] in [[360, 740], [1280, 800], [3840, 2160]] {
            page.show_as([width, height], scheme).await;
            page.until(&format!("window.innerWidth === {width}")).await;
            let colours = "getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3)";
            let sum = format!("(sum => {is_expected})({colours}.reduce((sum, one) => sum + Number(one), 0))");
            page.until(&sum).await;
            for (view, texts) in [
                ("services", ["Change seen", "service-40"]),
                ("service/greeter", ["Endpoints", "greeter-7"]),
                ("queues", ["reports", "scheduler-2"]),
                ("clients", ["Last rejection", "endpoints of no use"]),
                ("timeline", ["Detail", "greeter-3"]),
            ] {
                page.value(&format!("location.hash = '#/{view}'")).await;
                for text in texts {
                    page.until(&format!("document.querySelector('#table').textContent.includes('{text}')")).await;
                }
                let is_within = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
                assert_eq!(page.value(is_within).await, true, "{view} at {width}");
                let name = format!("{}-{width}-{scheme}.png", view.replace('/', "-"));
                page.photograph(&pictures.join(name)).await;
            }
        }
    }
    page.close().await;
}

/// A hundred of the instances change in turn. The others are published: the memory backend has a task for each
/// registration, of which each looks at every change.
#[tokio::test]
#[ignore = "needs Chromium: cargo xtask clients"]
async fn the_console_follows_changes_of_ten_thousand_instances() {
    const FIXED: u16 = 9_900;
    const CHANGING: u16 = 100;
    const CHANGES: u32 = 500;
    /// A hundred per second.
    const INTERVAL: Duration = Duration::from_millis(10);
    let store = Store::new();
    let (_agent, address) = start(&store).await;
    let service = ServiceRef::parse("greeter").unwrap();
    let publish = (1..=FIXED).map(|port| store.services.publish(&service, instance(&format!("fixed-{port}"), port)));
    join_all(publish).await.into_iter().for_each(|published| _ = published.unwrap());
    let register =
        (1..=CHANGING).map(|number| store.register("greeter", instance(&format!("changing-{number}"), FIXED + number)));
    let registered = join_all(register).await;
    let page = Page::open(&format!("http://{address}/#/service/greeter"), 1200).await;
    page.shows("changing-100").await;
    page.measure_pauses().await;
    let (mut due, begun) = (tokio::time::interval(INTERVAL), Instant::now());
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for (registration, number) in registered.iter().cycle().zip(0..CHANGES) {
        due.tick().await;
        registration.update(|update| _ = update.version(format!("version-{number}"))).await.unwrap();
    }
    let time = begun.elapsed();
    assert!(time < CHANGES * INTERVAL * 5 / 4, "the store is slower than the changes: {time:?}");
    page.shows(&format!("version-{}", CHANGES - 1)).await;
    page.has_reacted().await;
    page.close().await;
}
