//! The terminal, which is as before once this is dropped.

use std::io;

use ratatui::{DefaultTerminal, Frame};

/// The terminal in raw mode, on its alternate screen.
pub struct Screen(DefaultTerminal);

// === impl Screen ===

impl Screen {
    /// Takes the terminal over. A panic, in any thread, restores it before its message is written.
    pub fn enter() -> io::Result<Screen> {
        ratatui::try_init().map(Screen).inspect_err(|_| restore())
    }

    pub fn draw(&mut self, frame: impl FnOnce(&mut Frame)) -> io::Result<()> {
        self.0.draw(frame).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // It fails if the terminal is gone.
    let _ = ratatui::try_restore();
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::env;
    use std::process::Command;

    use ratatui::widgets::Paragraph;
    use test_support::Terminal;

    use super::*;

    /// Tells a test that it is the program in the terminal.
    const INSIDE: &str = "TOP_TEST_IN_A_TERMINAL";

    #[test]
    fn a_panic_restores_the_terminal() {
        if env::var_os(INSIDE).is_some() {
            let mut screen = Screen::enter().expect("take the terminal over");
            screen
                .draw(|frame| frame.render_widget(Paragraph::new("figures"), frame.area()))
                .expect("draw");
            // Until the other side has seen it.
            let mut line = String::new();
            let _ = io::stdin().read_line(&mut line);
            panic!("on purpose");
        }
        let mut program = Command::new(env::current_exe().expect("this program"));
        let name = "cli::top::screen::tests::a_panic_restores_the_terminal";
        program
            .args(["--exact", "--nocapture", name])
            .env(INSIDE, "1");
        let mut terminal = Terminal::run(&program, 100, 40);
        terminal.expect("figures");
        assert!(terminal.is_on_alternate_screen() && !terminal.edits_lines());
        terminal.press(b"\n");
        // That of the test harness for a test that failed.
        terminal.expect_end(101);
        assert!(
            terminal.text().contains("on purpose"),
            "{}",
            terminal.text()
        );
        assert!(!terminal.is_on_alternate_screen(), "{}", terminal.text());
        assert!(!terminal.hides_cursor());
        assert!(terminal.edits_lines());
    }
}
