//! `s3-proxy`: runs the proxy, maintains its cache, checks a configuration, or runs a demo.

#![deny(unsafe_code)]

mod allocator;
#[forbid(unsafe_code)]
mod cli;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use pingora_sendfile::config::Config;
use pingora_sendfile::logging;
use pingora_sendfile::proxy::descriptors;
use pingora_sendfile::proxy::memory;
use pingora_sendfile::proxy::preflight::warn_of_expiry;
use pingora_sendfile::proxy::server::ProxyServer;
use pingora_sendfile::proxy::signals;

use cli::cache::CacheCommand;
use cli::warm::Wanted;
use cli::{preflight, url_path, Failure, Outcome, Output};

/// A caching proxy for S3 that serves hits without copying them.
#[derive(Parser)]
#[command(name = "s3-proxy", version = env!("S3_PROXY_VERSION"))]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve, until SIGTERM (gracefully) or SIGINT.
    Run {
        /// The YAML configuration, see config.yaml.example.
        #[arg(long)]
        config: PathBuf,
        /// Wait at server.upgrade_sock for the running process to get SIGQUIT, and take over
        /// its listeners.
        #[arg(long)]
        upgrade: bool,
    },
    /// Check a configuration: exit 0, or 2 and a line for each mistake.
    Check {
        /// The YAML configuration, see config.yaml.example.
        #[arg(long)]
        config: PathBuf,
        /// Write the configuration with every default filled in, without secrets.
        #[arg(long)]
        print: bool,
    },
    /// Have the running proxy read its configuration again, after a check: exit 0, 1 if it cannot, or
    /// 2 and a line for each mistake. Keys that need a restart are named.
    Reload {
        /// The YAML configuration of the running proxy.
        #[arg(long)]
        config: PathBuf,
    },
    /// Have the running proxy start a new process and hand its listeners over to it: exit 0 once the
    /// new one serves, or 1 if the old one goes on.
    Upgrade {
        /// The YAML configuration of the new process.
        #[arg(long)]
        config: PathBuf,
        /// The program of the new process; default: this one.
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
    },
    /// Remove one object from the cache of the running proxy, or with a final * all whose
    /// path has this prefix: exit 0, or 1 if there is none.
    Purge {
        /// The YAML configuration of the running proxy.
        #[arg(long)]
        config: PathBuf,
        /// The path as clients request it.
        #[arg(value_parser = url_path)]
        path: String,
    },
    /// Store objects in the cache of the running proxy. Exits with 1 if an object cannot be stored. An
    /// interrupted run continues when the command is run again.
    Warm {
        /// The YAML configuration of the running proxy.
        #[arg(long)]
        config: PathBuf,
        /// A file with one path per line, or - for standard input. Empty lines and lines that begin with #
        /// are skipped.
        #[arg(long)]
        list: Option<PathBuf>,
        /// The number of objects that are stored at a time.
        #[arg(long, value_name = "N", default_value_t = 8,
              value_parser = clap::value_parser!(u8).range(1..=64))]
        concurrency: u8,
        /// Paths as clients request them. A final * stands for all objects whose path has this prefix.
        #[arg(value_name = "PATH", value_parser = url_path, required_unless_present = "list")]
        paths: Vec<String>,
    },
    /// Inspect the cache on disk. The proxy may run meanwhile.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Ask the running proxy if it serves, at metrics.address: exit 0, or 1 on every failure.
    Health {
        /// The YAML configuration of the running proxy.
        #[arg(long)]
        config: PathBuf,
        /// Ask if it is ready for clients: not while it starts, drains or fails.
        #[arg(long)]
        ready: bool,
    },
    /// Have the running proxy send its clients away: it is not ready, and each connection ends with its
    /// next response.
    Drain {
        /// The YAML configuration of the running proxy.
        #[arg(long)]
        config: PathBuf,
        /// Have it serve as before.
        #[arg(long)]
        undo: bool,
    },
    /// Show the state of the running proxy: hits, bytes, disks, origins, the objects that are requested
    /// most, and warnings.
    Status {
        /// The YAML configuration of the running proxy.
        #[arg(long)]
        config: PathBuf,
        /// Write one JSON object, sizes in bytes.
        #[arg(long)]
        json: bool,
    },
    /// Show the state of the running proxy in the terminal, as `status` has it, with rates, until q, Esc
    /// or Ctrl-C.
    #[cfg(feature = "top")]
    Top {
        /// The YAML configuration of the running proxy.
        #[arg(long)]
        config: PathBuf,
        /// The time between two questions, 0.1 to 3600 seconds.
        #[arg(long, value_name = "SECONDS", default_value = "2",
              value_parser = cli::top::seconds)]
        interval: std::time::Duration,
        /// Write one frame as plain text after an interval, and exit.
        #[arg(long)]
        once: bool,
    },
    /// Show what the running proxy logs, or change it until its end.
    LogLevel {
        /// The YAML configuration of the running proxy.
        #[arg(long)]
        config: PathBuf,
        /// off, error, warn, info, debug or trace for lines of the proxy, or a filter as for RUST_LOG.
        filter: Option<String>,
        /// Log as at the start.
        #[arg(long, conflicts_with = "filter")]
        reset: bool,
    },
    /// Serve sample files from an S3 server of its own; needs no account.
    #[cfg(feature = "demo")]
    Demo {
        /// The folder whose subfolders are buckets; default: a sample folder.
        #[arg(long)]
        root: Option<PathBuf>,
        /// The address to listen on; default: port 8080, or any if it is taken.
        #[arg(long)]
        listen: Option<std::net::SocketAddr>,
    },
    /// Write a script for a shell that completes commands and options.
    Completions {
        /// The shell that runs the script.
        shell: Shell,
    },
    /// Write manual pages, one for each command.
    Man {
        /// The folder for the pages.
        directory: PathBuf,
    },
}

