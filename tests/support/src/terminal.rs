use std::{
    fs::File,
    io::{Read, Write},
    num::NonZeroU16,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

use rustix::{
    fs::{open, Mode, OFlags},
    process::{kill_process_group, Pid, Signal},
    pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags},
    termios::{tcgetattr, tcsetwinsize, LocalModes, Winsize},
};

use crate::eventually_ok;

/// What runs the program as a user's shell does: it outlives the program, or the kernel would reset the terminal
/// itself, and signals for all do not end it.
const SHELL: &str = r#"trap : HUP INT QUIT TERM; "$@"; echo "ended with $?"; read -r _"#;

/// A program in a terminal of its own, killed when dropped.
pub struct Terminal {
    shell: Child,
    /// The side of the user.
    user: File,
    shown: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Runs a command with a terminal of this size as its standard input, output and error.
    pub fn run(command: &Command, columns: u16, rows: u16) -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("open a pseudo-terminal");
        grantpt(&user).expect("grant access to the pseudo-terminal");
        unlockpt(&user).expect("unlock the pseudo-terminal");
        let name = ptsname(&user, Vec::new()).expect("the name of the pseudo-terminal");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let program = open(&*name, flags, Mode::empty()).expect("open the terminal");
        tcsetwinsize(&user, winsize(columns, rows)).expect("set the size");
        // It controls the session: the kernel tells the program of a new size.
        let mut session = Command::new("setsid");
        session
            .args(["--ctty", "sh", "-c", SHELL, "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let stdio = || program.try_clone().expect("duplicate the terminal");
        let shell = session
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .expect("run setsid (util-linux)");

        let user = File::from(user);
        let parser = vt100::Parser::new(sized(rows), sized(columns), 0);
        let shown = Arc::new(Mutex::new(parser));
        let mut output = user.try_clone().expect("duplicate the pseudo-terminal");
        let screen = shown.clone();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error once nobody has the other side open.
            while let Ok(read @ 1..) = output.read(&mut buffer) {
                lock(&screen).process(&buffer[..read]);
            }
        });
        Self {
            shell,
            user,
            shown,
            reader: Some(reader),
        }
    }

    /// The text that it shows.
    pub fn text(&self) -> String {
        lock(&self.shown).screen().contents()
    }

    /// Waits until it shows a text.
    pub fn expect(&self, what: &str) {
        self.expect_frame(&[what], &[]);
    }

    /// Waits until it shows all of `shown` and nothing of `hidden`. A frame takes a while to draw, and what it
    /// shows until then is of two.
    pub fn expect_frame(&self, shown: &[&str], hidden: &[&str]) {
        eventually_ok(|| {
            let text = self.text();
            let is_drawn = shown.iter().all(|what| text.contains(what))
                && !hidden.iter().any(|what| text.contains(what));
            is_drawn
                .then_some(())
                .ok_or_else(|| format!("{shown:?} without {hidden:?} in\n{text}"))
        });
    }

    /// True while the program shows a screen beside the one with the user's lines.
    pub fn is_on_alternate_screen(&self) -> bool {
        lock(&self.shown).screen().alternate_screen()
    }

    /// True if the cursor cannot be seen.
    pub fn hides_cursor(&self) -> bool {
        lock(&self.shown).screen().hide_cursor()
    }

    /// True if lines are edited, and keys are echoed and send signals, as a shell has it.
    pub fn edits_lines(&self) -> bool {
        let modes = tcgetattr(&self.user).expect("the modes of the terminal");
        let usual = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        modes.local_modes.contains(usual)
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &[u8]) {
        self.user.write_all(keys).expect("write to the terminal");
    }

    /// Changes the size of its window.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        // Before the program learns of it, and draws.
        let mut shown = lock(&self.shown);
        shown.set_size(sized(rows), sized(columns));
        tcsetwinsize(&self.user, winsize(columns, rows)).expect("set the size");
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        kill_process_group(self.group(), signal).expect("send a signal");
    }

    /// Waits for the end of the program with this exit code.
    pub fn expect_end(&self, code: i32) {
        self.expect(&format!("ended with {code}"));
    }

    /// The group of the shell and its program: the shell began a session.
    fn group(&self) -> Pid {
        Pid::from_child(&self.shell)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // They may have ended.
        let _ = kill_process_group(self.group(), Signal::KILL);
        let _ = self.shell.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn lock(shown: &Mutex<vt100::Parser>) -> MutexGuard<'_, vt100::Parser> {
    shown.lock().expect("no panic while a screen is read")
}

fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn sized(cells: u16) -> NonZeroU16 {
    NonZeroU16::new(cells).expect("a terminal has a cell")
}
