//! The limit of unsent bytes of responses in the kernel, for all connections together.

use std::fs;

use pingora_core::listeners::NotsentLimit;

/// The most for one connection, in bytes: about the size to which the kernel itself lets a send
/// buffer grow (the last figure of `net.ipv4.tcp_wmem`, tcp(7)).
const MOST: u32 = 2 << 20;

/// The least for one connection, in bytes. Fewer would cost a fast client wakeups.
const LEAST: u32 = 64 << 10;

/// The most for all connections together, beyond the least for each, in bytes.
const TOTAL: u64 = 256 << 20;

/// The share of all connections in the pressure mark: one in this many bytes. From this mark, the
/// second figure of `net.ipv4.tcp_mem`, the kernel saves on TCP buffers.
const PART_OF_TCP_MEMORY: u64 = 4;

/// The limit for `server.send_buffer`. `None` for the kernel's own.
pub(super) fn limit(send_buffer: Option<u32>) -> Option<NotsentLimit> {
    match send_buffer {
        Some(0) => None,
        Some(bytes) => Some(NotsentLimit::for_each(bytes)),
        None => {
            let pressure = fs::read_to_string("/proc/sys/net/ipv4/tcp_mem");
            let pressure = pressure.ok().and_then(|figures| pressure_bytes(&figures));
            Some(NotsentLimit::new(total(pressure), LEAST, MOST))
        }
    }
}

fn total(pressure: Option<u64>) -> u64 {
    pressure.map_or(TOTAL, |bytes| TOTAL.min(bytes / PART_OF_TCP_MEMORY))
}

/// The pressure mark in bytes. `tcp_mem` has it in pages.
fn pressure_bytes(figures: &str) -> Option<u64> {
    let pages: u64 = figures.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_gives_less() {
        let page = rustix::param::page_size() as u64;
        let small = pressure_bytes("45000\t60000\t90000\n");
        assert_eq!(small, Some(60_000 * page));
        assert_eq!(total(small), 15_000 * page);
        assert_eq!(total(pressure_bytes("287901 383868 575802")), TOTAL);
    }

    #[test]
    fn what_cannot_be_read_leaves_the_most() {
        for figures in ["", "1", "1 x 3", "1 18446744073709551615 3"] {
            assert_eq!(pressure_bytes(figures), None, "{figures}");
        }
        assert_eq!(total(None), TOTAL);
    }
}
