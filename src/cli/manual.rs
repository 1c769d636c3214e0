//! `s3-proxy man` and `s3-proxy completions`: made from the definition of the command line.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Failure, Outcome, Output};

/// The rest of the page of `s3-proxy`, which no definition of an argument has.
const NOTES: &str = r#".SH "EXIT STATUS"
.TP
0
Success.
.TP
1
The command failed, the proxy does not serve, the object to remove does not exist, verify found damage, or warm could not store
an object.
.TP
2
The configuration or the command line is wrong.
.TP
130
warm was interrupted by Ctrl\-C.
.TP
128 + the number of a signal
SIGHUP, SIGINT, SIGQUIT or SIGTERM has ended top.
.SH SIGNALS
Of
.BR "s3\-proxy run" :
.TP
SIGTERM
Stop accepting, finish transfers for at most server.grace_period, exit. A second one: exit at once.
.TP
SIGINT
Exit at once.
.TP
SIGQUIT
Hand the listeners over to a new process.
.TP
SIGHUP
Read the configuration and its files again.
.SH ENVIRONMENT
.TP
RUST_LOG
The level of the log on standard error, such as debug.
.PP
The configuration may refer to any other variable as ${NAME}.
.SH "SEE ALSO"
The reference of the configuration and the guide for operators are in the folder docs of the source,
https://github.com/pingora\-sendfile/pingora\-sendfile.
"#;

/// `s3-proxy man DIRECTORY`: a page for each command.
pub fn man(command: Command, directory: &Path) -> Outcome {
    let write = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        clap_mangen::generate_to(command.clone(), directory)?;
        let page = directory.join(Man::new(command).get_filename());
        let text = fs::read_to_string(&page)? + NOTES;
        fs::write(&page, text)
    };
    write().map_err(|e| {
        let directory = directory.display();
        Failure::Other(format!("cannot write manual pages to {directory}: {e}"))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `s3-proxy completions SHELL`.
pub fn completions(mut command: Command, shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "s3-proxy", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Bash {
        // clap_complete 4.6 takes the hyphen of the name for the gap before a subcommand, but not in all
        // places, so nothing is completed after a subcommand (clap-rs/clap issue 6421).
        script = script.replace("s3__subcmd__proxy", "s3__proxy");
    }
    let mut output = Output::new();
    output.line(script.trim_end())?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}
