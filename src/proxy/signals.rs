//! Signals that end neither the process nor a transfer.

use std::io;
use std::sync::LazyLock;

use log::{info, warn};
use parking_lot::Mutex;
use tokio::signal::unix::{signal, Signal, SignalKind};
use tokio::sync::watch;

/// Those who act on SIGHUP.
static HANGUPS: LazyLock<watch::Sender<()>> = LazyLock::new(|| watch::Sender::new(()));

/// Each SIGHUP from now on, if the process [outlives](outlive) it.
#[cfg(feature = "s3-proxy")]
pub(super) fn hangups() -> watch::Receiver<()> {
    HANGUPS.subscribe()
}

/// The actions on SIGUSR1.
static ON_USER_1: Mutex<Vec<Box<dyn Fn() -> bool + Send>>> = Mutex::new(Vec::new());

/// Call `act` on each SIGUSR1 from now on until it returns false, if the process [outlives](outlive)
/// the signal.
#[cfg(feature = "s3-proxy")]
pub(super) fn on_user_1(act: impl Fn() -> bool + Send + 'static) {
    ON_USER_1.lock().push(Box::new(act));
}

/// Ignore signals that would end the process but have no meaning for it.
///
/// SIGHUP makes the proxy read its configuration and certificates again. SIGUSR1 makes the access log open its file again.
/// SIGUSR2 comes from upgrades of other servers. After SIGXFSZ, the write that is too long fails
/// (setrlimit(2), `RLIMIT_FSIZE`). The Rust runtime ignores SIGPIPE.
///
/// # Errors
/// The kernel or the limits of the process allow no handler or no thread.
pub fn outlive() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let (mut hangup, mut user_1) = {
        let _guard = runtime.enter();
        // The handler stays when its receiver is dropped.
        for unused in [
            SignalKind::user_defined2(),
            SignalKind::from_raw(libc::SIGXFSZ),
        ] {
            drop(signal(unused)?);
        }
        let user_1 = signal(SignalKind::user_defined1())?;
        (signal(SignalKind::hangup())?, user_1)
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let all = async { tokio::join!(log_each(&mut hangup), act_on_each(&mut user_1)) };
            runtime.block_on(all)
        })?;
    Ok(())
}

async fn log_each(hangup: &mut Signal) {
    while hangup.recv().await.is_some() {
        if HANGUPS.receiver_count() > 0 {
            info!("SIGHUP: the configuration and the certificates are read again");
            HANGUPS.send_replace(());
            continue;
        }
        warn!("SIGHUP is ignored: nothing is read again while the process starts or ends");
    }
}

async fn act_on_each(user_1: &mut Signal) {
    while user_1.recv().await.is_some() {
        ON_USER_1.lock().retain(|act| act());
    }
}
