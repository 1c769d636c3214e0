//! All that happens while the screen is shown.

use std::io;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pingora_sendfile::proxy::status::Status;
use ratatui::crossterm::event::{self, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal::disable_raw_mode;
use tokio::signal::unix::{signal, SignalKind};

use super::super::admin::AdminConnection;
use super::super::status::{fetch, plain};

/// The least time between an answer that came late and the next question.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// An event.
pub enum Event {
    /// An answer, or the reason that there is none, and its time.
    Answer(Box<Result<Status, String>>, Instant),
    /// The frame has to be drawn again.
    Redraw,
    /// The user leaves.
    Leave,
    /// A signal that ends the process.
    Signal(i32),
    /// Keys cannot be read any more.
    NoKeys(io::Error),
}

/// Asks the proxy, one question after another.
pub fn ask(
    mut proxy: AdminConnection,
    interval: Duration,
    events: SyncSender<Event>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("ask".into())
        .spawn(move || loop {
            let begun = Instant::now();
            let answer = fetch(&mut proxy).map_err(|e| plain(&e.to_string()));
            let answer = Event::Answer(Box::new(answer), Instant::now());
            if events.send(answer).is_err() {
                return;
            }
            thread::sleep(interval.saturating_sub(begun.elapsed()).max(MIN_PAUSE));
        })
}

/// Reads keys, and learns of changes of the size.
pub fn read_keys(events: SyncSender<Event>) -> io::Result<()> {
    let read = move || loop {
        let event = match event::read() {
            Ok(event::Event::Key(key)) if leaves(&key) => Event::Leave,
            Ok(event::Event::Resize(..)) => Event::Redraw,
            Ok(_) => continue,
            Err(e) => Event::NoKeys(e),
        };
        let is_last = matches!(event, Event::NoKeys(_));
        if events.send(event).is_err() || is_last {
            return;
        }
    };
    thread::Builder::new().name("keys".into()).spawn(read)?;
    Ok(())
}

/// True for q, Esc and Ctrl-C.
fn leaves(key: &KeyEvent) -> bool {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Esc => true,
            KeyCode::Char('q' | 'Q') => !is_control,
            KeyCode::Char('c') => is_control,
            _ => false,
        }
}

/// Waits for the signals that end a process, which then have no effect of their own.
pub fn wait_for_signals(events: SyncSender<Event>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let kinds = [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
    ];
    let entered = runtime.enter();
    let [mut hangup, mut interrupt, mut quit, mut terminate] = {
        let [a, b, c, d] = kinds.map(signal);
        [a?, b?, c?, d?]
    };
    drop(entered);
    let mut next = move || {
        let kind = runtime.block_on(async {
            tokio::select! {
                _ = hangup.recv() => SignalKind::hangup(),
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = quit.recv() => SignalKind::quit(),
                _ = terminate.recv() => SignalKind::terminate(),
            }
        });
        kind.as_raw_value()
    };
    let (tell, told) = mpsc::channel();
    // The queue may be full.
    let send = move || {
        // Nobody receives it if the command has ended meanwhile.
        if let Ok(number) = told.recv() {
            let _ = events.send(Event::Signal(number));
        }
    };
    let wait = move || {
        let _ = tell.send(next());
        // The terminal may take nothing that is drawn. A second signal does not wait for it.
        let number = next();
        let _ = disable_raw_mode();
        std::process::exit(128 + number);
    };
    thread::Builder::new().name("signal".into()).spawn(send)?;
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_keys_leave_and_no_other() {
        let with = |code, modifiers| KeyEvent::new(code, modifiers);
        let (none, control) = (KeyModifiers::NONE, KeyModifiers::CONTROL);
        for (key, expected) in [
            (with(KeyCode::Char('q'), none), true),
            (with(KeyCode::Char('Q'), KeyModifiers::SHIFT), true),
            (with(KeyCode::Esc, none), true),
            (with(KeyCode::Char('c'), control), true),
            (with(KeyCode::Char('c'), none), false),
            (with(KeyCode::Char('q'), control), false),
            (with(KeyCode::Enter, none), false),
        ] {
            assert_eq!(leaves(&key), expected, "{key:?}");
        }
        let mut released = with(KeyCode::Esc, none);
        released.kind = KeyEventKind::Release;
        assert!(!leaves(&released));
    }
}
