//! What the interleaved rounds have shown.

use std::time::Duration;

use crate::case::{Case, Way, MIB};
use crate::measure::median;

const GIB: f64 = (1024 * MIB) as f64;

/// What a variant did in all of its turns.
#[derive(Default)]
pub struct Turns {
    pub bytes_per_second: Vec<f64>,
    pub elapsed: Duration,
    pub server_cpu: Duration,
}

/// All variants of a case.
pub struct Compared {
    pub case: Case,
    pub of: Vec<(Way, Turns)>,
}

/// Each way to copy against sendfile.
pub fn print(table: &[Compared], rounds: usize) {
    println!("\nmedians of {rounds} interleaved rounds; ratio: of each round, its lowest and highest in brackets");
    println!("| responses | copied from | copied, GiB/s | sendfile, GiB/s | sendfile/copied | proxy busy, copied | proxy busy, sendfile |");
    println!("|---|---|---|---|---|---|---|");
    for Compared { case, of } in table {
        let Some((_, on)) = of.iter().find(|(way, _)| *way == Way::Sendfile) else {
            continue;
        };
        for (way, off) in of {
            let from = match way {
                Way::File => "file",
                Way::Memory => "memory",
                Way::Sendfile | Way::Signed => continue,
            };
            let turns = off.bytes_per_second.iter().zip(&on.bytes_per_second);
            let mut ratios: Vec<f64> = turns.map(|(off, on)| on / off).collect();
            let ratio = median(&mut ratios);
            println!(
                "| {} | {from} | {:.3} | {:.3} | {ratio:.2} [{:.2}, {:.2}] | {:.0} % | {:.0} % |",
                case.name(),
                off.median() / GIB,
                on.median() / GIB,
                ratios[0],
                ratios[ratios.len() - 1],
                off.busy() * 100.0,
                on.busy() * 100.0,
            );
        }
    }
    print_signed(table);
}

/// Signed requests against those that are not.
fn print_signed(table: &[Compared]) {
    println!("\n| responses | unsigned, a second | signed, a second | signed/unsigned |");
    println!("|---|---|---|---|");
    for Compared { case, of } in table {
        let find = |way| Some(&of.iter().find(|(of, _)| *of == way)?.1);
        let Some((unsigned, signed)) = find(Way::Sendfile).zip(find(Way::Signed)) else {
            continue;
        };
        let turns = signed
            .bytes_per_second
            .iter()
            .zip(&unsigned.bytes_per_second);
        let mut ratios: Vec<f64> = turns.map(|(signed, unsigned)| signed / unsigned).collect();
        let ratio = median(&mut ratios);
        let len = case.body_len() as f64;
        println!(
            "| {} | {:.0} | {:.0} | {ratio:.2} [{:.2}, {:.2}] |",
            case.name(),
            unsigned.median() / len,
            signed.median() / len,
            ratios[0],
            ratios[ratios.len() - 1],
        );
    }
}

// === impl Turns ===

impl Turns {
    fn median(&self) -> f64 {
        median(&mut self.bytes_per_second.clone())
    }

    /// The part of its core's time that the proxy used.
    fn busy(&self) -> f64 {
        self.server_cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}
