//! A real browser without a window: Chromium, driven by chromedriver. What it fetches and what its console says is logged.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{collector::free_ports, http, ready, server::Server};

/// A browser that runs. Dropped, it is closed.
pub struct Browser {
    _driver: Server,
    server: String,
    session: String,
}

impl Browser {
    /// Starts it; without scripts no page may run any. Its files go below `folder`.
    pub fn start(folder: &Path, with_scripts: bool) -> Result<Self> {
        ["chromium", "chromedriver"].into_iter().try_for_each(ready::program)?;
        fs::create_dir_all(folder)?;
        let [port] = free_ports()?;
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).env("TMPDIR", folder).env("HOME", folder);
        let server = format!("127.0.0.1:{port}");
        let is_ready = || http::get(&server, "/status").is_ok_and(|status| status["value"]["ready"] == true);
        let driver = Server::start(command, folder.join("chromedriver"), is_ready)?;
        let arguments = ["headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"];
        let mut options = json!({ "args": arguments });
        if !with_scripts {
            options["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2});
        }
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let answer = http::post(&server, "/session", &capabilities)?;
        let session = answer["value"]["sessionId"].as_str().with_context(|| format!("no session: {answer}"))?;
        Ok(Self { _driver: driver, session: session.into(), server })
    }

    fn command(&self, command: &str, arguments: &Value) -> Result<Value> {
        let path = format!("/session/{}/{command}", self.session);
        let mut answer = http::post(&self.server, &path, arguments)?;
        Ok(answer["value"].take())
    }

    /// Opens a file, and waits until it is there with all that it needs.
    pub fn open(&self, page: &Path) -> Result<()> {
        let url = format!("file://{}", page.display());
        self.command("url", &json!({ "url": url })).map(drop)
    }

    /// The value of a function's body in the page.
    pub fn evaluate(&self, body: &str) -> Result<Value> {
        self.command("execute/sync", &json!({"script": body, "args": []}))
    }

    /// A command of Chromium's DevTools protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Result<Value> {
        self.command("goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// The text of the page as a person sees it.
    pub fn text(&self) -> Result<String> {
        // By DevTools, which works where no script may run.
        let evaluated = self
            .devtools("Runtime.evaluate", &json!({"expression": "document.body.innerText", "returnByValue": true}))?;
        Ok(evaluated["result"]["value"].as_str().with_context(|| format!("no text: {evaluated}"))?.into())
    }

    /// What the console said since the last look, a message each.
    pub fn console(&self) -> Result<Vec<String>> {
        let messages = self.command("se/log", &json!({"type": "browser"}))?;
        let messages = messages.as_array().with_context(|| format!("no log: {messages}"))?;
        Ok(messages.iter().map(|message| message["message"].to_string()).collect())
    }

    /// What the page asked for since the last look, an address each.
    pub fn requests(&self) -> Result<Vec<String>> {
        let events = self.command("se/log", &json!({"type": "performance"}))?;
        let events = events.as_array().with_context(|| format!("no log: {events}"))?;
        let mut requests = Vec::new();
        for event in events {
            let event: Value = serde_json::from_str(event["message"].as_str().context("an event without a message")?)?;
            let event = &event["message"];
            let url = match event["method"].as_str() {
                Some("Network.requestWillBeSent") => &event["params"]["request"]["url"],
                Some("Network.webSocketCreated" | "Network.webTransportCreated") => &event["params"]["url"],
                _ => continue,
            };
            requests.push(url.as_str().context("a request without an address")?.to_owned());
        }
        Ok(requests)
    }

    /// What the page looks like, all of it, at this width, as on a phone or not, on a light or a dark desk: a PNG.
    pub fn picture(&self, width: u32, scheme: &str) -> Result<Vec<u8>> {
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics)?;
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &features)?;
        let picture = self.devtools("Page.captureScreenshot", &json!({"captureBeyondViewport": true}))?;
        base64(&picture)
    }

    /// The page as it is printed: a PDF.
    pub fn printed(&self) -> Result<Vec<u8>> {
        base64(&self.devtools("Page.printToPDF", &json!({"preferCSSPageSize": true}))?)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session; without that it would outlive chromedriver.
        let _ = http::delete(&self.server, &format!("/session/{}", self.session));
    }
}

fn base64(answer: &Value) -> Result<Vec<u8>> {
    use ::base64::prelude::{BASE64_STANDARD, Engine};
    let data = answer["data"].as_str().with_context(|| format!("no data: {answer}"))?;
    let bytes = BASE64_STANDARD.decode(data)?;
    ensure!(!bytes.is_empty());
    Ok(bytes)
}
