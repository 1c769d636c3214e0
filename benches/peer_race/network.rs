//! A network for the race alone.
//!
//! A machine's treatment of loopback is no property of a server, and does not weigh
//! on all of them alike. BBR paces a sender by the packets that it has delivered,
//! and takes each for a full one (`tcp_bbr.c`, `bbr_update_bw()` and
//! `bbr_rate_bytes_per_sec()`); loopback's have 64 KiB. So a server that sends a head
//! by itself is let run ahead of one that sends it with the body: the bare loop, 256
//! connections, 1 MiB, sends 8,070 responses a second in the one way and 4,700 in the
//! other. A firewall looks at each packet.

#![allow(unsafe_code)]

use std::{
    fs, io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
};

/// The one that any network namespace may have, unless the machine forbids it, see
/// `ip-sysctl.rst`, `tcp_allowed_congestion_control`. It sends what its window
/// allows, at once, and the window only grows where nothing is lost.
const CONGESTION_CONTROL: &str = "reno";

const LOOPBACK: &[u8] = b"lo";

/// The network on which the servers and the client meet.
pub enum Network {
    /// A network namespace that has nothing but loopback.
    Own,
    /// The one that this was started in, with what is set there.
    Machine,
}

// === impl Network ===

impl Network {
    /// The network of the race: the machine's, or one of its own.
    pub fn enter(of_machine: bool) -> Self {
        match of_machine {
            true => Self::Machine,
            false => Self::enter_own(),
        }
    }

    /// Moves this thread, and all that it starts from now on, to a network
    /// namespace of its own, which takes CAP_SYS_ADMIN and CAP_NET_ADMIN.
    fn enter_own() -> Self {
        if let Err(e) = unshare_network() {
            println!("no network namespace for the race ({e}): on the machine's network");
            return Self::Machine;
        }
        set_up_loopback().unwrap_or_else(|e| {
            panic!("set up loopback in a namespace: {e}; --machine-network does without")
        });
        let path = "/proc/sys/net/ipv4/tcp_congestion_control";
        if let Err(e) = fs::write(path, CONGESTION_CONTROL) {
            println!("the race keeps the machine's congestion control ({path}: {e})");
        }
        Self::Own
    }

    /// The congestion control, and the owner of the network.
    pub fn describe(&self) -> String {
        let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
        let congestion = congestion.unwrap_or_default();
        let congestion = congestion.trim();
        match self {
            Self::Own => format!("{congestion} in a network namespace of the race's own"),
            Self::Machine if fs::exists("/proc/net/stat/nf_conntrack").unwrap_or(false) => {
                format!("{congestion} and conntrack on the machine's network")
            }
            Self::Machine => format!("{congestion} on the machine's network"),
        }
    }
}

/// unshare(2)
fn unshare_network() -> io::Result<()> {
    // SAFETY: takes an integer; no memory and no descriptor changes hands.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// netdevice(7), SIOCSIFFLAGS
fn set_up_loopback() -> io::Result<()> {
    // Its type is not the same with all C libraries.
    const SET_FLAGS: libc::Ioctl = libc::SIOCSIFFLAGS as libc::Ioctl;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::IFF_UP as libc::c_short,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(LOOPBACK) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the structure is what this request takes, its name ends with a zero,
    // and both it and the socket outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SET_FLAGS, &raw const request) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
