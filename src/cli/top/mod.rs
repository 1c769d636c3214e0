//! `s3-proxy top`: the state of a running proxy in a terminal, asked for again and again.
//!
//! One thread asks the proxy, one reads keys, one waits for signals. They tell the main thread, which alone
//! draws, through a short queue. The proxy learns of none of this: it answers `GET /status`.

mod events;
mod frame;
mod rates;
mod screen;
mod text;
mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use pingora_sendfile::config::Config;

use super::admin::AdminClient;
use super::status::{fetch, plain};
use super::{Failure, Outcome, Output};
use events::Event;
use screen::Screen;
use view::View;

/// The most events that wait to be handled.
const QUEUE: usize = 16;

/// The longest time between two frames, of which the age of old figures is a part.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);

/// The bounds of `--interval`, in seconds.
const MIN_INTERVAL: f64 = 0.1;
const MAX_INTERVAL: f64 = 3600.0;

/// A reason to leave.
enum End {
    Key,
    Signal(i32),
}

/// The value of `--interval`.
pub fn seconds(argument: &str) -> Result<Duration, String> {
    let seconds = argument.parse::<f64>().ok();
    let seconds = seconds.filter(|seconds| (MIN_INTERVAL..=MAX_INTERVAL).contains(seconds));
    let seconds = seconds.ok_or_else(|| {
        format!("write a number of seconds from {MIN_INTERVAL} to {MAX_INTERVAL}, such as 2")
    })?;
    Ok(Duration::from_secs_f64(seconds))
}

/// `s3-proxy top --config FILE [--interval SECONDS] [--once]`.
pub fn run(config: &Config, interval: Duration, once: bool) -> Outcome {
    let admin = AdminClient::new(config)?;
    let view = View::new(plain(&admin.place().to_string()), interval);
    if once {
        return write(&admin, view, interval);
    }
    if !io::stdout().is_terminal() {
        let what = "standard output is not a terminal; use --once for one frame of plain text";
        return Err(Failure::Usage(format!("top: {what}")));
    }
    match show(&admin, view, interval)? {
        End::Key => Ok(ExitCode::SUCCESS),
        // As a shell reports the end of a process by a signal.
        End::Signal(number) => Ok(u8::try_from(128 + number).map_or(ExitCode::FAILURE, Into::into)),
    }
}

/// Write a frame as text. Its rates are those of one interval.
fn write(admin: &AdminClient, mut view: View, interval: Duration) -> Outcome {
    let mut proxy = admin.connection();
    view.take(Ok(fetch(&mut proxy)?), Instant::now());
    thread::sleep(interval);
    view.take(Ok(fetch(&mut proxy)?), Instant::now());
    let mut output = Output::new();
    output.line(frame::text(&view, Instant::now()))?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Show frames until something ends it.
fn show(admin: &AdminClient, mut view: View, interval: Duration) -> Result<End, Failure> {
    let (sender, events) = mpsc::sync_channel(QUEUE);
    // Before the terminal changes: from here on, each of them has it restored.
    events::wait_for_signals(sender.clone()).map_err(|e| unequipped(&e))?;
    let mut screen = Screen::enter().map_err(|e| unusable(&e))?;
    events::read_keys(sender.clone()).map_err(|e| unequipped(&e))?;
    let asks = events::ask(admin.connection(), interval, sender).map_err(|e| unequipped(&e))?;
    loop {
        screen
            .draw(|frame| frame::draw(frame, &view, Instant::now()))
            .map_err(|e| unusable(&e))?;
        if let Some(end) = handle(&events, &mut view)? {
            return Ok(end);
        }
        if asks.is_finished() {
            let what = "the thread that asks the proxy has ended; please report this";
            return Err(Failure::Other(format!("top: {what}")));
        }
    }
}

/// Wait for an event, and handle it and those behind it.
fn handle(events: &Receiver<Event>, view: &mut View) -> Result<Option<End>, Failure> {
    let mut timeout = REDRAW_INTERVAL;
    // A window that is dragged does not stop the drawing.
    for _ in 0..QUEUE {
        match events.recv_timeout(timeout) {
            Err(_) => break,
            Ok(Event::Redraw) => {}
            Ok(Event::Answer(answer, at)) => view.take(*answer, at),
            Ok(Event::Leave) => return Ok(Some(End::Key)),
            Ok(Event::Signal(number)) => return Ok(Some(End::Signal(number))),
            Ok(Event::NoKeys(e)) => return Err(unusable(&e)),
        }
        timeout = Duration::ZERO;
    }
    Ok(None)
}

/// Something that the command needs beside the terminal cannot be had.
fn unequipped(e: &io::Error) -> Failure {
    Failure::Other(format!(
        "top: cannot start a thread or catch a signal: {e}; allow more threads and open files"
    ))
}

fn unusable(e: &io::Error) -> Failure {
    Failure::Other(format!(
        "top: the terminal cannot be used: {e}; use --once for one frame of plain text"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_event_is_lost_behind_many_others() {
        let (sender, events) = mpsc::sync_channel(3 * QUEUE);
        let mut view = View::new("here".to_owned(), REDRAW_INTERVAL);
        for before in [0, 1, QUEUE - 1, QUEUE, QUEUE + 1, 2 * QUEUE + 1] {
            for _ in 0..before {
                sender.send(Event::Redraw).unwrap();
            }
            sender.send(Event::Signal(15)).unwrap();
            for _ in 0..before / QUEUE {
                assert!(matches!(handle(&events, &mut view), Ok(None)), "{before}");
            }
            let end = handle(&events, &mut view);
            assert!(matches!(end, Ok(Some(End::Signal(15)))), "{before}");
        }
    }

    #[test]
    fn an_interval_is_neither_a_flood_nor_forever() {
        for (argument, expected) in [
            ("2", Some(2000)),
            ("0.1", Some(100)),
            ("0.5", Some(500)),
            ("3600", Some(3_600_000)),
            ("0", None),
            ("0.09", None),
            ("-1", None),
            ("3601", None),
            ("1e300", None),
            ("inf", None),
            ("NaN", None),
            ("2s", None),
            ("", None),
        ] {
            let interval = seconds(argument).ok();
            assert_eq!(interval, expected.map(Duration::from_millis), "{argument}");
        }
    }
}
