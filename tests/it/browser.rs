//! A headless Chromium, driven by the DevTools protocol over pipes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Instant;
use std::{env, fs, thread};

use serde_json::{json, Value};
use tempfile::TempDir;
use test_support::{skip, PATIENCE};

/// The variable that makes the absence of a browser a failure.
const REQUIRED: &str = "REQUIRE_BROWSER";

/// A browser with a profile of its own, which is closed when dropped.
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    calls: u64,
    _profile: TempDir,
}

/// A page in a tab.
pub struct Tab<'b> {
    browser: &'b mut Browser,
    session: String,
}

/// The program; `None`: there is none, which is said.
fn program() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = env::split_paths(&folders).collect();
    let mut all = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let found = all.find(|program| program.is_file());
    if found.is_none() {
        let is_required = env::var_os(REQUIRED).is_some_and(|value| value == "1");
        assert!(!is_required, "{REQUIRED}=1, but no Chromium is installed");
        skip("no Chromium is installed");
    }
    found
}

// === impl Browser ===

impl Browser {
    /// Starts a browser. `hosts`: rules for names, such as `MAP evil.test 127.0.0.1`. `None`: there is
    /// no browser on this machine.
    pub fn start(hosts: &str) -> Option<Browser> {
        let program = program()?;
        let profile = TempDir::new().expect("a profile");
        let [commands, events] = ["commands", "events"].map(|name| {
            let path = profile.path().join(name);
            let made = Command::new("mkfifo").arg(&path).status();
            assert!(made.expect("run mkfifo").success());
            path
        });
        let log = File::create(profile.path().join("log")).expect("a log");
        let temporary = profile.path().join("tmp");
        fs::create_dir(&temporary).expect("a folder for temporary files");
        // The protocol's descriptors are 3 and 4.
        let child = Command::new("sh")
            .arg("-c")
            .arg("exec \"$@\" 3<\"$COMMANDS\" 4>\"$EVENTS\"")
            .arg("sh")
            .arg(program)
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--no-proxy-server"])
            .arg(format!("--host-resolver-rules={hosts}"))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("COMMANDS", &commands)
            .env("EVENTS", &events)
            .env("TMPDIR", &temporary)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start the browser");
        // In the order in which the shell opens them.
        let to = OpenOptions::new().write(true).open(&commands);
        let to = to.expect("open the pipe of commands");
        let from = File::open(&events).expect("open the pipe of events");
        let (sender, received) = mpsc::channel();
        thread::spawn(move || {
            for message in BufReader::new(from).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("JSON");
                // The end of the test is no concern of the browser.
                let _ = sender.send(message);
            }
        });
        Some(Browser {
            child,
            to,
            from: received,
            calls: 0,
            _profile: profile,
        })
    }

    /// Opens a page, and waits until it is loaded.
    pub fn open(&mut self, url: &str) -> Tab<'_> {
        let blank = json!({"url": "about:blank"});
        let target = self.call(None, "Target.createTarget", &blank);
        let target = target.expect("a tab");
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.call(None, "Target.attachToTarget", &attach);
        let session = session.expect("the tab");
        let session = session["sessionId"].as_str().expect("a session").to_owned();
        let mut tab = Tab {
            browser: self,
            session,
        };
        tab.navigate(url);
        tab
    }

    /// The result of a command, or its error.
    fn call(
        &mut self,
        session: Option<&str>,
        method: &str,
        params: &Value,
    ) -> Result<Value, Value> {
        self.calls += 1;
        let id = self.calls;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).expect("ask the browser");
        loop {
            let message = self.from.recv_timeout(PATIENCE);
            let mut message = message.unwrap_or_else(|e| panic!("{method}: {e}\n{}", self.log()));
            if message["id"] == id {
                return match message.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(message["result"].take()),
                };
            }
        }
    }

    fn log(&self) -> String {
        let log = self._profile.path().join("log");
        fs::read_to_string(log).unwrap_or_default()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its other processes end before it does. After a kill, they write to the profile while that
        // is removed.
        let close = json!({"id": self.calls + 1, "method": "Browser.close"});
        let mut ends = write!(self.to, "{close}\0").map_err(|_| RecvTimeoutError::Timeout);
        while ends.is_ok() {
            ends = self.from.recv_timeout(PATIENCE).map(drop);
        }
        if ends != Err(RecvTimeoutError::Disconnected) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

// === impl Tab ===

impl Tab<'_> {
    /// Goes to another page, and waits until it is loaded.
    pub fn navigate(&mut self, url: &str) {
        let went = self.call("Page.navigate", &json!({"url": url}));
        let went = went.expect("a page");
        assert!(went.get("errorText").is_none(), "{url}: {went}");
        let loaded = "document.readyState === 'complete' && location.href !== 'about:blank'";
        while self
            .try_evaluate(loaded)
            .is_none_or(|loaded| loaded != true)
        {
            thread::yield_now();
        }
    }

    /// The value of an expression, which may be a promise.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let value = self.try_evaluate(expression);
        value.unwrap_or_else(|| panic!("{expression} has failed"))
    }

    /// Waits until an expression is true. The page may go to another one meanwhile.
    pub fn wait(&mut self, expression: &str) {
        let patience = PATIENCE.as_millis();
        let look = format!(
            "new Promise((done) => {{
               const end = Date.now() + {patience} / 2;
               const look = () => {{
                 if ({expression}) done(true);
                 else if (Date.now() > end) done(document.documentElement.outerHTML);
                 else setTimeout(look, 20);
               }};
               look();
             }})"
        );
        let end = Instant::now() + PATIENCE;
        loop {
            match self.try_evaluate(&look) {
                Some(waited) => return assert_eq!(waited, true, "waiting for {expression}"),
                None => assert!(Instant::now() < end, "waiting for {expression}"),
            }
        }
    }

    /// `None`: the expression has failed, or the page has gone.
    fn try_evaluate(&mut self, expression: &str) -> Option<Value> {
        let params = json!({
            "expression": expression,
            "awaitPromise": true,
            "returnByValue": true,
        });
        let result = self.call("Runtime.evaluate", &params);
        let mut result = result
            .inspect_err(|e| eprintln!("{expression}: {e}"))
            .ok()?;
        if result.get("exceptionDetails").is_some() {
            eprintln!("{expression}: {result}");
            return None;
        }
        Some(result["result"]["value"].take())
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value, Value> {
        let session = self.session.clone();
        self.browser.call(Some(&session), method, params)
    }
}