/// The log filter if RUST_LOG is not set. At each start, Pingora warns that headers are stored
/// without a compression dictionary, which is intended. The AWS SDK logs responses of credential
/// servers, which can hold secrets; the proxy logs the errors without them. Rustls warns of what
/// clients send, which the proxy counts.
const DEFAULT_LOG: &str =
    "warn,pingora_sendfile=info,pingora_cache::meta=error,aws_config=off,aws_smithy_runtime=off,\
     rustls=error";

fn main() -> ExitCode {
    logging::init(DEFAULT_LOG);
    let outcome = match Args::parse().command {
        Command::Run { config, upgrade } => {
            let outcome = run(&config, upgrade);
            if let (true, Err(e)) = (upgrade, &outcome) {
                cli::upgrade::explain(e);
            }
            outcome
        }
        Command::Check { config, print } => check(&config, print),
        Command::Reload { config } => {
            load(&config).and_then(|loaded| cli::reload::run(&config, &loaded))
        }
        Command::Upgrade { config, binary } => {
            load(&config).and_then(|loaded| cli::upgrade::run(&config, &loaded, binary))
        }
        Command::Purge { config, path } => {
            load(&config).and_then(|config| cli::purge::run(&config, &path))
        }
        Command::Warm {
            config,
            list,
            concurrency,
            paths,
        } => load(&config).and_then(|config| {
            let concurrency = usize::from(concurrency);
            let wanted = Wanted {
                paths,
                list,
                concurrency,
            };
            cli::warm::run(&config, wanted)
        }),
        Command::Cache(command) => cli::cache::run(&command),
        Command::Health { config, ready } => cli::health::run(load(&config), ready),
        Command::Drain { config, undo } => {
            load(&config).and_then(|config| cli::drain::run(&config, undo))
        }
        Command::Status { config, json } => {
            load(&config).and_then(|config| cli::status::run(&config, json))
        }
        #[cfg(feature = "top")]
        Command::Top {
            config,
            interval,
            once,
        } => load(&config).and_then(|config| cli::top::run(&config, interval, once)),
        Command::LogLevel {
            config,
            filter,
            reset,
        } => {
            load(&config).and_then(|config| cli::log_level::run(&config, filter.as_deref(), reset))
        }
        #[cfg(feature = "demo")]
        Command::Demo { root, listen } => cli::demo::run(root, listen)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|e| Failure::Other(e.to_string())),
        Command::Completions { shell } => cli::manual::completions(Args::command(), shell),
        Command::Man { directory } => cli::manual::man(Args::command(), &directory),
    };
    outcome.unwrap_or_else(|e| {
        for line in e.to_string().lines() {
            eprintln!("s3-proxy: {line}");
        }
        e.exit_code()
    })
}

fn load(file: &Path) -> Result<Config, Failure> {
    Ok(Config::load(file)?)
}

fn run(config: &Path, upgrade: bool) -> Outcome {
    signals::outlive()?;
    let config = load(config)?;
    preflight(&config)?;
    if upgrade && config.server.upgrade_sock.is_none() {
        let what =
            "is missing; write the path of a socket in a folder of the proxy's own, such as \
                    /run/s3-proxy/upgrade.sock";
        return Err(config.mistake("server.upgrade_sock", what).into());
    }
    memory::release_by(allocator::release);
    let server = if upgrade {
        ProxyServer::successor(&config)
    } else {
        ProxyServer::new(&config)
    };
    server
        .and_then(|server| server.run(|| ()))
        .map_err(|e| Failure::Other(e.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

fn check(file: &Path, print: bool) -> Outcome {
    let config = load(file)?;
    preflight(&config)?;
    warn_of_expiry(&config);
    let mut output = Output::new();
    if print {
        let connections = descriptors::default_connections();
        let config = config.effective(connections, descriptors::default_cached_files());
        output.line(config.to_yaml().trim_end())?;
    } else {
        output.line(format_args!("{}: ok", file.display()))?;
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}
